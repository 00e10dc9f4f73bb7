"""Sets for others: a folder with the set, a table, pictures and a card; the Hub that takes it."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from potstill.distilled.exports import export
from potstill.distilled.remote import HUB, NAME, library, status_of, why
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError, let_memory_pass
from potstill.files import place, write
from potstill.reports.card import card, files_of
from potstill.reports.run_summary import read_runs


def push(
    run: str | os.PathLike[str],
    to: str,
    *,
    license: str = "",
    private: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> str:
    """Publish the set of a finished, evaluated run on the Hugging Face Hub, as a data set.

    What is published: the set's file, `data.parquet`, which the Hub's viewer shows, a picture, what
    was measured, and a card (README.md) made from the run's record. No path of this machine is in
    them.

    Args:
        run: its folder.
        to: "user/name", with or without "hf://".
        license: of the set, as the Hub names licenses.
        private: whether others cannot see it.
        folder: write what would be published there, and publish nothing.
    Returns:
        Where the set is: its address on the Hub, or the folder.
    Raises:
        InputError: no finished run, one that was not measured on test data, a folder that exists,
            a name that is none, or the Hub cannot be reached or refuses.
    """
    name = to.removeprefix(HUB)
    found = NAME.fullmatch(name)
    if found is None or found["revision"]:
        raise InputError(f"to must be user/name, got {to!r}; give both")
    source = place("run", run)
    (summary,) = read_runs([source])
    if not summary.finished:
        raise InputError(f"the run in {source} is not finished; go on with --resume {source}")
    text, distilled = card(summary, name, license), summary.distilled
    assert distilled is not None  # the card tells of it
    if folder is not None:
        target = place("folder", folder)
        if target.exists():
            raise InputError(f"{target} exists; choose another folder, or remove it")
        fill(target, summary.path, distilled, text)
        return str(target)
    hub = library(f"{HUB}{name}")
    with tempfile.TemporaryDirectory() as made:
        fill(Path(made) / "set", summary.path, distilled, text)
        return published(hub, Path(made) / "set", name, private=private)


def fill(target: Path, source: Path, distilled: DistilledSet, text: str) -> None:
    """Write what is published to a new folder."""
    try:
        target.mkdir(parents=True)
        for file in files_of(source):
            shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; choose another") from error
    export(distilled, "parquet", target / "data.parquet")
    write(target / "README.md", text)


def published(hub: Any, folder: Path, name: str, *, private: bool) -> str:
    """Send a folder to the Hub and return its address there."""
    try:
        client = hub.HfApi()
        client.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        client.upload_folder(
            folder_path=folder, repo_id=name, repo_type="dataset", commit_message="potstill push"
        )
    except Exception as error:  # of the library and of the network, in many forms
        let_memory_pass(error)
        status = status_of(error)
        if status in (401, 403):
            raise InputError(
                f"the Hub refuses {name} ({status}): log in with `hf auth login`, by a token that "
                "may write there"
            ) from error
        raise InputError(f"cannot publish {name}: {why(hub, error)}") from error
    return f"{HUB}{name}"
