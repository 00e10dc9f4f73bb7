"""From a named source to three preprocessed splits: train, validation (held out of train), test."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.config.config import Config
from potstill.config.sections import DataConfig
from potstill.config.slots import Chosen
from potstill.data.layouts import listed
from potstill.data.marks import marks
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
    release,
)
from potstill.errors import InputError
from potstill.records.metadata import DataRecord
from potstill.workers import all_threads_at_once

TEST_SHARE, LOOKED_AT = 0.2, 4096


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
        values: the least and the greatest value of train examples, as the source gave them.
        origins: split -> where it comes from, in words.
        left_out: phrases that say what the source holds and is not used.
        bit_depth: bits that hold the values of 16-bit images; None: there are none.
        scale: what the source's values are divided by: 255 for bytes, 1 for floats.
        marks: of some train examples, see `potstill.data.marks`.
        cautions: sentences on whether tests on these data tell what they seem to.
        disk_bytes: what the files of the source take; None: not known.
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
    values: tuple[float, float] = (0.0, 1.0)
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    bit_depth: int | None = None
    scale: float = 1.0
    marks: str = ""
    cautions: tuple[str, ...] = ()
    disk_bytes: int | None = None

    @property
    def kind(self) -> str:
        """ "image" or "vector"."""
        return kind_of(self.shape)

    def pixel_bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the least and greatest values of preprocessed pixels, (C, 1, 1).

        They are black and white or, of data on another scale, the values that train images reach.
        """
        least, greatest = (value / self.scale for value in self.values)
        ends = (0.0, 1.0) if least >= 0 and greatest <= 1 else (least, greatest)
        low, high = (
            self.preprocess(torch.full((1, *self.shape), end, device=device))[0, :, :1, :1]
            for end in ends
        )
        return low, high

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
            (self.values[0] / self.scale, self.values[1] / self.scale),
            self.origins,
            self.left_out,
            self.marks,
            self.disk_bytes,
        )

    @property
    def words(self) -> str:
        """A line that says what was read: how much of what, from where, and what was left out."""
        noun, splits = NOUNS[self.kind], {"train": self.train, "validation": self.validation}
        counts = ", ".join(
            f"{len(split):,} {name} ({self.origins[name]})"
            for name, split in {**splits, "test": self.test}.items()
        )
        size = " x ".join(map(str, self.shape)) + " features" * (self.kind == "vector")
        low, high = self.values
        out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{len(self.class_names):,} classes ({listed(self.class_names, counted=False)}), "
            f"{noun}s of {size} with values {low:g} to {high:g}: {counts}{out}"
        )


def prepare(
    dataset: Dataset,
    config: DataConfig,
    device: torch.device,
    preprocess: Preprocess | Chosen,
    *,
    cut: "dict[str, CutPart] | None" = None,
    cautions: tuple[str, ...] = (),
) -> RealData:
    """Cut `dataset` into splits and preprocess them.

    Args:
        dataset: the raw images.
        config: shares and seeds.
        device: where in-memory splits and batches live.
        preprocess: a fitted one, as of a distilled set, or the choice of one (not "auto"), which is
            fitted to the train split.
        cut: the splits; None: as `cut_splits` cuts them.
        cautions: see `RealData`.
    Raises:
        InputError: a class without training images; too few images to hold any out.
    """
    cut = cut or cut_splits(dataset, config)
    train_rows = cut["train"].rows
    if len(train_rows):
        require_every_class(dataset.train, train_rows, dataset.class_names)
    weights = None if dataset.weights is None else torch.from_numpy(dataset.weights[train_rows])
    if weights is not None and not weights.any():
        raise InputError(
            "weights must be above 0 for some image that is not held out, all of those have 0"
        )
    if isinstance(preprocess, Chosen):
        train = dataset.train
        with all_threads_at_once():
            preprocess = fitted(preprocess, lambda: map(train.floats, chunks(train_rows, train)))
    preprocess = preprocess.to(device)

    splits = {
        name: make_split(part.arrays, part.rows, preprocess, device, mapped=dataset.mapped)
        for name, part in cut.items()
    }
    return RealData(
        **splits,
        shape=dataset.shape,
        class_names=dataset.class_names,
        preprocess=preprocess,
        fingerprint=dataset.fingerprint,
        notes=dataset.notes,
        weights=weights,
        identity=dataset.identity,
        feature_names=dataset.feature_names,
        values=values_of(dataset.train, train_rows, mapped=dataset.mapped),
        origins={name: part.origin for name, part in cut.items()},
        left_out=dataset.left_out,
        bit_depth=dataset.bit_depth,
        scale=255.0 if dataset.train.images.dtype == np.uint8 else 1.0,
        marks=marks(dataset.train, train_rows, config.split_seed),
        cautions=cautions,
        disk_bytes=dataset.disk_bytes,
    )


@dataclass(frozen=True)
class CutPart:
    """A split, before it is preprocessed.

    Args:
        arrays: the examples that it is of.
        rows: (n,) indices in them.
        origin: where it comes from, in words.
    """

    arrays: Arrays
    rows: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    origin: str


def cut_splits(dataset: Dataset, config: DataConfig) -> dict[str, CutPart]:
    """Cut a data set into train, validation and test; what it does not have is held out of train.

    Raises:
        InputError: too few examples to hold any out.
    """
    train, named = dataset.train, dataset.origins
    source = named.get("train", "")
    rest, parts = np.arange(len(train.labels)), {}
    for name, arrays in (("test", dataset.test), ("validation", dataset.validation)):
        if arrays is not None:
            given = CutPart(arrays, np.arange(len(arrays.labels)), named.get(name, "given"))
            parts[name] = given
            continue
        share = TEST_SHARE if name == "test" else config.validation
        seed = config.split_seed + (name == "validation")
        kept, held = hold_out(train.labels[rest], share, seed)
        whole = source or ("train" if parts else "all")
        origin = f"{100 * share:g} % of {whole}, by class"
        parts[name] = CutPart(train, rest[held], origin)
        rest = rest[kept]
    if not all(len(part.rows) for part in parts.values()):
        noun = NOUNS[dataset.kind]
        held_out = [name for name in ("validation", "test") if parts[name].arrays is train]
        differ = 2 * len(dataset.class_names) > len(train.labels)
        way_out = (
            "labels that are almost all different are no classes: sort them into a few"
            if differ
            else f"add {noun}s"
        )
        raise InputError(
            f"some class must have at least {1 + len(held_out)} training {noun}s, so that "
            f"{' and '.join(held_out)} data can be held out, found at most "
            f"{np.bincount(train.labels).max()} in a class; {way_out}"
        )
    return {
        "train": CutPart(train, rest, source or "the rest"),
        "validation": parts["validation"],
        "test": parts["test"],
    }


def all_for_tests(dataset: Dataset) -> dict[str, CutPart]:
    """Make every example a test example; there are none to train on or to choose by."""
    none = np.arange(0)
    return {
        "train": CutPart(dataset.train, none, "none"),
        "validation": CutPart(dataset.train, none, "none"),
        "test": CutPart(dataset.train, np.arange(len(dataset.train.labels)), "all that was given"),
    }


def values_of(
    arrays: Arrays, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]", *, mapped: bool = False
) -> tuple[float, float]:
    """Return the least and the greatest value of some examples, as the source gave them.

    Of examples that stay on disk, some thousands are looked at.
    """
    some_rows = rows[:: max(1, len(rows) // LOOKED_AT)] if mapped else rows
    parts = [arrays.images[some] for some in chunks(some_rows, arrays)]
    if not parts:
        return (0.0, 0.0)
    release(arrays.images)
    return float(min(part.min() for part in parts)), float(max(part.max() for part in parts))


def cut_of(config: Config[Any], identity: str) -> str:
    """Return a text key of everything that decides what `prepare` returns.

    It holds the data's identity, and every option of data and preprocessing but path and storage.
    """
    options = dataclasses.asdict(
        dataclasses.replace(config.data, data="", cache_dir="", storage="auto")
    )
    del options["weights"]  # they are a part of the identity
    known = [identity, options, config.tables()["preprocessing"]]
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
