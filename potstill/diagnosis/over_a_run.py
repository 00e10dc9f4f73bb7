"""The noise of a run's meta-gradient, at its start and at every checkpoint that it kept."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from potstill.config.config import Given
from potstill.config.options import convert
from potstill.data.splits import Dataset
from potstill.devices import hardware, pick_device, versions
from potstill.diagnosis.real_batch import RealBatch, real_batch
from potstill.diagnosis.variance import Variance, noise_sources, real_variance
from potstill.distillation.checkpoints import steps_done
from potstill.distillation.outer import Carried
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.setup import Setup
from potstill.errors import InputError
from potstill.evaluation.records import DIAGNOSIS, DataSource, add_record
from potstill.methods.unrolled import UnrolledMethod
from potstill.models import ModelSpec
from potstill.progress import SILENT, Listener


@dataclass(frozen=True)
class Noise:
    """The settings of the measurement.

    Args:
        samples: real samples for the variance; 0: not measured.
        size: real images in a sample.
        signs: number of random-sign combinations to estimate from; 0: from each sample's own
            gradient.
        unrolls: number of outer steps to measure, from the next one on.
        sources: n of `variance.noise_sources`; 0: not measured.
    """

    samples: int = 100
    size: int = 1
    signs: int = 0
    unrolls: int = 1
    sources: int = 0

    def to_plain(self) -> dict[str, int]:
        """Return all fields as plain data, also those that have their default."""
        return dataclasses.asdict(self)

    def __post_init__(self) -> None:
        for name, least in (
            ("samples", 2),
            ("size", 1),
            ("signs", 1),
            ("unrolls", 1),
            ("sources", 2),
        ):
            value, may_be_0 = (
                convert(name, getattr(self, name), int),
                name in ("samples", "signs", "sources"),
            )
            if value < least and not (may_be_0 and value == 0):
                raise InputError(
                    f"{name} must be {'0 or ' * may_be_0}at least {least}, got {value}"
                )
        if self.samples == self.sources == 0:
            raise InputError(
                "samples and sources are both 0, so that nothing is measured; give one of them"
            )


@dataclass(frozen=True)
class Diagnosis:
    """The noise at one outer step of a run.

    Args:
        step: outer steps done, over all blocks.
        real: the variance over real samples, for each unroll; see `variance.real_variance`.
        sources: the variance by source; see `variance.noise_sources`; None if not measured.
        real_batch: the real batch that suits these sources and this machine; None if they were not
            measured, or do not tell.
    """

    step: int
    real: tuple[Variance, ...]
    sources: Mapping[str, Variance] | None
    real_batch: RealBatch | None = None


@dataclass(frozen=True)
class DiagnosisRecord:
    """An entry of diagnosis.json.

    Args:
        settings: the settings of the measurement.
        data: the data that it was made on.
        places: the noise at each measured outer step, in order.
        hardware: the machine, in words.
        versions: library -> version.
    """

    KEY: ClassVar[str] = "diagnoses"
    settings: Noise
    data: DataSource
    places: tuple[Diagnosis, ...]
    hardware: str
    versions: Mapping[str, str]


def diagnose_run(
    folder: RunFolder,
    config: Given,
    dataset: Dataset,
    noise: Noise,
    *,
    sources_every: int = 1,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
) -> Iterator[Diagnosis]:
    """Measure at the start of the run's first stage and at each checkpoint, in this order.

    Args:
        folder: of the run, finished or not.
        config: the run's, with where its data are.
        dataset: its data.
        noise: what to measure.
        sources_every: tell sources apart at the start and at every so-many-th checkpoint.
        model: a callable, if the run was started with one that cannot be imported.
        listener: receives the progress.
    Raises:
        InputError: other data, a damaged checkpoint, a method that does not unroll, more samples
            than there are images.
    """
    folder.require_data(dataset.identity)
    setup = Setup.of(config, dataset, model, listener, folder.fitted(config, dataset.identity))
    # Other data are told first.
    next(folder.checkpoints.states(setup.config, dataset.identity, setup.device), None)
    weights = setup.real.weights
    most = len(setup.real.train) if weights is None else int((weights > 0).sum())
    if noise.samples * noise.size > most:
        raise InputError(
            f"samples x size must be at most the {most:,} train images, got {noise.samples} x "
            f"{noise.size}"
        )
    if not issubclass(setup.method, UnrolledMethod):
        raise InputError(
            f"the noise of {config.method.name} cannot be taken apart, it does not unroll; choose "
            "a run of a method that does"
        )
    stage = setup.stage(None)
    first = setup.begin(stage, setup.make_method(stage, Carried()))
    kept = folder.checkpoints.states(setup.config, dataset.identity, setup.device)
    places = 1 + len(folder.checkpoints.files)
    for done, state in enumerate(itertools.chain([first], kept)):
        stage = setup.stage(state)
        method = setup.make_method(stage, state.carried)
        assert isinstance(method, UnrolledMethod)
        on_blocks = stage.on_blocks(method, setup.device)
        of_blocks, learned = on_blocks.split(state.leaves)
        at = (method, on_blocks.examples(of_blocks)[0], learned, state.method)
        steps = range(state.step, state.step + noise.unrolls) if noise.samples else ()
        real = tuple(
            real_variance(*at, step, samples=noise.samples, size=noise.size, signs=noise.signs)
            for step in steps
        )
        sources = (
            noise_sources(*at, state.step, noise.sources)
            if noise.sources and done % sources_every == 0
            else None
        )
        sized = real_batch(*at, state.step, sources) if sources else None
        listener.work("places", done + 1, places)
        yield Diagnosis(steps_done(state, setup.config), real, sources, sized)


def recorded_diagnoses(
    folder: RunFolder, config: Given, dataset: Dataset, noise: Noise, **how: Any
) -> Iterator[Diagnosis]:
    """Measure as `diagnose_run` does, and write each result to diagnosis.json at once.

    Args:
        folder: of the run.
        config: the run's, with where its data are.
        dataset: its data.
        noise: what to measure.
        **how: other arguments of `diagnose_run`.
    """
    measured: list[Diagnosis] = []
    for diagnosis in diagnose_run(folder, config, dataset, noise, **how):
        measured.append(diagnosis)
        machine = hardware(pick_device(config.run.device)), versions()
        add_record(
            folder.path / DIAGNOSIS,
            DiagnosisRecord(noise, DataSource(dataset.fingerprint), tuple(measured), *machine),
        )
        yield diagnosis
