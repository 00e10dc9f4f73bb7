"""Image folders with metadata.csv or metadata.jsonl, as Hugging Face describes them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from potstill.config.sections import DataConfig
from potstill.data.collections import LABEL_COLUMNS
from potstill.data.csv_files import SPLITS, column_of
from potstill.data.decoding import cache_folder, content_hash
from potstill.data.delimited import rows_of
from potstill.data.layouts import inside, listed, origin, split_of
from potstill.data.places import Place, content, way
from potstill.data.splits import Dataset
from potstill.data.tables import alike, from_table
from potstill.data.walking import LeftOut, every_file, is_image, subfolders
from potstill.data.weights import Weights, of_column, require_column, weight_column
from potstill.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


@dataclass(frozen=True)
class Described:
    """A metadata file that tells the labels of images.

    Args:
        file: it; its images lie in its folder.
        rows: (position for messages, column -> value) of each image.
        label: the column of labels.
        split: the split of all its images; "": each row tells its own.
    """

    file: Place
    rows: list[tuple[str, dict[str, Any]]]
    label: str
    split: str


def metadata_of(root: Place, config: DataConfig, left_out: LeftOut) -> list[Described]:
    """Return the metadata files that tell the labels, in a folder or its split folders.

    Args:
        root: the folder.
        config: may name the column of labels.
        left_out: told of metadata that hold no labels, and of splits without metadata.
    """
    whole = described(root, root, "", config, left_out)
    parts = [
        (name, found)
        for name in subfolders(root)
        if (split := split_of(name))
        and (found := described(root / name, root, split, config, left_out))
    ]
    if whole:
        for _, one in parts:
            left_out.tell(f"{way(one.file, root)}, there being {whole.file.name}")
        return [whole]
    known = {one.split for _, one in parts}
    if len(known) < len(parts):
        names = " and ".join(name for name, _ in parts)
        raise InputError(f"{root} must hold one folder of each split, it has {names}; rename one")
    if "train" not in known:
        for _, one in parts:
            left_out.tell(f"{way(one.file, root)}, there being none for train")
        return []
    for name in subfolders(root):
        if name not in [known for known, _ in parts]:
            left_out.tell(f"folder {name}/, which has no metadata with labels")
    return [one for _, one in parts]


def described(
    folder: Place, root: Place, split: str, config: DataConfig, left_out: LeftOut
) -> Described | None:
    """Return the metadata of a folder, if it has some that tell labels.

    Args:
        folder: where to look.
        root: the folder that was given.
        split: see `Described`.
        config: may name the column of labels.
        left_out: told of metadata that hold none.
    """
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(files) > 1:
        raise InputError(f"{folder} must hold one of {' and '.join(METADATA)}, it has both")
    if not files:
        return None
    rows = rows_of_metadata(files[0])
    columns = list(rows[0][1])
    label = column_of("label", columns, config.label_column, LABEL_COLUMNS)
    missing = FILE_NAME if FILE_NAME not in columns else "" if label else "of labels"
    if label is None or missing:
        left_out.tell(f"{way(files[0], root)}, which has no column {missing}")
        return None
    return Described(files[0], rows, label, split)


def rows_of_metadata(file: Place) -> list[tuple[str, dict[str, Any]]]:
    """Return (position for messages, column -> value) of every row; there must be some."""
    if file.suffix == ".csv":
        lines = enumerate(rows_of(file), 2)
        return [(f"line {number} of {file}", dict(row)) for number, row in lines]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} as JSON lines: {error}; repair it") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number} of {file}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} must hold JSON: {error}; correct it") from error
        if not isinstance(row, dict) or not row:
            raise InputError(f"{place} must hold a JSON object, found {line[:40]!r}; correct it")
        rows.append((place, row))
    if not rows:
        raise InputError(f"{file} must hold a row for each image, it is empty")
    return rows


@dataclass(frozen=True)
class Row:
    """An image that metadata list.

    Args:
        place: its position in the metadata, for messages.
        file: the image.
        values: column -> value.
    """

    place: str
    file: Place
    values: dict[str, Any]


def read_described(
    root: Place, described: list[Described], config: DataConfig, left_out: LeftOut
) -> Dataset:
    """Return the images that metadata list, with the labels that they tell.

    Args:
        root: the folder that was given.
        described: the metadata.
        config: how the images are stored.
        left_out: counts images that are not listed.
    """
    splits: dict[str, list[Row]] = {}
    for one in described:
        for split, row in rows_by_split(one):
            splits.setdefault(split, []).append(row)
    count_unlisted(root, splits, left_out)
    left_out.count("listed images that lie in no split folder", len(splits.pop("", ())))
    if "train" not in splits:
        names = listed(splits)
        raise InputError(f"{described[0].file} must list training images, it lists {names} only")
    label = described[0].label

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        yield from ((str(row.file), content(row.file)) for row in splits[split])

    def tracked() -> Iterator[tuple[str, Place]]:
        yield from ((way(one.file, root), one.file) for one in described)
        for split, rows in splits.items():
            yield from ((f"{split}/{way(row.file, root)}", row.file) for row in rows)

    def fingerprint() -> str:
        known = content_hash(tracked, cache_folder(config.cache_dir))
        return hashlib.sha256(json.dumps([known, label]).encode()).hexdigest()

    columns = {one.split: one.label for one in described}
    values = {
        split: [row.values.get(columns.get(split, label)) for row in rows]
        for split, rows in splits.items()
    }
    labels = alike(values)
    readers = {split: (labels[split], partial(files, split)) for split in splits}
    return from_table(
        readers, None, label, fingerprint, config, origins_of(root, described, list(splits)),
        left_out.words, weights_of(splits["train"], config),
    )  # fmt: skip


def origins_of(root: Place, described: list[Described], splits: list[str]) -> dict[str, str]:
    """Return split -> the metadata that list it; of several splits in one file, with its name."""
    own = {one.split: way(one.file, root) for one in described}
    whole = way(described[0].file, root)
    named = {split: whole if len(splits) == 1 else f"{whole}, {split}" for split in splits}
    return {split: origin(root, own.get(split, named[split])) for split in splits}


def weights_of(rows: list[Row], config: DataConfig) -> Weights | None:
    """Return the weights that a column of metadata holds; None if none is named."""
    column = weight_column(config)
    if not column:
        return None
    require_column(column, list(rows[0].values))
    return of_column(column, (row.values.get(column) for row in rows))


def rows_by_split(one: Described) -> Iterator[tuple[str, Row]]:
    """Yield (split, row) of every image that metadata list; its split is "" if it has none.

    Its split is that of the metadata's folder, or what the row's column of splits says, or that of
    the folder that its file name begins with.
    """
    column = next((name for name in one.rows[0][1] if name.lower() in SPLITS), None)
    folders = [split_of(str(row.get(FILE_NAME)).partition("/")[0]) for _, row in one.rows]
    for (place, row), folder in zip(one.rows, folders, strict=True):
        name = row.get(FILE_NAME)
        if not isinstance(name, str) or not inside(name):
            raise InputError(
                f"{place} must have the path of an image in {one.file.parent} as {FILE_NAME}, got "
                f"{name!r}; correct it"
            )
        file = one.file.parent / name
        if not file.is_file():
            raise InputError(
                f"{place} lists {name!r}, which is not there; paths begin at the folder of "
                f"{one.file.name}"
            )
        if one.split:
            split: str | None = one.split
        elif column:
            split = split_of(str(row.get(column)).strip())
            if split is None:
                raise InputError(
                    f"column {column!r} of {one.file} must hold train, validation or test, {place} "
                    f"holds {row.get(column)!r}; correct it"
                )
        else:
            split = folder if any(folders) else "train"
        yield split or "", Row(place, file, row)


def count_unlisted(root: Place, splits: dict[str, list[Row]], left_out: LeftOut) -> None:
    """Count the files in a folder that metadata do not list."""
    known = {way(row.file, root) for rows in splits.values() for row in rows}
    for file in every_file(root, left_out):
        unlisted = file.name not in METADATA and way(file, root) not in known
        if unlisted and is_image(file, left_out):
            left_out.count("images that the metadata do not list")
