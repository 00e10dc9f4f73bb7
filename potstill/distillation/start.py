"""A run that starts from a set."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, device

from potstill.config.config import Given, Resolved
from potstill.config.sections import STARTS, DataConfig
from potstill.data.layouts import listed
from potstill.data.preparation import RealData, cut_splits
from potstill.data.preprocessing import Absent
from potstill.data.splits import Dataset
from potstill.distilled import artefact
from potstill.distilled.blocks import Block, initial_blocks
from potstill.distilled.remote import is_remote, located
from potstill.distilled.sets import DistilledSet, require_features
from potstill.errors import InputError, near_miss
from potstill.evaluation.fitting import cautions
from potstill.parameterisations.base import Parameterisation
from potstill.registry import LEARNERS


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
    if config.distilled.new_classes:
        require_more_classes(start, dataset.class_names)
    elif start.class_names != dataset.class_names:
        raise InputError(
            "the set to start from must have the classes of the data, "
            f"{listed(dataset.class_names)}, in their order; got {listed(start.class_names)}"
        )
    if start.shape != dataset.shape:
        way_out = "see --image-size" if len(start.shape) > 1 else "give data of the same features"
        raise InputError(
            f"the set to start from has {start.noun}s of shape {start.shape}, the data of "
            f"{dataset.shape}; {way_out}"
        )
    require_features(
        "the data must have the features of the set to start from",
        dataset.feature_names,
        start.known_features,
        "rename or reorder columns",
    )
    return start


def cautions_on_start(start: DistilledSet, dataset: Dataset, config: DataConfig) -> tuple[str, ...]:
    """Return sentences on data that are others than those of the set that a run starts from.

    Args:
        start: the set.
        dataset: the real data, raw.
        config: how they are split.
    """
    known = start.metadata.data
    if known is None or known.fingerprint == dataset.fingerprint:
        return ()
    return cautions(known, cut_splits(dataset, config)["test"], dataset.kind)


def first_blocks(
    config: Resolved,
    start: DistilledSet | None,
    parts: Sequence[Parameterisation],
    real: RealData,
    on: device,
) -> tuple[tuple[Block, ...], int, Tensor | None]:
    """Return the blocks as they are before distillation.

    Args:
        config: of the run.
        start: the set that the run starts from, if it does.
        parts: the parameterisation of each block.
        real: the data.
        on: where the blocks live.
    Returns:
        The blocks; how many of them the run keeps and begins after; and (n,) which examples of a
        single block stay as they are, or None.
    Raises:
        InputError: the set and the run do not fit each other.
    """
    kept, adding = kept_blocks(config, start), config.distilled.new_classes
    blocks: tuple[Block, ...] = ()
    if start and not adding:
        blocks = blocks_of(start, parts[: kept or len(parts)], on)
    if len(blocks) < len(parts):
        kind = config.distilled.extend if kept or adding else config.distilled.init
        made = initial_blocks(kind, parts, real.train, config.run.seed, on, real.class_names)
        blocks = (*blocks, *made[len(blocks) :])
    if not (start and adding):
        return blocks, kept, None
    grown, still = with_new_classes(start, blocks[0], config, real.class_names)
    return (grown,), kept, still


def require_more_classes(start: DistilledSet, names: Sequence[str]) -> None:
    """Raise an InputError unless the data have the classes of a set, and others."""
    gone = [name for name in start.class_names if name not in names]
    if gone:
        raise InputError(
            "with --new-classes the data must have all classes of the set, and more: they lack "
            f"{listed(gone)}; give data that have them, with --data"
        )
    if len(names) == len(start.class_names):
        raise InputError(
            f"with --new-classes the data must have more classes than the set, both have "
            f"{listed(names)}; leave it out, and give a higher --ipc"
        )


def with_new_classes(
    start: DistilledSet, fresh: Block, config: Resolved, names: Sequence[str]
) -> tuple[Block, Tensor]:
    """Return a block of the images of a set, and of new ones of the classes that it lacks.

    Args:
        start: the set.
        fresh: a block of all classes, from which the new ones are taken.
        config: of the run.
        names: the classes of the data, which hold those of the set.
    Returns:
        The block, and (n,) which of its examples are the set's.
    Raises:
        InputError: the set is nested, decoded, of another size or method, or its labels are
            targets of a regression.
    """
    require_method(start, config)
    (block, *others), part = start.blocks, fresh.parameterisation
    plain = block.parameterisation.plain()["kind"]
    if config.distilled.boost_blocks > 1:
        raise InputError(
            "new classes come into a set of one block, got --boost-blocks "
            f"{config.distilled.boost_blocks}; leave it out, and extend again for more blocks"
        )
    require_labels(start, part)
    if LEARNERS[start.recipe.learner].signed:
        raise InputError(
            "labels that are targets of a regression are centred over all classes, so that a set "
            "of them cannot get new ones; start anew with all classes"
        )
    for good, rule, found in (
        (not others, "have one block", f"{len(start.blocks)} blocks"),
        (block.ipc == part.budget.ipc, f"have {part.budget.ipc} of each class", f"{block.ipc}"),
        (plain == part.plain()["kind"] == "pixels", "store pixels", plain),
    ):
        if not good:
            raise InputError(
                f"a set that is to get new classes must {rule}, got {found}; distill the new "
                "classes alone, and use potstill merge"
            )
    order = torch.tensor([names.index(name) for name in start.class_names])
    known = torch.isin(fresh.labels, order.to(fresh.labels.device))
    # Class by class, as the data have them.
    rows = torch.cat([torch.nonzero(block.labels == label)[:, 0] for label in order.argsort()])
    leaves = {name: leaf.clone() for name, leaf in fresh.leaves.items()}
    leaves["images"][known] = block.images[rows].to(leaves["images"])
    if "targets" in leaves:
        wide = torch.zeros(len(rows), len(names))
        wide[:, order] = block.targets[rows].cpu()
        leaves["targets"][known] = wide.to(leaves["targets"])
    return Block(leaves, part), known


def require_method(start: DistilledSet, config: Resolved) -> None:
    """Raise an InputError if a set that is extended was made by another method than the run's."""
    method, made_by = config.method.name, start.metadata.method
    if made_by not in (None, method):
        raise InputError(
            f"a set is extended by the method that made it, {made_by}, got {method}; give --method "
            f"{made_by}, or start anew"
        )


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
        require_labels(start, part)
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
        if config.distilled.new_classes:
            raise InputError(
                "new_classes needs what the new images start from; give --extend gaussian, normal "
                "or real"
            )
        return 0
    if start is None:
        raise InputError(
            "extend adds blocks to the set that --init names, got --init "
            f"{config.distilled.init}; give a run's folder or a set's file"
        )
    if config.distilled.new_classes:
        return 0
    require_method(start, config)
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


def require_labels(start: DistilledSet, part: Parameterisation) -> None:
    """Raise an InputError if a run would lose the labels that a set has learned."""
    if start.learned_labels and not part.budget.learn_labels:
        raise InputError("the set to start from has learned labels; give --learn-labels, too")


def sizes(ipcs: Sequence[int]) -> str:
    """Say how many examples a class has in each block."""
    total = f"{sum(ipcs)} of each class"
    return total if len(ipcs) == 1 else f"{total} in {len(ipcs)} blocks"
