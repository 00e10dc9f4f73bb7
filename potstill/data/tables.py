"""Tables of encoded images as a data set: parquet files and the Hugging Face hub."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.config.sections import DataConfig
from potstill.data.arrays import with_weights
from potstill.data.assembly import Sources, assemble, existing
from potstill.data.decoding import Listing, cache_folder, content_hash
from potstill.data.layouts import by_split, listed, split_of, split_of_file
from potstill.data.splits import Dataset
from potstill.data.walking import LeftOut, files_on_disk
from potstill.data.weights import Weights, of_column, require_column, weight_column
from potstill.errors import InputError, first_line, let_memory_pass, near_miss


def read_parquet(path: str, config: DataConfig) -> Dataset:
    """Read parquet files in the Hugging Face layout: a folder of train and test, or one file."""
    import pyarrow.parquet as pq  # here: only this source needs it

    root, left_out = existing(path, "parquet"), LeftOut()
    files = parquet_files(root, left_out)
    tables = {split: [Table.opened(pq, file) for file in paths] for split, paths in files.items()}
    first = tables["train"][0]
    image, label = choose_columns(first.columns, first.features, config)
    # A label means its name in its own file: files may number their classes differently.
    names = first.class_names(label)
    for table in (table for some in tables.values() for table in some):
        table.require(image, label, names, first.file)

    def listing(split: str) -> tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]:
        labels = [value for table in tables[split] for value in table.labels(label, names)]
        return labels, lambda: encoded(
            (row for table in tables[split] for row in table.rows([image])),
            image,
            f"{split} row",
            embedded=True,
        )

    shown = root if root.is_dir() else root.parent
    tracked = [
        (f"{split}/{file.relative_to(root).as_posix() if root.is_dir() else ''}", file)
        for split, paths in files.items()
        for file in paths
    ]

    def fingerprint() -> str:
        # The columns are part of it: other columns of the same files are other data.
        content = content_hash(lambda: iter(tracked), cache_folder(config.cache_dir))
        return hashlib.sha256(json.dumps([content, image, label]).encode()).hexdigest()

    origins = {
        split: listed([file.relative_to(shown).as_posix() for file in paths], 2)
        for split, paths in files.items()
    }
    splits = {split: listing(split) for split in files}
    return from_table(
        splits, names, label, fingerprint, config, origins, left_out.words,
        weights_of(tables["train"], config),
    )  # fmt: skip


def weights_of(tables: list["Table"], config: DataConfig) -> Weights | None:
    """Return the weights that a column of the training files holds; None if none is named."""
    column = weight_column(config)
    if not column:
        return None
    for table in tables:
        require_column(column, table.columns)
    return of_column(column, (row[column] for table in tables for row in table.rows([column])))


@dataclass(frozen=True)
class Table:
    """An open parquet file.

    Args:
        file: its path.
        table: pyarrow's.
        features: column -> feature as Hugging Face describes it.
    """

    file: Path
    table: Any
    features: dict[str, Any]

    @classmethod
    def opened(cls, pq: Any, file: Path) -> "Table":
        """Open a file; raise an InputError if it is no parquet."""
        with parquet_errors(file):
            # memory_map: without it, pyarrow 26 reads all row groups ahead, so that the whole set
            # comes into memory.
            table = pq.ParquetFile(file, memory_map=True)
        return cls(file, table, described_features(table.schema_arrow.metadata or {}))

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.schema_arrow.names)

    def class_names(self, label: str) -> list[str] | None:
        """Return the name of each class, in this file's order; None if it tells none.

        Raises:
            InputError: they are no list of different names.
        """
        names = self.features.get(label, {}).get("names")
        if names is None:
            return None
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str | int) for name in names)
            or len(set(map(str, names))) < max(len(names), 1)
        ):
            raise InputError(
                f"the class names of column {label!r} in {self.file} must be a list of different "
                f"texts, got {names!r:.99}; write the file anew, or without them"
            )
        return list(map(str, names))

    def require(self, image: str, label: str, names: list[str] | None, first: Path) -> None:
        """Raise an InputError unless the file has the columns and classes of the first one.

        Args:
            image: name of the image column.
            label: name of the label column.
            names: the classes.
            first: the file that they are of.
        """
        for column in (image, label):
            if column not in self.columns:
                raise InputError(
                    f"{self.file} has no column {column!r}; every file needs the same columns"
                )
        own = self.class_names(label)
        if (own is None) != (names is None) or sorted(own or ()) != sorted(names or ()):
            here, there = (
                "no class names" if some is None else f"the classes {listed(some)}"
                for some in (own, names)
            )
            raise InputError(
                f"all files must have the same classes in column {label!r}, {self.file} has {here} "
                f"and {first} has {there}; write them anew with the same names"
            )

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield every row, with some of the columns."""
        with parquet_errors(self.file):
            for batch in self.table.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()

    def labels(self, label: str, names: list[str] | None) -> Iterator[Any]:
        """Yield the label of every row, numbered by `names`."""
        own = self.class_names(label)
        index = None
        if own is not None and names is not None and own != names:
            number_of = {name: number for number, name in enumerate(names)}
            index = [number_of[name] for name in own]
        for row in self.rows([label]):
            value = row[label]
            known = index is not None and isinstance(value, int) and 0 <= value < len(index)
            yield index[value] if index is not None and known else value


def described_features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return column -> feature from Hugging Face's metadata.

    It is empty if there are none, or none that can be read.
    """
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in described.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def parquet_files(path: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """Return split name -> files.

    In a folder, a file belongs to the split that its own name begins with, else to the split that
    its folder is named after.
    """
    if path.is_file():
        return {"train": [path]}
    files = sorted(file for file in files_on_disk(path, left_out) if file.suffix == ".parquet")
    if not files:
        raise InputError(
            f"parquet folder {path} must hold *.parquet files, found none; check the path after "
            "'parquet:'"
        )
    return by_split(files, path, split_of_table, left_out, "parquet", "file")


def split_of_table(file: Path, root: Path) -> str | None:
    """Return the split that the name of a file tells, or of the nearest folder."""
    *folders, own = file.relative_to(root).parts
    named = [split_of_file(own), *(split_of(folder) for folder in reversed(folders))]
    return next((split for split in named if split), None)


@contextmanager
def parquet_errors(file: Path) -> Iterator[None]:
    """Turn pyarrow's errors on a broken file into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        let_memory_pass(error)
        raise InputError(
            f"cannot read {file} as parquet: {first_line(error)}; repair or replace it"
        ) from error


def choose_columns(
    names: list[str], features: dict[str, Any], config: DataConfig
) -> tuple[str, str]:
    """Return the image and label columns: as given, by Hugging Face type, or by usual name."""
    usual = {
        "image": ("image", "img", "images"),
        "label": ("label", "labels", "fine_label", "class", "target"),
    }
    types = {"image": "Image", "label": "ClassLabel"}
    chosen = []
    for kind, given in (("image", config.image_column), ("label", config.label_column)):
        typed = [
            name
            for name in names
            if isinstance(features.get(name), dict) and features[name].get("_type") == types[kind]
        ]
        candidates = [given] if given != "auto" else [*typed[:1], *usual[kind]]
        column = next((name for name in candidates if name in names), None)
        if column is None:
            wrong = (
                f"has no column {given!r}{near_miss(given, names)}"
                if given != "auto"
                else f"has no {kind} column with a usual name ({', '.join(usual[kind])})"
            )
            raise InputError(f"the data {wrong}; give --{kind}-column, one of: {listed(names, 20)}")
        chosen.append(column)
    return chosen[0], chosen[1]


def encoded(
    rows: Iterator[dict[str, Any]], column: str, table: str, *, embedded: bool = False
) -> Iterator[tuple[str, Path | bytes]]:
    """Yield (name, encoded bytes or path) of an image column.

    A cell is a {bytes, path} structure or plain bytes.

    Args:
        rows: the rows of the table, each column -> value.
        column: name of the image column.
        table: the table's name, for messages.
        embedded: whether to refuse paths.
    """
    for index, row in enumerate(rows):
        value = row[column]
        name = f"{table} {index}"
        if isinstance(value, dict):
            path = value.get("path")
            name = f"{name} ({path})" if path else name
            value = value["bytes"] if value.get("bytes") is not None else path and Path(path)
        if not isinstance(value, bytes if embedded else bytes | Path):
            held = (
                "nothing"
                if value is None
                else "a path"
                if isinstance(value, Path)
                else f"a {type(value).__name__}"
            )
            raise InputError(
                f"column {column!r} must hold encoded images (PNG, JPEG, ...), {table} {index} "
                f"holds {held}; repair or drop the row, or give another --image-column"
            )
        yield name, value


def from_table(
    splits: Mapping[str, tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]],
    names: list[str] | None,
    column: str,
    fingerprint: Callable[[], str],
    config: DataConfig,
    origins: Mapping[str, str],
    left_out: tuple[str, ...] = (),
    weights: Weights | None = None,
) -> Dataset:
    """Make a data set from label values and image readers.

    Args:
        splits: split name -> (label values, function that yields (name, path or bytes)).
        names: name of each class, of label values 0 .. K-1; None: the values become 0 .. K-1.
        column: name of the label column, for messages.
        fingerprint: computes a hash of the content.
        config: how the images are stored.
        origins: split name -> where it comes from.
        left_out: what is not used, in phrases.
        weights: of the training images; None: all alike.
    """
    splits = {split: (whole_numbers(values), files) for split, (values, files) in splits.items()}
    for split, (values, _) in splits.items():
        if not values:
            raise InputError(
                f"the {split} split must hold labelled images, it has no rows; add some or remove "
                "its files"
            )
        bad = next(
            (
                row
                for row, value in enumerate(values)
                if not isinstance(value, int | str) or value in (-1, "")
            ),
            None,
        )
        if bad is not None:
            raise InputError(
                f"column {column!r} must hold a class, a whole number or a text, for each image, "
                f"{split} row {bad} holds {values[bad]!r}; drop such rows or give another "
                "--label-column"
            )
    if names is None:
        values = splits["train"][0]
        known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        index_of = {value: index for index, value in enumerate(known)}
        names = [str(value) for value in known]
    else:
        index_of = {index: index for index in range(len(names))}
    listings = {}
    for split, (values, files) in splits.items():
        strange = next((value for value in values if value not in index_of), None)
        if strange is not None:
            reach = (
                f"lie in 0..{len(names) - 1}"
                if index_of.keys() == set(range(len(names)))
                else "occur in train"
            )
            raise InputError(
                f"labels in column {column!r} must {reach} ({len(names)} classes), {split} row "
                f"{values.index(strange)} holds {strange!r}; correct or drop such rows"
            )
        listings[split] = Listing(np.array([index_of[value] for value in values], np.int64), files)
    sources = Sources(listings, tuple(map(str, names)), origins, left_out)
    return with_weights(
        assemble(sources, fingerprint, config), weights, f"weights {config.weights}"
    )


def alike(splits: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return labels of files that may write 1 as a number or a text, written in one way.

    If all are whole numbers they are numbers, so that 10 comes after 9; else all are texts.

    Args:
        splits: split -> its labels.
    """
    every = itertools.chain.from_iterable(splits.values())
    kind = int if all(map(is_whole_number, every)) else str
    return {
        split: [
            kind(value) if isinstance(value, str) or type(value) is int else value
            for value in values
        ]
        for split, values in splits.items()
    }


def is_whole_number(value: Any) -> bool:
    """Return whether a label is a whole number, or the text of one as it is usually written."""
    if isinstance(value, str):  # 01 is a name
        return value.isascii() and value.isdigit() and (value == "0" or value[0] != "0")
    return type(value) is int


def whole_numbers(values: list[Any]) -> list[Any]:
    """Return labels that are floats without a fraction, as pandas writes them, as whole numbers."""
    if all(isinstance(value, float) and value.is_integer() for value in values):
        return [int(value) for value in values]
    return values
