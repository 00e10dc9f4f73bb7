"""What the engine asks of a loss: its gradient and its Hessian product. Here by plain autograd; compiled.py has them fast.

A network is a function of one flat parameter vector (`FlatModel`). A loss that is a mean over examples may be taken in
micro-batches (`InMicroBatches`), which bounds the memory and not the result.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from potstill.seeds import global_seed

Batch = tuple[Tensor, ...]
"""What a loss reads at one step, usually (inputs (B, ...), targets (B, K) probabilities). In micro-batches it may come as two
such pairs, examples that ask for no gradient first."""
LARGEST_MB = {"cpu": 18, "mps": 250, "cuda": 1000}
"""Most that one activation of a micro-batch takes. On a CPU larger ones leave the caches."""


class FlatModel:
    """A module as a function of one flat parameter vector.

    The module stays in training mode, but batch norm neither reads nor writes running statistics: inside an unroll it
    normalises by the batch, so that a replayed step repeats exactly. Parameters that do not require a gradient, and
    buffers, are `constants`: they keep the module's own values.

    Args:
        module: the network; it is changed as said above.
        precision: "float32" computes in the module's own type, "bfloat16" under autocast. Parameters, norms' statistics
            and outputs keep their type either way.
    """

    def __init__(self, module: nn.Module, precision: str = "float32"):
        self.module, self.precision = module.train(), precision
        for part in module.modules():
            if isinstance(part, _NormBase):
                part.track_running_stats = False
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        self.theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
        self.constants = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
        self.constants |= {name: buffer.detach() for name, buffer in module.named_buffers()}

    def __call__(self, theta: Tensor, inputs: Tensor, constants: dict[str, Tensor] | None = None) -> Tensor:
        """The module's output on `inputs` with the parameters `theta` and, if given, the constants of another network."""
        parts = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts} | (self.constants if constants is None else constants)
        with autocast(self.precision, inputs.device):
            outputs: Tensor = torch.func.functional_call(self.module, parameters, (inputs,))
        return outputs.to(theta.dtype)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a network computes in this precision."""
    # Without the cache: it would keep one network's bfloat16 parameters for the next.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def couples_batch(module: nn.Module) -> bool:
    """Whether an example's output depends on the rest of its batch: batch norm in training mode."""
    return any(isinstance(part, _NormBase) and not isinstance(part, _InstanceNorm) for part in module.modules())


def largest_micro_batch(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """How many examples at once keep every activation within LARGEST_MB."""
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


def even(count: int, most: int) -> int:
    """Size of micro-batches, at most `most`, that cut `count` examples as evenly as can be: few shapes, few compilations."""
    return math.ceil(count / math.ceil(count / most))


class Differentiable(Protocol):
    """A loss (theta, batch, step) -> scalar by its first and second derivatives.

    Both give the same for the same arguments, or a replayed step is not exact.
    """

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The loss, 0-d, and its gradient in theta."""
        ...

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """d/d(theta, batch) <grad_theta loss, cotangent>; None for members of the batch that ask for no gradient."""
        ...


Pullback = Callable[[Tensor], tuple[Tensor, list[Tensor | None]]]
"""A step's Hessian product as a function of the cotangent; it holds the step's graph, and can be called once."""


class Linearisable(Differentiable, Protocol):
    """A loss whose graph can be kept, so that the product does not take the gradient again."""

    def linearised(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Pullback]:
        """The gradient, and what `product` would give for a cotangent."""
        ...


@dataclass(frozen=True)
class Eager:
    """A loss with its derivatives by autograd: reverse mode over reverse mode."""

    loss: Callable[[Tensor, Batch, int], Tensor]

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        loss = self.loss(theta, batch, step)
        return loss.detach(), torch.autograd.grad(loss, theta)[0]

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        return self.linearised(theta, batch, step)[1](cotangent)

    def linearised(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Pullback]:
        theta = theta.detach().requires_grad_()
        cut = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in batch)
        wanted = [theta, *(tensor for tensor in cut if tensor.requires_grad)]
        (grad,) = torch.autograd.grad(self.loss(theta, cut, step), theta, create_graph=True)

        def pullback(cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            if not grad.requires_grad:  # a loss that is linear in theta and does not mix it with the batch
                return torch.zeros_like(theta), [None] * len(cut)
            of_theta, *rest = torch.autograd.grad(grad, wanted, cotangent, allow_unused=True, materialize_grads=True)
            found = iter(rest)
            return of_theta, [next(found) if tensor.requires_grad else None for tensor in cut]

        return grad.detach(), pullback


@dataclass(frozen=True)
class ExactStart:
    """A loss in rounded arithmetic but for the first inner step, which is taken in full precision.

    Adam's first step is lr g / (|g| + eps), all but the sign of g. Its derivative in g is a peak
    lr / eps high and eps = 1e-8 wide, and what a window that begins there sends back hangs on the
    few gradients that happen to lie within it. bfloat16 moves gradients by far more than that,
    float32 by less. Later steps divide by what the first ones left, and the way back is linear in
    what it is given: there rounding does no such harm (benchmarks/precision_sources.py).

    Args:
        rounded: the loss at all steps after the first.
        full: the same loss in full precision.
    """

    rounded: Differentiable
    full: Differentiable

    def at(self, step: int) -> Differentiable:
        """The loss at a step.

        Its product is of the same kind as its gradient: else dropout would draw them two masks.
        """
        return self.rounded if step else self.full

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        return self.at(step).gradient(theta, batch, step)

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        return self.at(step).product(theta, batch, step, cotangent)

    def linearised(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Pullback]:
        loss: Linearisable = self.at(step)  # type: ignore[assignment]
        return loss.linearised(theta, batch, step)


@dataclass(frozen=True)
class InMicroBatches:
    """A loss that is a mean over examples, taken `size` examples at a time: less memory, the same result.

    Args:
        whole: the loss, linear in the targets.
        size: most examples at once.
        filled: fill the last micro-batch up to `size` with examples whose targets are 0, which add nothing: all have one
            shape, and a compiled loss is compiled once.
    """

    whole: Differentiable
    size: int
    filled: bool = False

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """(micro-batch, weight of its mean in the mean of all); those of the first of two pairs ask for no gradient."""
        count = sum(map(len, batch[::2]))
        for start in range(0, count, self.size):
            inputs, targets = (between(batch[kind::2], start, start + self.size) for kind in (0, 1))
            if self.filled and (missing := self.size - len(inputs)):
                inputs = torch.cat([inputs, inputs[:1].detach().expand(missing, *inputs.shape[1:])])
                targets = torch.cat([targets, targets.new_zeros(missing, *targets.shape[1:])])
            yield (inputs, targets), len(inputs) / count

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        loss, grad = theta.new_zeros(()), torch.zeros_like(theta)
        for part, share in self.parts(batch):
            more, of_theta = self.whole.gradient(theta, part, step)
            loss += share * more
            grad.add_(of_theta, alpha=share)
        return loss, grad

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        found = (self.whole.product(theta, part, step, share * cotangent) for part, share in self.parts(batch))
        return self.joined(found, theta, batch)

    def linearised(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Pullback]:
        whole: Linearisable = self.whole  # type: ignore[assignment]
        grad, kept = torch.zeros_like(theta), []
        for part, share in self.parts(batch):
            of_theta, pullback = whole.linearised(theta, part, step)
            grad.add_(of_theta, alpha=share)
            kept.append((pullback, share))
        return grad, lambda cotangent: self.joined((pullback(share * cotangent) for pullback, share in kept), theta, batch)

    def joined(
        self, products: Iterable[tuple[Tensor, list[Tensor | None]]], theta: Tensor, batch: Batch
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The Hessian products of the micro-batches as one: summed in theta, side by side in the batch."""
        total, rows = torch.zeros_like(theta), []
        for of_theta, of_part in products:
            total += of_theta
            rows.append(of_part)
        lead, count = sum(map(len, batch[:-2:2])), sum(map(len, batch[::2]))
        before = lead // self.size * self.size  # rows of micro-batches that ask for nothing
        found: list[Tensor | None] = [None] * (len(batch) - 2)
        for column in zip(*rows, strict=True):
            there = [of for of in column if of is not None]
            found.append(torch.cat(there)[lead - before : count - before] if there else None)
        return total, found


def between(tensors: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of tensors that lie one after the other."""
    found, first = [], 0
    for tensor in tensors:
        piece = tensor[max(0, start - first) : max(0, stop - first)]
        first += len(tensor)
        if len(piece):
            found.append(piece)
    return found[0] if len(found) == 1 else torch.cat(found)


def cross_entropy(model: FlatModel, seed: Callable[[int], int] | None = None) -> Eager:
    """The mean cross-entropy of the network on a batch (inputs, targets).

    Args:
        model: the network.
        seed: step -> the seed of its dropout; None where it has none.
    """

    def loss(theta: Tensor, batch: Batch, step: int) -> Tensor:
        if seed is None:
            return F.cross_entropy(model(theta, batch[0]), batch[1])
        with global_seed(seed(step), theta.device):
            return F.cross_entropy(model(theta, batch[0]), batch[1])

    return Eager(loss)


def derivative_error(model: FlatModel, inputs: Tensor, targets: Tensor, rng: torch.Generator) -> float:
    """How far the model's second derivative is from how its gradient really changes, relative, in float64.

    It is rounding for every differentiable function. Behind a detach or a straight-through estimator the gradient changes
    in ways that autograd does not see, so that a meta-gradient through it would have no meaning. (The second derivative
    that autograd gives stays symmetric there, since what is detached counts as constant: symmetry would not show it.)
    """
    loss = cross_entropy(model, seed=lambda _: 0)  # the same dropout every time

    errors = []
    for _ in range(3):  # the best of three: a step across a ReLU's kink spoils a difference, and is rare at this length
        along = torch.randn(model.theta.shape, generator=rng, dtype=model.theta.dtype)
        along *= 1e-7 / along.norm()
        up, down = (loss.gradient(model.theta + sign * along, (inputs, targets), 0)[1] for sign in (1, -1))
        expected = (up - down) / 2
        found = loss.product(model.theta, (inputs, targets), 0, along)[0]
        errors.append(float((found - expected).norm() / expected.norm().clamp_min(1e-300)))
    return min(errors)


def graph_bytes(loss: Linearisable, theta: Tensor, batch: Batch) -> int:
    """How many bytes the graph of one linearised step keeps."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = loss.linearised(theta, batch, 0)
    del kept
    return sum(storages.values())
