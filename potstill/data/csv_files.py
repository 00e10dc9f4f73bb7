"""CSV files: paths of images with their labels, or a table of numbers."""

import csv
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays, with_weights
from potstill.data.assembly import existing
from potstill.data.decoding import cache_folder, content_hash
from potstill.data.layouts import listed, split_of
from potstill.data.places import Place
from potstill.data.splits import Dataset
from potstill.data.tables import from_table
from potstill.data.weights import Weights, of_column, require_column, weight_column
from potstill.registry import InputError, near_miss

PATHS = (
    "file_name",
    "filename",
    "file",
    "path",
    "filepath",
    "image",
    "image_path",
    "img",
    "image_id",
)
LABELS = ("label", "labels", "class", "target", "category", "species", "y", "diagnosis", "quality")
SPLITS = ("split", "subset", "set", "partition", "fold")
Row = dict[str, str]


def read_csv(path: str, config: DataConfig) -> Dataset:
    """Read a CSV file with a heading line.

    With a column of image files (`file_name`, `path`, `image`, ...), which lie beside the CSV file,
    and a column of labels, and perhaps one of splits; or with a label and numbers, a row of which
    is a vector.

    Raises:
        InputError: no such columns, a cell that is no number, a file that is not there.
    """
    file = existing(path, "csv")
    rows = rows_of(file)
    columns = list(rows[0])
    label = column_of("label", columns, config.label_column, LABELS) or columns[-1]
    image = column_of("image", columns, config.image_column, PATHS)
    weights = weight_column(config)
    if weights:
        require_column(weights, columns)
    if image is None or image == label:
        features = [name for name in columns if name not in (label, weights)]
        dataset = vectors(file, rows, features, label)
        return with_weights(dataset, weights_of(rows, weights), f"weights {weights}")
    split = next((name for name in columns if name.lower() in SPLITS), None)
    return images(file, rows, image, label, split, config)


def weights_of(rows: list[Row], column: str) -> Weights | None:
    """Return the weights that a column of rows holds; None without a column."""
    return of_column(column, (row[column] for row in rows)) if column else None


def rows_of(file: Place) -> list[Row]:
    """Return the rows of a CSV file by column, whatever separates them; there must be some."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        heading = text.partition("\n")[0]
        between = max(",;\t|", key=heading.count)
        rows = list(csv.DictReader(text.splitlines(), delimiter=between, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"cannot read {file} as CSV: {error}; give a heading line, and values between commas"
        ) from error
    names = next(csv.reader([heading], delimiter=between))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the columns of {file} must have different names, {twice!r} comes twice")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(
                f"line {number} of {file} must have as many values as the heading; correct it"
            )
    if not rows:
        raise InputError(f"{file} must hold rows below its heading line, it has none")
    return rows


def column_of(kind: str, columns: list[str], given: str, usual: tuple[str, ...]) -> str | None:
    """Return the column of images or labels: as given, or by its usual name; else None."""
    if given != "auto":
        if given not in columns:
            raise InputError(
                f"the data has no column {given!r}{near_miss(given, columns)}; give "
                f"--{kind}-column, one of: {', '.join(columns)}"
            )
        return given
    return next((name for word in usual for name in columns if name.lower() == word), None)


def vectors(file: Path, rows: list[Row], features: list[str], label: str) -> Dataset:
    """Return rows of numbers as vectors."""
    if not features:
        raise InputError(f"{file} must have columns of numbers beside {label!r}, got none")
    values = np.empty((len(rows), len(features)), np.float64)
    for number, row in enumerate(rows):
        for column, name in enumerate(features):
            try:
                values[number, column] = float(row[name])
            except ValueError as error:
                raise InputError(
                    f"column {name!r} of {file} must hold numbers, line {number + 2} holds "
                    f"{row[name]!r}; fill or drop it, encode what is text as numbers, or name the "
                    "column of images by --image-column"
                ) from error
    return from_arrays(values, [row[label] for row in rows], feature_names=features)


def images(
    file: Path, rows: list[Row], image: str, label: str, split: str | None, config: DataConfig
) -> Dataset:
    """Return the images that a CSV file lists.

    Args:
        file: the CSV file.
        rows: its rows.
        image: name of the column of image files.
        label: name of the column of labels.
        split: name of the column of splits; None: all are training images.
        config: how the images are stored.
    """
    parts: dict[str, list[Row]] = {}
    for number, row in enumerate(rows, 2):
        name = split_of(row[split].strip()) if split else "train"
        if name is None:
            raise InputError(
                f"column {split!r} of {file} must hold train, validation or test, line {number} "
                f"holds {row[split or '']!r}; correct it"
            )
        parts.setdefault(name, []).append(row)
    if "train" not in parts:
        raise InputError(f"{file} must list training images, it lists {listed(parts)} only")

    def files(name: str) -> Iterator[tuple[str, Path]]:
        for row in parts[name]:
            path = file.parent / row[image]
            if not path.is_file():
                raise InputError(
                    f"{file} lists {row[image]!r}, which is not there; paths begin at the folder "
                    "of the CSV file"
                )
            yield str(path), path

    def fingerprint() -> str:
        def tracked() -> Iterator[tuple[str, Path]]:
            yield "csv", file
            for name in parts:
                yield from ((f"{name}/{shown}", path) for shown, path in files(name))

        content = content_hash(tracked, cache_folder(config.cache_dir))
        return hashlib.sha256(f"{content}{image}{label}".encode()).hexdigest()

    origins = {name: f"{file.name}, {split} {name}" if split else file.name for name in parts}
    readers: dict[str, tuple[list[Any], Any]] = {
        name: ([row[label].strip() for row in some], partial(files, name))
        for name, some in parts.items()
    }
    weights = weights_of(parts["train"], weight_column(config))
    return from_table(readers, None, label, fingerprint, config, origins, weights=weights)
