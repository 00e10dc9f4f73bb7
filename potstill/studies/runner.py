"""The runner of studies: grids of runs with paired seeds -> a tidy table, figures, claims.

A study is a list of points. A point distills one set (or takes it from the runs of an earlier
study) and measures it; its result is a file. A process takes a point's lock before it works on it,
so that processes share a study without doing anything twice, and an interrupted study goes on where
it was.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock

from potstill import files
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError
from potstill.records.metrics import StepRecord
from potstill.reports.plots import Drawing, save
from potstill.studies.claims import Claim, as_data
from potstill.studies.page import Told, study_page
from potstill.studies.results import Measurement, Quantity, Results
from potstill.studies.time_left import TimeLeft
from potstill.studies.workplace import Point, Workplace, provenance, read_point

RUNS, RECORD = "runs", "study.json"
TABLE, CLAIMS, SUMMARY, PAGE = "results.csv", "claims.json", "summary.md", "report.html"
SECONDS_BETWEEN_LOOKS = 1.0


class Study(Protocol):
    """A question, the points that answer it, and how the answer is told."""

    title: str
    quantities: tuple[Quantity, ...]
    """The quantities that are measured, in the order in which they are told."""

    def about(self, preset: str, data: str | None, steps: int | None = None) -> str:
        """Say what a preset runs; `steps`: in place of the preset's outer steps of each run."""
        ...

    def points(
        self, preset: str, data: str | None, seeds: Sequence[int], steps: int | None = None
    ) -> list[Point]:
        """Return the units of work.

        Raises:
            InputError: no `data` where the preset has none of its own.
        """
        ...

    def figures(
        self,
        results: Results,
        workplace: Workplace,
        points: Sequence[Point],
    ) -> list[Drawing]:
        """Draw the figures, in the order in which they are shown."""
        ...

    def claims(self, results: Results) -> list[Claim]:
        """Return each claim once, with all that was measured on it."""
        ...


def locked(folder: Path, name: str) -> AbstractContextManager[Any]:
    """Take a lock that other processes see; filelock.Timeout if one of them has it."""
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f".{name}.lock").acquire(timeout=0)


def work(points: Iterable[Point], workplace: Workplace, left: TimeLeft | None = None) -> int:
    """Do every point that is neither done nor taken; return how many others still work on.

    Args:
        points: of the study.
        workplace: where, and with what.
        left: finds out how long the study still takes.
    """
    busy, points = 0, list(points)
    overview = Overview.of(points, workplace, left or TimeLeft())
    for point in points:
        target = workplace.file(point)
        try:
            # Another study may need the same run: its lock keeps the second away, which comes back
            # later.
            with (
                locked(target.parent, target.stem),
                locked(workplace.runs, workplace.run_name(point)),
            ):
                if not target.exists():
                    rows = [dataclasses.asdict(row) for row in measured(point, workplace, overview)]
                    known = {"measurements": rows, **provenance(workplace)}
                    files.write(target, json.dumps(known, indent=2) + "\n")
        except filelock.Timeout:
            busy += 1
    return busy


@dataclass(frozen=True)
class Overview:
    """Where a study stands.

    Args:
        points: all of the study's.
        results: the file of each.
        runs: the run's folder of each.
        left: finds out how long the rest takes.
    """

    points: Sequence[Point]
    results: Sequence[Path]
    runs: Sequence[RunFolder]
    left: TimeLeft

    @classmethod
    def of(cls, points: Sequence[Point], workplace: Workplace, left: TimeLeft) -> "Overview":
        """Return the overview of a study at a workplace."""
        results = [workplace.file(point) for point in points]
        runs = [RunFolder(workplace.runs / workplace.run_name(point)) for point in points]
        return cls(points, results, runs, left)

    def place(self, point: Point) -> tuple[int, int, str]:
        """Return the number of the point at work, that of all, and how long the rest takes."""
        later = [
            (one.options, run.finished)
            for one, result, run in zip(self.points, self.results, self.runs, strict=True)
            if one is not point and not result.exists()
        ]
        return len(self.points) - len(later), len(self.points), self.left.words(later)


def measured(point: Point, workplace: Workplace, overview: Overview) -> list[Measurement]:
    """Make the set of a point, measure it, and tell the listener where the study stands."""
    listener, left = workplace.listener, overview.left

    def step(record: StepRecord, steps: int) -> None:
        left.step(record.step, steps)
        listener.run(*overview.place(point))
        listener.step(record, steps)

    def work(what: str, done: int, total: int) -> None:
        listener.run(*overview.place(point))
        listener.work(what, done, total)

    run = RunFolder(workplace.runs / workplace.run_name(point))
    left.begin(point.options, whole=not run.is_run, made=run.finished)
    number, runs, words = overview.place(point)
    listener.run(number, runs, words)
    listener.say(f"run {number} of {runs}: {point.name}{f'; {words}' * bool(words)}")
    followed = dataclasses.replace(listener, step=step, work=work)
    subject = dataclasses.replace(workplace, listener=followed).subject(point)
    left.made()
    rows = point.measure(subject)
    left.measured()
    return rows


@dataclass(frozen=True)
class Length:
    """How many outer steps the runs of a study have.

    Args:
        steps: of each run, or of each block; 0: as many as the time allows.
        preset: those of the preset.
    """

    steps: int
    preset: int

    @classmethod
    def of(cls, study: Study, preset: str, data: str | None, steps: int | None) -> "Length":
        """Return the length of a study; `steps` None: the preset's."""
        whole = study.points(preset, data, (0,))[0].options.get("steps", 0)
        return cls(whole if steps is None else steps, whole)

    @property
    def caution(self) -> str:
        """What is to be known of figures at another length than the preset's; else ""."""
        if self.steps == self.preset:
            return ""
        own = f"{self.preset:,}" if self.preset else "the time"
        return (
            f"Not the study's own length: {self.steps:,} outer steps in place of {own} "
            "(`--steps`). These figures do not compare with those of the study as it is meant."
        )

    def keep(self, folder: Path) -> None:
        """Write the length to a study's folder.

        Raises:
            InputError: the folder holds the study at another length, whose page would be replaced.
        """
        path, own = folder / RECORD, dataclasses.asdict(self)
        if path.exists():
            try:
                there = int(json.loads(path.read_text(encoding="utf-8"))["steps"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is damaged ({error}); remove it") from error
            if there != self.steps:
                raise InputError(
                    f"{folder} holds this study with {there:,} outer steps a run, got "
                    f"{self.steps:,}; give --steps {there}, or another folder with --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        files.write(path, files.canonical(own) + "\n")


def run_study(
    study: Study,
    points: Sequence[Point],
    workplace: Workplace,
    about: str,
    *,
    caution: str = "",
    jobs: int = 1,
) -> None:
    """Do a study together with other processes; write its table, claims and figures.

    Args:
        study: tells figures and claims.
        points: its units of work.
        workplace: where, and with what.
        about: what was run, in words, for the summary.
        caution: what is to be known of its figures, in words; may be empty.
        jobs: processes that share it.
    Raises:
        InputError: a run cannot be made, or a result on disk is damaged.
    """
    left, told = TimeLeft(jobs), 0
    while busy := work(points, workplace, left):
        if busy != told:
            workplace.listener.say(f"other processes still work on {counted(busy, 'run')}")
        told = busy
        time.sleep(SECONDS_BETWEEN_LOOKS)
    results = Results(
        tuple(row for point in points for row in read_point(workplace.file(point))),
        study.quantities,
    ).completed()
    files.write(workplace.folder / TABLE, results.csv())
    claims = study.claims(results)
    files.write(workplace.folder / CLAIMS, files.canonical(as_data(claims)) + "\n")
    drawings = study.figures(results, workplace, points)
    for drawing in drawings:
        if drawing.plot:
            save(drawing.plot, workplace.folder / drawing.name)
    page = Told(
        study.title,
        about,
        claims,
        drawings,
        results.tables,
        footnote(results, workplace),
        caution,
    )
    files.write(workplace.folder / SUMMARY, page.markdown())
    files.write(workplace.folder / PAGE, study_page(page, workplace.folder))


def footnote(results: Results, workplace: Workplace) -> str:
    """Say what the figures are means over, and what they were measured with."""
    machine = provenance(workplace)
    seeds = len({row.seed for row in results.rows})
    nets = (
        f"; accuracies are means over {counted(workplace.nets, 'network')} for each seed"
        if results.has_accuracies
        else ""
    )
    libraries = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    spread = (
        f"Mean ± standard deviation over {counted(seeds, 'distilling seed')}{nets} (`{TABLE}` has "
        "them one by one)"
    )
    return f"{spread}. {machine['hardware']}; {libraries}."


def counted(number: int, name: str) -> str:
    """Write a number of things in words."""
    return f"{number} {name}{'s' * (number != 1)}"
