"""VGG-11 for small images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.config.options import option
from potstill.data.splits import Shape
from potstill.errors import InputError
from potstill.models.common import NormedOptions
from potstill.models.convnet import SMALLEST_NORM_SIDE, convolution, least_side

PLAN = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Stages of convolutions: channels in multiples of the width; a 2 x 2 max pool ends each stage."""


@dataclass(frozen=True)
class VGG11Options(NormedOptions):
    """Options of the network."""

    width: int = option(64, "channels of the first convolution", low=1, high=2**20)


class VGG11(nn.Module):
    """Eight 3 x 3 convolutions with norm and ReLU in five stages, then one linear layer.

    Pools that would leave a norm too few pixels are left out, so that any image of at least 4 x 4
    fits.

    Args:
        shape: (C, H, W) of an input.
        classes: number of outputs.
        width: channels of the first convolution; later ones have 2, 4 and 8 times as many.
        norm: "instance" (affine, as in the paper), "batch", "group" (8 groups), "layer" or "none".
    Source: configuration A of Simonyan & Zisserman 2015, with a norm after each convolution and
        without its two hidden linear layers, as networks for small images have it; table 3 of Feng
        et al. 2024.
    """

    Options = VGG11Options
    kinds = ("image",)

    def __init__(self, shape: Shape, classes: int, width: int = 64, norm: str = "instance"):
        super().__init__()
        channels, *sides = shape
        least = least_side(shape)
        layers: list[nn.Module] = []
        for stage, multiples in enumerate(PLAN):
            for multiple in multiples:
                layers += [*convolution(channels, multiple * width, norm), nn.ReLU()]
                channels = multiple * width
            if min(sides) // 2 >= (1 if stage == len(PLAN) - 1 else least):
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels * sides[0] * sides[1], classes)

    @staticmethod
    def check(shape: Shape, norm: str = "instance", width: int = 64) -> None:
        """Raise an InputError if the images are too small or the width does not fit the norm."""
        check_small("vgg11", shape, norm, width)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads: (B, 8 width h w)."""
        return torch.flatten(self.blocks(inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]


def check_small(name: str, shape: Shape, norm: str, width: int, multiple: int = 8) -> None:
    """Raise an InputError if the images are too small or the width does not fit the norm.

    Args:
        name: the model's name, for messages.
        shape: (C, H, W) of an image, at least 4 x 4 pixels.
        norm: "instance", "batch", "group", "layer" or "none".
        width: channels of the first convolution.
        multiple: what group norm needs `width` to be a multiple of.
    """
    if min(shape[1:]) < SMALLEST_NORM_SIDE:
        raise InputError(
            f"model {name} needs images of at least 4 x 4 pixels, got {shape[1]} x {shape[2]}; use "
            "--model mlp"
        )
    if norm == "group" and width % multiple:
        raise InputError(f"width must be a multiple of {multiple} for group norm, got {width}")
