"""FRePo: Zhou, Nezhadarya & Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS
2022, arXiv:2206.00719.

In each outer step a ridge regression on features of one network of a pool predicts a real batch;
the distilled images and labels follow the gradient of

    mean over t of | P(x_t) - y_t |^2 / 2  -  mean over s of min(top1(y_s) - top2(y_s), 1 / K),

y_t being one-hot less 1 / K; the second term keeps a label's largest entry ahead. The network does
not learn from it, and the gradient does not pass through its training. Afterwards it trains for
one step on the set, and one that has trained for long enough gives way to a fresh one: networks of
all ages take part.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.config.options import option
from potstill.distilled.recipes import Recipe
from potstill.engine.ridge import centred
from potstill.engine.unroll import Leaves
from potstill.methods.base import Estimate, Examples, State
from potstill.methods.features import FeatureOptions, FeatureRegression
from potstill.methods.network_pool import PLACES, USED, NetworkPool, Trained

AS_THEY_ARE = 10
"""Classes with which labels start one-hot."""
MOST = 1000
"""Distilled examples that a network of the pool trains on at a step; of more, some at random."""


@dataclass(frozen=True)
class FrepoOptions(FeatureOptions):
    """Options of FRePo."""

    networks: int = option(10, "in the pool", low=1)
    network_life: int = option(
        100, "steps that a network trains on the set before a fresh one takes its place", low=1
    )


class Frepo(FeatureRegression):
    """FRePo; networks start at ages that are spread evenly, none of them trained."""

    Options: ClassVar[type] = FrepoOptions
    options: FrepoOptions
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "learn_labels": True,
        "norm": "none",
        "inner_norm": "batch",
        "network_init": "lecun",
        "inner_lr": 3e-4,
        "outer_optimizer": "lamb",
        "outer_lr": 3e-3,  # published: a tenth, for 500,000 steps
        "outer_schedule": "cosine-to-tenth",
        "clip": 0.0,
        "real_batch": 1024,
        "precision": "float32",
        "steps": 2000,
    }
    step_words: ClassVar[str] = (
        "Each outer step has a regression on a network's features of the synthetic {noun}s predict "
        "real training {noun}s, and changes the synthetic ones so that it errs less."
    )
    loss_words: ClassVar[str] = (
        "The square error of a regression on the synthetic {noun}s, on real training {noun}s, "
        "halved, less how far the learned labels' largest entries are ahead. Lower is better."
    )

    def start(self) -> tuple[State, dict[str, Any]]:
        return self.pool.start(self.options.network_life // self.options.networks), {}

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        found = super().estimate(examples, learned, state, step)
        if step == 0 and examples.learn_targets and not examples.frozen:
            scaled = scaled_labels(examples.targets)
            if scaled is not None:
                grads = {name: grad for name, grad in found.grads.items() if name != "targets"}
                found = replace(found, grads=grads, values={"targets": scaled})
        return found

    @cached_property
    def pool(self) -> NetworkPool:
        """The pool."""
        return NetworkPool(self.of, self.options.networks)

    def networks(self, examples: Examples, state: State, step: int) -> tuple[list[Trained], State]:
        after = self.pool.drawn(self.trained(examples, state, step), step)
        return [self.pool.at(after, after[USED])[0]], after

    def trained(self, examples: Examples, state: State, step: int) -> State:
        """Return the state after the network that was used last has trained for a step on the set.

        One that is old enough gives way to a fresh one instead.
        """
        if (place := state[USED]) < 0:
            return state
        if state[PLACES][place][1] > self.options.network_life:
            return self.pool.renewed(state, place, step)

        def batch(number: int) -> tuple[Tensor, Tensor]:
            images, targets = examples.images.detach(), centred(examples.targets.detach())
            if len(images) < MOST:
                return images, targets
            rng = self.problem.rng("training", step)
            rows = torch.randperm(len(images), generator=rng)[:MOST].to(images.device)
            return images[rows], targets[rows]

        return self.pool.trained(state, place, step, batch)

    def loss(self, predicted: Tensor, labels: Tensor, learned: Leaves) -> Tensor:
        wanted = centred(self.problem.real.one_hot(labels)).to(predicted)
        return (predicted - wanted).square().sum() / 2

    def beside(self, targets: Tensor) -> Tensor:
        return -ahead(targets, 1 / targets.shape[1])

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        return replace(recipe, learner="network-mse")

    @classmethod
    def words(cls, options: FrepoOptions) -> list[tuple[str, str]]:
        return [
            ("Networks", f"a pool of {options.networks}, each for {options.network_life} steps"),
            ("Ridge", f"{options.ridge:g}"),
        ]


def scaled_labels(targets: Tensor) -> Tensor | None:
    """Return one-hot targets (n, K) as FRePo starts: divided by sqrt(K / 10) around 1 / K.

    None if that changes nothing, or they are not one-hot any more.
    """
    count = targets.shape[1]
    hard = bool((targets.amax(1) == 1).all() & (targets.sum(1) == 1).all())
    if count == AS_THEY_ARE or not hard:
        return None
    return centred(targets) / math.sqrt(count / AS_THEY_ARE) + 1 / count


def ahead(targets: Tensor, most: float) -> Tensor:
    """Return how far the largest entries of learned targets (n, K) are ahead, up to a bound.

    It is a mean, and 0 of targets that are not learned.
    """
    if not targets.requires_grad:
        return targets.new_zeros(())
    first, second = targets.topk(2, 1).values.unbind(1)
    return (first - second).clamp_max(most).mean()
