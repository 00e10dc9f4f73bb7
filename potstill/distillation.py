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
from potstill.compilation import Networks
from potstill.compiled import CompiledNetwork
from potstill.config import Config
from potstill.data import Dataset
from potstill.derivatives import couples_batch
from potstill.devices import allow_tf32, keep_freed_memory, pick_device, versions
from potstill.distilled import Block, DistilledSet, Recipe, initial_block
from potstill.evaluation import Figure, score_set
from potstill.loading import RealData, prepare
from potstill.methods.base import Problem
from potstill.models import ModelSpec, check_model, fresh, resolve
from potstill.outer import Hooks, OuterState, Record, optimise
from potstill.registry import METHODS, InputError
from potstill.resolve import check_second_derivative, resolve_auto, resolve_compile, resolve_keep
from potstill.runs import RunFolder
from potstill.seeds import derive


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
    step: Callable[[Record, int], None] = field(default=lambda record, steps: None)
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
    start = OuterState.start(setup.learned, setup.method.init())
    if out is None:
        return finish(setup, None, start)
    folder = RunFolder.create(out, setup.config, overwrite=overwrite)
    with folder.locked():
        return finish(setup, folder, start)


def resumed_run(
    path: Path, config: Config, dataset: Dataset, *, model: ModelSpec | None = None, listener: Listener = SILENT
) -> DistilledSet:
    """`resume` with the data at hand."""
    folder = RunFolder.open(path)
    if folder.finished:
        raise InputError(f"the run in {path} is finished; evaluate it with `potstill evaluate {path}`")
    with folder.locked():
        setup = Setup.of(config, dataset, model, listener)
        state = folder.newest(setup.config, dataset.fingerprint, setup.device, listener.say)
        state = state or OuterState.start(setup.learned, setup.method.init())
        folder.forget_after(state.step)
        listener.say(f"going on after outer step {state.step} of {setup.config.outer.steps}")
        return finish(setup, folder, state)


@dataclass(frozen=True)
class Setup:
    """All that an outer loop needs, made from a configuration and data."""

    config: Config
    real: RealData
    block: Block
    problem: Problem
    device: torch.device
    listener: Listener

    @classmethod
    def of(cls, config: Config, dataset: Dataset, model: ModelSpec | None, listener: Listener) -> "Setup":
        """Resolve every "auto", prepare the data, and check the network."""
        device = pick_device(config.run.device)
        if config.run.threads != "auto":
            torch.set_num_threads(int(config.run.threads))
        keep_freed_memory()
        real = prepare(dataset, config.data, device)
        classes = len(real.class_names)
        size = " x ".join(map(str, real.shape))
        counts = f"{len(real.train):,} train, {len(real.validation):,} validation and {len(real.test):,} test images"
        for note in (f"{counts} of {size} in {classes} classes", *real.notes):
            listener.say(note)
        inner, seed = config.inner, config.run.seed
        spec = inner.model if model is None else model
        factory = resolve(spec, real.shape, classes, width=inner.width, depth=inner.depth, norm=inner.norm)
        check_model(inner.model, factory, real.shape, classes)
        check_second_derivative(inner.model, factory, real.shape, classes)
        if couples_batch(fresh(factory, 0, torch.device("cpu"))):
            listener.say("the network has batch norm: batches are taken whole, and memory grows with --real-batch")
        config = resolve_auto(config, real, factory, mapped=dataset.mapped, device=device)
        allow_tf32(config.run.tf32)
        networks = Networks(factory, real.shape, classes, device, str(config.run.precision))
        keep = resolve_keep(config, networks)
        config, compiled = resolve_compile(config, networks, listener.say)
        block = initial_block(config.distilled.init, config.distilled.ipc, classes, real.shape, real.train, seed, device)
        fixed = {} if config.distilled.learn_labels else {"targets": block.targets}
        problem = Problem(real.train, block.labels, fixed, classes, factory, config, device, keep, compiled)
        return cls(config, real, block, problem, device, listener)

    @property
    def learned(self) -> dict[str, Tensor]:
        """The leaves that are learned."""
        return {name: leaf for name, leaf in self.block.leaves.items() if name not in self.problem.fixed}

    @property
    def method(self) -> Any:
        """The method, ready to estimate."""
        return METHODS[self.config.outer.method](self.problem)

    @property
    def recipe(self) -> Recipe:
        """How networks train on the set; as in the inner loop, for the first of the lengths."""
        inner = self.config.inner
        return Recipe(
            inner.model, inner.width, inner.depth, inner.norm, inner.inner_optimizer, inner.inner_lr, inner.momentum,
            inner.weight_decay, inner.lr_milestones, inner.lr_decay, int(inner.batch_per_class),
            int(inner.classes_per_batch), inner.augment, self.lengths[0], str(self.config.run.precision),
        )  # fmt: skip

    @property
    def compiled_evaluation(self) -> CompiledNetwork | None:
        """The compiled derivatives, if networks are the same function in evaluation as in training: without batch norm."""
        compiled = self.problem.compiled
        return None if compiled is None or couples_batch(compiled.model.module) else compiled

    @property
    def lengths(self) -> tuple[int, ...]:
        """Candidate training lengths, ascending."""
        return tuple(sorted(set(self.config.evaluation.lengths)))

    def validation_scores(self, leaves: Mapping[str, Tensor], lengths: Sequence[int], **how: Any) -> Tensor:
        """(networks, lengths) accuracies on the validation split of networks trained on a set; the networks' seeds are fixed."""
        block = self.with_leaves(leaves)
        return score_set(
            block.images, block.targets, block.labels, self.recipe, self.problem.factory,
            lengths=lengths, splits=(self.real.validation,), nets=self.config.evaluation.validation_nets,
            seed=derive(self.config.run.seed, "validation"), device=self.device, compiled=self.compiled_evaluation, **how,
        )[:, :, 0]  # fmt: skip

    def with_leaves(self, leaves: Mapping[str, Tensor]) -> Block:
        """The block with these values of what is learned."""
        return dataclasses.replace(self.block, leaves={**self.block.leaves, **leaves})


def finish(setup: Setup, folder: RunFolder | None, state: OuterState) -> DistilledSet:
    """Run the outer loop from `state` to its end, choose the training length, and write the result."""
    listener = setup.listener

    def validate(leaves: Mapping[str, Tensor]) -> tuple[Record, float]:
        figure = Figure.of(setup.validation_scores(leaves, setup.lengths[:1])[:, 0])
        return dataclasses.asdict(figure), figure.mean

    def log(record: Record) -> None:
        if folder:
            folder.log(record)
        listener.step(record, setup.config.outer.steps)

    def save(state: OuterState) -> None:
        if folder:
            folder.save(state, setup.config, setup.real.fingerprint)

    method = setup.method
    state = optimise(method, setup.config.outer, state, setup.device, Hooks(validate, save, log, listener.stop))
    assert state.best is not None  # the last step validates
    distilled = make_set(setup, state.best.leaves, method.finish(state.method), state.best.step)
    if folder:
        store.save(distilled, folder.path / store.ARTEFACT)
        folder.drop_replaced()
    return distilled


def make_set(setup: Setup, leaves: Mapping[str, Tensor], learned: dict[str, Any], step: int) -> DistilledSet:
    """The finished set: the training length chosen on validation data, and all that a file records."""
    scores = setup.validation_scores(leaves, setup.lengths, progress=setup.listener.work, label="choosing the training length")
    place = int(scores.mean(0).argmax())
    recipe = dataclasses.replace(setup.recipe, steps=setup.lengths[place])
    figure = Figure.of(scores[:, place])
    real, config = setup.real, setup.config
    tables = json.loads(store.canonical(dataclasses.asdict(config)))  # plain data, as a file gives it back
    tables["data"] |= {"data": config.data.data.partition(":")[0], "cache_dir": ""}  # no path: equal runs, equal bytes
    meta = {
        "method": config.outer.method,
        "config": tables,
        "seed": config.run.seed,
        "versions": versions(),
        "data": {
            "fingerprint": real.fingerprint,
            "train": len(real.train),
            "validation": len(real.validation),
            "test": len(real.test),
        },
        "outer_step": step,
        "accuracy": {
            **dataclasses.asdict(figure),
            "split": "validation",
            "protocol": f"fresh networks, {recipe.steps} steps; outer step and length were chosen on this split",
        },
        **({"learned": learned} if learned else {}),
    }
    return DistilledSet(
        (setup.with_leaves(leaves).to(torch.device("cpu")),), real.class_names, real.preprocess.to(torch.device("cpu")),
        recipe, learned_labels=config.distilled.learn_labels, meta=meta,
    )  # fmt: skip
