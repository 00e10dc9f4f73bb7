"""The real batch that makes the most of a run's time, from its measured noise and cost."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

from potstill.diagnosis.variance import Variance
from potstill.engine.unroll import Leaves
from potstill.methods.base import Examples, State
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import UnrolledMethod

TURNS = 5
"""How often each size is timed; the least counts, for other programs only ever add."""


@dataclass(frozen=True)
class RealBatch:
    """How many real images a trajectory is best tested on.

    Args:
        best: the number for which the noise of a given time is least.
        present: the number that the run has.
        gain: the time that `present` takes to the same noise, over that of `best`.
    """

    best: int
    present: int
    gain: float


def best_size(
    sources: Mapping[str, Variance], present: int, fixed: float, each: float, most: int
) -> RealBatch:
    """Weigh noise against cost.

    With B real images a trajectory's meta-gradient has the variance V + v / B, where v is that of
    one real image and V comes from start and window, and it takes the time c + d B. Over a given
    time the noise of the mean is as (V + v / B) (c + d B), which is least at
    B = sqrt(v c / (V d)).

    Args:
        sources: see `variance.noise_sources`, at `present` real images.
        present: real images of a trajectory now.
        fixed: seconds of a trajectory without its real images.
        each: seconds of one of them.
        most: real images that there are.
    """
    of_image = sources["real"].per_entry * present
    others = max(0.0, sources["all"].per_entry - sources["real"].per_entry)
    against, gaining = others * each, of_image * fixed
    best = most if gaining >= against * most**2 else max(1, round((gaining / against) ** 0.5))

    def noise_in_time(size: int) -> float:
        return (others + of_image / size) * (fixed + each * size)

    least = noise_in_time(best)
    return RealBatch(best, present, noise_in_time(present) / least if least else 1.0)


def real_batch(
    method: UnrolledMethod,
    examples: Examples,
    learned: Leaves,
    state: State,
    outer_step: int,
    sources: Mapping[str, Variance],
) -> RealBatch | None:
    """Return the best real batch at an outer step, by this machine's clock.

    The outer step's unroll is timed with the run's real batch and with twice that.

    Args:
        method: one that unrolls.
        examples: the set as the method sees it.
        learned: what the method learns beside it.
        state: the method's.
        outer_step: the number of the outer step.
        sources: the noise there, see `variance.noise_sources`.
    Returns:
        The sizes; None where there are too few real images to tell, or the clock says that more of
        them take no longer.
    """
    real = method.problem.real
    if 2 * real.batch > len(real.train):
        return None
    window = method.window(state, Replay(outer_step))
    doubled = dataclasses.replace(
        method.problem, real=dataclasses.replace(real, batch=2 * real.batch)
    )
    sizes = (method, type(method)(doubled, method.options))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for one, own in zip(sizes, seconds, strict=True):
            began = time.perf_counter()
            replay = Replay(outer_step)
            found = one.trajectory(examples, learned, replay, *window).meta_gradient(replay)
            float(found.loss)  # waits for the device
            own.append(time.perf_counter() - began)
    once, twice = map(min, seconds)
    each = (twice - once) / real.batch
    fixed = once - each * real.batch
    if each <= 0 or fixed <= 0:
        return None
    return best_size(sources, real.batch, fixed, each, len(real.train))
