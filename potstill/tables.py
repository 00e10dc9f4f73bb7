"""Tables of encoded images as a data set: parquet files and the Hugging Face hub."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from potstill.config import DataConfig
from potstill.data import Dataset
from potstill.folders import TEST_NAMES, assemble, existing
from potstill.images import Listing, cache_folder, content_hash
from potstill.registry import InputError, near_miss


def read_parquet(path: str, config: DataConfig) -> Dataset:
    """Parquet files in the Hugging Face layout: a folder with train and test files, or one file."""
    import pyarrow.parquet as pq  # here: only this source needs it

    files = parquet_files(existing(path, "parquet"))
    tables = {split: [open_parquet(pq, file) for file in paths] for split, paths in files.items()}
    schema = tables["train"][0].schema_arrow
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    image, label = choose_columns(list(schema.names), features, config)

    def columns(split: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
        for table, file in zip(tables[split], files[split], strict=True):
            missing = set(wanted) - set(table.schema_arrow.names)
            if missing:
                raise InputError(f"{file} has no column {missing.pop()!r}; every file needs the same columns")
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                yield from batch.to_pylist()

    def listing(split: str) -> tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]:
        labels = [row[label] for row in columns(split, [label])]
        return labels, lambda: encoded(columns(split, [image]), image, f"{split} row")

    names = features.get(label, {}).get("names")
    root = Path(path).expanduser()
    tracked = [(str(file.relative_to(root) if root.is_dir() else split), file) for split, paths in files.items() for file in paths]
    listings = {split: listing(split) for split in files}
    return from_table(listings, names, label, lambda: content_hash(tracked, cache_folder(config.cache_dir)), config)


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Split name -> files. In a folder, a file belongs to the split whose name its own starts with."""
    if path.is_file():
        return {"train": [path]}
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if not found:
        raise InputError(f"parquet folder {path} holds no *.parquet file")
    splits = {name: [file for file in found if file.name.lower().startswith(name)] for name in ("train", *TEST_NAMES)}
    if not splits["train"]:
        if any(splits.values()):
            raise InputError(f"parquet folder {path} has no file whose name starts with train, found {found[0].name}")
        return {"train": found}
    test = next((splits[name] for name in TEST_NAMES if splits[name]), [])
    return {"train": splits["train"], "test": test} if test else {"train": splits["train"]}


def open_parquet(pq: Any, file: Path) -> Any:
    """An open parquet file; an InputError if it is none."""
    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"cannot read {file} as parquet: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def choose_columns(names: list[str], features: dict[str, Any], config: DataConfig) -> tuple[str, str]:
    """The image and the label column: those given, else by Hugging Face type, else by usual names."""
    usual = {"image": ("image", "img", "images"), "label": ("label", "labels", "fine_label", "class", "target")}
    types = {"image": "Image", "label": "ClassLabel"}
    chosen = []
    for kind, given in (("image", config.image_column), ("label", config.label_column)):
        typed = [name for name in names if isinstance(features.get(name), dict) and features[name].get("_type") == types[kind]]
        candidates = [given] if given != "auto" else [*typed[:1], *usual[kind]]
        found = next((name for name in candidates if name in names), None)
        if found is None:
            wrong = (
                f"has no column {given!r}{near_miss(given, names)}"
                if given != "auto"
                else f"has no {kind} column that is known by name"
            )
            raise InputError(f"the data {wrong}; give --{kind}-column, one of: {', '.join(names)}")
        chosen.append(found)
    return chosen[0], chosen[1]


def encoded(rows: Iterator[dict[str, Any]], column: str, place: str) -> Iterator[tuple[str, Path | bytes]]:
    """(name, encoded bytes or path) of an image column: {bytes, path} structures or plain bytes."""
    for index, row in enumerate(rows):
        value = row[column]
        name = f"{place} {index}"
        if isinstance(value, dict):
            name = f"{name} ({value['path']})" if value.get("path") else name
            value = value["bytes"] if value.get("bytes") is not None else Path(value.get("path") or "")
        if not isinstance(value, bytes | Path):
            raise InputError(f"column {column!r} must hold encoded images, {place} {index} holds {type(value).__name__}")
        yield name, value


def from_table(
    splits: Mapping[str, tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]],
    names: list[str] | None,
    column: str,
    fingerprint: Callable[[], str],
    config: DataConfig,
) -> Dataset:
    """A data set from label values and image readers by split; label values become 0 .. K-1."""
    for split, (values, _) in splits.items():
        if not values:
            raise InputError(f"the {split} split holds no rows")
        bad = next((value for value in values if not isinstance(value, int | str) or value == -1), None)
        if bad is not None:
            raise InputError(f"column {column!r} must hold a class for each image, the {split} split holds {bad!r}")
    if names is None:
        values = splits["train"][0]
        known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        places = {value: place for place, value in enumerate(known)}
        names = [str(value) for value in known]
    else:
        places = {place: place for place in range(len(names))}
    listings = {}
    for split, (values, files) in splits.items():
        strange = next((value for value in values if value not in places), None)
        if strange is not None:
            reach = f"lie in 0..{len(names) - 1}" if places.keys() == set(range(len(names))) else "occur in train"
            raise InputError(
                f"labels in column {column!r} must {reach} ({len(names)} classes), the {split} split holds {strange!r}"
            )
        listings[split] = Listing(np.array([places[value] for value in values], np.int64), files)
    return assemble(listings, tuple(map(str, names)), fingerprint, config)


def read_hub(name: str, config: DataConfig) -> Dataset:
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load."""
    try:
        import datasets  # here: an optional extra
    except ImportError as error:
        raise InputError("data hf:NAME needs the package datasets; run: pip install 'potstill[hf]'") from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise InputError(f"cannot load hf:{name}: {first_line(error)}") from error
    if "train" not in loaded:
        raise InputError(f"hf:{name} has no train split, found: {', '.join(loaded)}")
    test = next((split for split in TEST_NAMES if split in loaded), None)
    chosen = {"train": loaded["train"], **({"test": loaded[test]} if test else {})}
    features = loaded["train"].features
    described = {column: {"_type": type(feature).__name__} for column, feature in features.items()}
    image, label = choose_columns(list(features), described, config)
    raw = {split: part.cast_column(image, datasets.Image(decode=False)) for split, part in chosen.items()}

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        return encoded(iter(raw[split].select_columns([image])), image, f"{split} row")

    def fingerprint() -> str:
        total = hashlib.sha256()
        for split in raw:
            for _, source in files(split):
                total.update(hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).digest())
        return total.hexdigest()

    splits = {split: (list(part[label]), partial(files, split)) for split, part in raw.items()}
    return from_table(splits, getattr(features[label], "names", None), label, fingerprint, config)
