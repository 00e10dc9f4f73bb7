"""What registered networks have in common: options, and how their parameters start.

Networks without a norm learn or fail by how they start: under torch's rule a signal falls to a
sixth of its power at each layer, under "he" it keeps it. Deep networks with a norm learn from few
images by how they start, too: at random their gradients in the images have next to nothing in
common, from "identity" on they do.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from potstill.config.options import option

Norm = Literal["instance", "batch", "group", "layer", "none"]
Initialisation = Literal["pytorch", "identity", "lecun", "he", "ntk"]
CUT = 2.0
"""Standard deviations at which lecun's normal distribution is cut off."""
LEFT = 0.87962566103423978
"""Standard deviation of what is left of a normal distribution of 1 that is cut off there."""
BIAS = 0.1
"""Standard deviation of biases with he and ntk."""
BESIDE = 0.3
"""Factor on torch's random weights where the identity is added to them."""


@dataclass(frozen=True)
class NetworkOptions:
    """Options of every registered network."""

    network_init: Initialisation = option(
        "pytorch",
        "weights at the start: pytorch, identity (of use to deep ones), lecun, he, ntk (docs)",
    )
    inner_width: int = option(
        0, "most --width of networks that the set is distilled with; 0: as those it is for", low=0
    )


@dataclass(frozen=True)
class NormedOptions(NetworkOptions):
    """Options of networks that have norms."""

    norm: Norm = option("instance", "instance, batch, group, layer or none")
    inner_norm: Norm | Literal["same"] = option(
        "same", "--norm while distilling; same: that of networks that the set is for"
    )


class Residual(nn.Module):
    """A network's part that adds `path` of its inputs to `shortcut` of them."""

    path: nn.Sequential

    @torch.no_grad()
    def begin_as_shortcut(self) -> None:
        """Let the path give 0 by its last layer with weights, a norm's scales if it has one."""
        last = [layer for layer in self.path if getattr(layer, "weight", None) is not None][-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


class Times(nn.Module):
    """A factor on a parameter: the network reads `factor` times what is learned."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, parameter: Tensor) -> Tensor:
        return self.factor * parameter


@torch.no_grad()
def initialised(network: nn.Module, rule: str) -> nn.Module:
    """Draw the weights and biases of a network's convolutions and linear layers anew.

    Args:
        network: freshly made; it is changed.
        rule: "pytorch": nothing is drawn. "lecun": weights from a normal distribution of variance
            1 / fan-in that is cut off at two standard deviations, biases 0, as Flax has it. "he":
            weights of variance 2 / fan-in, biases of 0.1^2, as in the kernels of KIP and RFAD.
            "ntk": the function of "he", whose parameters are all of variance 1 and multiplied in
            the network (Jacot et al. 2018, arXiv:1806.07572). "identity": torch's, but residual
            blocks begin as their shortcuts (Goyal et al. 2017, arXiv:1706.02677), and layers after
            the first of a plain stack as the identity and 0.3 times torch's weights, much like
            those of Zagoruyko & Komodakis 2017, arXiv:1706.00388.
    Returns:
        The network.
    """
    if rule == "identity":
        begin_as_identity(network)
    elif rule != "pytorch":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                DRAWN[rule](layer)
    return network


def begin_as_identity(network: Any) -> None:
    """Let residual blocks, or the layers of a plain stack after its first, pass inputs on."""
    for block in network.blocks:
        if isinstance(block, Residual):
            block.begin_as_shortcut()
    stack = [layer for layer in network.blocks if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in stack[1:]:
        add_identity(layer)


def add_identity(layer: nn.Conv2d | nn.Linear) -> None:
    """Add to a layer's weights those that pass input i on to outputs i, i + inputs and so on."""
    weight = layer.weight.mul_(BESIDE)
    outputs = torch.arange(weight.shape[0])
    middle = weight[..., weight.shape[2] // 2, weight.shape[3] // 2] if weight.dim() > 2 else weight
    middle[outputs, outputs % weight.shape[1]] += 1


def lecun(layer: Any) -> None:
    """Initialise a layer as Flax does."""
    std = fan_in(layer) ** -0.5 / LEFT
    nn.init.trunc_normal_(layer.weight, 0.0, std, -CUT * std, CUT * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def he(layer: Any) -> None:
    """Initialise a layer so that ReLU units keep the power of their inputs."""
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / fan_in(layer)))
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0.0, BIAS)


def ntk(layer: Any) -> None:
    """Initialise a layer likewise, with parameters of variance 1."""
    for name, factor in (("weight", math.sqrt(2 / fan_in(layer))), ("bias", BIAS)):
        if getattr(layer, name) is not None:
            nn.init.normal_(getattr(layer, name))
            parametrize.register_parametrization(layer, name, Times(factor))


DRAWN = {"lecun": lecun, "he": he, "ntk": ntk}


def fan_in(layer: Any) -> int:
    """Return how many numbers an output of a layer is a sum over."""
    return int(layer.weight[0].numel())
