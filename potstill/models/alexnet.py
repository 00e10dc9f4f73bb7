"""AlexNet for small images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.config.options import option
from potstill.data.splits import Shape
from potstill.models.common import NormedOptions
from potstill.models.convnet import convolution, least_side
from potstill.models.vgg import check_small

PLAN = ((5, 2, True), (5, 3, True), (3, 4, False), (3, 3, False), (3, 3, True))
"""Of each convolution: kernel, channels in halves of the width, whether a 2 x 2 pool follows."""


@dataclass(frozen=True)
class AlexNetOptions(NormedOptions):
    """Options of the network."""

    width: int = option(128, "channels of the first convolution", low=1, high=2**20)


class AlexNet(nn.Module):
    """Five convolutions, each with norm and ReLU, three of them with a pool, then one linear layer.

    Pools that would leave a norm too few pixels are left out, so that any image of at least 4 x 4
    fits.

    Args:
        shape: (C, H, W) of an input.
        classes: number of outputs.
        width: channels of the first convolution; the others have 3/2, 2, 3/2 and 3/2 times as many.
        norm: "instance" (affine, as in the paper), "batch", "group" (8 groups), "layer" or "none".
    Source: Krizhevsky et al. 2012, in the form for small images that the dataset-distillation
        literature uses (Zhao & Bilen 2021): stride 1, one linear layer; table 3 of Feng et al.
        2024, with a norm after each convolution.
    """

    Options = AlexNetOptions
    kinds = ("image",)

    def __init__(self, shape: Shape, classes: int, width: int = 128, norm: str = "instance"):
        super().__init__()
        channels, *sides = shape
        least = least_side(shape)
        layers: list[nn.Module] = []
        for index, (kernel, halves, pooled) in enumerate(PLAN):
            wide = halves * width // 2
            layers += [*convolution(channels, wide, norm, kernel), nn.ReLU()]
            channels = wide
            if pooled and min(sides) // 2 >= (1 if index == len(PLAN) - 1 else least):
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels * sides[0] * sides[1], classes)

    @staticmethod
    def check(shape: Shape, norm: str = "instance", width: int = 128) -> None:
        """Raise an InputError if the images are too small or the width does not fit the norm."""
        check_small("alexnet", shape, norm, width, multiple=16)  # so that 3/2 of it is one of 8

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads: (B, 3/2 width h w)."""
        return torch.flatten(self.blocks(inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]
