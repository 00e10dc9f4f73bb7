"""Differentiable augmentation, with the random draw apart from its application.

A draw can be kept, cut into micro-batches and replayed.

One operation of the chosen ones acts on a whole batch, with parameters of its own for every image,
as in the released code of RaT-BPTT and in DSA (Zhao & Bilen 2021b). The warps use torch's own
affine grid: kornia's rotation of ten images of 3 x 32 x 32 took 4 times as long on two CPU cores,
and an inner step is as short as that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.data.splits import Shape, kind_of, require_kind
from potstill.data.warps import warp
from potstill.errors import InputError, let_memory_pass
from potstill.registry import AUGMENTATIONS

ROTATION = math.radians(15)
SCALE = 1.2
SHIFT = 0.125
HOLE = 0.5
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
GENTLE = ("rotate", "scale", "crop")
"""Operations after which an image of anything, letters and digits too, shows what it did."""
OF_THE_PAPER = ("flip", "rotate")
"""The paper's, for photographs."""


Operation = Callable[[Tensor, Tensor], Tensor]
"""(examples (B, ...), values (B, 4) in [0, 1)) -> examples of the same shape, differentiable in
them. An attribute `kinds` says which data it takes, ("image",) or ("vector",); without it, both.
"""


def of_images(operation: Operation) -> Operation:
    """Mark an operation that takes images only."""
    vars(operation)["kinds"] = ("image",)
    return operation


@dataclass(frozen=True)
class Draw:
    """One operation, or several one after the other, with their parameters.

    Args:
        operation: a name of `registry.AUGMENTATIONS`, some of them joined by "+", or "none".
        values: (B, 4 for each) in [0, 1) on the CPU, one row an image; one row for a shared draw.
        shared: whether the one row holds for every image of any batch.
    """

    operation: str
    values: Tensor
    shared: bool = False

    def rows(self, indices: Tensor) -> "Draw":
        """Return the draw for the images at these indices of the batch."""
        return self if self.shared else Draw(self.operation, self.values[indices])


def draw(operations: tuple[str, ...], count: int, rng: torch.Generator) -> Draw:
    """Draw one of the operations for the batch, and parameters for each of its `count` images.

    Without operations the draw is the identity.
    """
    if not operations:
        return Draw("none", torch.empty(count, 0))
    chosen = operations[int(torch.randint(len(operations), (), generator=rng))]
    return Draw(chosen, torch.rand(count, 4 * len(chosen.split("+")), generator=rng))


def shared_draw(operations: tuple[str, ...], rng: torch.Generator) -> Draw:
    """Draw one operation and one set of parameters for all images of several batches.

    With it real and synthetic batches of any two sizes are changed alike, so that a difference
    between them is not one of augmentation.

    Source: Differentiable Siamese Augmentation, Zhao & Bilen 2021, arXiv:2102.08259.
    """
    drawn = draw(operations, 1, rng)
    return Draw(drawn.operation, drawn.values, shared=True)


def apply(images: Tensor, drawn: Draw) -> Tensor:
    """Augment (B, C, H, W) images; differentiable in them. Pixels from outside an image are 0."""
    if drawn.operation == "none":
        return images
    values = drawn.values.expand(len(images), -1) if drawn.shared else drawn.values
    for name, own in zip(
        drawn.operation.split("+"), values.to(images).split(4, dim=1), strict=True
    ):
        images = AUGMENTATIONS[name](images, own)
    return images


def check_operations(operations: tuple[str, ...], shape: Shape, way_out: str) -> None:
    """Raise an InputError unless every operation takes examples of this shape and keeps it."""
    for name in dict.fromkeys(part for one in operations for part in one.split("+")):
        operation: Any = AUGMENTATIONS[name]
        require_kind(kind_of(shape), f"augmentation {name}", operation, way_out)
        try:
            changed = operation(torch.zeros(2, *shape), torch.full((2, 4), 0.5))
        except Exception as error:  # a user's own may fail in any way
            let_memory_pass(error)
            raise InputError(
                f"augmentation {name} fails on a batch of shape {(2, *shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(changed, Tensor) or changed.shape != (2, *shape):
            got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(
                f"augmentation {name} must return a tensor of the batch's shape {(2, *shape)}, got "
                f"{got}"
            )


@of_images
def flip(images: Tensor, values: Tensor) -> Tensor:
    """Mirror left and right with probability 1/2."""
    return torch.where((values[:, 0] < 0.5).view(-1, 1, 1, 1), images.flip(3), images)


@of_images
def rotate(images: Tensor, values: Tensor) -> Tensor:
    """Turn by U(-15, 15) degrees about the centre, bilinear."""
    angle = (2 * values[:, 0] - 1) * ROTATION
    height, width = images.shape[2:]
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    # affine_grid counts in halves of the image: off the diagonal, the aspect ratio comes in.
    rows = (
        torch.stack((cosine, -sine * height / width, zero), 1),
        torch.stack((sine * width / height, cosine, zero), 1),
    )
    return warp(images, torch.stack(rows, 1))


@of_images
def scale(images: Tensor, values: Tensor) -> Tensor:
    """Shrink each axis about the centre by its own U(1/1.2, 1.2), bilinear; below 1 stretches."""
    factor = 1 / SCALE + values[:, :2] * (SCALE - 1 / SCALE)
    zero = torch.zeros_like(factor[:, 0])
    rows = (torch.stack((factor[:, 0], zero, zero), 1), torch.stack((zero, factor[:, 1], zero), 1))
    return warp(images, torch.stack(rows, 1))


@of_images
def crop(images: Tensor, values: Tensor) -> Tensor:
    """Pad with zeros by an eighth of each side and crop at random: a shift by whole pixels."""
    shifts = []
    for axis, side in enumerate(images.shape[:1:-1]):  # width, height
        reach = round(side * SHIFT)
        shift = (values[:, axis] * (2 * reach + 1)).floor() - reach
        shifts.append(2 * shift / side)
    identity = torch.eye(2, dtype=images.dtype, device=images.device).expand(len(images), 2, 2)
    return warp(images, torch.cat((identity, torch.stack(shifts, 1)[:, :, None]), 2))


@of_images
def cutout(images: Tensor, values: Tensor) -> Tensor:
    """Set a rectangle of half the height and half the width to 0, centred anywhere."""
    height, width = images.shape[2:]
    inside = [
        (
            torch.arange(side, device=images.device)
            - (centre * side).floor()[:, None]
            + HOLE * side / 2
        ).floor()
        for side, centre in ((height, values[:, 0]), (width, values[:, 1]))
    ]
    hole = [
        (axis >= 0) & (axis < round(HOLE * side))
        for axis, side in zip(inside, (height, width), strict=True)
    ]
    return images * ~(hole[0][:, None, :, None] & hole[1][:, None, None, :])


@of_images
def color(images: Tensor, values: Tensor) -> Tensor:
    """Change brightness, saturation and contrast, in this order.

    Brightness + U(-1/2, 1/2), saturation times U(0, 2), contrast times U(1/2, 3/2).
    """
    one, two, three = (values[:, index].view(-1, 1, 1, 1) for index in range(3))
    images = images + (one - 0.5) * BRIGHTNESS
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * two * SATURATION
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (three + CONTRAST)
