"""Studies of window samplers by accuracy: sections 3 and 4.3, appendices D.2, D.4 and D.6.

Source: figures 4, 5, 10 and 12 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from potstill.reports.plots import Drawing
from potstill.studies.claims import Claim, Finding, Reading, compared, ratios
from potstill.studies.over_time import (
    COURSE,
    METHODS,
    STEP,
    Courses,
    Setting,
    Ways,
    accuracies,
    curves,
    later,
    single,
    throughout,
)
from potstill.studies.results import Measurement, Quantity, Results, Table
from potstill.studies.workplace import Point, Subject, Workplace

BEFORE = Quantity("inner steps before the window", STEP, where="At outer step {:g}")
SECONDS = Quantity("seconds for an outer step (median)", STEP, where="Over {:g} outer steps")


class Windows(Courses):
    """Figures 4 and 5, and the window that tends to begin early (section 4.3)."""

    title = "Where the window should lie"
    quantities = (COURSE, BEFORE, SECONDS)

    def ways(self, setting: Setting) -> Ways:
        # So that the windows come across the trajectory in the course of a run.
        patience = max(1, setting.steps // 40)
        moving = {way: {"method": way, "patience": patience} for way in ("forward", "backward")}
        return (
            {method: {"method": method} for method in METHODS}
            | moving
            | {"early": {"method": "early"}}
        )

    def measure(self, way: str, setting: Setting) -> Callable[[Subject], list[Measurement]]:
        def measured(subject: Subject) -> list[Measurement]:
            rows = [*accuracies(way, subject), time_of_a_step(way, subject)]
            if way in ("forward", "backward"):
                records = subject.folder.records()
                rows += [
                    single(BEFORE, way, one.step, subject, one.info["burn_in"], "logged")
                    for one in records
                ]
            return rows

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        course = results[COURSE]
        return [
            Drawing(
                "methods",
                "Figure 4: test accuracy in the course of distillation",
                curves(course, METHODS),
            ),
            Drawing(
                "placement",
                "Figure 5: windows at random places, moving, and rather early",
                curves(course, ("rat-bptt", "forward", "backward", "early")),
            ),
            Drawing(
                "places",
                "Where the moving windows lie: median and range over seeds",
                curves(results[BEFORE]),
            ),
        ]

    def claims(self, results: Results) -> list[Claim]:
        course, level = results[COURSE], later(results[COURSE])
        first, end = course.positions("bptt")[0], level.rows[0].at

        def against(other: str) -> Finding:
            best = compared(level, ("rat-bptt", end), (other, end), 1)
            return best.also(throughout(course, "rat-bptt", other, 1))

        worse = "a random length (R-BPTT) or a window at the end (T-BPTT) alone is worse than BPTT"
        return [
            Claim(
                "Paper (figure 4)",
                "RaT-BPTT surpasses the other methods",
                [against(other) for other in ("bptt", "t-bptt", "r-bptt")],
            ),
            Claim(
                "Paper (figure 4)",
                worse,
                [compared(level, (way, end), ("bptt", end), -1) for way in ("r-bptt", "t-bptt")],
            ),
            Claim(
                "Paper (section 3)",
                "T-BPTT improves faster than BPTT at the beginning",
                [compared(course, ("t-bptt", first), ("bptt", first), 1)],
            ),
            Claim(
                "Paper (figure 5)",
                "random places are better than moving ones",
                [against(way).also(moves(results[BEFORE], way)) for way in ("forward", "backward")],
            ),
            Claim(
                "Paper (section 4.3)",
                "more of the early places gains 0.4 points",
                [compared(level, ("early", end), ("rat-bptt", end), 1)],
            ),
            cost(results[SECONDS], "bptt"),
        ]


def moves(before: Table, way: str) -> Reading:
    """Return where a moving window was and for how long, by seed."""
    stays = []
    for seed in before.cell(way, before.positions(way)[0]):
        steps = Counter(before.cell(way, at)[seed] for at in before.positions(way))
        stays.append(", ".join(f"{start:g} ({count})" for start, count in steps.items()))
    name = "Steps before its window (and for how many outer steps), seed by seed"
    return Reading(name, "; ".join(stays))


def cost(seconds: Table, *ways: str) -> Claim:
    """Compare the time of an outer step of some ways with that of RaT-BPTT."""
    at = seconds.rows[0].at
    words = "full backpropagation takes three times as long"
    return Claim(
        "Paper (appendix D.4)",
        words,
        [
            ratios(
                f"An outer step of {way} over one of rat-bptt",
                seconds.ratio((way, at), ("rat-bptt", at)),
            )
            for way in ways
        ],
    )


class UnrollLength(Courses):
    """Figure 10, left: T of 80 to 300 for M = 40."""

    title = "How long to unroll for a window"

    def ways(self, setting: Setting) -> Ways:
        lengths = [setting.window * ratio // 10 for ratio in (20, 30, 50, 75)]
        return {f"T = {length}": {"unroll": length} for length in lengths}

    def claims(self, results: Results) -> list[Claim]:
        table = later(results[COURSE])
        two, three, five, most = table.ways()
        last = table.rows[0].at
        return [
            Claim(
                "Paper (figure 10)",
                "unrolls of two to five windows are alike",
                [compared(table, (way, last), (three, last), 0) for way in (two, five)],
            ),
            Claim(
                "Paper (figure 10)",
                "seven and a half windows are too many",
                [compared(table, (most, last), (three, last), -1)],
            ),
        ]


class WindowSize(Courses):
    """Figure 10, right: M of 40 to 100 for T = 200."""

    title = "How large a window for an unroll"

    def ways(self, setting: Setting) -> Ways:
        unroll = 5 * setting.window
        return {
            f"M = {size}": {"unroll": unroll, "window": size}
            for size in (setting.window, unroll * 3 // 10, unroll // 2)
        }

    def claims(self, results: Results) -> list[Claim]:
        table = later(results[COURSE])
        small, middle, large = table.ways()
        last = table.rows[0].at
        return [
            Claim(
                "Paper (figure 10)",
                "windows of 0.3 and 0.5 of the unroll are alike",
                [compared(table, (large, last), (middle, last), 0)],
            ),
            Claim(
                "Not in the paper's words",
                "whether they are better than one of 0.2",
                [compared(table, (way, last), (small, last), 0) for way in (middle, large)],
            ),
        ]


class Stabilising(Courses):
    """Figure 12: whether BPTT can be stabilised otherwise."""

    title = "Other ways to stabilise full backpropagation"
    quantities = (COURSE, SECONDS)

    def ways(self, setting: Setting) -> Ways:
        longest = setting.unroll * 3 // 2  # the paper's goes from 10 to 180 where T is 120
        return {
            "rat-bptt": {},
            "bptt": {"method": "bptt"},
            "r-bptt": {"method": "r-bptt"},
            "bptt, clipped at 1.05": {"method": "bptt", "clip": 1.05},
            "bptt, unit norm": {"method": "bptt", "clip": "unit"},
            "growing": {"method": "growing", "unroll": longest},
            "rat-bptt, unit norm": {"clip": "unit"},
        }

    def measure(self, way: str, setting: Setting) -> Callable[[Subject], list[Measurement]]:
        return lambda subject: [*accuracies(way, subject), time_of_a_step(way, subject)]

    def claims(self, results: Results) -> list[Claim]:
        table = later(results[COURSE])
        last = table.rows[0].at
        tried = ("bptt, clipped at 1.05", "bptt, unit norm")
        unit = "rat-bptt, unit norm"
        return [
            Claim(
                "Paper (figure 12)",
                "controlling the norm improves BPTT only marginally",
                [compared(table, (way, last), ("bptt", last), 0) for way in tried],
            ),
            Claim(
                "Paper (figure 12)",
                "and trails behind RaT-BPTT",
                [compared(table, (way, last), ("rat-bptt", last), -1) for way in tried],
            ),
            Claim(
                "Paper (figure 12)",
                "growing unrolls are worse than R-BPTT and BPTT",
                [compared(table, ("growing", last), (way, last), -1) for way in ("r-bptt", "bptt")],
            ),
            Claim(
                "Not in the paper",
                "what unit norm does for RaT-BPTT, and which is better with it",
                [compared(table, (unit, last), (way, last), 0) for way in ("rat-bptt", tried[1])],
            ),
            cost(results[SECONDS], "bptt", *tried, "growing"),
        ]


class InnerOptimizers(Courses):
    """Appendix D.6, whose T and M are those of its table for CIFAR-10, ten images a class."""

    title = "Adam or SGD in the inner loop"

    def setting(self, preset: str, data: str | None, steps: int | None = None) -> Setting:
        setting = super().setting(preset, data, steps)
        own = {"unroll": 250, "window": 80} if preset == "paper" else {}
        return dataclasses.replace(setting, options={**setting.options, **own})

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        return (
            f"{super().about(preset, data, steps)} They train as in the inner loop, with its "
            "optimizer and schedule."
        )

    def ways(self, setting: Setting) -> Ways:
        # The paper's SGD: 0.01, times 0.2 at steps 120 and 200 of 250; of momentum and weight decay
        # it says nothing.
        milestones = tuple(round(setting.unroll * step / 250) for step in (120, 200))
        sgd = {
            "inner_optimizer": "sgd",
            "inner_lr": 0.01,
            "inner_milestones": milestones,
            "inner_decay": 0.2,
        }
        return {"Adam": {}, "SGD": sgd}

    def claims(self, results: Results) -> list[Claim]:
        table = later(results[COURSE])
        last = table.rows[0].at
        return [
            Claim(
                "Paper (appendix D.6)",
                "Adam is slightly better than SGD, 69.4 to 69.0 %",
                [compared(table, ("Adam", last), ("SGD", last), 1)],
            )
        ]


def time_of_a_step(way: str, subject: Subject) -> Measurement:
    """Return the median time of a run's outer steps."""
    seconds = [record.seconds for record in subject.folder.records()]
    return single(
        SECONDS,
        way,
        len(seconds),
        subject,
        statistics.median(seconds),
        "logged; several runs at a time",
    )
