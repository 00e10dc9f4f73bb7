"""RaT-BPTT and its relatives: unroll the inner loop, differentiate a window of it.

Source: Algorithm 1 and equations (2) to (4) of Feng, Vedantam & Kempe, "Embarrassingly Simple Dataset Distillation",
ICLR 2024, arXiv:2311.07025. The methods of this family differ in the window sampler only (windows.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import augment
from potstill.data import Split
from potstill.derivatives import (
    Batch,
    Differentiable,
    ExactStart,
    FlatModel,
    InMicroBatches,
    couples_batch,
    cross_entropy,
)
from potstill.inner import SGD, Adam, InnerOptimizer, InnerProblem, Leaves, MetaGradient, Unrolled
from potstill.methods.base import Estimate, MethodState, Problem
from potstill.models import fresh
from potstill.registry import WINDOWS
from potstill.sections import InnerConfig
from potstill.seeds import derive, generator
from potstill.windows import WindowSampler

Replay = tuple[int, ...]
"""What draws follow from, beside the seed and their purpose: (outer step,), or (outer step, trajectory) after the first."""
RealPart = tuple[Tensor, augment.Draw, int, Tensor | None]
"""Positions in the train split, how their images are augmented, where the part starts in the real batch, and weights of its
examples, if they are not all 1."""


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
        positions, drawn, first, weights = part
        images, labels = self.train.take(positions)
        targets = F.one_hot(labels, self.classes).to(theta.dtype)
        if weights is not None:  # the cross-entropy is linear in its targets
            targets = targets * weights[:, None].to(targets)
        return *self.loss.gradient(theta, (augment.apply(images, drawn), targets), first), {}


@dataclass(frozen=True)
class Trajectory:
    """A trained network, whose real loss can be differentiated on one real batch after another."""

    method: "Bptt"
    unrolled: Unrolled
    objective: RealLoss
    whole: bool
    """Whether the network couples its batch."""

    def meta_gradient(self, replay: Replay) -> MetaGradient:
        """On the real batch of an outer step."""
        return self.unrolled.meta_gradient(self.objective, self.method.real_parts(replay, whole=self.whole))

    def of_samples(self, replay: Replay, samples: int, size: int, weights: Tensor) -> MetaGradient:
        """Of a weighted sum of losses, each the mean over one of `samples` samples of `size` real images.

        A batch of all of them is drawn and augmented as in an outer step and dealt out to the samples in order. Samples of
        weight 0 cost nothing.

        Args:
            replay: what the batch follows from.
            samples: how many.
            size: images in each.
            weights: (samples,), on the CPU.
        """
        problem, rng = self.method.problem, self.method.rng("real batch", replay)
        chosen = problem.sampler.draw(problem.train, samples * size, rng)
        drawn = augment.draw(tuple(problem.config.outer.real_augment), len(chosen), rng)
        rows = torch.nonzero(weights.repeat_interleave(size))[:, 0]
        micro = size if self.whole else int(problem.config.outer.micro_batch)

        def parts() -> Iterator[tuple[RealPart, float]]:
            for these in rows.split(micro) if len(rows) else ():
                yield (chosen[these], drawn.rows(these), int(these[0]), weights[these // size]), len(these) / size

        return self.unrolled.meta_gradient(self.objective, parts())


class Bptt:
    """The mean meta-gradient of one or more unrolls per outer step.

    Trajectories are independent: each has its own start, window, synthetic batches and, unless it is split, real batch.
    Trajectory 0 is what a run with one trajectory would do.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.sampler: WindowSampler = WINDOWS[problem.config.outer.method].of(problem.config)
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
            windows.append(self.window(state, replay, outer_step))
            result = self.trajectory(leaves, replay, *windows[-1]).meta_gradient(replay)
            loss += float(result.loss) / count
            for name, grad in result.leaves.items():
                grads[name] += grad if count == 1 else grad / count
        norms = grads["images"].flatten(1).norm(dim=1)
        after = {"window": self.sampler.update(state["window"], loss, float(norms.norm()))}
        burn_ins, sizes = zip(*windows, strict=True)
        info: dict[str, Any] = {"burn_in": burn_ins, "window": sizes} if count > 1 else {"burn_in": burn_ins[0], "window": sizes[0]}
        info["image_grad_norm"] = float(norms.sum() / (norms > 0).sum().clamp_min(1))  # of images that a batch held
        if self.problem.compiled:  # it stays as it was at the start, unless shapes of batches change
            info["compilations"] = self.problem.compiled.compilations
        return Estimate(loss, grads, after, info)

    def window(self, state: MethodState, replay: Replay, outer_step: int) -> tuple[int, int]:
        """(burn_in, window) of one trajectory."""
        return self.sampler.draw(state["window"], self.rng("window", replay), outer_step)

    def rng(self, purpose: str, replay: Replay, *more: int) -> torch.Generator:
        """A generator that follows from the seed, the purpose, and (outer step[, trajectory])."""
        return generator(self.problem.config.run.seed, purpose, *replay, *more)

    def trajectory(self, leaves: Leaves, replay: Replay, burn_in: int, window: int) -> Trajectory:
        """A fresh network trained on the leaves; its start and its synthetic batches follow from the seed and `replay`."""
        problem, seed, config = self.problem, self.problem.config.run.seed, self.problem.config
        network = fresh(problem.factory, derive(seed, "start", *replay), problem.device)
        model = FlatModel(network, str(config.run.precision))
        whole = couples_batch(network)
        real = problem.loss(model, lambda step: derive(seed, "outer dropout", *replay, step))
        if not whole:
            real = InMicroBatches(real, int(config.outer.micro_batch), filled=problem.compiled is not None)
        unrolled = Unrolled(
            self.inner_problem(model, replay, whole=whole),
            leaves,
            {"lr": torch.tensor(config.inner.inner_lr, device=problem.device)},
            self.optimizer.init(model.theta),
            burn_in=burn_in,
            window=window,
            keep=problem.keep,
        )
        return Trajectory(self, unrolled, RealLoss(real, problem.train, problem.classes), whole)

    def inner_problem(self, model: FlatModel, replay: Replay, *, whole: bool) -> InnerProblem:
        """Training `model` on synthetic batches."""
        problem, config = self.problem, self.problem.config

        def seed(step: int) -> int:
            return derive(config.run.seed, "dropout", *replay, step)

        loss = problem.loss(model, seed)
        if model.precision == "bfloat16":
            loss = ExactStart(loss, cross_entropy(FlatModel(model.module), seed))

        def batch(leaves: Leaves, step: int) -> Batch:
            rng = self.rng("batch", replay, step)
            rows = self.plan.draw(rng)
            drawn = augment.draw(config.inner.augment, len(rows), rng)
            pairs = problem.batch(leaves, rows, drawn)
            return pairs if not whole else (torch.cat(pairs[::2]), torch.cat(pairs[1::2]))

        if not whole:
            loss = InMicroBatches(loss, int(config.inner.synthetic_micro_batch), filled=problem.compiled is not None)
        return InnerProblem(loss, batch, self.optimizer)

    def real_parts(self, replay: Replay, *, whole: bool) -> Iterator[tuple[RealPart, float]]:
        """A trajectory's real batch in micro-batches with their weights; in one, if the network couples it."""
        outer = self.problem.config.outer
        shared = outer.split_real_batch and outer.trajectories > 1
        rng = self.rng("real batch", replay[:1] if shared else replay)
        chosen = self.problem.sampler.draw(self.problem.train, outer.real_batch, rng)
        if shared:  # every trajectory makes the same draw and takes its share
            chosen = chosen[sum(replay[1:]) :: outer.trajectories]
            rng = self.rng("real batch share", replay)
        drawn = augment.draw(tuple(outer.real_augment), len(chosen), rng)
        for rows in torch.arange(len(chosen)).split(len(chosen) if whole else int(outer.micro_batch)):
            yield (chosen[rows], drawn.rows(rows), int(rows[0]), None), len(rows) / len(chosen)
