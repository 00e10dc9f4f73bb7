"""The runner of studies: grids of runs with paired seeds, resumable, shared by processes -> a tidy table, figures, claims.

A study is a list of points. A point distills one set (or takes it from the runs of an earlier study) and measures it; its
result is a file. Whoever wants a point takes its lock, so that processes share a study without doing anything twice, and
whatever was cut off goes on where it was.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock

from potstill import store
from potstill.bench import Bench
from potstill.boosting import made_blocks
from potstill.config import Config
from potstill.data import Dataset
from potstill.devices import hardware, pick_device, versions
from potstill.diagnosis import Diagnosis, Noise, diagnose_run
from potstill.distillation import SILENT, Listener, new_run, resumed_run
from potstill.distilled import DistilledSet
from potstill.evaluation import fitting
from potstill.figures import Drawing, save
from potstill.page import Told, study_page
from potstill.registry import InputError
from potstill.results import Measurement, Quantity, Results
from potstill.runs import RunFolder, steps_done

RUNS, POINTS, TABLE, SUMMARY, PAGE = "runs", "points", "results.csv", "summary.md", "report.html"
SECONDS_BETWEEN_LOOKS, DIGEST = 1.0, 10


@dataclass(frozen=True)
class Subject:
    """What a point measures: a distilled set and the bench for it."""

    distilled: DistilledSet
    bench: Bench
    lengths: tuple[int, ...]
    seed: int
    folder: RunFolder
    place: "Place"

    def course(self) -> Iterator[tuple[int, DistilledSet]]:
        """(outer steps done, the set as it was then) for every checkpoint that the run kept, in order."""
        config, one = self.folder.config(), self.distilled.blocks[0].parameterisation
        for state in self.folder.states(config, self.place.dataset.identity, self.bench.device):
            blocks = made_blocks({**state.earlier, **state.leaves}, one)
            yield steps_done(state, config), self.distilled.with_blocks(blocks)

    def diagnoses(self, noise: Noise, sources_every: int) -> Iterator[Diagnosis]:
        """The noise of the run's meta-gradient at its start and at every checkpoint."""
        place = self.place
        config = Config.from_options(self.folder.config(), device=place.device, threads=place.threads)
        return diagnose_run(self.folder, config, place.dataset, noise, sources_every=sources_every)


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


class Study(Protocol):
    """A question, the points that answer it, and how the answer is told."""

    title: str
    quantities: tuple[Quantity, ...]
    """What is measured, in the order in which it is told."""

    def about(self, preset: str, data: str | None) -> str:
        """What a preset runs, in words."""
        ...

    def points(self, preset: str, data: str | None, seeds: Sequence[int]) -> list[Point]:
        """All units of work; an InputError without `data` where the preset has none of its own."""
        ...

    def figures(self, results: Results, place: "Place", points: Sequence[Point]) -> list[Drawing]:
        """The figures, in the order in which they are shown."""
        ...

    def claims(self, results: Results) -> list[str]:
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
        folder = RunFolder(self.runs / self.run_name(point))
        return Subject(distilled, bench, tuple(sorted(config.evaluation.lengths)), config.run.seed, folder, self)

    def file(self, point: Point) -> Path:
        """Where a point's result lies: another number of networks is another result."""
        return self.folder / POINTS / f"{point.name}-{self.run_name(point)[-DIGEST:]}-nets{self.nets}.json"

    def run_name(self, point: Point) -> str:
        """The folder of a point's run."""
        return run_name(point.config, self.dataset.fingerprint)


def small_options(data: str | None) -> dict[str, Any]:
    """What the small presets share: minutes on two CPU cores, on digits or other small data."""
    options = {
        "data": data or "digits", "preprocess": "normalize", "width": 32, "real_batch": 200, "outer_lr": "auto", "compile": "off",
    }  # fmt: skip
    # Three times what auto gives there: in 150 steps 91.3 in place of 89.1 % on validation data (five images a class, one seed).
    return options | ({"outer_lr": 0.02} if options["data"] == "digits" else {})


def paper_data(data: str | None) -> str:
    """The data of a paper preset; an InputError if there are none."""
    if data is None:
        raise InputError("data must be given for the preset paper, which runs on CIFAR-10: --data parquet:PATH")
    return data


def run_name(config: Config, fingerprint: str) -> str:
    """The folder of a run: what it is for the eye, and a hash of all that decides its result."""
    known = {**config.flat(), "content": fingerprint}
    for name in ("data", "cache_dir", "device", "threads"):
        known.pop(name)
    distilled = config.distilled
    beta = f"-{distilled.boost_blocks}x-beta{distilled.boost_beta:g}" if distilled.boost_blocks > 1 else ""
    digest = hashlib.sha256(store.canonical(known).encode()).hexdigest()[:DIGEST]
    param = "" if distilled.param == "pixels" else f"-{distilled.param}"
    return f"ipc{distilled.ipc}{param}{beta}-seed{config.run.seed}-{digest}"


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
    results = Results(tuple(row for point in points for row in read_point(place.file(point))), study.quantities)
    store.write(place.folder / TABLE, results.csv())
    drawings = study.figures(results, place, points)
    for drawing in drawings:
        if drawing.plot:
            save(drawing.plot, place.folder / drawing.name)
    told = Told(study.title, about, study.claims(results), drawings, results.tables, footnote(results, place))
    store.write(place.folder / SUMMARY, told.markdown())
    store.write(place.folder / PAGE, study_page(told, place.folder))


def read_point(path: Path) -> list[Measurement]:
    """What a point's file holds."""
    try:
        return [Measurement(**row) for row in json.loads(path.read_text(encoding="utf-8"))["measurements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and the study measures that point again") from error


def footnote(results: Results, place: Place) -> str:
    """What the figures are means over, and what they were measured with."""
    machine = provenance(place)
    seeds = len({row.seed for row in results.rows})
    nets = f"; accuracies are means over {counted(place.nets, 'network')} for each seed" if results.has_accuracies else ""
    libraries = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    spread = f"Mean ± standard deviation over {counted(seeds, 'distilling seed')}{nets} (`{TABLE}` has them one by one)"
    return f"{spread}. {machine['hardware']}; {libraries}."


def counted(number: int, name: str) -> str:
    """A number of things, in words."""
    return f"{number} {name}{'s' * (number != 1)}"
