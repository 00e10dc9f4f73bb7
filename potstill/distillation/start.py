"""A run that starts from a set."""

from collections.abc import Sequence
from pathlib import Path

from torch import device

from potstill.config.config import Given, Resolved
from potstill.config.sections import STARTS
from potstill.data.layouts import listed
from potstill.data.preprocessing import Absent
from potstill.data.splits import Dataset
from potstill.distilled import artefact
from potstill.distilled.blocks import Block
from potstill.distilled.remote import is_remote, located
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError, near_miss
from potstill.parameterisations.base import Parameterisation


def start_set(config: Given, dataset: Dataset) -> DistilledSet | None:
    """Return the set that `--init` names; None: the run starts from noise or real examples.

    Raises:
        InputError: there is no such set, it is prepared otherwise than the run is to be, or has
            other classes or another shape than the data.
    """
    init = config.distilled.init
    if init in STARTS:
        return None
    path = located("init", init) if is_remote(init) else Path(init).expanduser()
    if not path.exists():
        raise InputError(
            f"init must be {', '.join(STARTS)}, or a run's folder or a set's file to start from, "
            f"got {init!r}, which does not exist{near_miss(init, STARTS)}"
        )
    start = artefact.load(path)
    if isinstance(start.fitted, Absent):
        raise InputError(f"{start.fitted.missing}; --init needs the whole set")
    asked = config.preprocessing.name
    if asked not in ("auto", start.fitted.name):
        raise InputError(
            f"preprocess must be that of the set in {init}, {start.fitted.name}, got {asked}; give "
            f"--preprocess {start.fitted.name}"
        )
    if start.class_names != dataset.class_names:
        raise InputError(
            "the set to start from must have the classes of the data, "
            f"{listed(dataset.class_names)}, in their order; got {listed(start.class_names)}"
        )
    if start.shape != dataset.shape:
        raise InputError(
            f"the set to start from has {start.noun}s of shape {start.shape}, the data of "
            f"{dataset.shape}; see --image-size"
        )
    return start


def blocks_of(
    start: DistilledSet, parts: Sequence[Parameterisation], on: device
) -> tuple[Block, ...]:
    """Return the blocks of a set as the first state of a run.

    Args:
        start: the set.
        parts: the parameterisation of each block of the run.
        on: where the blocks live.
    Raises:
        InputError: the set has other sizes or parameterisations than the run.
    """
    wanted = sum(part.budget.ipc for part in parts)
    if start.ipc != wanted and wanted in start.budgets:
        start = start.prefix(wanted)
    held = [block.ipc for block in start.blocks]
    asked = [part.budget.ipc for part in parts]
    if held != asked:
        raise InputError(
            f"the set to start from has {sizes(held)}, the run asks for {sizes(asked)}; give --ipc "
            f"{sum(held)} and --boost-blocks {len(held)}"
        )
    made = []
    for block, part in zip(start.blocks, parts, strict=True):
        own, its = part.plain(), block.parameterisation.plain()
        if own != its:
            differing = sorted(name for name in {*own, *its} if own.get(name) != its.get(name))
            raise InputError(
                f"the set to start from is stored as {its['kind']}, the run asks for {own['kind']}"
                f" ({', '.join(differing)} differ); give the --param and options it was made with"
            )
        leaves = dict(block.leaves)
        if start.learned_labels and not part.budget.learn_labels:
            raise InputError("the set to start from has learned labels; give --learn-labels, too")
        if part.budget.learn_labels and "targets" not in leaves:
            leaves["targets"] = block.targets
        made.append(Block(leaves, part).to(on))
    return tuple(made)


def kept_blocks(config: Resolved, start: DistilledSet | None) -> int:
    """Return how many blocks of the set to start from a run keeps and begins after.

    Raises:
        InputError: there is no such set, it was made by another method or in blocks of other sizes,
            or is no smaller than the set is to be.
    """
    if config.distilled.extend == "no":
        return 0
    if start is None:
        raise InputError(
            "extend adds blocks to the set that --init names, got --init "
            f"{config.distilled.init}; give a run's folder or a set's file"
        )
    method, made_by = config.method.name, start.metadata.method
    if made_by not in (None, method):
        raise InputError(
            f"a set is extended by the method that made it, {made_by}, got {method}; give --method "
            f"{made_by}, or start anew"
        )
    own, block = [one.ipc for one in start.blocks], config.distilled.ipc_of_block
    if set(own) != {block}:
        raise InputError(
            f"new blocks must have the size of those that are kept, the set has {sizes(own)}, the "
            f"run asks for blocks of {block}; give an --ipc that is a multiple of {own[0]}"
        )
    if len(own) >= config.distilled.boost_blocks:
        raise InputError(
            f"ipc must be above the {sum(own)} of the set that is extended, got "
            f"{config.distilled.ipc}; give more"
        )
    return len(own)


def sizes(ipcs: Sequence[int]) -> str:
    """Say how many examples a class has in each block."""
    total = f"{sum(ipcs)} of each class"
    return total if len(ipcs) == 1 else f"{total} in {len(ipcs)} blocks"
