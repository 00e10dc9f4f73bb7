"""Common part of the studies that follow runs with a truncated window through their course.

Each is a set of runs that differ in one thing. Runs of one seed share the images that they start
from and, at every outer step, the network's start and the real batch.
"""

import dataclasses
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from potstill.config.config import layered, options_from_preset
from potstill.diagnosis.over_a_run import Noise
from potstill.reports.plots import Drawing, Series, line_figure
from potstill.studies.claims import Throughout
from potstill.studies.results import ACCURACY, Measurement, Quantity, Results, Table
from potstill.studies.workplace import Point, Subject, Workplace, paper_data, small_options

STEP = "outer step"
AFTER = "After {:g} outer steps"
COURSE = Quantity(ACCURACY, STEP, percent=True, where=AFTER)
METHODS = ("rat-bptt", "bptt", "t-bptt", "r-bptt")
Ways = dict[str, dict[str, Any]]
"""Name -> the options in which a way differs."""


@dataclass(frozen=True)
class Setting:
    """How large the studies are.

    Args:
        options: of every run, T and M among them.
        steps: outer steps.
        every: outer steps between tests of the set.
        noise: how the noise of the meta-gradient is measured at each test.
        sources: n of the sources of noise, which are measured at every fifth test.
    """

    options: Mapping[str, Any]
    steps: int
    every: int
    noise: Noise
    sources: int

    @property
    def unroll(self) -> int:
        """T, the inner steps of an unroll."""
        return int(self.options["unroll"])

    @property
    def window(self) -> int:
        """M, the inner steps that are differentiated."""
        return int(self.options["window"])

    def run(self, way: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return the options of a run."""
        own = {
            "steps": self.steps,
            "checkpoint_every": self.every,
            "keep_checkpoints": 0,
            "seed": seed,
        }
        return layered(self.options, own, way)

    def lasting(self, steps: int | None) -> "Setting":
        """Return the same with so many outer steps, tested as often; None: as it is."""
        if steps is None:
            return self
        every = max(1, self.every * steps // self.steps)
        return dataclasses.replace(self, steps=steps, every=every)

    def __str__(self) -> str:
        known = self.options
        return (
            f"{self.steps:,} outer steps; {known['ipc']} of each class; unless said otherwise T = "
            f"{self.unroll}, M = {self.window}; ConvNet of width {known['width']}, "
            f"{known['preprocess']}. Runs of one seed share their first images, and at each outer "
            "step the network's start and the real batch."
        )


def setting_of(preset: str, data: str | None) -> Setting:
    """Return the sizes of a preset.

    "small" runs on digits or other small data, "paper" is the paper's setting on CIFAR-10.

    Raises:
        InputError: "paper" without data.
    """
    if preset == "small":
        own = {
            "ipc": 1,
            "unroll": 60,
            "window": 20,
            "lengths": (60, 200),
            "validate_every": 50,
            "validation_nets": 2,
        }
        return Setting({**small_options(data), **own}, 200, 20, Noise(100, signs=10, unrolls=3), 5)
    # The paper's figures have T = 120 and M = 40; how many outer steps they show, its text does not
    # say.
    known = {
        **options_from_preset("cifar10-ipc10"),
        "data": paper_data(data),
        "unroll": 120,
        "window": 40,
        "lengths": (300, 600, 1000),
    }
    known.pop("steps")
    return Setting(known, 10_000, 500, Noise(100, unrolls=3), 5)


class Courses:
    """Common part of the studies: the accuracy in the course of each run."""

    quantities: tuple[Quantity, ...] = (COURSE,)

    def ways(self, setting: Setting) -> Ways:
        """Return what is compared."""
        raise NotImplementedError

    def setting(self, preset: str, data: str | None, steps: int | None = None) -> Setting:
        """Return how large the study is."""
        return setting_of(preset, data).lasting(steps)

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        """Say what a preset runs."""
        setting = self.setting(preset, data, steps)
        lengths = ", ".join(map(str, setting.options["lengths"]))
        return (
            f"{setting} Every {setting.every:,} outer steps the set is tested: networks train for "
            f"the length that is best on validation data among {lengths} steps and are measured on "
            "test data."
        )

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        setting = self.setting(preset, data, steps)
        return [
            Point(
                f"{re.sub(r'[^a-z0-9.]+', '-', way.lower())}-seed{seed}",
                setting.run(options, seed),
                self.measure(way, setting),
            )
            for seed in seeds
            for way, options in self.ways(setting).items()
        ]

    def measure(self, way: str, setting: Setting) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a run."""
        return lambda subject: list(accuracies(way, subject))

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        return [
            Drawing(
                "accuracy", "Test accuracy in the course of distillation", curves(results[COURSE])
            )
        ]


class Timed:
    """Common part of the studies whose runs all have the same time.

    Args:
        time_budget: the time of each run, such as 5m; empty: the preset's.
    """

    def __init__(self, time_budget: str = "") -> None:
        self.time_budget = time_budget

    def scale(self, preset: str, data: str | None, steps: int | None) -> Any:
        """Return how large the study is; its text says what is run."""
        raise NotImplementedError

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        """Say what a preset runs."""
        return str(self.scale(preset, data, steps))


def accuracies(way: str, subject: Subject) -> Iterator[Measurement]:
    """Yield the test accuracy at every kept checkpoint."""
    for step, distilled in subject.course():
        yield Measurement.of(
            way, subject.bench.of_set(way, distilled, subject.lengths), subject.seed, at=step
        )


def single(
    quantity: Quantity, way: str, at: float, subject: Subject, value: float, detail: str
) -> Measurement:
    """Return a measurement that is one value.

    Args:
        quantity: what was measured.
        way: what is compared.
        at: the x value.
        subject: with the seed.
        value: the value.
        detail: how it was measured, in words.
    """
    return Measurement(quantity.name, way, at, subject.seed, value, None, 1, detail)


def curves(table: Table, ways: Sequence[str] | None = None) -> Figure:
    """Draw lines over outer steps.

    Fractions are shown by mean and standard deviation over seeds, other quantities by median and
    range.
    """
    series, quantity = [], table.quantity
    for look, way in enumerate(table.ways()):
        if ways is not None and way not in ways:
            continue
        positions = table.positions(way)
        if not quantity.percent:
            columns = [sorted(table.cell(way, at).values()) for at in positions]
            middle = [statistics.median(column) for column in columns]
            below = [mid - column[0] for mid, column in zip(middle, columns, strict=True)]
            above = [column[-1] - mid for mid, column in zip(middle, columns, strict=True)]
            series.append(Series(way, positions, middle, [below, above], look))
        else:
            means, deviations = zip(*(table.spread(way, at) for at in positions), strict=True)
            series.append(Series(way, positions, means, deviations, look))
    return line_figure(
        series,
        quantity.x_name,
        quantity.name,
        log_y=quantity.log,
        percent=quantity.percent,
        size=(560, 330),
    )


def later(table: Table) -> Table:
    """Average each course over its second half, by way and seed.

    The average depends less on chance than the last value.
    """
    end = max(row.at for row in table.rows)
    quantity = dataclasses.replace(
        table.quantity, where="Mean over the second half of {:g} outer steps"
    )
    rows = []
    for way in table.ways():
        seeds = {row.seed: row for row in table.rows if row.way == way}
        for seed, row in seeds.items():
            values = [table.cell(way, at)[seed] for at in table.positions(way) if at > end / 2]
            rows.append(
                dataclasses.replace(
                    row, at=end, mean=statistics.fmean(values), std=None, n=len(values)
                )
            )
    return Table(tuple(rows), quantity)


def throughout(table: Table, first: str, second: str, expected: int) -> Throughout:
    """Count the steps where the first way is above (+1) or below (-1) the second in all seeds.

    Args:
        table: of one quantity.
        first: a way.
        second: the way that it is compared with.
        expected: +1 or -1.
    """
    positions = [at for at in table.positions(first) if table.cell(second, at)]
    differences = [table.difference((first, at), (second, at)).values for at in positions]
    agreed = sum(all(value * expected > 0 for value in values) for values in differences)
    return Throughout(first, second, expected > 0, agreed, len(positions))
