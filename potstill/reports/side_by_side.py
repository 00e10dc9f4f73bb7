"""What a report says of several runs beside each other."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config.config import options_of_run
from potstill.records.metrics import Figure
from potstill.reports.places import shown_config
from potstill.reports.run_summary import RunSummary
from potstill.reports.wording import percent, progress

Difference = tuple[str, list[str]]
"""An option, and its value in each run."""
OFTEN_GIVEN = ("steps", "outer_lr", "batch_per_class", "classes_per_batch", "augment")
"""Options that are given as often as they follow from others, and change what is distilled."""


@dataclass(frozen=True)
class Cell:
    """What a table says of a run.

    Args:
        words: the value, or why there is none.
        command: what measures it, if it is missing.
    """

    words: str
    command: str = ""


def reached(runs: Sequence[RunSummary]) -> list[tuple[str, list[Cell]]]:
    """Return (figure, its value in each run): how far the runs came."""
    tests, random = [run.test("distilled") for run in runs], [run.test("random") for run in runs]
    stored = [f"{run.distilled.stored_bytes:,}" if run.distilled else "" for run in runs]
    rows = [
        ("Outer steps", [Cell(progress(run)) for run in runs]),
        ("Validation accuracy", [measured(run, run.validation) for run in runs]),
        (
            "Test accuracy",
            [measured(run, test and test[0]) for run, test in zip(runs, tests, strict=True)],
        ),
        ("Bytes stored", [Cell(words) for words in stored]),
    ]
    if any(random):
        cells = [
            measured(run, test and test[0], " --baseline random")
            for run, test in zip(runs, random, strict=True)
        ]
        rows.append((f"Test accuracy, random real {runs[0].noun}s", cells))
    return rows


def measured(run: RunSummary, figure: Figure | None, more: str = "") -> Cell:
    """Write a figure for a table or, without one, how to measure it.

    Args:
        run: whose figure it is.
        figure: None if it was not measured.
        more: options of the command that measures it.
    """
    if figure:
        return Cell(f"{percent(figure)} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{figure.n})")
    folder = shlex.quote(run.place)
    if run.in_python:
        return Cell("not measured:", "potstill.evaluate" if run.finished else "potstill.resume")
    if not run.finished:
        return Cell("not measured, unfinished:", f"potstill distill --resume {folder}")
    return Cell("not measured:", f"potstill evaluate {folder} --nets 10{more}")


def differences(runs: Sequence[RunSummary]) -> tuple[list[Difference], list[Difference]]:
    """Return (option, its value in each run) where the runs differ.

    Those of the first list were given or chosen; those of the second follow from others unless
    they were given: "auto" is their default, or they have it and come with a part that only some
    of the runs have. A run that lacks an option has "" there.
    """
    options = [shown_config(run.config).flat() for run in runs]
    known = {option.name: option for one in options for option in options_of_run(one)}
    given, derived = list[Difference](), list[Difference]()
    for name in dict.fromkeys(name for one in options for name in one):
        values = [one[name] for one in options if name in one]
        texts = [option_text(one[name]) if name in one else "" for one in options]
        if len(set(texts)) == 1:
            continue
        auto = known[name].default == "auto" and name not in OFTEN_GIVEN
        untouched = len(values) < len(runs) and set(values) == {known[name].default}
        follows = known[name].field is not None and (auto or untouched)
        (derived if follows else given).append((name, texts))
    return given, derived


def option_text(value: Any) -> str:
    """Write the value of an option as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
