"""Planning a run by time: as many outer steps as fit, beside what comes after them."""

import time
from dataclasses import dataclass

from potstill.config.config import Given, changed
from potstill.config.durations import in_words
from potstill.data.preprocessing import Preprocess
from potstill.data.splits import Dataset
from potstill.distillation.boosting import Stage
from potstill.distillation.forecasts import MEASURED_STEPS
from potstill.distillation.outer import Carried
from potstill.distillation.setup import Setup
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError
from potstill.models import ModelSpec
from potstill.progress import SILENT, Listener

LEAST_SHARE = 0.25
"""Share of a budget of about so long that outer steps get, however slow the machine."""
COMPILES_FROM = 600.0
"""Seconds of a budget from which on compiling may pay."""
MARGIN = 3
"""How many times as many steps are planned as a measured one says: compiled ones are faster."""
PROBES = (5, 10, 40)
"""Training steps of three validations that are timed; the first one warms up."""


@dataclass(frozen=True)
class TimeBudget:
    """How long a run may take; of a nested run, how long its first block may.

    The other blocks of a nested run take as many steps as the first one took.

    Args:
        seconds: from the run's begin to its end.
        began: when it began, by `time.perf_counter`.
        reserve: seconds of them that the last validation and the choice of the training length
            take.
    """

    seconds: float
    began: float
    reserve: float

    @classmethod
    def of(cls, setup: Setup, began: float, stepped: float = 0.0) -> "TimeBudget | None":
        """Measure what a run keeps time for; None if it is planned by steps.

        Args:
            setup: of the run.
            began: when it began, by `time.perf_counter`.
            stepped: seconds since then that were outer steps of the first block.
        Raises:
            InputError: the budget leaves no time for outer steps, or blocks are added to a set.
        """
        seconds = setup.config.outer.budget_seconds
        if not seconds:
            return None
        if setup.kept:
            raise InputError(
                "time_budget has no effect where blocks are added to a set, got "
                f"{setup.config.outer.time_budget}; give --steps"
            )
        reserve = to_keep(setup)
        left = seconds - (time.perf_counter() - began) - reserve
        least = LEAST_SHARE * seconds
        if setup.config.outer.budget_about and left < least:
            setup.listener.say(
                "reading, preparing and choosing the training length alone take "
                f"{in_words(seconds - left)} here: it will take {in_words(seconds - left + least)}"
            )
            seconds, left = seconds - left + least, least
        if left <= 0:
            raise InputError(
                f"time_budget must leave time for outer steps: reading, preparing, compiling and "
                f"choosing the training length take {in_words(seconds - left)}, got "
                f"{setup.config.outer.time_budget}; give more, or fewer --lengths or "
                "--validation-nets"
            )
        kept = f"{in_words(reserve)} are kept for choosing the training length"
        if len(setup.blocks) == 1:
            setup.listener.say(f"planned by time: {in_words(left)} for outer steps, {kept}")
            return cls(seconds, began, reserve)
        whole = left + stepped
        first = max(0.0, share_of_first(setup) * whole - stepped)
        setup.listener.say(
            f"planned by time: {in_words(whole)} for outer steps of {len(setup.blocks)} blocks, "
            f"{in_words(first + stepped)} of them for the first one; the others take as many "
            f"steps, and {kept}"
        )
        return cls(time.perf_counter() - began + first, began, 0.0)

    @property
    def gone(self) -> float:
        """The seconds since the run began."""
        return time.perf_counter() - self.began

    def share(self) -> float:
        """Return the share of the time for reading, preparing and outer steps that is over."""
        return self.gone / (self.seconds - self.reserve)

    def expected_steps(self, done: int, taken: int, since: float) -> int:
        """Return about how many outer steps the run will have in all.

        Args:
            done: those of the run so far.
            taken: those of them since `since`.
            since: the value of `gone` when the first of these began.
        """
        left = max(0.0, self.seconds - self.reserve - self.gone)
        pace = (self.gone - since) / taken
        return done + max(1, int(left / pace))

    def over(self, step_seconds: float) -> bool:
        """Return whether another step of so many seconds would be too much."""
        return self.gone + step_seconds + self.reserve >= self.seconds


def to_keep(setup: Setup) -> float:
    """Return about how many seconds the choices of a length take, one for each block."""
    whole = expected(setup, setup.blocks)
    if len(setup.blocks) == 1:
        return whole
    return len(setup.blocks) * (expected(setup, setup.blocks[:1]) + whole) / 2


def share_of_first(setup: Setup) -> float:
    """Return the share of a nested run's outer steps that the first block takes, by measurement.

    From the first block to the last, the time of a step is taken to grow by the same each.
    """
    first, last = (
        seconds_of_step(setup, Stage(blocks, setup.rates))
        for blocks in (setup.blocks[:1], setup.blocks)
    )
    return first / (len(setup.blocks) * (first + last) / 2)


def expected(setup: Setup, blocks: tuple[Block, ...]) -> float:
    """Return about how many seconds the last validation and the choice of a length will take."""
    recipe = setup.recipe
    times = [timed(setup, blocks, recipe, steps) for steps in PROBES]
    each = max(0.0, (times[2] - times[1]) / (PROBES[2] - PROBES[1]))
    once = max(0.0, times[1] - PROBES[1] * each)
    lengths = setup.lengths
    choosing = each * max(lengths) + once * len(lengths)
    return choosing + each * lengths[0] + once


def timed(setup: Setup, blocks: tuple[Block, ...], recipe: Recipe, steps: int) -> float:
    """Return the seconds of a validation with so many training steps."""
    began = time.perf_counter()
    setup.validation_scores(blocks, recipe, (steps,))
    return time.perf_counter() - began


def with_steps_to_plan(
    config: Given, dataset: Dataset, model: ModelSpec | None, listener: Listener
) -> tuple[Given, Preprocess | None]:
    """Return the configuration with more steps than the time will allow, if it is planned by time.

    What depends on the number of steps (whether to compile, when a window grows) follows from a
    step that is measured. The clock ends the run before they are taken.

    Args:
        config: as the user gave it.
        dataset: the real data.
        model: a callable in place of the configuration's model.
        listener: is told of the measurement.
    Returns:
        The configuration, and the preprocessing if it was fitted for the measurement.
    """
    seconds = config.outer.budget_seconds
    if not seconds or config.outer.steps != "auto":
        return config, None
    listener.say("planning by time: measuring a step")
    plain = changed(config, steps=1, compile="off", time_budget="")
    setup = Setup.of(plain, dataset, model, SILENT)
    setup.cache.listener = listener  # experts may take long
    steps = max(1, int(MARGIN * seconds / seconds_of_step(setup, setup.stage(None))))
    # Compiling takes about a minute, which a short run has better uses for.
    short = config.run.compile == "auto" and seconds < COMPILES_FROM
    planned = changed(config, steps=steps, compile="off" if short else config.run.compile)
    return planned, setup.real.preprocess


def seconds_of_step(setup: Setup, stage: Stage) -> float:
    """Measure an outer step of a stage: the mean of some, after one that warms up."""
    method = setup.make_method(stage, Carried())
    state, on_blocks = setup.begin(stage, method), stage.on_blocks(method, setup.device)
    times = []
    for step in range(MEASURED_STEPS + 1):
        began = time.perf_counter()
        on_blocks.estimate(state.leaves, state.method, step)
        times.append(time.perf_counter() - began)
    return sum(times[1:]) / MEASURED_STEPS
