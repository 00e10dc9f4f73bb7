"""What "auto" means for a run: resolved once, from the data, the network and the device, and stored with the run."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from potstill.compiled import CannotCompile, CompiledNetwork, missing_compiler
from potstill.config import WINDOWLESS, Config, graphs_mb
from potstill.derivatives import (
    FlatModel,
    InMicroBatches,
    couples_batch,
    cross_entropy,
    derivative_error,
    graph_bytes,
    largest_activation,
)
from potstill.devices import fast_bfloat16
from potstill.inner import Keep
from potstill.loading import RealData
from potstill.models import fresh
from potstill.models.convnet import auto_depth
from potstill.registry import InputError
from potstill.seeds import generator

AUTO_SYNTHETIC_BATCH = 100
PAPER_LR, PAPER_VALUES = 0.001, 3072
LARGEST_MB = {"cpu": 27, "mps": 250, "cuda": 1000}
"""Most that the largest activation of a micro-batch takes. On a CPU larger tensors leave the caches."""
PAYS = {"cpu": 1e13, "cuda": 1e15}
"""Floating-point operations of a run from which on compiling saves more time than it takes."""
PRODUCT_COST = 8 / 3
"""A Hessian product has eight convolutions a layer where a gradient has three."""
DERIVATIVE_TOLERANCE = 1e-3
AGREEMENT = 0.9
Factory = Callable[[], nn.Module]


def resolve_auto(config: Config, real: RealData, factory: Factory, *, mapped: bool, device: torch.device) -> Config:
    """`config` with every "auto" but `compile` replaced by what it means here; a resumed run reads these back."""
    inner, classes, ipc = config.inner, len(real.class_names), config.distilled.ipc
    if inner.classes_per_batch != "auto" and int(inner.classes_per_batch) > classes:
        raise InputError(f"classes_per_batch must be at most the number of classes, {classes}, got {inner.classes_per_batch}")
    # An image of norm 1 has pixels of scale 1 / sqrt(D), and Adam moves each by about its learning rate (paper D.1).
    outer_lr = (
        config.outer.outer_lr if config.outer.outer_lr != "auto" else PAPER_LR * (PAPER_VALUES / math.prod(real.shape)) ** 0.5
    )
    found: dict[str, Any] = {
        "storage": "mapped" if mapped else "memory",
        "preprocess": real.preprocess.kind,
        "batch_per_class": min(ipc, max(1, AUTO_SYNTHETIC_BATCH // classes)),
        "classes_per_batch": classes,
        "outer_lr": outer_lr,
        "label_lr": outer_lr,
        "real_augment": inner.augment,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if fast_bfloat16(device) else "float32",
    }
    if inner.model == "convnet":
        found["depth"] = auto_depth(real.shape)
    if inner.model == "mlp":
        found["depth"] = 2
    kind, _, rest = config.data.data.partition(":")
    if kind in ("folder", "parquet"):  # so that the run is found again from wherever it is resumed
        config = Config.from_options(config, data=f"{kind}:{Path(rest).expanduser().resolve()}")
    config = filled(config, found)
    most = max(1, int(LARGEST_MB[device.type] * 1e6 / (4 * largest_activation(fresh(factory, 0, device), real.shape))))
    synthetic = int(config.inner.batch_per_class) * int(config.inner.classes_per_batch)
    return filled(config, {"synthetic_micro_batch": even(synthetic, most), "micro_batch": even(config.outer.real_batch, most)})


def filled(config: Config, found: dict[str, Any]) -> Config:
    """`config` with those of the values whose option is "auto"."""
    flat = config.flat()
    return Config.from_options(config, **{name: value for name, value in found.items() if flat[name] == "auto"})


def even(count: int, most: int) -> int:
    """Size of micro-batches, at most `most`, that cut `count` examples as evenly as can be: few shapes, few compilations."""
    return math.ceil(count / math.ceil(count / most))


def resolve_compile(
    config: Config, factory: Factory, shape: tuple[int, int, int], classes: int, device: torch.device, say: Callable[[str], None]
) -> tuple[Config, CompiledNetwork | None]:
    """Compile the networks' derivatives if the run is to, and say why not if it is not.

    Returns:
        The configuration with `compile` on or off, and the compiled network, which has proved equal to the plain one.
    Raises:
        InputError: compile is "on" and cannot be.
    """
    wanted = config.run.compile
    if wanted == "off":
        return config, None
    on, off = (dataclasses.replace(config, run=dataclasses.replace(config.run, compile=value)) for value in ("on", "off"))
    try:
        if graphs_mb(config.run.tape) is not None:
            raise CannotCompile("--tape graphs:MB keeps the graphs of uncompiled networks")
        reason = missing_compiler(device)
        if reason:
            raise CannotCompile(reason)
        work = operations(config, factory, shape, classes, device)
        if wanted == "auto" and work < PAYS.get(device.type, math.inf):
            raise CannotCompile(f"the run is short ({work / 1e12:.1f} of {PAYS.get(device.type, math.inf) / 1e12:.0f} TFLOP)")
        say("compiling gradient and Hessian product; a second run finds them in the cache")
        return on, warmed_up(config, factory, shape, classes, device, say)
    except CannotCompile as reason:
        if wanted == "on":
            raise InputError(f"compile=on cannot be: {reason}; use --compile auto or --compile off") from reason
        say(f"not compiled: {reason}")
        return off, None


def operations(config: Config, factory: Factory, shape: tuple[int, int, int], classes: int, device: torch.device) -> float:
    """About how many floating-point operations the outer steps of a run take."""
    outer, inner = config.outer, config.inner
    model = FlatModel(fresh(factory, 0, device))
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model).gradient(model.theta, example(2, shape, classes, device), 0)
    gradient: float = counter.get_total_flops() / 2
    synthetic = int(inner.batch_per_class) * int(inner.classes_per_batch)
    window = outer.unroll if outer.method in WINDOWLESS else outer.window
    steps = outer.unroll if outer.method in ("bptt", "t-bptt") else (outer.window + outer.unroll) / 2
    unroll = synthetic * (steps + PRODUCT_COST * window) + outer.real_batch
    return outer.steps * outer.trajectories * unroll * gradient


def warmed_up(
    config: Config, factory: Factory, shape: tuple[int, int, int], classes: int, device: torch.device, say: Callable[[str], None]
) -> CompiledNetwork:
    """Derivatives compiled for a run's batches and compared with the plain ones at another network.

    Raises:
        CannotCompile: they cannot be, or the networks differ in more than their parameters and buffers.
    """
    inner, outer = config.inner, config.outer
    first, second = (FlatModel(fresh(factory, seed, device), str(config.run.precision)) for seed in (0, 1))
    synthetic, real = int(inner.batch_per_class) * int(inner.classes_per_batch), outer.real_batch
    whole = couples_batch(first.module)
    compiled = CompiledNetwork(first)
    batch = example(synthetic if whole else min(synthetic, int(inner.synthetic_micro_batch)), shape, classes, device)
    learned = (batch[0].requires_grad_(), batch[1])
    fast, plain = compiled.of(second), cross_entropy(second, lambda _: 0)
    fast.gradient(second.theta, example(real if whole else min(real, int(outer.micro_batch)), shape, classes, device), 0)
    along = fast.gradient(second.theta, batch, 0)[1]
    pairs = [
        (along, plain.gradient(second.theta, batch, 0)[1]),
        (fast.product(second.theta, learned, 0, along)[0], plain.product(second.theta, learned, 0, along)[0]),
    ]
    for found, expected in pairs:
        if not torch.cosine_similarity(found, expected, dim=0) > AGREEMENT and bool(expected.any()):
            raise CannotCompile("another network of the same factory is another function of its parameters and buffers")
    say(f"compiled {compiled.compilations} functions in {compiled.seconds:.0f} s")
    return compiled


def example(count: int, shape: tuple[int, int, int], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of random inputs and one-hot targets."""
    inputs = torch.randn(count, *shape, generator=generator(0, "example"))
    return inputs.to(device), torch.eye(classes)[torch.arange(count) % classes].to(device)


def resolve_keep(config: Config, factory: Factory, shape: tuple[int, int, int], classes: int, device: torch.device) -> Keep:
    """What the engine keeps of the window, as the option `tape` says."""
    kind, budget = config.run.tape, graphs_mb(config.run.tape)
    graphs = 0
    if budget is not None:
        model = FlatModel(fresh(factory, 0, device), str(config.run.precision))
        inner = config.inner
        batch = example(int(inner.batch_per_class) * int(inner.classes_per_batch), shape, classes, device)
        loss = InMicroBatches(cross_entropy(model, lambda _: 0), int(inner.synthetic_micro_batch))
        graphs = int(budget * 1e6 / graph_bytes(loss, model.theta, (batch[0].requires_grad_(), batch[1])))
    return Keep(
        dtype=torch.bfloat16 if kind == "bfloat16" else None,
        device=torch.device("cpu") if kind == "host" else None,
        checkpoints=kind == "sqrt",
        graphs=graphs,
    )


def check_second_derivative(name: str, factory: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int) -> None:
    """Try a Hessian product and, in float64, whether it is right, so that an unfit network fails with its name at the start.

    Raises:
        InputError: it has no second derivative, or a wrong one (a detach or a straight-through estimator).
    """
    rng = generator(0, "second derivative")
    module = copy.deepcopy(fresh(factory, 0, torch.device("cpu")))  # a user's factory may share parts between calls
    inputs = torch.randn(2, *shape, generator=rng)
    targets = torch.eye(classes)[torch.arange(2) % classes]
    single = FlatModel(copy.deepcopy(module))
    try:
        cross_entropy(single).product(single.theta, (inputs, targets), 0, single.theta)
    except (RuntimeError, NotImplementedError) as reason:
        raise InputError(
            f"model {name} cannot be differentiated twice: {reason}; distillation needs a second derivative"
        ) from reason
    try:
        error = derivative_error(FlatModel(module.double()), inputs.double(), targets.double(), rng)
    except (RuntimeError, TypeError):
        return  # the network insists on single precision, in which a difference of gradients shows nothing
    if not error < DERIVATIVE_TOLERANCE:
        raise InputError(
            f"model {name} must be differentiable throughout, its gradient changes otherwise than its second derivative says "
            f"(relative error {error:.1e}); remove what it detaches, its straight-through estimator, or an operation "
            "whose second derivative torch has wrong"
        )
