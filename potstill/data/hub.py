"""Data sets of the Hugging Face hub, or folders that the package `datasets` can load."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from potstill.config.sections import DataConfig
from potstill.data.layouts import listed, split_of
from potstill.data.splits import Dataset
from potstill.data.tables import choose_columns, encoded, from_table
from potstill.data.walking import LeftOut
from potstill.data.weights import Weights, of_column, require_column, weight_column
from potstill.errors import InputError, first_line, let_memory_pass


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
        let_memory_pass(error)
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
    chosen, origins, left_out = chosen_splits(loaded, label)
    try:
        raw = {
            split: part.cast_column(image, datasets.Image(decode=False))
            for split, part in chosen.items()
        }
    except Exception as error:
        let_memory_pass(error)
        raise InputError(
            f"column {image!r} of hf:{name} must hold encoded images, found {features[image]}; "
            "give another --image-column"
        ) from error
    names = getattr(features[label], "names", None)
    labels = {split: labels_of(part, label, names, split) for split, part in raw.items()}

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        return encoded(iter(raw[split].select_columns([image])), image, f"{split} row")

    def fingerprint() -> str:
        total = hashlib.sha256(json.dumps([image, names, labels]).encode())
        for split in raw:
            for _, source in files(split):
                content = source if isinstance(source, bytes) else source.read_bytes()
                total.update(hashlib.sha256(content).digest())
        return total.hexdigest()

    splits = {split: (labels[split], partial(files, split)) for split in raw}
    return from_table(
        splits, names, label, fingerprint, config, origins, left_out.words,
        weights_of(chosen["train"], config),
    )  # fmt: skip


def weights_of(train: Any, config: DataConfig) -> Weights | None:
    """Return the weights that a column of the train split holds; None if none is named."""
    column = weight_column(config)
    if not column:
        return None
    require_column(column, train.column_names)
    return of_column(column, train[column])


def chosen_splits(loaded: Any, label: str) -> tuple[dict[str, Any], dict[str, str], LeftOut]:
    """Return split -> its rows, split -> where it comes from, and what is not used.

    The hub marks the labels of a secret test split with -1 (ImageNet's).
    """
    splits, origins, left_out = {}, {}, LeftOut()
    for name, part in loaded.items():
        split = split_of(name)
        if split is None or split in splits:
            left_out.tell(f"split {name}, {len(part):,} rows")
        elif split != "train" and -1 in set(part[label]):
            left_out.tell(f"split {name}, whose labels are secret")
        else:
            splits[split], origins[split] = part, f"split {name}"
    return splits, origins, left_out


def labels_of(part: Any, label: str, names: list[str] | None, split: str) -> list[Any]:
    """Return the labels of a split, numbered by the names of the training split.

    Raises:
        InputError: the split has other classes.
    """
    values, own = list(part[label]), getattr(part.features[label], "names", None)
    if own == names:
        return values
    if own is None or names is None or sorted(own) != sorted(names):
        here, there = ("no class names" if some is None else listed(some) for some in (own, names))
        raise InputError(
            f"all splits must have the same classes in column {label!r}, {split} has {here} and "
            f"train has {there}; give other data"
        )
    index = [names.index(name) for name in own]
    return [index[value] for value in values]
