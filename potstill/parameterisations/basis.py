"""Linear basis: every image is a combination of a few bases that all classes share.

Source: section 3.2 of Deng & Russakovsky, "Remember the Past: Distilling Datasets into Addressable Memories for Neural
Networks", NeurIPS 2022, arXiv:2206.02916: x = M' A' y with hard labels y, so that each class has its own rows of
coefficients; bases at reduced resolution, upsampled bilinearly.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from potstill.parameterisations.base import Budget, Leaves, Parameterisation, Stored, downsampled, stretch, unit, upsampled
from potstill.sections import DistilledConfig

MOST_BASES = 16
"""That many the authors' example for CIFAR-10 has."""


@dataclass(frozen=True)
class Basis(Parameterisation):
    """images = "coefficients" (n, b) @ "bases" (b, C, H / factor, W / factor), upsampled.

    With K classes, B images per class as the budget and d numbers in a basis, each class has
    (B K HWC - b d) / (K b) rows of coefficients, rounded down; a learned label of K numbers goes with each.

    Args:
        factor: bases are stored at 1 / factor of the resolution.
        bases: b.
        rows: of coefficients, for each class.
    """

    factor: int
    bases: int
    rows: int

    @classmethod
    def fitting(cls, budget: Budget, config: DistilledConfig) -> Self:
        shape = budget.reduced(config.factor)
        count = config.bases or auto_bases(budget, config.factor)
        values = torch.Size(shape).numel()
        row = budget.classes * (count + budget.label)
        size = " x ".join(map(str, shape))
        budget.require(
            count * values + row, f"{count} bases of {size} and one image of each class", "lower --bases or raise --factor"
        )
        return cls(budget, config.factor, count, (budget.floats - count * values) // row)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        images = self.budget.classes * self.rows
        return {"bases": (self.bases, *self.budget.reduced(self.factor)), "coefficients": (images, self.bases)}

    @property
    def per_class(self) -> int:
        return self.rows

    @property
    def speeds(self) -> dict[str, float]:
        # Bases have the scale of pixels, coefficients that of 1 / sqrt(b).
        return {"bases": 1.0, "coefficients": self.bases**-0.5 / self.pixel_scale}

    @property
    def words(self) -> str:
        size = " x ".join(map(str, self.shapes["bases"][1:]))
        return f"{self.bases} bases of {size}, and {self.bases} coefficients for each of {self.shapes['coefficients'][0]:,} images"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        bases = torch.randn(self.shapes["bases"], generator=rng)
        coefficients = torch.randn(self.shapes["coefficients"], generator=rng)
        norms = upsampled(bases, *self.budget.shape[1:]).flatten(1).norm(dim=1)
        return {"bases": bases / norms.view(-1, 1, 1, 1), "coefficients": coefficients / self.bases**0.5}

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The least-squares fit: the truncated singular value decomposition (Eckart & Young) in the space of upsampled bases.

        Bases beyond the rank of the images are noise, with coefficients 0.
        """
        small = self.shapes["bases"][1:]
        reduced = downsampled(images.double(), *small[1:]).flatten(1)
        metric = torch.kron(gram(small[1], images.shape[-2]), gram(small[2], images.shape[-1])).to(reduced)
        root = torch.linalg.cholesky(torch.kron(torch.eye(small[0]).to(reduced), metric))
        left, values, right = torch.linalg.svd(reduced @ root, full_matrices=False)
        kept = min(self.bases, int((values > 1e-9 * values[0]).sum()))
        found = torch.linalg.solve_triangular(root, right[:kept], upper=False, left=False)
        coefficients = left[:, :kept] * values[:kept]
        scale = coefficients.square().sum(1).mean().sqrt()  # rows of coefficients of norm 1, as in `noise`
        start = self.noise(rng)
        bases, rows = start["bases"].to(images), torch.zeros_like(start["coefficients"].to(images))
        bases[:kept] = (found * scale).reshape(-1, *small).to(bases)
        rows[:, :kept] = (coefficients / scale).to(rows)
        return {"bases": bases, "coefficients": rows}

    def decode(self, leaves: Leaves) -> Tensor:
        bases = upsampled(leaves["bases"], *self.budget.shape[1:])
        return (leaves["coefficients"] @ bases.flatten(1)).view(-1, *self.budget.shape)

    def stored(self, leaves: Leaves) -> Stored:
        return Stored("Stored bases, shared by all classes", unit(upsampled(leaves["bases"], *self.budget.shape[1:])))


def auto_bases(budget: Budget, factor: int) -> int:
    """16, or as many as take half of the budget, or half of the numbers in a basis: more would be no basis but all images."""
    values = torch.Size(budget.reduced(factor)).numel()
    return max(1, min(MOST_BASES, values // 2, budget.floats // (2 * values)))


def gram(small: int, large: int) -> Tensor:
    """S'S of the interpolation along one axis: upsampled images have the inner products x' S'S y."""
    matrix = stretch(small, large)
    return matrix.T @ matrix
