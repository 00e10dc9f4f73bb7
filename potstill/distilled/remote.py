"""Sets that are no file here yet: "hf://user/name" of the Hugging Face Hub, "zoo:name" of ours.

They are copied to the user's cache folder, from which they are read as any set, and where what is
measured of them is kept.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import platformdirs

from potstill.distilled.zoo import ZOO, unpacked
from potstill.errors import InputError, first_line, let_memory_pass
from potstill.files import place

HUB = "hf://"
"""How a set of the Hub is named: this and user/name, with @revision if it is not the newest."""
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
EXTRA = "pip install 'potstill[hf]'"
FILE = "distilled.safetensors"


def is_remote(name: str) -> bool:
    """Return whether a name is that of a set which is to be fetched."""
    return name.startswith((HUB, ZOO))


def located(name: str, given: Any) -> Path:
    """Return the place of a set that a caller gave, fetched if it is not here.

    Args:
        name: of the argument, for messages.
        given: a path, or the name of a set of the Hub or of a ready-made one.
    """
    if isinstance(given, str) and is_remote(given):
        return fetched(given)
    return place(name, given)


def fetched(name: str) -> Path:
    """Return the file of a set of the Hub, downloaded if it is not here yet, or a ready-made one.

    Args:
        name: "hf://user/name", "hf://user/name@revision" or "zoo:name".
    Raises:
        InputError: another form, no such set, no network, or no room.
    """
    sets = Path(platformdirs.user_cache_dir("potstill")) / "sets"
    if name.startswith(ZOO):
        return unpacked(name, sets, FILE)
    found = NAME.fullmatch(name.removeprefix(HUB))
    if found is None:
        raise InputError(f"a set of the Hub is named hf://user/name, got {name!r}; give both")
    hub = library(name)
    try:
        source = Path(
            hub.hf_hub_download(
                found["repo"], FILE, repo_type="dataset", revision=found["revision"]
            )
        )
    except Exception as error:  # of the library and of the network, in many forms
        let_memory_pass(error)
        raise InputError(f"cannot fetch {name}: {why(hub, error)}") from error
    kept = sets / found["repo"].replace("/", "--")
    # Snapshots are named after their commit: sets of different commits stay apart.
    target = kept / source.parent.name[:12] / FILE
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}; make room") from error
    return target


def library(name: str) -> Any:
    """Return huggingface_hub; raise an InputError if it is not installed."""
    try:
        import huggingface_hub  # here: an optional extra
    except ImportError as error:
        raise InputError(f"{name} needs the package huggingface_hub; run: {EXTRA}") from error
    return huggingface_hub


def status_of(error: Exception) -> int | None:
    """Return the status with which the Hub answered; None: it did not."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def why(hub: Any, error: Exception) -> str:
    """Say in a sentence's end why the Hub did not do what it was asked for."""
    errors = hub.errors
    status = status_of(error)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return f"it holds no {FILE}, as potstill writes it; see potstill.distill(method='imported')"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision; leave @... out for the newest"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return "there is no such set, or it is private; check the name, or run `hf auth login`"
    if isinstance(error, errors.HFValidationError):
        return f"{first_line(error)}; check the name"
    return f"the Hub cannot be reached ({type(error).__name__}); check the network, and try again"
