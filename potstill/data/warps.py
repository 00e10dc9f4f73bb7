"""Affine warps of images by bilinear sampling, with a transpose that adds in the same order always.

On CUDA torch's own derivative of a warp adds in the order in which threads arrive, so that equal
seeds gave unequal bytes, and none of its versions for any order is fast. Here each pixel of the
image gathers what it was read for: the points that read it are at most REACH pixels around the one
that the inverse map gives.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 1
"""Integer points around the nearest one, on each axis. It is enough for maps whose inverse takes no
square of 2 x 2 pixels beyond one of 3 x 3: turns by up to 30 degrees, stretches by up to 1.5.
"""


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at the affine grid of `matrices` (B, 2, 3), 0 outside.

    The maps must be as REACH says, or the derivative on CUDA is not theirs.
    """
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    if images.device.type == "cuda" and images.requires_grad:
        repeatable: Tensor = Sampled.apply(images, grid, matrices)  # type: ignore[no-untyped-call]
        return repeatable
    return sampled(images, grid)


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images at the points of `grid` (B, H, W, 2), bilinear, zero outside."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def gathered(cotangent: Tensor, grid: Tensor, matrices: Tensor) -> Tensor:
    """Apply the transpose of `sampled` at the affine grid of `matrices`: sum_q hat(u(q) - p) y(q).

    Args:
        cotangent: (B, C, H, W), y.
        grid: (B, H, W, 2) the places u(q) at which pixel q of the output was read.
        matrices: (B, 2, 3) that made it.
    Returns:
        (B, C, H, W), for each pixel p.
    """
    count, channels, height, width = cotangent.shape
    sides = (width, height)
    own = F.affine_grid(inverse(matrices), list(cotangent.shape), align_corners=False)
    nearest = [pixels(own[..., axis], side).round() for axis, side in enumerate(sides)]
    steps = torch.arange(-REACH, REACH + 1, device=grid.device, dtype=grid.dtype)
    many = len(steps) ** 2
    # (B, 9, H, W): the columns and rows of the candidates q of each p
    column = (nearest[0][:, None] + steps.repeat(len(steps))[:, None, None]).clamp(-1, width)
    row = (nearest[1][:, None] + steps.repeat_interleave(len(steps))[:, None, None]).clamp(
        -1, height
    )
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = torch.where(inside, row * width + column, 0).long().flatten(1)
    weight = inside.to(grid.dtype)
    for axis, side in enumerate(sides):
        read = pixels(grid[..., axis].flatten(1).gather(1, place), side).view_as(weight)
        at = torch.arange(side, device=grid.device, dtype=grid.dtype)
        at = at.view(1, 1, 1, -1) if axis == 0 else at.view(1, 1, -1, 1)
        weight = weight * (1 - (read - at).abs()).clamp_min(0)
    index = place[:, None].expand(count, channels, -1)
    values = cotangent.flatten(2).gather(2, index).view(count, channels, many, height, width)
    return (values * weight[:, None]).sum(2)


def pixels(coordinates: Tensor, side: int) -> Tensor:
    """Turn coordinates of a grid, -1 to 1 from edge to edge, into numbers of pixels."""
    return ((1 + coordinates) * side - 1) / 2


def inverse(matrices: Tensor) -> Tensor:
    """Invert affine maps (B, 2, 3)."""
    (a, b, s), (c, d, t) = matrices.unbind(1)[0].unbind(1), matrices.unbind(1)[1].unbind(1)
    determinant = a * d - b * c
    first = torch.stack((d, -b, b * t - d * s), 1) / determinant[:, None]
    second = torch.stack((-c, a, c * s - a * t), 1) / determinant[:, None]
    return torch.stack((first, second), 1)


class Sampled(torch.autograd.Function):
    """`sampled` with the derivative `gathered`; the grid is constant."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(grid, matrices)
        return sampled(images, grid)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        made: Tensor = Gathered.apply(cotangents[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return made, None, None


class Gathered(torch.autograd.Function):
    """`gathered` with the derivative `sampled`."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, grid: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(grid, matrices)
        return gathered(cotangent, grid, matrices)

    @staticmethod
    def backward(ctx: Any, *images: Tensor) -> tuple[Tensor, None, None]:
        made: Tensor = Sampled.apply(images[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return made, None, None
