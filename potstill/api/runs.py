"""Distil, resume and diagnose, on arrays or on named data."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.config import choosing
from potstill.config.config import (
    Given,
    Layer,
    changed,
    options_from_file,
    options_from_preset,
    quick_options,
)
from potstill.config.config import configuration as made
from potstill.data.sources import dataset_of
from potstill.devices import own_torch_state
from potstill.diagnosis.over_a_run import Diagnosis, Noise, recorded_diagnoses
from potstill.distillation.checkpoints import CONFIG
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.runs import finished_early, new_run, resumed_run
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.files import place
from potstill.models import ModelSpec, model_name
from potstill.progress import Listener, followed
from potstill.registry import trust_given


def configuration(*layers: Layer, **options: Any) -> Given:
    """Build the configuration of a run from layers of options and from `options`.

    A later layer wins over an earlier one, and `options` over all. Parts that these name are
    trusted: their code may be run.

    Raises:
        InputError: an unknown name, an option without effect on the chosen parts, a value of the
            wrong type or out of its range, options that do not fit.
    """
    for layer in (*layers, options):
        trust_given(layer.values())
    return made(*layers, **options)


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
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    progress: bool = True,
    **options: Any,
) -> DistilledSet:
    """Distill labelled images or vectors, or the data that `data=` names, into a small set.

    The set holds a few examples per class.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, H, W, C) arrays or tensors, C 1 or 3; integers
            0..255, or floats. Or (N, d) vectors, the rows of a table, as numbers of any kind; a
            data frame will do. Or a torch Dataset or DataLoader, or a Hugging Face Dataset, which
            has the labels, too. Or the path of data, as `data=` takes it. None: `data=` is read.
        labels: (N,) whole numbers 0 .. K-1, or names of classes.
        test_images: held out for tests only; None holds 20 % out.
        test_labels: their classes.
        class_names: name of each class, all different.
        feature_names: of vectors, name of each feature, all different; None: those of a data
            frame's columns.
        weights: (N,) at least 0, one for each training image that is given or that `data=` names,
            in that order: real batches are drawn without replacement in proportion to them; or a
            column or file that holds them, as `--weights` takes it; None: all alike. A hardness
            sampler multiplies them.
        model: a registered name, "package.module:factory", or a callable that makes a fresh
            network.
        preset: a named set of options from the paper, e.g. "cifar10-ipc10".
        quick: a first try, as `potstill distill --quick`: a minute, a small network, short unrolls.
        out: folder to keep checkpoints, log and result in; None keeps nothing on disk.
        overwrite: replace a run that `out` holds.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
        **options: any option of `potstill distill --help` by its name, e.g. ipc=10, steps=500,
            window=40. With threads=n, torch's number of threads is n in this process from
            then on; the set is the same for any n.
    Returns:
        The set that was best on the held-out validation images, on the CPU.
    Raises:
        InputError: something given is wrong; the sentence says what, the rule, the value found and
            the way out.
    """
    began = time.perf_counter()
    if isinstance(images, str | os.PathLike):
        path, images = os.fspath(images), None
    else:
        path = None if images is None else "arrays"
    named = {"data": path, "model": model and model_name(model)}
    if isinstance(weights, str | os.PathLike):
        named["weights"], weights = os.fspath(weights), None
    for name, value in named.items():
        if value is not None and options.setdefault(name, value) != value:
            raise InputError(
                f"{name} is given twice, as {value!r} and as {options[name]!r}; give it once"
            )
    trust_given([*options.values(), model_name(model) if model else None])
    layers: list[Layer] = [{} if preset is None else options_from_preset(preset), options]
    automatic = choosing.asked(*layers)
    plain = [choosing.of_data(*layers)] if automatic else layers
    config = made(quick_options(*plain) if quick else {}, *plain)
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights, feature_names
    )
    why = ""
    if automatic:
        given, why = choosing.with_method(dataset.shape, *layers)
        config = made(quick_options(given) if quick else {}, given)
    folder = None if out is None else place("out", out)
    with followed(listener, progress) as told:
        if why:
            told.say(why)
        return new_run(
            config,
            dataset,
            folder,
            model=model,
            overwrite=overwrite,
            listener=told,
            began=began,
        )


def extend(
    run: str | os.PathLike[str],
    ipc: int | None = None,
    *,
    out: str | os.PathLike[str],
    new_classes: bool = False,
    **options: Any,
) -> DistilledSet:
    """Add new blocks, or new classes, to the set of a finished run; what it has stays, to the byte.

    The new run has the options of the old one, unless they are given.

    Args:
        run: the folder of the run.
        ipc: images per class in the end, a multiple of those in a block of the old set; None: as
            many as it has, with new classes.
        out: folder of the new run.
        new_classes: add images of the classes of the data (`data=`, or arrays) that the set lacks.
        **options: as for `distill`, arrays too; `extend="gaussian"` starts new blocks from noise in
            place of real examples.
    Raises:
        InputError: the run is not finished, the sizes do not fit, or another method is asked for.
    """
    own = {**options, "new_classes": True} if new_classes else options
    return distill(out=out, **extension(place("run", run), ipc, own))


def extension(run: Path, ipc: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run that extends the set of another.

    Args:
        run: the folder of the other.
        ipc: images per class in the end; None: as many as it has.
        given: options that win over that run's.
    """
    if run.is_file() or str(run).startswith(("zoo:", "hf:")):
        raise InputError(
            f"extending takes the folder of a run, which knows how it was made, got the set {run}; "
            f"start a new run from it with `potstill distill --init {run} --extend real --ipc N "
            "--boost-blocks BLOCKS`"
        )
    if given.get("extend") == "no":
        raise InputError(
            "extend must be real, gaussian or normal, what new examples start from, got no; leave "
            "it out"
        )
    folder = RunFolder.open(run)
    if not folder.finished:
        raise InputError(
            f"the run in {run} is not finished; go on with `potstill distill --resume {run}`"
        )
    before = folder.config().distilled
    block = before.ipc_of_block
    if given.get("new_classes"):
        if ipc not in (None, before.ipc):
            raise InputError(
                f"new classes get as many images as the set has of each, {before.ipc}, got {ipc}; "
                "leave ipc out, and extend again for more"
            )
        ipc = before.ipc
    elif ipc is None:
        raise InputError("extending needs what is to be added; give --ipc, or --new-classes")
    elif ipc % block or ipc <= before.ipc:
        raise InputError(
            f"ipc must be a multiple of {block}, the images of each class in a block, and above "
            f"the {before.ipc} that the set has, got {ipc}"
        )
    anew = dict.fromkeys(("batch_per_class", "classes_per_batch", "micro_batch"), "auto")
    own = {"init": str(run), "ipc": ipc, "boost_blocks": ipc // block, "extend": "real"}
    own["new_classes"] = False  # that of the run that is extended is over
    return {**options_from_file(run / CONFIG), **anew, **own, **given}


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
    steps: int | None = None,
    model: ModelSpec | None = None,
    listener: Listener | None = None,
    progress: bool = True,
) -> DistilledSet:
    """Go on with a run from its last checkpoint; the result is as if it had not stopped.

    Args:
        out: the run's folder; its config.toml holds every option.
        images: the arrays that the run was started with, if it was.
        labels: their classes.
        test_images: as at the start.
        test_labels: as at the start.
        class_names: as at the start.
        feature_names: as at the start.
        weights: as at the start.
        steps: outer steps that the run is to have in all, so that a finished one goes on; None: as
            at the start. The set that it gave is kept in a folder of its own.
        model: a callable, if the run was started with one that cannot be imported.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
    Raises:
        InputError: no run in `out`, a finished one, or other data than it was started with.
    """
    trust_given([model_name(model) if model else None])
    config = RunFolder.open(place("out", out)).config()
    if steps is not None:
        config = longer(config, changed(config, steps=steps))
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights, feature_names
    )
    with followed(listener, progress) as told:
        return resumed_run(Path(out), config, dataset, model=model, listener=told)


def finish(
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
    listener: Listener | None = None,
    progress: bool = True,
) -> DistilledSet:
    """Make the set of a stopped run, the best so far on validation images; the run can go on.

    Args:
        out: the run's folder.
        images: the arrays that the run was started with, if it was.
        labels: their classes.
        test_images: as at the start.
        test_labels: as at the start.
        class_names: as at the start.
        feature_names: as at the start.
        weights: as at the start.
        model: a callable, if the run was started with one that cannot be imported.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
    Raises:
        InputError: no run in `out`, a finished one, one that was not validated yet, or other data.
    """
    trust_given([model_name(model) if model else None])
    config = RunFolder.open(place("out", out)).config()
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights, feature_names
    )
    with followed(listener, progress) as told:
        return finished_early(Path(out), config, dataset, model=model, listener=told)


def longer(config: Given, changed: Given) -> Given:
    """Return the changed configuration of a run that goes on.

    Raises:
        InputError: a nested run is to take other steps; its first blocks have taken theirs.
    """
    before, after = config.outer.steps, changed.outer.steps
    if config.distilled.boost_blocks > 1 and before != after:
        raise InputError(
            f"steps of a nested run cannot change, its blocks take {before} each, got {after}; "
            "start a new run"
        )
    course = config.outer.outer_schedule
    if before != after and (course != "constant" or config.outer.warm_up):
        raise InputError(
            f"steps of a run whose outer rates follow its length cannot change "
            f"(outer_schedule={course}, {before} steps), got {after}; start a new one from its set "
            "with --init"
        )
    return changed


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
    listener: Listener | None = None,
    progress: bool = True,
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
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
    Returns:
        One diagnosis for each place: its step, `real` (a `Variance` for each unroll), `sources`
        (name -> `Variance`) and, with these, `real_batch` (a `RealBatch`: how many real images
        would make the most of the time).
    Raises:
        InputError: no run, other data than it was started with, or an argument out of its range.
    """
    trust_given([model_name(model) if model else None])
    noise = Noise(samples, size, signs, unrolls, sources)
    folder = RunFolder.open(place("run", run))
    config = folder.config()
    dataset = dataset_of(
        config.data, images, labels, test_images, test_labels, class_names, weights
    )
    with own_torch_state(), followed(listener, progress) as told:
        return list(recorded_diagnoses(folder, config, dataset, noise, model=model, listener=told))
