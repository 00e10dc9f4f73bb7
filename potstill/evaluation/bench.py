"""Benches: networks, or another learner, on one training set after another; same real data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data.preparation import RealData
from potstill.data.splits import sample_per_class
from potstill.devices import keep_freed_memory
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.optimizers import SGD
from potstill.evaluation.learners import Learner, TrainingSet
from potstill.evaluation.protocols import VALIDATION, Protocol
from potstill.evaluation.records import Row, pixel_bytes
from potstill.evaluation.scoring import Progress, factory_for, score, score_fits
from potstill.evaluation.training import (
    Batches,
    batches_an_epoch,
    set_batches,
    split_batches,
    steps_of,
)
from potstill.parameterisations.base import FLOAT_BYTES
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS, OPTIMIZERS
from potstill.seeds import derive, generator

CHOOSING_NETS = 3
"""Networks by which each learning rate is tried."""


@dataclass(frozen=True)
class Bench:
    """Networks of one architecture that train on several sets, measured on the same real data.

    Args:
        real: the real data, preprocessed as the set.
        factory: makes a fresh network.
        recipe: how it is trained.
        model: its name, for the rows.
        nets: fresh networks for each row; their seeds are the same in every row.
        seed: of the networks.
        device: where to train.
        compiled: the networks' derivatives, if they are compiled.
        progress: called as networks finish.
        rates: learning rates, of which each row takes the best on validation data; none: the
            recipe's.
        protocol: what the networks' training is called in a row, and what chooses its length.
        ranks: the processes that share the networks.
    """

    real: RealData
    factory: Callable[[], nn.Module]
    recipe: Recipe
    model: str
    nets: int
    seed: int
    device: torch.device
    compiled: CompiledNetwork | None = None
    progress: Progress | None = None
    rates: tuple[float, ...] = ()
    protocol: Protocol = VALIDATION
    ranks: Ranks = ALONE

    @classmethod
    def of(
        cls,
        distilled: DistilledSet,
        real: RealData,
        nets: int,
        seed: int,
        device: torch.device,
        **more: Any,
    ) -> "Bench":
        """Make the bench of networks that a set was distilled for.

        Args:
            distilled: the set.
            real: the real data, preprocessed as the set.
            nets: fresh networks for each row.
            seed: of the networks.
            device: where to train.
            **more: other fields of a bench.
        """
        recipe = distilled.recipe
        return cls(
            real,
            factory_for(distilled, None),
            recipe,
            recipe.model,
            nets,
            derive(seed, "test"),
            device,
            **more,
        )

    def row(
        self,
        name: str,
        make: Callable[[int], Batches],
        lengths: Sequence[int],
        images: int,
        ipc: int,
        *,
        stored_bytes: int | None = None,
    ) -> Row:
        """Return the accuracy of networks that train on the batches that `make` gives for each.

        Args:
            name: of the row.
            make: seed of a network -> its batches.
            lengths: ascending numbers of steps; if there are several, the best on the split that
                the protocol names is taken.
            images: how many examples `make` draws from.
            ipc: images per class.
            stored_bytes: what the examples take; None: as pixels.
        """
        # Without a choice, validation data need not be measured.
        chosen = len(lengths) > 1 and self.protocol.chosen_on == "validation"
        splits = (self.real.validation, self.real.test) if chosen else (self.real.test,)
        rate = self.best_rate(name, make, lengths) if self.rates else self.recipe.lr
        scores = self.scores(
            rate, self.nets, self.seed, make, lengths=lengths, splits=splits, label=name
        )
        # Of several; the first split is the one that chooses.
        best = int(scores[:, :, 0].mean(0).argmax())
        figure = Figure.of(scores[:, best, -1])
        stored = pixel_bytes(images, self.real.shape) if stored_bytes is None else stored_bytes
        protocol = self.protocol.choice(
            lengths
        ) + "; learning rate chosen on validation data" * bool(self.rates)
        return Row(
            name,
            self.model,
            images,
            ipc,
            lengths[best],
            figure,
            protocol,
            stored,
            rate,
            len(self.real.test),
            self.real.cautions,
        )

    def scores(
        self, rate: float, nets: int, seed: int, make: Callable[[int], Batches], **how: Any
    ) -> Tensor:
        """Return `score` with this learning rate, (nets, lengths, splits).

        Args:
            rate: the learning rate.
            nets: how many networks.
            seed: of the networks.
            make: seed of a network -> its batches.
            **how: the lengths, splits and label of `score`.
        """
        keep_freed_memory()
        return score(
            make,
            self.factory,
            dataclasses.replace(self.recipe, lr=rate),
            nets=nets,
            seed=seed,
            device=self.device,
            compiled=self.compiled,
            progress=self.progress,
            ranks=self.ranks,
            **how,
        )

    def best_rate(self, name: str, make: Callable[[int], Batches], lengths: Sequence[int]) -> float:
        """Return the learning rate that is best on validation data, by a few extra networks."""
        nets, seed, splits = (
            min(self.nets, CHOOSING_NETS),
            derive(self.seed, "rate"),
            (self.real.validation,),
        )
        accuracies = {}
        for rate in self.rates:
            label = f"{name}, learning rate {rate:g}"
            scores = self.scores(
                rate, nets, seed, make, lengths=lengths, splits=splits, label=label
            )
            accuracies[rate] = float(scores[:, :, 0].mean(0).max())
        return max(accuracies, key=lambda rate: accuracies[rate])

    def batches(self, examples: TrainingSet, seed: int) -> Batches:
        """Return the batches of a small set for the network of that seed."""
        images, targets, labels = (part.to(self.device) for part in examples)
        return set_batches(images, targets, labels, self.recipe, seed)

    def batches_of(self, distilled: DistilledSet) -> Callable[[int], Batches]:
        """Return a function: seed of a network -> its batches of a distilled set."""
        return lambda own: self.batches(examples_of(distilled, self.recipe.learner), own)

    def batches_of_all(self) -> Callable[[int], Batches]:
        """Return a function: seed of a network -> its batches of all real train images."""
        return lambda own: split_batches(
            self.real.train, self.recipe, len(self.real.class_names), own
        )

    def of_set(self, name: str, distilled: DistilledSet, lengths: Sequence[int]) -> Row:
        """Return the row of a distilled set."""
        make = self.batches_of(distilled)
        return self.row(
            name, make, lengths, len(distilled), distilled.ipc, stored_bytes=distilled.stored_bytes
        )

    def of_subsets(
        self, name: str, distilled: DistilledSet, ipc: int, lengths: Sequence[int]
    ) -> Row:
        """Return the row of random examples of a set, drawn anew for each network (figure 6).

        Args:
            name: of the row.
            distilled: the set.
            ipc: examples of each class.
            lengths: candidate numbers of steps, ascending.
        """

        def make(own: int) -> Batches:
            return self.batches(subset(distilled, ipc, own), own)

        count = ipc * len(distilled.class_names)
        values = torch.Size(distilled.shape).numel() + distilled.learned_labels * len(
            distilled.class_names
        )
        return self.row(name, make, lengths, count, ipc, stored_bytes=count * values * FLOAT_BYTES)

    def of_random(self, name: str, ipc: int, lengths: Sequence[int]) -> Row:
        """Return the row of real train images, `ipc` of each class, drawn anew for each network."""

        def make(own: int) -> Batches:
            return self.batches(real_subset(self.real, ipc, own), own)

        return self.row(name, make, lengths, ipc * len(self.real.class_names), ipc)

    def of_all(self, name: str, epochs: int, ipc: int) -> Row:
        """Return the row of all real train images, at the best number of epochs."""
        count = len(self.real.train)
        stops = tuple(steps_of(self.real.train, done + 1) for done in range(epochs))
        return self.row(name, self.batches_of_all(), stops, count, ipc)


@dataclass(frozen=True)
class FitBench:
    """A learner that takes no steps, on several training sets, measured on the same real data.

    Args:
        real: the real data, preprocessed as the set.
        learner: what learns.
        model: its name, for the rows.
        fits: number of fits, where the result depends on the seed.
        seed: the seeds of the fits follow from it.
        progress: called as fits finish.
    """

    real: RealData
    learner: Learner
    model: str
    fits: int
    seed: int
    progress: Progress | None = None

    def row(
        self,
        name: str,
        make: Callable[[int], TrainingSet],
        images: int,
        ipc: int,
        fits: int,
        stored_bytes: int,
    ) -> Row:
        """Return the accuracy of what is learned from the examples of each seed.

        Args:
            name: of the row.
            make: seed -> examples.
            images: how many examples `make` gives.
            ipc: images per class.
            fits: how many fits.
            stored_bytes: bytes that the examples take.
        """
        fits = self.fits if self.learner.random else fits
        scores = score_fits(
            self.learner, make, self.real.test, fits, self.seed, self.progress, name
        )
        return Row(
            name,
            self.model,
            images,
            ipc,
            None,
            Figure.of(scores),
            self.learner.words,
            stored_bytes,
            None,
            len(self.real.test),
            self.real.cautions,
        )

    def of_set(self, name: str, distilled: DistilledSet) -> Row:
        """Return the row of a distilled set."""
        examples = examples_of(distilled, self.model)
        return self.row(
            name, lambda own: examples, len(distilled), distilled.ipc, 1, distilled.stored_bytes
        )

    def of_random(self, name: str, ipc: int) -> Row:
        """Return the row of real train images, `ipc` of each class, drawn anew for each seed."""
        images = ipc * len(self.real.class_names)
        stored = pixel_bytes(images, self.real.shape)
        return self.row(
            name, lambda own: real_subset(self.real, ipc, own), images, ipc, self.fits, stored
        )

    def of_all(self, name: str, ipc: int) -> Row:
        """Return the row of all real train images."""
        count = len(self.real.train)
        examples = with_classes(
            *self.real.train.take(torch.arange(count)), len(self.real.class_names)
        )
        return self.row(
            name, lambda own: examples, count, ipc, 1, pixel_bytes(count, self.real.shape)
        )


def recipe_under(protocol: Protocol, recipe: Recipe, examples: int) -> Recipe:
    """Return the recipe with the changes of a protocol, for so many examples."""
    if protocol.recipe:  # a training of its own, on the images alone unless it says otherwise
        recipe = dataclasses.replace(recipe, mirrored_copies=False)
    recipe = dataclasses.replace(recipe, **protocol.recipe)
    if protocol.optimizer:
        own = dict(protocol.optimizer)
        recipe = dataclasses.replace(recipe, optimizer=OPTIMIZERS[own.pop("name")](**own))
    if protocol.updates:
        return dataclasses.replace(recipe, steps=protocol.updates_on(examples))
    if not protocol.epochs:
        return recipe
    each = batches_an_epoch(examples, recipe.batch_size or examples)
    milestones = tuple(epoch * each for epoch in protocol.decay_after)
    optimizer = SGD(0.9, 5e-4, milestones, protocol.decay, restart=protocol.restart)
    return dataclasses.replace(recipe, steps=protocol.epochs * each, optimizer=optimizer)


def examples_of(distilled: DistilledSet, learner: str = "network") -> TrainingSet:
    """Return the examples of a distilled set, as a learner takes them.

    Targets that were learned for a regression are no weights of classes: a learner that is none
    takes the classes.
    """
    targets, own = distilled.targets, LEARNERS[distilled.recipe.learner].signed
    if own and not LEARNERS[learner].signed:
        targets = F.one_hot(distilled.labels, len(distilled.class_names)).to(targets)
    return TrainingSet(distilled.images, targets, distilled.labels)


def with_classes(images: Tensor, labels: Tensor, classes: int) -> TrainingSet:
    """Return real images with one-hot targets."""
    return TrainingSet(images, F.one_hot(labels, classes).float(), labels)


def subset(distilled: DistilledSet, ipc: int, seed: int) -> TrainingSet:
    """Return examples of a distilled set, `ipc` of each class, drawn by `seed`."""
    rows = sample_per_class(
        distilled.labels, len(distilled.class_names), ipc, generator(seed, "subset")
    )
    return TrainingSet(distilled.images[rows], distilled.targets[rows], distilled.labels[rows])


def real_subset(real: RealData, ipc: int, seed: int) -> TrainingSet:
    """Return real train images, `ipc` of each class, drawn by `seed`."""
    classes = len(real.class_names)
    rows = sample_per_class(real.train.labels, classes, ipc, generator(seed, "subset"))
    return with_classes(*real.train.take(rows), classes)
