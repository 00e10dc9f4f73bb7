"""From real data and a configuration to a distilled set: new runs and resumed ones."""

import dataclasses
import math
import time
from contextlib import nullcontext
from pathlib import Path

from potstill.config.config import Given, Resolved, resolved
from potstill.data.splits import Dataset
from potstill.devices import own_torch_state
from potstill.distillation import frames
from potstill.distillation.boosting import OnBlocks, Stage
from potstill.distillation.checkpoints import steps_done
from potstill.distillation.forecasts import Forecast
from potstill.distillation.logs import TENSORBOARD, TensorBoard
from potstill.distillation.outer import Carried, Hooks, OuterState, optimise
from potstill.distillation.packing import require_fits
from potstill.distillation.result import doubts, make_set, write_set
from potstill.distillation.run_folder import METRICS, RunFolder
from potstill.distillation.setup import Setup, settings
from potstill.distillation.time_budget import TimeBudget, with_steps_to_plan
from potstill.distilled import artefact
from potstill.distilled.blocks import Block
from potstill.distilled.exports import write_default
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.distributed.ranks import ALONE, Ranks
from potstill.errors import InputError
from potstill.methods.base import Method
from potstill.models import ModelSpec
from potstill.progress import SILENT, Listener
from potstill.records.metrics import Figure, StepRecord


@own_torch_state()
def new_run(
    config: Given,
    dataset: Dataset,
    out: Path | None,
    *,
    model: ModelSpec | None = None,
    overwrite: bool = False,
    listener: Listener = SILENT,
    ranks: Ranks = ALONE,
    began: float | None = None,
) -> DistilledSet:
    """Distill `dataset` as `config` says.

    Args:
        config: the options.
        dataset: the real data.
        out: folder for checkpoints, log and result; None keeps nothing on disk.
        model: a callable in place of the configuration's model.
        overwrite: replace a run that `out` holds.
        listener: receives the progress.
        ranks: the processes that share the run; the first alone uses `out`.
        began: when the work began that a time budget is for, by `time.perf_counter`; None: now.
    Raises:
        InputError: options, data and network do not fit each other, or `out` cannot be used; or the
            ranks differ in options or data.
    """
    began = time.perf_counter() if began is None else began
    ranks.require_same(settings(config, dataset.identity))
    fitted = None
    if ranks.count == 1:
        config, fitted = with_steps_to_plan(config, dataset, model, listener)
    setup = Setup.of(config, dataset, model, listener, fitted, ranks)
    budget = TimeBudget.of(setup, began)
    if out is None or not ranks.first:
        return finish(setup, None, None, budget)
    folder = RunFolder.create(out, setup.config, overwrite=overwrite, start=setup.start)
    with folder.locked():
        folder.keep_preparation(setup.real, setup.config, setup.blocks[0].parameterisation)
        try:
            return finish(setup, folder, None, budget)
        except InputError as error:
            if folder.replaced is None:
                raise
            raise InputError(
                f"{error}; the set that was there before is in {folder.replaced}"
            ) from error


@own_torch_state()
def resumed_run(
    path: Path,
    config: Given,
    dataset: Dataset,
    *,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
    ranks: Ranks = ALONE,
) -> DistilledSet:
    """Go on with the run in a folder; a finished one takes more steps than it had.

    The result is that of a run which had so many steps from its start.

    Args:
        path: the folder.
        config: the run's options, with where its data are, and how many steps it is to take.
        dataset: the real data.
        model: a callable in place of the configuration's model.
        listener: receives the progress.
        ranks: the processes that share the run.
    """
    folder = RunFolder.open(path)
    planned = folder.config()
    if ranks.first:
        with folder.locked():
            folder.ready(listener.say)
    ranks.require_same({"the run": "is ready"})
    if folder.complete(planned) and folder.complete(config):
        if ranks.first:
            write_default(artefact.load(path), path, missing=True)
        raise InputError(
            f"the run in {path} is finished; evaluate it with `potstill evaluate {path}`, or go on "
            f"with --steps above {planned.outer.steps}"
        )
    done = folder.checkpoints.newest_step
    if planned.outer.steps != config.outer.steps and done >= config.all_steps:
        raise InputError(
            f"steps must be above the {done} done by the run in {path}, got "
            f"{config.outer.steps}; give more, or take the best set that was "
            f"validated so far by `potstill finish {path}`"
        )
    stepped = sum(record.seconds or 0.0 for record in folder.records())
    began = time.perf_counter() - stepped
    ranks.require_same(settings(config, dataset.identity))
    with folder.locked() if ranks.first else nullcontext():
        folder.require_data(dataset.identity)
        fitted = folder.fitted(config, dataset.identity)
        setup = Setup.of(config, dataset, model, listener, fitted, ranks)
        below = undue_validation(planned, setup.config)
        known = setup.config, dataset.identity, setup.device, listener.say
        state = folder.checkpoints.newest(*known, below=below)
        if state is None and folder.checkpoints.files:
            state = folder.checkpoints.newest(*known)
            listener.say(
                f"step {below} was validated as the last one, which a longer run would not do: the "
                "set may be another than that of a run with so many steps from its start"
            )
        done = steps_done(state, setup.config) if state else 0
        # Every rank has read the folder at this point: now it may change.
        ranks.require_same({"the newest whole checkpoint": done})
        if ranks.first:
            if folder.finished:
                folder.keep_preparation(setup.real, setup.config, setup.blocks[0].parameterisation)
            unread = folder.logged()[1]
            if unread:
                listener.say(
                    f"{unread:,} line{'s'[: unread > 1]} of {METRICS} cannot be read: the log is "
                    "without it"
                )
            # First: a kill in between leaves no last step of a shorter run.
            folder.forget_after(done)
            if setup.config.outer.steps != planned.outer.steps:
                folder.write_config(setup.config)
        listener.say(f"going on after outer step {done} of {setup.config.all_steps}")
        budget = TimeBudget.of(setup, began, stepped)
        return finish(setup, folder if ranks.first else None, state, budget)


def undue_validation(planned: Given, config: Resolved) -> float:
    """Return the last step that was planned, if only that it was the last had it validated.

    A longer run does not validate it and may so keep another set as its best.
    """
    last = planned.outer.steps
    if last == "auto" or config.outer.steps == last or not last % config.outer.validate_every:
        return math.inf
    return last


@own_torch_state()
def finished_early(
    path: Path,
    config: Given,
    dataset: Dataset,
    *,
    model: ModelSpec | None = None,
    listener: Listener = SILENT,
) -> DistilledSet:
    """Make the set of a stopped run: its best one so far by validation, with a training length.

    The run can go on afterwards. Of a nested run, the set holds the blocks that were begun.

    Args:
        path: the run's folder.
        config: the run's options, with where its data are.
        dataset: the real data.
        model: a callable in place of the configuration's model.
        listener: receives the progress.
    Raises:
        InputError: the run is finished, or was not validated yet.
    """
    folder = RunFolder.open(path)
    if folder.complete(config):
        raise InputError(f"the run in {path} is finished; `potstill evaluate {path}` measures it")
    with folder.locked():
        folder.require_data(dataset.identity)
        setup = Setup.of(config, dataset, model, listener, folder.fitted(config, dataset.identity))
        state = folder.checkpoints.newest(
            setup.config, dataset.identity, setup.device, listener.say
        )
        if state is None or state.best is None:
            raise InputError(
                f"the run in {path} was not validated yet, which chooses its set; go on with "
                f"`potstill distill --resume {path}`"
            )
        stage = setup.stage(state)
        method = setup.make_method(stage, state.carried)
        blocks = stage.with_leaves(state.best.leaves)
        recipe = setup.recipe_at(method, state.best.leaves, state)
        recipes = (*map(Recipe.from_plain, state.carried.recipes), recipe)
        distilled = make_set(setup, blocks, recipes, state.best)
        write_set(distilled, folder)
    return distilled


def finish(
    setup: Setup,
    folder: RunFolder | None,
    state: OuterState | None,
    budget: TimeBudget | None = None,
) -> DistilledSet:
    """Distill block after block, choose training lengths and write the result.

    Args:
        setup: of the run.
        folder: where to keep it; None: nowhere.
        state: where to begin; None: at the beginning.
        budget: how long it, or its first block, may take; None: as many steps as are configured.
    """
    stage = setup.stage(state)
    while True:
        method, state = run_stage(setup, stage, folder, state, budget)
        if budget:
            setup = dataclasses.replace(setup, config=as_done(setup.config, state.step))
            if folder:
                folder.write_config(setup.config)
            each = " of each block" if len(setup.blocks) > 1 else ""
            setup.listener.say(f"the time allowed {state.step} outer steps{each}")
            budget = None  # other blocks take as many steps
        assert state.best is not None  # the last step validates
        blocks = stage.with_leaves(state.best.leaves)
        recipe = setup.recipe_at(method, state.best.leaves, state)
        recipes = (*state.carried.recipes, recipe.plain())
        if len(blocks) == len(setup.blocks):
            break
        stage = Stage((*blocks, setup.blocks[len(blocks)]), setup.rates)
        state = setup.begin(stage, setup.make_method(stage, Carried()), recipes)
    distilled = make_set(setup, blocks, tuple(map(Recipe.from_plain, recipes)), state.best)
    if folder:
        write_set(distilled, folder)
        folder.drop_replaced()
    for sentence in doubts(distilled, state.step - int(state.updates), state.step):
        setup.listener.say(sentence)
    return distilled


def as_done(config: Resolved, steps: int) -> Resolved:
    """Return the configuration that repeats a run which ended by time, to the byte."""
    return resolved(config, steps=steps, time_budget="")


def run_stage(
    setup: Setup,
    stage: Stage,
    folder: RunFolder | None,
    state: OuterState | None,
    budget: TimeBudget | None = None,
) -> tuple[Method, OuterState]:
    """Run the outer loop of a stage to its end, from its beginning or from `state`.

    Args:
        setup: of the run.
        stage: the stage.
        folder: where to log and save; None: nowhere.
        state: where to begin; None: at the beginning.
        budget: how long the run may take.
    Returns:
        The method as it is at the end, and the state there.
    """
    config, listener, sampling = setup.config, setup.listener, setup.config.real_sampler.options
    current = setup.make_method(stage, state.carried if state else Carried())
    if state:
        require_fits(state, setup.begin(stage, current))
    else:
        state = setup.begin(stage, current, setup.kept_recipes)
        keep_frame(setup, stage, folder, state.step, stage.with_leaves(state.result))
    rules = stage.rules(current.start()[1])
    before, ended = stage.number * config.outer.steps, 0
    wanted = config.run.log == TENSORBOARD
    board = TensorBoard(folder.path, before + state.step) if folder and wanted else None
    forecast = Forecast(setup.config.all_steps, listener.say)
    first, since = state.step, budget.gone if budget else 0.0

    def validate(state: OuterState) -> Figure:
        recipe = setup.recipe_at(current, state.leaves, state)
        blocks = stage.with_leaves(state.result)
        keep_frame(setup, stage, folder, state.step, blocks)
        return Figure.of(setup.validation_scores(blocks, recipe, setup.lengths[:1])[:, 0])

    def log(record: StepRecord) -> None:
        record = dataclasses.replace(record, step=before + record.step, block=stage.number + 1)
        if not budget:
            forecast.see(record.step, record.seconds or 0.0)
        # Shown first: who sees the log grow and presses Ctrl-C is then stopped after a step.
        listener.step(record, expected(record.step))
        if folder:
            folder.log(record)
        if board:
            board.add(record)

    def expected(step: int) -> int:
        if not budget:
            return setup.config.all_steps
        foreseen = ended or budget.expected_steps(step, step - first, since)
        return min(foreseen * len(setup.blocks), setup.config.all_steps)

    def save(state: OuterState) -> None:
        if folder:
            own = as_done(config, ended) if ended else config
            folder.checkpoints.save(state, own, setup.real.identity)
        setup.ranks.wait()  # none goes on, or says that it stopped, before the state is safe

    def refresh(state: OuterState) -> tuple[OuterState, OnBlocks] | None:
        nonlocal current
        if not sampling.due(state.step):
            return None
        recipe = setup.recipe_at(current, state.leaves, state)
        blocks = stage.with_leaves(state.leaves)
        made = setup.sampler_state(blocks, recipe, stage.number, state.step)
        state = dataclasses.replace(state, carried=dataclasses.replace(state.carried, sampler=made))
        current = setup.make_method(stage, state.carried)
        return state, stage.on_blocks(current, setup.device)

    def enough(step: int, seconds: float) -> bool:
        nonlocal ended
        if budget is None or not setup.ranks.any(budget.over(seconds)):
            return False
        ended = step
        return True

    def stop() -> bool:
        return setup.ranks.any(listener.stop())

    def share(of_steps: float) -> float:
        return budget.share() if budget else of_steps

    hooks = Hooks(validate, save, log, stop, enough, share, refresh)
    on_blocks = stage.on_blocks(current, setup.device)
    try:
        state = optimise(on_blocks, setup.schedule, rules, state, setup.device, hooks)
    finally:
        if board:
            board.close()
        if folder:
            folder.write_curves()  # once: at every checkpoint a long run would read a long log
    return current, state


def keep_frame(
    setup: Setup, stage: Stage, folder: RunFolder | None, step: int, blocks: tuple[Block, ...]
) -> None:
    """Keep a picture of the set as it is, at some of its validations, unless its images stand.

    Args:
        setup: of the run.
        stage: the stage.
        folder: where to keep it; None: nowhere.
        step: outer steps of the stage.
        blocks: the set.
    """
    outer = setup.config.outer
    if folder and stage.first_moving == 0 and frames.due(step, outer.validate_every):
        whole = stage.number * outer.steps + step
        frames.keep(folder.path, whole, blocks, setup.real.preprocess)
