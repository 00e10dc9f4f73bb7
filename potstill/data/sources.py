"""Sources of labelled examples: `read` by name, and scikit-learn's own data."""

import dataclasses
import importlib
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from potstill.config.sections import DataConfig, is_weights_file
from potstill.data.arrays import array_hash, checked, from_arrays, with_weights
from potstill.data.collections import examples_of, is_collection
from potstill.data.disk import bytes_on_disk
from potstill.data.splits import Arrays, Dataset
from potstill.data.weights import of_file
from potstill.errors import InputError, first_line, let_memory_pass, near_miss
from potstill.registry import SOURCES

TABLES = ("breast_cancer", "digits", "iris", "wine")
"""The classification tables that come with scikit-learn."""


def read(config: DataConfig) -> Dataset:
    """Read what `config.data` names.

    Raises:
        InputError: it does not exist, is empty, or cannot be read; the sentence says which file and
            what to do.
    """
    source, rest = config.source
    if source == "arrays":
        raise InputError(
            "the data were arrays given in Python; give them again there, as in "
            "potstill.resume(out, images, labels)"
        )
    if ":" not in source and (source == "digits") == bool(rest):
        raise InputError(
            "data must be a path, digits, sklearn:NAME, folder:PATH, parquet:PATH or hf:NAME, got "
            f"{config.data!r}"
        )
    with blaming(source) if ":" in source else nullcontext():
        function = SOURCES[source]
        if not callable(function):
            raise InputError(
                f"data source {source} must be a function of (text, DataConfig), got "
                f"{function!r:.99}"
            )
        dataset = function(rest, config)
        if not isinstance(dataset, Dataset):
            raise InputError(
                f"data source {source} must return a potstill.data.splits.Dataset, got "
                f"{type(dataset).__name__}; potstill.data.arrays.from_arrays makes one"
            )
        on_disk = None if source == "sklearn" else bytes_on_disk(rest)
        dataset = checked(dataclasses.replace(dataset, disk_bytes=on_disk))
    return weighted(dataset, config)


@contextmanager
def blaming(source: str) -> Iterator[None]:
    """Turn whatever a user's function that reads data raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may fail in any way
        let_memory_pass(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"data source {source} fails: {type(error).__name__}: {first_line(error)} (in "
            f"{last.name} at {last.filename}:{last.lineno}); it is called with (text, DataConfig)"
        ) from error


def weighted(dataset: Dataset, config: DataConfig) -> Dataset:
    """Return a data set with the weights that `config.weights` names, which its source may know.

    Raises:
        InputError: the file does not hold them; the source has no columns.
    """
    if is_weights_file(config.weights):
        return with_weights(dataset, of_file(config.weights), f"weights {config.weights}")
    if config.weights and dataset.weights is None:
        raise InputError(
            f"weights must be a file (.npy, .csv or .txt) where data have no columns, got "
            f"{config.weights!r} with data {config.data}; write them into a file, in the order of "
            "the train split"
        )
    return dataset


def read_digits(_: str, config: DataConfig) -> Dataset:
    """Read scikit-learn's 1,797 grey digits of 8 x 8 pixels with values 0 to 16."""
    from sklearn.datasets import (
        load_digits,  # here: it takes a second to import and only this source needs it
    )

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset(
        Arrays(images, bunch.target.astype(np.int64)), None, names, array_hash(images, bunch.target)
    )


def read_sklearn(name: str, config: DataConfig) -> Dataset:
    """Read a table of scikit-learn as vectors; raise an InputError for an unknown name."""
    if name not in TABLES:
        known = ", ".join(f"sklearn:{table}" for table in TABLES)
        hint = near_miss(name, TABLES).replace("'", "'sklearn:", 1)
        raise InputError(f"data must be one of {known}; got 'sklearn:{name}'{hint}")
    bunch = getattr(importlib.import_module("sklearn.datasets"), f"load_{name}")()
    names = [str(label) for label in bunch.target_names]
    return from_arrays(
        bunch.data,
        bunch.target,
        class_names=names,
        feature_names=list(map(str, bunch.feature_names)),
    )


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
        images: (N, H, W), (N, C, H, W) or (N, d), or a data set of torch or Hugging Face, which
            has the labels, too; None: the configuration's data.
        labels: (N,) classes.
        test_images: held out for tests only; None: a share of the images.
        test_labels: their classes.
        class_names: name of each class.
        weights: (N,) of the train images in real batches; or a column or file that holds them;
            None: as the configuration says.
        feature_names: of vectors, name of each feature.
    """
    if isinstance(weights, str | os.PathLike):
        config, weights = dataclasses.replace(config, weights=os.fspath(weights)), None
    if is_collection(images) and labels is None:
        images, labels, names = examples_of(images)
        class_names = class_names or names
    if is_collection(test_images) and test_labels is None:
        test_images, test_labels, _ = examples_of(test_images)
    if images is not None and labels is not None:
        dataset = from_arrays(images, labels, test_images, test_labels, class_names, feature_names)
        return weighted(dataset, config) if weights is None else with_weights(dataset, weights)
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
    if weights is not None and config.weights:
        config = dataclasses.replace(config, weights="")  # the given ones are used, and compared
    return with_weights(read(config), weights)
