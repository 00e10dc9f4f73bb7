"""The distilled set as a file."""

import os
from collections.abc import Mapping
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor

from potstill.config.config import Given, changed, configuration, options_of_run
from potstill.data.preprocessing import Absent, restored
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.files import load_tensors, save_tensors, with_prefix
from potstill.parameterisations.base import from_plain
from potstill.records.metadata import SetMetadata
from potstill.records.plain import Unreadable, dump, parse
from potstill.registry import InputError

ARTEFACT = "distilled.safetensors"
PREPROCESS = "preprocess."
"""How the names of the tensors of the preprocessing begin."""


def save(distilled: DistilledSet, path: str | os.PathLike[str]) -> None:
    """Write a distilled set as one self-contained file.

    Equal sets give equal bytes: no time, host or path is in it.
    """
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
    save_tensors(Path(path), tensors_of(distilled), "distilled set", meta)


def tensors_of(distilled: DistilledSet) -> dict[str, Tensor]:
    """Return the tensors of the file, by name."""
    tensors = {f"{PREPROCESS}{name}": tensor for name, tensor in distilled.fitted.state().items()}
    for number, block in enumerate(distilled.blocks):
        tensors |= {f"blocks.{number}.{name}": leaf for name, leaf in block.leaves.items()}
    return tensors


def parts_of_file(path: Path) -> Mapping[str, int]:
    """Return what the file of a set holds -> its bytes, the largest first."""
    distilled = load(path)
    kept = {name: tensor.nbytes for name, tensor in tensors_of(distilled).items()}
    own = sum(size for name, size in kept.items() if name.startswith(PREPROCESS))
    parts = {
        f"what prepares real {distilled.noun}s ({distilled.fitted.name})": own,
        "the set": sum(kept.values()) - own,
        "how it was made": path.stat().st_size - sum(kept.values()),
    }
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def size_words(path: Path) -> str:
    """Say how large the file of a set is and what in it takes how much."""
    parts = parts_of_file(path)
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
        path: a `distilled.safetensors` file, or the run folder that holds it.
        ipc: images per class; the prefix of that size of a nested set. None: the whole set.
    Returns:
        The set, on the CPU.
    Raises:
        InputError: no such file, a damaged or foreign one, or a size that the set does not hold.
    """
    file = Path(path)
    tensors, meta = load_tensors(file / ARTEFACT if file.is_dir() else file, "distilled set")
    size = tuple(meta.pop("input_shape")), len(meta["class_names"]), meta["learned_labels"]
    stored = [with_prefix(tensors, f"blocks.{number}.") for number in range(len(meta["blocks"]))]
    blocks = tuple(
        Block(leaves, from_plain(plain, *size))
        for leaves, plain in zip(stored, meta.pop("blocks"), strict=True)
    )
    name, absent = meta.pop("preprocess"), meta.pop("without_preprocessing", False)
    fitted = Absent(name) if absent else restored(name, with_prefix(tensors, PREPROCESS))
    names, learned_labels, recipe = (
        meta.pop(name) for name in ("class_names", "learned_labels", "recipe")
    )
    told = {name: value for name, value in meta.items() if name not in ("format_version", "kind")}
    try:
        metadata = parse(SetMetadata, told, "metadata")
    except Unreadable as error:
        raise InputError(
            f"{path} was written by another version of potstill: {error}; use that one"
        ) from error
    distilled = DistilledSet(
        blocks,
        tuple(names),
        fitted,
        Recipe.from_plain(recipe),
        learned_labels=learned_labels,
        metadata=metadata,
    )
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
