"""What a method is: it estimates the meta-gradient of one outer step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from potstill import augment
from potstill.compiled import CompiledNetwork
from potstill.config import Config
from potstill.data import Split
from potstill.derivatives import Batch, Differentiable, FlatModel, cross_entropy
from potstill.distilled import BatchPlan
from potstill.inner import STATES, Keep
from potstill.sampling import UNIFORM, RealSampler

MethodState = dict[str, Any]
SPARSE_FROM = 1_000_000
"""Numbers of a tensor from which on the gradient of some of its rows comes sparse."""


@dataclass(frozen=True)
class Problem:
    """What every method works on.

    Args:
        train: the real data.
        labels: (n,) the class of each distilled example.
        fixed: what of the learned examples is not learned, by name: "targets", unless labels are learned.
        classes: number of classes.
        factory: makes a fresh network.
        config: the run's configuration, without "auto".
        device: where to compute.
        keep: what the engine keeps of the window.
        compiled: the networks' derivatives, if they are compiled.
        frozen: images and targets of examples that stay as they are; in `labels` they come first.
        sampler: which real examples make up a batch.
    """

    train: Split
    labels: Tensor
    fixed: Mapping[str, Tensor]
    classes: int
    factory: Callable[[], nn.Module]
    config: Config
    device: torch.device
    keep: Keep = STATES
    compiled: CompiledNetwork | None = None
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    sampler: RealSampler = UNIFORM

    def loss(self, model: FlatModel, seed: Callable[[int], int]) -> Differentiable:
        """The mean cross-entropy of one of the networks; `seed` gives the seed of its dropout at a step."""
        return self.compiled.of(model) if self.compiled else cross_entropy(model, seed)

    @property
    def plan(self) -> BatchPlan:
        """How a synthetic batch is drawn."""
        inner = self.config.inner
        return BatchPlan(self.labels, self.classes, int(inner.batch_per_class), int(inner.classes_per_batch))

    def batch(self, leaves: Mapping[str, Tensor], rows: Tensor, drawn: augment.Draw) -> Batch:
        """The examples at `rows` (on the CPU), augmented as drawn for each.

        Args:
            leaves: "images" and, if they are learned, "targets" of the examples that are learned.
        Returns:
            (inputs, targets); with frozen examples among them, those come first, in a pair of their own.
        """
        count = len(self.frozen["images"]) if self.frozen else 0
        batch: Batch = ()
        for examples, first, here in (
            (self.frozen, 0, torch.nonzero(rows < count)[:, 0]),
            ({**self.fixed, **leaves}, count, torch.nonzero(rows >= count)[:, 0]),
        ):
            if len(here):
                chosen = (rows[here] - first).to(self.device)
                images, targets = (taken(examples[name], chosen) for name in ("images", "targets"))
                batch += augment.apply(images, drawn.rows(here)), targets
        return batch


class Rows(torch.autograd.Function):
    """Rows of a tensor, whose cotangent is a sparse tensor of those rows."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, rows: Tensor) -> Tensor:
        ctx.rows, ctx.shape = rows, whole.shape
        return whole[rows]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return torch.sparse_coo_tensor(ctx.rows[None], cotangents[0], ctx.shape, check_invariants=False), None


def taken(whole: Tensor, rows: Tensor) -> Tensor:
    """`whole[rows]`, each row at most once.

    The gradient of a large tensor, which is added up over the steps of a window, comes sparse, and does not run through all
    the other rows: with 18,000 images of 3 x 32 x 32 that took 0.2 s a step.
    """
    if whole.numel() < SPARSE_FROM or whole.device.type == "mps":  # which lacks most operations on sparse tensors
        return whole[rows]
    made: Tensor = Rows.apply(whole, rows)  # type: ignore[no-untyped-call]
    return made


@dataclass(frozen=True)
class Estimate:
    """One outer step's meta-gradient.

    Args:
        loss: the outer loss.
        grads: d loss / d leaf.
        state: the method's state after it.
        info: plain figures for the log, such as burn_in and window.
    """

    loss: float
    grads: dict[str, Tensor]
    state: MethodState
    info: dict[str, Any]


class Method(Protocol):
    """init, estimate once for each outer step, finish."""

    def __init__(self, problem: Problem): ...

    def init(self) -> MethodState:
        """The state before the first outer step: plain data, which a checkpoint holds."""
        ...

    def estimate(self, leaves: Mapping[str, Tensor], state: MethodState, outer_step: int) -> Estimate:
        """The meta-gradient at `leaves`. All randomness follows from (seed, outer_step), so a step can be repeated."""
        ...

    def finish(self, state: MethodState) -> dict[str, Any]:
        """What of the state the recipe of the finished set needs."""
        ...
