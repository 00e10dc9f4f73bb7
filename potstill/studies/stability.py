"""The study of the meta-gradient: its norm, its variance, and the sources of its noise.

Source: figures 3 and 11, section 3 and appendix D.3 of Feng, Vedantam & Kempe 2024,
    arXiv:2311.07025.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from potstill.diagnosis.over_a_run import Noise
from potstill.diagnosis.variance import SOURCES
from potstill.reports.plots import Drawing
from potstill.studies.claims import Claim, Finding, compared, ratios, reading
from potstill.studies.over_time import (
    AFTER,
    METHODS,
    STEP,
    Courses,
    Setting,
    Ways,
    curves,
    single,
    throughout,
)
from potstill.studies.results import Measurement, Quantity, Results, Table
from potstill.studies.workplace import Point, Subject, Workplace

NORM = Quantity("meta-gradient norm", STEP, log=True, where=AFTER)
IMAGE_NORM = Quantity("mean norm of an image's meta-gradient", STEP, log=True, where=AFTER)
VARIANCE = Quantity("normalised gradient variance", STEP, log=True, where=AFTER)
NOISE = Quantity(
    "share of the meta-gradient's squared length that is noise", STEP, percent=True, where=AFTER
)
SPREAD = Quantity("variance of the meta-gradient between starts", STEP, log=True, where=AFTER)
JUMPS = Quantity(
    "change of the norm from step to step (standard deviation of its logarithm's differences)",
    STEP,
    where="Over {:g} outer steps",
)
UNEVEN = Quantity(
    "change of the variance from place to place (likewise)", STEP, where="Over {:g} outer steps"
)


FIRST_STEPS = 500
"""Figure 3 and, with its setting, figure 11."""


class Stability(Courses):
    """Figures 3 and 11, and the sources of the noise."""

    title = "How stable meta-gradients are"
    quantities = (NORM, IMAGE_NORM, JUMPS, VARIANCE, UNEVEN, SPREAD, NOISE)

    def setting(self, preset: str, data: str | None, steps: int | None = None) -> Setting:
        whole = super().setting(preset, data)
        return dataclasses.replace(
            whole, steps=min(whole.steps, FIRST_STEPS), every=min(whole.every, FIRST_STEPS // 20)
        ).lasting(steps)

    def ways(self, setting: Setting) -> Ways:
        return {method: {"method": method} for method in METHODS}

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        setting = self.setting(preset, data, steps)
        return (
            f"{setting} Every {setting.every:,} outer steps the noise of the meta-gradient is "
            f"measured: its variance over {setting.noise.samples} real images "
            f"({taken(setting.noise)}), and at every fifth of these places what it comes from "
            f"({setting.sources} real batches x starts x windows). Windows are drawn anew at each "
            "outer step, as in Algorithm 1; the caption of figure 3 draws one for 25 steps."
        )

    def measure(self, way: str, setting: Setting) -> Callable[[Subject], list[Measurement]]:
        noise = dataclasses.replace(setting.noise, sources=setting.sources)

        def measured(subject: Subject) -> list[Measurement]:
            rows = logged(NORM, "grad_norm", way, subject)
            norms = [row.mean for row in rows]
            rows += logged(IMAGE_NORM, "image_grad_norm", way, subject)
            rows.append(
                single(JUMPS, way, setting.steps, subject, change(norms), "of the logged norms")
            )
            variances: list[float] = []
            for one in subject.diagnoses(noise, sources_every=5):
                # Where an unroll is not finite, as the outer loop may skip some, there is nothing
                # to take the variance of.
                finite = [
                    variance.normalised
                    for variance in one.real
                    if math.isfinite(variance.normalised)
                ]
                if finite:
                    variances.append(statistics.median(finite))
                    rows.append(
                        single(
                            VARIANCE,
                            way,
                            one.step,
                            subject,
                            variances[-1],
                            f"{taken(noise)}, {len(finite)} finite",
                        )
                    )
                for name, source in (one.sources or {}).items():
                    how = f"{noise.sources} of each, all combinations"
                    if math.isfinite(source.share):
                        rows.append(
                            single(
                                NOISE,
                                f"{way}, {SOURCES[name]}",
                                one.step,
                                subject,
                                source.share,
                                how,
                            )
                        )
                    if name == "start" and math.isfinite(source.per_entry):
                        rows.append(
                            single(
                                SPREAD,
                                way,
                                one.step,
                                subject,
                                source.per_entry * source.entries,
                                how,
                            )
                        )
            rows.append(
                single(UNEVEN, way, setting.steps, subject, change(variances), "of the variances")
            )
            return rows

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        return [
            Drawing(
                "norm",
                "The norm of the meta-gradient, over the images as one vector: median and range "
                "over seeds",
                curves(results[NORM]),
            ),
            Drawing(
                "image-norm",
                "The norm of an image's part of it, mean over images",
                curves(results[IMAGE_NORM]),
            ),
            Drawing(
                "variance",
                "Its variance over real samples, over the squared norm of the mean (appendix D.3)",
                curves(results[VARIANCE]),
            ),
            Drawing(
                "spread",
                "How much it varies between starts: the squared length that does",
                curves(results[SPREAD]),
            ),
            Drawing(
                "sources",
                "How much of RaT-BPTT's meta-gradient is noise, by what is new",
                self.noise(results, METHODS[:1]),
            ),
            Drawing(
                "noise",
                "How much of a meta-gradient is noise, by method",
                self.noise(results, METHODS, "all"),
            ),
        ]

    def noise(self, results: Results, methods: Sequence[str], *names: str) -> Figure:
        """Draw the noise of some methods, by source."""
        return curves(
            results[NOISE],
            [f"{method}, {SOURCES[name]}" for method in methods for name in names or SOURCES],
        )

    def claims(self, results: Results) -> list[Claim]:
        variance, uneven, spread = (results[quantity] for quantity in (VARIANCE, UNEVEN, SPREAD))
        jumps = results[JUMPS]
        last, end = jumps.rows[0].at, max(variance.positions("rat-bptt"))
        measured = spread.positions("bptt")

        def lower(other: str) -> Finding:
            later = compared(variance, ("rat-bptt", end), (other, end), -1)
            return later.also(throughout(variance, "rat-bptt", other, -1))

        random_length = (
            "so are those of R-BPTT, which differentiates every step of unrolls of random length"
        )
        return [
            Claim(
                "Paper (figure 3)",
                "BPTT's meta-gradients are unstable, truncation stabilises them",
                [compared(jumps, ("bptt", last), (way, last), 1) for way in ("t-bptt", "rat-bptt")],
            ),
            Claim(
                "Paper (section 3)",
                random_length,
                [compared(jumps, ("r-bptt", last), ("rat-bptt", last), 1)],
            ),
            Claim(
                "Paper (figure 3)",
                "stable learning shows in norms that decrease",
                [
                    decrease(results[NORM], way, stable=way in ("rat-bptt", "t-bptt"))
                    for way in METHODS
                ],
            ),
            Claim(
                "Paper (figure 11)",
                "RaT-BPTT maintains a lower variance at each training step",
                [lower(other) for other in METHODS[1:]],
            ),
            Claim(
                "Paper (figure 11)",
                "and a more even one over the course of training",
                [compared(uneven, ("rat-bptt", last), ("bptt", last), -1)],
            ),
            Claim(
                "Paper (section 3)",
                "long products of Hessians amplify the variance from different initialisations",
                [compared(spread, ("bptt", at), ("t-bptt", at), 1) for at in measured],
            ),
            Claim(
                "Paper (section 3, left open)",
                "which of real samples, network start and window the noise comes from",
                dominant(results[NOISE], "rat-bptt"),
            ),
        ]


def taken(noise: Noise) -> str:
    """Say how a variance is measured."""
    return (
        f"{f'by {noise.signs} signs' if noise.signs else 'exactly'}, the median of {noise.unrolls} "
        "unrolls"
    )


def decrease(norm: Table, way: str, *, stable: bool) -> Finding:
    """Judge whether the norm of a way decreases from the first quarter of its steps to the last.

    Of a method that is not `stable` the paper says nothing.
    """
    positions = norm.positions(way)
    quarter = max(1, len(positions) // 4)
    changes = []
    for seed in norm.cell(way, positions[0]):
        first, last = (
            statistics.median(norm.cell(way, at)[seed] for at in part if seed in norm.cell(way, at))
            for part in (positions[:quarter], positions[-quarter:])
        )
        changes.append(last / first)
    return ratios(f"{way}, last quarter over first", changes, -1 if stable else 0)


def dominant(noise: Table, method: str) -> list[Finding]:
    """Return which source a method's noise comes from most, at each step that was measured."""
    ways = {name: f"{method}, {words}" for name, words in SOURCES.items()}
    alone = [name for name in ways if name != "all"]
    findings = []
    for at in noise.positions(ways["all"]):
        shares = [reading(noise, way, at, SOURCES[name]) for name, way in ways.items()]
        cells = {name: noise.cell(ways[name], at) for name in alone}
        greatest = {max(alone, key=lambda name: cells[name][seed]) for seed in cells["start"]}
        agreed = f"the {greatest.pop()} gives the most in all seeds"
        findings.append(
            Finding(
                tuple(shares),
                AFTER.format(at),
                f"of the squared length of {method}'s meta-gradient varies with",
                conclusion="the seeds disagree on which gives the most" if greatest else agreed,
            )
        )
    return findings


def logged(quantity: Quantity, name: str, way: str, subject: Subject) -> list[Measurement]:
    """Return what a run logged under a name, at each outer step where it is a number.

    Args:
        quantity: what the numbers measure.
        name: in the log.
        way: what is compared.
        subject: with the run.
    """
    records = subject.folder.records()
    return [
        single(quantity, way, record.step, subject, record.value(name), "logged")
        for record in records
        if finite(record.value(name))
    ]


def finite(value: object) -> bool:
    """Return whether a value is a positive, finite number."""
    return isinstance(value, float) and 0 < value < math.inf


def change(values: Sequence[float]) -> float:
    """Return how much a positive quantity changes from one step to the next.

    It is the standard deviation of the differences of its logarithm.
    """
    logs = [math.log(value) for value in values]
    return statistics.stdev(later - before for before, later in itertools.pairwise(logs))
