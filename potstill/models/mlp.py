"""A fully connected network."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from potstill.config.options import Auto, option
from potstill.data.splits import Shape
from potstill.models.common import NetworkOptions


@dataclass(frozen=True)
class MLPOptions(NetworkOptions):
    """Options of the network."""

    width: int = option(128, "units of every hidden layer", low=1, high=2**20)
    depth: int | Auto = option("auto", "hidden layers; auto: 2", low=1, high=1000)

    def resolved(self, sizes: Any) -> Self:
        """Replace "auto" by 2 hidden layers."""
        return replace(self, depth=2 if self.depth == "auto" else self.depth)


class MLP(nn.Module):
    """`depth` layers of `width` ReLU units, then one linear layer.

    Args:
        shape: (C, H, W) of an input, which is flattened, or (d,).
        classes: number of outputs.
        width: units of every hidden layer.
        depth: hidden layers; "auto" is 2.
    """

    Options = MLPOptions

    def __init__(self, shape: Shape, classes: int, width: int = 128, depth: int | str = "auto"):
        super().__init__()
        layers: list[nn.Module] = []
        units = math.prod(shape)
        for _ in range(2 if depth == "auto" else int(depth)):
            layers += [nn.Linear(units, width), nn.ReLU()]
            units = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(units, classes)

    @staticmethod
    def check(shape: Shape, width: int = 128, depth: int | str = "auto") -> None:
        """Accept every shape."""

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads: (B, width)."""
        return self.blocks(torch.flatten(inputs, 1))  # type: ignore[no-any-return]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]
