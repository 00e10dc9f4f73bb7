"""Data sets of other libraries, as arrays: torch's and Hugging Face's, and their loaders."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from potstill.errors import InputError

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


class Given(NamedTuple):
    """Examples that a data set of another library holds.

    Args:
        images: (N, ...) array or tensor.
        labels: (N,) classes, as numbers or names.
        class_names: name of each class; None: it tells none.
    """

    images: Any
    labels: Any
    class_names: Sequence[str] | None


def is_collection(given: Any) -> bool:
    """Return whether a value holds examples and their labels, and is no array."""
    if isinstance(given, np.ndarray | torch.Tensor | list | tuple | str):
        return False
    if hasattr(given, "__array__") or hasattr(given, "iloc"):  # a data frame
        return False
    return hasattr(given, "__getitem__") or hasattr(given, "__iter__")


def examples_of(given: Any) -> Given:
    """Return the examples of a torch Dataset or DataLoader, or of a Hugging Face Dataset.

    Of a loader its data set is read, in order. All examples are held in memory.

    Raises:
        InputError: its items are no pairs of an example and a label, or of several shapes.
    """
    if isinstance(given, torch.utils.data.DataLoader):
        given = given.dataset
    if hasattr(given, "column_names") and hasattr(given, "features"):
        return of_hugging_face(given)
    names = getattr(given, "classes", None)
    pairs = [pair_of(item, given) for item in items(given)]
    if not pairs:
        raise InputError(f"the data set must hold examples, {type(given).__name__} is empty")
    images, labels = zip(*pairs, strict=True)
    told = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return Given(stacked(images), np.array(labels), names if told else None)


def items(given: Any) -> Iterator[Any]:
    """Yield every item of a data set once."""
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        yield from (given[index] for index in range(len(given)))
    else:
        yield from given


def pair_of(item: Any, given: Any) -> tuple[Any, Any]:
    """Return the example and the label of an item.

    Raises:
        InputError: it is no such pair.
    """
    if isinstance(item, dict):
        image = next((item[name] for name in IMAGE_COLUMNS if name in item), None)
        label = next((item[name] for name in LABEL_COLUMNS if name in item), None)
    elif isinstance(item, tuple | list) and len(item) >= 2:
        image, label = item[:2]
    else:
        image = label = None
    if image is None or label is None:
        raise InputError(
            f"items of {type(given).__name__} must be pairs of an example and its label, got "
            f"{type(item).__name__}; give images and labels as two arrays"
        )
    return image, label.item() if isinstance(label, torch.Tensor | np.generic) else label


def of_hugging_face(given: Any) -> Given:
    """Return the examples of a Hugging Face Dataset in memory."""
    columns = []
    for kind, usual in (("image", IMAGE_COLUMNS), ("label", LABEL_COLUMNS)):
        column = next((name for name in usual if name in given.column_names), None)
        if column is None:
            raise InputError(
                f"the data set must have a column of each {kind}, named {', '.join(usual)}; got "
                f"{', '.join(given.column_names)}; rename_column gives it one"
            )
        columns.append(column)
    image, label = columns
    names = getattr(given.features[label], "names", None)
    return Given(stacked([row[image] for row in given]), np.array(given[label]), names)


def stacked(images: Iterable[Any]) -> Any:
    """Stack examples (tensors, arrays or Pillow's images) into one array.

    Raises:
        InputError: they have several shapes.
    """
    arrays = [np.asarray(image) for image in images]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise InputError(
            f"examples must have one shape, got {len(shapes)}, such as {first} and {second}; "
            "resize them in the data set's transform"
        )
    return np.stack(arrays)
