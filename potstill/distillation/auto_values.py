"""What "auto" means for a run.

It is resolved once, from data, network and device, and stored with the run.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.config.config import Given, Resolved, changed, resolved
from potstill.config.sections import READ_FROM_PATHS, is_weights_file
from potstill.config.slots import SLOTS
from potstill.data.mirrored import mirrored_alike
from potstill.data.preparation import RealData
from potstill.devices import auto_precision
from potstill.distillation.boosting import stage_sizes
from potstill.distillation.forecasts import forecast, plain_seconds
from potstill.distillation.option_checks import check_batch
from potstill.distilled.sets import DistilledSet
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel, couples_batch, cut_of, gradient_operations
from potstill.engine.when_to_compile import (
    FORWARD_COST,
    PRODUCT_COST,
    NetworkFamily,
    compiled_for_training,
    compiled_if_worth,
    compiled_networks,
)
from potstill.errors import InputError
from potstill.methods.base import Method, Needs, Sizes
from potstill.models import fresh
from potstill.parameterisations.base import Parameterisation
from potstill.progress import Listener
from potstill.registry import METHODS
from potstill.workers import threads

AUTO_SYNTHETIC_BATCH, AUTO_STEPS = 100, 400
PAPER_LR, PAPER_VALUES = 0.001, 3072
FALLING, CONSTANT = 2.5, "constant"
"""How many times higher an outer rate that falls to 0 begins."""
NORM_IMAGES = 1000


def resolve_auto(
    config: Given,
    real: RealData,
    one: Parameterisation,
    factory: Callable[[], nn.Module],
    *,
    mapped: bool,
    device: torch.device,
    first_norm: float = 1.0,
) -> tuple[Resolved, Sizes]:
    """Replace every "auto" by its value for this run, except `compile`, which becomes "off".

    Args:
        config: as the user gave it.
        real: the data, preprocessed.
        one: the parameterisation of each block.
        factory: makes a fresh network.
        mapped: whether the data are memory-mapped.
        device: where the run computes.
        first_norm: the norm of an example that the run starts from.
    Returns:
        The configuration, which a resumed run reads back, and how large the run is.
    Raises:
        InputError: more classes or images in a synthetic batch than there are; a part leaves an
            "auto".
    """
    classes, blocks = len(real.class_names), config.distilled.boost_blocks
    check_batch(config, one, classes)
    # An image of norm 1 has pixels of scale 1 / sqrt(D), and Adam moves each by about its rate
    # (D.1).
    of_norm_1 = PAPER_LR * (PAPER_VALUES / math.prod(real.shape)) ** 0.5
    # The paper's rate is for 50,000 steps that are all alike; one that falls may begin higher.
    if config.outer.outer_schedule != CONSTANT:
        of_norm_1 *= FALLING
    outer_lr = config.outer.outer_lr
    given = None if outer_lr == "auto" else float(outer_lr)
    # Real first images have another norm; of the numbers that others are made of only some follow
    # it.
    pixels_only = set(one.speeds.values()) == {1.0}
    norm = first_norm if pixels_only else 1.0
    model = FlatModel(fresh(factory, 0, device))
    operations = gradient_operations(model, real.shape)
    cut = cut_of(model.module, real.shape, device)
    known: dict[str, Any] = {
        "steps": max(1, AUTO_STEPS // blocks),
        "storage": "mapped" if mapped else "memory",
        "bit_depth": real.bit_depth or "auto",
        "batch_per_class": min(blocks * one.per_class, max(1, AUTO_SYNTHETIC_BATCH // classes)),
        "classes_per_batch": classes,
        "outer_lr": given or of_norm_1 * norm,
        "label_lr": given or of_norm_1,
        "augment": auto_augmentation(config, real),
        "micro_batch": cut.most,
        "device": str(device),
        "threads": threads(),
        "precision": auto_precision(device, operations),
        "compile": "off",
    }
    flat = config.flat()
    known = {name: value for name, value in known.items() if flat.get(name) == "auto"}
    source, rest = config.data.source
    # So that the data are found from wherever the run is resumed.
    if source in READ_FROM_PATHS:
        known["data"] = f"{source}:{Path(rest).expanduser().resolve()}"
    if is_weights_file(config.data.weights):
        known["weights"] = str(Path(config.data.weights).expanduser().resolve())
    known_sizes = changed(config, **known)
    coupled = couples_batch(fresh(factory, 0, torch.device("cpu")))
    sizes = sizes_of(known_sizes, real, one, cut.least, coupled)
    options: dict[str, Any] = {}
    of_run = known_sizes.flat()  # what has no effect with the method is not in it
    for slot in SLOTS:
        chosen = getattr(known_sizes, slot.table)
        if slot.choice == "param":
            chosen = chosen.filled_from(one)
        chosen = chosen.resolved(sizes)
        for name, item, _ in slot.options_of(chosen):
            if name in of_run:
                options[name] = getattr(chosen.options, item.name)
    return resolved(known_sizes, **options), sizes


def auto_augmentation(config: Given, real: RealData) -> tuple[str, ...]:
    """Return what the method does to images unless it is told, by whether they may be mirrored."""
    needs: Needs = METHODS[config.method.name].needs
    if config.inner.augment != "auto" or real.kind != "image":
        return ()
    if needs.mirrored and mirrored_alike(real.train, len(real.class_names)):
        return needs.mirrored
    return needs.augment


def sizes_of(
    config: Given, real: RealData, one: Parameterisation, least: int, coupled: bool
) -> Sizes:
    """Return how large a run is, once its own options are resolved.

    Args:
        config: the options.
        real: the data, preprocessed.
        one: the parameterisation of each block.
        least: examples that are worth a part of their own, see `Cut`.
        coupled: whether the network couples the examples of its batch.
    """
    inner, outer = config.inner, config.outer
    per_class, per_batch = int(inner.batch_per_class), int(inner.classes_per_batch)
    stages = stage_sizes(one, config.distilled.boost_blocks)
    batches = tuple(min(size, per_class) * per_batch for size in stages)
    cut = Cut(int(outer.micro_batch), least)
    return Sizes(
        shape=real.shape,
        classes=len(real.class_names),
        stages=stages,
        batches=batches,
        cut=cut,
        real_batch=outer.real_batch,
        real_micro_batch=cut.size(outer.real_batch),
        steps=int(outer.steps),
        coupled=coupled,
        sharing=one.sharing,
    )


def resolve_compile(
    config: Resolved,
    wanted: str,
    method: type[Method],
    sizes: Sizes,
    networks: NetworkFamily,
    listener: Listener,
) -> tuple[Resolved, CompiledNetwork | None]:
    """Compile the derivatives that a method uses, if it is asked for or saves time.

    Args:
        config: of the run.
        wanted: "on", "off" or "auto".
        method: the run's.
        sizes: of the run.
        networks: of the run.
        listener: is told what is done and how long the run would take without.
    Returns:
        `config` with `compile` on or off, and the compiled derivatives if it is on.
    Raises:
        InputError: it is "on" and cannot be, or has no effect on the method.
    """
    work = method.work(config.method.options, sizes)
    if not work.functions:
        if wanted == "on":
            raise InputError(
                f"compile=on has no effect with method {config.method.name}, which compiles "
                "nothing here; leave it at auto"
            )
        return config, None

    def operations() -> float:
        taken = work.gradients + PRODUCT_COST * work.products + FORWARD_COST * work.features
        return taken * networks.operations()

    def build() -> CompiledNetwork:
        if not config.outer.time_budget:
            forecast(plain_seconds(work, networks), config.all_steps, listener.say)
        return compiled_networks(
            networks,
            work.gradient_batches,
            work.product_batches,
            [],
            listener.say,
            listener.work,
            work.pulled_batches,
            work.feature_batches,
        )

    compiled = compiled_if_worth(
        wanted, networks.device, operations, build, listener.say, functions=work.functions
    )
    return resolved(config, compile="on" if compiled else "off"), compiled


def tested_networks(
    networks: NetworkFamily, factory: Callable[[], nn.Module], batch: int, listener: Listener
) -> NetworkFamily:
    """Return the networks that a set is for, compiled if those that it is distilled with are.

    Args:
        networks: what the set is distilled with.
        factory: of what it is for.
        batch: synthetic examples in a training step.
        listener: is told what is done.
    """
    if factory is networks.factory:
        return networks
    family = replace(networks, factory=factory, compiled=None)
    if networks.compiled is None:
        return family
    # Whatever is validated trains hundreds of steps: compiling pays where it does for the run.
    return family.with_compiled(
        compiled_for_training(family, batch, "auto", lambda: math.inf, listener.say, listener.work)
    )


def first_norm(config: Given, real: RealData, start: DistilledSet | None) -> float:
    """Return the norm of an example that a run starts from, as a network reads it.

    It is the root mean square over the set to start from, or over some train examples; 1 of noise,
    or if all are 0.
    """
    if start:
        examples = start.images
    elif config.distilled.init == "normal":
        return math.sqrt(math.prod(real.shape))
    elif config.distilled.init == "real":
        count = len(real.train)
        # Evenly spaced, so that all classes are in it if they are sorted.
        indices = torch.linspace(0, count - 1, min(NORM_IMAGES, count)).long()
        examples, _ = real.train.take(indices)
    else:
        return 1.0
    return float(examples.flatten(1).square().sum(1).mean().sqrt()) or 1.0
