"""A distilled set from what its file holds, of which nothing is believed.

A file with a right checksum may still be forged, or of another version. Names, types, ranges,
shapes and finiteness are compared with what `artefact.save` writes before anything is made of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor

from potstill.data.preprocessing import Absent, Preprocess, restored
from potstill.devices import PRECISIONS
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.engine.kernels import Kernel
from potstill.files import with_prefix
from potstill.models.common import Initialisation, Norm
from potstill.models.convnet import BETWEEN
from potstill.parameterisations.base import from_plain
from potstill.records.metadata import SetMetadata
from potstill.records.plain import Unreadable, parse, parse_fields
from potstill.registry import AUGMENTATIONS, KERNELS, LEARNERS, MODELS

PREPROCESS = "preprocess."
"""How the names of the tensors of the preprocessing begin."""
OF_FILES = ("format_version", "kind")
"""Metadata that the file has as a file."""
NORMS = (*get_args(Norm), BETWEEN)
WIDEST, MOST_STEPS = 65_536, 10**9


@dataclass(frozen=True)
class Header:
    """What the metadata hold beside `SetMetadata`.

    Args:
        class_names: the name of each class.
        input_shape: of an example.
        preprocess: the name of the preprocessing.
        recipe: as plain data.
        learned_labels: whether labels were learned.
        blocks: each block's parameterisation, as plain data.
        without_preprocessing: whether the file was written without what prepares real examples.
    """

    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    preprocess: str
    recipe: Mapping[str, Any]
    learned_labels: bool
    blocks: tuple[Mapping[str, Any], ...]
    without_preprocessing: bool = False


def require(good: bool, what: str) -> None:
    """Raise Unreadable with a sentence on what must hold, unless it does."""
    if not good:
        raise Unreadable(what)


def assembled(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> DistilledSet:
    """Make a set of what its file holds.

    Raises:
        Unreadable: it is not what `artefact.save` writes.
        InputError: a part that it names does not exist here, or is not trusted.
    """
    own = {item.name for item in fields(Header)}
    header: Header = parse_fields(
        Header, {name: meta[name] for name in own if name in meta}, "metadata"
    )
    rest = {name: meta[name] for name in meta if name not in own and name not in OF_FILES}
    metadata: SetMetadata = parse(SetMetadata, rest, "metadata")
    shape, classes = header.input_shape, len(header.class_names)
    require(classes >= 1, "class_names must name at least one class")
    require(
        len(shape) in (1, 3) and min(shape) >= 1,
        f"input_shape must be (C, H, W) or (d,), got {shape}",
    )
    recipe = checked_recipe(Recipe.from_plain(header.recipe), classes)
    blocks = blocks_of(tensors, header, signed=LEARNERS[recipe.learner].signed)
    fitted = preprocessing_of(with_prefix(tensors, PREPROCESS), header)
    return DistilledSet(
        blocks,
        header.class_names,
        fitted,
        recipe,
        learned_labels=header.learned_labels,
        metadata=metadata,
    )


def blocks_of(
    tensors: Mapping[str, Tensor], header: Header, *, signed: bool = False
) -> tuple[Block, ...]:
    """Return the blocks, each of the tensors that its parameterisation stores.

    Args:
        tensors: what the file holds.
        header: what it says of them.
        signed: whether learned labels may be negative.
    """
    require(len(header.blocks) >= 1, "blocks must describe at least one block")
    size = header.input_shape, len(header.class_names), header.learned_labels
    made, known = [], set()
    for number, plain in enumerate(header.blocks):
        ipc = plain.get("ipc")
        require(type(ipc) is int and ipc >= 1, f"block {number}: ipc must be at least 1")
        one, prefix = from_plain(plain, *size), f"blocks.{number}."
        leaves = with_prefix(tensors, prefix)
        shapes = dict(one.shapes)
        if header.learned_labels:
            shapes["targets"] = (one.labels_stored, size[1])
        require(
            leaves.keys() == shapes.keys(),
            f"block {number} must store {', '.join(shapes)}, it stores {', '.join(leaves)}",
        )
        for name, leaf in leaves.items():
            check_tensor(f"{prefix}{name}", leaf, shapes[name])
        require(
            not header.learned_labels or signed or bool((leaves["targets"] >= 0).all()),
            f"block {number}: learned labels must not be negative",
        )
        known |= {prefix + name for name in leaves}
        made.append(Block(leaves, one))
    other = {name for name in tensors if not name.startswith(PREPROCESS)} - known
    require(not other, f"it holds tensors that belong to nothing: {', '.join(sorted(other)[:3])}")
    return tuple(made)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Require a tensor of finite float32 numbers of a shape."""
    require(
        tuple(tensor.shape) == tuple(shape),
        f"{name} must have the shape {tuple(shape)}, it has {tuple(tensor.shape)}",
    )
    require(tensor.dtype == torch.float32, f"{name} must be float32, it is {tensor.dtype}")
    require(bool(tensor.isfinite().all()), f"{name} must be finite")


def preprocessing_of(tensors: dict[str, Tensor], header: Header) -> Preprocess:
    """Return the preprocessing, tried on two examples."""
    if header.without_preprocessing:
        require(not tensors, "it is without its preprocessing, and holds tensors of one")
        return Absent(header.preprocess)
    for name, tensor in tensors.items():
        require(
            tensor.is_floating_point() and bool(tensor.isfinite().all()),
            f"{PREPROCESS}{name} must hold finite numbers",
        )
    fitted = restored(header.preprocess, tensors)
    # Of values that any preprocessing takes; what is fitted to other shapes fails.
    trial = torch.linspace(0.1, 0.9, 2 * math.prod(header.input_shape)).view(2, *header.input_shape)
    given = fitted(trial)
    require(given.shape == trial.shape, "its preprocessing is of another shape of examples")
    if len(header.input_shape) == 3:
        typical = fitted.tensors.get("typical")
        require(
            typical is not None and tuple(typical.shape) == (2,),
            f"{PREPROCESS}typical must hold two numbers",
        )
    return fitted


def checked_recipe(recipe: Recipe, classes: int) -> Recipe:
    """Return a recipe that networks can train by."""
    MODELS.check(recipe.model)
    LEARNERS.check(recipe.learner)
    KERNELS.check(recipe.kernel)
    for operation in (part for one in recipe.augment for part in one.split("+")):
        AUGMENTATIONS.check(operation)
    require(
        recipe.precision in PRECISIONS,
        f"recipe.precision must be one of {', '.join(PRECISIONS)}, got {recipe.precision!r}",
    )
    words = {"network_init": get_args(Initialisation), "norm": NORMS}
    for name, known in words.items():
        value = getattr(recipe, name)
        require(value in known, f"recipe.{name} must be one of {', '.join(known)}, got {value!r}")
    require(
        recipe.depth == "auto" or isinstance(recipe.depth, int),
        f"recipe.depth must be auto or a number, got {recipe.depth!r}",
    )
    require(
        recipe.kernel_kind in Kernel._fields,
        f"recipe.kernel_kind must be one of {', '.join(Kernel._fields)}, got "
        f"{recipe.kernel_kind!r}",
    )
    numbers = {
        "width": (recipe.width, WIDEST),
        "depth": (1 if isinstance(recipe.depth, str) else recipe.depth, 1000),
        "steps": (recipe.steps, MOST_STEPS),
        "batch_per_class": (recipe.batch_per_class, MOST_STEPS),
        "classes_per_batch": (recipe.classes_per_batch, classes),
        "kernel_depth": (recipe.kernel_depth, 1000),
        "batch_size": (1 if recipe.batch_size is None else recipe.batch_size, MOST_STEPS),
    }
    for name, (number, most) in numbers.items():
        require(1 <= number <= most, f"recipe.{name} must be 1 to {most:,}, got {number}")
    require(0 < recipe.lr < math.inf, f"recipe.lr must be above 0 and finite, got {recipe.lr}")
    require(
        0 < recipe.label_scale < math.inf,
        f"recipe.label_scale must be above 0 and finite, got {recipe.label_scale}",
    )
    require(0 <= recipe.ridge < math.inf, f"recipe.ridge must be 0 or more, got {recipe.ridge}")
    return recipe
