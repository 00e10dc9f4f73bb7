"""From a named source to three preprocessed splits: train, validation (held out of train), test."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.config.config import Config
from potstill.config.sections import DataConfig
from potstill.config.slots import Chosen
from potstill.data.preprocessing import Preprocess, fitted
from potstill.data.splits import (
    NOUNS,
    Arrays,
    Dataset,
    Shape,
    Split,
    chunks,
    hold_out,
    kind_of,
    make_split,
)
from potstill.records.metadata import DataRecord
from potstill.registry import InputError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class RealData:
    """Real data, ready to distil and to evaluate on.

    Args:
        train: the split that is distilled.
        validation: held out of the source's train split; every choice is made on it.
        test: used only to measure, never to choose.
        shape: (C, H, W) of an image, (d,) of a vector.
        class_names: name of each class.
        preprocess: the fitted preprocessing that all three went through.
        fingerprint: a hash of the source's content.
        notes: sentences that a user should see.
        weights: (N,) float64 on the CPU, with which images of the train split are drawn; None: all
            alike.
        identity: a hash of the source's content and of weights.
        feature_names: of vectors, name of each feature; empty: they have none.
    """

    train: Split
    validation: Split
    test: Split
    shape: Shape
    class_names: tuple[str, ...]
    preprocess: Preprocess
    fingerprint: str
    notes: tuple[str, ...]
    weights: Tensor | None
    identity: str
    feature_names: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "image" or "vector"."""
        return kind_of(self.shape)

    @property
    def record(self) -> DataRecord:
        """What a result file records of the data."""
        identity = None if self.weights is None else self.identity
        return DataRecord(
            self.fingerprint,
            len(self.train),
            len(self.validation),
            len(self.test),
            identity,
            self.feature_names,
        )


def prepare(
    dataset: Dataset, config: DataConfig, device: torch.device, preprocess: Preprocess | Chosen
) -> RealData:
    """Cut `dataset` into splits and preprocess them.

    Args:
        dataset: the raw images.
        config: shares and seeds.
        device: where in-memory splits and batches live.
        preprocess: a fitted one, as of a distilled set, or the choice of one (not "auto"), which is
            fitted to the train split.
    Raises:
        InputError: a class without training images; too few images to hold any out.
    """
    notes, noun = list(dataset.notes), NOUNS[dataset.kind]
    test, rest = dataset.test, np.arange(len(dataset.train.labels))
    test_rows = np.arange(0 if test is None else len(test.labels))
    if test is None:
        rest, test_rows = hold_out(dataset.train.labels, TEST_SHARE, config.split_seed)
        notes.append(
            f"the data has no test split: {len(test_rows)} of {len(dataset.train.labels)} {noun}s "
            f"(20 % of each class, split seed {config.split_seed}) are held out as test"
        )
    kept, held = hold_out(dataset.train.labels[rest], config.validation, config.split_seed + 1)
    train_rows, validation_rows = rest[kept], rest[held]
    if not (len(validation_rows) and len(test_rows)):
        raise InputError(
            f"some class must have at least {2 if dataset.test else 3} training {noun}s, so that "
            f"validation {'data' if dataset.test else 'and test data'} can be held out, found at "
            f"most {np.bincount(dataset.train.labels).max()} in a class; add {noun}s"
        )
    require_every_class(dataset.train, train_rows, dataset.class_names)
    weights = None if dataset.weights is None else torch.from_numpy(dataset.weights[train_rows])
    if weights is not None and not weights.any():
        raise InputError(
            "weights must be above 0 for some image that is not held out, all of those have 0"
        )
    if isinstance(preprocess, Chosen):
        train = dataset.train
        preprocess = fitted(preprocess, lambda: map(train.floats, chunks(train_rows, train)))
    preprocess = preprocess.to(device)

    def split(arrays: Arrays, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Split:
        return make_split(arrays, rows, preprocess, device, mapped=dataset.mapped)

    return RealData(
        train=split(dataset.train, train_rows),
        validation=split(dataset.train, validation_rows),
        test=split(test or dataset.train, test_rows),
        shape=dataset.shape,
        class_names=dataset.class_names,
        preprocess=preprocess,
        fingerprint=dataset.fingerprint,
        notes=tuple(notes),
        weights=weights,
        identity=dataset.identity,
        feature_names=dataset.feature_names,
    )


def cut_of(config: Config[Any], identity: str) -> str:
    """Return a text key of everything that decides what `prepare` returns.

    It holds the data's identity, and every option of data and preprocessing but path and storage.
    """
    options = dataclasses.replace(config.data, data="", cache_dir="", storage="auto")
    known = [identity, dataclasses.asdict(options), config.tables()["preprocessing"]]
    return json.dumps(known, sort_keys=True)


def require_every_class(
    arrays: Arrays, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]", names: tuple[str, ...]
) -> None:
    """Raise an InputError if some class has no training image.

    Args:
        arrays: the source's training images.
        rows: (n,) indices in `arrays` that belong to the train split.
        names: name of each class.
    """
    counts = np.bincount(arrays.labels[rows], minlength=len(names))
    if not counts.all():
        empty = names[int(counts.argmin())]
        raise InputError(
            f"every class must have training images, class {empty!r} has none; add some or drop "
            "the class"
        )
