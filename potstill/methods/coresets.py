"""Coresets: real examples chosen to stand for all of their class.

Each method chooses in its one outer step, class by class and in an order: the first m of n chosen
are what it would choose if it chose m. With `--init RUN` a chosen set is a start for any method.

**herding**: Welling, "Herding dynamical weights to learn", ICML 2009, as Zhao, Mopuri & Bilen 2021
(arXiv:2006.05929) ran it: with mu the mean of the features phi of a class, number k + 1 is the
example that brings the mean of those chosen nearest to mu,

    argmin |(k + 1) mu - sum of chosen - phi|.

**k-center**: the greedy 2-approximation of Gonzalez 1985, as the same authors ran it (Sener &
Savarese 2018, arXiv:1708.00489, is their source): the example nearest to the mean first, and then
always the one farthest from its nearest chosen one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.options import option
from potstill.data.sampling import ClassWise
from potstill.data.splits import Part, Split, batches
from potstill.distilled.recipes import Recipe
from potstill.engine.optimizers import SGD
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.evaluation.training import split_batches, steps_of, train_network
from potstill.methods.base import Estimate, Examples, Method, Needs, State
from potstill.models import fresh
from potstill.seeds import derive, generator
from potstill.workers import all_threads_at_once

TRAINING = SGD(momentum=0.9, weight_decay=5e-4)
TRAINING_LR = 0.01
"""How the network trains whose features are compared, as networks are evaluated in DC and DSA."""
EPOCHS = 20
"""For how long it trains."""
RIDGE = 0.1
"""This times the mean eigenvalue is added to all before whitening, as for ZCA."""
SAME = 1e-9
"""Relative difference below which two distances are equal: rounding must not choose."""
UNUSED = (
    "steps", "time_budget", "init", "outer_lr", "outer_optimizer", "clip", "clamp", "average",
    "outer_schedule", "warm_up",
    "real_batch", "validate_every", "checkpoint_every", "keep_checkpoints", "boost_beta",
)  # fmt: skip
"""Options of the outer loop, which takes one step."""


class Coreset(Method):
    """A choice of real examples of each class, made in one step."""

    needs: ClassVar[Needs] = Needs(targets="classes", pixels=True, unused=UNUSED)
    defaults: ClassVar[dict[str, Any]] = {
        "preprocess": "normalize",
        "steps": 1,
        "outer_lr": 1.0,
        "clip": 0.0,
    }
    step_words: ClassVar[str] = "The one step chooses real {noun}s, and puts them in."
    loss_words: ClassVar[str] = (
        "How far the mean of the chosen {noun}s is from that of their class: its square, over the "
        "mean square of an {noun}'s distance from there. Lower is better."
    )

    def prepare(self, cache: Cache) -> None:
        self.chosen, self.loss = self.choice(cache)

    def choice(self, cache: Cache) -> tuple[Tensor, float]:
        """Choose.

        Returns:
            Indices (classes, n) in the train split, in the order of choice, and the loss.
        """
        raise NotImplementedError

    @property
    def per_class(self) -> int:
        """Examples of each class, those of earlier blocks included."""
        return len(self.problem.labels) // self.problem.real.classes

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        labels = examples.labels.cpu()
        rows = torch.empty_like(labels)
        for label, chosen in enumerate(self.chosen):
            rows[labels == label] = chosen
        images, _ = self.problem.real.train.take(rows)
        return Estimate(self.loss, {}, state, values={"images": images.to(examples.images)})


class Random(Coreset):
    """Real examples at random, alike or by the user's weights."""

    needs: ClassVar[Needs] = Needs(
        targets="classes", pixels=True, unused=(*UNUSED, "real_sampler", "inner_width")
    )

    def choice(self, cache: Cache) -> tuple[Tensor, float]:
        real, count = self.problem.real, self.per_class
        drawing = ClassWise(real.train, real.sampler)
        rng = generator(self.problem.run_seed, "coreset")
        drawn = drawing.draw(range(real.classes), count, rng)
        for label, rows in enumerate(drawn):
            if len(rows) < count:
                raise InputError(
                    f"weights must leave every class {count} real examples, class {label} has "
                    f"{len(rows)}; raise some of its weights, or lower --ipc"
                )
        losses = []
        for label, rows in enumerate(drawn):
            members = drawing.members[label]
            values = real.train.take(members)[0].flatten(1).cpu().double()
            losses.append(apart(values, torch.searchsorted(members, rows)))
        return torch.stack(drawn), sum(losses) / len(losses)


@dataclass(frozen=True)
class FeatureOptions:
    """What examples are compared by."""

    features: Literal["network", "pixels", "whitened"] = option(
        "network", "examples are compared by a trained network's features, pixels, or whitened ones"
    )
    feature_epochs: int = option(
        EPOCHS, "epochs for which that network trains on all examples", low=1
    )

    def __post_init__(self) -> None:
        if self.features != "network" and self.feature_epochs != EPOCHS:
            raise InputError(
                f"feature_epochs has no effect with features {self.features}, which train no "
                f"network, got {self.feature_epochs}; leave it at {EPOCHS}"
            )


class ByFeatures(Coreset):
    """A choice by the distances of features; equal distances go to the first example."""

    Options: ClassVar[type] = FeatureOptions
    options: FeatureOptions
    needs: ClassVar[Needs] = Needs(
        targets="classes", pixels=True, unused=(*UNUSED, "weights", "real_sampler")
    )

    @staticmethod
    def pick(values: Tensor, count: int) -> tuple[list[int], float]:
        """Choose among the examples of a class.

        Args:
            values: (N, F) features, float64, on the CPU.
            count: how many, at most N.
        Returns:
            Indices of those chosen, in order, and the loss.
        """
        raise NotImplementedError

    def check(self, cache: Cache) -> None:
        network = fresh(self.problem.networks.factory, 0, torch.device("cpu"))
        if self.options.features == "network" and not callable(getattr(network, "features", None)):
            raise InputError(
                "features=network needs a network that has features(inputs), a row for each input; "
                "this one has none: give --features pixels, or add it"
            )

    def choice(self, cache: Cache) -> tuple[Tensor, float]:
        train, features = self.problem.real.train, self.feature_map(cache)
        chosen, losses = [], []
        for members in ClassWise(train).members.values():
            parts = batches(Part(train, members), self.problem.real.micro_batch)
            values = torch.cat([features(images).cpu().double() for images, _ in parts])
            rows, loss = self.pick(values, self.per_class)
            chosen.append(members[torch.tensor(rows)])
            losses.append(loss)
        return torch.stack(chosen), sum(losses) / len(losses)

    def feature_map(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """Return the function (B, ...) -> (B, F) by which examples are compared."""
        if self.options.features == "pixels":
            return lambda images: images.flatten(1)
        if self.options.features == "whitened":
            return whitened(self.problem.real.train, self.problem.real.micro_batch)
        return self.network_features(cache)

    def network_features(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """Return what the last layer reads of a network that trained on all real examples."""
        problem = self.problem
        seed = derive(problem.run_seed, "coreset")
        network: Any = fresh(problem.networks.factory, seed, problem.device)
        epochs, augment = self.options.feature_epochs, list(problem.recipe.augment)
        known = [problem.networks.fingerprint(), seed, augment, epochs]
        # Under a name of their own, without the method's: herding and k-center share the network.
        store = Cache(cache.folder, ["coreset", problem.identity], cache.listener)
        kept = store.get(["network", *known], lambda: self.trained(network, seed))
        network.load_state_dict(kept)

        @torch.no_grad()
        def features(images: Tensor) -> Tensor:
            result: Tensor = network.eval().features(images)
            return result.flatten(1)

        return features

    def trained(self, network: nn.Module, seed: int) -> dict[str, Tensor]:
        """Train a network on all real examples and return its parameters and buffers."""
        train, augment = self.problem.real.train, self.problem.recipe.augment
        recipe = Recipe(optimizer=TRAINING, lr=TRAINING_LR, augment=augment)
        batch = split_batches(train, recipe, self.problem.real.classes, seed)
        stops = (steps_of(train, self.options.feature_epochs),)
        with all_threads_at_once():
            for _ in train_network(network, batch, recipe, stops, seed):
                pass
        return network.state_dict()

    @classmethod
    def words(cls, options: FeatureOptions) -> list[tuple[str, str]]:
        epochs = f"{options.feature_epochs:,} epochs"
        by = {
            "network": f"features of a network trained for {epochs} on all examples",
            "pixels": "values, as networks read them",
            "whitened": "whitened values",
        }
        return [("Compared by", by[options.features])]


class Herding(ByFeatures):
    """Herding: the mean of those chosen follows the mean of all."""

    @staticmethod
    def pick(values: Tensor, count: int) -> tuple[list[int], float]:
        mean, squares = values.mean(0), values.square().sum(1)
        chosen: list[int] = []
        free = torch.ones(len(values), dtype=torch.bool)
        total = torch.zeros_like(mean)
        for number in range(count):
            wanted = (number + 1) * mean - total
            # |wanted - phi|^2, so that a step takes one product.
            distances = wanted.square().sum() - 2 * values @ wanted + squares
            chosen.append(first_least(distances.masked_fill(~free, torch.inf)))
            free[chosen[-1]] = False
            total += values[chosen[-1]]
        return chosen, apart(values, torch.tensor(chosen))


class KCenter(ByFeatures):
    """k-center: no example is far from one that is chosen."""

    loss_words: ClassVar[str] = (
        "The distance from a chosen {noun} of the real {noun} that is farthest from all chosen "
        "ones, averaged over the classes. Lower is better."
    )

    @staticmethod
    def pick(values: Tensor, count: int) -> tuple[list[int], float]:
        chosen = [first_least((values - values.mean(0)).norm(dim=1))]
        nearest = (values - values[chosen[0]]).norm(dim=1)
        while len(chosen) < count:
            # Those chosen stand at -1: duplicates of them, at 0, come before.
            nearest[chosen] = -1
            chosen.append(first_least(-nearest))
            nearest = nearest.minimum((values - values[chosen[-1]]).norm(dim=1))
        return chosen, float(nearest.clamp_min(0).max())


def first_least(distances: Tensor) -> int:
    """Return the first index of the least distance; rounding counts as equal."""
    scale = distances[distances.isfinite()].abs().max()
    return int(torch.nonzero(distances <= distances.min() + SAME * scale)[0])


def apart(values: Tensor, chosen: Tensor) -> float:
    """Return the square distance of two means, of all and of those chosen, over the variance."""
    mean = values.mean(0)
    spread = float((values - mean).square().sum(1).mean())
    return float((values[chosen].mean(0) - mean).square().sum()) / spread if spread else 0.0


def whitened(train: Split, micro_batch: int) -> Callable[[Tensor], Tensor]:
    """Return the map that gives values mean 0 and covariance near 1 over a split."""
    mean, gram = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for images, _ in batches(train, micro_batch):
        values = images.flatten(1).cpu().double()
        mean = mean + values.sum(0) / len(train)
        gram = gram + values.T @ values / len(train)
    spectrum, basis = torch.linalg.eigh(gram - torch.outer(mean, mean))
    scale = (spectrum.clamp_min(0) + RIDGE * spectrum.clamp_min(0).mean()).rsqrt()
    return lambda images: (images.flatten(1).cpu().double() - mean) @ basis * scale
