"""How good a set is: fresh networks trained on it from scratch, measured on real data, as mean, standard deviation and n."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.compilation import NetworkFamily, compiled_if_worth, compiled_networks
from potstill.compiled import CompiledNetwork
from potstill.data import sample_per_class
from potstill.derivatives import couples_batch, even
from potstill.devices import keep_freed_memory, pick_device
from potstill.distilled import DistilledSet, Recipe
from potstill.loading import RealData
from potstill.models import ModelSpec, model_name
from potstill.parameterisations.base import FLOAT_BYTES
from potstill.registry import InputError, near_miss
from potstill.scoring import Figure, Progress, factory_for, require_positive, score, score_set
from potstill.seeds import derive, generator
from potstill.training import Batches, set_batches, split_batches, steps_of

PROTOCOLS, BASELINES = ("validation", "paper"), ("random", "full")
PAPER_LENGTHS = (300, 600, 1000, 3000)
RATES, CHOOSING_NETS = (1.0, 0.3), 3
"""Learning rates that another network is tried with, in multiples of the recipe's, and by how many networks each."""
Say = Callable[[str], None]
"""Takes a sentence that the user should see."""


@dataclass(frozen=True)
class Row:
    """One measured line of an evaluation.

    Args:
        name: "distilled", "random" or "full".
        model: the network.
        images: how many examples it was trained on.
        ipc: images per class of the set beside which it was measured; its budget, if it decodes to more.
        steps: for how many steps.
        accuracy: on the test split.
        protocol: what chose the number of steps, in words.
        stored_bytes: of the examples as they are stored, 4 for each number, real images' too; None if it is not known.
        lr: the learning rate that the networks trained with; None if it is not known.
    """

    name: str
    model: str
    images: int
    ipc: int
    steps: int
    accuracy: Figure
    protocol: str
    stored_bytes: int | None = None
    lr: float | None = None

    def per_class(self, classes: int) -> str:
        """How many examples of each class it was trained on, in words."""
        return "all" if self.name == "full" else f"{self.images // classes:,}"


@dataclass(frozen=True)
class Bench:
    """Networks of one make that train on one thing after another and are measured on the same real data.

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
        rates: learning rates, of which each row takes the best on validation data; none: the recipe's.
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

    @classmethod
    def of(cls, distilled: DistilledSet, real: RealData, nets: int, seed: int, device: torch.device, **more: Any) -> "Bench":
        """For the networks that a set was distilled for."""
        recipe = distilled.recipe
        return cls(real, factory_for(distilled, None), recipe, recipe.model, nets, derive(seed, "test"), device, **more)

    def row(
        self, name: str, make: Callable[[int], Batches], lengths: Sequence[int], images: int, ipc: int,
        *, on_test: bool = False, stored_bytes: int | None = None,
    ) -> Row:  # fmt: skip
        """Test accuracy of networks that train on the batches that `make` gives for their seeds.

        Args:
            name: of the row.
            make: seed of a network -> its batches.
            lengths: ascending numbers of steps; if there are several, the best on validation data is taken.
            images: how many examples `make` draws from.
            ipc: images per class.
            on_test: take the best on the test split instead.
            stored_bytes: what the examples take; None: as pixels.
        """
        # The first split chooses, the last is reported; without a choice, validation data need not be measured.
        splits = (self.real.test,) if on_test or len(lengths) == 1 else (self.real.validation, self.real.test)
        rate = self.best_rate(name, make, lengths) if self.rates else self.recipe.lr
        scores = self.scores(rate, self.nets, self.seed, make, lengths=lengths, splits=splits, label=name)
        best = int(scores[:, :, 0].mean(0).argmax())
        figure = Figure.of(scores[:, best, -1])
        stored = images * math.prod(self.real.shape) * FLOAT_BYTES if stored_bytes is None else stored_bytes
        protocol = describe(lengths, on_test) + "; learning rate chosen on validation data" * bool(self.rates)
        return Row(name, self.model, images, ipc, lengths[best], figure, protocol, stored, rate)

    def scores(self, rate: float, nets: int, seed: int, make: Callable[[int], Batches], **how: Any) -> Tensor:
        """`score` with this learning rate; `how` holds lengths, splits and label."""
        keep_freed_memory()
        return score(
            make, self.factory, dataclasses.replace(self.recipe, lr=rate), nets=nets, seed=seed, device=self.device,
            compiled=self.compiled, progress=self.progress, **how,
        )  # fmt: skip

    def best_rate(self, name: str, make: Callable[[int], Batches], lengths: Sequence[int]) -> float:
        """The learning rate that is best on validation data, each at its best length, by a few networks of their own."""
        nets, seed, splits = min(self.nets, CHOOSING_NETS), derive(self.seed, "rate"), (self.real.validation,)
        found = {}
        for rate in self.rates:
            label = f"{name}, learning rate {rate:g}"
            scores = self.scores(rate, nets, seed, make, lengths=lengths, splits=splits, label=label)
            found[rate] = float(scores[:, :, 0].mean(0).max())
        return max(found, key=lambda rate: found[rate])

    def batches(self, images: Tensor, targets: Tensor, labels: Tensor, seed: int) -> Batches:
        """Batches of a small set for the network of that seed."""
        return set_batches(images.to(self.device), targets.to(self.device), labels.to(self.device), self.recipe, seed)

    def batches_of(self, distilled: DistilledSet) -> Callable[[int], Batches]:
        """Seed of a network -> its batches of a distilled set."""
        return lambda own: self.batches(distilled.images, distilled.targets, distilled.labels, own)

    def batches_of_all(self) -> Callable[[int], Batches]:
        """Seed of a network -> its batches of all real train images."""
        return lambda own: split_batches(self.real.train, self.recipe, len(self.real.class_names), own)

    def of_set(self, name: str, distilled: DistilledSet, lengths: Sequence[int], **how: Any) -> Row:
        """`row` for a distilled set."""
        make = self.batches_of(distilled)
        return self.row(name, make, lengths, len(distilled), distilled.ipc, stored_bytes=distilled.stored_bytes, **how)

    def of_subsets(self, name: str, distilled: DistilledSet, ipc: int, lengths: Sequence[int]) -> Row:
        """`row` for random examples of a distilled set, `ipc` of each class, others for each network (paper, figure 6)."""

        def make(own: int) -> Batches:
            return self.batches(*subset(distilled, ipc, own), own)

        count = ipc * len(distilled.class_names)
        values = torch.Size(distilled.shape).numel() + distilled.learned_labels * len(distilled.class_names)
        return self.row(name, make, lengths, count, ipc, stored_bytes=count * values * FLOAT_BYTES)

    def of_random(self, name: str, ipc: int, lengths: Sequence[int], **how: Any) -> Row:
        """`row` for real train images, `ipc` of each class, others for each network."""

        def make(own: int) -> Batches:
            return self.batches(*real_subset(self.real, ipc, own), own)

        return self.row(name, make, lengths, ipc * len(self.real.class_names), ipc, **how)

    def of_all(self, name: str, epochs: int, ipc: int) -> Row:
        """`row` for all real train images, for the best number of epochs up to `epochs` on validation data."""
        count = len(self.real.train)
        stops = tuple(steps_of(self.real.train, done + 1) for done in range(epochs))
        return self.row(name, self.batches_of_all(), stops, count, ipc)


def evaluate(
    distilled: DistilledSet,
    real: RealData,
    *,
    nets: int = 10,
    model: ModelSpec | None = None,
    steps: int | None = None,
    lr: float | None = None,
    protocol: str = "validation",
    baselines: Sequence[str] = (),
    full_epochs: int = 20,
    lengths: Sequence[int] = (300, 600, 1000),
    seed: int = 0,
    device: str = "auto",
    compile: str = "auto",
    progress: Progress | None = None,
    say: Say = lambda sentence: None,
) -> list[Row]:
    """Test accuracy of fresh networks trained on the set and, if asked for, on real data under the same protocol.

    Args:
        distilled: the set.
        real: data that went through the set's own preprocessing (`loading.prepare(..., preprocess=distilled.fitted)`).
        nets: fresh networks for each row.
        model: another network than the recipe's.
        steps: a fixed number of training steps.
        lr: a fixed learning rate; None: the recipe's or, for another model under the validation protocol, that or 0.3 times
            it, whichever is better on validation data. (Paper D.1: 0.001, and 0.0003 for wide ConvNets.)
        protocol: "validation": the length is the recipe's (which validation data chose), or chosen on validation data for
            another model and for baselines. "paper": the best of 300, 600, 1,000 and 3,000 steps **on the test set**, as
            the paper's released code does; optimistic.
        baselines: "random": as many real images, chosen anew for each network; "full": all real training images.
        full_epochs: most epochs of "full"; the best one is chosen on validation data.
        lengths: candidates for a choice on validation data.
        seed: of the networks.
        device: where to train.
        compile: "on", "off", or "auto": when there is so much to compute that it pays.
        progress: called as networks finish.
        say: takes a sentence that the user should see.
    Returns:
        One row for the set and one for each baseline.
    Raises:
        InputError: an unknown protocol or baseline, a number below 1, a model that does not fit.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"lr must be above 0 and finite, got {lr}")
    require_positive(nets=nets, full_epochs=full_epochs, **({} if steps is None else {"steps": steps}))
    for kind, value, known in (("protocol", protocol, PROTOCOLS), *(("baseline", name, BASELINES) for name in baselines)):
        if value not in known:
            raise InputError(f"{kind} must be one of {', '.join(known)}; got {value!r}{near_miss(value, known)}")
    place = pick_device(device)
    factory = factory_for(distilled, model)
    recipe = distilled.recipe
    own = model is None or model == recipe.model
    fixed = (steps,) if steps else None
    searched = fixed or (PAPER_LENGTHS if protocol == "paper" else tuple(sorted(lengths)))
    first = fixed or ((recipe.steps,) if own and protocol == "validation" else searched)
    networks = NetworkFamily(factory, distilled.shape, len(distilled.class_names), place, recipe.precision)
    compiled = compiled_for(networks, recipe, compile, nets * first[-1], nets * len(first) * len(real.test), say)
    name = model_name(recipe.model if model is None else model)
    rates = () if own or lr is not None or protocol == "paper" else tuple(factor * recipe.lr for factor in RATES)
    taught = recipe if lr is None else dataclasses.replace(recipe, lr=lr)
    bench = Bench(real, factory, taught, name, nets, derive(seed, "test"), place, compiled, progress, rates)
    on_test = protocol == "paper"
    rows = [bench.of_set("distilled", distilled, first, on_test=on_test)]
    if own and not fixed and not on_test:
        rows[0] = dataclasses.replace(rows[0], protocol="steps chosen on validation data when distilling")
    if "random" in baselines:
        rows.append(bench.of_random("random", distilled.ipc, searched, on_test=on_test))
    if "full" in baselines:
        rows.append(bench.of_all("full", full_epochs, distilled.ipc))
    return rows


def compiled_for(networks: NetworkFamily, recipe: Recipe, wanted: str, steps: int, tested: int, say: Say) -> CompiledNetwork | None:
    """Compiled derivatives for `steps` training steps by the recipe and `tested` test images, if they pay or are wanted."""
    count = recipe.batch_per_class * recipe.classes_per_batch

    def build() -> CompiledNetwork:
        return compiled_networks(networks, [even(count, networks.most)], [], [networks.most], say)

    def work() -> float:
        return (count * steps + tested / 3) * networks.operations()

    batch_norm = couples_batch(networks.model(0).module)
    obstacle = "batch norm is another function in evaluation than in training" if batch_norm else None
    return compiled_if_worth(wanted, networks.device, work, build, say, obstacle)


def describe(candidates: Sequence[int], on_test: bool) -> str:
    """In words, what chose the number of steps."""
    if len(candidates) == 1:
        return "fixed steps"
    if on_test:
        return f"paper: best of {', '.join(map(str, candidates))} steps on the test set (optimistic)"
    few = ", ".join(map(str, candidates)) if len(candidates) < 6 else f"{candidates[0]}, {candidates[1]}, .. {candidates[-1]}"
    return f"best of {few} steps on validation data"


def subset(distilled: DistilledSet, ipc: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images, targets, labels) of a distilled set, `ipc` of each class, drawn by `seed`."""
    rows = sample_per_class(distilled.labels, len(distilled.class_names), ipc, generator(seed, "subset"))
    return distilled.images[rows], distilled.targets[rows], distilled.labels[rows]


def real_subset(real: RealData, ipc: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images, one-hot targets, labels) of real train images, `ipc` of each class, drawn by `seed`."""
    classes = len(real.class_names)
    images, labels = real.train.take(sample_per_class(real.train.labels, classes, ipc, generator(seed, "subset")))
    return images, F.one_hot(labels, classes).float(), labels


def accuracy_of_export(
    distilled: DistilledSet,
    pictures: Tensor,
    real: RealData,
    *,
    nets: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Figure, Figure]:
    """Validation accuracy of networks trained by the recipe on the set, and on `pictures` of it (n, C, H, W), preprocessed."""
    place = pick_device(device)
    factory, recipe = factory_for(distilled, None), distilled.recipe
    figures = []
    for label, images in (("the set", distilled.images), ("the pictures", pictures)):
        scores = score_set(
            images.to(place), distilled.targets.to(place), distilled.labels.to(place), recipe, factory,
            lengths=(recipe.steps,), splits=(real.validation,), nets=nets, seed=derive(seed, "export"), device=place,
            progress=progress, label=f"networks on {label}",
        )  # fmt: skip
        figures.append(Figure.of(scores[:, 0, 0]))
    return figures[0], figures[1]
