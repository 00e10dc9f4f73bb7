"""How noisy a meta-gradient is, and where the noise comes from.

All of it rests on the way back being linear in the cotangent at the end of an unroll: one forward
pass serves any number of real samples (`inner.Unrolled`). The memory does not grow with the number
of samples.

Source: appendix D.3 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025, after Faghri, Duvenaud, Fleet
    & Ba 2020, arXiv:2007.04532. The estimate by random signs is Hutchinson's of a trace.
"""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.engine.unroll import Leaves
from potstill.methods.base import Examples, State
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import UnrolledMethod
from potstill.records.plain import parse_fields
from potstill.seeds import generator

SOURCES = {
    "real": "a new real batch",
    "start": "a new start",
    "window": "a new window",
    "all": "all new",
}
"""The sources that `noise_sources` separates."""
Gradient = Callable[[Tensor], Tensor]
"""(n,) weights of n losses -> (D,) the gradient of their weighted sum; linear."""


@dataclass(frozen=True)
class Variance:
    """The variance of a random vector.

    Args:
        per_entry: the sample variance, averaged over the entries.
        norm: of the mean over the draws.
        power: mean squared length of a draw.
        entries: D, the vector's length.
        n: number of draws.
    """

    per_entry: float
    norm: float
    power: float
    entries: int
    n: int

    def to_plain(self) -> dict[str, float]:
        """Return plain data, with the derived figures that are finite."""
        derived = {"normalised": self.normalised, "share": self.share}
        return dataclasses.asdict(self) | {
            name: value for name, value in derived.items() if math.isfinite(value)
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Variance":
        """Return the variance of plain data; the derived figures in it are not read."""
        own = {name: value for name, value in plain.items() if name not in ("normalised", "share")}
        variance: Variance = parse_fields(cls, own, "variance")
        return variance

    @property
    def normalised(self) -> float:
        """The normalised gradient variance of D.3.

        It is the variance of an entry over the squared norm of the mean.
        """
        return self.per_entry / self.norm**2 if self.norm else float("inf")

    @property
    def share(self) -> float:
        """The share of a draw's squared length that is noise, from 0 to 1.

        Two draws have a cosine of about 1 - share.
        """
        return self.entries * self.per_entry / self.power if self.power else 0.0


class Running:
    """Mean and sample variance of vectors that come one by one, in the memory of one vector.

    Source: Welford 1962.
    """

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.zeros(())
        self.squares = 0.0
        """Sum of squared distances to the mean, over all entries."""

    def add(self, vector: Tensor) -> None:
        """Add a vector."""
        self.count += 1
        apart = vector - self.mean
        self.mean = self.mean + apart / self.count
        self.squares += float(torch.dot(apart, vector - self.mean))

    @property
    def per_entry(self) -> float:
        """The sample variance, averaged over the entries."""
        return self.squares / (self.count - 1) / len(self.mean)

    @property
    def power(self) -> float:
        """The mean squared length."""
        return float(self.mean.square().sum()) + self.squares / self.count


def variance_of(draws: Iterable[Tensor]) -> Variance:
    """Return the variance of vectors (D,), of which there must be two or more."""
    running = Running()
    for draw in draws:
        running.add(draw)
    return Variance(
        running.per_entry,
        float(running.mean.norm()),
        running.power,
        len(running.mean),
        running.count,
    )


def exact_variance(gradient: Gradient, n: int) -> Variance:
    """Return the variance of the gradients of n losses, from each gradient: n ways back."""
    return variance_of(gradient((torch.arange(n) == index).float()) for index in range(n))


def variance_by_signs(gradient: Gradient, n: int, signs: Iterable[Tensor]) -> Variance:
    """Estimate the variance of `exact_variance` without bias, from fewer ways back.

    It takes one for the mean, and one for each vector of signs.

    With a_i the gradients and s_i independent and +1 or -1 alike, sum_i s_i (a_i - mean) has the
    expected squared norm sum_i |a_i - mean|^2. Its weights on the a_i themselves are s_i - mean(s).

    Args:
        gradient: of the losses.
        n: how many losses.
        signs: k vectors (n,).
    """
    mean = gradient(torch.full((n,), 1 / n))
    squares = [float(gradient(one - one.mean()).square().sum()) for one in signs]
    trace = sum(squares) / len(squares) / (n - 1)
    norm = float(mean.norm())
    return Variance(trace / len(mean), norm, norm**2 + trace * (n - 1) / n, len(mean), n)


def real_variance(
    method: UnrolledMethod,
    examples: Examples,
    learned: Leaves,
    state: State,
    outer_step: int,
    *,
    samples: int = 100,
    size: int = 1,
    signs: int = 0,
) -> Variance:
    """Return the variance of one outer step's meta-gradient over the real data.

    The gradient is that in the images, as one vector. The unroll is the one that the outer step
    would take; its real batch is drawn as there, and divided among the samples.

    Args:
        method: one that unrolls.
        examples: the set as the method sees it.
        learned: what the method learns beside it.
        state: the method's.
        outer_step: number of the outer step.
        samples: n (100 in the paper).
        size: real images in a sample; the mean of `size` has 1 / `size` of an image's variance.
        signs: number of random-sign combinations to estimate from; 0: take each sample's own
            gradient.
    Returns:
        The variance. Beside the unroll's N + M steps it takes n ways back of M steps each, or signs
            + 1.
    """
    replay = Replay(outer_step)
    trajectory = method.trajectory(examples, learned, replay, *method.window(state, replay))

    def gradient(weights: Tensor) -> Tensor:
        return (
            trajectory.of_samples(replay, samples, size, weights)
            .leaves["images"][examples.frozen :]
            .flatten()
        )

    if not signs:
        return exact_variance(gradient, samples)
    return variance_by_signs(
        gradient, samples, random_signs(signs, samples, method.problem.seed, outer_step)
    )


def random_signs(count: int, n: int, seed: int, outer_step: int) -> Tensor:
    """Draw signs (count, n), +1 or -1 with equal probability.

    Args:
        count: vectors of signs.
        n: signs in each.
        seed: of the run.
        outer_step: number of the outer step.
    """
    return (
        2 * torch.randint(2, (count, n), generator=generator(seed, "signs", outer_step)) - 1
    ).float()


def noise_sources(
    method: UnrolledMethod,
    examples: Examples,
    learned: Leaves,
    state: State,
    outer_step: int,
    n: int,
) -> dict[str, Variance]:
    """Split the noise of a trajectory's meta-gradient by source: real batch, start and window.

    n of each are drawn as in the next n outer steps, and combined in all n^3 ways. A start is a
    fresh network and its synthetic batches; windows are drawn at the sampler's present state.

    Args:
        method: one that unrolls.
        examples: the set as the method sees it.
        learned: what the method learns beside it.
        state: the method's.
        outer_step: the first of those outer steps.
        n: at least 2.
    Returns:
        "real", "start", "window": the variance when only that source is drawn anew, averaged over
            the other two; "all": when all three are drawn anew, as from outer step to outer step.
            Each has the norm of the mean over all combinations and the mean squared length. Where
            sources interact, the first three add up to more than the last. It takes n^2 unrolls and
            n^3 ways back.
    """
    windows = [
        method.window_of(state, Replay(outer_step + drawn), outer_step) for drawn in range(n)
    ]

    def draws(start: int, drawn: int) -> list[Tensor]:
        trajectory = method.trajectory(
            examples, learned, Replay(outer_step + start), *windows[drawn]
        )
        gradients = (trajectory.meta_gradient(Replay(outer_step + real)) for real in range(n))
        return [one.leaves["images"][examples.frozen :].flatten() for one in gradients]

    return factorial(draws, windows, n)


def factorial(
    draws: Callable[[int, int], list[Tensor]], windows: list[tuple[int, int]], n: int
) -> dict[str, Variance]:
    """Return the variances of `noise_sources` from n starts x n windows x n real batches.

    Args:
        draws: (start, window) -> the n vectors of the real batches.
        windows: the (burn_in, window) pairs; equal pairs give equal vectors, computed once.
        n: how many of each.
    """
    everything = Running()
    sums: dict[str, dict[tuple[int, int], Running]] = {
        name: defaultdict(Running) for name in SOURCES
    }
    for start in range(n):
        known: dict[tuple[int, int], list[Tensor]] = {}
        for window in range(n):
            if windows[window] not in known:
                known[windows[window]] = draws(start, window)
            for real, vector in enumerate(known[windows[window]]):
                everything.add(vector)
                sums["real"][start, window].add(vector)
                sums["start"][window, real].add(vector)
                sums["window"][start, real].add(vector)
                # Along a diagonal of the cube no draw comes twice.
                sums["all"][(window - start) % n, (real - start) % n].add(vector)
    norm, power, entries = float(everything.mean.norm()), everything.power, len(everything.mean)
    return {
        name: Variance(
            statistics.fmean(line.per_entry for line in lines.values()), norm, power, entries, n
        )
        for name, lines in sums.items()
    }
