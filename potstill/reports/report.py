"""The report on runs: one HTML page that needs nothing beside it."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import potstill
from potstill.config.config import to_toml
from potstill.distillation import frames
from potstill.distillation.locks import is_held
from potstill.errors import InputError
from potstill.evaluation.records import Row
from potstill.files import write
from potstill.methods.base import Method
from potstill.registry import METHODS
from potstill.reports.charts import Chart, budget_chart, log_charts
from potstill.reports.features import Ranges, RowTable, feature_ranges, row_table
from potstill.reports.gallery import (
    Frame,
    Gallery,
    StoredPictures,
    gallery,
    png_uri,
    stored_pictures,
)
from potstill.reports.places import shown_config
from potstill.reports.run_summary import Measured, RunSummary, read_runs
from potstill.reports.side_by_side import Cell, Difference, differences, reached
from potstill.reports.templates import environment
from potstill.reports.wording import (
    Fact,
    audited,
    commands,
    facts,
    headline,
    lede,
    percent,
    progress,
    tiles,
)

MARK = "potstill report"
"""In the page's <meta name="generator">, by which potstill recognises its own files."""
COMPARED_CLASSES, COMPARED_IMAGES, COMPARED_PX = 10, 3, 48


@dataclass(frozen=True)
class RunPage:
    """A run's part of the page, as the template reads it.

    Args:
        run: its summary.
        anchor: id of its part.
        folder: its path as the page names it, quoted for a shell.
        moved: the folder's name, if that is not its path from here.
        headline: what was distilled into what.
        lede: how good the set is, in a sentence or two.
        tiles: (number, what it counts), the few to see first.
        gallery: its images, if there are any.
        rows: its vectors, if it has any.
        ranges: the ranges of their features.
        stored: the stored tensors, if images are decoded from them.
        course: how its images changed, if that was kept.
        step_words: what an outer step of its method does.
        charts: its curves.
        tables: its evaluations: lines that were measured alike, and how.
        audit: what an audit has found, in sentences.
        budgets: accuracy against images per class, if it was measured at several.
        facts: heading -> terms.
        commands: (purpose, command).
        toml: its whole configuration.
        notes: what could not be read.
    """

    run: RunSummary
    anchor: str
    folder: str
    moved: str
    headline: str
    lede: str
    tiles: list[Fact]
    gallery: Gallery | None
    rows: RowTable | None
    ranges: Ranges | None
    stored: StoredPictures | None
    course: list[Frame]
    step_words: str
    charts: list[Chart]
    tables: list[tuple[list[Row], str]]
    audit: list[str]
    budgets: Chart | None
    facts: dict[str, list[Fact]]
    commands: list[Fact]
    toml: str
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Args:
        reached: (figure, its value in each run): how far the runs came.
        options: (option, its value in each run), where the runs differ.
        derived: the same of options that follow from others.
        note: a caveat; may be empty.
        galleries: run name -> its first images.
        learned_labels: whether some of them have learned labels.
        charts: their curves, overlaid.
    """

    reached: list[tuple[str, list[Cell]]]
    options: list[Difference]
    derived: list[Difference]
    note: str
    galleries: dict[str, Gallery]
    learned_labels: bool
    charts: list[Chart]


def write_report(paths: Sequence[Path], out: Path, refresh: int = 0) -> list[str]:
    """Write a page on one run or several, finished or not.

    Args:
        paths: the run folders.
        out: the HTML file; an earlier report is replaced.
        refresh: seconds after which a browser is to read it again; 0: never.
    Returns:
        What could not be read, a sentence each; the page says it too.
    Raises:
        InputError: a folder holds no run, one is given twice, or `out` cannot be written or is a
            file of someone else's.
    """
    check_target(out)
    summaries = read_runs(paths)
    write(out, render(summaries, refresh))
    return [note for run in summaries for note in run.notes]


def check_target(out: Path) -> None:
    """Raise an InputError if no report can be written to `out`.

    This is checked before the runs are read, which may take a while.
    """
    if out.is_dir():
        raise InputError(f"out must name a file, got the folder {out}; give {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the folder of out does not exist, got {out}; make {out.parent} first")
    try:
        with out.open("rb") as file:
            ours = MARK.encode() in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"cannot read {out}, which is there already: {error.strerror}; choose another file "
            "with --out"
        ) from error
    if not ours:
        raise InputError(
            f"{out} exists and is no report of potstill; choose another file with --out"
        )


def watch(
    paths: Sequence[Path], out: Path, every: int, wait: Callable[[float], None] = time.sleep
) -> None:
    """Write a page that browsers read again and again, until no process works on the runs.

    Args:
        paths: the run folders.
        out: the HTML file.
        every: seconds between two versions.
        wait: waits for so many seconds.
    Raises:
        InputError: as for `write_report`.
    """
    while any(is_held(path) for path in paths):
        write_report(paths, out, every)
        wait(every)
    write_report(paths, out)


def render(summaries: Sequence[RunSummary], refresh: int = 0) -> str:
    """Return the text of the page; `refresh` as for `write_report`."""
    templates = environment()
    templates.filters |= {"percent": percent, "progress": progress}
    pages = [run_page(run, f"run{index}") for index, run in enumerate(summaries)]
    comparison = compared(summaries) if len(summaries) > 1 else None
    title = pages[0].headline if len(pages) == 1 else f"{len(pages)} runs compared"
    return templates.get_template("reports/report.html.jinja").render(
        title=title,
        pages=pages,
        comparison=comparison,
        generator=f"{MARK} {potstill.__version__}",
        version=potstill.__version__,
        refresh=refresh,
    )


def run_page(run: RunSummary, anchor: str) -> RunPage:
    """Collect all that the page tells of a run; its ids begin with `anchor`."""
    distilled, vectors = run.distilled, run.distilled is not None and run.distilled.kind == "vector"
    return RunPage(
        run,
        anchor,
        shlex.quote(run.place),
        run.place if run.path.is_absolute() and run.place == run.path.name else "",
        headline(run),
        lede(run),
        tiles(run),
        gallery(distilled) if distilled and not vectors else None,
        row_table(distilled) if distilled and vectors else None,
        feature_ranges(distilled) if distilled and vectors else None,
        stored_pictures(distilled) if distilled and not vectors else None,
        course(run),
        METHODS[run.config.method.name].step_words.format(noun=run.noun),
        log_charts({run.name: run.log}, anchor, run.noun, loss_words([run])),
        tables(run.measured, f"{run.noun}s"),
        audited(run),
        budget_chart(run.measured, f"{anchor}-budgets", run.noun),
        facts(run),
        commands(run),
        to_toml(shown_config(run.config)),
        [note.replace(str(run.path), run.place) for note in run.notes],
    )


def course(run: RunSummary) -> list[Frame]:
    """Return how the set looked after some steps, and last what it is now; [] if little is kept."""
    try:
        kept = list(frames.frames(run.path))
    except OSError:
        kept = []
    shown = [Frame(f"{step:,}", f"after {step:,} steps", png_uri(png)) for step, png in kept]
    if run.finished and run.distilled and run.distilled.kind == "image":
        last = run.distilled.metadata.outer_step if len(run.distilled.blocks) == 1 else None
        png = frames.frame(run.distilled.blocks, run.distilled.fitted)
        if png and (not kept or png != kept[-1][1]):
            words = "the set" if last is None else f"{last:,}: the set"
            shown.append(Frame(words, "the set", png_uri(png)))
    return shown if len(shown) > 1 else []


def loss_words(runs: Sequence[RunSummary]) -> str:
    """Return what the loss of runs is, in words; of several methods only what all share."""
    words = {METHODS[run.config.method.name].loss_words for run in runs}
    return words.pop() if len(words) == 1 else Method.loss_words


def tables(measured: Sequence[Measured], noun: str = "images") -> list[tuple[list[Row], str]]:
    """Return tables by images per class of the lines that were measured alike, and how.

    Each line is in one table only.
    """
    rows_by_words: dict[str, list[Row]] = {}
    for one in measured:
        data = "" if one.same_data else " of other data than the set was distilled from"
        record, versions = (
            one.record,
            ", ".join(f"{name} {number}" for name, number in one.record.versions.items()),
        )
        cautions = dict.fromkeys(caution for row in record.rows for caution in row.cautions)
        told = "".join(f" Note: {caution}." for caution in cautions)
        words = f"On {record.test_images:,} test {noun}{data}; {record.hardware}; {versions}.{told}"
        rows_by_words.setdefault(words, []).extend(record.rows)
    # Each line once: a set that is measured again with a baseline beside it gives the same.
    once = {words: list(dict.fromkeys(rows)) for words, rows in rows_by_words.items()}
    return [
        (sorted(rows, key=lambda row: (row.name == "full", row.ipc)), words)
        for words, rows in once.items()
    ]


def compared(runs: Sequence[RunSummary]) -> Comparison:
    """Compare runs: where they differ, how far they came, what their images look like."""
    sets = {run.name: run.distilled for run in runs if run.distilled}
    pictured = {name: distilled for name, distilled in sets.items() if distilled.kind == "image"}
    fingerprints = {
        data.fingerprint for distilled in sets.values() if (data := distilled.metadata.data)
    }
    note = (
        "These runs did not distill the same data: their accuracies do not compare."
        if len(fingerprints) > 1
        else ""
    )
    return Comparison(
        reached(runs),
        *differences(runs),
        note,
        {
            name: gallery(distilled, COMPARED_CLASSES, COMPARED_IMAGES, COMPARED_PX)
            for name, distilled in pictured.items()
        },
        any(distilled.learned_labels for distilled in sets.values()),
        log_charts({run.name: run.log for run in runs}, "all", runs[0].noun, loss_words(runs)),
    )
