"""The distilled set as a file."""

import os
from pathlib import Path

from potstill.distilled import Block, DistilledSet, Recipe
from potstill.files import load_tensors, save_tensors, with_prefix
from potstill.parameterisations.base import from_plain
from potstill.preprocess import restored

ARTEFACT = "distilled.safetensors"


def save(distilled: DistilledSet, path: str | os.PathLike[str]) -> None:
    """Write a distilled set as one self-contained file. Equal sets give equal bytes: no time, host or path is in it."""
    tensors = {f"preprocess.{name}": tensor for name, tensor in distilled.fitted.state().items()}
    for number, block in enumerate(distilled.blocks):
        tensors |= {f"blocks.{number}.{name}": leaf for name, leaf in block.leaves.items()}
    meta = {
        **distilled.meta,
        "class_names": list(distilled.class_names),
        "input_shape": list(distilled.shape),
        "preprocess": distilled.fitted.name,
        "recipe": distilled.recipe.plain(),
        "learned_labels": distilled.learned_labels,
        "blocks": [block.parameterisation.plain() for block in distilled.blocks],
    }
    save_tensors(Path(path), tensors, "distilled set", meta)


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
    blocks = tuple(Block(leaves, from_plain(plain, *size)) for leaves, plain in zip(stored, meta.pop("blocks"), strict=True))
    fitted = restored(meta.pop("preprocess"), with_prefix(tensors, "preprocess."))
    distilled = DistilledSet(
        blocks,
        tuple(meta.pop("class_names")),
        fitted,
        Recipe.from_plain(meta.pop("recipe")),
        learned_labels=meta.pop("learned_labels"),
        meta={name: value for name, value in meta.items() if name not in ("format_version", "kind")},
    )
    return distilled if ipc is None else distilled.prefix(ipc)
