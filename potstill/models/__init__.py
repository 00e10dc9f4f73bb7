"""Networks: `resolve` returns the factory of a registered name or "package.module:factory"."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from potstill.data.splits import Shape, kind_of, require_kind
from potstill.errors import InputError, first_line, let_memory_pass
from potstill.models.common import initialised
from potstill.registry import MODELS
from potstill.seeds import global_seed

ModelSpec = str | Callable[..., nn.Module]
DEFAULTS = {"image": "convnet", "vector": "mlp"}
"""What "auto" is for each kind of data."""


def model_name(spec: ModelSpec) -> str:
    """Return the name under which a model is stored.

    It is the registered name, or "module:qualified.name" of a callable; one that cannot be imported
    by its name has angle brackets in it.
    """
    if isinstance(spec, str):
        return spec
    if isinstance(spec, functools.partial):
        return f"{spec.func.__module__}:<partial of {spec.func.__qualname__}>"
    own = getattr(spec, "__qualname__", f"<an instance of {type(spec).__qualname__}>")
    return f"{getattr(spec, '__module__', '?')}:{own}"


def resolve(spec: ModelSpec, shape: Shape, classes: int, **options: Any) -> Callable[[], nn.Module]:
    """Return a function without arguments that makes a freshly initialised network.

    Args:
        spec: a registered name, "package.module:factory", or a callable that returns an nn.Module.
        shape: (C, H, W) of an input, or (d,).
        classes: number of outputs.
        options: width, depth, norm and network_init, for registered models; unknown options are
            ignored.
    Returns:
        The factory. A user's callable gets those of input_shape, in_channels, in_features (the
        numbers of an input) and num_classes that it names (num_classes too if it takes **kwargs).
    Raises:
        InputError: no such model, a module instead of a factory, or an option that the model
            refuses.
    """
    if isinstance(spec, nn.Module):
        name = type(spec).__name__
        raise InputError(
            f"model must make a fresh network at every call, got a {name} that exists; give "
            f"`lambda: {name}(...)`"
        )
    if isinstance(spec, str) and ":" not in spec:
        registered = MODELS[spec]
        require_kind(kind_of(shape), f"model {spec}", registered, "use --model mlp")
        taken = inspect.signature(registered).parameters
        known = {
            name: value for name, value in options.items() if name in taken and value != "auto"
        }
        registered.check(shape, **known)
        rule = options.get("network_init", "pytorch")
        return lambda: initialised(registered(shape, classes, **known), rule)
    factory = MODELS[spec] if isinstance(spec, str) else spec
    if not callable(factory):
        raise InputError(
            f"model {model_name(spec)} must be a function or class that returns a network, got "
            f"{factory!r}"
        )
    require_kind(kind_of(shape), f"model {model_name(spec)}", factory, "use --model mlp")
    offered = {
        "input_shape": shape,
        "in_channels": shape[0],
        "in_features": math.prod(shape),
        "num_classes": classes,
    }
    made = bind(factory, offered)
    return lambda: materialised(made(), shape)


def materialised(module: nn.Module, shape: Shape) -> nn.Module:
    """Return a network whose lazy layers know their sizes, by calling it once if it has some."""
    if isinstance(module, nn.Module) and any(map(is_lazy, module.parameters())):
        training = module.training
        with torch.no_grad():
            module.eval()(torch.zeros(2, *shape))
        module.train(training)
    return module


def bind(factory: Callable[..., nn.Module], offered: dict[str, Any]) -> Callable[[], nn.Module]:
    """Bind the offered keyword arguments that `factory` takes."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError as error:
        raise InputError(
            f"model {model_name(factory)} must be a function or class with a signature, it has none"
        ) from error
    taken = {name: value for name, value in offered.items() if name in parameters}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        taken.setdefault("num_classes", offered["num_classes"])
    return lambda: factory(**taken)


def fresh(factory: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Make a network initialised from `seed`.

    It is made on the CPU and then moved, so that every device starts from the same parameters.
    """
    with global_seed(seed, torch.device("cpu")):
        return factory().to(device)


def failing(name: str, shape: Shape, error: BaseException) -> InputError:
    """Return the sentence on a network that fails on inputs of a shape."""
    padded = "; images of 28 x 28 were padded to 32 x 32" if shape[-2:] == (32, 32) else ""
    sizes = ", ".join(map(str, shape))
    return InputError(
        f"model {name} fails on inputs of shape ({sizes}): {type(error).__name__}: "
        f"{first_line(error)}{padded}"
    )


def check_smallest_batch(
    name: str, factory: Callable[[], nn.Module], shape: Shape, smallest: int
) -> None:
    """Raise an InputError if a network fails on the smallest batch of a run, in training.

    Args:
        name: the model's name.
        factory: makes a fresh network.
        shape: of an example.
        smallest: examples in the batch.
    """
    module = fresh(factory, 0, torch.device("cpu")).train()
    try:
        module(torch.zeros(smallest, *shape))
    except (Exception, SystemExit) as error:
        let_memory_pass(error)
        raise InputError(
            f"{failing(name, (smallest, *shape), error)}; raise --classes-per-batch, "
            "--batch-per-class or --real-batch, or take a network without batch norm"
        ) from error


def check_model(name: str, factory: Callable[[], nn.Module], shape: Shape, classes: int) -> None:
    """Call a network once, so that a broken one fails here and not deep inside a run.

    Args:
        name: the model's name, for messages.
        factory: makes a fresh network.
        shape: (C, H, W) of an input, or (d,).
        classes: number of outputs.
    Raises:
        InputError: it cannot be made or called, or its output is not (B, classes) of floating
            point.
    """
    try:
        with global_seed(0, torch.device("cpu")):
            module, other = factory(), factory()
        if not isinstance(module, nn.Module):
            raise TypeError(f"it returned {type(module).__name__}, which is no torch.nn.Module")
        output = module(torch.zeros(2, *shape))
    except (Exception, SystemExit) as error:
        let_memory_pass(error)
        raise failing(name, (2, *shape), error) from error
    try:
        copy.deepcopy(module)
    except (Exception, SystemExit) as error:
        let_memory_pass(error)
        raise InputError(
            f"model {name} must be one that can be copied, copying it fails: {first_line(error)}; "
            "weight_norm and spectral_norm can where they come from torch.nn.utils.parametrizations"
        ) from error
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError(f"model {name} must have parameters to train, it has none")
    own = {p.data_ptr() for p in module.parameters() if p.requires_grad}
    if own & {p.data_ptr() for p in other.parameters() if p.requires_grad}:
        raise InputError(
            f"model {name} must make a fresh network at every call, two calls share trainable "
            "parameters"
        )
    result = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if result != (2, classes):
        raise InputError(
            f"model {name} must return logits of shape (B, {classes}), got {result} for B = 2"
        )
