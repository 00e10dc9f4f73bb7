"""The only outer loop: estimate the gradient, clip it, step, validate, keep the best, save."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.devices import peak_memory_mb
from potstill.engine.optimizers import Adam, Optimizer
from potstill.errors import InputError
from potstill.methods.base import Estimate, State
from potstill.records.metrics import Figure, StepRecord

CLIP_DECAY = 0.9
MOST_SKIPPED = 20


class Interrupted(Exception):
    """The user asked to stop; the state after `step` outer steps is saved."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after outer step {step}")
        self.step = step


class Estimator(Protocol):
    """What the loop calls: the gradient in the leaves of a run."""

    remedy: str
    """What to change when its gradient is not finite."""

    def estimate(self, leaves: Mapping[str, Tensor], state: State, step: int) -> Estimate:
        """Estimate the gradient in every leaf."""
        ...


@dataclass(frozen=True)
class Rule:
    """How the outer optimiser treats a leaf.

    Args:
        lr: its learning rate.
        clipped: whether its gradient is clipped and counts in the norm that decides on clipping.
        least: lower bound of its values; None: no bound.
        bounds: least and greatest values, which broadcast to it; None: no bounds.
    """

    lr: float
    clipped: bool = False
    least: float | None = None
    bounds: tuple[Tensor, Tensor] | None = None

    def bounded(self, leaf: Tensor) -> Tensor:
        """Return the nearest values within the bounds."""
        if self.bounds:
            leaf = leaf.clamp(*self.bounds)
        return leaf if self.least is None else leaf.clamp_min(self.least)


@dataclass(frozen=True)
class Schedule:
    """How many steps the loop takes, and with what optimiser.

    Args:
        steps: outer steps.
        optimizer: updates every leaf, at its rule's rate.
        clip: see `rescale`.
        average: decay of a running average of leaves, see `OuterState.averaged`; 0: none is kept.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
    """

    steps: int
    optimizer: Optimizer = field(default_factory=Adam)
    clip: float | str = 0.0
    validate_every: int = 100
    checkpoint_every: int = 100
    average: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best set so far by validation accuracy; `leaves` hold the method's learnables too.

    They are the averaged ones where there is an average.
    """

    step: int
    accuracy: float
    leaves: Mapping[str, Tensor]


@dataclass(frozen=True)
class OuterState:
    """Everything that the loop carries from step to step; a checkpoint holds exactly this.

    Args:
        leaves: the tensors that are learned.
        moments: the optimiser's moments of each leaf.
        method: the method's own state.
        step: outer steps done.
        updates: steps that changed the set; in the others the gradient was not finite.
        skipped_in_a_row: number of consecutive non-finite steps just before.
        clip_average: moving average of the norm that clipping uses; None before the first step.
        best: the best set so far; None before the first validation.
        carried: state of the run around the loop, which the loop only passes on; see `Carried`.
        averaged: running average of the leaves of the set: from the first values
            on e <- k e + (1 - k) x after each step, without a correction for its start (FTD, Du et
            al. 2023); {} if none is kept.
    """

    leaves: Mapping[str, Tensor]
    moments: Mapping[str, tuple[Tensor, ...]]
    method: State
    step: int = 0
    updates: int = 0
    skipped_in_a_row: int = 0
    clip_average: float | None = None
    best: Best | None = None
    carried: "Carried" = field(default_factory=lambda: Carried())
    averaged: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Tensor]:
        """The leaves of the set as it counts: averaged, where there is an average."""
        return {**self.leaves, **self.averaged}

    @classmethod
    def start(
        cls,
        leaves: Mapping[str, Tensor],
        method: State,
        optimizer: Optimizer,
        carried: "Carried",
        averaged: Iterable[str] = (),
    ) -> "OuterState":
        """Make the state before the first step.

        Args:
            leaves: the tensors to learn, by name.
            method: the method's own state.
            optimizer: makes the moments.
            carried: state of the run around the loop.
            averaged: names of the leaves of which a running average is kept.
        """
        kept = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        moments = {name: optimizer.init(leaf)[1:] for name, leaf in kept.items()}
        average = {name: kept[name].clone() for name in averaged}
        return cls(kept, moments, method, carried=carried, averaged=average)


@dataclass(frozen=True)
class Carried:
    """State of a run that the loop passes on.

    Args:
        stage: index of the block of a boosted set that is distilled; each stage runs the loop anew.
        earlier: leaves of earlier blocks that stay as they are.
        recipes: how networks train on the set of each finished stage, as plain data.
        sampler: the state of the sampler of real images.
    """

    stage: int = 0
    earlier: Mapping[str, Tensor] = field(default_factory=dict)
    recipes: tuple[Mapping[str, Any], ...] = ()
    sampler: State = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """The functions that the loop calls; every one is optional.

    Args:
        validate: state -> accuracy; called every `validate_every` steps and after the last.
        save: stores a state; called every `checkpoint_every` steps, after the last and at an
            interruption.
        log: takes one record a step.
        stop: returns whether the user asked to stop.
        enough: (step, its seconds) -> whether it was the last, whatever the schedule says.
        refresh: state -> the state and the method for the next step if they change, else None.
    """

    validate: Callable[[OuterState], Figure] | None = None
    save: Callable[[OuterState], None] = field(default=lambda state: None)
    log: Callable[[StepRecord], None] = field(default=lambda record: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    enough: Callable[[int, float], bool] = field(default=lambda step, seconds: False)
    refresh: Callable[[OuterState], tuple[OuterState, Estimator] | None] = field(
        default=lambda state: None
    )


def optimise(
    method: Estimator,
    schedule: Schedule,
    rules: Mapping[str, Rule],
    state: OuterState,
    device: torch.device,
    hooks: Hooks,
) -> OuterState:
    """Run the outer loop from `state` to the last step of the schedule.

    Args:
        method: estimates the gradient.
        schedule: how long, and by what.
        rules: one for every leaf.
        state: where to begin.
        device: whose memory is logged.
        hooks: what to call.
    Raises:
        InputError: the gradient was not finite 20 times in a row.
        Interrupted: `hooks.stop` said so; the state is saved.
    """
    while state.step < schedule.steps:
        began = time.perf_counter()
        refreshed = hooks.refresh(state)
        scored = time.perf_counter()
        state, method = refreshed or (state, method)
        state, record = outer_step(method, schedule, rules, state)
        seconds = round(time.perf_counter() - scored, 4)
        record = replace(record, seconds=seconds, memory_mb=round(peak_memory_mb(device), 1))
        if refreshed:
            record = replace(record, hardness_seconds=round(scored - began, 4))
        last = state.step == schedule.steps or hooks.enough(state.step, seconds)
        if hooks.validate and (last or state.step % schedule.validate_every == 0):
            figure = hooks.validate(state)
            record = replace(record, validation=figure)
            if state.best is None or figure.mean > state.best.accuracy:
                state = replace(state, best=Best(state.step, figure.mean, state.result))
        hooks.log(record)
        stopping = hooks.stop() and not last
        if last or stopping or state.step % schedule.checkpoint_every == 0:
            hooks.save(state)
        if stopping:
            raise Interrupted(state.step)
        if last:
            break
    return state


def outer_step(
    method: Estimator, schedule: Schedule, rules: Mapping[str, Rule], state: OuterState
) -> tuple[OuterState, StepRecord]:
    """Take one outer step.

    Args:
        method: estimates the gradient.
        schedule: the optimiser and the clipping.
        rules: one for every leaf.
        state: before the step.
    Returns:
        The state after it, and its record for the log, which does not know time and memory yet.
    """
    estimate = method.estimate(state.leaves, state.method, state.step)
    grads = estimate.grads
    norm = math.hypot(*(float(grad.norm()) for name, grad in grads.items() if rules[name].clipped))
    finite = all(bool(grad.isfinite().all()) for grad in grads.values())
    finite = finite and math.isfinite(estimate.loss)
    finite = finite and all(bool(value.isfinite().all()) for value in estimate.values.values())
    info = {name: finite_or_none(value) for name, value in estimate.info.items()}
    record = StepRecord(
        state.step + 1,
        finite_or_none(estimate.loss),
        finite_or_none(norm),
        clipped=False,
        skipped=not finite,
        seconds=0.0,
        memory_mb=0.0,
        decode_seconds=info.pop("decode_seconds", None),
        info=info,
    )
    if not finite:
        skipped = state.skipped_in_a_row + 1
        if skipped >= MOST_SKIPPED:
            raise InputError(
                f"the meta-gradient was not finite in {MOST_SKIPPED} outer steps in a row, up to "
                f"step {state.step + 1}; {method.remedy}"
            )
        return replace(state, step=state.step + 1, skipped_in_a_row=skipped), record
    average, factor = rescale(norm, state.clip_average, schedule.clip)
    record = replace(record, clipped=factor < 1 and schedule.clip != "unit")
    leaves, moments = {}, {}
    for name, leaf in state.leaves.items():
        if name in estimate.values:
            leaves[name], moments[name] = estimate.values[name], state.moments[name]
            continue
        rule = rules[name]
        hyper = {"lr": torch.tensor(float(rule.lr), device=leaf.device)}
        grad = grads[name] * (factor if rule.clipped else 1)
        before = (leaf, *state.moments[name])
        leaf, *rest = schedule.optimizer.step(before, grad, hyper, state.updates)
        leaves[name] = rule.bounded(leaf)
        moments[name] = tuple(rest)
    averaged = {
        name: schedule.average * before + (1 - schedule.average) * leaves[name]
        for name, before in state.averaged.items()
    }
    after = replace(
        state, leaves=leaves, averaged=averaged, moments=moments, method=estimate.state,
        step=state.step + 1, updates=state.updates + 1, skipped_in_a_row=0, clip_average=average,
    )  # fmt: skip
    return after, record


def finite_or_none(value: Any) -> Any:
    """Return `value`, or None for a float that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rescale(norm: float, average: float | None, limit: float | str) -> tuple[float, float]:
    """Clip by a moving average of the norm, or scale to norm 1.

    Args:
        norm: of the raw gradient.
        average: before this step; None at the first.
        limit: the norm may be this times the new average; 0: no limit; "unit": it becomes 1.
    Returns:
        (the new average, the factor to multiply the gradient with).
    Source: paper D.4 (decay 0.9, twice or 1.05 times the average, or norm 1); as in the released
        code, the raw norm enters the average first.
    """
    average = norm if average is None else CLIP_DECAY * average + (1 - CLIP_DECAY) * norm
    if isinstance(limit, str):
        return average, 1 / norm if norm > 0 else 1.0
    if limit == 0 or norm <= limit * average:
        return average, 1.0
    return average, limit * average / norm
