"""Where labelled images come from: `read` finds the source by name; the embedded digits and arrays are here."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from potstill.data import Arrays, Dataset
from potstill.images import PADDED_NOTE, UNPADDED_SIDE, pad
from potstill.registry import SOURCES, InputError
from potstill.sections import DataConfig


def read(config: DataConfig) -> Dataset:
    """Read what `config.data` names.

    Raises:
        InputError: it does not exist, is empty, or cannot be read; the sentence says which file and what to do.
    """
    kind, _, rest = config.data.partition(":")
    if kind == "arrays":
        raise InputError("the data were arrays given in Python; give them again there, as in potstill.resume(out, images, labels)")
    if (kind == "digits") == bool(rest):
        raise InputError(f"data must be digits, folder:PATH, parquet:PATH or hf:NAME, got {config.data!r}")
    dataset: Dataset = SOURCES[kind](rest, config)
    return checked(dataset)


def checked(dataset: Dataset) -> Dataset:
    """`dataset` again, if it can be distilled: at least two classes, finite pixels."""
    if len(dataset.class_names) < 2:
        found = "".join(f": {name}" for name in dataset.class_names)
        raise InputError(f"the data must have at least 2 classes, found {len(dataset.class_names)}{found}; add another")
    for split, arrays in (("train", dataset.train), ("test", dataset.test)):
        if arrays is not None and arrays.images.dtype != np.uint8 and not np.isfinite(arrays.images).all():
            bad = int(np.flatnonzero(~np.isfinite(arrays.images).all(axis=(1, 2, 3)))[0])
            raise InputError(f"pixels must be finite numbers, {split} image {bad} holds NaN or infinity; repair or remove it")
    return dataset


def read_digits(_: str, config: DataConfig) -> Dataset:
    """scikit-learn's 1,797 grey digits of 8 x 8 pixels with values 0 to 16."""
    from sklearn.datasets import load_digits  # here: it takes a second to import and only this source needs it

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset(Arrays(images, bunch.target.astype(np.int64)), None, names, array_hash(images, bunch.target))


def array_hash(*arrays: npt.NDArray[Any]) -> str:
    """A hash over the types, shapes and values of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def from_arrays(
    images: Any, labels: Any, test_images: Any = None, test_labels: Any = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """Arrays or tensors as a data set.

    Args:
        images: (N, H, W) or (N, C, H, W) with C 1 or 3; integers 0..255, or floats, which are taken as they are.
        labels: (N,) whole numbers 0 .. K-1.
        test_images: the same for test data; None holds 20 % of `images` out.
        test_labels: classes of `test_images`.
        class_names: name of each class; None takes the numbers.
    Raises:
        InputError: shapes that do not fit, labels out of range, pixels that are no numbers.
    """
    if (test_images is None) != (test_labels is None):
        raise InputError("test_images and test_labels must be given together, got only one of them")
    train = as_arrays("images", images, "labels", labels)
    test = None if test_images is None else as_arrays("test_images", test_images, "test_labels", test_labels)
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(f"test_images must have the shape of images, {train.images.shape[1:]}, got {test.images.shape[1:]}")
    if test is not None and test.images.dtype != train.images.dtype:
        raise InputError("images and test_images must both be whole numbers or both floats, got one of each; scale them alike")
    if class_names is not None and (isinstance(class_names, str) or len(set(class_names)) < len(class_names)):
        raise InputError(f"class_names must be a list of different names, one for each class, got {class_names!r}")
    count = len(class_names) if class_names is not None else int(train.labels.max()) + 1
    if class_names is None and count > len(train.labels):
        raise InputError(f"labels must be 0 .. K-1 with images of every class, got {count - 1} among {len(train.labels)} images")
    for name, arrays in (("labels", train), ("test_labels", test)):
        if arrays is not None and arrays.labels.max() >= count:
            source = "labels" if class_names is None else "class_names"
            raise InputError(
                f"{name} must lie in 0..{count - 1} (the {count} classes of {source}), got {arrays.labels.max()}; "
                "correct the labels or name every class"
            )
    notes = (PADDED_NOTE,) if train.images.shape[2:] == (UNPADDED_SIDE, UNPADDED_SIDE) else ()
    train, test = Arrays(pad(train.images), train.labels), test and Arrays(pad(test.images), test.labels)
    names = tuple(map(str, class_names if class_names is not None else range(count)))
    parts = [part for arrays in (train, test) if arrays for part in (arrays.images, arrays.labels)]
    return checked(Dataset(train, test, names, array_hash(*parts), notes))


def with_weights(dataset: Dataset, weights: Any) -> Dataset:
    """`dataset` with a weight for each of its training images in real batches, as it is without any.

    Raises:
        InputError: they are not one for each, negative, not finite, or all 0.
    """
    if weights is None:
        return dataset
    given, count = as_array("weights", weights), len(dataset.train.labels)
    if given.shape != (count,) or given.dtype.kind not in "iufb":
        raise InputError(
            f"weights must be a number for each of the {count:,} training images that were given, in their order, got shape "
            f"{given.shape} of type {given.dtype}"
        )
    given = given.astype(np.float64)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
        raise InputError(f"weights must be finite and at least 0, and not all 0, got {given.min():g} to {given.max():g}")
    return dataclasses.replace(dataset, weights=given)


def as_array(name: str, given: Any) -> npt.NDArray[Any]:
    """An array, tensor or list as an array."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        return np.asarray(given.float() if given.is_floating_point() else given)  # NumPy knows no bfloat16
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise InputError(f"{name} must be an array, got a {type(given).__name__} that is none: {error}") from error


def as_arrays(images_name: str, images: Any, labels_name: str, labels: Any) -> Arrays:
    """Check and normalise one split that a user gave in Python."""
    pixels, classes = as_array(images_name, images), as_array(labels_name, labels)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.size:
        hint = "; move the channels to the front" if pixels.ndim == 4 and pixels.shape[-1] in (1, 3) else ""
        raise InputError(f"{images_name} must have shape (N, H, W) or (N, C, H, W) with C 1 or 3, got {pixels.shape}{hint}")
    if classes.shape != (len(pixels),):
        raise InputError(f"{labels_name} must have shape ({len(pixels)},) like {images_name}, got {classes.shape}")
    if classes.dtype.kind not in "iu":
        raise InputError(f"{labels_name} must be whole numbers 0 .. K-1, got values of type {classes.dtype}")
    if classes.min() < 0:
        raise InputError(f"{labels_name} must be at least 0, got {classes.min()}")
    if pixels.dtype.kind in "iu":
        if pixels.min() < 0 or pixels.max() > 255:
            raise InputError(f"whole-number {images_name} must lie in 0..255, got {pixels.min()} to {pixels.max()}; scale them")
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    else:
        raise InputError(f"{images_name} must be numbers, got values of type {pixels.dtype}")
    return Arrays(pixels, classes.astype(np.int64))
