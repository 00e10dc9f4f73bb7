"""Multi-formation: every stored image is a sheet of smaller ones.

Source: section 4.2 of Kim et al., "Dataset Condensation via Efficient Synthetic-Data
    Parameterization", ICML 2022, arXiv:2205.14959 (IDC): uniform formation, bilinear.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potstill.parameterisations.base import (
    Budget,
    Leaves,
    Parameterisation,
    Reduced,
    Stored,
    downsampled,
    unit,
    upsampled,
)


@dataclass(frozen=True)
class MultiFormation(Parameterisation):
    """Each stored image decodes to factor x factor parts, upsampled to the full size.

    The stored tensor is "images" (m, C, H, W). A learned label belongs to a stored image and its
    parts share it, so that the bytes are exactly those of `pixels`.

    Args:
        factor: parts on a side.
    """

    Options: ClassVar[type] = Reduced

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    pixels: ClassVar[tuple[str, ...]] = ("images",)
    factor: int

    @classmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        budget.reduced(options.factor)
        return cls(budget, options.factor)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"images": (self.budget.classes * self.budget.ipc, *self.budget.shape)}

    @property
    def per_class(self) -> int:
        return self.budget.ipc * self.sharing

    @property
    def sharing(self) -> int:
        return self.factor**2

    @property
    def words(self) -> str:
        return f"{self.shapes['images'][0]:,} images of {self.factor} x {self.factor} parts"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        parts = self.parts(torch.randn(self.shapes["images"], generator=rng))
        return {"images": self.sheets(unit(parts, *self.budget.shape[1:]))}

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"images": self.sheets(downsampled(images, *self.budget.reduced(self.factor)[1:]))}

    def decode(self, leaves: Leaves) -> Tensor:
        return upsampled(self.parts(leaves["images"]), *self.budget.shape[1:])

    def parts(self, sheets: Tensor) -> Tensor:
        """Cut sheets (m, C, H, W) into (m factor^2, C, H / factor, W / factor), row by row."""
        channels, height, width = self.budget.reduced(self.factor)
        cut = sheets.reshape(-1, channels, self.factor, height, self.factor, width)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height, width)

    def sheets(self, parts: Tensor) -> Tensor:
        """Lay parts out as sheets: the inverse of `parts`."""
        channels, height, width = self.budget.reduced(self.factor)
        laid = parts.reshape(-1, self.factor, self.factor, channels, height, width)
        return laid.permute(0, 3, 1, 4, 2, 5).reshape(-1, *self.budget.shape)

    def stored(self, leaves: Leaves) -> Stored:
        return Stored(
            f"Stored images, {self.factor} x {self.factor} parts each",
            self.decode(leaves),
            self.factor,
        )
