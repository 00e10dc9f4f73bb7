"""What "auto" means for a run: resolved once, from the data, the network and the device, and stored with the run."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.boosting import stage_micro_batch
from potstill.compilation import PRODUCT_COST, Networks, compiled_if_worth
from potstill.compiled import CompiledNetwork
from potstill.config import Config, graphs_mb
from potstill.derivatives import (
    FlatModel,
    InMicroBatches,
    couples_batch,
    cross_entropy,
    derivative_error,
    even,
    graph_bytes,
    largest_micro_batch,
)
from potstill.devices import auto_precision
from potstill.inner import Keep
from potstill.loading import RealData
from potstill.models import default_width, fresh
from potstill.models.convnet import auto_depth
from potstill.parameterisations.base import Parameterisation, block_parameterisation
from potstill.registry import WINDOWS, InputError
from potstill.seeds import generator
from potstill.windows import WindowSampler, autos

AUTO_SYNTHETIC_BATCH, AUTO_STEPS = 100, 400
PAPER_LR, PAPER_VALUES = 0.001, 3072
DERIVATIVE_TOLERANCE = 1e-3
SAMPLED_DRAWS = 100
NORM_IMAGES = 1000


def resolve_auto(
    config: Config,
    real: RealData,
    one: Parameterisation,
    factory: Callable[[], nn.Module],
    *,
    mapped: bool,
    device: torch.device,
) -> Config:
    """`config` with every "auto" but `compile` replaced by what it means here; a resumed run reads these back.

    Args:
        config: as the user gave it.
        real: the data, preprocessed.
        one: the parameterisation of each block.
        factory: makes a fresh network.
        mapped: whether the data are memory-mapped.
        device: where the run computes.
    """
    inner, classes, blocks = config.inner, len(real.class_names), config.distilled.boost_blocks
    if inner.classes_per_batch != "auto" and int(inner.classes_per_batch) > classes:
        raise InputError(f"classes_per_batch must be at most the number of classes, {classes}, got {inner.classes_per_batch}")
    # An image of norm 1 has pixels of scale 1 / sqrt(D), and Adam moves each by about its learning rate (paper D.1).
    of_norm_1 = PAPER_LR * (PAPER_VALUES / math.prod(real.shape)) ** 0.5
    given = None if config.outer.outer_lr == "auto" else float(config.outer.outer_lr)
    # Real first images have another norm; of the numbers that others are made from only some would follow it.
    pixels_only = set(one.speeds.values()) == {1.0}
    start = typical_norm(real) if config.distilled.init == "real" and pixels_only else 1.0
    found: dict[str, Any] = {
        "block_ipc": config.distilled.ipc_of_block,
        "bases": getattr(one, "bases", 0),  # the others have none
        "steps": max(1, AUTO_STEPS // blocks),
        "storage": "mapped" if mapped else "memory",
        "preprocess": real.preprocess.kind,
        "batch_per_class": min(blocks * one.per_class, max(1, AUTO_SYNTHETIC_BATCH // classes)),
        "classes_per_batch": classes,
        "outer_lr": given or of_norm_1 * start,
        "label_lr": given or of_norm_1,
        "real_augment": inner.augment,
        "width": default_width(inner.model),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": auto_precision(device),
    }
    if inner.model == "convnet":
        found["depth"] = auto_depth(real.shape)
    if inner.model == "mlp":
        found["depth"] = 2
    kind, _, rest = config.data.data.partition(":")
    if kind in ("folder", "parquet"):  # so that the run is found again from wherever it is resumed
        config = Config.from_options(config, data=f"{kind}:{Path(rest).expanduser().resolve()}")
    config = filled(config, found)
    config = filled(config, autos(config))
    most = largest_micro_batch(fresh(factory, 0, device), real.shape, device)
    synthetic = int(config.inner.batch_per_class) * int(config.inner.classes_per_batch)
    config = filled(config, {"synthetic_micro_batch": even(synthetic, most), "micro_batch": even(config.outer.real_batch, most)})
    sizes = {
        "synthetic_micro_batch": min(synthetic, int(config.inner.synthetic_micro_batch)),
        "micro_batch": min(config.outer.real_batch, int(config.outer.micro_batch)),
    }
    return Config.from_options(config, **sizes)


def check_parameterisation(config: Config, shape: tuple[int, int, int], classes: int) -> Parameterisation:
    """That of each block; an InputError if the budget, its options or the batch do not fit."""
    one, batch = block_parameterisation(config.distilled, shape, classes), config.inner.batch_per_class
    per_class = one.per_class * config.distilled.boost_blocks
    if batch != "auto" and int(batch) > per_class:
        raise InputError(f"batch_per_class must be at most the {per_class} images of each class, got {batch}; leave it at auto")
    return one


def filled(config: Config, found: dict[str, Any]) -> Config:
    """`config` with those of the values whose option is "auto"."""
    flat = config.flat()
    return Config.from_options(config, **{name: value for name, value in found.items() if flat[name] == "auto"})


def resolve_compile(
    config: Config, networks: Networks, stages: Sequence[int], say: Callable[[str], None]
) -> tuple[Config, CompiledNetwork | None]:
    """`config` with `compile` on or off, and the compiled derivatives if it is on.

    Args:
        config: without other "auto".
        networks: the run's.
        stages: examples of each class of the set in each stage.
        say: takes a sentence that the user should see.
    Raises:
        InputError: compile is "on" and cannot be.
    """
    inner, outer = config.inner, config.outer
    synthetic = int(inner.batch_per_class) * int(inner.classes_per_batch)

    def work() -> float:
        burn_in, window = mean_window(WINDOWS[outer.method].of(config), int(outer.steps))
        images = sum(min(size, int(inner.batch_per_class)) * int(inner.classes_per_batch) for size in stages)
        unrolls = images * (burn_in + window + PRODUCT_COST * window) + len(stages) * outer.real_batch
        return int(outer.steps) * outer.trajectories * unrolls * networks.operations()

    def build() -> CompiledNetwork:
        whole = couples_batch(networks.model(0).module)
        share = -(-outer.real_batch // outer.trajectories) if outer.split_real_batch else outer.real_batch
        ours, real = (synthetic, share) if whole else (int(inner.synthetic_micro_batch), int(outer.micro_batch))
        return networks.compiled(sorted({ours, real}), [ours], [], say)

    graphs = graphs_mb(config.run.tape) is not None
    obstacle = "--tape graphs:MB keeps the graphs of uncompiled networks" if graphs else None
    functions = 1 + 2 * len({stage_micro_batch(config, size, compiled=True) for size in stages})  # one for the real batch
    compiled = compiled_if_worth(config.run.compile, networks.device, work, build, say, obstacle, functions)
    run = dataclasses.replace(config.run, compile="on" if compiled else "off")
    return dataclasses.replace(config, run=run), compiled


def mean_window(sampler: WindowSampler, steps: int) -> tuple[float, float]:
    """Mean (burn_in, window) of some outer steps of a run; of a sampler with a state, as it begins."""
    chosen = range(0, steps, -(-steps // SAMPLED_DRAWS))
    drawn = [sampler.draw(sampler.init(), generator(0, "mean window", step), step) for step in chosen]
    return sum(burn_in for burn_in, _ in drawn) / len(drawn), sum(window for _, window in drawn) / len(drawn)


def typical_norm(real: RealData) -> float:
    """The root mean square of the norms of some train images, as the network reads them; 1 if all are 0."""
    count = len(real.train)
    images, _ = real.train.take(
        torch.linspace(0, count - 1, min(NORM_IMAGES, count)).long()
    )  # of all classes, where they are sorted
    return float(images.flatten(1).square().sum(1).mean().sqrt()) or 1.0


def resolve_keep(config: Config, networks: Networks) -> Keep:
    """What the engine keeps of the window, as the option `tape` says."""
    kind, budget, inner = config.run.tape, graphs_mb(config.run.tape), config.inner
    graphs = 0
    if budget is not None:
        model = networks.model(0)
        inputs, targets = networks.batch(int(inner.batch_per_class) * int(inner.classes_per_batch))
        loss = InMicroBatches(cross_entropy(model, lambda _: 0), int(inner.synthetic_micro_batch))
        graphs = int(budget * 1e6 / graph_bytes(loss, model.theta, (inputs.requires_grad_(), targets)))
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
    except RuntimeError as reason:  # NotImplementedError is one
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
