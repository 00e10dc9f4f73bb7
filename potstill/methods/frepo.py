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
from potstill.engine.flat import FlatModel
from potstill.engine.ridge import centred
from potstill.engine.unroll import Leaves
from potstill.methods.base import Estimate, Examples, State
from potstill.methods.features import FeatureOptions, FeatureRegression, Trained
from potstill.seeds import derive, global_seed

PLACES, USED, OF_PLACE, MOMENT = "networks", "used", "network {place}.", "state "
"""Names in a method's state: [born, age, steps trained] of each place, the place used last, tensors
of a place, and those that its optimiser moves.
"""
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
        count, life = self.options.networks, self.options.network_life
        places = [[-1, place * (life // count), 0] for place in range(count)]
        return {PLACES: places, USED: -1}, {}

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        found = super().estimate(examples, learned, state, step)
        if step == 0 and examples.learn_targets and not examples.frozen:
            scaled = scaled_labels(examples.targets)
            if scaled is not None:
                grads = {name: grad for name, grad in found.grads.items() if name != "targets"}
                found = replace(found, grads=grads, values={"targets": scaled})
        return found

    def networks(self, examples: Examples, state: State, step: int) -> tuple[list[Trained], State]:
        after = dict(state) if state[USED] < 0 else self.trained(examples, state, step)
        place = int(
            torch.randint(self.options.networks, (), generator=self.problem.rng("place", step))
        )
        after[USED] = place
        return [self.at(after, place)[0]], after

    @cached_property
    def in_training(self) -> FlatModel:
        """The structure of the networks in training, where batch norm takes statistics."""
        return self.structure("updated")

    def at(self, state: State, place: int) -> tuple[Trained, tuple[Tensor, ...]]:
        """Return the network at a place, and its optimiser's moments."""
        born, _, steps = state[PLACES][place]
        if not steps:
            made = self.fresh(place, born + 1)
            return made, self.problem.recipe.optimizer.init(made.theta)[1:]
        prefix = OF_PLACE.format(place=place)
        own = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        theta, *moments = (own.pop(name) for name in sorted(own) if name.startswith(MOMENT))
        return Trained(theta, own), tuple(moments)

    def trained(self, examples: Examples, state: State, step: int) -> dict[str, Any]:
        """Return the state after the network that was used last has trained for a step on the set.

        One that is old enough gives way to a fresh one instead.
        """
        place = state[USED]
        born, age, steps = state[PLACES][place]
        prefix = OF_PLACE.format(place=place)
        if age > self.options.network_life:
            after = {name: value for name, value in state.items() if not name.startswith(prefix)}
            return {**after, PLACES: put(state[PLACES], place, [step, 0, 0])}
        network, moments = self.at(state, place)
        network, moments = self.one_step(network, moments, steps, examples, step)
        tensors = dict(network.constants)
        for number, moment in enumerate((network.theta, *moments)):
            tensors[f"{MOMENT}{number}"] = moment
        own = {prefix + name: value for name, value in tensors.items()}
        return {**state, **own, PLACES: put(state[PLACES], place, [born, age + 1, steps + 1])}

    def one_step(
        self,
        network: Trained,
        moments: tuple[Tensor, ...],
        count: int,
        examples: Examples,
        step: int,
    ) -> tuple[Trained, tuple[Tensor, ...]]:
        """Train a network for one step on the set, by half the square error, as the recipe says.

        Args:
            network: as it is.
            moments: its optimiser's.
            count: of steps that it has trained.
            examples: the distilled set.
            step: number of the outer step.
        """
        problem = self.problem
        images, targets = examples.images.detach(), centred(examples.targets.detach())
        if len(images) >= MOST:
            rng = problem.rng("training", step)
            rows = torch.randperm(len(images), generator=rng)[:MOST].to(images.device)
            images, targets = images[rows], targets[rows]
        constants = {name: value.clone() for name, value in network.constants.items()}
        theta = network.theta.detach().requires_grad_()
        with global_seed(derive(problem.seed, "dropout", step), problem.device):
            outputs = self.in_training(theta, images, constants)
        loss = (outputs - targets).square().sum(1).mean() / 2
        (grad,) = torch.autograd.grad(loss, theta)
        recipe = problem.recipe
        lr = {"lr": torch.tensor(recipe.lr, dtype=theta.dtype, device=theta.device)}
        moved, *rest = recipe.optimizer.step((theta.detach(), *moments), grad, lr, count)
        return Trained(moved, constants), tuple(rest)

    def loss(self, predicted: Tensor, labels: Tensor, learned: Leaves) -> Tensor:
        wanted = centred(self.problem.real.one_hot(labels)).to(predicted)
        return (predicted - wanted).square().sum() / 2

    def beside(self, targets: Tensor) -> Tensor:
        if not targets.requires_grad:
            return targets.new_zeros(())
        first, second = targets.topk(2, 1).values.unbind(1)
        return -(first - second).clamp_max(1 / targets.shape[1]).mean()

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


def put(places: list[list[int]], place: int, value: list[int]) -> list[list[int]]:
    """Return a list with another value at a place."""
    return [value if index == place else one for index, one in enumerate(places)]
