"""What the command line prints of a result."""

import shlex
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from potstill.config.config import (
    Given,
)
from potstill.diagnosis.audit import AuditRecord
from potstill.diagnosis.machine import Finding
from potstill.diagnosis.over_a_run import Diagnosis
from potstill.diagnosis.variance import SOURCES
from potstill.distilled import artefact, exports
from potstill.distilled.sets import DistilledSet
from potstill.distilled.zoo import ReadySet
from potstill.evaluation.records import EvaluationRecord
from potstill.registry import EXPORTS, LEARNERS, METHODS

SPREAD = "± is the standard deviation over networks, not over distilling runs."


def tell(distilled: DistilledSet, out: Path) -> None:
    """Print where a finished set is, how accurate it is, and what to do with it."""
    print(f"distilled set: {out / artefact.ARTEFACT}")
    print(f"stored:        {distilled.stored}")
    print(f"file:          {artefact.file_words(distilled, out / artefact.ARTEFACT)}")
    data = distilled.metadata.data
    if data and data.disk_bytes:
        print(f"real data:     {decimal(data.disk_bytes)} on disk")
    nested = len(distilled.budgets) > 1
    for part in map(distilled.prefix, distilled.budgets):
        size = f"--ipc {part.ipc}, {part.stored_bytes:,} bytes: " if nested else ""
        learner = LEARNERS[part.recipe.learner]
        how, chose = f"by {learner.words}", "the set"
        if learner.trains:
            how, chose = f"after {part.recipe.steps:,} training steps", "the set and the steps"
        print(
            f"validation:    {size}{part.metadata.accuracy} {how}; these {part.noun}s chose "
            f"{chose}, so this is no test result"
        )
    print(f"next:          potstill evaluate {shlex.quote(str(out))}{' --all-budgets' * nested}")
    shown = exports.DEFAULTS[distilled.kind]
    print(
        f"{'table' if shown == 'csv' else 'picture'}:".ljust(15)
        + f"{out / EXPORTS[shown].default_name}"
    )


def show(records: list[EvaluationRecord], machine: str) -> None:
    """Print evaluations as a table."""
    noun = f"{records[0].noun}s"
    title = f"Test accuracy on {records[0].test_images} {noun} ({machine})"
    table = Table(title=title, title_justify="left")
    for column in (
        "trained on",
        noun,
        "per class",
        "bytes",
        "network",
        "steps",
        "lr",
        "accuracy",
        "protocol",
    ):
        right = column in (noun, "per class", "bytes", "steps", "lr")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    classes = records[0].classes
    for row in (row for record in records for row in record.rows):
        numbers = f"{row.images:,}", row.per_class(classes), f"{row.stored_bytes:,}"
        training = (
            "" if row.steps is None else f"{row.steps:,}",
            "" if row.lr is None else f"{row.lr:g}",
        )
        table.add_row(row.name, *numbers, row.model, *training, str(row.accuracy), row.protocol)
    # No terminal means a log or a pipe: there the table takes the room that it needs.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)
    if any(row.accuracy.std is not None for record in records for row in record.rows):
        print(SPREAD)


def show_audit(record: AuditRecord) -> None:
    """Print an audit: attacks and distances."""
    table = Table(
        title=f"Who was among the {record.members:,} training {record.noun}s? Guessed from a "
        f"network's loss, beside {record.others:,} test {record.noun}s ({record.hardware})",
        title_justify="left",
    )
    for column in ("networks trained on", "area under the curve", "found at 1 % false alarms"):
        table.add_column(column)
    for attack in record.attacks:
        spread = "" if attack.auc.std is None else f" ± {attack.auc.std:.3f}"
        table.add_row(
            attack.trained_on, f"{attack.auc.mean:.3f}{spread} (n = {attack.auc.n})",
            str(attack.hits),
        )  # fmt: skip
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)
    near = record.neighbours
    print("An area of 0.5, and 1 % found, are a guess; held-out data show what splits differ by.")
    print(
        f"Distance to the nearest training {record.noun} (0 to 2): of the set's least "
        f"{near.synthetic[0]:.2f}, median {near.synthetic[1]:.2f}; of test {record.noun}s least "
        f"{near.real[0]:.2f}, median {near.real[1]:.2f}. {near.nearer} of {near.count} are nearer "
        f"than 99 % of test {record.noun}s. No guarantee follows from these numbers."
    )


def show_zoo(sets: Iterable[ReadySet]) -> None:
    """Print the ready-made sets as a table."""
    table = Table(title="Ready-made sets: potstill.load('zoo:NAME')", title_justify="left")
    for column in ("name", "set", "examples", "accuracy", "random real", "bytes"):
        right = column in ("examples", "bytes")
        table.add_column(column, justify="right" if right else "left")
    for one in sets:
        figures = [str(one.accuracy[name]) for name in ("distilled", "random")]
        table.add_row(one.name, one.about, f"{one.examples:,}", *figures, f"{one.size:,}")
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)
    print(f"On test data. {SPREAD} `potstill zoo NAME` shows how a set was made.")


def show_card(one: ReadySet) -> None:
    """Print the card of a ready-made set."""
    print(f"zoo:{one.name}")
    for term, value in one.card:
        print(f"{term + ':':<22}{value}")


def show_machine(findings: Iterable[Finding]) -> None:
    """Print what was found about the machine, and what to do about it."""
    advised = []
    for one in findings:
        print(f"{one.name + ':':<17}{one.value}")
        if one.advice:
            advised.append(one)
            print(f"{'':<17}-> {one.advice}")
    if not advised:
        print("Nothing here would slow a run down.")


def show_diagnosis(diagnoses: list[Diagnosis], config: Given) -> None:
    """Print the noise at each measured step as a table."""
    first, method = diagnoses[0], config.method
    words = "; ".join(
        f"{term.lower()}: {value}" for term, value in METHODS[method.name].words(method.options)
    )
    print(f"Meta-gradient of {method.name}; {words}.")
    print("Noise is the share of its squared length that varies when something is drawn anew.")
    table = Table()
    columns = ["step"]
    columns += ["norm", "normalised variance", "noise of a sample"] if first.real else []
    columns += [f"noise with {SOURCES[name]}" for name in first.sources or ()]
    sized = [one.real_batch for one in diagnoses if one.real_batch]
    columns += ["best real batch"] if sized else []
    for column in columns:
        table.add_column(column, justify="right")
    for one in diagnoses:
        cells = []
        if one.real:
            names = ("norm", "normalised", "share")
            norm, normalised, share = (
                statistics.median(getattr(variance, name) for variance in one.real)
                for name in names
            )
            cells = [f"{norm:.3g}", f"{normalised:.3g}", in_percent(share)]
        cells += [in_percent(variance.share) for variance in (one.sources or {}).values()]
        cells += [f"{one.real_batch.best:,}"] if one.real_batch else []
        table.add_row(f"{one.step:,}", *cells)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)
    if sized:
        known = sorted(one.gain for one in sized)
        gains = " to ".join(dict.fromkeys(f"{gain:.2f}" for gain in (known[0], known[-1])))
        print(
            "The best real batch has the least noise for the time on this machine; to the same "
            f"noise the run's {sized[0].present:,} take {gains} times as long."
        )


def in_percent(share: float) -> str:
    """Write a fraction in per cent."""
    return f"{100 * share:.0f} %"
