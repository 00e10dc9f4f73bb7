"""RaT-BPTT and its relatives: unroll the inner loop, differentiate a window of it.

Source: Algorithm 1 and equations (2) to (4) of Feng, Vedantam & Kempe, "Embarrassingly Simple
    Dataset Distillation", ICLR 2024, arXiv:2311.07025. The methods of this family differ only in
    the window sampler (windows.py); `family` makes a method from a sampler.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from potstill.config.options import option
from potstill.data import augmentation
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CannotCompile
from potstill.engine.flat import FlatModel, couples_batch
from potstill.engine.losses import (
    Batch,
    Differentiable,
    ExactStart,
    cross_entropy,
)
from potstill.engine.moves import compiled_if
from potstill.engine.programs import Captured, Runner
from potstill.engine.unroll import InnerProblem, Keep, Leaves, MetaGradient, Unrolled
from potstill.errors import first_line
from potstill.methods import windows
from potstill.methods.base import (
    Estimate,
    Examples,
    Learnable,
    Method,
    Needs,
    Problem,
    Sizes,
    State,
    Work,
)
from potstill.methods.on_device import Slot
from potstill.methods.one_unroll import RealLoss, RealPart, Replay, Trajectory
from potstill.methods.windows import Sampler
from potstill.seeds import derive, generator

RATE_LR = 0.01
"""Adam's rate on the logarithm of a learned learning rate: its relative change in an outer step."""
SAMPLED_DRAWS = 100


@dataclass(frozen=True)
class UnrollOptions(Sampler):
    """The options that all unrolled methods have beside those of their window sampler."""

    trajectories: int = option(1, "K: unrolls of an outer step, whose mean is taken", low=1)
    tape: Literal["states", "sqrt", "host", "bfloat16"] = option(
        "states", "memory against time: states, sqrt, host or bfloat16 (docs/speed.md)"
    )
    loss_points: int = option(
        1, "points of the window, its end among them, at which the real batch is dealt out", low=1
    )
    learn_lr: bool = option(False, "learn the inner learning rate too; the recipe takes it over")

    def resolved(self, sizes: Sizes) -> Self:
        """Return the options with every "auto" replaced for a run of these sizes."""
        return self.with_steps(sizes.steps)

    def draw(self, state: dict[str, Any], rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        """Draw (burn_in, window); in `family`, the window sampler provides this."""
        raise NotImplementedError

    @property
    def keep(self) -> Keep:
        """What is kept of the window's forward pass for the way back."""
        return Keep.named(self.tape)

    @property
    def longest(self) -> tuple[int, int]:
        """Most inner steps of a trajectory, and its longest window."""
        return self.unroll, getattr(self, "window", self.unroll)

    @property
    def watches(self) -> bool:
        """Whether the window follows the loss."""
        return type(self).update is not Sampler.update


class UnrolledMethod(Method):
    """The mean meta-gradient of one or more unrolls per outer step.

    Trajectories are independent: each has its own start, window, synthetic batches and real batch.
    Trajectory 0 is what a run with one trajectory would do.
    """

    Options: ClassVar[type[UnrollOptions]] = UnrollOptions
    needs: ClassVar[Needs] = Needs(second_derivative=True)
    step_words: ClassVar[str] = (
        "Each outer step trains a network on the synthetic {noun}s, tests it on real training "
        "{noun}s, and changes the synthetic ones so that the next network does better."
    )
    loss_words: ClassVar[str] = (
        "How badly networks trained on the synthetic {noun}s do on real training {noun}s. Lower is "
        "better."
    )
    remedy: ClassVar[str] = "lower --inner-lr, --unroll or --window"
    options: UnrollOptions

    def __init__(self, problem: Problem, options: UnrollOptions):
        super().__init__(problem, options)
        self.slots: list[Slot] = []

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        learnables = {}
        if self.options.learn_lr:
            # The logarithm is learned: it keeps the rate positive and its steps proportional.
            value = torch.tensor(self.problem.recipe.lr, device=self.problem.device).log()
            learnables["log_lr"] = Learnable(value, RATE_LR)
        return {"window": self.options.init()}, learnables

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        if "log_lr" not in learned:
            return recipe
        return dataclasses.replace(recipe, lr=float(learned["log_lr"].exp()))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        count, ranks = self.options.trajectories, self.problem.ranks
        replays = [Replay(step, trajectory) for trajectory in range(count)]
        drawn = [self.window(state, replay) for replay in replays]
        mine = ranks.share(count)
        found = self.meta_gradients(
            examples, learned, [replays[index] for index in mine], [drawn[index] for index in mine]
        )
        own = {
            index: {"loss": result.loss, **result.leaves, **result.hyper}
            for index, result in zip(mine, found, strict=True)
        }
        results = ranks.gathered(own, count)
        loss = mean([result["loss"] for result in results])
        grads = {name: mean([result[name] for result in results]) for name in examples.leaves}
        norms = grads["images"].flatten(1).norm(dim=1)
        after = state
        if self.options.watches:  # only then is the step waited for
            moved = self.options.update(state["window"], float(loss), float(norms.norm()))
            after = {"window": moved}
        if "log_lr" in learned:
            lr = learned["log_lr"].exp()
            grads["log_lr"] = lr * mean([result["lr"] for result in results])
        burn_ins, sizes = zip(*drawn, strict=True)
        info: dict[str, Any] = {"burn_in": burn_ins, "window": sizes}
        if count == 1:
            info = {"burn_in": burn_ins[0], "window": sizes[0]}
        touched = (norms > 0).sum().clamp_min(1)
        info["image_grad_norm"] = norms.sum() / touched  # of images that a batch held
        if "log_lr" in learned:
            info["inner_lr"] = lr
        if self.problem.networks.compiled:  # it stays as it was, unless shapes of batches change
            info["compilations"] = self.problem.networks.compiled.compilations
        return Estimate(loss, grads, after, info)

    def meta_gradients(
        self,
        examples: Examples,
        learned: Leaves,
        replays: Sequence[Replay],
        windows: Sequence[tuple[int, int]],
    ) -> list[MetaGradient]:
        """Take some trajectories of an outer step, on a GPU at the same time.

        Args:
            examples: the distilled set.
            learned: the learnables' values by name.
            replays: decide the draws of each.
            windows: (burn_in, window) of each.
        """
        if self.make_runner is not None:
            try:
                return self.on_device(self.make_runner, examples, learned, replays, windows)
            except (
                RuntimeError,
                CannotCompile,
            ) as error:  # whatever cannot be recorded, or has no room
                self.make_runner, self.slots = None, []
                self.problem.say(
                    f"the steps are launched one by one, since recording them fails "
                    f"({first_line(error)})"
                )
        return [
            self.trajectory(examples, learned, replay, *drawn).meta_gradient(replay)
            for replay, drawn in zip(replays, windows, strict=True)
        ]

    def on_device(
        self,
        make: Callable[[], Runner],
        examples: Examples,
        learned: Leaves,
        replays: Sequence[Replay],
        windows: Sequence[tuple[int, int]],
    ) -> list[MetaGradient]:
        """Take trajectories by programs that `make` makes runners for, as `meta_gradients` does."""
        hyper = self.hyper(learned)
        while len(self.slots) < len(replays):
            longest = self.options.longest
            self.slots.append(Slot(self, replays[0], examples, hyper, longest, make()))
        slots = self.slots[: len(replays)]
        runs = [
            slot.run(examples, hyper, replay, *drawn)
            for slot, replay, drawn in zip(slots, replays, windows, strict=True)
        ]
        for _ in itertools.zip_longest(*runs):  # they take turns at being told what is next
            pass
        return [slot.found for slot in slots]

    @cached_property
    def make_runner(self) -> Callable[[], Runner] | None:
        """What runs the programs of a trajectory; None: `Unrolled` takes its steps.

        Programs are recorded on CUDA. What draws or decides anew at every step has no recording:
        networks with dropout, and states that are kept elsewhere or taken again.
        """
        problem, keep = self.problem, self.options.keep
        elsewhere = keep.device or keep.checkpoints or self.options.loss_points > 1
        if problem.device.type != "cuda" or elsewhere:
            return None
        networks = problem.networks
        if couples_batch(problem.network_on_host("start", 0)):
            return None
        if networks.compiled is None and networks.draws_random:
            return None
        return lambda: Captured(problem.device)

    def window(self, state: State, replay: Replay) -> tuple[int, int]:
        """Draw (burn_in, window) of one trajectory."""
        return self.window_of(state, replay, replay.step)

    def window_of(self, state: State, replay: Replay, step: int) -> tuple[int, int]:
        """Draw (burn_in, window) of an outer step with a trajectory's randomness."""
        return self.options.draw(state["window"], self.rng("window", replay), step)

    def rng(self, purpose: str, replay: Replay, *more: int) -> torch.Generator:
        """Make a generator that follows from the seed, the purpose and the trajectory."""
        return self.problem.rng(purpose, *replay.numbers, *more)

    def trajectory(
        self, examples: Examples, learned: Leaves, replay: Replay, burn_in: int, window: int
    ) -> Trajectory:
        """Train a fresh network on the examples; its draws follow from seed and replay.

        Args:
            examples: the distilled set.
            learned: the learnables' values by name.
            replay: decides the draws.
            burn_in: inner steps before the window.
            window: inner steps that are differentiated.
        """
        problem = self.problem
        model = problem.networks.flat(problem.network("start", *replay.numbers))
        whole = couples_batch(model.module)
        real = self.loss(model, "outer dropout", replay, problem.real.micro_batch)
        unrolled = Unrolled(
            self.inner_problem(examples, model, replay),
            examples.leaves,
            self.hyper(learned),
            problem.recipe.optimizer.init(model.theta),
            burn_in=burn_in,
            window=window,
            keep=self.options.keep,
        )
        return Trajectory(self, unrolled, RealLoss(real, problem.real), whole)

    def hyper(self, learned: Leaves) -> dict[str, Tensor]:
        """Return the inner optimiser's hyper-parameters."""
        if "log_lr" in learned:
            return {"lr": learned["log_lr"].exp()}
        return {"lr": torch.full((), self.problem.recipe.lr, device=self.problem.device)}

    def loss(
        self,
        model: FlatModel,
        purpose: str,
        replay: Replay,
        micro_batch: int,
        *,
        inner: bool = False,
    ) -> Differentiable:
        """Return the mean cross-entropy of a network, in micro-batches unless it couples its batch.

        Args:
            model: the network.
            purpose: decides the draws of its dropout, with `replay` and the step.
            replay: the outer step and the trajectory.
            micro_batch: most examples at once.
            inner: whether networks train on it; then the first step is never rounded.
        """
        seed, numbers = self.problem.seed, replay.numbers
        networks = self.problem.networks

        def of_step(step: int) -> int:
            return derive(seed, purpose, *numbers, step)

        loss = networks.loss(model, of_step)
        if inner and model.precision == "bfloat16":
            full = FlatModel(model.module)
            seed_of = of_step if networks.draws_random else None
            loss = ExactStart(loss, cross_entropy(full, seed_of))
        return networks.in_parts(loss, model.module, micro_batch)

    def inner_problem(self, examples: Examples, model: FlatModel, replay: Replay) -> InnerProblem:
        """Return the problem of training `model` on synthetic batches.

        Args:
            examples: the distilled set.
            model: the network.
            replay: decides the draws of batches and augmentation.
        """

        def batch(leaves: Leaves, step: int) -> Batch:
            return examples.batch(leaves, *self.synthetic_rows(replay, step))

        loss = self.loss(model, "dropout", replay, self.problem.micro_batch, inner=True)
        optimizer = compiled_if(self.problem.recipe.optimizer, self.problem.networks.compiled)
        return InnerProblem(loss, batch, optimizer)

    def synthetic_rows(self, replay: Replay, step: int) -> tuple[Tensor, augmentation.Draw]:
        """Draw the indices of an inner step's examples, and how they are augmented."""
        rng = self.rng("batch", replay, step)
        rows = self.problem.plan.draw(rng)
        return rows, augmentation.draw(self.problem.recipe.augment, len(rows), rng)

    def real_rows(self, replay: Replay) -> tuple[Tensor, augmentation.Draw]:
        """Draw the indices of a trajectory's real batch, and how it is augmented."""
        real, rng = self.problem.real, self.rng("real batch", replay)
        chosen = real.sampler.draw(real.train, real.batch, rng)
        return chosen, augmentation.draw(real.augment, len(chosen), rng)

    def real_parts(self, replay: Replay, *, whole: bool) -> Iterator[tuple[RealPart, float]]:
        """Yield the micro-batches of a trajectory's real batch, each with its weight.

        The batch is not split if the network couples its examples.
        """
        chosen, drawn = self.real_rows(replay)
        size = len(chosen) if whole else self.problem.real.micro_batch
        for rows in torch.arange(len(chosen)).split(size):
            part = RealPart(chosen[rows], drawn.rows(rows), int(rows[0]))
            yield part, len(rows) / len(chosen)

    @classmethod
    def work(cls, options: UnrollOptions, sizes: Sizes) -> Work:
        burn_in, window = mean_window(options, sizes.steps)
        examples = sum(sizes.batches) * options.trajectories * sizes.steps
        real = len(sizes.stages) * sizes.real_batch * options.trajectories * sizes.steps
        micro = sizes.batch if sizes.coupled else sizes.cut.size(sizes.batch)
        outer = sizes.real_batch if sizes.coupled else sizes.real_micro_batch
        shapes = {sizes.cut.of_stage(size, sizes.batch, compiled=True) for size in sizes.batches}
        return Work(
            gradients=examples * (burn_in + window) + real,
            products=examples * window,
            gradient_batches=tuple(sorted({micro, outer})),
            product_batches=(micro,),
            functions=1 + 2 * len(shapes),  # one for the real batch
        )

    @classmethod
    def dealt(cls, options: UnrollOptions) -> int:
        return options.trajectories

    @classmethod
    def words(cls, options: UnrollOptions) -> list[tuple[str, str]]:
        lines = [("Inner steps", str(options))]
        if options.trajectories > 1:
            lines.append(("Unrolls in a step", f"{options.trajectories:,}, averaged"))
        return lines + [("Inner learning rate", "learned")] * options.learn_lr


def mean(tensors: list[Tensor]) -> Tensor:
    """Average tensors, added up in their order."""
    if len(tensors) == 1:
        return tensors[0]
    total = torch.zeros_like(tensors[0])
    for tensor in tensors:
        total += tensor / len(tensors)
    return total


def mean_window(sampler: UnrollOptions, steps: int) -> tuple[float, float]:
    """Average (burn_in, window) over some outer steps; a sampler's state stays the initial one."""
    chosen = range(0, steps, -(-steps // SAMPLED_DRAWS))
    state = sampler.init()
    drawn = [sampler.draw(state, generator(0, "mean window", step), step) for step in chosen]
    return tuple(sum(column) / len(drawn) for column in zip(*drawn, strict=True))


def family(sampler: type[Sampler]) -> type[UnrolledMethod]:
    """Make the method of a window sampler; it has the sampler's options and all unrolls'."""
    known: dict[str, Any] = {"__module__": __name__, "__doc__": sampler.__doc__}
    made: type[UnrollOptions] = type(sampler.__name__, (sampler, UnrollOptions), dict(known))
    options = dataclass(frozen=True)(made)
    return type(sampler.__name__, (UnrolledMethod,), {**known, "Options": options})


RatBptt = family(windows.RandomTruncated)
Bptt = family(windows.Full)
TBptt = family(windows.Truncated)
RBptt = family(windows.RandomFull)
Early = family(windows.Early)
Forward = family(windows.Forward)
Backward = family(windows.Backward)
Fixed = family(windows.Fixed)
Growing = family(windows.Growing)
