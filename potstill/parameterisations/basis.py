"""Linear basis: every image is a combination of a few bases that all classes share.

Source: section 3.2 of Deng & Russakovsky, "Remember the Past: Distilling Datasets into Addressable
    Memories for Neural Networks", NeurIPS 2022, arXiv:2206.02916: x = M' A' y with hard labels y,
    so that each class has its own rows of coefficients; bases at reduced resolution, upsampled
    bilinearly.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potstill.config.options import Auto, option
from potstill.parameterisations.base import (
    Budget,
    Leaves,
    Parameterisation,
    Reduced,
    Stored,
    downsampled,
    size_words,
    stretch,
    unit,
    upsampled,
)

MOST_BASES = 16
"""Number of bases in the authors' example for CIFAR-10."""
AT_ONCE = 1000
"""Real images that are reduced at a time, in float64."""
TINY = 1e-12
"""Squares of singular values below this share of the greatest one are rounding."""


@dataclass(frozen=True)
class BasisOptions(Reduced):
    """Options of the basis."""

    bases: int | Auto = option(
        "auto", "bases that all classes share; auto: 16, fewer if small", low=1
    )


@dataclass(frozen=True)
class Basis(Parameterisation):
    """images = "coefficients" (n, b) @ "bases" (b, C, H / factor, W / factor), upsampled.

    With K classes, B images per class as the budget and d numbers in a basis, each class has
    (B K HWC - b d) / (K b) rows of coefficients, rounded down; a learned label of K numbers goes
    with each.

    Args:
        factor: bases are stored at 1 / factor of the resolution.
        bases: b.
        rows: of coefficients, for each class.
    """

    Options: ClassVar[type] = BasisOptions

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    factor: int
    bases: int
    rows: int

    @classmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        shape = budget.reduced(options.factor)
        count = auto_bases(budget, options.factor) if options.bases == "auto" else options.bases
        values = math.prod(shape)
        row = budget.classes * (count + budget.label)
        what = f"{count} bases of {size_words(shape)} and one image of each class"
        budget.require(count * values + row, what, "lower --bases or raise --factor")
        return cls(budget, options.factor, count, (budget.floats - count * values) // row)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        images = self.budget.classes * self.rows
        return {
            "bases": (self.bases, *self.budget.reduced(self.factor)),
            "coefficients": (images, self.bases),
        }

    @property
    def per_class(self) -> int:
        return self.rows

    @property
    def speeds(self) -> dict[str, float]:
        # Bases have the scale of pixels, coefficients that of 1 / sqrt(b).
        return {"bases": 1.0, "coefficients": self.bases**-0.5 / self.pixel_scale}

    @property
    def words(self) -> str:
        images, size = self.shapes["coefficients"][0], size_words(self.shapes["bases"][1:])
        bases, coefficients = (
            ("1 basis", "1 coefficient")
            if self.bases == 1
            else (f"{self.bases} bases", f"{self.bases} coefficients")
        )
        return f"{bases} of {size}, and {coefficients} for each of {images:,} images"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        bases = unit(torch.randn(self.shapes["bases"], generator=rng), *self.budget.shape[1:])
        return {
            "bases": bases,
            "coefficients": torch.randn(self.shapes["coefficients"], generator=rng)
            / self.bases**0.5,
        }

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Fit bases and coefficients to real images by least squares.

        It is the truncated singular value decomposition (Eckart & Young) in the space of upsampled
        bases.

        Bases beyond the rank of the images are noise, with coefficients 0.
        """
        small = self.shapes["bases"][1:]
        reduced = torch.cat(
            [downsampled(part.cpu().double(), *small[1:]) for part in images.split(AT_ONCE)]
        )
        # Upsampled images have the inner products of (L'XM) with rows' L and columns' M, the
        # Cholesky factors of S'S.
        rows, columns = (
            factor(stretch(*sides)) for sides in zip(small[1:], self.budget.shape[1:], strict=True)
        )
        weighted = (rows.T @ reduced @ columns).flatten(1)
        directions = leading(weighted, self.bases)
        coefficients = weighted @ directions.T
        solution = torch.linalg.solve(rows.T, directions.view(-1, *small))
        solution = solution @ torch.linalg.inv(columns)
        # Rows of coefficients of norm 1, as in `noise`.
        scale = coefficients.square().sum(1).mean().sqrt()
        start, kept = (
            {name: leaf.to(images.dtype) for name, leaf in self.noise(rng).items()},
            len(solution),
        )
        start["bases"] *= scale
        start["bases"][:kept] = solution * scale
        start["coefficients"].zero_()[:, :kept] = coefficients / scale
        return start

    def decode(self, leaves: Leaves) -> Tensor:
        bases = upsampled(leaves["bases"], *self.budget.shape[1:])
        return (leaves["coefficients"] @ bases.flatten(1)).view(-1, *self.budget.shape)

    def stored(self, leaves: Leaves) -> Stored:
        return Stored(
            "Stored bases, shared by all classes",
            upsampled(leaves["bases"], *self.budget.shape[1:]),
        )


def auto_bases(budget: Budget, factor: int) -> int:
    """Return the number of bases that "auto" stands for: 16, or fewer.

    They take at most half of the budget, and number at most half of a basis's values: more bases
    would be the images themselves.
    """
    values = math.prod(budget.reduced(factor))
    return max(1, min(MOST_BASES, values // 2, budget.floats // (2 * values)))


def factor(stretching: Tensor) -> Tensor:
    """Return the lower triangular L with LL' = S'S."""
    lower: Tensor = torch.linalg.cholesky(stretching.T @ stretching)
    return lower


def leading(rows: Tensor, count: int) -> Tensor:
    """Return the leading right singular vectors of `rows` (n, d), as (at most `count`, d).

    Vectors whose singular value is 0 are left out.
    """
    wide = len(rows) < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    kept = min(count, int((values > TINY * values[-1]).sum()))
    chosen = vectors.flip(1)[:, :kept]
    if wide:
        chosen = rows.T @ chosen / values.flip(0)[:kept].sqrt()
    directions: Tensor = chosen.T
    return directions
