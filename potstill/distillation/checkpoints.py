"""A run's state as tensors and plain data, and what a checkpoint stands for."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from potstill import files
from potstill.config.config import Resolved
from potstill.distillation.outer import Best, Carried, OuterState
from potstill.files import with_prefix

MAY_CHANGE = (
    "data",
    "weights",
    "cache_dir",
    "storage",
    "device",
    "threads",
    "steps",
    "time_budget",
    "checkpoint_every",
    "keep_checkpoints",
)
"""Options that a resumed run may have changed: paths of data and weights, hardware, length and
checkpoints. (What the data and weights hold may not: see `RunFolder.require_data`.)"""


def identity(config: Resolved) -> dict[str, Any]:
    """Return the options that a checkpoint depends on, as plain data."""
    plain: dict[str, Any] = json.loads(files.canonical(config.flat()))
    nested = config.distilled.boost_blocks > 1  # there the first blocks' last steps are behind us
    return {
        name: value
        for name, value in plain.items()
        if name not in MAY_CHANGE or (nested and name == "steps")
    }


def steps_done(state: OuterState, config: Resolved) -> int:
    """Return the outer steps of the whole run up to a state, over all blocks."""
    return state.carried.stage * config.outer.steps + state.step


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
    tensors |= {f"earlier.{name}": leaf for name, leaf in carried.earlier.items()}
    if state.best:
        tensors |= {f"best.{name}": leaf for name, leaf in state.best.leaves.items()}
        meta["best"] = {"step": state.best.step, "accuracy": state.best.accuracy}
    # Cloned: some may be the same tensor, and safetensors refuses shared memory.
    return {name: tensor.clone() for name, tensor in tensors.items()}, meta


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> OuterState:
    """Return the state that `pack` was given."""
    leaves = with_prefix(tensors, "leaves.")
    moments = [with_prefix(tensors, f"moment{number}.") for number in range(meta["moments"])]
    best = Best(leaves=with_prefix(tensors, "best."), **meta["best"]) if "best" in meta else None
    carried = Carried(
        meta["stage"],
        with_prefix(tensors, "earlier."),
        tuple(meta["recipes"]),
        {**meta["sampler"], **with_prefix(tensors, "sampler.")},
    )
    known = ("step", "updates", "skipped_in_a_row", "clip_average")
    return OuterState(
        leaves=leaves,
        moments={name: tuple(column[name] for column in moments) for name in leaves},
        method={**meta["method"], **with_prefix(tensors, "method.")},
        best=best,
        carried=carried,
        **{name: meta[name] for name in known},
    )
