"""Studies of section 5 and appendix B: parts of sets, and boosting against budget.

Source: figures 6 to 8 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure

from potstill.config.config import options_from_preset, options_of_run, preset_names
from potstill.distilled.blocks import Block
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.bench import examples_of
from potstill.evaluation.training import Batches
from potstill.registry import METHODS
from potstill.reports.plots import Drawing, Series, dot_figure, line_figure
from potstill.studies.claims import Claim, compared
from potstill.studies.results import ACCURACY_BY_SIZE, Measurement, Quantity, Results, Table
from potstill.studies.workplace import Point, Subject, Workplace, paper_data, small_options

WEAK = 0.1
"""The paper's beta of weak boosting."""
ALONE, RANDOM = "distilled at that size", "random real"
STRONG, WEAKLY = "strong boosting, prefix", "weak boosting, prefix"
FIRST, SECOND = "first block (boosted)", "second block (boosted)"
ANY_BLOCK = "random block (boosted)"


@dataclass(frozen=True)
class Scale:
    """How large the studies are.

    Args:
        ipc: images per class of the whole sets.
        block: images per class of a block.
        sizes: images per class of the sets that are distilled on their own; the last is `ipc`.
        steps: outer steps of a set that is distilled on its own, and of each block.
        options: of every run.
        how: what is done to the images and how, in words.
    """

    ipc: int
    block: int
    sizes: tuple[int, ...]
    steps: int
    options: Mapping[str, Any]
    how: str

    @property
    def budgets(self) -> range:
        """Images per class of every prefix."""
        return range(self.block, self.ipc + 1, self.block)

    def joint(self, ipc: int, seed: int) -> dict[str, Any]:
        """Return the options of a run that distills a set of this size on its own."""
        return {**self.options, "ipc": ipc, "steps": self.steps, "seed": seed}

    def boosted(self, beta: float, seed: int) -> dict[str, Any]:
        """Return the options of a boosted run."""
        blocks = {"boost_blocks": self.ipc // self.block, "boost_beta": beta, "steps": self.steps}
        return {**self.options, "ipc": self.ipc, "seed": seed, **blocks}

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps; None: as it is."""
        return self if steps is None else dataclasses.replace(self, steps=steps)

    def __str__(self) -> str:
        known = self.options
        return (
            f"{self.steps:,} outer steps for each set that is distilled on its own, and for each "
            f"block of {self.block} a class. {self.how}, ConvNet of width {known['width']}, "
            f"{known['preprocess']}. Networks train for the length that is best on validation data "
            f"among {', '.join(map(str, known['lengths']))} steps and are measured on test data."
        )


OWN = "rat-bptt"
SMALL_VALUES: Mapping[str, Any] = {
    "unroll": 30,
    "window": 10,
    "validate_every": 50,
    "checkpoint_every": 50,
    "lengths": (200, 500),
    "experts": 5,
    "expert_batch": 32,
    "max_start": 5,
    "student_steps": 20,
    "real_per_class": 64,
}
"""Options of small runs, of which a method takes those that it has."""


def scale_of(preset: str, data: str | None, method: str = OWN) -> Scale:
    """Return the sizes of a preset.

    "small" runs on digits or other small data, "paper" is the paper's setting on CIFAR-10.

    Args:
        preset: "small" or "paper".
        data: the real data; None: digits.
        method: that is boosted.
    Raises:
        InputError: "paper" without data, or with a method that has no published setting.
    """
    if "steps" in METHODS[method].needs.unused:
        raise InputError(
            f"method {method} takes no outer steps, so that there is nothing to boost; give "
            "another --method"
        )
    if preset == "small":
        options = {"method": method, **small_options(data), **SMALL_VALUES}
        if method != OWN:
            del options["outer_lr"]  # the method's own suits it better
        has = {option.name for option in options_of_run({"method": method})}
        options = {name: value for name, value in options.items() if name in has}
        return Scale(4, 1, (1, 2, 3, 4), 200, options, how(method, options))
    name = "cifar10-ipc50" if method == OWN else f"{method}-cifar10-ipc50"
    if name not in [known for known, _ in preset_names()]:
        raise InputError(
            f"preset paper needs a published setting of method {method}, there is no preset "
            f"{name}; use --preset small"
        )
    known = {**options_from_preset(name), "data": paper_data(data)}
    known |= {"lengths": (300, 600, 1000)} if method == OWN else {}
    known |= {"batch_per_class": "auto"}
    for name in ("network_steps", "network_epochs"):  # they go by the size of a set
        known.pop(name, None)
    steps = known.pop("steps")
    return Scale(50, 5, (5, 10, 25, 50), steps, known, how(method, known))


def how(method: str, options: Mapping[str, Any]) -> str:
    """Say by what method and options the sets are distilled."""
    if method == OWN:
        return f"T = {options['unroll']}, M = {options['window']}"
    return f"Method {method}"


class Nested:
    """Common part of the three studies.

    Args:
        method: that is boosted.
    """

    quantities: tuple[Quantity, ...] = (ACCURACY_BY_SIZE,)

    def __init__(self, method: str = OWN):
        self.method = method

    def scale(self, preset: str, data: str | None, steps: int | None = None) -> Scale:
        """Return the sizes of a preset."""
        return scale_of(preset, data, self.method).lasting(steps)

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        """Say what a preset runs."""
        return str(self.scale(preset, data, steps))


def lines(table: Table, ways: Sequence[str]) -> Figure:
    """Draw the ways over images per class, with their deviation over seeds."""
    series = []
    for way in ways:
        positions = table.positions(way)
        means, deviations = zip(*(table.spread(way, at) for at in positions), strict=True)
        series.append(Series(way, positions, means, deviations))
    quantity = table.quantity
    return line_figure(
        series, quantity.x_name, quantity.name, percent=True, error_bars=True, size=(560, 330)
    )


def part_of(ipc: float, kind: str = "distilled") -> str:
    """Name random examples of a set of this size."""
    return f"random part of a {kind} {ipc:g}"


def joint_points(
    scale: Scale, seed: int, measure: Callable[[Subject], list[Measurement]]
) -> list[Point]:
    """Return a point for each size at which a set is distilled on its own; the longest first."""
    return [
        Point(f"joint{size}-seed{seed}", scale.joint(size, seed), measure)
        for size in reversed(scale.sizes)
    ]


class Subsets(Nested):
    """Figures 6 and 8."""

    title = "What part of a distilled set is worth"

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = self.scale(preset, data, steps)
        points = []
        for seed in seeds:
            points.append(
                Point(
                    f"strong-seed{seed}",
                    scale.boosted(0.0, seed),
                    lambda subject: self.of_boosted(subject, scale),
                )
            )
            points += joint_points(scale, seed, lambda subject: self.of_joint(subject, scale))
        return points

    def of_joint(self, subject: Subject, scale: Scale) -> list[Measurement]:
        """Measure the set, random parts of it and, once for each seed, random real images."""
        distilled, bench, lengths = subject.distilled, subject.bench, subject.lengths
        rows = [bench.of_set(ALONE, distilled, lengths)]
        if distilled.ipc > scale.sizes[0]:
            smaller = [ipc for ipc in scale.budgets if ipc < distilled.ipc]
            rows += [
                bench.of_subsets(part_of(distilled.ipc), distilled, ipc, lengths) for ipc in smaller
            ]
        if distilled.ipc == scale.ipc:
            rows += [bench.of_random(RANDOM, ipc, lengths) for ipc in scale.budgets]
        return [Measurement.of(row.name, row, subject.seed) for row in rows]

    def of_boosted(self, subject: Subject, scale: Scale) -> list[Measurement]:
        """Measure single blocks, and random parts of the first two."""
        distilled, bench, lengths, block = (
            subject.distilled,
            subject.bench,
            subject.lengths,
            scale.block,
        )

        parts = [only(distilled, [number]) for number in range(len(distilled.blocks))]

        def any_block(own: int) -> Batches:
            chosen = parts[own % len(parts)]
            return bench.batches(examples_of(chosen), own)

        rows = [
            bench.of_set(name, part, lengths)
            for name, part in zip((FIRST, SECOND), parts, strict=False)
        ]
        stored = parts[0].stored_bytes
        rows.append(
            bench.row(ANY_BLOCK, any_block, lengths, len(parts[0]), block, stored_bytes=stored)
        )
        rows.append(
            bench.of_subsets(
                part_of(2 * block, "boosted"), distilled.prefix(2 * block), block, lengths
            )
        )
        return [Measurement.of(row.name, row, subject.seed) for row in rows]

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        table = results[ACCURACY_BY_SIZE]
        least = min(table.positions(RANDOM))
        boosted = (FIRST, SECOND, ANY_BLOCK, part_of(2 * least, "boosted"))
        parts = lines(table, [way for way in table.ways() if way not in boosted])
        measured = [way for way in table.ways() if least in table.positions(way)]
        dots = [(way, *table.spread(way, least)) for way in measured]
        blocks = dot_figure(dots, f"test accuracy at {least:g} of each class", percent=True)
        return [
            Drawing(
                "parts", "Random parts of distilled sets, and as many random real images", parts
            ),
            Drawing(
                "blocks", f"What {least:g} of each class is worth, by where it comes from", blocks
            ),
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[ACCURACY_BY_SIZE]
        block, whole = min(table.positions(RANDOM)), max(table.positions(RANDOM))
        part = part_of(whole)
        boosted, joint = part_of(2 * block, "boosted"), part_of(2 * block)
        measured = bool(table.cell(joint, block))  # not of every scale
        return [
            Claim(
                "Paper (figure 6)",
                "a random part of a distilled set does worse than as many random real images",
                [compared(table, (part, at), (RANDOM, at), -1) for at in table.positions(part)],
            ),
            Claim(
                "Paper (figure 6)",
                "and worse than a set that was distilled at its size",
                [compared(table, (part, block), (ALONE, block), -1)],
            ),
            Claim(
                "Paper (figure 8b)",
                "a single block of a boosted set does much better than a random part of a joint "
                "one",
                [compared(table, (SECOND, block), (part, block), 1)],
            ),
            Claim(
                "Paper (section 6)",
                "the first block does better than the second, so that some correlation is left",
                [compared(table, (FIRST, block), (SECOND, block), 1)],
            ),
            Claim(
                "Paper (figure 8c)",
                "a random part of two boosted blocks does better than one of a joint set of their "
                "size",
                [compared(table, (boosted, block), (joint, block), 1)] if measured else [],
            ),
        ]


class Boosting(Nested):
    """Figure 7."""

    title = "One nested set against a set for every budget"

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = self.scale(preset, data, steps)

        def budgets(way: str) -> Callable[[Subject], list[Measurement]]:
            return lambda subject: self.of_prefixes(subject, way)

        points = []
        for seed in seeds:
            points.append(Point(f"strong-seed{seed}", scale.boosted(0.0, seed), budgets(STRONG)))
            points.append(Point(f"weak-seed{seed}", scale.boosted(WEAK, seed), budgets(WEAKLY)))
            points += joint_points(scale, seed, lambda subject: self.of_joint(subject, scale))
        return points

    def of_prefixes(self, subject: Subject, way: str) -> list[Measurement]:
        """Measure every prefix of a boosted set."""
        sets = [subject.distilled.prefix(ipc) for ipc in subject.distilled.budgets]
        return [
            Measurement.of(way, subject.bench.of_set(way, one, subject.lengths), subject.seed)
            for one in sets
        ]

    def of_joint(self, subject: Subject, scale: Scale) -> list[Measurement]:
        """Measure the set; at the full size, also its first images and as many real ones."""
        distilled, bench, lengths = subject.distilled, subject.bench, subject.lengths
        rows = [bench.of_set(ALONE, distilled, lengths)]
        if distilled.ipc == scale.ipc:
            rows += [
                bench.of_set("first images of a joint set", first_images(distilled, ipc), lengths)
                for ipc in scale.budgets[:-1]
            ]
            rows += [bench.of_random(RANDOM, ipc, lengths) for ipc in scale.budgets]
        return [Measurement.of(row.name, row, subject.seed) for row in rows]

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        table = results[ACCURACY_BY_SIZE]
        return [
            Drawing(
                "budgets",
                "Every prefix of a boosted set, and a set distilled for each size",
                lines(table, table.ways()),
            )
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[ACCURACY_BY_SIZE]
        sizes = table.positions(ALONE)
        least, whole = sizes[0], sizes[-1]
        source = {OWN: "Paper (figure 7)", "mtt": "Paper (figure 13)"}.get(self.method, "")
        little = "strong boosting costs little against a set distilled at that size"
        if self.method == OWN:
            words = "weak boosting overtakes joint distillation at larger sizes"
            cells = (WEAKLY, whole), (ALONE, whole)
        else:
            words = "accuracy rises as strong boosting goes on"
            cells = (STRONG, whole), (STRONG, least)
        return [
            Claim(source, little, [compared(table, (STRONG, at), (ALONE, at), 0) for at in sizes]),
            Claim(source, words, [compared(table, *cells, 1)]),
        ]


def only(distilled: DistilledSet, numbers: Sequence[int]) -> DistilledSet:
    """Return the set of some of the blocks."""
    return distilled.with_blocks(tuple(distilled.blocks[number] for number in numbers))


def first_images(distilled: DistilledSet, ipc: int) -> DistilledSet:
    """Return the set of the first `ipc` images of each class, whatever the blocks."""
    rows = torch.cat(
        [
            torch.nonzero(distilled.labels == label)[:ipc, 0]
            for label in range(len(distilled.class_names))
        ]
    )
    targets = distilled.targets[rows] if distilled.learned_labels else None
    return distilled.with_blocks(
        (Block.of_pixels(distilled.images[rows], len(distilled.class_names), targets),)
    )
