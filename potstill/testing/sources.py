"""The contracts of what users bring most often: a network, and a source of data."""

from collections.abc import Callable
from typing import Any

from torch import nn

from potstill.config.sections import DataConfig
from potstill.data.splits import Arrays, Dataset, Shape
from potstill.distillation.network_checks import check_second_derivative
from potstill.errors import InputError
from potstill.models import check_model as model_that_can_be_called
from potstill.models import fresh, resolve
from potstill.registry import SOURCES, trust_given
from potstill.testing.contracts import ContractError, Part, same
from potstill.testing.problems import CPU


def check_model(
    model: str | Callable[..., nn.Module], shape: Shape = (3, 32, 32), classes: int = 10
) -> None:
    """Check that a network suits distillation by a method that differentiates it twice.

    Args:
        model: registered name, "package.module:factory", or a callable that makes a network.
        shape: of an input.
        classes: number of classes.
    Raises:
        ContractError: it breaks a rule.
    """
    name = model if isinstance(model, str) else getattr(model, "__qualname__", "the model")
    try:
        factory = resolve(model, shape, classes)
        model_that_can_be_called(name, factory, shape, classes)
        check_second_derivative(name, factory, shape, classes)
    except InputError as error:
        raise ContractError(f"{error}; this protects every derivative") from error
    one, other = (
        {of: p.detach().clone() for of, p in fresh(factory, 5, CPU).named_parameters()}
        for _ in range(2)
    )
    Part(name).must(
        "start from torch's global generator alone",
        same(one, other),
        "two starts of a seed differ",
        protects="that a resumed run gives the bytes of an undisturbed one",
    )


def check_source(
    source: str | Callable[..., Dataset], rest: str = "", config: DataConfig | None = None
) -> None:
    """Check that a data source gives what potstill reads.

    Args:
        source: its registered name, "package.module:function", or the function.
        rest: what follows the source's name in `--data NAME:rest`.
        config: options of data; None: their defaults.
    Raises:
        ContractError: it breaks a rule.
    """
    trust_given([source])
    read: Any = SOURCES[source] if isinstance(source, str) else source
    part = Part(source if isinstance(source, str) else getattr(read, "__qualname__", "the source"))
    one, other = (read(rest, config or DataConfig()) for _ in range(2))
    part.must(
        "give a Dataset",
        isinstance(one, Dataset),
        f"got {type(one).__name__}",
        protects="every run",
    )
    part.must(
        "give the same fingerprint for the same content",
        one.fingerprint == other.fingerprint and bool(one.fingerprint),
        "two readings differ",
        protects="that a resumed run has the data that it began with",
    )
    for split, arrays in one.splits.items():
        check_arrays(part, split, arrays, len(one.class_names))


def check_arrays(part: Part, split: str, arrays: Arrays, classes: int) -> None:
    """Check the images and labels of a split.

    Args:
        part: names the source.
        split: "train" or "test".
        arrays: of the split.
        classes: number of class names.
    """
    images, labels = arrays.images, arrays.labels
    part.must(
        f"give a label for each image of {split}",
        len(images) == len(labels) > 0,
        f"got {len(images)} and {len(labels)}",
        protects="accuracy",
    )
    low, high = int(labels.min()), int(labels.max())
    part.must(
        f"have labels of {split} in 0 .. K-1",
        low >= 0 and high < classes,
        f"got {low} to {high} for {classes} class names",
        protects="accuracy",
    )
    part.must(
        "give uint8 or float32",
        str(images.dtype) in ("uint8", "float32"),
        f"got {images.dtype}",
        protects="the scale of pixels",
    )
