"""The outer loop's state as tensors and plain data, and back, strict about what is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from potstill.distillation.outer import Best, Carried, OuterState
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError
from potstill.files import with_prefix
from potstill.records.plain import Unreadable, parse

WHOLE = ("step", "updates", "skipped_in_a_row", "stage", "moments")
"""What counts, from 0."""


@dataclass(frozen=True)
class Kept:
    """What is kept of the best set beside its tensors."""

    step: int
    accuracy: float


@dataclass(frozen=True)
class Described:
    """What a checkpoint says beside its tensors; see `OuterState`, `Carried` and `identity`."""

    step: int
    updates: int
    skipped_in_a_row: int
    clip_average: float | None
    stage: int
    recipes: tuple[Mapping[str, Any], ...]
    moments: int
    method: Mapping[str, Any]
    sampler: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    best: Kept | None = None

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Described":
        """Read a checkpoint's metadata.

        Raises:
            Unreadable: they lack something, or something is of a wrong type or range.
        """
        known = {name: value for name, value in meta.items() if name in cls.__annotations__}
        read: Described = parse(Described, known, "checkpoint")
        for name in WHOLE:
            if getattr(read, name) < 0:
                raise Unreadable(f"checkpoint.{name} must be at least 0, got {known[name]}")
        for recipe in read.recipes:
            Recipe.from_plain(recipe)
        return read


def pack(state: OuterState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a state as tensors and plain data."""
    tensors: dict[str, Tensor] = {}
    for name, leaf in state.leaves.items():
        tensors[f"leaves.{name}"] = leaf
        for number, moment in enumerate(state.moments[name]):
            tensors[f"moment{number}.{name}"] = moment
    carried = state.carried
    meta: dict[str, Any] = {
        "step": state.step,
        "updates": state.updates,
        "skipped_in_a_row": state.skipped_in_a_row,
        "clip_average": state.clip_average,
        "stage": carried.stage,
        "recipes": list(carried.recipes),
        "moments": len(next(iter(state.moments.values()), ())),
    }
    for part, known in (("method", state.method), ("sampler", carried.sampler)):
        meta[part] = {name: value for name, value in known.items() if not isinstance(value, Tensor)}
        tensors |= {
            f"{part}.{name}": value for name, value in known.items() if isinstance(value, Tensor)
        }
    tensors |= {f"averaged.{name}": leaf for name, leaf in state.averaged.items()}
    tensors |= {f"earlier.{name}": leaf for name, leaf in carried.earlier.items()}
    if state.best:
        tensors |= {f"best.{name}": leaf for name, leaf in state.best.leaves.items()}
        meta["best"] = {"step": state.best.step, "accuracy": state.best.accuracy}
    # Cloned: some may be the same tensor, and safetensors refuses shared memory.
    return {name: tensor.clone() for name, tensor in tensors.items()}, meta


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> OuterState:
    """Return the state that `pack` was given.

    Raises:
        Unreadable: it is another's: something is missing, or of a wrong type or shape.
    """
    return state_of(tensors, Described.of(meta))


def state_of(tensors: Mapping[str, Tensor], read: Described) -> OuterState:
    """Return the state of a checkpoint whose metadata are read; see `unpack`."""
    leaves = with_prefix(tensors, "leaves.")
    moments = [with_prefix(tensors, f"moment{number}.") for number in range(read.moments)]
    kept = with_prefix(tensors, "best.")
    for what, others in [*((f"moment{n}", own) for n, own in enumerate(moments)), ("best", kept)]:
        if others.keys() != leaves.keys() and (what != "best" or read.best):
            raise Unreadable(
                f"{what} must be of the leaves {', '.join(leaves)}, got {list(others)}"
            )
    averaged = with_prefix(tensors, "averaged.")
    if not averaged.keys() <= leaves.keys():
        raise Unreadable(f"averaged must be of the leaves {', '.join(leaves)}")
    for name, leaf in (*leaves.items(), *kept.items(), *averaged.items()):
        shape, kind = leaves[name].shape, leaves[name].dtype
        if (leaf.shape, leaf.dtype) != (shape, kind) or not leaf.isfinite().all():
            raise Unreadable(f"{name} must be finite numbers of shape {tuple(shape)}, {kind}")
    carried = Carried(
        read.stage,
        with_prefix(tensors, "earlier."),
        read.recipes,
        {**read.sampler, **with_prefix(tensors, "sampler.")},
    )
    return OuterState(
        leaves=leaves,
        moments={name: tuple(column[name] for column in moments) for name in leaves},
        method={**read.method, **with_prefix(tensors, "method.")},
        step=read.step,
        updates=read.updates,
        skipped_in_a_row=read.skipped_in_a_row,
        clip_average=read.clip_average,
        best=Best(read.best.step, read.best.accuracy, kept) if read.best else None,
        carried=carried,
        averaged=averaged,
    )


def require_fits(state: OuterState, begun: OuterState) -> None:
    """Raise an InputError unless a state has what one of its stage has at the beginning."""
    require_alike(state.leaves, begun.leaves, state.step)
    require_alike(state.averaged, begun.averaged, state.step)
    for name, moments in begun.moments.items():
        held, needed = (dict(enumerate(some)) for some in (state.moments[name], moments))
        require_alike(held, needed, state.step)


def require_alike(held: Mapping[Any, Tensor], needed: Mapping[Any, Tensor], step: int) -> None:
    """Raise an InputError unless the tensors of a checkpoint are of the kind that a run needs.

    Args:
        held: name -> tensor.
        needed: such as the run has at its beginning.
        step: of the checkpoint.
    """

    def kinds(tensors: Mapping[Any, Tensor]) -> dict[Any, Any]:
        return {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()}

    own, wanted = kinds(held), kinds(needed)
    if own != wanted:
        raise InputError(
            f"the checkpoint of outer step {step} must hold {wanted}, it holds {own}; it is of "
            "another run or damaged: remove it"
        )
