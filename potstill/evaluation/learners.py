"""What can learn from examples: a network trained by a recipe, or the nearest example."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.evaluation.training import (
    Batches,
    Predict,
    set_batches,
    train_compiled,
    train_network,
)
from potstill.models import fresh

AT_ONCE = 2**24
"""Distances that are in memory at the same time."""
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
        trains: whether it trains networks, so that models, steps, learning rates and protocols
            apply.
        random: whether its answers depend on the seed; if not, one fit is enough.
        words: how it learns, for a measured line.
    """

    trains: ClassVar[bool]
    random: ClassVar[bool]
    words: ClassVar[str]

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

    trains: ClassVar[bool] = True
    random: ClassVar[bool] = True
    words: ClassVar[str] = "network"
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
        return train_network(module, batches, self.recipe, lengths, seed)


@dataclass(frozen=True)
class Nearest:
    """The nearest example's targets, by Euclidean distance of inputs; of a tie, the first."""

    trains: ClassVar[bool] = False
    random: ClassVar[bool] = False
    words: ClassVar[str] = "the nearest example gives the class"
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, factory: Callable[[], nn.Module], device: torch.device) -> Self:
        # MPS has no float64.
        return cls(torch.device("cpu") if device.type == "mps" else device)

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
