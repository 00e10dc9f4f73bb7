"""The runner of studies: grids of runs with paired seeds, resumable, shared by processes -> a tidy table, figures, claims.

A study is a list of points. A point distills one set (or takes it from the runs of an earlier study) and measures it; its
result is a file. Whoever wants a point takes its lock, so that processes share a study without doing anything twice, and
whatever was cut off goes on where it was.
"""

import csv
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock
import torch

from potstill import store
from potstill.api import fitting
from potstill.config import Config
from potstill.data import Dataset
from potstill.devices import hardware, pick_device, versions
from potstill.distillation import SILENT, Listener, new_run, resumed_run
from potstill.distilled import DistilledSet
from potstill.evaluation import Bench, Figure, Row
from potstill.registry import InputError
from potstill.runs import RunFolder

RUNS, POINTS, TABLE, SUMMARY = "runs", "points", "results.csv", "summary.md"
SECONDS_BETWEEN_LOOKS, DIGEST = 1.0, 10


@dataclass(frozen=True)
class Measurement:
    """One line of a study's table: a way of making a training set, at one place, with one seed.

    Args:
        way: what is compared.
        at: where on the x axis, such as images per class.
        seed: pairs the ways: the same seed, the same draws wherever they can be the same.
        mean: test accuracy over networks, a fraction; or another figure that the study names.
        std: sample standard deviation over networks; None of one.
        n: networks.
        detail: how it was measured, in words.
    """

    way: str
    at: float
    seed: int
    mean: float
    std: float | None
    n: int
    detail: str

    @classmethod
    def of(cls, way: str, row: Row, seed: int) -> "Measurement":
        """Of an evaluated row, at its number of images per class."""
        figure = row.accuracy
        return cls(way, row.ipc, seed, figure.mean, figure.std, figure.n, f"{row.steps} steps; {row.protocol}")


@dataclass(frozen=True)
class Subject:
    """What a point measures: a distilled set and the bench for it."""

    distilled: DistilledSet
    bench: Bench
    lengths: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Point:
    """One unit of work.

    Args:
        name: unique in the study; a file name.
        options: of the run that makes the set, by name.
        measure: what to measure on it.
    """

    name: str
    options: Mapping[str, Any]
    measure: Callable[[Subject], list[Measurement]]

    @property
    def config(self) -> Config:
        """The run's configuration, before anything in it is resolved."""
        return Config.from_options(**self.options)


@dataclass(frozen=True)
class Difference:
    """A paired difference between two ways, over the seeds.

    Args:
        values: one for each seed, first minus second.
        percent: whether they are fractions and read in percentage points.
    """

    values: tuple[float, ...]
    percent: bool = True

    def __str__(self) -> str:
        return in_words(self.values, "+", " points", self.percent)


@dataclass(frozen=True)
class Table:
    """All measurements of a study; `percent`: they are fractions and read in per cent."""

    rows: tuple[Measurement, ...]
    percent: bool = True

    def ways(self) -> list[str]:
        """In the order of appearance."""
        return list(dict.fromkeys(row.way for row in self.rows))

    def places(self, way: str) -> list[float]:
        """Where a way was measured, ascending."""
        return sorted({row.at for row in self.rows if row.way == way})

    def cell(self, way: str, at: float) -> dict[int, float]:
        """seed -> mean."""
        return {row.seed: row.mean for row in self.rows if (row.way, row.at) == (way, at)}

    def words(self, way: str, at: float) -> str:
        """Mean and deviation over seeds."""
        return in_words(list(self.cell(way, at).values()), "", " %", self.percent)

    def spread(self, way: str, at: float) -> tuple[float, float]:
        """Mean and deviation over seeds; NaN for the deviation of one."""
        figure = Figure.of(torch.tensor(list(self.cell(way, at).values()), dtype=torch.float64))
        return figure.mean, float("nan") if figure.std is None else figure.std

    def difference(self, first: tuple[str, float], second: tuple[str, float]) -> Difference:
        """First minus second, by seed."""
        one, other = self.cell(*first), self.cell(*second)
        return Difference(tuple(one[seed] - other[seed] for seed in one if seed in other), self.percent)

    def csv(self) -> str:
        """One line a measurement."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Measurement))
        writer.writerows(dataclasses.astuple(row) for row in self.rows)
        return buffer.getvalue()


def in_words(values: Sequence[float], sign: str, unit: str, percent: bool) -> str:
    """Mean ± sample deviation: fractions as hundredths with a unit, or plain with two decimals."""
    figure = Figure.of(torch.tensor(values, dtype=torch.float64))
    scale, digits = (100, 1) if percent else (1, 2)
    spread = "" if figure.std is None else f" ± {scale * figure.std:.{digits}f}"
    return f"{scale * figure.mean:{sign}.{digits}f}{spread}{unit * percent}"


def verdict(difference: Difference, expected: int) -> str:
    """Whether a paired difference goes the way that the paper says, +1 or -1; decided only where every seed agrees."""
    ways = {value * expected > 0 for value in difference.values}
    count = len(difference.values)
    if count < 2:
        return "one seed decides nothing"
    if len(ways) > 1:
        return f"undecided, the {count} seeds disagree"
    return f"{'as' if ways == {True} else 'against what'} the paper says, in all {count} seeds"


class Study(Protocol):
    """A question, the points that answer it, and how the answer is told."""

    title: str
    value: str
    """What is measured, for the table."""
    percent: bool
    """Whether it is a fraction that reads in per cent."""

    def about(self, preset: str) -> str:
        """What a preset runs, in words."""
        ...

    def points(self, preset: str, data: str | None, seeds: Sequence[int]) -> list[Point]:
        """All units of work; an InputError without `data` where the preset has none of its own."""
        ...

    def figures(self, table: Table, place: "Place", points: Sequence[Point]) -> list[str]:
        """Write the figures into the study's folder; the names of the files that the summary shows."""
        ...

    def claims(self, table: Table) -> list[str]:
        """A sentence for each claim, in numbers."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a study works and what it measures with.

    Args:
        folder: the study's own.
        runs: the folder of all runs, which studies share.
        dataset: the raw data.
        nets: networks for each figure.
        device: as for a run.
        threads: as for a run.
        listener: told of progress.
    """

    folder: Path
    runs: Path
    dataset: Dataset
    nets: int
    device: str = "auto"
    threads: int | str = "auto"
    listener: Listener = SILENT

    def run(self, point: Point) -> DistilledSet:
        """The finished set of a point's run: made, resumed, or found."""
        path = self.runs / self.run_name(point)
        folder = RunFolder(path)
        if not folder.is_run:
            config = Config.from_options(point.config, device=self.device, threads=self.threads)
            return new_run(config, self.dataset, path, listener=self.quiet)
        if not folder.finished:
            return resumed_run(path, folder.config(), self.dataset, listener=self.quiet)
        return store.load(path)

    @property
    def quiet(self) -> Listener:
        """The listener for single runs: their progress, without what each says of itself."""
        return dataclasses.replace(self.listener, say=SILENT.say)

    def subject(self, point: Point) -> Subject:
        """The set of a point's run, ready to be measured."""
        config, distilled = point.config, self.run(point)
        real = fitting(distilled, self.dataset, config.data, self.device)
        bench = Bench.of(distilled, real, self.nets, config.run.seed, pick_device(self.device), progress=self.listener.work)
        return Subject(distilled, bench, tuple(sorted(config.evaluation.lengths)), config.run.seed)

    def file(self, point: Point) -> Path:
        """Where a point's result lies: another number of networks is another result."""
        return self.folder / POINTS / f"{point.name}-{self.run_name(point)[-DIGEST:]}-nets{self.nets}.json"

    def run_name(self, point: Point) -> str:
        """The folder of a point's run."""
        return run_name(point.config, self.dataset.fingerprint)


def run_name(config: Config, fingerprint: str) -> str:
    """The folder of a run: what it is for the eye, and a hash of all that decides its result."""
    known = {**config.flat(), "content": fingerprint}
    for name in ("data", "cache_dir", "device", "threads"):
        known.pop(name)
    distilled = config.distilled
    beta = f"-{distilled.boost_blocks}x-beta{distilled.boost_beta:g}" if distilled.boost_blocks > 1 else ""
    digest = hashlib.sha256(store.canonical(known).encode()).hexdigest()[:DIGEST]
    return f"ipc{distilled.ipc}{beta}-seed{config.run.seed}-{digest}"


def locked(folder: Path, name: str) -> AbstractContextManager[Any]:
    """A lock that other processes see; filelock.Timeout if one of them has it."""
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f".{name}.lock").acquire(timeout=0)


def work(points: Iterable[Point], place: Place) -> int:
    """Do every point that nobody has done or is doing; how many are still with others."""
    busy = 0
    for point in points:
        target = place.file(point)
        try:
            # Another study may need the same run: its lock keeps the second away, which comes back later.
            with locked(target.parent, target.stem), locked(place.runs, place.run_name(point)):
                if not target.exists():
                    place.listener.say(f"{point.name} ...")
                    found = [dataclasses.asdict(row) for row in point.measure(place.subject(point))]
                    store.write(target, json.dumps({"measurements": found, **provenance(place)}, indent=2) + "\n")
        except filelock.Timeout:
            busy += 1
    return busy


def provenance(place: Place) -> dict[str, Any]:
    """What a result depends on beside its options."""
    return {"hardware": hardware(pick_device(place.device)), "versions": versions(), "data": place.dataset.fingerprint}


def run_study(study: Study, points: Sequence[Point], place: Place, about: str) -> None:
    """Do a study together with whoever else works on it, and write its table, figures and summary.

    Args:
        study: tells figures and claims.
        points: its units of work.
        place: where, and with what.
        about: what was run, in words, for the summary.
    Raises:
        InputError: a run cannot be made, or a result on disk is damaged.
    """
    while work(points, place):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    table = Table(tuple(row for point in points for row in read_point(place.file(point))), study.percent)
    store.write(place.folder / TABLE, table.csv())
    shown = study.figures(table, place, points)
    store.write(place.folder / SUMMARY, summary(study, table, shown, about, place))


def read_point(path: Path) -> list[Measurement]:
    """What a point's file holds."""
    try:
        return [Measurement(**row) for row in json.loads(path.read_text(encoding="utf-8"))["measurements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and the study measures that point again") from error


def summary(study: Study, table: Table, shown: Sequence[str], about: str, place: Place) -> str:
    """The study in a page of Markdown: claims, figures, table."""
    machine = provenance(place)
    seeds = len({row.seed for row in table.rows})
    lines = [f"# {study.title}", "", about, ""]
    lines += [f"- {claim}" for claim in study.claims(table)]
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in shown), ""]
    lines += [f"| training set | images per class | {study.value} |", "|---|---|---|"]
    lines += [f"| {way} | {at:g} | {table.words(way, at)} |" for way in table.ways() for at in table.places(way)]
    networks = f", each the mean over {place.nets} networks" if max(row.n for row in table.rows) > 1 else ""
    spread = f"Mean ± standard deviation over {seeds} distilling seeds{networks}"
    libraries = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return "\n".join([*lines, "", f"{spread} (`{TABLE}` has them one by one). {machine['hardware']}; {libraries}.", ""])
