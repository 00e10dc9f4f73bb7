"""NumPy archives (.npz) of images and labels, as Keras, MedMNIST and others write them."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.config.sections import DataConfig
from potstill.data.arrays import as_arrays, from_arrays
from potstill.data.assembly import existing
from potstill.data.layouts import listed, split_of
from potstill.data.splits import Dataset
from potstill.errors import InputError, first_line, let_memory_pass

EXAMPLES = ("x", "images", "image", "data", "features", "inputs")
LABELS = ("y", "labels", "label", "targets", "target", "classes")


def read_npz(path: str, config: DataConfig) -> Dataset:
    """Read a NumPy archive: pairs of arrays named as x_train and y_train, or x and y.

    Raises:
        InputError: no such pair, or the file cannot be read. Pickled objects are never loaded.
    """
    file = existing(path, "npz")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # of NumPy, zipfile, zlib and struct, for whatever is in it
        let_memory_pass(error)
        raise InputError(
            f"cannot read {file} as arrays: {first_line(error)}; write it with numpy.savez, "
            "numbers only"
        ) from error
    splits: dict[str, dict[str, npt.NDArray[Any]]] = {}
    left_out = []
    for name, array in arrays.items():
        part, split = part_of(name)
        if part is None:
            left_out.append(f"array {name} of shape {array.shape}")
        else:
            known = splits.setdefault(split, {})
            if part in known:
                raise InputError(
                    f"{file} must hold one array of {part} for a split, got a second one for "
                    f"{split}, {name}; leave one of them out"
                )
            one_column = part == "labels" and array.ndim == 2 and array.shape[1] == 1
            known[part] = array[:, 0] if one_column else array
    whole = {split: parts for split, parts in splits.items() if len(parts) == 2}
    if "train" not in whole:
        raise InputError(
            f"{file} must hold x_train and y_train, or x and y (or images and labels), got "
            f"{listed(arrays)}; rename its arrays"
        )
    train, test = whole["train"], whole.get("test", {})
    dataset = from_arrays(train["images"], train["labels"], test.get("images"), test.get("labels"))
    origins = {split: f"{split} arrays" for split in whole}
    if "validation" in whole:
        own = whole["validation"]
        if test:
            dataset = with_validation(dataset, own["images"], own["labels"])
        else:
            dataset = from_arrays(train["images"], train["labels"], own["images"], own["labels"])
            origins = {**origins, "test": "validation arrays, there being no test split"}
    return dataclasses.replace(dataset, origins=origins, left_out=tuple(left_out))


def with_validation(dataset: Dataset, images: Any, labels: Any) -> Dataset:
    """Return a data set with validation images of its own."""
    whole = from_arrays(images, labels, class_names=dataset.class_names)
    if whole.shape != dataset.shape:
        as_arrays("validation images", images, "their labels", labels)
        raise InputError(
            f"validation images must have the shape of train images, {dataset.shape}, got "
            f"{whole.shape}"
        )
    both = hashlib.sha256(f"{dataset.fingerprint}{whole.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(dataset, validation=whole.train, fingerprint=both)


def part_of(name: str) -> tuple[str | None, str]:
    """Return what an array is ("images", "labels" or None) and of which split, by its name."""
    words = name.lower().replace("-", "_").split("_")
    split = next((known for known in map(split_of, words) if known), "train")
    rest = [word for word in words if split_of(word) is None]
    word = rest[0] if len(rest) == 1 else "_".join(rest)
    if word in EXAMPLES:
        return "images", split
    return ("labels" if word in LABELS else None), split
