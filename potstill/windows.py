"""Window samplers: which of the inner steps an outer step takes and differentiates (section 1 of the method).

A sampler is `draw(state, rng, outer_step) -> (burn_in, window)` and `update(state, loss, grad_norm) -> state`; its state is
plain data that a checkpoint holds. All four here have none.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

SamplerState = dict[str, Any]


class WindowSampler(Protocol):
    """What the outer loop asks of a sampler."""

    def init(self) -> SamplerState:
        """The state before the first outer step."""
        ...

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        """(burn_in, window) of one outer step: steps without a derivative, then differentiated steps."""
        ...

    def update(self, state: SamplerState, loss: float, grad_norm: float) -> SamplerState:
        """The state after an outer step with this outer loss and this norm of the meta-gradient."""
        ...


@dataclass(frozen=True)
class Stateless:
    """Unroll length T and window M, no memory from step to step."""

    unroll: int
    window: int

    def init(self) -> SamplerState:
        return {}

    def update(self, state: SamplerState, loss: float, grad_norm: float) -> SamplerState:
        return state


class RandomTruncated(Stateless):
    """RaT-BPTT: N ~ U{M, ..., T}, the last M differentiated. Source: Algorithm 1, line 3, and equation (4)."""

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return uniform(self.window, self.unroll, rng) - self.window, self.window


class Full(Stateless):
    """BPTT: N = T, every step differentiated. Source: equation (2); unlike its sum, step 0 is differentiated too."""

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return 0, self.unroll


class Truncated(Stateless):
    """T-BPTT: N = T, the last M differentiated. Source: equation (3)."""

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return self.unroll - self.window, self.window


class RandomFull(Stateless):
    """R-BPTT: N ~ U{1, ..., T}, every step differentiated. The paper names no range; U{1..T} is our reading."""

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return 0, uniform(1, self.unroll, rng)


def uniform(low: int, high: int, rng: torch.Generator) -> int:
    """A whole number of {low, ..., high}, each equally likely."""
    return int(torch.randint(low, high + 1, (), generator=rng))
