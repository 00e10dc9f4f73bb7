"""Images as they are."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from potstill.parameterisations.base import Budget, Leaves, Parameterisation, unit


@dataclass(frozen=True)
class Pixels(Parameterisation):
    """Every image by its own pixels: "images" (n, C, H, W)."""

    @classmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        return cls(budget)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"images": (self.budget.classes * self.budget.ipc, *self.budget.shape)}

    @property
    def per_class(self) -> int:
        return self.budget.ipc

    @property
    def words(self) -> str:
        return f"{self.shapes['images'][0]:,} images"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        return {"images": unit(torch.randn(self.shapes["images"], generator=rng), *self.budget.shape[1:])}

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"images": images}

    def decode(self, leaves: Leaves) -> Tensor:
        return leaves["images"]
