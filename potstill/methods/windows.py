"""Window samplers: which of the inner steps an outer step takes and differentiates.

A sampler is `draw(state, rng, outer_step) -> (burn_in, window)` and `update(state, loss, grad_norm)
-> state`; its state is plain data that a checkpoint holds. Each can be used alone:
`RandomTruncated(unroll=60, window=20)`. Its fields are the options that set them; a new sampler is
a class here, a line in unrolled.py and a row in the registry.

Source: section 3, section 4.3 and appendix D.4 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. T
    is `unroll`, M is `window`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from potstill.config.options import Auto, option
from potstill.errors import InputError

SamplerState = dict[str, Any]
LOSS_DECAY, WARM_UP = 0.9, 10
"""Decay of the moving average of the outer loss that Forward and Backward watch, as of the clipped
norm, and for how many outer steps it settles at a new start: its first value is a single loss, and
a low one would pass for a best that is never reached.
"""


class WindowSampler(Protocol):
    """The interface of a window sampler."""

    def init(self) -> SamplerState:
        """Return the state before the first outer step."""
        ...

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        """Draw the (burn_in, window) of one outer step.

        burn_in: inner steps without a derivative; window: the differentiated steps after them.
        """
        ...

    def update(self, state: SamplerState, loss: float, grad_norm: float) -> SamplerState:
        """Return the state after an outer step.

        Args:
            state: before the step.
            loss: the outer loss.
            grad_norm: norm of the meta-gradient.
        """
        ...


@dataclass(frozen=True)
class Sampler:
    """At most `unroll` inner steps; no state between outer steps, unless a sampler says so."""

    unroll: int = option(
        60, "T: most inner steps of an outer step", low=1, source="paper D.2: 3 windows"
    )

    def init(self) -> SamplerState:
        return {}

    def with_steps(self, steps: int) -> Self:
        """Replace every "auto" for a run of so many outer steps.

        Most samplers have no "auto".
        """
        return self

    def update(self, state: SamplerState, loss: float, grad_norm: float) -> SamplerState:
        return state


@dataclass(frozen=True)
class Full(Sampler):
    """BPTT: N = T, every step differentiated.

    Source: equation (2); unlike its sum, step 0 is differentiated too.
    """

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return 0, self.unroll

    def __str__(self) -> str:
        return f"{self.unroll:,}, every one differentiated"


@dataclass(frozen=True)
class RandomFull(Sampler):
    """R-BPTT: N ~ U{1, ..., T}, every step differentiated.

    The paper names no range; U{1, ..., T} is potstill's reading.
    """

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return 0, uniform(1, self.unroll, rng)

    def __str__(self) -> str:
        return f"1 to {self.unroll:,} at random, every one differentiated"


@dataclass(frozen=True)
class Growing(Sampler):
    """Every step differentiated; the number of steps grows linearly to T.

    Args:
        grow_from: inner steps of the first outer step.
        grow_over: outer steps after which it takes T.
    Source: "BPTT-Increasing Windows", appendix D.4, which goes from 10 to 180.
    """

    grow_from: int | Auto = option(
        "auto", "inner steps at first; auto: unroll / 18", low=1, source="paper D.4: 10 of 180"
    )
    grow_over: int | Auto = option("auto", "outer steps until they are unroll; auto: all", low=1)

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.unroll:
            raise InputError(
                f"grow_from must lie in [1, unroll={self.unroll}], got {self.first}; lower "
                "--grow-from or raise --unroll"
            )

    @property
    def first(self) -> int:
        """The inner steps of the first outer step; the paper's go from 10 to 180."""
        return (
            self.grow_from if isinstance(self.grow_from, int) else max(1, round(self.unroll / 18))
        )

    def with_steps(self, steps: int) -> Self:
        """Replace every "auto" for a run of so many outer steps."""
        over = self.grow_over if isinstance(self.grow_over, int) else steps
        return dataclasses.replace(self, grow_from=self.first, grow_over=over)

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        over = self.grow_over if isinstance(self.grow_over, int) else 1
        share = min(1.0, outer_step / max(1, over - 1))
        return 0, round(self.first + share * (self.unroll - self.first))

    def __str__(self) -> str:
        return f"growing from {self.first:,} to {self.unroll:,}, every one differentiated"


@dataclass(frozen=True)
class Windowed(Sampler):
    """At most T inner steps, of which the last M are differentiated."""

    window: int = option(20, "M: last inner steps, which are differentiated", low=1)

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.unroll:
            raise InputError(
                f"window must lie in [1, unroll={self.unroll}], got {self.window}; lower --window "
                "or raise --unroll"
            )

    @property
    def last(self) -> int:
        """The latest start of the window, T - M."""
        return self.unroll - self.window


class RandomTruncated(Windowed):
    """RaT-BPTT: N ~ U{M, ..., T}, the last M differentiated.

    Source: Algorithm 1, line 3, and equation (4).
    """

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return uniform(0, self.last, rng), self.window

    def __str__(self) -> str:
        return (
            f"{self.window:,} to {self.unroll:,} at random, the last {self.window:,} differentiated"
        )


class Truncated(Windowed):
    """T-BPTT: N = T, the last M differentiated.

    Source: equation (3).
    """

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return self.last, self.window

    def __str__(self) -> str:
        return f"{self.unroll:,}, the last {self.window:,} differentiated"


@dataclass(frozen=True)
class Early(Windowed):
    """RaT-BPTT whose window tends to begin early.

    The probability that it begins at step R of {0, ..., T - M} is proportional to w^(-R / (T - M)).

    Args:
        early_weight: w, how many times as likely the first start is as the last; 1 is RaT-BPTT's
            own distribution.
    Source: section 4.3 says that more of the initial phase gains 0.4 points, but not how it was
        drawn; the form is potstill's.
    """

    early_weight: float = option(
        4.0, "how many times as likely as the last place of the window the first is", low=1
    )

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        steps = torch.arange(self.last + 1, dtype=torch.float64)
        weights = self.early_weight ** (-steps / max(1, self.last))
        return int(torch.multinomial(weights, 1, generator=rng)), self.window

    def __str__(self) -> str:
        return (
            f"{self.window:,} to {self.unroll:,} at random, rather few, the last {self.window:,} "
            "differentiated"
        )


@dataclass(frozen=True)
class Fixed(Windowed):
    """Always the same number of steps before the window.

    Args:
        burn_in: that number; T - M would be T-BPTT.
    Source: the commands that the released code recommends where training is unstable, such as 40
        steps before 90.
    """

    burn_in: int | Auto = option(
        "auto", "inner steps before the window; auto: unroll - window", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.before <= self.last:
            raise InputError(
                f"burn_in must lie in [0, unroll - window = {self.last}], got {self.before}; lower "
                "--burn-in or raise --unroll"
            )

    @property
    def before(self) -> int:
        """The inner steps before the window."""
        return self.burn_in if isinstance(self.burn_in, int) else self.last

    def with_steps(self, steps: int) -> Self:
        return dataclasses.replace(self, burn_in=self.before)

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return self.before, self.window

    def __str__(self) -> str:
        return f"{self.before + self.window:,}, the last {self.window:,} differentiated"


@dataclass(frozen=True)
class Moving(Windowed):
    """A window that moves when the outer loss stagnates.

    Its state holds the start of the window ("burn_in"), for how many outer steps the window has
    been there ("steps"), the moving average of the loss since then, the lowest value of that
    average, and how many outer steps ago that was ("waited"). Losses are compared only at the same
    start, since a longer unroll has another loss.

    Args:
        patience: outer steps without a new lowest value after which it moves.
        shift: by how many inner steps.
    Source: section 4.3 and figure 5, which give neither number; the released code moves by M.
    """

    patience: int = option(
        50,
        "the window moves when the smoothed loss has not improved for so many outer steps",
        low=1,
    )
    shift: int | Auto = option("auto", "inner steps by which the window moves; auto: window", low=1)

    @property
    def by(self) -> int:
        """The inner steps by which the window moves."""
        return self.shift if isinstance(self.shift, int) else self.window

    def with_steps(self, steps: int) -> Self:
        return dataclasses.replace(self, shift=self.by)

    def at(self, burn_in: int) -> SamplerState:
        """Return the state of a window that has just moved to `burn_in`."""
        return {"burn_in": burn_in, "steps": 0, "average": None, "lowest": None, "waited": 0}

    def moved(self, burn_in: int) -> int:
        """Return the next start of the window."""
        raise NotImplementedError

    def draw(self, state: SamplerState, rng: torch.Generator, outer_step: int) -> tuple[int, int]:
        return int(state["burn_in"]), self.window

    def update(self, state: SamplerState, loss: float, grad_norm: float) -> SamplerState:
        steps, before = state["steps"] + 1, state["average"] or 0.0
        # The plain mean of the first ones.
        average = before + (loss - before) * max(1 / steps, 1 - LOSS_DECAY)
        state = {**state, "steps": steps, "average": average}
        if steps <= WARM_UP or average < state["lowest"]:
            return {**state, "lowest": average, "waited": 0}
        if (
            state["waited"] + 1 >= self.patience
            and self.moved(state["burn_in"]) != state["burn_in"]
        ):
            return self.at(self.moved(state["burn_in"]))
        return {**state, "waited": state["waited"] + 1}


class Forward(Moving):
    """The window begins at the first inner step and moves later, up to T."""

    def init(self) -> SamplerState:
        return self.at(0)

    def moved(self, burn_in: int) -> int:
        return min(burn_in + self.by, self.last)

    def __str__(self) -> str:
        return (
            f"from {self.window:,} up to {self.unroll:,} as the loss stagnates, the last "
            f"{self.window:,} differentiated"
        )


class Backward(Moving):
    """The window begins at the end of T inner steps and moves earlier, down to the first."""

    def init(self) -> SamplerState:
        return self.at(self.last)

    def moved(self, burn_in: int) -> int:
        return max(burn_in - self.by, 0)

    def __str__(self) -> str:
        return (
            f"from {self.unroll:,} down to {self.window:,} as the loss stagnates, the last "
            f"{self.window:,} differentiated"
        )


def uniform(low: int, high: int, rng: torch.Generator) -> int:
    """Draw a whole number of {low, ..., high}, each equally likely."""
    return int(torch.randint(low, high + 1, (), generator=rng))
