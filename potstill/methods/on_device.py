"""A trajectory of an unrolled method whose tensors stay where they are, for `engine.programs`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.data import augmentation
from potstill.data.splits import TensorSplit
from potstill.devices import sent
from potstill.engine.drawn import Drawn
from potstill.engine.losses import Batch, Differentiable
from potstill.engine.moves import calls
from potstill.engine.programs import Programs, Runner
from potstill.engine.unroll import InnerProblem, Leaves, MetaGradient
from potstill.methods.base import Examples, Real
from potstill.methods.one_unroll import Replay, Unroll, Unrolling


@dataclass(frozen=True)
class HeldReal:
    """The mean cross-entropy on a part of a real batch that is gathered on the device.

    Args:
        loss: the network's.
        real: the real data.
        drawn: rows are positions in `images`.
        weights: (parts, B) of the examples: 0 of those that fill up the last part.
        images: (n, ...) on the device: all, or room for a batch of data that are elsewhere.
        labels: (n,) their classes, on the device.
    """

    loss: Differentiable
    real: Real
    drawn: Drawn
    weights: Tensor
    images: Tensor
    labels: Tensor

    def gradient(
        self, theta: Tensor, leaves: Leaves, part: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows, drawn, _ = self.drawn.at(part, 0)
        weights = self.weights.index_select(0, part[None])[0]
        targets = self.real.one_hot(self.labels.index_select(0, rows)).to(theta.dtype)
        inputs = augmentation.apply(self.images.index_select(0, rows), drawn)
        batch = Batch(inputs, targets * weights[:, None].to(targets))
        return *self.loss.gradient(theta, batch, 0), {}


class Slot:
    """One of the trajectories of an outer step.

    Args:
        method: whose.
        replay: of some trajectory.
        examples: as large as the distilled set.
        hyper: as large as the optimiser's hyper-parameters.
        longest: (most inner steps, longest window).
        runner: how its programs are run.
    """

    def __init__(
        self, method: Unrolling, replay: Replay, examples: Examples, hyper: Leaves,
        longest: tuple[int, int], runner: Runner,
    ):  # fmt: skip
        problem, real, recipe = method.problem, method.problem.real, method.problem.recipe
        device = problem.device
        self.method, self.runner = method, runner
        self.model = problem.networks.flat(problem.network("start", *replay.numbers))
        self.examples = replace(
            examples, images=examples.images.clone(), targets=examples.targets.clone()
        )
        batch = len(problem.plan.draw(torch.Generator()))
        self.drawn = Drawn.empty(longest[0], batch, recipe.augment, device)
        self.size = min(real.micro_batch, real.batch)
        parts = -(-real.batch // self.size)
        self.resident = isinstance(real.train, TensorSplit)
        self.real = HeldReal(
            method.loss(self.model, "outer dropout", replay, self.size),
            real,
            Drawn.empty(parts, self.size, real.augment, device),
            torch.ones(parts, self.size, device=device),
            *self.room(real, parts * self.size),
        )
        counter = torch.zeros((), dtype=torch.int64, device=device)
        loss = method.loss(self.model, "dropout", replay, problem.micro_batch, inner=True)

        def gathered(leaves: Leaves, step: int) -> Batch:
            return self.examples.gathered(leaves, *self.drawn.at(counter, step))

        def variant(step: int) -> Any:
            first = step == 0  # the one that bfloat16 leaves in float32
            return self.drawn.operations[step], self.drawn.frozen[step], first

        self.programs = Programs(
            InnerProblem(loss, gathered, recipe.optimizer, counter, variant), self.real,
            self.examples.leaves, hyper, recipe.optimizer.init(self.model.theta), longest[1],
            method.options.keep.dtype, runner, calls(problem.networks.compiled),
        )  # fmt: skip

    def room(self, real: Real, count: int) -> tuple[Tensor, Tensor]:
        """Return all images and labels, or room for a batch of those that are not on the device."""
        if isinstance(real.train, TensorSplit):
            images = real.train.images
            return images, real.train.labels.to(images.device)
        images, labels = real.train.take(torch.zeros(1, dtype=torch.int64))
        return images.repeat(count, *[1] * (images.dim() - 1)), labels.repeat(count)

    def run(self, examples: Examples, hyper: Leaves, unroll: Unroll) -> Iterator[None]:
        """Take the trajectory of an outer step, program by program.

        Args:
            examples: the distilled set.
            hyper: the optimiser's hyper-parameters.
            unroll: the trajectory.
        """
        method, problem = self.method, self.method.problem
        replay, begun = unroll.replay, unroll.start
        steps = range(begun.first, begun.first + unroll.burn_in + unroll.window)
        fresh = problem.networks.flat(problem.network_on_host("start", *begun.born.numbers))
        self.runner.begin()
        with self.runner.context():
            self.examples.images.copy_(examples.images)
            self.examples.targets.copy_(examples.targets)
            for name, constant in fresh.constants.items():
                self.model.constants[name].copy_(sent(constant, problem.device))
            start = begun.moments or problem.recipe.optimizer.init(
                sent(fresh.theta, problem.device)
            )
            drawn = [self.examples.ordered(*method.synthetic_rows(replay, step)) for step in steps]
            rows, draws, frozen = zip(*drawn, strict=True)
            self.drawn.put(torch.stack(rows), list(draws), list(frozen), begun.first)
            parts, weight = self.put_real(replay)
        self.programs.load(examples.leaves, hyper, start)
        yield from self.programs.run(
            steps, unroll.window, parts, weight, self.real.drawn.operations[0]
        )
        self.runner.end()

    def put_real(self, replay: Replay) -> tuple[int, float]:
        """Draw the real batch; return the number of its parts and the weight of each."""
        problem = self.method.problem
        chosen, drawn = self.method.real_rows(replay)
        count, size = len(chosen), self.size
        parts = -(-count // size)
        index = torch.arange(parts * size).clamp_max(count - 1)
        weights = (torch.arange(parts * size) < count).float()
        self.real.weights[:parts].copy_(sent(weights.view(parts, size), problem.device))
        if self.resident:
            rows = chosen[index]
        else:
            images, labels = self.real.real.train.take(chosen)
            self.real.images[:count].copy_(images)
            self.real.labels[:count].copy_(labels)
            rows = index
        draws = [drawn.rows(own) for own in index.view(parts, size)]
        self.real.drawn.put(rows.view(parts, size), draws, [0] * parts)
        return parts, size / count

    @property
    def found(self) -> MetaGradient:
        """What the last `run` found."""
        return self.programs.found
