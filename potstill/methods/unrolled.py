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
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from potstill.engine.unroll import InnerProblem, Leaves, MetaGradient, Unrolled
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
from potstill.methods.one_unroll import RealLoss, RealPart, Replay, Start, Trajectory, Unroll
from potstill.methods.unroll_options import UnrollOptions, mean_window
from potstill.methods.windows import Sampler
from potstill.seeds import derive

RATE_LR = 0.01
"""Adam's rate on the logarithm of a learned learning rate: its relative change in an outer step."""
FINAL = "final "
"""Before the number of a tensor of the inner optimiser's last state, among an unroll's results."""


class UnrolledMethod(Method):
    """The mean meta-gradient of one or more unrolls per outer step.

    Trajectories are independent: each has its own start, window, synthetic batches and real batch.
    Trajectory 0 is what a run with one trajectory would do.
    """

    Options: ClassVar[type[UnrollOptions]] = UnrollOptions
    needs: ClassVar[Needs] = Needs(
        second_derivative=True, augment=augmentation.GENTLE, mirrored=augmentation.OF_THE_PAPER
    )
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
        waiting = self.options.waiting
        return {"window": self.options.init()} | (waiting.empty() if waiting else {}), learnables

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        if "log_lr" not in learned:
            return recipe
        return dataclasses.replace(recipe, lr=float(learned["log_lr"].exp()))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        count, ranks = self.options.trajectories, self.problem.ranks
        unrolls = self.drawn(state, [Replay(step, trajectory) for trajectory in range(count)])
        mine, waiting = ranks.share(count), self.options.waiting
        found = self.meta_gradients(examples, learned, [unrolls[index] for index in mine])
        own = {
            index: {"loss": result.loss, **result.leaves, **result.hyper}
            | ({FINAL + str(n): tensor for n, tensor in enumerate(result.final)} if waiting else {})
            for index, result in zip(mine, found, strict=True)
        }
        results = ranks.gathered(own, count)
        loss = mean([result["loss"] for result in results])
        grads = {name: mean([result[name] for result in results]) for name in examples.leaves}
        norms = grads["images"].flatten(1).norm(dim=1)
        after, skipped = self.put_back(state, unrolls, results)
        if self.options.watches:  # only then is the step waited for
            moved = self.options.update(state["window"], float(loss), float(norms.norm()))
            after = {**after, "window": moved}
        if "log_lr" in learned:
            lr = learned["log_lr"].exp()
            grads["log_lr"] = lr * mean([result["lr"] for result in results])
        burn_ins = tuple(unroll.start.first + unroll.burn_in for unroll in unrolls)
        info: dict[str, Any] = {"burn_in": burn_ins, "window": tuple(u.window for u in unrolls)}
        if count == 1:
            info = {"burn_in": burn_ins[0], "window": unrolls[0].window}
        touched = (norms > 0).sum().clamp_min(1)
        info["image_grad_norm"] = norms.sum() / touched  # of images that a batch held
        if "log_lr" in learned:
            info["inner_lr"] = lr
        if self.problem.networks.compiled:  # it stays as it was, unless shapes of batches change
            info["compilations"] = self.problem.networks.compiled.compilations
        return Estimate(loss, grads, after, info, skipped=skipped)

    def drawn(self, state: State, replays: Sequence[Replay]) -> list[Unroll]:
        """Draw where the trajectories of an outer step start, and how far they go."""
        if waiting := self.options.waiting:
            rng = self.problem.rng("pool", replays[0].step)
            return waiting.drawn(state, replays, rng)
        return [Unroll(replay, Start(replay), *self.window(state, replay)) for replay in replays]

    def put_back(
        self, state: State, unrolls: Sequence[Unroll], results: Sequence[Mapping[str, Tensor]]
    ) -> tuple[State, State | None]:
        """Return the state with the networks of a pool as the trajectories left them.

        The second one is for a step that is skipped: they gave no finite gradient, so that others
        take their places. None without a pool.
        """
        waiting = self.options.waiting
        if not waiting:
            return state, None
        skipped: State = state
        for unroll, result in zip(unrolls, results, strict=True):
            final = tuple(result[name] for name in sorted(result) if name.startswith(FINAL))
            state = waiting.after(state, unroll, final)
            skipped = waiting.without(skipped, unroll.place)
        return state, skipped

    def meta_gradients(
        self, examples: Examples, learned: Leaves, unrolls: Sequence[Unroll]
    ) -> list[MetaGradient]:
        """Take some trajectories of an outer step, on a GPU at the same time.

        Args:
            examples: the distilled set.
            learned: the learnables' values by name.
            unrolls: the trajectories.
        """
        if self.make_runner is not None:
            try:
                return self.on_device(self.make_runner, examples, learned, unrolls)
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
            self.trajectory(
                examples, learned, one.replay, one.burn_in, one.window, one.start
            ).meta_gradient(one.replay)
            for one in unrolls
        ]

    def on_device(
        self,
        make: Callable[[], Runner],
        examples: Examples,
        learned: Leaves,
        unrolls: Sequence[Unroll],
    ) -> list[MetaGradient]:
        """Take trajectories by programs that `make` makes runners for, as `meta_gradients` does."""
        hyper = self.hyper(learned)
        while len(self.slots) < len(unrolls):
            longest = self.options.longest
            self.slots.append(Slot(self, unrolls[0].replay, examples, hyper, longest, make()))
        slots = self.slots[: len(unrolls)]
        runs = [
            slot.run(examples, hyper, unroll) for slot, unroll in zip(slots, unrolls, strict=True)
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
        self, examples: Examples, learned: Leaves, replay: Replay, burn_in: int, window: int,
        start: Start | None = None,
    ) -> Trajectory:  # fmt: skip
        """Train a network on the examples; its draws follow from seed and replay.

        Args:
            examples: the distilled set.
            learned: the learnables' values by name.
            replay: decides the draws.
            burn_in: inner steps before the window.
            window: inner steps that are differentiated.
            start: where it starts; None: it is fresh.
        """
        problem, start = self.problem, start or Start(replay)
        model = problem.networks.flat(problem.network("start", *start.born.numbers))
        whole = couples_batch(model.module)
        real = self.loss(model, "outer dropout", replay, problem.real.micro_batch)
        unrolled = Unrolled(
            self.inner_problem(examples, model, replay),
            examples.leaves,
            self.hyper(learned),
            start.moments or problem.recipe.optimizer.init(model.theta),
            burn_in=burn_in,
            window=window,
            first=start.first,
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
        taken = str(options)
        if pool := options.waiting:
            taken = (
                f"{pool.window:,}, every one differentiated, of networks that have taken up to "
                f"{pool.lifetime - pool.window:,}"
            )
        lines = [("Inner steps", taken)]
        if options.trajectories > 1:
            lines.append(("Unrolls in a step", f"{options.trajectories:,}, averaged"))
        if options.pool:
            lines.append(("Networks that wait", f"{options.pool:,}, partly trained"))
        return lines + [("Inner learning rate", "learned")] * options.learn_lr


def mean(tensors: list[Tensor]) -> Tensor:
    """Average tensors, added up in their order."""
    if len(tensors) == 1:
        return tensors[0]
    total = torch.zeros_like(tensors[0])
    for tensor in tensors:
        total += tensor / len(tensors)
    return total


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
