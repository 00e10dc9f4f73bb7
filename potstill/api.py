"""The Python front: distill, resume and evaluate, on arrays or on named data."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.config.config import changed, configuration, options_from_preset
from potstill.config.sections import EVALUATION_DATA_OPTIONS, DataConfig
from potstill.data.preparation import RealData
from potstill.data.sources import from_arrays, read, with_weights
from potstill.data.splits import Dataset
from potstill.diagnosis.over_a_run import Diagnosis, Noise, recorded_diagnoses
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.runs import new_run, resumed_run
from potstill.distillation.setup import SILENT, Listener
from potstill.distilled.artefact import ARTEFACT, load, recorded_config
from potstill.distilled.sets import DistilledSet
from potstill.distributed import ALONE, Ranks
from potstill.evaluation import measuring
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.records import EVALUATION, EvaluationRecord, Row, add_record
from potstill.evaluation.scoring import factory_for
from potstill.files import checksum
from potstill.models import ModelSpec, model_name
from potstill.registry import InputError


def distill(
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    weights: Any = None,
    model: ModelSpec | None = None,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    listener: Listener = SILENT,
    **options: Any,
) -> DistilledSet:
    """Distill labelled images or vectors, or the data that `data=` names, into a small set.

    The set holds a few examples per class.

    Args:
        images: (N, H, W) or (N, C, H, W) arrays or tensors, C 1 or 3; integers 0..255, or floats.
            Or (N, d) vectors, the rows of a table, as numbers of any kind; a data frame will do.
            None: `data=` is read.
        labels: (N,) whole numbers 0 .. K-1.
        test_images: held out for tests only; None holds 20 % out.
        test_labels: their classes.
        class_names: name of each class, all different.
        feature_names: of vectors, name of each feature, all different; None: those of a data
            frame's columns.
        weights: (N,) at least 0, one for each training image that is given or that `data=` names,
            in that order: real batches are drawn without replacement in proportion to them; None:
            all alike. A hardness sampler multiplies them.
        model: a registered name, "package.module:factory", or a callable that makes a fresh
            network.
        preset: a named set of options from the paper, e.g. "cifar10-ipc10".
        out: folder to keep checkpoints, log and result in; None keeps nothing on disk.
        overwrite: replace a run that `out` holds.
        listener: receives the progress.
        **options: any option of `potstill distill --help` by its name, e.g. ipc=10, steps=500,
            window=40. With threads=n, torch's number of threads is n in this process from
            then on.
    Returns:
        The set that was best on the held-out validation images, on the CPU.
    Raises:
        InputError: something given is wrong; the sentence says what, the rule, the value found and
            the way out.
    """
    named = {"data": images if images is None else "arrays", "model": model and model_name(model)}
    for name, value in named.items():
        if value is not None and options.setdefault(name, value) != value:
            raise InputError(
                f"{name} is given twice, as {value!r} and as {options[name]!r}; give it once"
            )
    config = configuration(options_from_preset(preset) if preset else {}, options)
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights, feature_names
    )
    return new_run(
        config,
        dataset,
        None if out is None else Path(out),
        model=model,
        overwrite=overwrite,
        listener=listener,
    )


def resume(
    out: str | os.PathLike[str],
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    weights: Any = None,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
) -> DistilledSet:
    """Go on with a stopped run from its last checkpoint; the result is as if it had not stopped.

    Args:
        out: the run's folder; its config.toml holds every option.
        images: the arrays that the run was started with, if it was.
        labels: their classes.
        test_images: as at the start.
        test_labels: as at the start.
        class_names: as at the start.
        feature_names: as at the start.
        weights: as at the start.
        model: a callable, if the run was started with one that cannot be imported.
        listener: receives the progress.
    Raises:
        InputError: no run in `out`, a finished one, or other data than it was started with.
    """
    config = RunFolder.open(Path(out)).config()
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights, feature_names
    )
    return resumed_run(Path(out), config, dataset, model=model, listener=listener)


def diagnose(
    run: str | os.PathLike[str],
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    weights: Any = None,
    samples: int = 100,
    size: int = 1,
    signs: int = 0,
    unrolls: int = 1,
    sources: int = 0,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
) -> list[Diagnosis]:
    """Measure how noisy a run's meta-gradient is, at its start and at each checkpoint it kept.

    The result is kept in the run's folder, in diagnosis.json. (`keep_checkpoints=0` keeps all.)

    Args:
        run: its folder, finished or not.
        images: the arrays that it was started with, if it was.
        labels: their classes.
        test_images: as at the start.
        test_labels: as at the start.
        class_names: as at the start.
        weights: as at the start.
        samples: real samples over which the variance is taken (paper D.3: 100); 0: leave it out.
        size: real images in a sample.
        signs: estimate the variance by so many random-sign combinations, which costs less; 0: take
            it exactly.
        unrolls: of how many outer steps, from the next one on, each with its own start and window.
        sources: n to tell apart the noise of n real batches, n starts and n windows, in n^2
            unrolls; 0: leave it out.
        model: a callable, if the run was started with one that cannot be imported.
        listener: receives the progress.
    Returns:
        One diagnosis for each place: its step, `real` (a `Variance` for each unroll) and `sources`
        (name -> `Variance`).
    Raises:
        InputError: no run, other data than it was started with, or an argument out of its range.
    """
    noise = Noise(samples, size, signs, unrolls, sources)
    folder = RunFolder.open(Path(run))
    config = folder.config()
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights
    )
    return list(recorded_diagnoses(folder, config, dataset, noise, model=model, listener=listener))


def dataset_of(
    config: DataConfig,
    images: Any,
    labels: Any,
    test_images: Any,
    test_labels: Any,
    class_names: Sequence[str] | None,
    weights: Any = None,
    feature_names: Sequence[str] | None = None,
) -> Dataset:
    """Return the data that were given as arrays, or else the data that the configuration names.

    Args:
        config: the options of the data.
        images: (N, H, W), (N, C, H, W) or (N, d); None: the configuration's data.
        labels: (N,) classes.
        test_images: held out for tests only; None: a share of the images.
        test_labels: their classes.
        class_names: name of each class.
        weights: (N,) of the train images in real batches; None: all alike.
        feature_names: of vectors, name of each feature.
    """
    if images is not None and labels is not None:
        dataset = from_arrays(images, labels, test_images, test_labels, class_names, feature_names)
        return with_weights(dataset, weights)
    named = {
        "images": images,
        "labels": labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "class_names": class_names,
        "feature_names": feature_names,
    }
    for name, value in named.items():
        if value is not None:
            raise InputError(f"images and labels must be given together, got {name} without them")
    return with_weights(read(config), weights)


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
    listener: Listener = SILENT,
    **options: Any,
) -> list[Row]:
    """Measure the test accuracy of fresh networks that train on a set.

    For a run's folder or a set's file, the result is kept beside it, in evaluation.json.

    Args:
        distilled: the set, a run's folder, or a set's file.
        images: the arrays that it was distilled from, in the same order: its test images are found
            among them again.
        labels: their classes.
        test_images: as when it was distilled.
        test_labels: as when it was distilled.
        ipc: measure the first blocks of a boosted set that hold so many images per class; None: all
            of it.
        all_budgets: measure every set that a boosted set holds.
        model: another network than the recipe's; `models=` takes several names.
        listener: receives the progress.
        **options: any option of `potstill evaluate --help` by its name, e.g. nets=5,
            protocol="paper", baselines=("random",); without arrays `data=` names other data than
            the set tells of.
    Returns:
        For each set and network one row for the set and one for each baseline; `row.accuracy` has
        mean, std and n.
    Raises:
        InputError: data that do not fit the set, or an argument out of its range.
    """
    records = evaluations(
        distilled,
        images,
        labels,
        test_images=test_images,
        test_labels=test_labels,
        ipc=ipc,
        all_budgets=all_budgets,
        model=model,
        listener=listener,
        **options,
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
    given = {
        name: options.pop(name) for name in ("data", *EVALUATION_DATA_OPTIONS) if name in options
    }
    chosen = EvaluationOptions.of(**options)
    if model is not None and chosen.models:
        others = ", ".join(chosen.models)
        raise InputError(f"model and models are one option, got {model_name(model)} and {others}")
    distilled, config = opened(subject, ipc, given)
    if images is None and config.data == "arrays" and not isinstance(subject, DistilledSet):
        raise InputError(
            f"{os.fspath(subject)} does not tell where its data lie; give them with --data (in "
            "Python data=, or the arrays)"
        )
    target = None if isinstance(subject, DistilledSet) else results_file(Path(subject))
    models: Sequence[ModelSpec | None] = chosen.models or (model,)
    for spec in models:
        factory_for(distilled, spec)  # a name that is wrong is told before anything is measured
    names = distilled.class_names if labels is not None else None
    with ranks.in_turn():
        dataset = dataset_of(config, images, labels, test_images, test_labels, names)
    ranks.require_same(
        {
            "the hash of the data": dataset.identity[:12],
            "the hash of the set": checksum(
                {"images": distilled.images, "targets": distilled.targets}, {}
            )[:12],
            **{
                item.name: getattr(chosen, item.name)
                for item in dataclasses.fields(chosen)
                if item.name != "device"
            },
            "ipc": ipc,
            "all_budgets": all_budgets,
            "threads": torch.get_num_threads(),
        }
    )
    real = real_of(distilled, dataset, config, chosen.device, listener.say)
    sets = (
        [distilled.prefix(budget) for budget in distilled.budgets] if all_budgets else [distilled]
    )
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
        record = measuring.record_of(rows, own, name, one.ipc, config.data.partition(":")[0], real)
        if target and ranks.first:
            add_record(target, record)
        yield record


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
        path = Path(subject)
        run = RunFolder(path if path.is_dir() else path.parent)
        if path.is_dir() and run.is_run and not run.finished:
            raise InputError(
                f"the run in {path} is not finished; go on with `potstill distill --resume {path}`"
            )
        distilled = load(path, ipc)
        # A file that was copied elsewhere may have some other run's configuration beside it.
        beside = run.is_run and (path.is_dir() or path.name == ARTEFACT)
        recorded = (run.config() if beside else recorded_config(distilled)).data
    known = {name: value for name, value in given.items() if value is not None}
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
    known = distilled.metadata.data
    if known is None or dataset.fingerprint != known.fingerprint:
        say(
            "note: these are not the data that the set was distilled from; its validation and "
            f"test {distilled.noun}s may differ"
        )
    return measuring.fitting(distilled, dataset, config, device)


def results_file(path: Path) -> Path:
    """Return where the evaluations of a run's folder or a set's file are kept.

    Raises:
        InputError: nothing may be written there.
    """
    folder = path if path.is_dir() else path.parent
    in_run = path.is_dir() or path.name == ARTEFACT
    target = folder / (EVALUATION if in_run else f"{path.stem}.{EVALUATION}")
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"cannot write {target}: no permission; copy the set to a folder of your own"
        )
    return target
