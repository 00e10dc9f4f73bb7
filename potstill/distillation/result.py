"""The set that a run gives: its training lengths, its record, its files, and what is doubtful."""

import dataclasses
from pathlib import Path

import torch

from potstill.data.splits import NOUNS
from potstill.devices import versions
from potstill.distillation.boosting import LEARNED
from potstill.distillation.outer import Best
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.setup import METHOD_PATHS, Setup
from potstill.distilled import artefact
from potstill.distilled.blocks import Block
from potstill.distilled.exports import write_default
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.files import with_prefix
from potstill.records.metadata import BudgetRecord, ChosenAccuracy, SetMetadata
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS

AT_CHANCE = 1.2
"""How many times the accuracy of guessing still counts as guessing."""


def make_set(
    setup: Setup, blocks: tuple[Block, ...], recipes: tuple[Recipe, ...], best: Best
) -> DistilledSet:
    """Make the finished set: choose the training length of each budget and record all results.

    Args:
        setup: of the run.
        blocks: as they are at the end.
        recipes: how networks train on the set of each stage.
        best: the best set of the last stage.
    """
    budgets = [measured(setup, blocks[: count + 1], recipe) for count, recipe in enumerate(recipes)]
    real, config, whole = setup.real, setup.config, budgets[-1]
    tables = config.tables()
    # No path: equal runs, equal bytes.
    source = config.data.data if config.data.embedded else config.data.source[0]
    tables["data"] |= {"data": source, "cache_dir": ""}
    tables["data"]["weights"] = Path(config.data.weights).name
    for name in set(METHOD_PATHS) & tables["method"].keys():
        tables["method"][name] = Path(tables["method"][name]).name
    tables["run"] |= {"threads": "auto", "log": "none"}  # any gives the same
    learned = {
        name: leaf.tolist()
        for name, leaf in with_prefix(best.leaves, LEARNED).items()
        if leaf.dim() == 0
    }
    metadata = SetMetadata(
        config.method.name,
        tables,
        config.run.seed,
        versions(),
        real.record,
        best.step,
        whole.accuracy,
        budgets=tuple(budgets) if len(budgets) > 1 else (),
        learned=learned,
    )
    cpu = torch.device("cpu")
    return DistilledSet(
        tuple(block.to(cpu) for block in blocks),
        real.class_names,
        real.preprocess.to(cpu),
        dataclasses.replace(recipes[-1], steps=whole.steps),
        learned_labels=config.distilled.learn_labels,
        metadata=metadata,
    )


def measured(setup: Setup, blocks: tuple[Block, ...], recipe: Recipe) -> BudgetRecord:
    """Choose the training length of a set on validation data and return the record of it."""
    ipc, noun = sum(block.ipc for block in blocks), NOUNS[setup.real.kind]
    nested = len(setup.blocks) > 1
    learner = LEARNERS[recipe.learner]
    task = "choosing the training length" if learner.trains else "measuring the set"
    label = task + (f" at {ipc} {noun}s per class" if nested else "")
    scores = setup.validation_scores(
        blocks, recipe, setup.lengths, progress=setup.listener.work, label=label
    )
    index = int(scores.mean(0).argmax())
    steps = setup.lengths[index]
    what = f"fresh networks, {steps} steps" if learner.trains else learner.words
    chosen = "outer step and length were" if learner.trains else "the outer step was"
    accuracy = ChosenAccuracy(
        **vars(Figure.of(scores[:, index])),
        split="validation",
        protocol=f"{what}; {chosen} chosen on this split",
        stored_bytes=sum(block.stored_bytes for block in blocks),
    )
    return BudgetRecord(ipc, steps, recipe.lr, accuracy)


def write_set(distilled: DistilledSet, folder: RunFolder) -> None:
    """Write a run's set and its picture; a set that is there is kept in a folder of its own."""
    folder.keep_earlier_set()
    artefact.save(distilled, folder.path / artefact.ARTEFACT)
    write_default(distilled, folder.path)


def doubts(distilled: DistilledSet, skipped: int, steps: int) -> list[str]:
    """Return sentences on what is wrong with a run whose set is worth little, most likely.

    Args:
        distilled: its set.
        skipped: outer steps of its last stage that changed nothing.
        steps: outer steps of that stage.
    """
    found = []
    if skipped:
        most = ", most of them," if 2 * skipped > steps else ""
        found.append(
            f"note: {skipped:,} of {steps:,} outer steps{most} changed nothing, since their "
            "meta-gradient was not finite: --inner-lr may be too high, or the data hold huge values"
        )
    accuracy, classes = distilled.metadata.accuracy, len(distilled.class_names)
    if accuracy and accuracy.mean < AT_CHANCE / classes:
        found.append(
            f"note: validation accuracy is about that of guessing ({100 / classes:.3g} %): too few "
            "outer steps (--steps, --time-budget), a learning rate that is too high or too low "
            "(--outer-lr, --inner-lr), or labels that do not belong to their "
            f"{distilled.noun}s"
        )
    return found
