"""A network as a function of one flat parameter vector, and what is asked of a network's layers."""

import copy
import threading
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from potstill.data.splits import Shape
from potstill.engine.cuts import Cut
from potstill.seeds import global_seed

LARGEST_MB = {"cpu": 18, "mps": 250, "cuda": 132}
"""Most MB of one activation of a micro-batch. On a CPU larger ones leave the caches; a GPU gains
little from more.
"""

Statistics = Literal["ignored", "read", "updated"]


class Features(nn.Module):
    """What a network's last layer reads, (B, F), as a network of its own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.network.features(inputs)  # type: ignore[operator]
        return result.flatten(1)


class Replica(threading.local):
    """A thread's own copy of a module, which shares the module's tensors.

    While a module computes it holds the parameters that it computes with.
    """

    def __init__(self, module: nn.Module):
        # A local's arguments are kept, and each thread that looks at it calls this.
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.module = copy.deepcopy(module, shared)


class FlatModel:
    """A module as a function of one flat parameter vector.

    The module stays in training mode, but batch norm neither reads nor writes running statistics:
    inside an unroll it normalises by the batch, so that a replayed step repeats exactly. Parameters
    that do not require a gradient, and buffers, are `constants`: they keep the module's own values.
    Several threads may compute with it at the same time.

    Args:
        module: the network; it is changed as said above.
        precision: "float32" computes in the module's own type, "bfloat16" under autocast.
            Parameters, norms' statistics and outputs keep their type either way.
        statistics: what batch norm does with the running ones among the constants. "ignored", as
            above; "read": the module stays in evaluation mode; "updated": in training mode, and
            those that it is called with are changed.
    """

    def __init__(
        self, module: nn.Module, precision: str = "float32", statistics: Statistics = "ignored"
    ):
        self.module, self.precision = module.train(statistics != "read"), precision
        for part in module.modules():
            if isinstance(part, _NormBase) and statistics == "ignored":
                part.track_running_stats = False
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        self.theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
        self.constants = {
            name: p.detach() for name, p in module.named_parameters() if not p.requires_grad
        }
        self.constants |= {name: buffer.detach() for name, buffer in module.named_buffers()}

    @cached_property
    def replica(self) -> Replica:
        """The copies of the module that compute; many a network only lends its parameters."""
        return Replica(self.module)

    def parameters(self, theta: Tensor) -> list[Tensor]:
        """View a flat vector (P,) as one tensor for each parameter."""
        parts = zip(theta.split(self.sizes), self.shapes, strict=True)
        return [part.view(shape) for part, shape in parts]

    def __call__(
        self, theta: Tensor, inputs: Tensor, constants: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the module's output on `inputs` with the flat parameters `theta`.

        Args:
            theta: (P,) all trainable parameters.
            inputs: (B, ...).
            constants: those of another network of the same structure; None: the module's own.
        """
        return self.computed(self.replica.module, "", theta, inputs, constants)

    def features(
        self, theta: Tensor, inputs: Tensor, constants: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute what the module's last layer reads, (B, F), likewise."""
        return self.computed(Features(self.replica.module), "network.", theta, inputs, constants)

    def computed(
        self,
        module: nn.Module,
        prefix: str,
        theta: Tensor,
        inputs: Tensor,
        constants: dict[str, Tensor] | None,
    ) -> Tensor:
        """Compute the output of a module that holds this one's parameters under a prefix."""
        known = dict(zip(self.names, self.parameters(theta), strict=True))
        known |= self.constants if constants is None else constants
        named = {prefix + name: value for name, value in known.items()}
        with autocast(self.precision, inputs.device):
            outputs: Tensor = torch.func.functional_call(module, named, (inputs,))
        return outputs.to(theta.dtype)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network computes in this precision."""
    # Without the cache: it would keep one network's bfloat16 parameters for the next.
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )


def couples_batch(module: nn.Module) -> bool:
    """Return whether an output depends on the rest of its batch: batch norm in training."""
    return any(
        isinstance(part, _NormBase) and not isinstance(part, _InstanceNorm)
        for part in module.modules()
    )


def gradient_operations(model: FlatModel, shape: Shape) -> float:
    """Return the floating-point operations of a gradient in the parameters, for one example."""
    theta = model.theta.detach().requires_grad_()
    inputs = torch.zeros(2, *shape, device=theta.device, dtype=theta.dtype)
    with FlopCounterMode(display=False) as counter, global_seed(0, theta.device):
        model(theta, inputs).sum().backward()
    return float(counter.get_total_flops()) / 2


def cut_of(module: nn.Module, shape: Shape, device: torch.device) -> Cut:
    """Return how batches of a network are cut on a device."""
    operations = gradient_operations(FlatModel(module), shape)
    return Cut.of(largest_micro_batch(module, shape, device), operations, device.type)


def largest_micro_batch(module: nn.Module, shape: Shape, device: torch.device) -> int:
    """Return how many examples at once keep every activation within LARGEST_MB."""
    sizes = [1]

    def note(part: nn.Module, inputs: object, outputs: object) -> None:
        if isinstance(outputs, Tensor):
            sizes.append(outputs.numel() // 2)

    hooks = [part.register_forward_hook(note) for part in module.modules()]
    with torch.no_grad(), global_seed(0, device):
        module(torch.zeros(2, *shape, device=device))
    for hook in hooks:
        hook.remove()
    return max(1, int(LARGEST_MB[device.type] * 1e6 / (4 * max(sizes))))
