"""The only outer loop: estimate the gradient, clip it, step, validate, keep the best, save."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.devices import on_its_way
from potstill.distillation.leaf_rules import Rule
from potstill.distillation.outer_rates import Course
from potstill.distillation.step_log import INFO, LATE, Reader, Unread
from potstill.engine.optimizers import Adam, Optimizer
from potstill.methods.base import Estimate, State
from potstill.records.metrics import Figure, StepRecord

CLIP_DECAY = 0.9


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
class Schedule:
    """How many steps the loop takes, and with what optimiser.

    Args:
        steps: outer steps.
        optimizer: updates every leaf, at its rule's rate.
        clip: see `rescale`.
        average: decay of a running average of leaves, see `OuterState.averaged`; 0: none is kept.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        course: of the learning rates over the run.
    """

    steps: int
    optimizer: Optimizer = field(default_factory=Adam)
    clip: float | str = 0.0
    validate_every: int = 100
    checkpoint_every: int = 100
    average: float = 0.0
    course: Course = field(default_factory=Course)


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
        skipped_in_a_row: number of consecutive non-finite steps just before. These two and the
            next are 0-d tensors while the loop runs, since it does not wait for them.
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
    updates: int | Tensor = 0
    skipped_in_a_row: int | Tensor = 0
    clip_average: float | Tensor | None = None
    best: Best | None = None
    carried: "Carried" = field(default_factory=lambda: Carried())
    averaged: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def settled(self) -> "OuterState":
        """The same with plain numbers, once the device has computed them."""
        average = math.nan if self.clip_average is None else float(self.clip_average)
        return replace(
            self,
            updates=int(self.updates),
            skipped_in_a_row=int(self.skipped_in_a_row),
            clip_average=None if math.isnan(average) else average,
        )

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
        share: share of the steps that are over -> that of the run, which time may decide.
        refresh: state -> the state and the method for the next step if they change, else None.
    """

    validate: Callable[[OuterState], Figure] | None = None
    save: Callable[[OuterState], None] = field(default=lambda state: None)
    log: Callable[[StepRecord], None] = field(default=lambda record: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    enough: Callable[[int, float], bool] = field(default=lambda step, seconds: False)
    share: Callable[[float], float] = field(default=lambda share: share)
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
    unread = deque[Unread]()
    late, reader = LATE if device.type == "cuda" else 0, Reader(method.remedy, device)
    while state.step < schedule.steps:
        began = time.perf_counter()
        refreshed = hooks.refresh(state)
        scored = time.perf_counter()
        state, method = refreshed or (state, method)
        share = hooks.share(state.step / schedule.steps)
        state, told = outer_step(method, schedule, rules, state, schedule.course(share))
        unread.append(replace(told, began=scored, scoring=scored - began if refreshed else None))
        records = [reader.read(unread.popleft()) for _ in range(len(unread) - late)]
        last = state.step == schedule.steps or hooks.enough(state.step, reader.seconds)
        validating = hooks.validate and (last or state.step % schedule.validate_every == 0)
        saving = last or state.step % schedule.checkpoint_every == 0
        if validating or saving:
            records += map(reader.read, unread)
            unread.clear()
        if hooks.validate and validating:
            figure = hooks.validate(state)
            records[-1] = replace(records[-1], validation=figure)
            if state.best is None or figure.mean > state.best.accuracy:
                state = replace(state, best=Best(state.step, figure.mean, state.result))
        for record in records:
            hooks.log(record)
        stopping = hooks.stop() and not last
        if stopping:
            for record in map(reader.read, unread):
                hooks.log(record)
        if saving or stopping:
            hooks.save(state.settled)
        if stopping:
            raise Interrupted(state.step)
        if last:
            break
    return state.settled


def outer_step(
    method: Estimator,
    schedule: Schedule,
    rules: Mapping[str, Rule],
    state: OuterState,
    rate: float = 1.0,
) -> tuple[OuterState, Unread]:
    """Take one outer step, without waiting for the device.

    Where the gradient is not finite, everything stays as it was.

    Args:
        method: estimates the gradient.
        schedule: the optimiser and the clipping.
        rules: one for every leaf.
        state: before the step.
        rate: factor on the rules' learning rates.
    Returns:
        The state after it, and what it tells the log.
    """
    estimate = method.estimate(state.leaves, state.method, state.step)
    device = next(iter(state.leaves.values())).device
    grads = {name: rules[name].free(grad) for name, grad in estimate.grads.items()}
    exact = torch.float32 if device.type == "mps" else torch.float64

    def number(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(device, exact)
        return torch.full((), math.nan if value is None else value, dtype=exact, device=device)

    clipped = [grad for name, grad in grads.items() if rules[name].clipped]
    norms = torch.stack([number(0.0), *(number(grad.norm()) for grad in clipped)])
    loss, norm = number(estimate.loss), norms.norm()
    every = (*grads.values(), *estimate.values.values(), loss, norm)
    finite = torch.stack([one.isfinite().all() for one in every]).all()
    skipped = torch.where(finite, 0, number(state.skipped_in_a_row) + 1)
    updates = number(state.updates)
    average, factor = rescale(norm, number(state.clip_average), schedule.clip)

    def kept(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(finite, new, old)

    leaves, moments = {}, {}
    for name, leaf in state.leaves.items():
        rule = rules[name]
        if name in estimate.values:
            chosen = rule.held(leaf, estimate.values[name])
            leaves[name], moments[name] = kept(chosen, leaf), state.moments[name]
            continue
        hyper = {"lr": torch.full((), rate * float(rule.lr), device=leaf.device)}
        grad = grads[name] * factor.to(leaf.dtype) if rule.clipped else grads[name]
        before = (leaf, *state.moments[name])
        moved, *rest = schedule.optimizer.step(before, grad, hyper, updates)
        leaves[name] = kept(rule.held(leaf, rule.bounded(moved)), leaf)
        moments[name] = tuple(map(kept, rest, state.moments[name]))
    averaged = {
        name: kept(rules[name].held(before, averaged_with(before, leaves[name], schedule)), before)
        for name, before in state.averaged.items()
    }
    after = replace(
        state, leaves=leaves, averaged=averaged, moments=moments,
        method=state_after(
            estimate.state,
            state.method if estimate.skipped is None else estimate.skipped,
            finite,
        ),
        step=state.step + 1,
        updates=updates + finite, skipped_in_a_row=skipped,
        clip_average=kept(average, number(state.clip_average)),
    )  # fmt: skip
    told = {"loss": loss, "norm": norm, "factor": factor, "skipped": skipped}
    told |= {
        INFO + name: number(value)
        for name, value in estimate.info.items()
        if isinstance(value, Tensor)
    }
    values = on_its_way(torch.stack(list(told.values())))
    clipping = schedule.clip != "unit"
    info = {**estimate.info, "outer_rate": rate} if schedule.course.changes else estimate.info
    return after, Unread(after.step, tuple(told), values, info, clipping)


def averaged_with(before: Tensor, leaf: Tensor, schedule: Schedule) -> Tensor:
    """Return the running average of a leaf after a step."""
    return schedule.average * before + (1 - schedule.average) * leaf


def state_after(new: State, old: State, finite: Tensor) -> State:
    """Return a method's state after a step: the new one if the gradient was finite.

    Plain data that the step changed are waited for.
    """
    alike = new.keys() == old.keys()
    found: dict[str, Any] = {}
    for name, value in new.items():
        held = old.get(name)
        if value is held:
            found[name] = value
        elif isinstance(value, Tensor) and isinstance(held, Tensor):
            found[name] = torch.where(finite, value, held)
        else:
            found[name], alike = value, alike and type(value) is type(held) and value == held
    if alike:
        return found
    return new if bool(finite) else old


def rescale(norm: Tensor, average: Tensor, limit: float | str) -> tuple[Tensor, Tensor]:
    """Clip by a moving average of the norm, or scale to norm 1.

    Args:
        norm: of the raw gradient, 0-d.
        average: before this step, 0-d; NaN at the first.
        limit: the norm may be this times the new average; 0: no limit; "unit": it becomes 1.
    Returns:
        (the new average, the factor to multiply the gradient with), 0-d.
    Source: paper D.4 (decay 0.9, twice or 1.05 times the average, or norm 1); as in the released
        code, the raw norm enters the average first.
    """
    moved = CLIP_DECAY * average + (1 - CLIP_DECAY) * norm
    average = torch.where(average.isnan(), norm, moved)
    one = torch.ones_like(norm)
    if isinstance(limit, str):
        return average, torch.where(norm > 0, 1 / norm, one)
    if limit == 0:
        return average, one
    return average, torch.where(norm <= limit * average, one, limit * average / norm)
