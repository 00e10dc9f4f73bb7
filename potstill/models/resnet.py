"""ResNet-18 for small images."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.config.options import option
from potstill.data.splits import Shape
from potstill.models.common import NormedOptions, Residual
from potstill.models.convnet import convolution, least_side
from potstill.models.vgg import check_small

STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))
"""Of each stage of two blocks: channels in multiples of the width, stride of the first block."""


class Block(Residual):
    """Two 3 x 3 convolutions with norm, and a shortcut around them (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, width: int, stride: int, norm: str):
        super().__init__()
        self.path = nn.Sequential(
            *convolution(channels, width, norm, stride=stride),
            nn.ReLU(),
            *convolution(width, width, norm),
        )
        same = stride == 1 and channels == width
        self.shortcut = nn.Sequential(
            *([] if same else convolution(channels, width, norm, kernel=1, stride=stride))
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.path(inputs) + self.shortcut(inputs))


@dataclass(frozen=True)
class ResNet18Options(NormedOptions):
    """Options of the network."""

    width: int = option(64, "channels of the first convolution", low=1, high=2**20)


class ResNet18(nn.Module):
    """A 3 x 3 convolution, four stages of two residual blocks, a mean over pixels, a linear layer.

    Strides that would leave a norm too few pixels are left out.

    Args:
        shape: (C, H, W) of an input.
        classes: number of outputs.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        norm: "instance" (affine, as in the paper), "batch", "group" (8 groups), "layer" or "none".
    Source: He et al. 2016, table 1, with the stem for images of 32 pixels; table 3 of Feng et al.
        2024.
    """

    Options = ResNet18Options
    kinds = ("image",)

    def __init__(self, shape: Shape, classes: int, width: int = 64, norm: str = "instance"):
        super().__init__()
        layers: list[nn.Module] = [*convolution(shape[0], width, norm), nn.ReLU()]
        channels, side = width, min(shape[1:])
        for multiple, stride in STAGES:
            stride = stride if side // stride >= least_side(shape) else 1
            layers += [
                Block(channels, multiple * width, stride, norm),
                Block(multiple * width, multiple * width, 1, norm),
            ]
            channels, side = multiple * width, side // stride
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    @staticmethod
    def check(shape: Shape, norm: str = "instance", width: int = 64) -> None:
        """Raise an InputError if the images are too small or the width does not fit the norm."""
        check_small("resnet18", shape, norm, width)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads: (B, 8 width)."""
        return self.blocks(inputs).mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]
