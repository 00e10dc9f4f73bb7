"""Images and vectors stored as they are."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potstill.data.splits import NOUNS, kind_of
from potstill.parameterisations.base import Budget, Leaves, Parameterisation, unit


@dataclass(frozen=True)
class Pixels(Parameterisation):
    """Every image as its pixels, every vector as its features.

    The stored tensor is "images" (n, C, H, W) or (n, d).
    """

    pixels: ClassVar[tuple[str, ...]] = ("images",)

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
        count, noun = self.shapes["images"][0], NOUNS[kind_of(self.budget.shape)]
        return f"{count:,} {noun}s"

    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(self.shapes["images"], generator=rng)
        if kind_of(self.budget.shape) == "vector":
            return {"images": noise / noise.norm(dim=1, keepdim=True)}
        return {"images": unit(noise, *self.budget.shape[1:])}

    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"images": images}

    def decode(self, leaves: Leaves) -> Tensor:
        return leaves["images"]
