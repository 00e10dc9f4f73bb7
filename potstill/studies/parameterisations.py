"""The study of parameterisations: how good a set of the same bytes is, by how images are stored.

Source: section 4.2 and Table 2 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. There each
    parameterisation comes with a method of its own, and only the linear basis with RaT-BPTT; here
    all have the same method.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config.config import options_from_preset
from potstill.distilled.picture import write_grid
from potstill.registry import PARAMETERISATIONS
from potstill.reports.plots import Drawing, dot_figure
from potstill.studies.boosting import RANDOM, lines
from potstill.studies.claims import Claim, Finding, Reading, compared
from potstill.studies.over_time import STEP, curves, single
from potstill.studies.results import ACCURACY, Measurement, Quantity, Results, Table
from potstill.studies.workplace import (
    OFTEN_VALIDATED,
    Point,
    Subject,
    Workplace,
    paper_data,
    small_options,
)

BUDGET = "images per class of the budget"
ACCURACY_BY_BUDGET = Quantity(ACCURACY, BUDGET, percent=True, where="At {:g} a class")
BYTES = Quantity("bytes stored", BUDGET, where="At {:g} a class")
DECODED = Quantity("images of a class that networks train on", BUDGET, where="At {:g} a class")
SHARE = Quantity(
    "share of an outer step that decoding takes (median)",
    BUDGET,
    percent=True,
    where="At {:g} a class",
)
SECONDS = Quantity("seconds for an outer step (median)", BUDGET, where="At {:g} a class")
VALIDATION = Quantity(
    "validation accuracy at the smallest budget", STEP, percent=True, where="After {:g} outer steps"
)
PIXELS, BASIS = "pixels", "basis"


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Args:
        budgets: images per class -> options of its runs.
    """

    budgets: Mapping[int, Mapping[str, Any]]

    def run(self, ipc: int, param: str, seed: int) -> dict[str, Any]:
        """Return the options of a run.

        A synthetic batch holds as many examples of each class as there are, up to 100 images in
        all.
        """
        return {
            **self.budgets[ipc],
            "batch_per_class": "auto",
            "ipc": ipc,
            "param": param,
            "seed": seed,
        }

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps; None: as it is."""
        own = {} if steps is None else {"steps": steps}
        return Scale({ipc: {**options, **own} for ipc, options in self.budgets.items()})

    def __str__(self) -> str:
        known = next(iter(self.budgets.values()))
        lengths = ", ".join(
            f"T = {own['unroll']}, M = {own['window']} at {ipc} a class"
            for ipc, own in sorted(self.budgets.items())
        )
        return (
            f"RaT-BPTT, {known['steps']:,} outer steps for every set, {lengths}; ConvNet of width "
            f"{known.get('width', 128)}, {known['preprocess']}; bases and parts at half the "
            "resolution. What is stored takes at most the bytes of the budget's images. Networks "
            "train for the length that is best on validation data among "
            f"{', '.join(map(str, known['lengths']))} steps and are measured on test data."
        )


def scale_of(preset: str, data: str | None) -> Scale:
    """Return the sizes of a preset.

    "small" runs on digits or other small data, "paper" is the paper's setting on CIFAR-10.

    Raises:
        InputError: "paper" without data.
    """
    if preset == "small":
        shared = {**small_options(data), **OFTEN_VALIDATED}
        if shared["data"] == "digits":
            return Scale(
                {ipc: {**shared, "unroll": 60, "window": 20, "steps": 150} for ipc in (1, 2)}
            )
        # Images of 32 pixels take some ten times as long.
        return Scale({1: {**shared, "unroll": 30, "window": 10, "steps": 100}})
    chosen = {}
    for ipc in (1, 10):
        known = options_from_preset(f"cifar10-ipc{ipc}")
        chosen[ipc] = {**known, "data": paper_data(data), "lengths": (300, 600, 1000)}
    return Scale(chosen)


class Parameterisations:
    """Table 2."""

    title = "What the same bytes are worth, by how images are stored"
    quantities = (ACCURACY_BY_BUDGET, BYTES, DECODED, SHARE, SECONDS, VALIDATION)

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        return str(scale_of(preset, data).lasting(steps))

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = scale_of(preset, data).lasting(steps)
        return [
            Point(
                f"{param}-{ipc}-seed{seed}",
                scale.run(ipc, param, seed),
                self.measure(param, ipc == min(scale.budgets)),
            )
            for seed in seeds
            for ipc in sorted(scale.budgets, reverse=True)
            for param in PARAMETERISATIONS
        ]

    def measure(self, param: str, smallest: bool) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures accuracy, bytes and cost of one set.

        Beside pixels, it also measures as many real images.
        """

        def measured(subject: Subject) -> list[Measurement]:
            distilled, bench, records = subject.distilled, subject.bench, subject.folder.records()
            rows = [bench.of_set(param, distilled, subject.lengths)]
            if param == PIXELS:
                rows.append(bench.of_random(RANDOM, distilled.ipc, subject.lengths))
            measurements = [Measurement.of(row.name, row, subject.seed) for row in rows]
            share = statistics.median(
                (record.decode_seconds or 0.0) / record.seconds for record in records
            )
            seconds = statistics.median(record.seconds for record in records)
            for quantity, value, detail in (
                (BYTES, distilled.stored_bytes, distilled.stored),
                (DECODED, distilled.per_class, "counted"),
                (SHARE, share, "logged; several runs at a time"),
                (SECONDS, seconds, "logged; several runs at a time"),
            ):
                measurements.append(single(quantity, param, distilled.ipc, subject, value, detail))
            for record in records if smallest else ():
                if figure := record.validation:
                    where = param, record.step, subject.seed
                    measurements.append(
                        Measurement(
                            VALIDATION.name, *where, figure.mean, figure.std, figure.n, "logged"
                        )
                    )
            return measurements

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        accuracy = results[ACCURACY_BY_BUDGET]
        first, least = min(row.seed for row in results.rows), min(accuracy.positions(PIXELS))
        plot = lines(accuracy, accuracy.ways())
        if accuracy.positions(PIXELS) == [least]:
            dots = [(way, *accuracy.spread(way, least)) for way in accuracy.ways()]
            plot = dot_figure(
                dots, f"test accuracy, in the bytes of {least:g} of each class", percent=True
            )
        shown = [
            point
            for point in points
            if (point.options["seed"], point.options["ipc"]) == (first, least)
        ]
        for point in shown:
            write_grid(workplace.run(point), workplace.folder / f"{point.name}.png")
        return [
            Drawing("accuracy", "Table 2's question: test accuracy by budget", plot),
            Drawing(
                "course",
                "Validation accuracy in the course of distillation",
                curves(results[VALIDATION]),
            ),
            *(
                Drawing(
                    point.name, f"What networks train on, {point.options['param']}, seed {first}"
                )
                for point in shown
            ),
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[ACCURACY_BY_BUDGET]
        budgets = table.positions(PIXELS)
        rivals = [way for way in table.ways() if way not in (PIXELS, BASIS, RANDOM)]

        def beside(first: str, second: str, expected: int) -> list[Finding]:
            return [compared(table, (first, at), (second, at), expected) for at in budgets]

        return [
            Claim(
                "Paper (Table 2)",
                "with a linear basis RaT-BPTT is better than with pixels",
                beside(BASIS, PIXELS, 1),
            ),
            *(
                Claim(
                    "Paper (Table 2, where each has a method of its own)",
                    f"a linear basis is better than {rival}",
                    beside(BASIS, rival, 1),
                )
                for rival in rivals
            ),
            *(
                Claim(
                    "Not in the paper",
                    f"what {rival} is worth with RaT-BPTT",
                    beside(rival, PIXELS, 0),
                )
                for rival in rivals
            ),
            means(results[BYTES], "{:,.0f}"),
            means(results[SHARE], "{:.2%}"),
        ]


def means(table: Table, form: str) -> Claim:
    """Return an account of a quantity: its mean over seeds for each way, at each budget."""
    findings = []
    for at in table.positions(PIXELS):
        cells = {way: tuple(table.cell(way, at).values()) for way in table.ways()}
        readings = [
            Reading(way, form.format(statistics.fmean(values)), values)
            for way, values in cells.items()
        ]  # fmt: skip
        findings.append(Finding(tuple(readings), table.quantity.where.format(at)))
    return Claim("", table.quantity.name.capitalize(), findings)
