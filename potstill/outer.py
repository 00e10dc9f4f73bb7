"""The only outer loop: estimate the meta-gradient, clip it, step, validate, keep the best, save."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from potstill.devices import peak_memory_mb
from potstill.inner import Adam
from potstill.methods.base import Method, MethodState
from potstill.metrics import Figure, StepRecord
from potstill.registry import InputError
from potstill.sections import OuterConfig

CLIP_DECAY = 0.9
MOST_SKIPPED = 20
OUTER_ADAM = Adam()


class Interrupted(Exception):
    """The user asked to stop; the state after `step` outer steps is saved."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after outer step {step}")
        self.step = step


@dataclass(frozen=True)
class Rule:
    """How the outer optimiser treats a leaf.

    Args:
        lr: its learning rate.
        clipped: whether its gradient counts in the norm that is clipped, and is clipped.
        least: its values stay at or above this.
    """

    lr: float
    clipped: bool = False
    least: float | None = None


@dataclass(frozen=True)
class Best:
    """The best set so far, by validation accuracy."""

    step: int
    accuracy: float
    leaves: Mapping[str, Tensor]


@dataclass(frozen=True)
class OuterState:
    """All that the loop carries from step to step; a checkpoint holds just this.

    Args:
        leaves: what is learned.
        moments: Adam's two moments of each leaf.
        step: outer steps done.
        updates: of those, the ones that changed the set; the others' meta-gradient was not finite.
        skipped_in_a_row: non-finite ones just before.
        clip_average: moving average of the norm over what images are made of; None before the first.
        method: the method's own state.
        best: the best set so far; None before the first validation.
        stage: which block of a boosted set is distilled; the loop runs anew for each.
        earlier: leaves of earlier blocks that stay as they are; the loop only carries them.
        hardness: scores of the real examples; None before the first scoring.
    """

    leaves: Mapping[str, Tensor]
    moments: Mapping[str, tuple[Tensor, Tensor]]
    method: MethodState
    step: int = 0
    updates: int = 0
    skipped_in_a_row: int = 0
    clip_average: float | None = None
    best: Best | None = None
    stage: int = 0
    earlier: Mapping[str, Tensor] = field(default_factory=dict)
    hardness: Tensor | None = None

    @classmethod
    def start(
        cls, leaves: Mapping[str, Tensor], method: MethodState, stage: int = 0, earlier: Mapping[str, Tensor] | None = None
    ) -> "OuterState":
        """The state before the first step."""
        kept = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        moments = {name: (torch.zeros_like(leaf), torch.zeros_like(leaf)) for name, leaf in kept.items()}
        return cls(kept, moments, method, stage=stage, earlier=earlier or {})


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; every one is optional.

    Args:
        validate: leaves -> accuracy; called every `validate_every` steps and after the last.
        save: keeps a state; called every `checkpoint_every` steps, after the last and at an interruption.
        log: takes one record a step.
        stop: whether the user asked to stop.
        refresh: state -> the state and the method for the next step, where the real examples are to be scored anew; else None.
    """

    validate: Callable[[Mapping[str, Tensor]], Figure] | None = None
    save: Callable[[OuterState], None] = field(default=lambda state: None)
    log: Callable[[StepRecord], None] = field(default=lambda record: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    refresh: Callable[[OuterState], tuple[OuterState, Method] | None] = field(default=lambda state: None)


def optimise(
    method: Method, config: OuterConfig, rules: Mapping[str, Rule], state: OuterState, device: torch.device, hooks: Hooks
) -> OuterState:
    """Run the outer loop from `state` to `config.steps`, with a rule for every leaf.

    Raises:
        InputError: the meta-gradient was not finite 20 times in a row.
        Interrupted: `hooks.stop` said so; the state is saved.
    """
    steps = int(config.steps)
    while state.step < steps:
        began = time.perf_counter()
        refreshed = hooks.refresh(state)
        scored = time.perf_counter()
        state, method = refreshed or (state, method)
        state, record = outer_step(method, config, rules, state)
        seconds, memory_mb = round(time.perf_counter() - scored, 4), round(peak_memory_mb(device), 1)
        record = replace(record, seconds=seconds, memory_mb=memory_mb)
        if refreshed:
            record = replace(record, hardness_seconds=round(scored - began, 4))
        last = state.step == steps
        if hooks.validate and (last or state.step % config.validate_every == 0):
            figure = hooks.validate(state.leaves)
            record = replace(record, validation=figure)
            if state.best is None or figure.mean > state.best.accuracy:
                state = replace(state, best=Best(state.step, figure.mean, state.leaves))
        hooks.log(record)
        stopping = hooks.stop() and not last
        if last or stopping or state.step % config.checkpoint_every == 0:
            hooks.save(state)
        if stopping:
            raise Interrupted(state.step)
    return state


def outer_step(method: Method, config: OuterConfig, rules: Mapping[str, Rule], state: OuterState) -> tuple[OuterState, StepRecord]:
    """One outer step: the state after it and its record for the log, which does not know the time and the memory yet."""
    estimate = method.estimate(state.leaves, state.method, state.step)
    norm = math.hypot(*(float(grad.norm()) for name, grad in estimate.grads.items() if rules[name].clipped))
    finite = all(bool(grad.isfinite().all()) for grad in estimate.grads.values()) and math.isfinite(estimate.loss)
    record = StepRecord(
        state.step + 1, finite_or_none(estimate.loss), finite_or_none(norm), clipped=False, skipped=not finite, seconds=0.0,
        memory_mb=0.0, decode_seconds=estimate.info.get("decode_seconds"),
        info={name: finite_or_none(value) for name, value in estimate.info.items() if name != "decode_seconds"},
    )  # fmt: skip
    if not finite:
        skipped = state.skipped_in_a_row + 1
        if skipped >= MOST_SKIPPED:
            raise InputError(
                f"the meta-gradient was not finite in {MOST_SKIPPED} outer steps in a row, up to step {state.step + 1}; "
                "lower --inner-lr, --unroll or --window"
            )
        return replace(state, step=state.step + 1, skipped_in_a_row=skipped), record
    average, factor = rescale(norm, state.clip_average, config.clip)
    record = replace(record, clipped=factor < 1 and config.clip != "unit")
    leaves, moments = {}, {}
    for name, leaf in state.leaves.items():
        rule = rules[name]
        hyper = {"lr": torch.tensor(float(rule.lr), device=leaf.device)}
        grad = estimate.grads[name] * (factor if rule.clipped else 1)
        leaf, *rest = OUTER_ADAM.step((leaf, *state.moments[name]), grad, hyper, state.updates)
        leaves[name] = leaf if rule.least is None else leaf.clamp_min(rule.least)
        moments[name] = (rest[0], rest[1])
    after = replace(
        state, leaves=leaves, moments=moments, method=estimate.state, step=state.step + 1, updates=state.updates + 1,
        skipped_in_a_row=0, clip_average=average,
    )  # fmt: skip
    return after, record


def finite_or_none(value: Any) -> Any:
    """Return `value`; None if it is a float that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rescale(norm: float, average: float | None, limit: float | str) -> tuple[float, float]:
    """Clipping by a moving average of the norm, or norm 1.

    Args:
        norm: of the raw meta-gradient.
        average: before this step; None at the first.
        limit: the norm may be this times the new average; 0: no limit; "unit": it becomes 1.
    Returns:
        (the new average, the factor to multiply the meta-gradient with).
    Source: paper D.4 (decay 0.9, twice or 1.05 times the average, or norm 1); as in the released code, the raw norm enters the
    average first.
    """
    average = norm if average is None else CLIP_DECAY * average + (1 - CLIP_DECAY) * norm
    if isinstance(limit, str):
        return average, 1 / norm if norm > 0 else 1.0
    if limit == 0 or norm <= limit * average:
        return average, 1.0
    return average, limit * average / norm
