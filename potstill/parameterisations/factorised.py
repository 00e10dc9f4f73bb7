"""Factorisation: each class's bases, seen through a few small hallucination networks.

Source: section 3.2 of Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022,
    arXiv:2210.16774 (HaBa): encoder, affine map with a scale and a shift at every place, decoder.
    As in the authors' code encoder and decoder are one convolution each, as wide as the image has
    channels. Two departures, to keep within the budget: bases and hallucinators work at reduced
    resolution, and convolutions have no bias, which the shift makes up for. (The authors' five
    hallucinators for CIFAR-10 take as many numbers as 9 of the 10 images that the budget of one a
    class allows.) Their contrastive losses are left out.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.config.options import option
from potstill.parameterisations.base import (
    Budget,
    Leaves,
    Parameterisation,
    Reduced,
    Stored,
    downsampled,
    size_words,
    unit,
    upsampled,
)

KERNEL = 3
SPREAD = 0.5
"""Scale of the first shifts, in that of a pixel: equal hallucinators would stay equal."""


@dataclass(frozen=True)
class FactorisedOptions(Reduced):
    """Options of the factorisation."""

    hallucinators: int = option(5, "how many networks every basis goes through", low=1)


@dataclass(frozen=True)
class Factorised(Parameterisation):
    """Image (i, j) = upsampled decoder_j(scale_j * encoder_j(basis_i) + shift_j).

    "bases" (m, C, h, w), class by class; "encoders" and "decoders" (J, C, C, 3, 3); "scales" and
    "shifts" (J, C, h, w). A learned label belongs to a basis: all images made of it share it.

    Args:
        factor: everything is stored at 1 / factor of the resolution.
        hallucinators: J.
        bases_per_class: of each class.
    """

    Options: ClassVar[type] = FactorisedOptions

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    factor: int
    hallucinators: int
    bases_per_class: int

    @classmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        shape = budget.reduced(options.factor)
        values = math.prod(shape)
        networks = options.hallucinators * 2 * (shape[0] ** 2 * KERNEL**2 + values)
        row = budget.classes * (values + budget.label)
        what = (
            f"{options.hallucinators} hallucinators and one basis of {size_words(shape)} for each "
            "class"
        )
        budget.require(networks + row, what, "lower --hallucinators or raise --factor")
        return cls(budget, options.factor, options.hallucinators, (budget.floats - networks) // row)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        small, count = self.budget.reduced(self.factor), self.hallucinators
        kernels = (count, small[0], small[0], KERNEL, KERNEL)
        return {
            "bases": (self.budget.classes * self.bases_per_class, *small),
            "encoders": kernels,
            "scales": (count, *small),
            "shifts": (count, *small),
            "decoders": kernels,
        }

    @property
    def per_class(self) -> int:
        return self.bases_per_class * self.hallucinators

    @property
    def sharing(self) -> int:
        return self.hallucinators

    @property
    def speeds(self) -> dict[str, float]:
        kernel = (
            KERNEL**2 * self.budget.shape[0]
        ) ** -0.5  # root mean square of one that leaves an image as it is
        scales = {
            "bases": self.pixel_scale,
            "encoders": kernel,
            "scales": 1.0,
            "shifts": self.pixel_scale,
            "decoders": kernel,
        }
        return {name: scale / self.pixel_scale for name, scale in scales.items()}

    @property
    def words(self) -> str:
        shapes = self.shapes
        each = (
            sum(math.prod(shape) for name, shape in shapes.items() if name != "bases")
            // self.hallucinators
        )
        bases = f"{shapes['bases'][0]:,} bases of {size_words(shapes['bases'][1:])}"
        return f"{bases}, and {self.hallucinators} hallucinators of {each:,} numbers"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        bases = unit(torch.randn(self.shapes["bases"], generator=rng), *self.budget.shape[1:])
        return {"bases": bases, **self.first_hallucinators(rng, self.pixel_scale)}

    def first_hallucinators(self, rng: torch.Generator, scale: float) -> dict[str, Tensor]:
        """Return hallucinators that begin as the identity plus a shift of noise.

        `scale` is the root mean square of a basis's pixels.
        """
        same = torch.zeros(self.shapes["encoders"])
        channels = torch.arange(self.budget.shape[0])
        same[:, channels, channels, KERNEL // 2, KERNEL // 2] = 1
        shifts = torch.randn(self.shapes["shifts"], generator=rng) * SPREAD * scale
        return {
            "encoders": same,
            "scales": torch.ones(self.shapes["scales"]),
            "shifts": shifts,
            "decoders": same.clone(),
        }

    @property
    def real_per_class(self) -> int:
        return self.bases_per_class

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Fit bases to real images by least squares; hallucinators begin as with noise."""
        bases = downsampled(images, *self.budget.reduced(self.factor)[1:])
        hallucinators = self.first_hallucinators(rng, float(bases.square().mean().sqrt()))
        return {"bases": bases, **{name: leaf.to(bases) for name, leaf in hallucinators.items()}}

    def decode(self, leaves: Leaves) -> Tensor:
        bases, count = leaves["bases"], self.hallucinators
        features = F.conv2d(bases, leaves["encoders"].flatten(0, 1), padding=KERNEL // 2).unflatten(
            1, (count, -1)
        )
        changed = (features * leaves["scales"] + leaves["shifts"]).flatten(1, 2)
        made = F.conv2d(
            changed, leaves["decoders"].flatten(0, 1), padding=KERNEL // 2, groups=count
        )
        return upsampled(made.reshape(-1, *bases.shape[1:]), *self.budget.shape[1:])

    def stored(self, leaves: Leaves) -> Stored:
        return Stored(
            "Stored bases, class by class", upsampled(leaves["bases"], *self.budget.shape[1:])
        )
