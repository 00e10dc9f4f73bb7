"""What a method is, and what it works on.

A method estimates the gradient of a distilled set, once for each outer step. It never reads the
configuration, never saves, never logs, never loops over outer steps; the code that runs it knows
only this file. A new method is a class in a file of its own and a row in the registry, or, in
another package, its name: `--method package.module:Name`. `potstill.testing.check_method` checks
that it keeps to this contract.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.options import Nothing
from potstill.data import augmentation
from potstill.data.sampling import UNIFORM, RealSampler
from potstill.data.splits import Split
from potstill.distilled.batches import BatchPlan
from potstill.distilled.recipes import Recipe
from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.cuts import Cut
from potstill.engine.losses import Batch
from potstill.engine.rows import taken
from potstill.engine.unroll import Leaves
from potstill.engine.when_to_compile import NetworkFamily
from potstill.models import fresh
from potstill.seeds import derive, generator

CUT = Cut(100)
State = Mapping[str, Any]
"""A method's state between steps: names -> tensors or plain data; a checkpoint holds it.
"""


@dataclass(frozen=True)
class Examples:
    """The distilled set as a method sees it, however it is stored.

    Args:
        images: (n, ...) as a network reads them.
        targets: (n, K) that a network is trained on; one-hot unless labels are learned.
        labels: (n,) the class of each example.
        frozen: how many of the first examples stay as they are; their gradient is not needed.
        learn_targets: whether the gradient in the targets is needed.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    frozen: int = 0
    learn_targets: bool = False

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors whose gradient is needed, by their names in `Estimate.grads`."""
        return {"images": self.images} | ({"targets": self.targets} if self.learn_targets else {})

    def batch(self, leaves: Leaves, rows: Tensor, drawn: augmentation.Draw) -> Batch:
        """Take the examples at `rows`, each augmented as drawn.

        Args:
            leaves: tensors in place of `leaves`, to be differentiated in.
            rows: (B,) indices, on the CPU.
            drawn: how each example is augmented.
        Returns:
            The batch; frozen examples come first.
        """
        return self.gathered(leaves, *self.ordered(rows, drawn))

    def ordered(
        self, rows: Tensor, drawn: augmentation.Draw
    ) -> tuple[Tensor, augmentation.Draw, int]:
        """Order the rows of a batch and its draw, frozen ones first; return their number too."""
        if not self.frozen:
            return rows, drawn, 0
        still = rows < self.frozen
        order = torch.cat([torch.nonzero(still)[:, 0], torch.nonzero(~still)[:, 0]])
        return rows[order], drawn.rows(order), int(still.sum())

    def gathered(self, leaves: Leaves, rows: Tensor, drawn: augmentation.Draw, first: int) -> Batch:
        """Take examples by what `ordered` returned, which may be on the device by now."""
        chosen = rows.to(self.images.device)
        tensors = {"images": self.images, "targets": self.targets, **leaves}
        images, targets = (
            torch.cat([tensor.detach()[chosen[:first]], taken(tensor, chosen[first:])])
            if first
            else taken(tensor, chosen)
            for tensor in (tensors["images"], tensors["targets"])
        )
        return Batch(augmentation.apply(images, drawn), targets, first)


@dataclass(frozen=True)
class Real:
    """The real data as a method draws on them.

    Args:
        train: the split that is distilled.
        classes: number of classes.
        batch: examples in a real batch.
        augment: augmentation operations, one for each batch.
        micro_batch: most examples at once on the device.
        sampler: draws the examples of a batch.
    """

    train: Split
    classes: int
    batch: int
    augment: tuple[str, ...] = ()
    micro_batch: int = 500
    sampler: RealSampler = UNIFORM

    def one_hot(self, labels: Tensor) -> Tensor:
        """Return targets (n, K), float32, of labels (n,)."""
        # F.one_hot would look whether the labels are below the number of classes.
        return (labels[:, None] == torch.arange(self.classes, device=labels.device)).float()


@dataclass(frozen=True)
class Problem:
    """The data, networks and settings that every method works on.

    Args:
        real: the real data.
        networks: makes fresh networks and their losses.
        labels: (n,) the class of each distilled example; frozen ones come first.
        recipe: how a network trains on the set.
        seed: all randomness follows from it, the outer step and a purpose.
        device: where to compute.
        micro_batch: most distilled examples at once on the device.
        identity: names the data and their preprocessing, for what is prepared once.
        ranks: the processes that share the run; a method may divide its work among them.
        run_seed: the run's own; `seed` is another one in each block of a boosted set.
        sharing: so many consecutive distilled examples are decoded from one that is stored.
        cut: how a batch is cut into what the device takes at once.
        final_per_class: distilled examples of each class in the last block's run; 0: as in this.
        learn_labels: whether the set stores labels.
        say: takes a sentence for the user.
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
    run_seed: int = 0
    sharing: int = 1
    cut: Cut = CUT
    final_per_class: int = 0
    learn_labels: bool = False
    say: Callable[[str], None] = lambda sentence: None

    def at_once(self, count: int, last: int = 0) -> int:
        """Return how many of `count` examples to take at once.

        In a compiled run they are what suits the last block's run, or halves of it, so that few
        shapes are compiled.

        Args:
            count: examples in a batch.
            last: examples in the same batch of the last block's run; 0: as many.
        """
        compiled = self.networks.compiled is not None
        return self.cut.of_stage(count, max(count, last), compiled=compiled)

    @cached_property
    def plan(self) -> BatchPlan:
        """The plan by which a batch of distilled examples is drawn."""
        recipe = self.recipe
        return BatchPlan(
            self.labels, self.real.classes, recipe.batch_per_class, recipe.classes_per_batch
        )

    def rng(self, purpose: str, *replay: int) -> torch.Generator:
        """Make a generator that follows from the seed, a purpose and numbers.

        One of the numbers is usually the outer step.
        """
        return generator(self.seed, purpose, *replay)

    def network(self, purpose: str, *replay: int) -> nn.Module:
        """Make a fresh network on the device; its start follows from the same values as `rng`."""
        return self.network_on_host(purpose, *replay).to(self.device)

    def network_on_host(self, purpose: str, *replay: int) -> nn.Module:
        """Make the same network on the CPU."""
        seed = derive(self.seed, purpose, *replay)
        return fresh(self.networks.factory, seed, torch.device("cpu"))


@dataclass(frozen=True)
class Needs:
    """What a method requires of a run; potstill checks it before any slow work.

    Args:
        features: the network must have `features(inputs)`.
        second_derivative: the network must be twice differentiable.
        targets: "free" if labels can be learned, as weights of classes; "numbers" if they can and
            are numbers around 1 / K, for a regression; "classes" if every example has a hard label.
        kinds: the kinds of data that the method takes.
        unused: options of potstill that have no effect on the method; `Method.defaults` may give
            them values all the same.
        augment: the default of `augment` for images: operations, one for each batch.
        mirrored: its default in place of that where mirrored images are of the same class; empty:
            the same.
        pixels: the set must be stored as pixels, since the method chooses the examples themselves.
        uncoupled: the network must not couple the examples of a batch, as batch norm does.
    """

    features: bool = False
    second_derivative: bool = False
    targets: Literal["classes", "free", "numbers"] = "free"
    kinds: tuple[str, ...] = ("image", "vector")
    unused: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()
    mirrored: tuple[str, ...] = ()
    pixels: bool = False
    uncoupled: bool = False


@dataclass(frozen=True)
class Learnable:
    """A value that is learned beside the set, such as a learning rate.

    Args:
        value: at the start.
        lr: its own learning rate.
        least: its lower bound; None: no bound.
    """

    value: Tensor
    lr: float
    least: float | None = None


@dataclass(frozen=True)
class Estimate:
    """The gradient of one outer step, or new values.

    Args:
        loss: the method's own loss; as a 0-d tensor the loop reads it later, without waiting.
        grads: "images", "targets" and learnables by name -> gradient; a missing name means 0.
        state: the method's state after the step.
        info: plain numbers for the log, such as burn_in and window, or 0-d tensors likewise.
        values: "images" or "targets" -> (n, ...) values that take the place of those given, with
            no gradient step; a method that chooses images says `Needs.pixels`.
        skipped: the method's state after the step if that is skipped, since its gradient is not
            finite; None: as it was.
    """

    loss: float | Tensor
    grads: Mapping[str, Tensor]
    state: State
    info: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: State | None = None


@dataclass(frozen=True)
class Sizes:
    """How large a run is: decides what "auto" means and whether compiling saves time.

    Args:
        shape: of an example.
        classes: number of classes.
        stages: examples of each class of the set in each stage of a boosted run; other runs have
            one stage.
        batches: distilled examples in a training step, in each stage.
        cut: how a batch is cut into what the device takes at once.
        real_batch: examples in a real batch.
        real_micro_batch: most real examples at once.
        steps: outer steps of a stage.
        coupled: whether the network couples the examples of its batch, so that batches are not
            split.
        sharing: so many consecutive distilled examples are decoded from one that is stored.
    """

    shape: tuple[int, ...]
    classes: int
    stages: tuple[int, ...]
    batches: tuple[int, ...]
    cut: Cut
    real_batch: int
    real_micro_batch: int
    steps: int
    coupled: bool = False
    sharing: int = 1

    def at_once(self, batch: Callable[[int], int]) -> tuple[int, ...]:
        """Return the sizes at which `Problem.at_once` takes a batch in the stages, ascending.

        Args:
            batch: examples of each class in a stage -> examples in the batch.
        """
        last = batch(self.stages[-1])
        sizes = (self.cut.of_stage(batch(each), last, compiled=True) for each in self.stages)
        return tuple(sorted(set(sizes)))

    @property
    def batch(self) -> int:
        """Distilled examples in a training step of the last stage."""
        return self.batches[-1]


@dataclass(frozen=True)
class Work:
    """What a run computes with compiled derivatives, if it compiles.

    Args:
        gradients: examples whose gradient is taken, in the whole run.
        products: examples whose Hessian product is taken, in the whole run.
        features: examples whose features alone are computed, in the whole run.
        gradient_batches: sizes of the batches whose gradient is taken at once.
        product_batches: sizes of the batches whose Hessian product is taken at once.
        pulled_batches: likewise, where that in the batch is all that is taken.
        feature_batches: sizes of the batches whose features are computed at once.
        functions: how many functions are compiled, one for each kind and shape.
    """

    gradients: float = 0.0
    products: float = 0.0
    features: float = 0.0
    gradient_batches: tuple[int, ...] = ()
    product_batches: tuple[int, ...] = ()
    pulled_batches: tuple[int, ...] = ()
    feature_batches: tuple[int, ...] = ()
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
    """Options of potstill -> their defaults for this method."""
    step_words: ClassVar[str] = (
        "Each outer step moves the synthetic {noun}s so that the method's loss falls."
    )
    """What a step does, for reports; {noun} is what an example is called."""
    loss_words: ClassVar[str] = "What the method lowers by moving the synthetic {noun}s."
    """What the loss is, for reports, likewise."""
    remedy: ClassVar[str] = "lower --outer-lr"
    """What to change when the gradient is not finite."""

    def __init__(self, problem: Problem, options: Any):
        """Store both arguments and compute nothing: an instance is made for each stage."""
        self.problem, self.options = problem, options

    def check(self, cache: Cache) -> None:  # noqa: B027 (most have nothing to check)
        """Raise an InputError if the problem and the options do not suit the method.

        It is called before anything is prepared or kept, and reads little.
        """

    def prepare(self, cache: Cache) -> None:  # noqa: B027 (nothing to prepare is the usual case)
        """Prepare what all steps, and all runs with the same data and options, share."""

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        """Make the state and the learnables before the first step."""
        return {}, {}

    @abstractmethod
    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        """Estimate the gradient at `examples` and `learned`.

        All randomness follows from (seed, step), so that a step can be repeated.

        Args:
            examples: the distilled set.
            learned: the learnables' values by name, 0-d tensors.
            state: the method's state before the step.
            step: number of the outer step, from 0.
        """

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        """Return how a network trains on the set now, if the method learns that too."""
        return recipe

    @classmethod
    def work(cls, options: Any, sizes: Sizes) -> Work:
        """Return what a run computes that can be compiled; nothing by default."""
        return Work()

    @classmethod
    def dealt(cls, options: Any) -> int | None:
        """Return how many parts of an outer step ranks share.

        None: each rank computes all of it.
        """
        return None

    @classmethod
    def words(cls, options: Any) -> list[tuple[str, str]]:
        """Describe the options, as (term, value) lines of a report."""
        return []


MakeMethod = Callable[[Problem, Any], Method]
