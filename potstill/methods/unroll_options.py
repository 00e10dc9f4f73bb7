"""The options that all unrolled methods have beside those of their window sampler."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from potstill.config.options import option
from potstill.engine.unroll import Keep
from potstill.errors import InputError
from potstill.methods.base import Sizes
from potstill.methods.pool import Pool
from potstill.methods.windows import RandomTruncated, Sampler
from potstill.seeds import generator

SAMPLED_DRAWS = 100


@dataclass(frozen=True)
class UnrollOptions(Sampler):
    """The options that all unrolled methods have beside those of their window sampler."""

    trajectories: int = option(1, "K: unrolls of an outer step, whose mean is taken", low=1)
    tape: Literal["states", "sqrt", "host", "bfloat16"] = option(
        "states", "memory against time: states, sqrt, host or bfloat16 (docs/speed.md)"
    )
    loss_points: int = option(
        1, "points of the window, its end among them, at which the real batch is dealt out", low=1
    )
    pool: int = option(
        0, "partly trained networks that wait for their next window; 0: each step has a fresh one",
        low=0, source="paper D.7, third wish",
    )  # fmt: skip
    learn_lr: bool = option(False, "learn the inner learning rate too; the recipe takes it over")

    def resolved(self, sizes: Sizes) -> Self:
        """Return the options with every "auto" replaced for a run of these sizes.

        Raises:
            InputError: there is a pool that cannot be.
        """
        if self.pool and not isinstance(self, RandomTruncated):
            raise InputError(
                "pool takes windows that begin anywhere, those of method rat-bptt, got "
                f"pool={self.pool} with others; use --method rat-bptt, or --pool 0"
            )
        if 0 < self.pool < self.trajectories:
            raise InputError(
                f"pool must be at least trajectories ({self.trajectories}), each of which takes "
                f"a network of its own, got {self.pool}; raise --pool"
            )
        return self.with_steps(sizes.steps)

    def draw(self, state: dict[str, Any], rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        """Draw (burn_in, window); in `family`, the window sampler provides this."""
        raise NotImplementedError

    @property
    def keep(self) -> Keep:
        """What is kept of the window's forward pass for the way back."""
        return Keep.named(self.tape)

    @property
    def longest(self) -> tuple[int, int]:
        """Most inner steps of a trajectory, and its longest window."""
        return self.unroll, getattr(self, "window", self.unroll)

    @property
    def watches(self) -> bool:
        """Whether the window follows the loss."""
        return type(self).update is not Sampler.update

    @property
    def waiting(self) -> Pool | None:
        """The pool of networks, if there is one."""
        return Pool(self.pool, self.longest[1], self.unroll) if self.pool else None


def mean_window(options: UnrollOptions, steps: int) -> tuple[float, float]:
    """Average (burn_in, window) over some outer steps; a sampler's state stays the initial one."""
    if pool := options.waiting:
        # A life begins with latest/2 steps or so, and has (T - M + 1) / latest windows.
        each = (pool.latest - 1) / 2 * pool.latest / (pool.lifetime - pool.window + 1)
        return each, pool.window
    chosen = range(0, steps, -(-steps // SAMPLED_DRAWS))
    state = options.init()
    drawn = [options.draw(state, generator(0, "mean window", step), step) for step in chosen]
    return tuple(sum(column) / len(drawn) for column in zip(*drawn, strict=True))
