"""A pool of networks that train on the set between the outer steps that they serve in.

FRePo and RCIG have one: networks of all ages take part in distilling. What is known of a place in
the pool is plain data in a method's state; a trained network's tensors are in it too, those of an
untrained one follow from the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from potstill.engine.flat import FlatModel, Statistics
from potstill.methods.base import Problem, State
from potstill.seeds import derive, global_seed

PLACES, USED, OF_PLACE, MOMENT = "networks", "used", "network {place}.", "state "
"""Names in a method's state: [born, age, steps trained] of each place, the place used last, tensors
of a place, and those that its optimiser moves.
"""


@dataclass(frozen=True)
class Trained:
    """A network's tensors: trainable parameters (P,), and the rest by name."""

    theta: Tensor
    constants: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Networks:
    """The networks of a problem as functions of their tensors."""

    problem: Problem

    def structure(self, statistics: Statistics) -> FlatModel:
        """Make the structure that all networks have."""
        problem = self.problem
        return FlatModel(problem.network("structure"), problem.networks.precision, statistics)

    @cached_property
    def evaluating(self) -> FlatModel:
        """The structure in evaluation mode."""
        return self.structure("read")

    @cached_property
    def training(self) -> FlatModel:
        """The structure in training, where batch norm takes statistics."""
        return self.structure("updated")

    def fresh(self, *replay: int) -> Trained:
        """Make a network; it follows from the seed and numbers."""
        made = FlatModel(self.problem.network("network", *replay), statistics="read")
        return Trained(made.theta, made.constants)


@dataclass(frozen=True)
class NetworkPool:
    """What a pool does with a method's state, which it never changes.

    Args:
        networks: that it is of.
        size: how many.
    """

    networks: Networks
    size: int

    def start(self, apart: int = 0) -> dict[str, Any]:
        """Return the state before the first outer step; ages are so many steps apart."""
        return {PLACES: [[-1, place * apart, 0] for place in range(self.size)], USED: -1}

    def drawn(self, state: State, step: int) -> dict[str, Any]:
        """Return the state with a place drawn for an outer step."""
        rng = self.networks.problem.rng("place", step)
        return {**state, USED: int(torch.randint(self.size, (), generator=rng))}

    def at(self, state: State, place: int) -> tuple[Trained, tuple[Tensor, ...]]:
        """Return the network at a place, and its optimiser's moments."""
        born, _, steps = state[PLACES][place]
        if not steps:
            made = self.networks.fresh(place, born + 1)
            return made, self.networks.problem.recipe.optimizer.init(made.theta)[1:]
        prefix = OF_PLACE.format(place=place)
        own = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        theta, *moments = (own.pop(name) for name in sorted(own) if name.startswith(MOMENT))
        return Trained(theta, own), tuple(moments)

    def renewed(self, state: State, place: int, step: int) -> dict[str, Any]:
        """Return the state with a fresh network at a place."""
        prefix = OF_PLACE.format(place=place)
        kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
        return {**kept, PLACES: put(state[PLACES], place, [step, 0, 0])}

    def trained(
        self,
        state: State,
        place: int,
        step: int,
        batch: Callable[[int], tuple[Tensor, Tensor]],
        count: int = 1,
        share: float = 1.0,
        rate: float | None = None,
    ) -> dict[str, Any]:
        """Return the state after the network at a place has trained, as the recipe says.

        Its loss is half the square error, a mean over examples.

        Args:
            state: the method's.
            place: of the network.
            step: number of the outer step.
            batch: number of a training step -> inputs, and targets around 0.
            count: of training steps.
            share: factor on the loss.
            rate: learning rate; None: the recipe's.
        """
        problem = self.networks.problem
        born, age, steps = state[PLACES][place]
        network, moments = self.at(state, place)
        theta, constants = network.theta, {k: v.clone() for k, v in network.constants.items()}
        rate = problem.recipe.lr if rate is None else rate
        lr = {"lr": torch.tensor(rate, dtype=theta.dtype, device=theta.device)}
        for number in range(count):
            images, targets = batch(number)
            leaf = theta.detach().requires_grad_()
            with global_seed(derive(problem.seed, "dropout", step, number), problem.device):
                outputs = self.networks.training(leaf, images, constants)
            loss = share * (outputs - targets).square().sum(1).mean() / 2
            (grad,) = torch.autograd.grad(loss, leaf)
            before = (theta.detach(), *moments)
            theta, *rest = problem.recipe.optimizer.step(before, grad, lr, steps + number)
            moments = tuple(rest)
        tensors = constants | {
            f"{MOMENT}{number}": moment for number, moment in enumerate((theta, *moments))
        }
        own = {OF_PLACE.format(place=place) + name: value for name, value in tensors.items()}
        known = [born, age + count, steps + count]
        return {**state, **own, PLACES: put(state[PLACES], place, known)}


def put(places: list[list[int]], place: int, value: list[int]) -> list[list[int]]:
    """Return a list with another value at a place."""
    return [value if index == place else one for index, one in enumerate(places)]
