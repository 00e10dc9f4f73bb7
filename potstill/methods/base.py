"""What a method is, and what it works on.

A method estimates the gradient of a distilled set, once for each outer step. It never reads the
configuration, never saves, never logs, never loops over outer steps; what runs it knows only this
file. A new one is a class in a file of its own and a row in the registry, or, in another package,
its name: `--method package.module:Name`. `potstill.testing.check_method` tries whether it keeps to
what follows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.options import Nothing
from potstill.data import augmentation
from potstill.data.sampling import UNIFORM, RealSampler
from potstill.data.splits import Split
from potstill.distilled.examples import BatchPlan, Recipe
from potstill.distributed import ALONE, Ranks
from potstill.engine.losses import Batch
from potstill.engine.rows import taken
from potstill.engine.unroll import Leaves
from potstill.engine.when_to_compile import NetworkFamily
from potstill.models import fresh
from potstill.seeds import derive, generator

State = Mapping[str, Any]
"""What a method carries from step to step: names -> tensors or plain data; a checkpoint holds it.
"""


@dataclass(frozen=True)
class Examples:
    """The distilled set as a method sees it, whatever it is stored as.

    Args:
        images: (n, ...) as a network reads them.
        targets: (n, K) what it is trained to answer; one-hot unless labels are learned.
        labels: (n,) the class of each.
        frozen: how many of the first examples stay as they are; their gradient is not asked for.
        learn_targets: whether the gradient in the targets is asked for.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    frozen: int = 0
    learn_targets: bool = False

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What a gradient is asked for, by the names that `Estimate.grads` has."""
        return {"images": self.images} | ({"targets": self.targets} if self.learn_targets else {})

    def batch(self, leaves: Leaves, rows: Tensor, drawn: augmentation.Draw) -> Batch:
        """Take the examples at `rows` (on the CPU), augmented as drawn for each.

        Args:
            leaves: tensors in place of `leaves`, to be differentiated in.
            rows: (B,) positions.
            drawn: how each is augmented.
        Returns:
            The batch; those of frozen examples come first.
        """
        still = rows < self.frozen
        order = torch.cat([torch.nonzero(still)[:, 0], torch.nonzero(~still)[:, 0]])
        first = int(still.sum())
        chosen = rows[order].to(self.images.device)
        tensors = {"images": self.images, "targets": self.targets, **leaves}
        images, targets = (
            torch.cat([tensor.detach()[chosen[:first]], taken(tensor, chosen[first:])])
            if first
            else taken(tensor, chosen)
            for tensor in (tensors["images"], tensors["targets"])
        )
        return Batch(augmentation.apply(images, drawn.rows(order)), targets, first)


@dataclass(frozen=True)
class Real:
    """The real data as a method draws on them.

    Args:
        train: what is distilled.
        classes: number of classes.
        batch: examples in a real batch.
        augment: operations, one of them a batch.
        micro_batch: most examples at once on the device.
        sampler: which examples make up a batch.
    """

    train: Split
    classes: int
    batch: int
    augment: tuple[str, ...] = ()
    micro_batch: int = 500
    sampler: RealSampler = UNIFORM

    def one_hot(self, labels: Tensor) -> Tensor:
        """Make targets (n, K) of labels (n,), float32."""
        return F.one_hot(labels, self.classes).float()


@dataclass(frozen=True)
class Problem:
    """What every method works on.

    Args:
        real: the real data.
        networks: makes fresh networks and their losses.
        labels: (n,) the class of each distilled example; frozen ones come first.
        recipe: how a network trains on the set.
        seed: all randomness follows from it, the outer step and a purpose.
        device: where to compute.
        micro_batch: most distilled examples at once on the device.
        identity: names the data and their preprocessing, for what is prepared once.
        ranks: the processes that share the run; a method may deal out what it computes.
    """

    real: Real
    networks: NetworkFamily
    labels: Tensor
    recipe: Recipe
    seed: int
    device: torch.device
    micro_batch: int = 100
    identity: str = ""
    ranks: Ranks = ALONE

    @property
    def plan(self) -> BatchPlan:
        """How a batch of distilled examples is drawn."""
        recipe = self.recipe
        return BatchPlan(
            self.labels, self.real.classes, recipe.batch_per_class, recipe.classes_per_batch
        )

    def rng(self, purpose: str, *replay: int) -> torch.Generator:
        """Make a generator that follows from the seed, a purpose, and numbers such as the outer
        step.
        """
        return generator(self.seed, purpose, *replay)

    def network(self, purpose: str, *replay: int) -> nn.Module:
        """Make a fresh network on the device; its start follows from the same as `rng`."""
        return fresh(self.networks.factory, derive(self.seed, purpose, *replay), self.device)


@dataclass(frozen=True)
class Needs:
    """What a method asks of a run; the house checks it before anything slow, and nothing else.

    Args:
        features: the network must have `features(inputs)`.
        second_derivative: it must be differentiable twice.
        targets: "free" if labels can be learned, "classes" if every example has a hard label.
        kinds: of data that the method takes.
        unused: options of the house that have no effect on it.
        augment: what `augment` is for images unless it is given: operations, one of them a batch.
    """

    features: bool = False
    second_derivative: bool = False
    targets: Literal["classes", "free"] = "free"
    kinds: tuple[str, ...] = ("image", "vector")
    unused: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learnable:
    """A value that is learned beside the set, such as a learning rate.

    Args:
        value: at the start.
        lr: its own learning rate.
        least: it stays at or above this; None: anywhere.
    """

    value: Tensor
    lr: float
    least: float | None = None


@dataclass(frozen=True)
class Estimate:
    """One outer step's gradient.

    Args:
        loss: the method's own.
        grads: "images", "targets" and learnables by name -> gradient; what is absent is 0.
        state: the method's state after the step.
        info: plain figures for the log, such as burn_in and window.
    """

    loss: float
    grads: Mapping[str, Tensor]
    state: State
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large a run is, for what "auto" means and for whether compiling pays.

    Args:
        shape: of an example.
        classes: number of classes.
        stages: examples of each class of the set in each stage of a boosted run; one for others.
        batch: distilled examples in a training step, at the last stage.
        batches: the same at each stage.
        micro_batch: most of them at once.
        real_batch: examples in a real batch.
        real_micro_batch: most of them at once.
        steps: outer steps of a stage.
        coupled: whether the network couples its batch, so that batches are taken whole.
    """

    shape: tuple[int, ...]
    classes: int
    stages: tuple[int, ...]
    batches: tuple[int, ...]
    micro_batch: int
    real_batch: int
    real_micro_batch: int
    steps: int
    coupled: bool = False

    @property
    def batch(self) -> int:
        """Distilled examples in a training step at the last stage."""
        return self.batches[-1]


@dataclass(frozen=True)
class Work:
    """What a run computes by compiled derivatives, if it compiles.

    Args:
        gradients: examples whose gradient is taken, in the whole run.
        products: examples whose Hessian product is taken.
        gradient_batches: sizes of batches at once.
        product_batches: sizes of batches at once.
        functions: how many functions are compiled, one for each kind and shape.
    """

    gradients: float = 0.0
    products: float = 0.0
    gradient_batches: tuple[int, ...] = ()
    product_batches: tuple[int, ...] = ()
    functions: int = 0


class Method(ABC):
    """A method; everything but `estimate` has a default that does nothing.

    Args:
        problem: what it works on.
        options: an instance of `Options`.
    """

    Options: ClassVar[type] = Nothing
    """A frozen dataclass of `option(...)` fields: the method's flags, its [method] table, its help.
    """
    needs: ClassVar[Needs] = Needs()
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of the house -> what holds for this method unless it is given."""
    remedy: ClassVar[str] = "lower --outer-lr"
    """What to change when the gradient is not finite."""

    def __init__(self, problem: Problem, options: Any):
        """Store both; compute nothing: an instance is made for each stage."""
        self.problem, self.options = problem, options

    def prepare(self, cache: Cache) -> None:  # noqa: B027 (nothing to prepare is the usual case)
        """Make what all steps, and all runs with the same data and options, share."""

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        """Make the state and the learnables before the first step."""
        return {}, {}

    @abstractmethod
    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        """Estimate the gradient at `examples` and `learned`.

        All randomness follows from (seed, step), so that a step can be repeated.
        """

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        """Tell how a network trains on the set as it is now, if that is learned too."""
        return recipe

    @classmethod
    def work(cls, options: Any, sizes: Sizes) -> Work:
        """Count what a run computes that can be compiled; nothing by default."""
        return Work()

    @classmethod
    def dealt(cls, options: Any) -> int | None:
        """Count the parts of an outer step that ranks share; None: each rank computes all of it."""
        return None

    @classmethod
    def words(cls, options: Any) -> list[tuple[str, str]]:
        """Say what the options mean, as (term, value) lines of a report."""
        return []


MakeMethod = Callable[[Problem, Any], Method]
