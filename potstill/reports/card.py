"""The card of a set: what it is worth, how it was made and what it is not good for, as Markdown."""

import hashlib
from pathlib import Path

from potstill.distillation.run_folder import PICTURE, TABLE
from potstill.distilled.artefact import ARTEFACT
from potstill.errors import InputError
from potstill.evaluation.records import AUDIT, EVALUATION, Row
from potstill.reports import wording
from potstill.reports.run_summary import RunSummary

NOT_GOOD_FOR = (
    "Training any network that differs much from the one it was distilled for: measure it first, "
    "with `potstill evaluate --models`.",
    "Reaching the accuracy that all real {noun}s give: compare the rows above.",
    "Hiding the real {noun}s: no guarantee is given that nothing can be learned about them from "
    "these.",
)
TASKS = {"image": "image-classification", "row": "tabular-classification"}


def card(run: RunSummary, name: str, license: str = "") -> str:
    """Return the card of a finished run's set.

    Args:
        run: the run.
        name: under which others find the set, such as "user/name".
        license: of the set, as the Hub names it; "": it is not stated.
    Raises:
        InputError: the set was not measured on test data, so that the card would lack its figure.
    """
    if run.headline is None or run.distilled is None:
        raise InputError(
            f"a card tells what a set is worth on test data, that of {run.place} was not measured; "
            f"run `potstill evaluate {run.place} --baseline random` first"
        )
    noun, record = run.noun, run.headline.record
    front = [
        "---",
        *([f"license: {license}"] if license else []),
        "tags:\n- dataset-distillation\n- potstill",
        f"task_categories:\n- {TASKS[noun]}",
        f"size_categories:\n- {'n<1K' if len(run.distilled) < 1000 else '1K<n<10K'}",
        "configs:\n- config_name: default\n  data_files: data.parquet",
        "---",
    ]
    picture = f"\n![The distilled {noun}s](distilled.png)\n" if noun == "image" else ""
    facts = [
        f"| {term} | {value} |"
        for table in wording.facts(run).values()
        for term, value in table
        if value
    ]
    digest = hashlib.sha256((run.path / ARTEFACT).read_bytes()).hexdigest()
    rows = [
        f"| {row.name} | {row.images:,} | {row.model} | {row.accuracy} | {row.protocol} |"
        for row in wording_rows(run)
    ]
    cautions = sorted({one for row in record.rows for one in row.cautions})
    return "\n".join(
        [
            *front,
            f"\n# {name}: {wording.headline(run)}",
            picture,
            wording.lede(run),
            f"\n| trained on | {noun}s | network | test accuracy | protocol |",
            "|---|---|---|---|---|",
            *rows,
            f"\nMean ± standard deviation over fresh networks, on {record.test_images:,} test "
            f"{noun}s; {record.hardware}.",
            *cautions,
            "\n## Use\n",
            "```python",
            "import potstill",
            f'\ndistilled = potstill.load("hf://{name}")',
            "network = potstill.train(distilled)",
            "```",
            f"\n`{ARTEFACT}` holds the {noun}s, their preprocessing and the recipe "
            f"(sha256 `{digest}`); `data.parquet` holds the {noun}s as a table.",
            *told_of_single(run),
            "\n## Not good for\n",
            *(f"- {sentence.format(noun=noun)}" for sentence in NOT_GOOD_FOR),
            "\n## How it was made\n",
            "| | |\n|---|---|",
            *facts,
            "\nThe license of the real data holds for what was made of them.\n",
        ]
    )


def told_of_single(run: RunSummary) -> list[str]:
    """Return what an audit has found, under a heading; where to find out if there was none."""
    found = wording.audited(run)
    if found:
        return [f"\n## What it tells of single {run.noun}s\n", " ".join(found)]
    return [f"\nWhat it tells of single real {run.noun}s was not measured (`potstill audit`)."]


def wording_rows(run: RunSummary) -> list[Row]:
    """Return the rows of the evaluation that the card shows, the set first."""
    assert run.headline is not None
    rows = run.rows_of(run.headline)
    return [rows[name] for name in ("distilled", "random", "full") if name in rows]


def files_of(run: Path) -> list[Path]:
    """List the files of a run's folder that go with its set."""
    names = (ARTEFACT, PICTURE, TABLE, EVALUATION, AUDIT)
    return [run / name for name in names if (run / name).is_file()]
