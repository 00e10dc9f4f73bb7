"""Labelled examples that are given in Python: arrays, tensors, data sets of other libraries."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from potstill.data.decoding import PADDED_NOTE, UNPADDED_SIDE, pad
from potstill.data.layouts import listed
from potstill.data.splits import NOUNS, Arrays, Dataset
from potstill.errors import InputError


def array_hash(*arrays: npt.NDArray[Any]) -> str:
    """Return a hash over the types, shapes and values of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def from_arrays(
    images: Any,
    labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
) -> Dataset:
    """Make a data set of arrays or tensors.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3; integers 0..255, or floats,
            which are taken as they are. Or vectors (N, d): a table with a row an example, as
            numbers of any kind; they are taken as they are.
        labels: (N,) whole numbers 0 .. K-1, or names of classes.
        test_images: the same for test data; None holds 20 % of `images` out.
        test_labels: classes of `test_images`.
        class_names: name of each class; None takes the numbers, or the names in their order.
        feature_names: of vectors, name of each feature; None takes those of the columns, if
            `images` is a data frame.
    Raises:
        InputError: shapes that do not fit, labels out of range, pixels that are no numbers.
    """
    if (test_images is None) != (test_labels is None):
        raise InputError("test_images and test_labels must be given together, got only one of them")
    (labels, test_labels), class_names = numbered(labels, test_labels, class_names)
    train = as_arrays("images", images, "labels", labels)
    test = (
        None
        if test_images is None
        else as_arrays("test_images", test_images, "test_labels", test_labels)
    )
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"test_images must have the shape of images, {train.images.shape[1:]}, got "
            f"{test.images.shape[1:]}"
        )
    if test is not None and test.images.dtype != train.images.dtype:
        raise InputError(
            "images and test_images must both be whole numbers or both floats, got one of each; "
            "scale them alike"
        )
    if class_names is not None and not different_names(class_names):
        raise InputError(
            "class_names must be a list of different names, one for each class, got "
            f"{class_names!r}"
        )
    count = len(class_names) if class_names is not None else int(train.labels.max()) + 1
    if class_names is None and count > len(train.labels):
        raise InputError(
            f"labels must be 0 .. K-1 with images of every class, got {count - 1} among "
            f"{len(train.labels)} images"
        )
    for name, arrays in (("labels", train), ("test_labels", test)):
        if arrays is not None and arrays.labels.max() >= count:
            source = "labels" if class_names is None else "class_names"
            raise InputError(
                f"{name} must lie in 0..{count - 1} (the {count} classes of {source}), got "
                f"{arrays.labels.max()}; correct the labels or name every class"
            )
    notes = (PADDED_NOTE,) if train.images.shape[2:] == (UNPADDED_SIDE, UNPADDED_SIDE) else ()
    if train.images.ndim == 4:
        train, test = (
            Arrays(pad(train.images), train.labels),
            test and Arrays(pad(test.images), test.labels),
        )
    names = tuple(map(str, class_names if class_names is not None else range(count)))
    parts = [part for arrays in (train, test) if arrays for part in (arrays.images, arrays.labels)]
    features = features_of(images, test_images, feature_names, train.images.shape[1:])
    return checked(Dataset(train, test, names, array_hash(*parts), notes, feature_names=features))


def channels_last(pixels: npt.NDArray[Any]) -> bool:
    """Return whether images have their channels last; (N, C, H, W) if both could be."""
    return pixels.ndim == 4 and pixels.shape[1] not in (1, 3) and pixels.shape[-1] in (1, 3)


def numbered(
    labels: Any, test_labels: Any, class_names: Sequence[str] | None
) -> tuple[tuple[Any, Any], Sequence[str] | None]:
    """Return labels as numbers, and the names of the classes, if labels are names.

    Args:
        labels: (N,) of the training examples.
        test_labels: of the test examples, or None.
        class_names: as the user gave them; None: the names that occur in train, in their order.
    Raises:
        InputError: a name that is none of them.
    """
    given = [None if one is None else as_array("labels", one) for one in (labels, test_labels)]
    if given[0] is None or not are_names(given[0]):
        return (labels, test_labels), class_names
    names = list(map(str, class_names or sorted(set(given[0].tolist()))))
    index = {text: number for number, text in enumerate(names)}
    numbers: list[npt.NDArray[np.int64] | None] = []
    for name, array in zip(("labels", "test_labels"), given, strict=True):
        if array is None:
            numbers.append(None)
            continue
        texts = [str(one) for one in array.tolist()]
        strange = next((text for text in texts if text not in index), None)
        if strange is not None:
            source = "class_names" if class_names else "labels"
            raise InputError(
                f"{name} must be among the {len(names)} classes of {source}, {listed(names)}; got "
                f"{strange!r}"
            )
        numbers.append(np.array([index[text] for text in texts], np.int64))
    return (numbers[0], numbers[1]), names


def are_names(labels: npt.NDArray[Any]) -> bool:
    """Return whether labels are names and not numbers."""
    if labels.dtype.kind == "O":
        return labels.ndim == 1 and all(isinstance(one, str) for one in labels.tolist())
    return labels.ndim == 1 and labels.dtype.kind in "US"


def features_of(
    train: Any, test: Any, given: Sequence[str] | None, shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Return the names of features: as given, else the columns of data frames, else ().

    Args:
        train: the training examples as the user gave them.
        test: the test examples likewise, or None.
        given: the names that the user gave, or None.
        shape: of an example.
    Raises:
        InputError: they are not one for each feature, not all different, or other ones in the test
            data.
    """
    columns = [
        tuple(map(str, frame.columns)) for frame in (train, test) if hasattr(frame, "columns")
    ]
    if len(set(columns)) > 1:
        raise InputError(
            f"test_images must have the columns of images, in their order, got {columns[1]} and "
            f"{columns[0]}"
        )
    if given is None:
        return columns[0] if columns else ()
    names = () if isinstance(given, str) else tuple(map(str, given))
    if len(shape) != 1 or len(names) != shape[0] or len(set(names)) < len(names):
        wanted = (
            f"the {shape[0]} features" if len(shape) == 1 else "features of images, which have none"
        )
        raise InputError(
            f"feature_names must be different names, one for each of {wanted}, got {given!r}"
        )
    return names


def with_weights(dataset: Dataset, weights: Any, name: str = "weights") -> Dataset:
    """Return `dataset` with a weight for each training image; unchanged for None.

    Args:
        dataset: the data.
        weights: (N,) at least 0.
        name: what they are called in messages.
    Raises:
        InputError: they are not one for each, negative, not finite, or all 0.
    """
    if weights is None:
        return dataset
    given, count = as_array("weights", weights), len(dataset.train.labels)
    if given.shape != (count,) or given.dtype.kind not in "iufb":
        raise InputError(
            f"{name} must be a number for each of the {count:,} training images that were given, "
            f"in their order, got shape {given.shape} of type {given.dtype}"
        )
    given = given.astype(np.float64)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
        raise InputError(
            f"{name} must be finite and at least 0, and not all 0, got {given.min():g} to "
            f"{given.max():g}"
        )
    return dataclasses.replace(dataset, weights=given)


def different_names(given: Any) -> bool:
    """Return whether these are different texts or whole numbers, in a sequence."""
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        return False
    texts = [str(name) for name in given if isinstance(name, str | int | np.integer)]
    return len(texts) == len(given) == len(set(texts))


def as_array(name: str, given: Any) -> npt.NDArray[Any]:
    """Convert an array, tensor or list to a NumPy array."""
    if isinstance(given, torch.Tensor) and (given.layout != torch.strided or given.is_meta):
        raise InputError(
            f"{name} must be a dense tensor with data, got a {given.layout} one on {given.device}; "
            "give it .to_dense()"
        )
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        # NumPy knows no bfloat16.
        return np.asarray(given.float() if given.is_floating_point() else given)
    if np.ma.isMaskedArray(given) and given.mask.any():
        raise InputError(f"{name} must have no masked values, got some; fill or drop them")
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise InputError(
            f"{name} must be an array, got a {type(given).__name__} that is none: {error}"
        ) from error


def as_arrays(images_name: str, images: Any, labels_name: str, labels: Any) -> Arrays:
    """Check and normalise one split that a user gave in Python.

    Args:
        images_name: the argument's name, for messages.
        images: (N, H, W), (N, C, H, W) or (N, d).
        labels_name: the argument's name, for messages.
        labels: (N,) whole numbers.
    """
    pixels, classes = as_array(images_name, images), as_array(labels_name, labels)
    if pixels.ndim == 2 and pixels.size:
        return Arrays(
            as_vectors(images_name, pixels),
            as_classes(labels_name, classes, images_name, len(pixels)),
        )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if channels_last(pixels):
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.size:
        raise InputError(
            f"{images_name} must have shape (N, d) of vectors, (N, H, W) or (N, C, H, W) with C 1 "
            f"or 3, or (N, H, W, C), got {pixels.shape}"
        )
    classes = as_classes(labels_name, classes, images_name, len(pixels))
    if pixels.dtype.kind in "iu":
        if pixels.min() < 0 or pixels.max() > 255:
            raise InputError(
                f"whole-number {images_name} must lie in 0..255, got {pixels.min()} to "
                f"{pixels.max()}; scale them"
            )
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    else:
        raise InputError(f"{images_name} must be numbers, got values of type {pixels.dtype}")
    return Arrays(pixels, classes)


def as_classes(
    name: str, classes: npt.NDArray[Any], images_name: str, count: int
) -> npt.NDArray[np.int64]:
    """Check the classes of `count` examples; return them as int64.

    Args:
        name: the argument's name, for messages.
        classes: (count,) whole numbers.
        images_name: the name of the examples' argument, for messages.
        count: how many examples there are.
    """
    if classes.shape != (count,):
        raise InputError(
            f"{name} must have shape ({count},) like {images_name}, got {classes.shape}"
        )
    if classes.dtype.kind not in "iu":
        raise InputError(
            f"{name} must be whole numbers 0 .. K-1, got values of type {classes.dtype}"
        )
    if classes.min() < 0:
        raise InputError(f"{name} must be at least 0, got {classes.min()}")
    return classes.astype(np.int64)


def as_vectors(name: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Check vectors (N, d) and return them as float32.

    Whole numbers are numbers here, not pixels.
    """
    if rows.dtype.kind not in "biuf":
        raise InputError(
            f"{name} of shape {rows.shape} must be numbers, got values of type {rows.dtype}; "
            "encode what is text as numbers first"
        )
    # What float32 cannot hold becomes infinite, and is told as that.
    with np.errstate(over="ignore"):
        return rows.astype(np.float32)


def checked(dataset: Dataset) -> Dataset:
    """Return `dataset` if it has at least two classes and finite numbers.

    Raises:
        InputError: it has not.
    """
    if len(dataset.class_names) < 2:
        names = "".join(f": {name}" for name in dataset.class_names)
        raise InputError(
            f"the data must have at least 2 classes, found {len(dataset.class_names)}{names}; add "
            "another"
        )
    for split, arrays in dataset.splits.items():
        if arrays.images.dtype != np.uint8 and not np.isfinite(arrays.images).all():
            bad = int(
                np.flatnonzero(
                    ~np.isfinite(arrays.images).reshape(len(arrays.images), -1).all(axis=1)
                )[0]
            )
            values = "pixels" if dataset.kind == "image" else "features"
            raise InputError(
                f"{values} must be finite numbers, {split} {NOUNS[dataset.kind]} {bad} holds NaN "
                "or infinity; repair or remove it"
            )
    return dataset
