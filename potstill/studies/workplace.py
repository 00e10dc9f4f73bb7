"""Where a study works: its points, the runs that they need, and what is kept of them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import files
from potstill.config.config import Given, changed, configuration
from potstill.data.splits import Dataset
from potstill.devices import forget_peak_memory, hardware, pick_device, versions
from potstill.diagnosis.over_a_run import Diagnosis, Noise, diagnose_run
from potstill.distillation.boosting import made_blocks
from potstill.distillation.checkpoints import steps_done
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.runs import new_run, resumed_run
from potstill.distilled import artefact
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.bench import Bench
from potstill.evaluation.fitting import fitting
from potstill.progress import SILENT, Listener
from potstill.studies.results import Measurement

POINTS, DIGEST = "points", 10


@dataclass(frozen=True)
class Subject:
    """What a point measures: a distilled set and the bench for it."""

    distilled: DistilledSet
    bench: Bench
    lengths: tuple[int, ...]
    seed: int
    folder: RunFolder
    workplace: "Workplace"

    def course(self) -> Iterator[tuple[int, DistilledSet]]:
        """Yield (outer steps done, the set at that step) for every kept checkpoint, in order."""
        config, one = self.folder.resolved_config(), self.distilled.blocks[0].parameterisation
        for state in self.folder.checkpoints.states(
            config, self.workplace.dataset.identity, self.bench.device
        ):
            blocks = made_blocks({**state.carried.earlier, **state.leaves}, one)
            yield steps_done(state, config), self.distilled.with_blocks(blocks)

    def diagnoses(self, noise: Noise, sources_every: int) -> Iterator[Diagnosis]:
        """Yield the noise of the run's meta-gradient at its start and at every checkpoint."""
        workplace = self.workplace
        config = changed(self.folder.config(), device=workplace.device, threads=workplace.threads)
        return diagnose_run(
            self.folder, config, workplace.dataset, noise, sources_every=sources_every
        )


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
    def config(self) -> Given:
        """The run's configuration, before anything in it is resolved."""
        return configuration(self.options)


@dataclass(frozen=True)
class Workplace:
    """A study's folders, data and machine.

    Args:
        folder: the study's own.
        runs: the folder of all runs, which studies share.
        dataset: the raw data.
        nets: networks for each figure.
        device: as for a run.
        threads: as for a run.
        listener: receives the progress.
    """

    folder: Path
    runs: Path
    dataset: Dataset
    nets: int
    device: str = "auto"
    threads: int | str = "auto"
    listener: Listener = SILENT

    def run(self, point: Point) -> DistilledSet:
        """Return the finished set of a point's run: made, resumed, or read."""
        path = self.runs / self.run_name(point)
        folder = RunFolder(path)
        if not folder.finished:
            forget_peak_memory(pick_device(self.device))
        if not folder.is_run:
            config = changed(point.config, device=self.device, threads=self.threads)
            return new_run(config, self.dataset, path, listener=self.quiet)
        if not folder.finished:
            return resumed_run(path, folder.config(), self.dataset, listener=self.quiet)
        return artefact.load(path)

    @property
    def quiet(self) -> Listener:
        """The listener for single runs: their progress, without their sentences."""
        return dataclasses.replace(self.listener, say=SILENT.say)

    def subject(self, point: Point) -> Subject:
        """Return the set of a point's run, ready to be measured."""
        config, distilled = point.config, self.run(point)
        real = fitting(distilled, self.dataset, config.data, self.device)
        bench = Bench.of(
            distilled,
            real,
            self.nets,
            config.run.seed,
            pick_device(self.device),
            progress=self.listener.work,
        )
        folder = RunFolder(self.runs / self.run_name(point))
        return Subject(
            distilled,
            bench,
            tuple(sorted(config.evaluation.lengths)),
            config.run.seed,
            folder,
            self,
        )

    def file(self, point: Point) -> Path:
        """Return the path of a point's result, which depends on the number of networks."""
        return (
            self.folder
            / POINTS
            / f"{point.name}-{self.run_name(point)[-DIGEST:]}-nets{self.nets}.json"
        )

    def run_name(self, point: Point) -> str:
        """Name the folder of a point's run."""
        return run_name(point.config, self.dataset.fingerprint)


OFTEN_VALIDATED = {"validate_every": 25, "validation_nets": 2, "lengths": (100, 300)}
"""Options of small presets whose runs are followed by validation accuracy."""


def small_options(data: str | None) -> dict[str, Any]:
    """Return the options that small presets share: a narrow network, on small data as it is."""
    options = {
        "data": data or "digits",
        "preprocess": "normalize",
        "width": 32,
        "augment": (),
        "real_batch": 200,
        "outer_lr": "auto",
        "compile": "off",
    }
    # Three times what auto gives there: in 150 steps 91.3 in place of 89.1 % on validation data
    # (five images a class, one seed).
    return options | ({"outer_lr": 0.02} if options["data"] == "digits" else {})


def paper_data(data: str | None) -> str:
    """Return the data of a paper preset; raise an InputError if there are none."""
    if data is None:
        raise InputError(
            "data must be given for the preset paper, which runs on CIFAR-10: --data parquet:PATH"
        )
    return data


def run_name(config: Given, fingerprint: str) -> str:
    """Name a run's folder: a readable part, and a hash of all that decides its result."""
    known = {**config.flat(), "content": fingerprint}
    for name in ("data", "cache_dir", "device", "threads", "log"):
        known.pop(name)
    distilled = config.distilled
    beta = (
        f"-{distilled.boost_blocks}x-beta{distilled.boost_beta:g}"
        if distilled.boost_blocks > 1
        else ""
    )
    digest = hashlib.sha256(files.canonical(known).encode()).hexdigest()[:DIGEST]
    param = f"-{config.parameterisation.name}" if config.decoded else ""
    return f"ipc{distilled.ipc}{param}{beta}-seed{config.run.seed}-{digest}"


def read_point(path: Path) -> list[Measurement]:
    """Read a point's file."""
    try:
        return [
            Measurement(**row)
            for row in json.loads(path.read_text(encoding="utf-8"))["measurements"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it, and the study measures that point again"
        ) from error


def provenance(workplace: Workplace) -> dict[str, Any]:
    """Return what a result depends on beside its options."""
    return {
        "hardware": hardware(pick_device(workplace.device)),
        "versions": versions(),
        "data": workplace.dataset.fingerprint,
    }
