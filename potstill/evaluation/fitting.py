"""Real data as a distilled set needs them: its preprocessing and classes, and what is tested on."""

import dataclasses
from typing import Any

import numpy as np

from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.config.slots import Chosen
from potstill.data.layouts import listed
from potstill.data.marks import share_marked
from potstill.data.preparation import CutPart, RealData, all_for_tests, cut_splits, prepare
from potstill.data.preprocessing import Absent, Preprocess
from potstill.data.splits import NOUNS, Arrays, Dataset
from potstill.devices import pick_device
from potstill.distilled.sets import DistilledSet, other_scale, require_features
from potstill.errors import InputError
from potstill.records.metadata import DataRecord


def fitting(distilled: DistilledSet, dataset: Dataset, config: DataConfig, device: str) -> RealData:
    """Return `dataset` through the set's own preprocessing, cut into splits.

    Data that the set was distilled from are cut as they were then. Of other data their test split
    is tested on or, if they have none, all of them.

    Args:
        distilled: the set.
        dataset: the real data, raw.
        config: how the data are read and split.
        device: where the data go.
    Raises:
        InputError: the shape, classes or features are not the set's.
    """
    require_shape(distilled, dataset)
    dataset = in_order(dataset, distilled.class_names)
    require_features(
        "the data must have the features of the distilled set",
        dataset.feature_names,
        distilled.known_features,
        "rename or reorder columns",
    )
    known = distilled.metadata.data
    whole = known is not None and known.fingerprint != dataset.fingerprint and not dataset.test
    cut = all_for_tests(dataset) if whole else cut_splits(dataset, config)
    told = cautions(known, cut["test"], dataset.kind) if known else ()
    how = preprocessing_of(distilled, dataset)
    return prepare(dataset, config, pick_device(device), how, cut=cut, cautions=told)


def preprocessing_of(distilled: DistilledSet, dataset: Dataset) -> Preprocess | Chosen:
    """Return the set's preprocessing or, if its file is without, the choice of it, to be fitted.

    Raises:
        InputError: it would have to be fitted, but the data are not those of the set.
    """
    known = distilled.metadata.data
    if not isinstance(distilled.fitted, Absent):
        return distilled.fitted
    if known is None or known.fingerprint != dataset.fingerprint:
        raise InputError(f"{distilled.fitted.missing}; these are other data")
    return configuration(dict(distilled.metadata.config["preprocessing"])).preprocessing


def require_shape(distilled: DistilledSet, dataset: Dataset) -> None:
    """Raise an InputError unless examples have the shape of the set's."""
    shape = dataset.shape
    if "vector" in (dataset.kind, distilled.kind) and shape != distilled.shape:
        wanted, got = (
            f"{one[0]} features" if len(one) == 1 else f"images of shape {one}"
            for one in (distilled.shape, shape)
        )
        raise InputError(
            f"the data must have {wanted} like the distilled set, got {got}; give the data that it "
            "was distilled from"
        )
    if shape != distilled.shape:
        raise InputError(
            f"the data must have images of shape {distilled.shape} like the distilled set, got "
            f"{shape}; try --image-size"
        )


def in_order(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """Return the data set with its classes in the order of `names`.

    Raises:
        InputError: it has other classes.
    """
    given = dataset.class_names
    if given == names:
        return dataset
    if sorted(given) != sorted(names):
        differing = {
            "without": [name for name in names if name not in given],
            "with": [name for name in given if name not in names],
        }
        parts = [f"{word} {listed(some)}" for word, some in differing.items() if some]
        raise InputError(
            f"the data must have the {len(names)} classes of the distilled set, "
            f"{listed(names, counted=False)}; got {len(given)}, {' and '.join(parts)}; give data "
            "of the same classes"
        )
    index = np.array([names.index(name) for name in given], np.int64)
    splits: dict[str, Any] = {
        split: Arrays(arrays.images, index[arrays.labels])
        for split, arrays in dataset.splits.items()
    }
    return dataclasses.replace(dataset, class_names=names, **splits)


def cautions(known: DataRecord, test: CutPart, kind: str) -> tuple[str, ...]:
    """Return sentences on whether tests on these data tell what they seem to.

    Args:
        known: the data that the set was distilled from.
        test: what is tested on.
        kind: "image" or "vector".
    """
    found, noun = [], NOUNS[kind]
    share = share_marked(known.marks, test.arrays, test.rows)
    if share:
        count = min(len(test.rows), max(1, round(share * known.train)))
        found.append(
            f"about {count:,} of these {len(test.rows):,} {noun}s are {noun}s that the set was "
            "distilled from: accuracy on them is no test"
        )
    if known.values and len(test.rows):
        here = max(
            float(np.abs(test.arrays.floats(some).numpy()).max())
            for some in np.array_split(test.rows, max(1, len(test.rows) // 1024))
        )
        told = other_scale(here, known.values)
        if told:
            found.append(f"values of these {noun}s {told}")
    return tuple(found)
