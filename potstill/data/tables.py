"""Tables of encoded images as a data set: parquet files and the Hugging Face hub."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from potstill.config.sections import DataConfig
from potstill.data.decoding import Listing, cache_folder, content_hash
from potstill.data.folders import TEST_NAMES, assemble, existing, hidden
from potstill.data.splits import Dataset
from potstill.registry import InputError, near_miss


def read_parquet(path: str, config: DataConfig) -> Dataset:
    """Read parquet files in the Hugging Face layout: a folder of train and test, or one file."""
    import pyarrow.parquet as pq  # here: only this source needs it

    files = parquet_files(existing(path, "parquet"))
    tables = {split: [open_parquet(pq, file) for file in paths] for split, paths in files.items()}
    schema = tables["train"][0].schema_arrow
    features = described_features(schema.metadata or {})
    image, label = choose_columns(list(schema.names), features, config)

    def columns(split: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
        for table, file in zip(tables[split], files[split], strict=True):
            missing = set(wanted) - set(table.schema_arrow.names)
            if missing:
                raise InputError(
                    f"{file} has no column {missing.pop()!r}; every file needs the same columns"
                )
            with parquet_errors(file):
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    yield from batch.to_pylist()

    def listing(split: str) -> tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]:
        labels = [row[label] for row in columns(split, [label])]
        return labels, lambda: encoded(
            columns(split, [image]), image, f"{split} row", embedded=True
        )

    names = features.get(label, {}).get("names")
    root = Path(path).expanduser()
    relative = {
        file: file.relative_to(root).as_posix() if root.is_dir() else ""
        for paths in files.values()
        for file in paths
    }
    tracked = [
        (f"{split}/{relative[file]}", file) for split, paths in files.items() for file in paths
    ]

    def fingerprint() -> str:
        # The columns are part of it: other columns of the same files are other data.
        content = content_hash(lambda: iter(tracked), cache_folder(config.cache_dir))
        return hashlib.sha256(json.dumps([content, image, label]).encode()).hexdigest()

    return from_table({split: listing(split) for split in files}, names, label, fingerprint, config)


def described_features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return column -> feature from Hugging Face's metadata.

    It is empty if there are none, or none that can be read.
    """
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in described.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Return split name -> files.

    In a folder, a file belongs to the split that its own name starts with, else to the split that
    its folder is named after.
    """
    if path.is_file():
        return {"train": [path]}
    files = sorted(
        file for file in path.rglob("*.parquet") if file.is_file() and not hidden(file, path)
    )
    if not files:
        raise InputError(
            f"parquet folder {path} must hold *.parquet files, found none; check the path after "
            "'parquet:'"
        )
    splits: dict[str, list[Path]] = {name: [] for name in ("train", *TEST_NAMES)}
    for file in files:
        *folders, own = (part.lower() for part in file.relative_to(path).parts)
        split = next((name for name in splits if own.startswith(name)), None)
        split = split or next((folder for folder in reversed(folders) if folder in splits), None)
        if split:
            splits[split].append(file)
    if not splits["train"]:
        if any(splits.values()):
            raise InputError(
                f"parquet folder {path} must have a file or folder named train..., found "
                f"{files[0].relative_to(path)} and the like; rename the training files"
            )
        return {"train": files}
    test = next((splits[name] for name in TEST_NAMES if splits[name]), [])
    return {"train": splits["train"], "test": test} if test else {"train": splits["train"]}


def open_parquet(pq: Any, file: Path) -> Any:
    """Open a parquet file; raise an InputError if it is not one."""
    with parquet_errors(file):
        # memory_map: without it, pyarrow 26 reads all row groups ahead, so that the whole set comes
        # into memory.
        return pq.ParquetFile(file, memory_map=True)


@contextmanager
def parquet_errors(file: Path) -> Iterator[None]:
    """Turn pyarrow's errors on a broken file into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(
            f"cannot read {file} as parquet: {first_line(error)}; repair or replace it"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


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
            raise InputError(f"the data {wrong}; give --{kind}-column, one of: {', '.join(names)}")
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
) -> Dataset:
    """Make a data set from label values and image readers.

    Args:
        splits: split name -> (label values, function that yields (name, path or bytes)).
        names: name of each class, of label values 0 .. K-1; None: the values become 0 .. K-1.
        column: name of the label column, for messages.
        fingerprint: computes a hash of the content.
        config: how the images are stored.
    """
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
                if not isinstance(value, int | str) or value == -1
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
    return assemble(listings, tuple(map(str, names)), fingerprint, config)


def read_hub(name: str, config: DataConfig) -> Dataset:
    """Read a data set of the Hugging Face hub, or a folder that `datasets` can load."""
    try:
        import datasets  # here: an optional extra
    except ImportError as error:
        raise InputError(
            "data hf:NAME needs the package datasets; run: pip install 'potstill[hf]'"
        ) from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise InputError(
            f"cannot load hf:{name}: {first_line(error)}; check its name and the network"
        ) from error
    if "train" not in loaded:
        raise InputError(
            f"hf:{name} must have a train split, found: {', '.join(loaded)}; give other data"
        )
    features = loaded["train"].features
    described = {column: {"_type": type(feature).__name__} for column, feature in features.items()}
    image, label = choose_columns(list(features), described, config)
    # The hub marks the labels of a secret test split with -1 (ImageNet's): the next split stands in
    # for it.
    test = next(
        (split for split in TEST_NAMES if split in loaded and -1 not in set(loaded[split][label])),
        None,
    )
    chosen = {"train": loaded["train"], **({"test": loaded[test]} if test else {})}
    try:
        raw = {
            split: part.cast_column(image, datasets.Image(decode=False))
            for split, part in chosen.items()
        }
    except Exception as error:
        raise InputError(
            f"column {image!r} of hf:{name} must hold encoded images, found {features[image]}; "
            "give another --image-column"
        ) from error
    labels = {split: list(part[label]) for split, part in raw.items()}
    names = getattr(features[label], "names", None)

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        return encoded(iter(raw[split].select_columns([image])), image, f"{split} row")

    def fingerprint() -> str:
        total = hashlib.sha256(json.dumps([image, names, labels]).encode())
        for split in raw:
            for _, source in files(split):
                total.update(
                    hashlib.sha256(
                        source if isinstance(source, bytes) else source.read_bytes()
                    ).digest()
                )
        return total.hexdigest()

    splits = {split: (labels[split], partial(files, split)) for split in raw}
    return from_table(splits, names, label, fingerprint, config)
