"""Fresh networks trained on a set and measured on real data.

Accuracies are mean, standard deviation and n.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from potstill.config.options import convert
from potstill.data.splits import Split
from potstill.devices import own_torch_state, pick_device
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet, require_set
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.flat import FlatModel, gradient_operations
from potstill.engine.programs import Captured, Runner
from potstill.errors import InputError
from potstill.evaluation.learners import Learner, Network, SquaredNetwork, TrainingSet
from potstill.evaluation.on_device import AT_ONCE, can_be_programs, courses
from potstill.evaluation.training import (
    Batches,
    SetBatches,
    accuracy,
    set_batches,
    train_network,
)
from potstill.models import ModelSpec, check_model, fresh, model_name, resolve
from potstill.registry import LEARNERS, trust_given
from potstill.seeds import derive
from potstill.workers import all_threads_at_once, in_order

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""(name of the work, done, total)."""
LARGEST_TASK = 1e11
"""Floating-point operations of a training step up to which networks are trained side by side.

Of larger ones each takes much memory, and all threads have enough to do in each operation.
"""


def score(
    make_batches: Callable[[int], Batches],
    factory: Callable[[], nn.Module],
    recipe: Recipe,
    lengths: Sequence[int],
    splits: Sequence[Split],
    nets: int,
    seed: int,
    device: torch.device,
    compiled: CompiledNetwork | None = None,
    progress: Progress | None = None,
    label: str = "networks",
    ranks: Ranks = ALONE,
) -> Tensor:
    """Train `nets` fresh networks and measure each on every split at every length.

    Args:
        make_batches: seed of a network -> its batches.
        factory: makes a fresh network.
        recipe: how it is trained.
        lengths: ascending numbers of steps at which to measure.
        splits: what to measure on.
        nets: how many networks.
        seed: networks start from seeds that follow from this one, the same for whatever set they
            train on.
        device: where to train.
        compiled: the networks' derivatives, if they are compiled and the networks are the same in
            training and evaluation.
        progress: called after each network.
        label: what `progress` is told.
        ranks: the networks are dealt out to them, and each gets all scores.
    Returns:
        (nets, lengths, splits) accuracies, fractions.
    """
    learner: type[Network] = LEARNERS[recipe.learner]
    network = learner(recipe, factory, device, None if learner.signed else compiled)
    scores = torch.zeros(nets, len(lengths), len(splits))

    def measured(own: int) -> list[list[float]]:
        course = network.course(make_batches(own), lengths, own)
        return [[accuracy(predict, split) for split in splits] for predict in course]

    share = ranks.share(nets)
    seeds = [derive(seed, "network", net) for net in share]
    make_runner = None if learner.signed else runner_for(device)
    module = fresh(factory, seed, device)
    tasks = [partial(measured, own) for own in seeds]
    found = side_by_side(tasks, module, make_batches(seed)(0)[0])
    if make_runner and can_be_programs(module, make_batches(seed), recipe):
        recorded = by_programs(network, make_batches, lengths, splits, seeds, make_runner)
        found = first_that_works(recorded, found)
    for net, figures in zip(share, found, strict=True):
        scores[net] = torch.tensor(figures)
        if progress:
            progress(label, net + 1, nets)
    rows = {net: {"scores": scores[net]} for net in ranks.share(nets)}
    gathered = ranks.gathered(rows, nets, {"scores": scores[0]})
    if progress and nets - 1 not in rows:
        progress(label, nets, nets)
    return torch.stack([row["scores"] for row in gathered])


def runner_for(device: torch.device) -> Callable[[], Runner] | None:
    """Return what makes the runners of programs on a device; None: networks train step by step."""
    return partial(Captured, device) if device.type == "cuda" else None


def first_that_works(recorded: Iterator[T], plain: Iterator[T]) -> Iterator[T]:
    """Yield from the first or, if it fails before it has anything, from the second.

    Whatever cannot be recorded, or has no room, is then done one by one.
    """
    begun = False
    try:
        for result in recorded:
            begun = True
            yield result
    except RuntimeError:
        if begun:
            raise
        yield from plain


def by_programs(
    network: Network,
    make_batches: Callable[[int], Batches],
    lengths: Sequence[int],
    splits: Sequence[Split],
    seeds: Sequence[int],
    make_runner: Callable[[], Runner],
) -> Iterator[list[list[float]]]:
    """Yield the accuracies (lengths, splits) of each seed's network, some trained at a time."""
    for first in range(0, len(seeds), AT_ONCE):
        group = [
            (fresh(network.factory, own, network.device), cast(SetBatches, make_batches(own)))
            for own in seeds[first : first + AT_ONCE]
        ]
        found: list[list[list[float]]] = [[] for _ in group]
        for each in courses(group, network.recipe, lengths, network.compiled, make_runner):
            for figures, predict in zip(found, each, strict=True):
                figures.append([accuracy(predict, split) for split in splits])
        yield from found


def side_by_side(
    tasks: Sequence[Callable[[], T]], module: nn.Module, inputs: Tensor
) -> Iterator[T]:
    """Yield the results of tasks that each train a network, in order.

    Args:
        tasks: they take turns, or run at the same time if the network is small.
        module: such a network.
        inputs: a batch that it trains on.
    """
    model = FlatModel(module)
    if gradient_operations(model, tuple(inputs.shape[1:])) * len(inputs) <= LARGEST_TASK:
        yield from in_order(tasks, inputs.device)
        return
    for task in tasks:
        with all_threads_at_once():
            result = task()
        yield result


def score_set(
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    recipe: Recipe,
    factory: Callable[[], nn.Module],
    **how: Any,
) -> Tensor:
    """Return `score` for networks that train on a small set.

    Args:
        images: (n, C, H, W) or (n, d), as a network reads them.
        targets: (n, K).
        labels: (n,) classes.
        recipe: how a network is trained.
        factory: makes a fresh network.
        **how: the other arguments of `score`.
    """
    return score(
        lambda seed: set_batches(images, targets, labels, recipe, seed), factory, recipe, **how
    )


def score_fits(
    learner: Learner,
    make_examples: Callable[[int], TrainingSet],
    split: Split,
    fits: int,
    seed: int,
    progress: Progress | None = None,
    label: str = "fits",
) -> Tensor:
    """Return accuracies (fits,) on a split of what a learner learned from each seed's examples.

    Args:
        learner: what learns.
        make_examples: seed -> the examples to learn from.
        split: what is measured on.
        fits: how many.
        seed: the seeds of the fits follow from it, as in `score`.
        progress: called after each fit.
        label: what `progress` is told.
    """
    accuracies = torch.zeros(fits)
    for index in range(fits):
        own = derive(seed, "network", index)
        accuracies[index] = accuracy(learner.fit(make_examples(own), own), split)
        if progress:
            progress(label, index + 1, fits)
    return accuracies


@own_torch_state()
def train(
    distilled: DistilledSet,
    model: ModelSpec | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> nn.Module:
    """Train a network on a distilled set by its recipe.

    Args:
        distilled: the set.
        model: a registered name, "package.module:factory" or a callable that makes a network; None:
            the recipe's.
        steps: training steps; None: the recipe's.
        seed: of the start and of the batches.
        device: where to train.
    Returns:
        The network on the CPU and in evaluation mode, ready to use on
        `distilled.preprocess(real_images)`.
    Raises:
        InputError: a model that does not exist or does not fit the images.
    """
    require_set(distilled)
    steps = None if steps is None else convert("steps", steps, int)
    seed = convert("seed", seed, int)
    trust_given([model_name(model) if model else None])
    on, recipe = pick_device(device), distilled.recipe
    require_positive(steps=recipe.steps if steps is None else steps)
    own = derive(seed, "network", 0)
    module = fresh(factory_for(distilled, model), own, on)
    images, targets, labels = (
        part.to(on) for part in (distilled.images, distilled.targets, distilled.labels)
    )
    batches = set_batches(images, targets, labels, recipe, own)
    loss = SquaredNetwork.loss if LEARNERS[recipe.learner].signed else Network.loss
    with all_threads_at_once():
        for _ in train_network(module, batches, recipe, (steps or recipe.steps,), own, loss):
            pass
    return module.eval().cpu()


def require_positive(**numbers: int) -> None:
    """Raise an InputError unless every number is at least 1."""
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")


def factory_for(distilled: DistilledSet, model: ModelSpec | None) -> Callable[[], nn.Module]:
    """Return a checked factory for the given model or, without one, for the recipe's."""
    recipe = distilled.recipe
    spec = recipe.model if model is None else model
    if isinstance(spec, str) and ("<" in spec or spec.startswith("__main__:")):
        raise InputError(
            f"this set was distilled with the model {spec}, which cannot be imported; give it with "
            "model="
        )
    options = recipe.model_options
    if model not in (None, recipe.model):
        # Depth and width are the recipe's own model's; another registered model takes its defaults.
        options = {name: options[name] for name in ("norm", "network_init")}
    factory = resolve(spec, distilled.shape, len(distilled.class_names), **options)
    torch.set_default_dtype(torch.float32)  # importing the network may have set another
    check_model(model_name(spec), factory, distilled.shape, len(distilled.class_names))
    return factory
