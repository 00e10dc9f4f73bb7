"""The study of methods: what each makes of the same time, measured alike.

All runs at one budget of images have the same time, whatever an outer step costs. A set is measured
four times: networks of one kind train on it under one protocol, augmented and not; another network
does under that protocol; and by its own recipe it is learned from as its method means it to be.
Nothing is chosen on test data.

Source of the scores: the benchmark DD-Ranking; here accuracies are fractions, and everything is
    under protocols that choose nothing on test data.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.config.choosing import LARGER, options_for
from potstill.config.config import options_of_run
from potstill.config.durations import in_words, seconds_of
from potstill.data.mirrored import mirrored_alike
from potstill.data.preparation import RealData
from potstill.distilled.picture import write_grid
from potstill.evaluation.measuring import evaluate
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.records import Row
from potstill.models import resolve
from potstill.registry import METHODS
from potstill.reports.plots import Drawing, dot_figure
from potstill.studies.boosting import RANDOM
from potstill.studies.claims import Claim, Finding, Reading, compared
from potstill.studies.over_time import Timed, single
from potstill.studies.published import printed
from potstill.studies.results import ACCURACY, Measurement, Quantity, Results
from potstill.studies.workplace import Point, Subject, Workplace, paper_data

BUDGET = "images per class of the budget"
WHERE = "At {:g} a class"
CHOSEN, ALL = "random", "all real images"
"""The method whose run also tells what random images and all of them are worth."""
OTHERS = ("imported",)
"""Methods that need a file, and make nothing."""


def quantity(name: str, *, percent: bool = True, **more: Any) -> Quantity:
    """Return a quantity of the one table."""
    return Quantity(name, BUDGET, percent=percent, where=WHERE, together=True, **more)


def label_robust(results: Results) -> list[Measurement]:
    """Return the label-robust score of each method, for each seed."""
    common, own, own_random = results[COMMON], results[OWN], results[OWN_RANDOM]
    rows = []
    for row in own.rows:
        cells = [
            table.cell(way, row.at)
            for table, way in ((common, row.way), (own_random, row.way), (common, ALL))
        ]
        if row.seed in cells[0] and row.seed in cells[1] and cells[2]:
            whole = statistics.fmean(cells[2].values())
            gain = (row.mean - cells[1][row.seed]) / 2 - (whole - cells[0][row.seed]) / 2
            rows.append(scored(LABEL_ROBUST, row, gain))
    return rows


def above_random(results: Results) -> list[Measurement]:
    """Return how far each method is above as many random images, for each seed."""
    common = results[COMMON]
    return [
        replace(row, quantity=ABOVE.name, mean=row.mean - beside[row.seed], std=None, n=1)
        for row in common.rows
        if row.way not in (RANDOM, ALL) and row.seed in (beside := common.cell(RANDOM, row.at))
    ]


def augmentation_robust(results: Results) -> list[Measurement]:
    """Return the augmentation-robust score of each method, for each seed."""
    common, bare = results[COMMON], results[BARE]
    rows = []
    for row in bare.rows:
        cells = [
            table.cell(way, row.at)
            for table, way in ((common, row.way), (common, RANDOM), (bare, RANDOM))
        ]
        if row.way != RANDOM and all(row.seed in cell for cell in cells):
            with_it, random, bare_random = (cell[row.seed] for cell in cells)
            gain = (with_it - random) / 2 + (row.mean - bare_random) / 2
            rows.append(scored(AUGMENTATION_ROBUST, row, gain))
    return rows


def scored(quantity: Quantity, row: Measurement, gain: float) -> Measurement:
    """Return a score of DD-Ranking: 0 for a gain of -1, 1 for one of +1, and 0.27 for none."""
    value = (math.exp(gain) - math.exp(-1)) / (math.e - math.exp(-1))
    return replace(row, quantity=quantity.name, mean=value, std=None, n=1, detail="DD-Ranking")


COMMON = quantity(ACCURACY)
ABOVE = quantity("points above random images", derived=above_random)
OWN = quantity("accuracy by its own recipe")
OWN_RANDOM = quantity("accuracy of random images by that recipe")
OTHER = quantity("accuracy on another network")
BARE = quantity("accuracy without augmentation")
LABEL_ROBUST = quantity("label-robust score", percent=False, derived=label_robust)
AUGMENTATION_ROBUST = quantity(
    "augmentation-robust score", percent=False, derived=augmentation_robust
)
STEPS = quantity("outer steps", percent=False)
SECONDS = quantity("seconds for an outer step (median)", percent=False)
MEMORY = quantity("peak memory of the process, MB", percent=False)
BYTES = quantity("bytes stored", percent=False)
PRINTED = quantity("accuracy in print")
SMALL_EXPERT_BATCH = 32
"""Of experts on digits: an epoch of them, in batches of 256, is five steps."""
KIND, SECOND = "convnet", "alexnet"
"""The network that all sets are measured with, and the other."""
NOT_AUGMENTED = "dc-300"
MOST = 50_000
"""More outer steps than fit: tested once, at the end."""


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Args:
        data: the real data.
        budgets: images per class.
        time: of each run, such as 2m; empty: by outer steps.
        width: channels of the networks, all those that sets are measured with included.
        protocol: that sets are measured under.
        epochs: most passes over all real images.
        steps: outer steps of each run, in place of the time.
    """

    data: str
    budgets: tuple[int, ...]
    time: str
    width: int
    protocol: str
    epochs: int
    steps: int = 0

    def run(self, method: str, ipc: int, seed: int) -> dict[str, Any]:
        """Return the options of a run: those of the method's quick preset, for these data.

        Bases of `haba` are stored beside the networks that show them, for which one image a class
        is too little room: it has two there.
        """
        known = options_for(method)
        if self.data == "digits" and "expert_batch" in known_of(method):
            known["expert_batch"] = SMALL_EXPERT_BATCH
        known |= {"data": self.data, "preprocess": "normalize", "seed": seed}
        known |= {"ipc": max(2, ipc) if method == "haba" else ipc, "width": self.width}
        known |= {"batch_per_class": "auto", "validate_every": MOST, "compile": "off"}
        known |= {"steps": self.steps} if self.steps else {"time_budget": f"about {self.time}"}
        has = {option.name for option in options_of_run(known)}
        return {name: value for name, value in known.items() if name in has}

    def lasting(self, steps: int | None) -> "Scale":
        """Return the same with so many outer steps in place of the time; None: as it is."""
        return self if steps is None else replace(self, time="", steps=steps)

    def __str__(self) -> str:
        long = (
            f"about {in_words(seconds_of('time_budget', self.time))} for every run, as many outer "
            "steps as fit; of that time reading, training experts and choosing the training length "
            "are part, and a run whose experts alone take longer is longer"
            if self.time
            else f"{self.steps:,} outer steps for every run"
        )
        return (
            f"Every method, {' and '.join(map(str, self.budgets))} of each class, {long}. Options "
            "are those of its quick preset, which was tuned on MNIST by hand, and no published "
            "setting: steps, real batches and experts are a fraction of those, ConvNets have "
            f"width {self.width} and AlexNets half, pixels are standardised and not whitened. "
            "`haba` has two images a class where others have one, and is not ranked there. Test "
            "accuracy is that of ConvNets with instance norm under the protocol "
            f"{self.protocol} ({self.protocol}-digits where mirrored images are others), on "
            f"hard labels where a method's targets are no classes; another network is {SECOND}; "
            f"without augmentation is {NOT_AUGMENTED}. All real images: the same ConvNet, by the "
            f"recipe of the set of random ones, the best of {self.epochs} epochs on validation "
            "data. The scores are DD-Ranking's, of fractions: 0.27 is no better than random images "
            "or, of the label-robust one, as far from all real images as its gain makes up for."
        )


def known_of(method: str) -> set[str]:
    """Return the names of the options of a run of a method."""
    return {option.name for option in options_of_run({"method": method})}


def scale_of(preset: str, data: str | None, time: str = "") -> Scale:
    """Return the sizes of a preset.

    Args:
        preset: "small" is for two CPU cores, "paper" has five minutes for each run.
        data: the real data; None: digits.
        time: of each run, in place of the preset's.
    Raises:
        InputError: "paper" without data.
    """
    if preset == "paper":
        return Scale(paper_data(data), (1, 10), time or "5m", 128, "dsa-1000", 20)
    if data in (None, "digits"):
        return Scale("digits", (1, 10), time or "20s", 32, "dsa-300", 20)
    return Scale(str(data), (1,), time or "1m", 32, "dsa-300", 5)


class Methods(Timed):
    """Every method of `potstill list`, in one table."""

    title = "What every method makes of the same time"
    quantities = (
        COMMON, ABOVE, OWN, OTHER, BARE, LABEL_ROBUST, AUGMENTATION_ROBUST, PRINTED, STEPS, SECONDS,
        MEMORY, BYTES, OWN_RANDOM,
    )  # fmt: skip

    def scale(self, preset: str, data: str | None, steps: int | None) -> Scale:
        """Return how large the study is."""
        return scale_of(preset, data, self.time_budget).lasting(steps)

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        scale = self.scale(preset, data, steps)
        return [
            Point(
                f"{method}-{ipc}-seed{seed}",
                scale.run(method, ipc, seed),
                self.measure(scale, method, ipc, seed == seeds[0]),
            )
            for seed in seeds
            for ipc in scale.budgets
            for method in (CHOSEN, *(name for name in METHODS if name not in (CHOSEN, *OTHERS)))
        ]

    def measure(
        self, scale: Scale, method: str, ipc: int, first: bool
    ) -> Callable[[Subject], list[Measurement]]:
        """Return a function that measures a run and, beside random images, what real ones give.

        Args:
            scale: of the study.
            method: of the run.
            ipc: its budget.
            first: whether all real images are to be measured beside random ones.
        """

        def measured(subject: Subject) -> list[Measurement]:
            found = list(accuracies(scale, method, ipc, subject))
            found += costs(method, ipc, subject)
            if method == CHOSEN and first:
                bench = replace(subject.bench, factory=network(KIND, scale, subject), model=KIND)
                row = bench.of_all(ALL, scale.epochs, ipc)
                found.append(Measurement.of(ALL, row, subject.seed, ipc))
            return found

        return measured

    def figures(
        self, results: Results, workplace: Workplace, points: Sequence[Point]
    ) -> list[Drawing]:
        table = results[COMMON]
        drawings = []
        for at in table.positions(RANDOM):
            dots = [(way, *table.spread(way, at)) for way in table.ways() if table.cell(way, at)]
            dots.sort(key=lambda dot: -dot[1])
            plot = dot_figure(dots, f"test accuracy at {at:g} of each class", percent=True)
            caption = f"Test accuracy after the same time, at {at:g} of each class"
            drawings.append(Drawing(f"accuracy-{at:g}", caption, plot))
        least, first = min(table.positions(RANDOM)), min(row.seed for row in results.rows)
        shown = [point for point in points if point.name.endswith(f"-{least:g}-seed{first}")]
        for point in shown:
            write_grid(workplace.run(point), workplace.folder / f"{point.name}.png")
        captions = (f"{point.options['method']}, seed {first}" for point in shown)
        return drawings + [
            Drawing(point.name, caption) for point, caption in zip(shown, captions, strict=True)
        ]

    def claims(self, results: Results) -> list[Claim]:
        table = results[COMMON]
        budgets = table.positions(RANDOM)
        best = [
            compared(table, (ranked[0], at), (ranked[1], at), 0)
            for at in budgets
            if len(ranked := self.ranked(results, at)) > 1
        ]
        return [
            Claim("Not in the paper", "the best of all methods, beside the second", best),
            Claim(
                "Not in the paper", "what is below what is in print for it", list(below(results))
            ),
        ]

    def ranked(self, results: Results, at: float) -> list[str]:
        """Return the methods at a budget, the best first."""
        table = results[COMMON]
        methods = [
            way for way in table.ways() if way not in (RANDOM, ALL, *LARGER) and table.cell(way, at)
        ]
        return sorted(methods, key=lambda way: -table.spread(way, at)[0])


def accuracies(scale: Scale, method: str, ipc: int, subject: Subject) -> Iterator[Measurement]:
    """Yield what networks learn from a set, and what its own learner does."""
    real, seed = subject.bench.real, subject.seed
    augmented = scale.protocol if may_be_mirrored(real) else f"{scale.protocol}-digits"
    for quantity, protocol, kind in (
        (COMMON, augmented, KIND),
        (BARE, NOT_AUGMENTED, KIND),
        (OTHER, augmented, SECOND),
    ):
        rows = evaluated(
            subject,
            random=method == CHOSEN,
            model=network(kind, scale, subject),
            protocol=protocol,
            learner="network",
        )
        for way, row in zip((method, RANDOM), rows, strict=False):
            yield replace(Measurement.of(way, row, seed, ipc), quantity=quantity.name)
    own = evaluated(subject, random=True, model=None)
    for quantity, row in zip((OWN, OWN_RANDOM), own, strict=True):
        yield replace(Measurement.of(method, row, seed, ipc), quantity=quantity.name)
    if value := printed(method, ipc, scale.data, real.shape, real.class_names):
        yield single(PRINTED, method, ipc, subject, value, "published")


def may_be_mirrored(real: RealData) -> bool:
    """Return whether mirrored images of the data are of the same class."""
    return real.kind == "image" and mirrored_alike(real.train, len(real.class_names))


def evaluated(subject: Subject, *, random: bool, model: Any, **options: Any) -> list[Row]:
    """Evaluate a set, and as many random real images if they are asked for."""
    bench = subject.bench
    known = {
        "nets": bench.nets, "seed": subject.seed, "device": str(bench.device),
        "baselines": ("random",) * random, **options,
    }  # fmt: skip
    return evaluate(
        subject.distilled,
        bench.real,
        EvaluationOptions.of(**known),
        model=model,
        lengths=subject.lengths,
        progress=bench.progress,
    )


def network(kind: str, scale: Scale, subject: Subject) -> Callable[[], Any]:
    """Return a function that makes a fresh network of a kind, with instance norm."""
    classes = len(subject.distilled.class_names)
    width = scale.width if kind == KIND else max(1, scale.width // 2)
    return resolve(kind, subject.distilled.shape, classes, width=width, norm="instance")


def costs(method: str, ipc: int, subject: Subject) -> Iterator[Measurement]:
    """Yield what a run took."""
    records = subject.folder.records()
    values = (
        (STEPS, len(records)),
        (SECONDS, statistics.median(record.seconds for record in records)),
        (MEMORY, round(max(record.memory_mb for record in records))),
        (BYTES, subject.distilled.stored_bytes),
    )
    for quantity, value in values:
        yield single(quantity, method, ipc, subject, value, "logged")


def below(results: Results) -> Iterator[Finding]:
    """Yield the methods that are below what is in print by more than two points."""
    table, known = results[COMMON], results[PRINTED]
    for way in known.ways():
        for at in known.positions(way):
            (published, *_), (mean, _) = known.cell(way, at).values(), table.spread(way, at)
            if published - mean > FAR:
                readings = (
                    Reading(way, table.words(way, at), tuple(table.cell(way, at).values())),
                    Reading("in print", f"{100 * published:.1f} %"),
                )
                yield Finding(readings, WHERE.format(at), conclusion=DIFFERENT)


FAR = 0.02
DIFFERENT = "the published setting has wider networks, its own whitening and hours on a GPU"
