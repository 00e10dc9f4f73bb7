"""What distillation asks of a network, checked before anything slow."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from potstill.config.config import Given, changed
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, cross_entropy, derivative_error
from potstill.errors import InputError, first_line, let_memory_pass
from potstill.methods.base import Method
from potstill.models import ModelSpec, check_model, fresh, resolve
from potstill.seeds import generator

DERIVATIVE_TOLERANCE = 1e-3


def check_features(
    name: str, factory: Callable[[], nn.Module], shape: tuple[int, ...], method: str
) -> None:
    """Raise an InputError unless a network has `features(inputs)`, which the method needs.

    Args:
        name: of the network, for the message.
        factory: makes a fresh network.
        shape: of an example.
        method: name of the method, for the message.
    """
    module = fresh(factory, 0, torch.device("cpu"))
    features = getattr(module, "features", None)
    reason = "it has none"
    if callable(features):
        try:
            result = features(torch.zeros(2, *shape))
        except (Exception, SystemExit) as error:
            let_memory_pass(error)
            reason = f"it fails: {type(error).__name__}: {first_line(error)}"
        else:
            if isinstance(result, torch.Tensor) and len(result) == 2:
                return
            reason = f"it gives {tuple(getattr(result, 'shape', ()))} for two inputs"
    raise InputError(
        f"method {method} needs a network whose features(inputs) gives a row for each input; of "
        f"model {name} {reason}; add it, or choose another --model"
    )


def check_second_derivative(
    name: str, factory: Callable[[], nn.Module], shape: tuple[int, ...], classes: int
) -> None:
    """Check a network's second derivative, so that an unfit network fails at the start.

    One Hessian product is computed and, in float64, compared with differences of gradients.

    Args:
        name: of the network, for the message.
        factory: makes a fresh network.
        shape: of an example.
        classes: number of classes.
    Raises:
        InputError: it has no second derivative, or a wrong one (a detach or a straight-through
            estimator).
    """
    rng = generator(0, "second derivative")
    # A user's factory may share parts between calls.
    module = copy.deepcopy(fresh(factory, 0, torch.device("cpu")))
    inputs = torch.randn(2, *shape, generator=rng)
    targets = torch.eye(classes)[torch.arange(2) % classes]
    changing = changed_buffers(module, inputs)
    if changing:
        raise InputError(
            f"model {name} must give the same output every time, calling it changes its buffers "
            f"{', '.join(changing[:3])}; take a layer that does not (spectral norm without power "
            "iterations, for instance)"
        )
    single = FlatModel(copy.deepcopy(module))
    unused = unused_parameters(single, inputs)
    if unused:
        raise InputError(
            f"model {name} must use its parameters by their names, its output does not depend on "
            f"{', '.join(unused[:3])} when others are put there; a module that keeps parameters in "
            "a list of its own does so: use nn.ParameterList, or the attributes themselves"
        )
    try:
        cross_entropy(single).product(single.theta, Batch(inputs, targets), 0, single.theta)
    except (RuntimeError, ValueError, TypeError) as reason:  # NotImplementedError is one
        let_memory_pass(reason)
        raise InputError(
            f"model {name} cannot be differentiated twice: {first_line(reason)}; distillation by "
            f"unrolling needs a second derivative: take another network, or --method dm"
        ) from reason
    try:
        error = derivative_error(FlatModel(module.double()), inputs.double(), targets.double(), rng)
    except (RuntimeError, TypeError) as reason:
        let_memory_pass(reason)
        return  # it insists on single precision, in which a difference of gradients shows nothing
    if not error < DERIVATIVE_TOLERANCE:
        raise InputError(
            f"model {name} must be differentiable throughout, its gradient changes otherwise than "
            f"its second derivative says (relative error {error:.1e}); remove what it detaches, "
            "its straight-through estimator, or an operation whose second derivative torch has "
            "wrong"
        )


def changed_buffers(module: nn.Module, inputs: torch.Tensor) -> list[str]:
    """List the buffers that a call of a network changes, but for the statistics of batch norm."""
    norms = {
        id(buffer)
        for part in module.modules()
        if isinstance(part, _NormBase)
        for buffer in part.buffers(recurse=False)
    }
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        module.train()(inputs)
    return [
        name
        for name, buffer in module.named_buffers()
        if id(buffer) not in norms and not torch.equal(before[name], buffer)
    ]


def unused_parameters(model: FlatModel, inputs: torch.Tensor) -> list[str]:
    """List parameters that a network uses, but not where others are put in their place."""
    own = dict(model.module.named_parameters())
    outputs = model.module(inputs).sum()
    used = torch.autograd.grad(outputs, [own[name] for name in model.names], allow_unused=True)
    theta = model.theta.detach().requires_grad_()
    pieces = theta.split(model.sizes)
    (grad,) = torch.autograd.grad(model(torch.cat(pieces), inputs).sum(), theta)
    parts = zip(model.names, used, grad.split(model.sizes), strict=True)
    return [
        name
        for name, direct, through in parts
        if direct is not None and bool(direct.any()) and not bool(through.any())
    ]


def factories(
    config: Given, model: ModelSpec | None, shape: Any, classes: int, method: type[Method]
) -> tuple[Any, Any]:
    """Return the factories of the networks that a set is for, and of those it is distilled with.

    They are one and the same unless `inner_width` is less than the width, `inner_norm` another than
    the norm, or `inner_activation` not ReLU; the arguments are as for `checked_factory`.

    Raises:
        InputError: such networks cannot be, or do not suit the method.
    """
    options = dataclasses.asdict(config.model.options)
    inner = {}
    if 0 < options.get("inner_width", 0) < options.get("width", 0):
        inner["width"] = options["inner_width"]
    if options.get("inner_norm", "same") not in ("same", options.get("norm")):
        inner["norm"] = options["inner_norm"]
    smooth = options.pop("inner_activation", "relu") != "relu"
    if not inner and not smooth:
        both = checked_factory(config, model, shape, classes, method)
        return both, both
    tested = resolve(config.model.name, shape, classes, **options)
    try:
        return tested, checked_factory(changed(config, **inner), None, shape, classes, method)
    except InputError as error:
        words = " and ".join(f"inner_{name} of {value}" for name, value in inner.items())
        raise InputError(f"{words}: {error}" if words else str(error)) from error


def checked_factory(
    config: Given, model: ModelSpec | None, shape: Any, classes: int, method: type[Method]
) -> Any:
    """Return the factory of networks, checked for what the method needs.

    Args:
        config: the options.
        model: a callable in place of the configuration's model.
        shape: of an example.
        classes: number of classes.
        method: the method's class.
    """
    name = config.model.name
    options = dataclasses.asdict(config.model.options)
    factory = resolve(name if model is None else model, shape, classes, **options)
    torch.set_default_dtype(torch.float32)  # importing the network may have set another
    check_model(name, factory, shape, classes)
    if method.needs.second_derivative:
        check_second_derivative(name, factory, shape, classes)
    if method.needs.features:
        check_features(name, factory, shape, config.method.name)
    return factory
