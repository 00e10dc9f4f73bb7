"""RaT-BPTT and its relatives: unroll the inner loop, differentiate a window of it.

Source: Algorithm 1 and equations (2) to (4) of Feng, Vedantam & Kempe, "Embarrassingly Simple Dataset Distillation",
ICLR 2024, arXiv:2311.07025. rat-bptt, bptt, t-bptt and r-bptt differ in the window sampler only.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import augment
from potstill.config import InnerConfig
from potstill.data import sample
from potstill.inner import SGD, Adam, Batch, FlatModel, InnerOptimizer, InnerProblem, Leaves, couples_batch, meta_gradient
from potstill.methods.base import Estimate, MethodState, Problem
from potstill.models import fresh
from potstill.registry import WINDOWS
from potstill.seeds import derive, generator, global_seed
from potstill.windows import WindowSampler

RealPart = tuple[Tensor, augment.Draw, int]
"""Positions in the train split, how their images are augmented, and where the part starts in the real batch."""


def inner_optimizer(config: InnerConfig) -> InnerOptimizer:
    """The optimiser that the configuration names."""
    if config.inner_optimizer == "adam":
        return Adam(eps_placement=config.eps_placement)
    return SGD(config.momentum, config.weight_decay, config.lr_milestones, config.lr_decay)


class Bptt:
    """The meta-gradient of one unroll per outer step."""

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
        problem, seed = self.problem, self.problem.config.run.seed
        burn_in, window = self.sampler.draw(state["window"], generator(seed, "window", outer_step), outer_step)
        model = FlatModel(fresh(problem.factory, derive(seed, "start", outer_step), problem.device))

        def objective(theta: Tensor, _: Leaves, part: RealPart) -> Tensor:
            images, labels = problem.train.take(part[0])
            with global_seed(derive(seed, "outer dropout", outer_step, part[2]), problem.device):
                return F.cross_entropy(model(theta, augment.apply(images, part[1])), labels)

        result = meta_gradient(
            self.inner_problem(model, outer_step),
            leaves,
            {"lr": torch.tensor(problem.config.inner.inner_lr, device=problem.device)},
            self.optimizer.init(model.theta),
            objective,
            self.real_parts(outer_step, whole=couples_batch(model.module)),
            burn_in=burn_in,
            window=window,
        )
        loss, norm = float(result.loss), float(result.leaves["images"].norm())
        after = {"window": self.sampler.update(state["window"], loss, norm)}
        return Estimate(loss, result.leaves, after, {"burn_in": burn_in, "window": window})

    def inner_problem(self, model: FlatModel, outer_step: int) -> InnerProblem:
        """Training `model` on synthetic batches; every draw follows from (seed, outer step, inner step)."""
        problem, seed = self.problem, self.problem.config.run.seed

        def batch(leaves: Leaves, step: int) -> Batch:
            rng = generator(seed, "batch", outer_step, step)
            rows = self.plan.draw(rng)
            drawn = augment.draw(problem.config.inner.augment, len(rows), rng)
            rows = rows.to(problem.device)
            both = {**problem.fixed, **leaves}
            return augment.apply(both["images"][rows], drawn), both["targets"][rows]

        def loss(theta: Tensor, batch: Batch, step: int) -> Tensor:
            with global_seed(derive(seed, "dropout", outer_step, step), problem.device):
                return F.cross_entropy(model(theta, batch[0]), batch[1])

        return InnerProblem(loss, batch, self.optimizer)

    def real_parts(self, outer_step: int, *, whole: bool) -> Iterator[tuple[RealPart, float]]:
        """The real batch of an outer step in micro-batches with their weights; in one, if the network couples it."""
        outer = self.problem.config.outer
        rng = generator(self.problem.config.run.seed, "real batch", outer_step)
        chosen = sample(self.problem.train, outer.real_batch, rng)
        drawn = augment.draw(tuple(outer.real_augment), len(chosen), rng)
        for rows in torch.arange(len(chosen)).split(len(chosen) if whole else int(outer.micro_batch)):
            yield (chosen[rows], drawn.rows(rows), int(rows[0])), len(rows) / len(chosen)
