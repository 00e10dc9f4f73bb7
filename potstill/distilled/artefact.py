"""The distilled set as a file."""

import os
from collections.abc import Mapping
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor

from potstill import __version__
from potstill.config.config import Given, changed, configuration, options_of_run
from potstill.data.preprocessing import Absent
from potstill.distilled.reading import PREPROCESS, assembled
from potstill.distilled.remote import FILE, located
from potstill.distilled.sets import DistilledSet, require_set
from potstill.errors import InputError, let_memory_pass
from potstill.files import load_tensors, place, save_tensors
from potstill.records.plain import Unreadable, dump

ARTEFACT = FILE
FORGED = (
    Unreadable,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RuntimeError,
    RecursionError,
)
"""What reading a file that somebody made up may raise, beside a sentence on it."""


def save(distilled: DistilledSet, path: str | os.PathLike[str]) -> None:
    """Write a distilled set as one self-contained file.

    Equal sets give equal bytes: no time, host or path is in it.
    """
    require_set(distilled)
    file = place("path", path)
    meta = {
        **dump(distilled.metadata),
        "class_names": list(distilled.class_names),
        "input_shape": list(distilled.shape),
        "preprocess": distilled.fitted.name,
        "recipe": distilled.recipe.plain(),
        "learned_labels": distilled.learned_labels,
        "blocks": [block.parameterisation.plain() for block in distilled.blocks],
    }
    if isinstance(distilled.fitted, Absent):
        meta["without_preprocessing"] = True
    save_tensors(file, tensors_of(distilled), "distilled set", meta)


def tensors_of(distilled: DistilledSet) -> dict[str, Tensor]:
    """Return the tensors of the file, by name."""
    tensors = {f"{PREPROCESS}{name}": tensor for name, tensor in distilled.fitted.state().items()}
    for number, block in enumerate(distilled.blocks):
        tensors |= {f"blocks.{number}.{name}": leaf for name, leaf in block.leaves.items()}
    return tensors


def parts_of_file(distilled: DistilledSet, path: Path) -> Mapping[str, int]:
    """Return what the file of a set, at `path`, holds -> its bytes, the largest first."""
    kept = {name: tensor.nbytes for name, tensor in tensors_of(distilled).items()}
    own = sum(size for name, size in kept.items() if name.startswith(PREPROCESS))
    parts = {
        f"what prepares real {distilled.noun}s ({distilled.fitted.name})": own,
        "the set": sum(kept.values()) - own,
        "how it was made": path.stat().st_size - sum(kept.values()),
    }
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def file_words(distilled: DistilledSet, path: Path) -> str:
    """Say how large the file of a set, at `path`, is and what in it takes how much."""
    parts = parts_of_file(distilled, path)
    told = ", ".join(f"{decimal(size)} {what}" for what, size in parts.items() if size)
    return f"{decimal(sum(parts.values()))}: {told}"


def without_preprocessing(distilled: DistilledSet) -> DistilledSet:
    """Return the same set without what prepares real examples, which may be most of the file."""
    return DistilledSet(
        distilled.blocks,
        distilled.class_names,
        Absent(distilled.fitted.name),
        distilled.recipe,
        learned_labels=distilled.learned_labels,
        metadata=distilled.metadata,
    )


def load(path: str | os.PathLike[str], ipc: int | None = None) -> DistilledSet:
    """Read a distilled set; nothing else is needed to train on it.

    Args:
        path: a `distilled.safetensors` file, the run folder that holds it, or "hf://user/name", a
            set of the Hugging Face Hub.
        ipc: images per class; the prefix of that size of a nested set. None: the whole set.
    Returns:
        The set, on the CPU.
    Raises:
        InputError: no such file, a damaged or foreign one, or a size that the set does not hold.
    """
    file = located("path", path)
    file = file / ARTEFACT if file.is_dir() else file
    tensors, meta = load_tensors(file, "distilled set")
    try:
        distilled = assembled(tensors, meta)
    except InputError:  # it is a ValueError, too
        raise
    except FORGED as error:
        let_memory_pass(error)
        what = str(error) if isinstance(error, Unreadable) else f"{type(error).__name__}, {error}"
        raise InputError(
            f"{file} is no set as potstill {__version__} writes it: {what}; it is damaged, or of "
            "another version: take another copy, or that version"
        ) from error
    return distilled if ipc is None else distilled.prefix(ipc)


def recorded_config(distilled: DistilledSet) -> Given:
    """Return the options of the data and of the evaluation that a set's file records.

    The path of the data is left out, except for data that come with potstill or another package. So
    are the parts that made the set: the file can be used where another user's method is not
    installed.
    """
    tables = distilled.metadata.config
    options = {**tables.get("data", {}), **tables.get("evaluation", {})}
    # A file of another version may hold others.
    known = {option.name for option in options_of_run({})}
    config = configuration({name: value for name, value in options.items() if name in known})
    return config if config.data.embedded else changed(config, data="arrays")
