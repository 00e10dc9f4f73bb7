"""From real data and a configuration to a distilled set: new runs and resumed ones."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import store
from potstill.boosting import Stage, examples, stage_sizes, with_leaves
from potstill.compilation import Networks
from potstill.compiled import CompiledNetwork
from potstill.config import Config
from potstill.data import Dataset
from potstill.derivatives import couples_batch
from potstill.devices import allow_tf32, keep_freed_memory, pick_device, versions
from potstill.distilled import Block, DistilledSet, Recipe, initial_blocks
from potstill.grid import write_grid
from potstill.hardness import UNIFORM, Weighted, adaptive_scores, hardness_weights
from potstill.loading import RealData, prepare
from potstill.metadata import BudgetRecord, ChosenAccuracy, SetMetadata
from potstill.methods.base import Method, Problem
from potstill.metrics import Figure, StepRecord
from potstill.models import ModelSpec, check_model, fresh, resolve
from potstill.outer import Hooks, OuterState, optimise
from potstill.preprocess import ZCA_UP_TO, Preprocess
from potstill.registry import InputError
from potstill.resolve import check_parameterisation, check_second_derivative, resolve_auto, resolve_compile, resolve_keep
from potstill.runs import PICTURE, RunFolder, steps_done
from potstill.scoring import score_set
from potstill.seeds import derive
from potstill.training import Batches, set_batches


@dataclass(frozen=True)
class Listener:
    """How a run tells of itself; every part is optional.

    Args:
        say: takes a sentence that the user should see.
        step: takes (record of the step, number of outer steps).
        work: takes (what, done, of how many) outside the outer loop.
        stop: whether the user asked to stop.
    """

    say: Callable[[str], None] = field(default=lambda sentence: None)
    step: Callable[[StepRecord, int], None] = field(default=lambda record, steps: None)
    work: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)
    stop: Callable[[], bool] = field(default=lambda: False)


SILENT = Listener()


def new_run(
    config: Config,
    dataset: Dataset,
    out: Path | None,
    *,
    model: ModelSpec | None = None,
    overwrite: bool = False,
    listener: Listener = SILENT,
) -> DistilledSet:
    """Distill `dataset` as `config` says, with checkpoints and result in the folder `out` if one is given."""
    setup = Setup.of(config, dataset, model, listener)
    if out is None:
        return finish(setup, None, None)
    folder = RunFolder.create(out, setup.config, overwrite=overwrite)
    with folder.locked():
        folder.keep_preparation(setup.real, setup.config.data)
        return finish(setup, folder, None)


def resumed_run(
    path: Path, config: Config, dataset: Dataset, *, model: ModelSpec | None = None, listener: Listener = SILENT
) -> DistilledSet:
    """`resume` with the data at hand."""
    folder = RunFolder.open(path)
    if folder.finished:
        raise InputError(f"the run in {path} is finished; evaluate it with `potstill evaluate {path}`")
    with folder.locked():
        folder.require_data(dataset.identity)
        setup = Setup.of(config, dataset, model, listener, folder.fitted(config.data, dataset.identity))
        state = folder.newest(setup.config, dataset.identity, setup.device, listener.say)
        done = steps_done(state, setup.config) if state else 0
        folder.forget_after(done)
        listener.say(f"going on after outer step {done} of {setup.config.all_steps}")
        return finish(setup, folder, state)


@dataclass(frozen=True)
class Setup:
    """All that a run needs, made from a configuration and data; `blocks` are as they are before distillation."""

    config: Config
    real: RealData
    blocks: tuple[Block, ...]
    problem: Problem
    device: torch.device
    listener: Listener

    @classmethod
    def of(
        cls, config: Config, dataset: Dataset, model: ModelSpec | None, listener: Listener, fitted: Preprocess | None = None
    ) -> "Setup":
        """Resolve every "auto", prepare the data, and check the network; `fitted` is their preprocessing, if it is known."""
        device = pick_device(config.run.device)
        if config.run.threads != "auto":
            torch.set_num_threads(int(config.run.threads))
        keep_freed_memory()
        channels, height, width = dataset.train.images.shape[1:]
        one = check_parameterisation(config, (channels, height, width), len(dataset.class_names))
        values = channels * height * width
        if fitted is None and values > ZCA_UP_TO and config.data.preprocess == "zca":
            listener.say(f"fitting zca to images of {values:,} values takes minutes")
        real = prepare(dataset, config.data, device, fitted)
        classes = len(real.class_names)
        size = " x ".join(map(str, real.shape))
        counts = f"{len(real.train):,} train, {len(real.validation):,} validation and {len(real.test):,} test images"
        for note in (f"{counts} of {size} in {classes} classes", *real.notes):
            listener.say(note)
        inner = config.inner
        spec = inner.model if model is None else model
        factory = resolve(spec, real.shape, classes, width=inner.width, depth=inner.depth, norm=inner.norm)
        check_model(inner.model, factory, real.shape, classes)
        check_second_derivative(inner.model, factory, real.shape, classes)
        if couples_batch(fresh(factory, 0, torch.device("cpu"))):
            listener.say("the network has batch norm: batches are taken whole, and memory grows with --real-batch")
        config = resolve_auto(config, real, one, factory, mapped=dataset.mapped, device=device)
        parts = [one] * config.distilled.boost_blocks
        blocks = initial_blocks(config.distilled.init, parts, real.train, config.run.seed, device)
        allow_tf32(config.run.tf32)
        networks = Networks(factory, real.shape, classes, device, str(config.run.precision))
        keep = resolve_keep(config, networks)
        config, compiled = resolve_compile(config, networks, stage_sizes(config, one), listener.say)
        sampler = UNIFORM if real.weights is None else Weighted(real.weights)
        problem = Problem(real.train, blocks[0].labels, {}, classes, factory, config, device, keep, compiled, sampler=sampler)
        return cls(config, real, blocks, problem, device, listener)

    def stage(self, state: OuterState | None) -> Stage:
        """The stage that a state belongs to, at its start but for what the state says; the first one without a state."""
        if state is None:
            return Stage(self.config, self.blocks[:1])
        return Stage(self.config, with_leaves(self.blocks[: state.stage + 1], {**state.earlier, **state.leaves}))

    def problem_at(self, state: OuterState | None) -> Problem:
        """The problem, with real batches drawn as a state says."""
        if state is None or state.hardness is None:
            return self.problem
        how = self.config.hardness
        weights = hardness_weights(state.hardness, float(how.hardness_sampler), how.hardness_nets, how.hardness_reading)
        return dataclasses.replace(
            self.problem, sampler=Weighted(weights * (1 if self.real.weights is None else self.real.weights))
        )

    def hardness(self, blocks: tuple[Block, ...], stage: int, step: int) -> Tensor:
        """Scores of the real training images by networks trained on the blocks; all follows from the seed, stage and step."""
        both, labels, how = examples(blocks), torch.cat([block.labels for block in blocks]), self.config.hardness

        def make(own: int) -> Batches:
            return set_batches(both["images"], both["targets"], labels, self.recipe, own)

        return adaptive_scores(
            make, self.recipe, self.problem.factory, self.real.train, networks=how.hardness_nets, against=how.hardness_score,
            seed=derive(self.config.run.seed, "hardness", stage, step), device=self.device, progress=self.listener.work,
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """How networks train on the set; as in the inner loop, for the first of the lengths."""
        return Recipe.of(self.config, self.lengths[0])

    @property
    def compiled_evaluation(self) -> CompiledNetwork | None:
        """The compiled derivatives, if networks are the same function in evaluation as in training: without batch norm."""
        compiled = self.problem.compiled
        return None if compiled is None or couples_batch(compiled.model.module) else compiled

    @property
    def lengths(self) -> tuple[int, ...]:
        """Candidate training lengths, ascending."""
        return tuple(sorted(set(self.config.evaluation.lengths)))

    def validation_scores(self, blocks: tuple[Block, ...], lengths: Sequence[int], **how: Any) -> Tensor:
        """(networks, lengths) accuracies on the validation split of networks trained on blocks; the networks' seeds are fixed."""
        both, labels = examples(blocks), torch.cat([block.labels for block in blocks])
        return score_set(
            both["images"], both["targets"], labels, self.recipe, self.problem.factory,
            lengths=lengths, splits=(self.real.validation,), nets=self.config.evaluation.validation_nets,
            seed=derive(self.config.run.seed, "validation"), device=self.device, compiled=self.compiled_evaluation, **how,
        )[:, :, 0]  # fmt: skip


def finish(setup: Setup, folder: RunFolder | None, state: OuterState | None) -> DistilledSet:
    """Distill block after block, from the beginning or from `state`, choose the training lengths, and write the result."""
    stage = setup.stage(state)
    while True:
        method, state = run_stage(setup, stage, folder, state)
        assert state.best is not None  # the last step validates
        blocks = stage.with_leaves(state.best.leaves)
        if len(blocks) == len(setup.blocks):
            break
        stage, state = Stage(setup.config, (*blocks, setup.blocks[len(blocks)])), None
    distilled = make_set(setup, blocks, method.finish(state.method), state.best.step)
    if folder:
        store.save(distilled, folder.path / store.ARTEFACT)
        folder.drop_replaced()
        write_grid(distilled, folder.path / PICTURE)
    return distilled


def run_stage(setup: Setup, stage: Stage, folder: RunFolder | None, state: OuterState | None) -> tuple[Method, OuterState]:
    """Run the outer loop of a stage from its beginning, or from `state`, to its end: the method and the state there."""
    config, listener = setup.config, setup.listener
    method = stage.method(setup.problem_at(state))
    before = stage.number * int(config.outer.steps)

    def validate(leaves: Mapping[str, Tensor]) -> Figure:
        return Figure.of(setup.validation_scores(stage.with_leaves(leaves), setup.lengths[:1])[:, 0])

    def log(record: StepRecord) -> None:
        record = dataclasses.replace(record, step=before + record.step, block=stage.number + 1)
        if folder:
            folder.log(record)
        listener.step(record, config.all_steps)

    def save(state: OuterState) -> None:
        if folder:
            folder.save(state, config, setup.real.identity)

    def refresh(state: OuterState) -> tuple[OuterState, Method] | None:
        hardness = config.hardness
        since = state.step - hardness.hardness_from
        if hardness.hardness_sampler == "off" or since < 0 or since % hardness.hardness_every:
            return None
        scored = dataclasses.replace(state, hardness=setup.hardness(stage.with_leaves(state.leaves), stage.number, state.step))
        return scored, stage.method(setup.problem_at(scored))

    hooks = Hooks(validate, save, log, listener.stop, refresh)
    return method, optimise(method, config.outer, stage.rules, state or stage.begin(method), setup.device, hooks)


def make_set(setup: Setup, blocks: tuple[Block, ...], learned: dict[str, Any], step: int) -> DistilledSet:
    """The finished set: the training length of each budget chosen on validation data, and all that a file records."""
    budgets = [measured(setup, blocks[:count]) for count in range(1, len(blocks) + 1)]
    real, config, whole = setup.real, setup.config, budgets[-1]
    tables = json.loads(store.canonical(dataclasses.asdict(config)))  # plain data, as a file gives it back
    tables["data"] |= {"data": config.data.data.partition(":")[0], "cache_dir": ""}  # no path: equal runs, equal bytes
    metadata = SetMetadata(
        config.outer.method, tables, config.run.seed, versions(), real.record, step, whole.accuracy,
        budgets=tuple(budgets) if len(budgets) > 1 else (), learned=learned,
    )  # fmt: skip
    return DistilledSet(
        tuple(block.to(torch.device("cpu")) for block in blocks), real.class_names, real.preprocess.to(torch.device("cpu")),
        dataclasses.replace(setup.recipe, steps=whole.steps), learned_labels=config.distilled.learn_labels, metadata=metadata,
    )  # fmt: skip


def measured(setup: Setup, blocks: tuple[Block, ...]) -> BudgetRecord:
    """The best training length of a set on validation data and the accuracy there, as a file records them."""
    ipc = sum(block.ipc for block in blocks)
    label = "choosing the training length" + (f" at {ipc} images per class" if len(setup.blocks) > 1 else "")
    scores = setup.validation_scores(blocks, setup.lengths, progress=setup.listener.work, label=label)
    place = int(scores.mean(0).argmax())
    steps = setup.lengths[place]
    accuracy = ChosenAccuracy(
        **vars(Figure.of(scores[:, place])),
        split="validation",
        protocol=f"fresh networks, {steps} steps; outer step and length were chosen on this split",
        stored_bytes=sum(block.stored_bytes for block in blocks),
    )
    return BudgetRecord(ipc, steps, accuracy)
