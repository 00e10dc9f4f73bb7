"""Compiled derivatives of a network's cross-entropy: the fast twin of `losses.Eager`.

Gradient and Hessian product are traced once for each shape of batch into a graph of torch's basic
operations, and compiled by torch's Inductor, which fuses normalisation, ReLU and pooling into a few
passes over memory. Before that

- `Fusible` (fusible.py) writes convolution and group norm so that all their derivatives consist of
  fast operations;
- `simplify` removes unused work, and keeps Inductor from recomputing at every pixel what is the
  same for a whole channel.

The graph serves every network of the same structure: parameters and constants are its arguments.
"""

import importlib
import os
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel, couples_batch
from potstill.engine.fusible import Fusible
from potstill.engine.losses import Batch, Eager, OfBatch, Products, Pull
from potstill.errors import first_line, let_memory_pass
from potstill.workers import Gate, all_threads_at_once, threads

CUT = Cut(50)
aten = torch.ops.aten
COMPILER = Gate()
"""While it traces, torch refuses calls of what is compiled, in every thread."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
BROADCAST = 8
"""A tensor is kept, not recomputed, if a tensor this many times larger reads it."""
ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.expand.default,
}
VIEWS = {
    aten.view.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dims,
    aten.split_with_sizes.default,
}


class CannotCompile(Exception):
    """The reason why a network cannot be compiled, as the end of a sentence."""


def prepare_cache() -> None:
    """Make the folder in which the compiler keeps what it has compiled.

    It is in the user's cache folder, unless the environment names another.

    Torch's own default is emptied when the machine restarts. The compiler settles the folder when
    it is first imported, so this function must be called before.

    Raises:
        CannotCompile: the folder cannot be made.
    """
    folder = os.environ.setdefault(
        CACHE_VARIABLE, str(Path(platformdirs.user_cache_dir("potstill")) / "compiled")
    )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCompile(
            f"its cache folder {folder} cannot be made ({error.strerror}); set {CACHE_VARIABLE}"
        ) from error


def as_fast(inputs: Tensor) -> Tensor:
    """Return inputs in the memory format in which convolutions are fastest."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def trace(
    function: Callable[..., Any], examples: Sequence[Tensor], *, on_gpu: bool = False
) -> fx.GraphModule:
    """Trace `function` into a simplified graph of basic operations.

    Args:
        function: of tensors.
        examples: its arguments.
        on_gpu: whether layers are written as they are fast on a GPU.
    Raises:
        CannotCompile: it draws random numbers, looks at values, or holds tensors that are no
            parameter or buffer.
    """
    try:
        with Fusible(on_gpu=on_gpu):
            module = make_fx(function, tracing_mode="fake")(*examples)
    except Exception as error:  # whatever a user's network does that a trace cannot follow
        let_memory_pass(error)
        raise CannotCompile(f"the network cannot be traced ({first_line(error)})") from error
    for node in module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CannotCompile(
                "the network draws random numbers, which a compiled one would draw differently"
            )
        if node.op == "get_attr":
            raise CannotCompile("the network holds a tensor that is neither parameter nor buffer")
    return simplify(module)


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """Remove unused nodes, and keep small tensors that large ones read.

    Inductor computes cheap tensors again wherever they are read. For a channel's scale, read at
    every pixel, that costs a root and a division a pixel; as_strided makes it keep the tensor
    (measured: 4 to 8 % of a Hessian product).
    """
    graph = module.graph
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if (
            node.op != "call_function"
            or node.target in VIEWS
            or not isinstance(value, Tensor)
            or value.numel() < 2
        ):
            continue
        large = [
            user
            for user in node.users
            if user.target in ELEMENTWISE and user.meta["val"].numel() >= BROADCAST * value.numel()
        ]
        if large:
            whole = value.contiguous()
            with graph.inserting_after(node):
                kept = graph.call_function(
                    aten.as_strided.default, (node, list(whole.shape), list(whole.stride()))
                )
            for user in large:
                user.replace_input_with(node, kept)
    graph.lint()
    module.recompile()
    return module


class CompiledNetwork:
    """Compiled derivatives of the cross-entropy, for all networks of one structure.

    Args:
        model: one of these networks.
        cut: how a batch is cut into what it takes at once.
        backend: of torch.compile; "eager" runs the traced graph as it is.

    Attributes:
        compilations: how many functions were compiled, one for each kind and shape of batch.
        seconds: how long the compilations took, in seconds.
    """

    def __init__(self, model: FlatModel, cut: Cut = CUT, backend: str = "inductor"):
        self.model, self.cut, self.backend = model, cut, backend
        self.compilations, self.seconds = 0, 0.0
        self.whole = couples_batch(model.module)
        self.on_cpu = model.theta.device.type == "cpu"
        self.kernels = model.theta.device.type == "cuda"
        self.refused: set[Hashable] = set()
        """Names of functions that turned out not to compile, and are called as they are."""
        self.functions: dict[tuple[Any, ...], Callable[..., Any]] = {}
        prepare_cache()
        if self.kernels:
            importlib.import_module("potstill.engine.norm_pool_kernels")  # needs Triton

    def of(self, model: FlatModel) -> "Compiled":
        """Return the derivatives at one network of this structure."""
        return Compiled(self, tuple(model.constants.values()))

    def logits(self, theta: Tensor, inputs: Tensor, *constants: Tensor) -> Tensor:
        """Compute the network's output."""
        return self.model(theta, as_fast(inputs), self.named(constants))

    def features(self, theta: Tensor, inputs: Tensor, *constants: Tensor) -> Tensor:
        """Compute what the network's last layer reads."""
        return self.model.features(theta, as_fast(inputs), self.named(constants))

    def named(self, constants: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Name another network's constants."""
        return dict(zip(self.model.constants, constants, strict=True))

    def loss(self, constants: tuple[Tensor, ...]) -> Eager:
        """Return the mean cross-entropy, not compiled."""
        return Eager(
            lambda theta, batch, _: F.cross_entropy(
                self.logits(theta, batch.inputs, *constants), batch.targets
            )
        )

    def gradient(
        self, theta: Tensor, inputs: Tensor, targets: Tensor, *constants: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss, 0-d, and its gradient in theta."""
        return self.loss(constants).gradient(theta, Batch(inputs, targets), 0)

    def product(
        self, theta: Tensor, inputs: Tensor, targets: Tensor, cotangent: Tensor, *constants: Tensor
    ) -> Products:
        """Compute d/d(theta, inputs, targets) <grad_theta loss, cotangent>."""
        batch = Batch(inputs.detach().requires_grad_(), targets.detach().requires_grad_())
        return self.loss(constants).product(theta, batch, 0, cotangent)

    def product_in_theta(
        self, theta: Tensor, inputs: Tensor, targets: Tensor, cotangent: Tensor, *constants: Tensor
    ) -> Tensor:
        """Compute the first member of `product` alone, for frozen examples."""
        return self.loss(constants).product(theta, Batch(inputs, targets), 0, cotangent)[0]

    def product_in_batch(
        self, theta: Tensor, inputs: Tensor, targets: Tensor, cotangent: Tensor, *constants: Tensor
    ) -> OfBatch:
        """Compute the last two members of `product` alone."""
        batch = Batch(inputs.detach().requires_grad_(), targets.detach().requires_grad_())
        return self.loss(constants).batch_product(theta, batch, 0, cotangent)

    def call(self, kind: Callable[..., Any], *arguments: Tensor) -> Any:
        """Call one of the functions above, compiled at the first call with these shapes."""
        return self.keyed(kind.__name__, kind, *arguments)

    def keyed(self, name: Hashable, kind: Callable[..., Any], *arguments: Tensor) -> Any:
        """Call a function, compiled at the first call with these shapes.

        What asks for a gradient here does not there: the compiler would make a second version.

        Args:
            name: the same for the same function.
            kind: the function of tensors, some of which it may change.
            arguments: those.
        """
        arguments = tuple(tensor.detach() for tensor in arguments)
        key = (name, *((tensor.shape, tensor.dtype) for tensor in arguments))
        with torch.no_grad(), all_threads_at_once() if self.whole else nullcontext():
            if key not in self.functions:
                with COMPILER.alone():
                    if key not in self.functions:
                        return self.first_call(key, kind, arguments)
            with COMPILER.among_others():
                return self.functions[key](*arguments)

    @property
    def options(self) -> dict[str, Any]:
        """Those of the compiler.

        One call of C++ for a whole graph: between its operations other threads compute. A batch
        that cannot be cut has all threads in each of its loops.
        """
        count = threads() if self.whole else 1
        return {"cpp_wrapper": True, "cpp.threads": count} if self.on_cpu else {}

    def first_call(
        self, key: tuple[Any, ...], kind: Callable[..., Any], arguments: Sequence[Tensor]
    ) -> Any:
        """Compile a function and call it."""
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, which a user can do nothing about
            with torch.enable_grad():
                graph = trace(kind, arguments, on_gpu=self.kernels)
            options = self.options if self.backend == "inductor" else None
            function = torch.compile(
                graph, backend=self.backend, dynamic=False, fullgraph=True, options=options
            )
            try:
                result = function(*arguments)
            except Exception as error:  # the compiler or the C++ compiler behind it, in many forms
                let_memory_pass(error)
                full = "No space left" in str(error)
                raise CannotCompile(
                    "no space is left for what it writes; make room, or set TMPDIR and "
                    "TORCHINDUCTOR_CACHE_DIR"
                    if full
                    else f"the compiler fails ({type(error).__name__}: {first_line(error)})"
                ) from error
        self.functions[key] = function
        self.compilations, self.seconds = (
            self.compilations + 1,
            self.seconds + time.perf_counter() - began,
        )
        return result


@dataclass(frozen=True)
class Compiled:
    """The cross-entropy of one network by compiled derivatives."""

    network: CompiledNetwork
    constants: tuple[Tensor, ...]

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        arguments = (theta, batch.inputs, batch.targets, *self.constants)
        result: tuple[Tensor, Tensor] = self.network.call(self.network.gradient, *arguments)
        return result

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        network = self.network
        arguments = (theta, batch.inputs, batch.targets, cotangent, *self.constants)
        if not batch.asks:
            return network.call(network.product_in_theta, *arguments), None, None
        of_theta, of_inputs, of_targets = network.call(network.product, *arguments)
        return (
            of_theta,
            of_inputs if batch.inputs.requires_grad else None,
            of_targets if batch.targets.requires_grad else None,
        )

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        if not batch.asks:
            return None, None
        arguments = (theta, batch.inputs, batch.targets, cotangent, *self.constants)
        of_inputs, of_targets = self.network.call(self.network.product_in_batch, *arguments)
        return (
            of_inputs if batch.inputs.requires_grad else None,
            of_targets if batch.targets.requires_grad else None,
        )

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        grad = self.gradient(theta, batch, step)[1]
        return self.batch_product(theta, batch, step, pull(grad))

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Compute the network's output."""
        result: Tensor = self.network.call(self.network.logits, theta, inputs, *self.constants)
        return result

    def features(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Compute what the network's last layer reads."""
        result: Tensor = self.network.call(self.network.features, theta, inputs, *self.constants)
        return result
