"""Measure sets, and keep the records beside them."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.config.config import changed, configuration
from potstill.config.sections import EVALUATION_DATA_OPTIONS, DataConfig, is_weights_file
from potstill.data.preparation import RealData
from potstill.data.sources import dataset_of
from potstill.data.splits import Dataset
from potstill.diagnosis.audit import AuditOptions, AuditRecord
from potstill.diagnosis.audit import audit as audited
from potstill.distillation.run_folder import RunFolder
from potstill.distilled.artefact import ARTEFACT, load, recorded_config
from potstill.distilled.remote import located
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.errors import InputError
from potstill.evaluation import measuring
from potstill.evaluation.fitting import fitting
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.records import (
    AUDIT,
    EVALUATION,
    EvaluationRecord,
    Row,
    add_record,
    worse_than_random,
)
from potstill.evaluation.scoring import factory_for, require_positive
from potstill.files import checksum, place
from potstill.models import ModelSpec, model_name
from potstill.progress import SILENT, Listener, followed
from potstill.registry import trust_given
from potstill.workers import threads


def evaluate(
    distilled: DistilledSet | str | os.PathLike[str],
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    ipc: int | None = None,
    all_budgets: bool = False,
    model: ModelSpec | None = None,
    listener: Listener | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Row]:
    """Measure the test accuracy of fresh networks that train on a set.

    For a run's folder or a set's file, the result is kept beside it, in evaluation.json.

    Args:
        distilled: the set, a run's folder, or a set's file.
        images: the arrays that it was distilled from, in the same order: what was held out of them
            is tested on. Other arrays are tested on, all of them.
        labels: their classes.
        test_images: tested on, all of them; `images` beside them are for baselines.
        test_labels: their classes.
        ipc: measure the first blocks of a boosted set that hold so many images per class; None: all
            of it.
        all_budgets: measure every set that a boosted set holds.
        model: another network than the recipe's; `models=` takes several names.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
        **options: any option of `potstill evaluate --help` by its name, e.g. nets=5,
            protocol="paper", baselines=("random",); without arrays `data=` names other data than
            the set tells of.
    Returns:
        For each set and network one row for the set and one for each baseline; `row.accuracy` has
        mean, std and n, `row.tested` is the number of test examples, and `row.cautions` says
        whether they are examples that the set was distilled from, or on another scale.
    Raises:
        InputError: data that do not fit the set, or an argument out of its range.
    """
    with followed(listener, progress) as told:
        records = list(
            evaluations(
                distilled,
                images,
                labels,
                test_images=test_images,
                test_labels=test_labels,
                ipc=ipc,
                all_budgets=all_budgets,
                model=model,
                listener=told,
                **options,
            )
        )
    return [row for record in records for row in record.rows]


def evaluations(
    subject: DistilledSet | str | os.PathLike[str],
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    ipc: int | None = None,
    all_budgets: bool = False,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Iterator[EvaluationRecord]:
    """Measure as `evaluate` does, and yield each record once it is kept.

    Args:
        subject: the set, a run's folder, or a set's file.
        images: the arrays that it was distilled from, in the same order.
        labels: their classes.
        test_images: as when it was distilled.
        test_labels: as when it was distilled.
        ipc: images per class of the prefix to measure; None: all of the set.
        all_budgets: measure every set that a boosted set holds.
        model: another network than the recipe's.
        listener: receives the progress.
        ranks: the processes that share the networks; the first alone keeps records.
        **options: as for `evaluate`.
    """
    trust_given([*options.values(), model_name(model) if model else None])
    given = {
        name: options.pop(name) for name in ("data", *EVALUATION_DATA_OPTIONS) if name in options
    }
    chosen = EvaluationOptions.of(**options)
    if not isinstance(subject, DistilledSet):
        subject = located("distilled", subject)
    distilled, config = opened(subject, ipc, given)
    given_here = images is not None or test_images is not None
    if not given_here and not isinstance(subject, DistilledSet):
        require_source(config, subject)
    target = (
        None if isinstance(subject, DistilledSet) else results_file(place("distilled", subject))
    )
    models = models_of(distilled, model, chosen)
    names = distilled.class_names if given_here else None
    if images is None:  # all that is given is tested on
        images, labels, test_images, test_labels = test_images, test_labels, None, None
    with ranks.in_turn():
        dataset = dataset_of(config, images, labels, test_images, test_labels, names)
    measured = {"ipc": ipc, "all_budgets": all_budgets}
    ranks.require_same({**measured, **identities(distilled, dataset, chosen)})
    real = real_of(distilled, dataset, config, chosen.device, listener.say)
    sets = [distilled]
    if all_budgets:
        sets = [distilled.prefix(budget) for budget in distilled.budgets]
    lengths = recorded_config(distilled).evaluation.lengths
    for one, spec in itertools.product(sets, models):
        name = None if spec is None else model_name(spec)
        if len(sets) * len(models) > 1:
            listener.say(f"{name or distilled.recipe.model}, {one.ipc} {one.noun}s per class")
        # All real images are the same beside every budget: they are measured once.
        baselines = tuple(name for name in chosen.baselines if name != "full" or one is sets[-1])
        own = dataclasses.replace(chosen, models=(), baselines=baselines)
        rows = measuring.evaluate(
            one,
            real,
            own,
            model=spec,
            lengths=lengths,
            progress=listener.work,
            say=listener.say,
            ranks=ranks,
        )
        record = measuring.record_of(rows, own, name, one.ipc, config.source[0], real)
        if target and ranks.first:
            add_record(target, record)
        note = note_on(record, distilled)
        if note:
            listener.say(f"note: {note}")
        yield record


def audit(
    distilled: str | os.PathLike[str],
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    nets: int = 5,
    epochs: int = 20,
    seed: int = 0,
    device: str = "auto",
    listener: Listener | None = None,
    progress: bool = True,
    **data: Any,
) -> AuditRecord:
    """Measure what a set tells of the single examples that it was distilled from.

    Membership inference on networks that train on it, beside networks that train on all of them and
    networks that never saw them; and how near its images are to real ones. The result is kept
    beside the set, in audit.json. Numbers, no guarantees.

    Args:
        distilled: a run's folder, or a set's file.
        images: the arrays that it was distilled from, in the same order, if it was.
        labels: their classes.
        test_images: as when it was distilled.
        test_labels: as when it was distilled.
        nets: networks for each attack.
        epochs: for which networks train on all training data.
        seed: of the networks.
        device: where to train.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
        **data: where the real data are and how they are read, as for `evaluate`.
    Raises:
        InputError: other data than the set was distilled from, or a set that no networks train on.
    """
    require_positive(nets=nets, epochs=epochs)
    path = located("distilled", distilled)
    subject, config = opened(path, None, data)
    if images is None:
        require_source(config, path)
    names = subject.class_names if images is not None else None
    dataset = dataset_of(config, images, labels, test_images, test_labels, names)
    known = subject.metadata.data
    if known is None:
        raise InputError(
            "an audit needs the very data that the set was distilled from, and this set does not "
            "say which they were, as one that was merged; audit its parts one by one"
        )
    if known.fingerprint != dataset.fingerprint:
        raise InputError(
            "an audit needs the very data that the set was distilled from, these are others; give "
            "those with --data (in Python data=, or the arrays)"
        )
    with followed(listener, progress) as told:
        real = real_of(subject, dataset, config, device, told.say)
        record = audited(
            subject, real, AuditOptions(nets, epochs, seed), device=device, progress=told.work
        )
    add_record(results_file(path, AUDIT), record)
    return record


def require_source(config: DataConfig, path: str | os.PathLike[str]) -> None:
    """Raise an InputError if nothing tells where the real data of the set at `path` are."""
    if config.data == "arrays":
        raise InputError(
            f"{os.fspath(path)} does not tell where its data lie; give them with --data (in "
            "Python data=, or the arrays)"
        )


def note_on(record: EvaluationRecord, distilled: DistilledSet) -> str:
    """Say that a set is worse than real examples, if it is; else ""."""
    rows = {row.name: row for row in record.rows}
    if not {"distilled", "random"} <= rows.keys():
        return ""
    figures = rows["distilled"].accuracy, rows["random"].accuracy
    steps = distilled.metadata.option("steps")
    return worse_than_random(*figures, steps, record.classes, record.noun)


def models_of(
    distilled: DistilledSet, model: ModelSpec | None, options: EvaluationOptions
) -> Sequence[ModelSpec | None]:
    """Return the networks to measure on; None is the recipe's.

    Raises:
        InputError: two ways to say it, or a name that is wrong: told before anything is measured.
    """
    if model is not None and options.models:
        others = ", ".join(options.models)
        raise InputError(f"model and models are one option, got {model_name(model)} and {others}")
    models = options.models or (model,)
    for one in models:
        factory_for(distilled, one)
    return models


def identities(
    distilled: DistilledSet, dataset: Dataset, options: EvaluationOptions
) -> dict[str, Any]:
    """Return what must be the same on all ranks, by name."""
    examples = {"images": distilled.images, "targets": distilled.targets}
    known = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    del known["device"]
    return {
        "the hash of the data": dataset.identity[:12],
        "the hash of the set": checksum(examples, {})[:12],
        "threads": threads(),
        **known,
    }


def opened(
    subject: DistilledSet | str | os.PathLike[str], ipc: int | None, given: Mapping[str, Any]
) -> tuple[DistilledSet, DataConfig]:
    """Return a set, and the options that tell where its real data are and how they are read.

    Args:
        subject: the set, a run's folder, or a set's file.
        ipc: of the prefix to take; None: all.
        given: options of the data that replace those of the run; None is not given.
    Raises:
        InputError: an unfinished run, a damaged file.
    """
    if isinstance(subject, DistilledSet):
        distilled = subject if ipc is None else subject.prefix(ipc)
        recorded = recorded_config(distilled).data
    else:
        path = place("distilled", subject)
        run = RunFolder(path if path.is_dir() else path.parent)
        if path.is_dir():
            run.recover()
        if path.is_dir() and run.is_run and not run.finished:
            raise InputError(
                f"the run in {path} is not finished; go on with `potstill distill --resume {path}`"
            )
        distilled = load(path, ipc)
        # A file that was copied elsewhere may have some other run's configuration beside it.
        beside = run.is_run and (path.is_dir() or path.name == ARTEFACT)
        recorded = run.data_config() if beside else recorded_config(distilled).data
    known = {name: value for name, value in given.items() if value is not None}
    # Nothing here is drawn by weight; but a column of weights is none of the features.
    if "data" in known or is_weights_file(recorded.weights):
        known = {"weights": "", **known}
    if "data" in known:
        known = {"storage": "auto", **known}
    return distilled, changed(configuration(dataclasses.asdict(recorded)), **known).data


def real_of(
    distilled: DistilledSet,
    dataset: Dataset,
    config: DataConfig,
    device: str,
    say: Callable[[str], None],
) -> RealData:
    """Return `dataset` through the set's own preprocessing.

    Args:
        distilled: the set.
        dataset: the real data, raw.
        config: the options of the data.
        device: where the data go.
        say: receives a sentence if the set was distilled from other data.
    """
    real, known = fitting(distilled, dataset, config, device), distilled.metadata.data
    if known is None or dataset.fingerprint != known.fingerprint:
        told = (
            "the set does not say what data it was distilled from"
            if known is None
            else "these are not the data that the set was distilled from"
        )
        say(f"{told}; tested on {len(real.test):,} {distilled.noun}s ({real.origins['test']})")
    for caution in real.cautions:
        say(f"note: {caution}")
    return real


def results_file(path: Path, name: str = EVALUATION) -> Path:
    """Return where what was measured of a run's folder or a set's file is kept.

    Args:
        path: the folder or the file.
        name: of the results file in a run's folder.
    Raises:
        InputError: nothing may be written there.
    """
    folder = path if path.is_dir() else path.parent
    in_run = path.is_dir() or path.name == ARTEFACT
    target = folder / (name if in_run else f"{path.stem}.{name}")
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"cannot write {target}: no permission; copy the set to a folder of your own"
        )
    return target
