"""RaT-BPTT and its relatives: unroll the inner loop, differentiate a window of it.

Source: Algorithm 1 and equations (2) to (4) of Feng, Vedantam & Kempe, "Embarrassingly Simple Dataset Distillation",
ICLR 2024, arXiv:2311.07025. rat-bptt, bptt, t-bptt and r-bptt differ in the window sampler only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import augment
from potstill.config import InnerConfig
from potstill.data import Split, sample
from potstill.derivatives import Batch, Differentiable, FlatModel, InMicroBatches, couples_batch
from potstill.inner import SGD, Adam, InnerOptimizer, InnerProblem, Leaves, MetaGradient, meta_gradient
from potstill.methods.base import Estimate, MethodState, Problem
from potstill.models import fresh
from potstill.registry import WINDOWS
from potstill.seeds import derive, generator
from potstill.windows import WindowSampler

RealPart = tuple[Tensor, augment.Draw, int]
"""Positions in the train split, how their images are augmented, and where the part starts in the real batch."""


def inner_optimizer(config: InnerConfig) -> InnerOptimizer:
    """The optimiser that the configuration names."""
    if config.inner_optimizer == "adam":
        return Adam(eps_placement=config.eps_placement)
    return SGD(config.momentum, config.weight_decay, config.lr_milestones, config.lr_decay)


@dataclass(frozen=True)
class RealLoss:
    """The mean cross-entropy on a part of the real batch."""

    loss: Differentiable
    train: Split
    classes: int

    def gradient(self, theta: Tensor, leaves: Leaves, part: RealPart) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        images, labels = self.train.take(part[0])
        batch = augment.apply(images, part[1]), F.one_hot(labels, self.classes).to(theta.dtype)
        return *self.loss.gradient(theta, batch, part[2]), {}


class Bptt:
    """The mean meta-gradient of one or more unrolls per outer step.

    Trajectories are independent: each has its own start, window, synthetic batches and, unless it is split, real batch.
    Trajectory 0 is what a run with one trajectory would do.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        outer = problem.config.outer
        self.sampler: WindowSampler = WINDOWS[outer.method](outer.unroll, outer.window)
        self.plan = problem.plan
        self.optimizer = inner_optimizer(problem.config.inner)

    def init(self) -> MethodState:
        return {"window": self.sampler.init()}

    def finish(self, state: MethodState) -> dict[str, Any]:
        return {}

    def estimate(self, leaves: Mapping[str, Tensor], state: MethodState, outer_step: int) -> Estimate:
        count = self.problem.config.outer.trajectories
        loss, grads, windows = 0.0, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}, []
        for trajectory in range(count):
            replay = (outer_step,) if trajectory == 0 else (outer_step, trajectory)
            burn_in, window = self.sampler.draw(state["window"], self.rng("window", replay), outer_step)
            result = self.unroll(leaves, replay, burn_in, window)
            windows.append((burn_in, window))
            loss += float(result.loss) / count
            for name, grad in result.leaves.items():
                grads[name] += grad / count
        after = {"window": self.sampler.update(state["window"], loss, float(grads["images"].norm()))}
        burn_ins, sizes = zip(*windows, strict=True)
        info: dict[str, Any] = {"burn_in": burn_ins, "window": sizes} if count > 1 else {"burn_in": burn_ins[0], "window": sizes[0]}
        if self.problem.compiled:  # it stays as it was at the start, unless shapes of batches change
            info["compilations"] = self.problem.compiled.compilations
        return Estimate(loss, grads, after, info)

    def rng(self, purpose: str, replay: tuple[int, ...], *more: int) -> torch.Generator:
        """A generator that follows from the seed, the purpose, and (outer step[, trajectory])."""
        return generator(self.problem.config.run.seed, purpose, *replay, *more)

    def unroll(self, leaves: Leaves, replay: tuple[int, ...], burn_in: int, window: int) -> MetaGradient:
        """One trajectory's meta-gradient; every draw follows from the seed and `replay`."""
        problem, seed, config = self.problem, self.problem.config.run.seed, self.problem.config
        network = fresh(problem.factory, derive(seed, "start", *replay), problem.device)
        model = FlatModel(network, str(config.run.precision))
        whole = couples_batch(network)
        real = problem.loss(model, lambda step: derive(seed, "outer dropout", *replay, step))
        if not whole:
            real = InMicroBatches(real, int(config.outer.micro_batch), filled=problem.compiled is not None)
        return meta_gradient(
            self.inner_problem(model, replay, whole=whole),
            leaves,
            {"lr": torch.tensor(config.inner.inner_lr, device=problem.device)},
            self.optimizer.init(model.theta),
            RealLoss(real, problem.train, problem.classes),
            self.real_parts(replay, whole=whole),
            burn_in=burn_in,
            window=window,
            keep=problem.keep,
        )

    def inner_problem(self, model: FlatModel, replay: tuple[int, ...], *, whole: bool) -> InnerProblem:
        """Training `model` on synthetic batches."""
        problem, config = self.problem, self.problem.config
        loss = problem.loss(model, lambda step: derive(config.run.seed, "dropout", *replay, step))

        def batch(leaves: Leaves, step: int) -> Batch:
            rng = self.rng("batch", replay, step)
            rows = self.plan.draw(rng)
            drawn = augment.draw(config.inner.augment, len(rows), rng)
            pairs = problem.batch(leaves, rows, drawn)
            return pairs if not whole else (torch.cat(pairs[::2]), torch.cat(pairs[1::2]))

        if not whole:
            loss = InMicroBatches(loss, int(config.inner.synthetic_micro_batch), filled=problem.compiled is not None)
        return InnerProblem(loss, batch, self.optimizer)

    def real_parts(self, replay: tuple[int, ...], *, whole: bool) -> Iterator[tuple[RealPart, float]]:
        """A trajectory's real batch in micro-batches with their weights; in one, if the network couples it."""
        outer, train = self.problem.config.outer, self.problem.train
        shared = outer.split_real_batch and outer.trajectories > 1
        rng = self.rng("real batch", replay[:1] if shared else replay)
        chosen = sample(train, outer.real_batch, rng)
        if shared:  # every trajectory makes the same draw and takes its share
            chosen = chosen[sum(replay[1:]) :: outer.trajectories]
            rng = self.rng("real batch share", replay)
        drawn = augment.draw(tuple(outer.real_augment), len(chosen), rng)
        for rows in torch.arange(len(chosen)).split(len(chosen) if whole else int(outer.micro_batch)):
            yield (chosen[rows], drawn.rows(rows), int(rows[0])), len(rows) / len(chosen)
