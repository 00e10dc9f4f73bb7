"""The facts that are known of a run, as plain data; damaged files are left out and named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.config.config import Given
from potstill.diagnosis.audit import AuditRecord
from potstill.distillation import checkpoints, run_folder
from potstill.distillation.locks import is_held
from potstill.distillation.run_folder import RunFolder
from potstill.distilled import artefact
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.records import AUDIT, EVALUATION, EvaluationRecord, Row, read_records
from potstill.records.metadata import DataRecord
from potstill.records.metrics import Figure, StepRecord, hardness_share
from potstill.registry import METHODS
from potstill.reports.places import shown_path

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """The log of a run, one entry for each outer step; missing or non-finite numbers are NaN.

    Args:
        step: (n,) counted from 1 over all blocks.
        block: (n,) counted from 1.
        values: name -> (n,): "loss", "grad_norm", "seconds", "memory_mb", "decode_seconds".
        clipped: (n,) whether the meta-gradient was clipped.
        skipped: (n,) whether it was not finite, so that the set stayed as it was.
        validations: (step, accuracy on validation data) where it was measured.
        scoring: share of the time, without validation, that scoring real images took.
    """

    step: Numbers
    block: Numbers
    values: dict[str, Numbers]
    clipped: NDArray[np.bool_]
    skipped: NDArray[np.bool_]
    validations: list[tuple[int, Figure]]
    scoring: float

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> "Log":
        """Make the log from the records of a run."""
        names = ("loss", "grad_norm", "seconds", "memory_mb", "decode_seconds")
        return cls(
            np.array([record.step for record in records], float),
            np.array([record.block for record in records], float),
            # None becomes NaN.
            {name: np.array([record.value(name) for record in records], float) for name in names},
            np.array([record.clipped for record in records], bool),
            np.array([record.skipped for record in records], bool),
            [(record.step, record.validation) for record in records if record.validation],
            hardness_share(records),
        )

    @property
    def done(self) -> int:
        """Outer steps done, over all blocks."""
        return int(self.step[-1]) if len(self.step) else 0

    @property
    def decoding(self) -> float:
        """Share of the time of outer steps that decoding took; NaN if it was not logged."""
        known = np.isfinite(self.values["decode_seconds"] + self.values["seconds"])
        return (
            float(self.values["decode_seconds"][known].sum() / self.values["seconds"][known].sum())
            if known.any()
            else np.nan
        )

    @property
    def block_starts(self) -> dict[float, str]:
        """First step of each block -> its name, such as "block 1"; empty if there is one block."""
        first = [
            index
            for index in range(len(self.block))
            if index == 0 or self.block[index] != self.block[index - 1]
        ]
        names = {
            float(self.step[index]): f"{'block ' * (index == 0)}{self.block[index]:g}"
            for index in first
        }
        return names if len(names) > 1 else {}


@dataclass(frozen=True)
class Measured:
    """One entry of evaluation.json.

    Args:
        record: what was measured, and how.
        same_data: whether the test images belong to the data that the set was distilled from.
    """

    record: EvaluationRecord
    same_data: bool

    @property
    def standard(self) -> bool:
        """Whether it measures the set as it is meant to be used, on its own data."""
        return self.record.standard and self.same_data


@dataclass(frozen=True)
class RunSummary:
    """A run, finished or not.

    Args:
        name: short and unique among the runs of a report.
        path: its folder, as it was given.
        config: its configuration.
        finished: whether the run has ended.
        running: whether a process works on it now.
        distilled: the set, of an unfinished run at its newest checkpoint; None if there is none.
        log: its log.
        measured: its evaluations.
        audit: the newest audit of its set; None: there is none.
        notes: what could not be read, one sentence each.
        begun: the date of config.toml.
        changed: the date of distilled.safetensors, or of the last line logged; None before the
            first.
    """

    name: str
    path: Path
    config: Given
    finished: bool
    running: bool
    distilled: DistilledSet | None
    log: Log
    measured: list[Measured]
    audit: AuditRecord | None
    notes: list[str]
    begun: datetime
    changed: datetime | None

    @property
    def place(self) -> str:
        """Its folder as the page names it."""
        return shown_path(self.path)

    @property
    def data_name(self) -> str:
        """The data in a word; empty for arrays that were given in Python."""
        return "" if self.config.data.data == "arrays" else self.config.data.name

    @property
    def kind(self) -> str:
        """What the examples of the set are: "synthetic", or "chosen real" ones."""
        return "chosen real" if METHODS[self.config.method.name].needs.pixels else "synthetic"

    @property
    def noun(self) -> str:
        """The word for an example, "image" or "row"; before a checkpoint, by the data's source."""
        if self.distilled:
            return self.distilled.noun
        return "row" if self.config.data.data.startswith("sklearn:") else "image"

    @property
    def data(self) -> DataRecord | None:
        """What the set's file says of the real data."""
        return self.distilled.metadata.data if self.distilled else None

    @property
    def origins(self) -> Mapping[str, str]:
        """Split -> where it came from, in words; empty without a set."""
        return self.data.origins if self.data else {}

    @property
    def counts(self) -> dict[str, int]:
        """Images by split, as the set's file says; empty without a set."""
        data = self.distilled.metadata.data if self.distilled else None
        return (
            {"train": data.train, "validation": data.validation, "test": data.test} if data else {}
        )

    @property
    def weighted(self) -> bool:
        """Whether real images had weights, as the set's file says."""
        data = self.distilled.metadata.data if self.distilled else None
        return data is not None and data.identity is not None

    @property
    def in_python(self) -> bool:
        """Whether images or weights were given in Python, so that no command repeats the run."""
        return self.weights_in_python or self.config.data.data == "arrays"

    @property
    def weights_in_python(self) -> bool:
        """Whether real images had weights that no option names."""
        return self.weighted and not self.config.data.weights

    @property
    def validation(self) -> Figure | None:
        """Accuracy on validation data: of the finished set, else the last one logged."""
        if self.distilled and self.distilled.metadata.accuracy:
            return self.distilled.metadata.accuracy
        return self.log.validations[-1][1] if self.log.validations else None

    @property
    def headline(self) -> Measured | None:
        """The evaluation that figures beside each other are taken from; None: there is none.

        Of those of the whole set as it is meant to be used, the one that compares it with most;
        of several the newest.
        """
        known = [one for one in self.measured if one.standard and "distilled" in self.rows_of(one)]
        return max(reversed(known), key=lambda one: len(self.rows_of(one)), default=None)

    def rows_of(self, measured: Measured) -> dict[str, Row]:
        """Return the rows of an evaluation that are of the whole set, by name."""
        ipc = self.distilled.ipc if self.distilled else None
        return {row.name: row for row in measured.record.rows if row.ipc == ipc}

    def test(self, name: str) -> tuple[Figure, Measured] | None:
        """Return the test accuracy of networks, with its evaluation, or None if not measured.

        Args:
            name: what the networks train on: the set ("distilled"), as many "random" real examples,
                or all, "full".
        """
        measured = self.headline
        row = self.rows_of(measured).get(name) if measured else None
        return (row.accuracy, measured) if row and measured else None


def read_runs(paths: Sequence[Path]) -> list[RunSummary]:
    """Read the runs in these folders and give them distinct names.

    Raises:
        InputError: there are none, one is given twice, or a folder holds no run whose configuration
            can be read.
    """
    if not paths:
        raise InputError("a report needs at least one run's folder, got none")
    resolved = [path.resolve() for path in paths]
    for one, path in zip(resolved, paths, strict=True):
        if resolved.count(one) > 1:
            raise InputError(f"each run must be given once, got {path} twice; leave one out")
    names = distinct_names(resolved)
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make them distinct."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = [Path(*path.parts[-length:]).as_posix() for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def read_run(path: Path, name: str) -> RunSummary:
    """Read the run in a folder.

    Raises:
        InputError: its configuration cannot be read or has not been resolved by a run.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    if "auto" in (config.outer.steps, config.preprocessing.name):
        raise InputError(
            f'{path / checkpoints.CONFIG} still holds "auto": it was not written by a run; distill '
            "with it first"
        )
    notes: list[str] = []
    distilled = read_set(folder, notes)
    log = read_log(folder, notes)
    newest = path / (artefact.ARTEFACT if folder.finished else run_folder.METRICS)
    return RunSummary(
        name,
        path,
        config,
        folder.finished,
        is_held(path),
        distilled,
        log,
        read_measured(folder, distilled, notes),
        read_audit(folder, notes),
        notes,
        date(path / checkpoints.CONFIG),
        date(newest) if newest.exists() else None,
    )


def date(path: Path) -> datetime:
    """Return when a file was last written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def read_set(folder: RunFolder, notes: list[str]) -> DistilledSet | None:
    """Read the finished set, or the newest checkpoint's."""
    try:
        return artefact.load(folder.path) if folder.finished else folder.snapshot()
    except InputError as error:
        notes.append(f"The set cannot be shown: {error}.")
        return None


def read_log(folder: RunFolder, notes: list[str]) -> Log:
    """Read the log, without lines that cannot be read."""
    path = folder.path / run_folder.METRICS
    try:
        records, unread = folder.logged()
    except OSError as error:
        notes.append(f"The curves cannot be shown: cannot read {path}: {error.strerror}.")
        return Log.of([])
    if unread:
        total = unread + len(records)
        notes.append(f"The curves lack {unread} of {total} steps: {path} is damaged.")
    return Log.of(records)


def read_measured(
    folder: RunFolder, distilled: DistilledSet | None, notes: list[str]
) -> list[Measured]:
    """Read the evaluations; damaged ones are left out."""
    path = folder.path / EVALUATION
    records, unreadable = read_records(path, EvaluationRecord)
    if unreadable or (path.exists() and not records):
        what = (
            f"{unreadable} of {unreadable + len(records)} evaluations"
            if unreadable
            else "The evaluations"
        )
        notes.append(
            f"{what} cannot be shown: {path} is damaged; measure again with `potstill evaluate`."
        )
    known = distilled.metadata.data.fingerprint if distilled and distilled.metadata.data else None
    return [Measured(record, known in (None, record.data.fingerprint)) for record in records]


def read_audit(folder: RunFolder, notes: list[str]) -> AuditRecord | None:
    """Read the newest audit; a damaged file is named."""
    path = folder.path / AUDIT
    records, unreadable = read_records(path, AuditRecord)
    records = [one for one in records if one.whole]
    if unreadable or (path.exists() and not records):
        notes.append(
            f"The audit cannot be shown: {path} is damaged; measure again with `potstill audit`."
        )
    return records[-1] if records else None
