"""The study of levers: what each way to spend the same time better is worth beside plain RaT-BPTT.

All runs of a scale have the same time, whatever an outer step of theirs costs; what is chosen is
chosen on validation data, and told on test data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.config.config import options_from_preset
from potstill.config.durations import in_words, seconds_of
from potstill.data.augmentation import GENTLE
from potstill.models.convnet import ConvNetOptions
from potstill.reports.plots import Drawing, dot_figure
from potstill.studies.boosting import RANDOM
from potstill.studies.claims import Claim, compared
from potstill.studies.over_time import Timed, single
from potstill.studies.results import ACCURACY, Measurement, Quantity, Results
from potstill.studies.workplace import Point, Subject, Workplace, paper_data, small_options

PLAIN, TOGETHER = "plain", "together"
WHERE = "After {:g} s"
ACCURACY_AFTER = Quantity(ACCURACY, "seconds of a run", percent=True, where=WHERE)
VALIDATION = Quantity("validation accuracy", "seconds of a run", percent=True, where=WHERE)
STEPS = Quantity("outer steps", "seconds of a run", where=WHERE)
COSINE = {"outer_schedule": "cosine", "outer_lr": "3x"}
LEVERS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "outer rate 3 times": {"outer_lr": "3x"},
    "3 times, then cosine": COSINE,
    "3 times, warm-up, cosine": {**COSINE, "warm_up": 0.05},
    "average of the set": {"average": 0.95},
    "2 trajectories": {"trajectories": 2},
    "pool of 10 networks": {"pool": 10},
    "pool and cosine": {**COSINE, "pool": 10},
    "2 loss points": {"loss_points": 2},
    "balanced real batch": {"real_sampler": "balanced"},
    "half the real batch": {"real_batch": "half"},
    "half the window": {"window": "half", "unroll": "half"},
    "networks of half the width": {"inner_width": "half"},
    "learned labels": {"learn_labels": True},
    "AdaBelief": {"outer_optimizer": "adabelief"},
    "growing unrolls": {"method": "growing"},
    "from real images": {"init": "real"},
    "augmentation": {"augment": "more"},
    "augmentation, half the window, 3 times, from real images": {
        "augment": "more", "init": "real", "outer_lr": "3x", "window": "half", "unroll": "half",
    },
    TOGETHER: {**COSINE, "warm_up": 0.05, "pool": 10, "learn_labels": True},
}  # fmt: skip
"""Name -> options; "3x", "half" and "more" are of what the plain run has, or of its width."""
MOST = 50_000
"""More outer steps than fit."""
RATE = 3
"""How many times the outer rate of "3x" is that of the plain run."""
GROWING = 100
"""Outer steps over which unrolls grow: under a time budget nobody knows how many there will be."""


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Args:
        options: of the plain run.
        budget: the time of each run; empty: by outer steps.
    """

    options: Mapping[str, Any]
    budget: str

    def run(self, lever: str, seed: int) -> dict[str, Any]:
        """Return the options of a run."""
        known = {**self.options, "seed": seed}
        plain = {**self.options, "inner_width": self.width}
        if self.budget:
            known["time_budget"] = self.budget
        for name, value in LEVERS[lever].items():
            if value == "3x":
                known[name] = RATE * self.options[name]
            elif value == "half":
                known[name] = max(1, plain[name] // 2)
            elif value == "more":
                known[name] = tuple(dict.fromkeys((*plain[name], *GENTLE)))
            else:
                known[name] = value
        if known.get("method") == "growing":
            known.pop("window")
            known |= {"unroll": 2 * self.options["window"], "grow_over": GROWING}
        return known

    @property
    def width(self) -> int:
        """The channels of the ConvNet."""
        return int(self.options.get("width", ConvNetOptions().width))

    @property
    def seconds(self) -> float:
        """Seconds of a run; 0 without a budget."""
        return seconds_of("time_budget", self.budget) if self.budget else 0.0

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps in place of the time; None: as it is."""
        return self if steps is None else Scale({**self.options, "steps": steps}, "")

    def __str__(self) -> str:
        known = self.options
        time = in_words(self.seconds) if self.budget else f"{known['steps']:,} outer steps"
        return (
            f"RaT-BPTT, one image a class, {time} for every run, T = {known['unroll']}, "
            f"M = {known['window']}, real batches of {known['real_batch']}, outer rate "
            f"{known['outer_lr']:g}; ConvNet of width {self.width}, "
            f"{known['preprocess']}. Networks train for the length that is best on validation "
            f"data among {', '.join(map(str, known['lengths']))} steps and are measured on test "
            "data. A run's time is that of all of it, from preparing the data to choosing the "
            f"length. Growing unrolls go to {2 * known['window']} in {GROWING} outer steps."
        )


def scale_of(preset: str, data: str | None) -> Scale:
    """Return the sizes of a preset.

    "small" runs on digits or other small data, "paper" is the paper's setting on CIFAR-10.

    Raises:
        InputError: "paper" without data.
    """
    rare = {"validate_every": MOST, "steps": MOST, "validation_nets": 3, "lengths": (100, 300)}
    if preset == "small":
        shared = {**small_options(data), **rare}
        if shared["data"] == "digits":
            return Scale({**shared, "outer_lr": 0.01, "unroll": 60, "window": 20}, "20s")
        own: dict[str, Any] = {"outer_lr": 0.003, "unroll": 60, "window": 20, "compile": "auto"}
        return Scale({**shared, **own}, "2m")
    known = {**options_from_preset("cifar10-ipc1"), "data": paper_data(data)}
    return Scale({**known, **rare, "lengths": (300, 600, 1000)}, "10m")


class Levers(Timed):
    """Each lever alone, and some together, at equal time."""

    title = "What the same time is worth, spent in different ways"
    quantities = (ACCURACY_AFTER, VALIDATION, STEPS)

    def scale(self, preset: str, data: str | None, steps: int | None) -> Scale:
        """Return how large the study is."""
        scale = scale_of(preset, data)
        if self.time_budget:
            scale = replace(scale, budget=self.time_budget)
        return scale.lasting(steps)

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = self.scale(preset, data, steps)
        return [
            Point(
                f"{name.replace(' ', '-').replace(',', '')}-seed{seed}",
                scale.run(name, seed),
                self.measure(name, scale.seconds),
            )
            for seed in seeds
            for name in LEVERS
        ]

    def measure(self, lever: str, seconds: float) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a set, and beside the plain one as many real images."""

        def measured(subject: Subject) -> list[Measurement]:
            distilled, bench, records = subject.distilled, subject.bench, subject.folder.records()
            rows = [bench.of_set(lever, distilled, subject.lengths)]
            if lever == PLAIN:
                rows.append(bench.of_random(RANDOM, distilled.ipc, subject.lengths))
            found = [Measurement.of(row.name, row, subject.seed, seconds) for row in rows]
            figures = [record.validation for record in records if record.validation]
            best = max(figure.mean for figure in figures)
            found.append(single(VALIDATION, lever, seconds, subject, best, "logged"))
            found.append(single(STEPS, lever, seconds, subject, len(records), "counted"))
            return found

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        accuracy = results[ACCURACY_AFTER]
        (at,) = accuracy.positions(PLAIN)
        dots = [(way, *accuracy.spread(way, at)) for way in accuracy.ways()]
        return [
            Drawing(
                "accuracy",
                "Test accuracy after the same time",
                dot_figure(dots, "test accuracy", percent=True),
            )
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[ACCURACY_AFTER]
        (at,) = table.positions(PLAIN)
        return [
            Claim(
                "Not in the paper",
                f"what {name} is worth beside plain RaT-BPTT",
                [compared(table, (name, at), (PLAIN, at), 0)],
            )
            for name in LEVERS
            if name in table.ways() and name != PLAIN
        ]
