"""CSV files: paths of images with their labels, or a table of numbers."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays, with_weights
from potstill.data.assembly import existing
from potstill.data.decoding import cache_folder, content_hash
from potstill.data.delimited import Row, table_of
from potstill.data.layouts import listed, split_of
from potstill.data.splits import Dataset
from potstill.data.tables import from_table
from potstill.data.weights import Weights, of_column, require_column, weight_column
from potstill.errors import InputError, near_miss

if TYPE_CHECKING:
    import pyarrow as pa

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


def read_csv(path: str, config: DataConfig) -> Dataset:
    """Read a CSV file with a heading line.

    With a column of image files (`file_name`, `path`, `image`, ...), which lie beside the CSV file,
    and a column of labels, and perhaps one of splits; or with a label and numbers, a row of which
    is a vector.

    Raises:
        InputError: no such columns, a cell that is no number, a file that is not there.
    """
    file = existing(path, "csv")
    table = table_of(file)
    columns = list(table.column_names)
    label = column_of("label", columns, config.label_column, LABELS) or columns[-1]
    image = column_of("image", columns, config.image_column, PATHS)
    weights = weight_column(config)
    if weights:
        require_column(weights, columns)
    if image is None or image == label:
        features = [name for name in columns if name not in (label, weights)]
        dataset = vectors(file, table, features, label)
        return with_weights(dataset, weights_of(table, weights), f"weights {weights}")
    split = next((name for name in columns if name.lower() in SPLITS), None)
    return images(file, table, image, label, split, config)


def weights_of(table: "pa.Table", column: str) -> Weights | None:
    """Return the weights that a column holds; None without a column."""
    return of_column(column, table[column].to_pylist()) if column else None


def column_of(kind: str, columns: list[str], given: str, usual: tuple[str, ...]) -> str | None:
    """Return the column of images or labels: as given, or by its usual name; else None."""
    if given != "auto":
        if given not in columns:
            raise InputError(
                f"the data has no column {given!r}{near_miss(given, columns)}; give "
                f"--{kind}-column, one of: {listed(columns, 20)}"
            )
        return given
    return next((name for word in usual for name in columns if name.lower() == word), None)


def vectors(file: Path, table: "pa.Table", features: list[str], label: str) -> Dataset:
    """Return rows of numbers as vectors."""
    if not features:
        raise InputError(f"{file} must have columns of numbers beside {label!r}, got none")
    values = np.empty((len(table), len(features)), np.float64)
    for column, name in enumerate(features):
        values[:, column] = numbers_of(file, name, table[name])
    return from_arrays(values, labels_of(file, table, label), feature_names=features)


def numbers_of(file: Path, name: str, column: "pa.ChunkedArray[Any]") -> npt.NDArray[np.float64]:
    """Return a column of texts as numbers."""
    import pyarrow as pa

    try:
        return cast("npt.NDArray[np.float64]", column.cast(pa.float64()).to_numpy())
    except pa.ArrowInvalid:
        cells: list[Any] = column.to_pylist()
    values = np.empty(len(cells), np.float64)
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell)
        except ValueError as error:
            raise InputError(
                f"column {name!r} of {file} must hold numbers, line {row + 2} holds {cell!r}; fill "
                "or drop it, encode what is text as numbers, or name the column of images by "
                "--image-column"
            ) from error
    return values


def labels_of(file: Path, table: "pa.Table", label: str) -> list[str]:
    """Return the labels as they are written, each of which must be there."""
    labels: list[Any] = table[label].to_pylist()
    empty = next((row for row, cell in enumerate(labels) if not cell.strip()), None)
    if empty is not None:
        raise InputError(
            f"column {label!r} of {file} must hold a label in each line, line {empty + 2} holds "
            "none; fill it or drop the line"
        )
    return labels


def images(
    file: Path, table: "pa.Table", image: str, label: str, split: str | None, config: DataConfig
) -> Dataset:
    """Return the images that a CSV file lists.

    Args:
        file: the CSV file.
        table: its rows.
        image: name of the column of image files.
        label: name of the column of labels.
        split: name of the column of splits; None: all are training images.
        config: how the images are stored.
    """
    parts: dict[str, list[Row]] = {}
    labels_of(file, table, label)
    wanted = {image, label, *filter(None, (split, weight_column(config)))}
    for number, row in enumerate(table.select(list(wanted)).to_pylist(), 2):
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
    column = weight_column(config)
    weights = of_column(column, (row[column] for row in parts["train"])) if column else None
    return from_table(readers, None, label, fingerprint, config, origins, weights=weights)
