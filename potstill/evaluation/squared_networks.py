"""Networks that learn by squared error in ways of their own: less their start, or at a rate of
their own.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from potstill.errors import InputError
from potstill.evaluation.learners import SquaredNetwork
from potstill.evaluation.training import Batches, Predict, SetBatches, train_network
from potstill.models import fresh
from potstill.seeds import generator

KERNEL_EXAMPLES, ITERATIONS = 50, 50
"""Examples at which a tangent kernel is taken; steps of the power iteration for its eigenvalue."""


class Centred(nn.Module):
    """What a network answers less what it answered at its start."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.start = copy.deepcopy(network).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the difference."""
        difference: Tensor = self.network(inputs) - self.start(inputs)
        return difference


@dataclass(frozen=True)
class CentredNetwork(SquaredNetwork):
    """A network less its start, trained by squared error on scaled targets.

    With y targets less 1 / K and a scale s it lowers the mean of (f - f_start - s y)^2 / s^2. Small
    networks that are made for kernels need both; without them such sets give little.

    Source: RFAD, Loo et al. 2022, arXiv:2210.12067, without its weight penalty. Of sets of more
        than 513 examples its code does not scale the targets, ours does.
    """

    words: ClassVar[str] = "network less its start, squared error on scaled targets"

    def course(self, batches: Batches, lengths: Sequence[int], seed: int) -> Iterator[Predict]:
        scale = self.recipe.label_scale

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return 2 * self.loss(outputs / scale, targets)

        module = Centred(fresh(self.factory, seed, self.device))
        return train_network(module, batches, self.recipe, lengths, seed, loss)


@dataclass(frozen=True)
class StableNetwork(SquaredNetwork):
    """A network trained by squared error at a share of the largest stable learning rate.

    That is 2 (1 + m) n K / l for momentum m, l being the largest eigenvalue of the tangent kernel
    of the fresh network's K outputs at n examples, at most 50; the recipe's rate is the share.

    Source: as KIP's sets are measured, Nguyen, Novak, Xiao & Lee 2021, arXiv:2107.13034.
    """

    words: ClassVar[str] = "network, squared error at the largest stable rate"

    def course(self, batches: Batches, lengths: Sequence[int], seed: int) -> Iterator[Predict]:
        if not isinstance(batches, SetBatches):
            raise InputError(
                "the learner network-stable finds its rate by the examples of a set; leave the "
                "baseline full out"
            )
        module = fresh(self.factory, seed, self.device)
        chosen = torch.randperm(len(batches.images), generator=generator(seed, "kernel"))
        some = batches.images[chosen[:KERNEL_EXAMPLES].to(batches.images.device)]
        momentum = getattr(self.recipe.optimizer, "momentum", 0.0)
        rate = self.recipe.lr * stable_rate(module, some, momentum)
        recipe = replace(self.recipe, lr=rate)
        return train_network(module, batches, recipe, lengths, seed, self.loss)


def stable_rate(module: nn.Module, inputs: Tensor, momentum: float) -> float:
    """Return the largest learning rate at which SGD on half the mean square of errors is stable.

    Args:
        module: a network, as it is.
        inputs: (n, ...) examples.
        momentum: of SGD.
    """
    training = module.training
    module.eval()
    answers: Tensor = module(inputs)
    module.train(training)
    parameters = [one for one in module.parameters() if one.requires_grad]
    # What is pulled back is linear in `any_`, so that its derivative there pushes forward.
    any_ = torch.zeros_like(answers, requires_grad=True)
    pulled = torch.autograd.grad(answers, parameters, any_, create_graph=True)
    along = torch.randn(answers.shape, generator=generator(0, "kernel")).to(answers)
    for _ in range(ITERATIONS):
        along = along / along.norm()
        back = torch.autograd.grad(answers, parameters, along, retain_graph=True)
        (along,) = torch.autograd.grad(pulled, any_, back, retain_graph=True)
    largest = float(along.norm())
    return 2 * (1 + momentum) * answers.numel() / largest
