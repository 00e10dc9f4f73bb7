"""The ConvNet of the dataset-distillation literature."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from potstill.config.options import Auto, option
from potstill.data.splits import Shape
from potstill.errors import InputError
from potstill.models.common import NetworkOptions, Norm

SMALLEST_NORM_SIDE = 4
BETWEEN = "between"
"""The norm of FRePo's networks: batch norm before every convolution but the first."""
SHARPNESS = 60
"""Of softplus in place of ReLU."""
KEPT = 0.1
"""Of running statistics, FRePo's networks keep this share at each step."""


@dataclass(frozen=True)
class ConvNetOptions(NetworkOptions):
    """Options of the network."""

    width: int = option(128, "channels of the first convolution", low=1, high=2**20)
    depth: int | Auto = option("auto", "blocks; auto: 3, or what the image size allows", low=1)
    norm: Norm | Literal["between"] = option(
        "instance",
        "instance, batch, group, layer, none; between: batch, before blocks 2 on",
    )
    inner_norm: Norm | Literal["between", "same"] = option(
        "same", "--norm while distilling; same: that of networks that the set is for"
    )
    inner_activation: Literal["relu", "softplus"] = option(
        "relu", "while distilling: relu, or softplus(60 x) / 60, which is smooth"
    )

    def resolved(self, sizes: Any) -> Self:
        """Replace every "auto" for inputs of `sizes.shape`."""
        depth = auto_depth(sizes.shape) if self.depth == "auto" else self.depth
        return replace(self, depth=depth)


class ConvNet(nn.Module):
    """`depth` blocks of 3 x 3 convolution, norm, ReLU and average pool, and a linear layer.

    Args:
        shape: (C, H, W) of an input.
        classes: number of outputs.
        width: channels of every convolution.
        depth: number of blocks; "auto" is `auto_depth`.
        norm: "instance" (affine, as in the paper), "batch", "group" (8 groups), "layer", "none", or
            "between", see `BETWEEN`.
        inner_activation: "relu", or "softplus" with a sharpness of 60, as in RCIG.
    Source: Gidaris & Komodakis 2018; as used in Feng et al. 2024, section 4: width 128, depth 3 for
        32 and 4 for 64 pixels.
    """

    Options = ConvNetOptions
    kinds = ("image",)
    widest = 1
    """Most channels of a convolution, in multiples of the width; each block doubles up to it."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: int = 128,
        depth: int | str = "auto",
        norm: str = "instance",
        inner_activation: str = "relu",
    ):
        super().__init__()
        channels, height, width_px = shape
        layers: list[nn.Module] = []
        for block in range(auto_depth(shape) if depth == "auto" else int(depth)):
            wide = width * min(2**block, self.widest)
            if norm == BETWEEN and block:
                layers.append(nn.BatchNorm2d(channels, momentum=1 - KEPT))
            smooth = inner_activation == "softplus"
            active = nn.Softplus(SHARPNESS) if smooth else nn.ReLU()
            layers += [*convolution(channels, wide, norm), active, nn.AvgPool2d(2)]
            channels, height, width_px = wide, height // 2, width_px // 2
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels * height * width_px, classes)

    @staticmethod
    def check(
        shape: Shape,
        depth: int | str = "auto",
        norm: str = "instance",
        width: int = 128,
        inner_activation: str = "relu",
    ) -> None:
        """Raise an InputError if the images are too small for the depth.

        Args:
            shape: (C, H, W) of an image.
            depth: number of blocks, or "auto".
            norm: "instance", "batch", "group", "layer", "none" or "between".
            width: channels of every convolution.
            inner_activation: either is good.
        """
        side = min(shape[1:])
        if side < SMALLEST_NORM_SIDE:
            raise InputError(
                f"model convnet needs images of at least 4 x 4 pixels, got {shape[1]} x "
                f"{shape[2]}; use --model mlp"
            )
        limit = deepest(side) if norm == "instance" else side.bit_length() - 1
        if depth != "auto" and int(depth) > limit:
            why = ""
            if norm == "instance":
                why = " (an instance norm over fewer than 4 x 4 pixels loses the signal)"
            raise InputError(
                f"depth must be at most {limit} for images of {shape[1]} x {shape[2]} pixels with "
                f"{norm} norm{why}, got {depth}; leave it at auto"
            )
        if norm == "group" and width % 8:
            raise InputError(f"width must be a multiple of 8 for group norm, got {width}")

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads: (B, width * h * w)."""
        return torch.flatten(self.blocks(inputs), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))  # type: ignore[no-any-return]


class WideConvNet(ConvNet):
    """A ConvNet with 2 times the channels in its second block and 4 times in later ones.

    With the default width they are 128, 256, 512.

    Source: "transfer to wide" in table 1 of Feng et al. 2024.
    """

    widest = 4


def convolution(
    channels: int, width: int, norm: str, kernel: int = 3, stride: int = 1
) -> list[nn.Module]:
    """Return a convolution that keeps the size but for its stride, and its norm.

    A bias before a norm that subtracts the channel's mean has no effect on the function, and is
    left out.

    Args:
        channels: input channels.
        width: output channels.
        norm: "instance", "batch", "group", "layer" or "none".
        kernel: side of the kernel, in pixels.
        stride: step of the kernel, in pixels.
    """
    bias = norm not in ("instance", "batch")
    return [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=bias),
        make_norm(norm, width),
    ]


def least_side(shape: Shape) -> int:
    """Return the fewest pixels on a side that a norm may see in VGG-11, AlexNet or ResNet-18.

    It is 2 for images of 32 pixels and more, for which these networks were made, and 4 for smaller
    ones, as in the ConvNet.
    """
    return 2 if min(shape[1:]) >= 32 else SMALLEST_NORM_SIDE


def auto_depth(shape: Shape) -> int:
    """Return the number of blocks: 3 up to 32 pixels, 4 for 64, 5 for 128.

    It is less where a norm would see less than 4 x 4 pixels. Source: section 4 of the paper.
    """
    side = min(shape[1:])
    return max(1, min(max(3, side.bit_length() - 3), deepest(side)))


def deepest(side: int) -> int:
    """Return the most blocks in which every norm sees at least 4 x 4 pixels.

    An instance norm over fewer loses the signal.
    """
    return max(1, side.bit_length() - SMALLEST_NORM_SIDE.bit_length() + 1)


def make_norm(name: str, width: int) -> nn.Module:
    """Return a normalisation over `width` channels.

    Group norm with one channel a group is an affine instance norm.
    """
    if name == "batch":
        return nn.BatchNorm2d(width)
    groups = {"instance": width, "group": 8, "layer": 1}
    return nn.GroupNorm(groups[name], width) if name in groups else nn.Identity()
