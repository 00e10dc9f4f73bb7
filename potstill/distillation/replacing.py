"""Replacing a run: the old one's files wait in .replaced/ until the new set is written.

The old config.toml is moved away first, and a new one is written last. A folder without it and with
one in .replaced/ was cut off in between, by a kill or a full disk: `put_back` undoes it.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

REPLACED = ".replaced"
UNFINISHED = re.compile(r"\..+\.\d+\.tmp")
"""Name of a file that a kill left half written, see `files.write`."""


def set_aside(run: Path, config: str, names: Sequence[str], *, keep: bool) -> None:
    """Move what a run wrote to .replaced/.

    Args:
        run: the run's folder.
        config: name of its configuration.
        names: of the files and folders that a run writes, without the configuration.
        keep: keep what .replaced/ holds already, and remove the run's files instead.
    """
    aside = run / REPLACED
    if not keep:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    for name in (config, *names):
        here = run / name
        if here.exists() and not keep:
            here.rename(aside / name)
        else:
            remove(here)


def put_back(run: Path, config: str) -> bool:
    """Undo `set_aside` where no new configuration was written; return whether there was anything.

    The configuration comes last, so that this, too, may be cut off.
    """
    aside = run / REPLACED
    if (run / config).exists() or not (aside / config).is_file():
        return False
    waiting = sorted(aside.iterdir(), key=lambda path: path.name == config)
    for path in waiting:
        remove(run / path.name)
        path.rename(run / path.name)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the files that a kill left half written."""
    for path in folder.glob(".*.tmp"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
