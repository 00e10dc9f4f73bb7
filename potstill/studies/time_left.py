"""How long a study still takes, by what was timed of it so far."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill import files
from potstill.config.durations import in_words
from potstill.config.sections import OuterConfig

Times = dict[str, list[float]]
"""Kind of a run -> seconds, of each that was timed."""


class TimeLeft:
    """The time that a study still takes, which a process finds out as it works.

    Runs that differ only in their seed are taken to last alike, others as long as the mean of all;
    one that is planned by time, as long as it may take. Nothing is told before a part of one run
    was timed.

    Args:
        jobs: processes that share the study.
        clock: tells the time, in seconds.
    """

    def __init__(self, jobs: int = 1, clock: Callable[[], float] = time.monotonic):
        self.jobs, self.clock = jobs, clock
        self.making, self.measuring = Times(), Times()
        self.kind, self.whole, self.distilling, self.began = "", True, True, 0.0
        self.budget = 0.0
        self.first: tuple[int, float] | None = None
        self.pace: float | None = None  # seconds for an outer step
        self.step_now = self.steps = 0

    def begin(self, options: Mapping[str, Any], *, whole: bool = True, made: bool = False) -> None:
        """Note that the work on a run begins.

        Args:
            options: of the run.
            whole: whether it begins with its first step, not where it was cut off.
            made: whether its set is there already, and only measured.
        """
        self.kind, self.whole, self.distilling = kind_of(options), whole, not made
        self.budget = budget_of(options)
        self.began, self.first, self.pace = self.clock(), None, None

    def step(self, step: int, steps: int) -> None:
        """Note that an outer step of the run is done; the first, which warms up, is not timed."""
        now = self.clock()
        self.first = self.first or (step, now)
        if step > self.first[0]:
            self.pace = (now - self.first[1]) / (step - self.first[0])
        self.step_now, self.steps = step, steps

    def made(self) -> None:
        """Note that the run's set is there, and is measured next."""
        if self.distilling and self.whole:
            self.making.setdefault(self.kind, []).append(self.clock() - self.began)
        self.began, self.distilling = self.clock(), False

    def measured(self) -> None:
        """Note that the set was measured."""
        self.measuring.setdefault(self.kind, []).append(self.clock() - self.began)

    def words(self, later: Sequence[tuple[Mapping[str, Any], bool]]) -> str:
        """Say how long the study still takes; "" before it can be known.

        Args:
            later: (options, whether the set is there already) of each run after this one.
        """
        pace = self.pace or 0.0
        known = self.making or self.pace
        if not (known if self.distilling or not all(made for _, made in later) else self.measuring):
            return ""
        here = mean(self.measuring, self.kind)
        if self.distilling:
            steps_left = (self.steps - self.step_now) * pace or mean(self.making, self.kind)
            time_left = max(0.0, self.budget - (self.clock() - self.began))
            here += time_left if self.budget else steps_left
        else:
            here = max(0.0, here - (self.clock() - self.began))
        rest = 0.0
        for options, made in later:
            kind = kind_of(options)
            rest += mean(self.measuring, kind)
            making = budget_of(options) or mean(self.making, kind) or self.steps * pace
            rest += 0.0 if made else making
        least = "about" if self.measuring else "at least"
        return f"{least} {in_words(here + rest / self.jobs)} left"


def kind_of(options: Mapping[str, Any]) -> str:
    """Name what runs have in common that differ only in their seed."""
    return files.canonical({**options, "seed": None})


def budget_of(options: Mapping[str, Any]) -> float:
    """Return the seconds that a run may take; 0: it is planned by steps."""
    return OuterConfig(time_budget=options.get("time_budget", "")).budget_seconds


def mean(times: Times, kind: str) -> float:
    """Return the mean seconds of a kind, or of all if none of it was timed; 0 if none was."""
    own = times.get(kind) or [seconds for known in times.values() for seconds in known]
    return statistics.fmean(own) if own else 0.0
