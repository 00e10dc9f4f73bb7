"""Networks of timm by their names: "timm:resnet18".

timm is an optional extra, and needs torchvision. Weights are always fresh: a network that was
trained on other data would say nothing of the set.
"""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from potstill.data.splits import Shape
from potstill.errors import InputError, first_line, let_memory_pass, near_miss

EXTRA = "pip install 'potstill[timm]'"


def library() -> Any:
    """Return timm; raise an InputError if it is not there, or torchvision does not fit torch."""
    try:
        return importlib.import_module("timm")
    except Exception as error:  # torchvision for another torch fails in many ways
        let_memory_pass(error)
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise InputError(f"networks of timm need the package timm; run: {EXTRA}") from error
        raise InputError(
            f"timm cannot be imported: {type(error).__name__}: {first_line(error)}; it needs a "
            "torchvision that was built for this torch"
        ) from error


def network(name: str) -> Callable[..., nn.Module]:
    """Return a factory of a network of timm, for images.

    Args:
        name: as `timm.list_models()` has it.
    Raises:
        InputError: there is no timm, or no such network.
    """
    timm = library()
    known = timm.list_models()  # `is_model` overlooks what names weights after a dot
    if name not in known:
        raise InputError(
            f"timm {timm.__version__} has no network {name!r}{near_miss(name, known)}; weights are "
            "fresh, so that none are named after a dot"
        )
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)

    def made(input_shape: Shape, num_classes: int) -> nn.Module:
        channels, *size = input_shape
        own = {"img_size": tuple(size)} if fixed else {}
        made: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=channels, **own
        )
        return made

    made.kinds = ("image",)  # type: ignore[attr-defined]
    made.__module__, made.__qualname__ = "timm", name
    return made
