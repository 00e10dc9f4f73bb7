"""The study of hardness: which real examples sets help on, and real batches with more hard ones.

Source: appendix E, figures 9 and 17 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025; forgetting
    events after Toneva et al. 2019, arXiv:1812.05159.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import filelock

from potstill.config.config import configuration, options_from_preset
from potstill.data.preparation import cut_of
from potstill.data.splits import Part
from potstill.evaluation.hardness import MORE, NEVER, Forgetting, forgetting
from potstill.evaluation.training import Batches, steps_of
from potstill.records.metrics import Figure, hardness_share
from potstill.reports.plots import Drawing, Series, strata_figure
from potstill.studies.claims import Claim, Finding, Reading, compared, judged, reading
from potstill.studies.over_time import AFTER, STEP, curves, single
from potstill.studies.results import (
    ACCURACY_BY_SIZE,
    Difference,
    Measurement,
    Quantity,
    Results,
    Table,
)
from potstill.studies.workplace import (
    OFTEN_VALIDATED,
    Point,
    Subject,
    Workplace,
    paper_data,
    small_options,
)

FULL, STANDARD, SHARES = "all real images", "uniform real batches", "train images"
NAMES = {MORE: "more", NEVER: "never learned"}
EVENTS = "forgetting events up to"
BY_EVENTS = Quantity("train accuracy", EVENTS, percent=True, names=NAMES)
HOW_MANY = Quantity("share of the train images", EVENTS, percent=True, names=NAMES)
COST = Quantity(
    "share of the outer loop's time that scoring takes",
    "images per class",
    percent=True,
    where="At {:g} a class",
)
VALIDATION = Quantity("validation accuracy of the largest set", STEP, percent=True, where=AFTER)


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Args:
        options: of every run.
        sizes: images per class, ascending; the sampler is tried at the last.
        thresholds: least weights of the sampler.
        edges: of the strata, in forgetting events.
        epochs: of networks that train on all real images.
        starts: number of networks whose forgetting is counted.
        every: outer steps between scorings.
    """

    options: Mapping[str, Any]
    sizes: tuple[int, ...]
    thresholds: tuple[float, ...]
    edges: tuple[float, ...]
    epochs: int
    starts: int
    every: int

    def run(self, ipc: int, seed: int) -> dict[str, Any]:
        """Return the options of a run.

        A synthetic batch holds as many examples of each class as there are, up to 100 images in
        all.
        """
        return {**self.options, "batch_per_class": "auto", "ipc": ipc, "seed": seed}

    @property
    def first(self) -> int:
        """The outer step from which on the sampler weighs images.

        It is half of all steps, as in the paper's figure.
        """
        return int(self.options["steps"]) // 2

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps, scored as often; None: as it is."""
        if steps is None:
            return self
        every = max(1, self.every * steps // self.options["steps"])
        return replace(self, options={**self.options, "steps": steps}, every=every)

    def __str__(self) -> str:
        known = self.options
        return (
            f"RaT-BPTT, {known['steps']:,} outer steps, T = {known['unroll']}, M = "
            f"{known['window']}; ConvNet of width {known['width']}, {known['preprocess']}. "
            f"Forgetting events over {self.epochs} epochs on all train images, mean of "
            f"{self.starts} starts; an image that more than half of them never have right is never "
            f"learned. The sampler scores with 8 networks every {self.every} outer steps from step "
            f"{self.first} on, by how many are wrong, and weighs images of middling hardness most. "
            "Networks train for the length that is best on validation data among "
            f"{', '.join(map(str, known['lengths']))} steps; those on all real images, for "
            f"{self.epochs} epochs, are measured on what they train on."
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
                {**shared, "unroll": 60, "window": 20, "steps": 150},
                (1, 2, 5),
                (1.0, 4.0),
                (0, 0.2, 0.5, 1),
                20,
                10,
                25,
            )
        # Images of 32 pixels take some ten times as long.
        return Scale(
            {**shared, "unroll": 30, "window": 10, "steps": 100},
            (1, 5),
            (1.0,),
            (0, 1, 2, 3),
            10,
            2,
            25,
        )
    known = {
        **options_from_preset("cifar10-ipc50"),
        "data": paper_data(data),
        "lengths": (300, 600, 1000),
    }
    return Scale(known, (1, 10, 50), (1.0, 4.0), tuple(range(9)), 60, 10, 50)


class Hardness:
    """Figures 9 and 17."""

    title = "Which real images distilled sets serve, and weighing them by hardness"
    quantities = (BY_EVENTS, HOW_MANY, ACCURACY_BY_SIZE, VALIDATION, COST)

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        return str(scale_of(preset, data).lasting(steps))

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = scale_of(preset, data).lasting(steps)
        points = []
        for seed in seeds:
            plain = {ipc: scale.run(ipc, seed) for ipc in reversed(scale.sizes)}
            points += [
                Point(f"{ipc}-seed{seed}", options, self.measure(STANDARD, scale))
                for ipc, options in plain.items()
            ]
            for threshold in scale.thresholds:
                sampler = {
                    "real_sampler": "hardness",
                    "hardness_threshold": threshold,
                    "hardness_from": scale.first,
                    "hardness_every": scale.every,
                }
                options = {**scale.run(scale.sizes[-1], seed), **sampler}
                points.append(
                    Point(
                        f"sampler{threshold:g}-seed{seed}",
                        options,
                        self.measure(weighted(threshold), scale),
                    )
                )
        return points

    def measure(self, way: str, scale: Scale) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a set by stratum and on test data, and scoring's cost.

        Once, it also measures all real images.
        """

        def measured(subject: Subject) -> list[Measurement]:
            bench, distilled, records = subject.bench, subject.distilled, subject.folder.records()
            train, ipc, seed = bench.real.train, distilled.ipc, subject.seed
            strata = scores(subject, scale).strata(scale.edges)
            parts = {stratum: Part(train, rows) for stratum, rows in strata.items()}
            steps, name = distilled.recipe.steps, set_name(ipc, way)
            test, measurements = by_stratum(
                subject, name, bench.batches_of(distilled), steps, parts
            )
            measurements.append(figured(ACCURACY_BY_SIZE, way, ipc, subject, test, steps))
            if ipc == scale.sizes[-1]:
                measurements.append(
                    single(
                        COST,
                        way,
                        ipc,
                        subject,
                        hardness_share(records),
                        "logged; several runs at a time",
                    )
                )
                for record in records:
                    if figure := record.validation:
                        where = way, record.step, seed
                        measurements.append(
                            Measurement(
                                VALIDATION.name, *where, figure.mean, figure.std, figure.n, "logged"
                            )
                        )
            if (way, ipc) == (STANDARD, scale.sizes[0]):
                measurements += by_stratum(
                    subject, FULL, bench.batches_of_all(), steps_of(train, scale.epochs), parts
                )[1]
                for stratum, part in parts.items():
                    measurements.append(
                        single(
                            HOW_MANY, SHARES, stratum, subject, len(part) / len(train), "counted"
                        )
                    )
            return measurements

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        table, shares = results[BY_EVENTS], results[HOW_MANY]
        strata = shares.positions(SHARES)
        counts = [shares.spread(SHARES, at)[0] for at in strata]
        names = [table.quantity.name_of(at) for at in strata]

        def drawn(ways: Sequence[str]) -> Any:
            lines = []
            for way in ways:
                means, deviations = zip(*(table.spread(way, at) for at in strata), strict=True)
                lines.append(Series(way, range(len(strata)), means, deviations))
            return strata_figure(
                lines, counts, names, EVENTS, table.quantity.name, shares.quantity.name
            )

        accuracy = results[ACCURACY_BY_SIZE]
        sizes = accuracy.positions(STANDARD)
        plain = [set_name(ipc, STANDARD) for ipc in sizes]
        largest = [set_name(sizes[-1], way) for way in accuracy.ways()]
        return [
            Drawing(
                "strata",
                "Figure 9's question: train accuracy by how often an image is forgotten",
                drawn([*plain, FULL]),
            ),
            Drawing(
                "strata-sampler",
                "The same for the largest set, with and without the sampler",
                drawn(largest),
            ),
            Drawing(
                "sampler",
                "Figure 17's question: validation accuracy in the course",
                curves(results[VALIDATION]),
            ),
        ]

    def claims(self, results: Results) -> list[Claim]:
        accuracy, cost = results[ACCURACY_BY_SIZE], results[COST]
        sizes = accuracy.positions(STANDARD)
        largest = sizes[-1]
        ways = [way for way in accuracy.ways() if way != STANDARD]
        better = "real batches with more images of middling hardness are better at the largest size"
        shares = tuple(reading(cost, way, largest) for way in ways)
        return [
            *strata_claims(results[BY_EVENTS], [set_name(ipc, STANDARD) for ipc in sizes]),
            Claim(
                "Paper (figure 17)",
                better,
                [compared(accuracy, (way, largest), (STANDARD, largest), 1) for way in ways],
            ),
            Claim("", COST.name.capitalize(), [Finding(shares, COST.where.format(largest))]),
        ]


def strata_claims(table: Table, sizes: Sequence[str]) -> list[Claim]:
    """Return what figure 9 shows, by paired differences between strata."""
    one, most = sizes[0], sizes[-1]
    strata = [at for at in table.positions(one) if at < NEVER]
    easy, hard = strata[0], strata[-1]
    middle = strata[len(strata) // 2]
    names = {stratum: f"at most {stratum:g} events" for stratum in strata}
    names[MORE] = "the most events"

    def gain(less: str, more: str, stratum: float) -> Difference:
        return table.difference((more, stratum), (less, stratum))

    claims = []
    for words, less, more, first, second in (
        ("more images help the middling more than the easy", one, most, middle, easy),
        ("more images bring little for the hardest", one, most, middle, hard),
        ("what distilled sets lack against all real images they lack on hard ones",
         most, FULL, hard, easy),
    ):  # fmt: skip
        if first == second:  # so few strata hold images
            continue
        here, there = gain(less, more, first), gain(less, more, second)
        apart = [one - other for one, other in zip(here.values, there.values, strict=True)]
        finding = judged(
            Reading(names[first], str(here), here.values),
            Reading(names[second], str(there), there.values),
            Difference(tuple(apart)),
            1,
            f"From {less} to {more}",
        )
        claims.append(Claim("Paper (figure 9)", words, [finding]))
    return claims


def weighted(threshold: float) -> str:
    """Name real batches that the hardness sampler draws."""
    return f"hardness sampler, threshold {threshold:g}"


def set_name(ipc: float, way: str) -> str:
    """Name networks that train on a set of this size, by the real batches it was made with."""
    return f"{ipc:g} a class" if way == STANDARD else f"{ipc:g} a class, {way}"


def scores(subject: Subject, scale: Scale) -> Forgetting:
    """Count forgetting events of the train images, once for all runs and processes."""
    bench, workplace = subject.bench, subject.workplace
    folder = workplace.folder / "forgetting"
    folder.mkdir(parents=True, exist_ok=True)
    content = cut_of(configuration(scale.options), workplace.dataset.fingerprint)
    with filelock.FileLock(folder / ".lock"):
        return forgetting(
            bench.real.train,
            bench.recipe,
            bench.factory,
            len(bench.real.class_names),
            epochs=scale.epochs,
            starts=scale.starts,
            seed=0,
            device=bench.device,
            folder=folder,
            content=content,
            progress=workplace.listener.work,
        )


def by_stratum(
    subject: Subject,
    way: str,
    make: Callable[[int], Batches],
    steps: int,
    parts: Mapping[float, Part],
) -> tuple[Figure, list[Measurement]]:
    """Measure networks on test data and on each stratum of the train images.

    Args:
        subject: with the bench that trains the networks.
        way: name of what they train on.
        make: seed of a network -> its batches.
        steps: training steps.
        parts: stratum -> its part of the train images.
    """
    bench, splits = subject.bench, (subject.bench.real.test, *parts.values())
    scores = bench.scores(
        bench.recipe.lr, bench.nets, bench.seed, make, lengths=(steps,), splits=splits, label=way
    )
    test, *rest = (Figure.of(values) for values in scores[:, 0].T)
    return test, [
        figured(BY_EVENTS, way, at, subject, one, steps)
        for at, one in zip(parts, rest, strict=True)
    ]


def figured(
    quantity: Quantity, way: str, at: float, subject: Subject, figure: Figure, steps: int
) -> Measurement:
    """Return the measurement of a figure over networks.

    Args:
        quantity: what was measured.
        way: what is compared.
        at: the x value.
        subject: with the seed.
        figure: mean, deviation and n.
        steps: training steps of the networks.
    """
    return Measurement(
        quantity.name, way, at, subject.seed, figure.mean, figure.std, figure.n, f"{steps} steps"
    )
