"""The convolution limit: how long the convolutions of one Hessian product take alone, at the best
rate that they reach.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from potstill.devices import keep_freed_memory
from potstill.engine.compiled_losses import CompiledNetwork, trace
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch


def limit(make: Callable[[], tuple[Any, ...]], micro: int) -> dict[str, Any]:
    """Milliseconds per image of the convolutions of one Hessian product at the best measured rate,
    and of the product.

    Args:
        make: gives (network, images, labels, ...), the same at every call.
        micro: images at once.
    """
    keep_freed_memory()
    found: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        network, images, labels, *_ = make()
        model = FlatModel(network, precision)
        compiled = CompiledNetwork(model)
        batch = Batch(images[:micro].requires_grad_(), torch.eye(10)[labels[:micro]])
        along = torch.randn_like(model.theta)
        graph = trace(compiled.product, (model.theta, batch.inputs.detach(), batch.targets, along))
        names = ("aten.convolution.default", "aten.convolution_backward.default")
        calls = [node for node in graph.graph.nodes if str(node.target) in names]
        bound: dict[tuple[Any, ...], float] = {}
        for node in calls:
            tries = (
                (count, form)
                for count in (25, 50, 100)
                for form in (torch.contiguous_format, torch.channels_last)
            )
            key = signature(node)
            bound[key] = bound.get(key) or min(
                convolution_seconds(node, count, form) for count, form in tries
            )
        least = sum(bound[signature(node)] for node in calls)  # seconds per image
        whole = compiled.of(model)
        seconds = best(lambda: whole.product(model.theta, batch, 0, along)) / micro  # noqa: B023
        found[precision] = {
            "convolutions": len(calls),
            "limit_ms_per_image": 1e3 * least,
            "product_ms_per_image": 1e3 * seconds,
            "multiple": seconds / least,
        }
    return found


def signature(node: Any) -> tuple[Any, ...]:
    """What makes two convolutions of a graph the same work."""
    shapes = tuple(tuple(arg.meta["val"].shape) for arg in node.args if hasattr(arg, "meta"))
    return str(node.target), shapes, str(node.args[-1])


def convolution_seconds(node: Any, count: int, form: Any) -> float:
    """Seconds per image of one convolution of a graph, on `count` images in a memory format."""

    def filled(arg: Any) -> Any:
        if not hasattr(arg, "meta"):
            return arg
        value = arg.meta["val"]
        is_weight = value.shape[-1] == 3
        shape = value.shape if is_weight else (count, *value.shape[1:])
        return torch.randn(shape).to(value.dtype).to(memory_format=form)

    arguments = [filled(arg) for arg in node.args]
    return best(lambda: node.target(*arguments)) / count


def best(function: Callable[[], Any], times: int = 15) -> float:
    """The least of several times, after two to warm up."""
    with torch.no_grad():
        found = []
        for _ in range(times + 2):
            began = time.perf_counter()
            function()
            found.append(time.perf_counter() - began)
    return min(found[2:])
