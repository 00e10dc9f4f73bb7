"""The Python front: distill, resume and evaluate, on arrays or on data that a name finds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill import evaluation
from potstill.config import Given, changed, configuration, options_from_preset
from potstill.data import Dataset
from potstill.devices import pick_device
from potstill.diagnosis import Diagnosis, Noise, diagnose_run
from potstill.distillation import SILENT, Listener, new_run, resumed_run
from potstill.distilled import DistilledSet
from potstill.evaluation import Row
from potstill.loading import RealData, prepare
from potstill.models import ModelSpec, model_name
from potstill.registry import InputError
from potstill.runs import RunFolder
from potstill.scoring import Progress
from potstill.sections import DataConfig
from potstill.sources import from_arrays, read, with_weights


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
    """Distill labelled images or vectors, or the data that `data=` names, into a few synthetic examples per class.

    Args:
        images: (N, H, W) or (N, C, H, W) arrays or tensors, C 1 or 3; integers 0..255, or floats. Or (N, d) vectors, the rows
            of a table, as numbers of any kind; a data frame will do. None: `data=` is read.
        labels: (N,) whole numbers 0 .. K-1.
        test_images: held out for tests only; None holds 20 % out.
        test_labels: their classes.
        class_names: name of each class, all different.
        feature_names: of vectors, name of each feature, all different; None: those of a data frame's columns.
        weights: (N,) at least 0, one for each training image that is given or that `data=` names, in that order: real batches
            are drawn without replacement in proportion to them; None: all alike. A hardness sampler multiplies them.
        model: a registered name, "package.module:factory", or a callable that makes a fresh network.
        preset: a named set of options from the paper, e.g. "cifar10-ipc10".
        out: folder to keep checkpoints, log and result in; None keeps nothing on disk.
        overwrite: replace a run that `out` holds.
        listener: told of progress.
        **options: any option of `potstill distill --help` by its name, e.g. ipc=10, steps=500, window=40.
            With threads=n, torch's number of threads is n in this process from then on.
    Returns:
        The set that was best on the held-out validation images, on the CPU.
    Raises:
        InputError: something given is wrong; the sentence says what, the rule, the value found and the way out.
    """
    named = {"data": images if images is None else "arrays", "model": model and model_name(model)}
    for name, value in named.items():
        if value is not None and options.setdefault(name, value) != value:
            raise InputError(f"{name} is given twice, as {value!r} and as {options[name]!r}; give it once")
    config = configuration(options_from_preset(preset) if preset else {}, options)
    dataset = dataset_of(config.data, images, labels, test_images, test_labels, class_names, weights, feature_names)
    return new_run(config, dataset, None if out is None else Path(out), model=model, overwrite=overwrite, listener=listener)


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
    """Go on with a run that was stopped, from its last checkpoint, to exactly what it would have given undisturbed.

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
        listener: told of progress.
    Raises:
        InputError: no run in `out`, a finished one, or other data than it was started with.
    """
    config = RunFolder.open(Path(out)).config()
    dataset = dataset_of(config.data, images, labels, test_images, test_labels, class_names, weights, feature_names)
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
    """How noisy a run's meta-gradient is, at its start and at each checkpoint that it kept (`keep_checkpoints=0`: all).

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
        signs: estimate the variance by so many random-sign combinations, which costs less; 0: take it exactly.
        unrolls: of how many outer steps, from the next one on, each with its own start and window.
        sources: n to tell apart the noise of n real batches, n starts and n windows, in n^2 unrolls; 0: leave it out.
        model: a callable, if the run was started with one that cannot be imported.
        listener: told of progress.
    Returns:
        One diagnosis for each place: its step, `real` (a `Variance` for each unroll) and `sources` (name -> `Variance`).
    Raises:
        InputError: no run, other data than it was started with, or an argument out of its range.
    """
    noise = Noise(samples, size, signs, unrolls, sources)
    folder = RunFolder.open(Path(run))
    config = folder.config()
    dataset = dataset_of(config.data, images, labels, test_images, test_labels, class_names, weights)
    return list(diagnose_run(folder, config, dataset, noise, model=model, listener=listener))


def dataset_of(
    config: DataConfig, images: Any, labels: Any, test_images: Any, test_labels: Any, class_names: Sequence[str] | None,
    weights: Any = None, feature_names: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """The data that were given as arrays or, without any, that the configuration names, with weights if there are some."""
    if images is not None and labels is not None:
        dataset = from_arrays(images, labels, test_images, test_labels, class_names, feature_names)
        return with_weights(dataset, weights)
    named = {
        "images": images, "labels": labels, "test_images": test_images, "test_labels": test_labels, "class_names": class_names,
        "feature_names": feature_names,
    }  # fmt: skip
    for name, value in named.items():
        if value is not None:
            raise InputError(f"images and labels must be given together, got {name} without them")
    return with_weights(read(config), weights)


def evaluate(
    distilled: DistilledSet,
    images: Any = None,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    data: str | None = None,
    nets: int = 10,
    model: ModelSpec | None = None,
    steps: int | None = None,
    lr: float | None = None,
    protocol: str = "validation",
    baselines: Sequence[str] = (),
    full_epochs: int = 20,
    seed: int = 0,
    device: str = "auto",
    compile: str = "auto",
    progress: Progress | None = None,
) -> list[Row]:
    """Test accuracy of fresh networks that train on a set; its fields are mean, std and n.

    Args:
        distilled: the set.
        images: the arrays that it was distilled from, in the same order: its test images are found among them again.
        labels: their classes.
        test_images: as when it was distilled.
        test_labels: as when it was distilled.
        data: instead of arrays, the name of the data; None takes the embedded digits if the set was distilled from them.
        nets: fresh networks for each row.
        model: another network than the recipe's.
        steps: a fixed number of training steps.
        lr: a fixed learning rate; None: see `evaluation.evaluate`.
        protocol: "validation" or "paper", see `evaluation.evaluate`.
        baselines: "random" and "full": real data under the same protocol.
        full_epochs: most epochs of "full".
        seed: of the networks.
        device: where to train.
        compile: "on", "off", or "auto": when there is so much to compute that it pays.
        progress: called as networks finish.
    Returns:
        One row for the set and one for each baseline.
    Raises:
        InputError: data that do not fit the set, or an argument out of its range.
    """
    recorded = recorded_config(distilled)
    config = changed(recorded, data=data).data if data else recorded.data
    names = distilled.class_names if labels is not None else None
    real = fitting(distilled, dataset_of(config, images, labels, test_images, test_labels, names), config, device)
    return evaluation.evaluate(
        distilled, real, nets=nets, model=model, steps=steps, lr=lr, protocol=protocol, baselines=baselines,
        full_epochs=full_epochs, lengths=recorded.evaluation.lengths, seed=seed, device=device, compile=compile, progress=progress,
    )  # fmt: skip


def recorded_config(distilled: DistilledSet) -> Given:
    """Read the configuration that a set's file records, parts and options as far as they are known.

    Where the data lie is not in it, but for the embedded digits.
    """
    tables = distilled.meta.get("config", {})
    options = {name: value for table in tables.values() for name, value in table.items()}
    config = configuration(options)
    return config if config.data.embedded else changed(config, data="arrays")


def fitting(distilled: DistilledSet, dataset: Dataset, config: DataConfig, device: str) -> RealData:
    """`dataset` through the set's own preprocessing; an InputError if its shape, classes or features are not the set's."""
    shape = dataset.shape
    if "vector" in (dataset.kind, distilled.kind) and shape != distilled.shape:
        wanted, got = (f"{one[0]} features" if len(one) == 1 else f"images of shape {one}" for one in (distilled.shape, shape))
        raise InputError(f"the data must have {wanted} like the distilled set, got {got}; give the data that it was distilled from")
    if shape != distilled.shape:
        raise InputError(
            f"the data must have images of shape {distilled.shape} like the distilled set, got {shape}; try --image-size"
        )
    if dataset.class_names != distilled.class_names:
        pairs = zip(dataset.class_names, distilled.class_names, strict=False)
        found, wanted = next((pair for pair in pairs if pair[0] != pair[1]), ("another number", "all"))
        raise InputError(
            f"the data must have the {len(distilled.class_names)} classes of the distilled set, in its order, got "
            f"{len(dataset.class_names)}; the first that differs is {found!r} in place of {wanted!r}"
        )
    named, own = dataset.feature_names, tuple(distilled.meta.get("data", {}).get("features", ()))
    if named and own and named != own:
        got, first = next(pair for pair in zip(named, own, strict=True) if pair[0] != pair[1])
        raise InputError(
            f"the data must have the features of the distilled set, in its order; the first that differs is {got!r} in place of "
            f"{first!r}"
        )
    return prepare(dataset, config, pick_device(device), distilled.fitted)
