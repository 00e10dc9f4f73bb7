"""What can learn from examples: a network trained by a recipe, or the nearest example."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.kernels import InfiniteNetwork, in_its_precision, kernel
from potstill.engine.ridge import centred, coefficients, doubled
from potstill.errors import InputError
from potstill.evaluation.training import (
    Batches,
    Predict,
    SetBatches,
    set_batches,
    train_compiled,
    train_network,
)
from potstill.models import fresh
from potstill.registry import KERNELS
from potstill.seeds import derive

MICRO = 500
"""Examples whose features are computed at once."""
RANDOM_NETWORKS, BIAS = 8, 0.1
"""Random networks whose features are together, and the feature that is the same for all."""
AT_ONCE = 2**24
"""Distances that are in memory at the same time."""
MOST = 20_000
"""Examples whose kernel matrix is still computed."""
ROUNDING = 1e-12
"""Squared distances that differ by less, relative to the squared norms, count as equal."""


class TrainingSet(NamedTuple):
    """A training set: images (n, C, H, W) as a network reads them, targets (n, K), labels (n,)."""

    images: Tensor
    targets: Tensor
    labels: Tensor


class Learner(Protocol):
    """Something that learns from a few examples and then classifies others; a registry row.

    Attributes:
        signed: whether it reads targets as numbers around 1 / K, which may be negative.
        trains: whether it trains networks, so that models, steps, learning rates and protocols
            apply.
        random: whether its answers depend on the seed; if not, one fit is enough.
        words: how it learns, for a measured line.
        subject: several of them, before the examples that they learn from, as in "networks on".
    """

    signed: ClassVar[bool]
    trains: ClassVar[bool]
    random: ClassVar[bool]
    words: ClassVar[str]
    subject: ClassVar[str]

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        """Make a learner as a recipe says; one that needs no network ignores the factory."""
        ...

    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        """Return a function: inputs (B, C, H, W) -> class scores (B, K).

        All randomness follows from the seed.
        """
        ...


@dataclass(frozen=True)
class Network:
    """A fresh network for each seed, trained by the recipe.

    Args:
        recipe: how it is trained.
        factory: makes a fresh network.
        device: where to train.
        compiled: the networks' derivatives, if they are compiled.
    """

    signed: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    random: ClassVar[bool] = True
    words: ClassVar[str] = "network"
    subject: ClassVar[str] = "fresh networks trained on"
    recipe: Recipe
    factory: Callable[[], nn.Module]
    device: torch.device
    compiled: CompiledNetwork | None = None

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        return cls(recipe, factory, device)

    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        images, targets, labels = (part.to(self.device) for part in examples)
        batches = set_batches(images, targets, labels, self.recipe, seed)
        return next(self.course(batches, (self.recipe.steps,), seed))

    def course(self, batches: Batches, lengths: Sequence[int], seed: int) -> Iterator[Predict]:
        """Train, and yield what the network answers after each of the ascending `lengths`."""
        module = fresh(self.factory, seed, self.device)
        if self.compiled:
            return train_compiled(self.compiled, module, batches, self.recipe, lengths)
        return train_network(module, batches, self.recipe, lengths, seed, self.loss)

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what training lowers."""
        return F.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class SquaredNetwork(Network):
    """A fresh network for each seed, trained by squared error on centred targets.

    Source: as sets of KIP, RFAD, FRePo and RCIG are measured.
    """

    signed: ClassVar[bool] = True
    words: ClassVar[str] = "network, squared error"

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the mean square of an output's error."""
        return F.mse_loss(outputs, centred(targets)) / 2


@dataclass(frozen=True)
class FeatureRidge(SquaredNetwork):
    """Ridge regression of centred targets on the features of a network trained by squared error.

    Source: the predictor of FRePo, Zhou, Nezhadarya & Ba 2022, arXiv:2206.00719.
    """

    words: ClassVar[str] = "ridge regression on a trained network's features"
    subject: ClassVar[str] = "ridge regressions on features of networks trained on"

    def course(self, batches: Batches, lengths: Sequence[int], seed: int) -> Iterator[Predict]:
        if not isinstance(batches, SetBatches):
            raise InputError(
                "the learner krr-features regresses on all examples at once, which all real ones "
                "are too many for; leave the baseline full out"
            )
        network = fresh(self.factory, seed, self.device)
        features = features_of(network, "krr-features", self.recipe.model)
        for _ in train_network(network, batches, self.recipe, lengths, seed, self.loss):
            yield regression(features, batches.images, batches.targets, self.recipe.ridge)


@dataclass(frozen=True)
class RandomFeatures(SquaredNetwork):
    """Ridge regression on features of several fresh random networks, side by side.

    It estimates the covariance kernel of the network of infinite width,
    k(a, b) = 2 phi(a)' phi(b) / (M d) + 0.01, M networks having d features each.

    Source: RFAD, Loo et al. 2022, arXiv:2210.12067.
    """

    trains: ClassVar[bool] = False
    words: ClassVar[str] = "ridge regression on features of 8 random networks"
    subject: ClassVar[str] = "ridge regressions on random features of"

    @torch.no_grad()
    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        networks = [
            fresh(self.factory, derive(seed, "random features", number), self.device).eval()
            for number in range(RANDOM_NETWORKS)
        ]
        each = [features_of(network, "krr-random", self.recipe.model) for network in networks]

        def features(inputs: Tensor) -> Tensor:
            rows = torch.cat([one(inputs).flatten(1).float() for one in each], 1)
            return torch.cat(
                [rows * (2 / rows.shape[1]) ** 0.5, rows.new_full((len(rows), 1), BIAS)], 1
            )

        known, targets = (part.to(self.device) for part in examples[:2])
        require_room(len(known))
        return regression(features, known, targets, self.recipe.ridge)


def features_of(network: nn.Module, learner: str, model: str) -> Callable[[Tensor], Tensor]:
    """Return what gives a network's features; raise an InputError if it has none."""
    features = getattr(network, "features", None)
    if not callable(features):
        raise InputError(
            f"the learner {learner} needs a network whose features(inputs) gives a row for each "
            f"input, model {model} has none; add it, or take another --model"
        )
    return features  # type: ignore[no-any-return]


@torch.no_grad()
def regression(
    features: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, ridge: float
) -> Predict:
    """Return what predicts by a ridge regression of centred targets on features of examples."""
    rows = doubled(torch.cat([features(part).flatten(1) for part in images.split(MICRO)]))
    solved = coefficients(rows @ rows.T, centred(targets), ridge)
    if not bool(solved.isfinite().all()):
        raise InputError(
            f"the features of the set are all alike or not finite, with a ridge of {ridge:g}; the "
            "set may hold an example twice"
        )
    weights = (rows.T @ solved).float().to(images.device)

    @torch.no_grad()
    def predict(inputs: Tensor) -> Tensor:
        return features(inputs).flatten(1).float() @ weights

    return predict


def where_exact(device: torch.device) -> torch.device:
    """Return the device, or the CPU in place of one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class Regression:
    """What regressions in closed form have in common."""

    signed: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    random: ClassVar[bool] = False


@dataclass(frozen=True)
class KernelRidge(Regression):
    """Kernel ridge regression with a kernel of a network of infinite width.

    Source: Nguyen, Chen & Lee 2021, arXiv:2011.00050.

    Args:
        network: whose kernel.
        ridge: relative to the mean of the kernel's diagonal.
        device: where it is computed.
        kind: "ntk", of its tangents, or "nngp", of its outputs.
    """

    words: ClassVar[str] = "kernel ridge regression, network of infinite width"
    subject: ClassVar[str] = "kernel regressions on"
    network: InfiniteNetwork
    ridge: float
    device: torch.device
    kind: str = "ntk"

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        network = KERNELS[recipe.kernel](recipe.kernel_depth)
        return cls(network, recipe.ridge, where_exact(device), recipe.kernel_kind)

    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        known, targets = (part.to(self.device) for part in examples[:2])
        self.network.check(tuple(known.shape[1:]))
        require_room(len(known))
        known = in_its_precision(self.network, known)
        with torch.no_grad():
            gram = self.kernel(known, known)
            weights = coefficients(gram, centred(targets), self.ridge)
        if not bool(weights.isfinite().all()):
            raise InputError(
                "the kernel matrix of the set is singular or not finite with a ridge of "
                f"{self.ridge:g}; the set may hold an example twice"
            )

        @torch.no_grad()
        def predict(inputs: Tensor) -> Tensor:
            seen = self.kernel(inputs.to(known), known)
            return (seen.double() @ weights).float().to(inputs.device)

        return predict

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the kernel (n, m) of inputs (n, ...) and (m, ...)."""
        found: Tensor = getattr(kernel(self.network, first, second), self.kind)
        return found


def require_room(count: int) -> None:
    """Raise an InputError if a kernel matrix of so many examples is too large."""
    if count > MOST:
        raise InputError(
            f"kernel ridge regression on {count:,} examples needs a matrix of "
            f"{8 * count**2 / 1e9:,.0f} GB, and is done on at most {MOST:,}; leave the baseline "
            "full out"
        )


@dataclass(frozen=True)
class Linear(Regression):
    """Ridge regression of centred targets on the inputs, with an intercept that is not shrunk."""

    words: ClassVar[str] = "ridge regression on inputs"
    subject: ClassVar[str] = "linear regressions on"
    ridge: float
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        return cls(recipe.ridge, where_exact(device))

    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        known = examples.images.to(self.device).flatten(1).double()
        targets = centred(examples.targets.to(self.device).double())
        mean, intercept = known.mean(0), targets.mean(0)
        known, targets = known - mean, targets - intercept
        # Whichever matrix is smaller; both give the same.
        if len(known) <= known.shape[1]:
            weights = known.T @ coefficients(known @ known.T, targets, self.ridge)
        else:
            weights = coefficients(known.T @ known, known.T @ targets, self.ridge)

        def predict(inputs: Tensor) -> Tensor:
            rows = inputs.to(self.device).flatten(1).double() - mean
            return (rows @ weights + intercept).float().to(inputs.device)

        return predict


@dataclass(frozen=True)
class Nearest:
    """The nearest example's targets, by Euclidean distance of inputs; of a tie, the first."""

    signed: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    random: ClassVar[bool] = False
    words: ClassVar[str] = "the nearest example gives the class"
    subject: ClassVar[str] = "nearest examples among"
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        return cls(where_exact(device))

    def fit(self, examples: TrainingSet, seed: int) -> Predict:
        known = examples.images.to(self.device).flatten(1).double()
        targets, squares = examples.targets.to(self.device), known.square().sum(1)

        def predict(inputs: Tensor) -> Tensor:
            rows = inputs.to(self.device).flatten(1).double()
            rows = torch.cat([indices(part) for part in rows.split(max(1, AT_ONCE // len(known)))])
            return targets[rows].to(inputs.device)

        def indices(rows: Tensor) -> Tensor:
            own = rows.square().sum(1, keepdim=True)
            # Less the row's own square, which is the same for all.
            distances = squares - 2 * rows @ known.T
            bound = distances.amin(1, keepdim=True) + ROUNDING * (own + squares.max())
            return (distances <= bound).to(torch.uint8).argmax(1)

        return predict
