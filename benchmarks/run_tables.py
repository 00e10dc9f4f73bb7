"""The table of README.md of what whole runs gave, from results of benchmarks/distill.py."""

import csv
import io
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "data",
    "images per class",
    "minutes",
    "distilled",
    "plain RaT-BPTT",
    "as many random real images",
    "outer steps",
    "of plain",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
PLAIN = "plain"
"""How the names of results with the paper's own setting end."""


def percent(figure: dict[str, Any]) -> str:
    """Mean and standard deviation over networks, in percent."""
    return f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}"


def accuracy(result: dict[str, Any], name: str) -> str:
    """The accuracy of a row of an evaluation."""
    found = {line["name"]: line for line in result["evaluation"]["rows"]}
    return percent(found[name]["accuracy"])


def row(result: dict[str, Any], plain: dict[str, Any] | None) -> str:
    """One line: a run, and plain RaT-BPTT in the same time if that was run."""
    cells = (
        result["title"],
        f"{result['images_per_class']}",
        f"{result['seconds_of_the_command'] / 60:.1f}",
        f"**{accuracy(result, 'distilled')}**",
        accuracy(plain, "distilled") if plain else "",
        accuracy(result, "random"),
        f"{result['outer_steps']:,}",
        f"{plain['outer_steps']:,}" if plain else "",
    )
    return f"| {' | '.join(cells)} |\n"


def runs() -> dict[str, dict[str, Any]]:
    """The results of whole runs, by name."""
    return {
        path.stem: found
        for path in sorted(RESULTS.glob("*.json"))
        if "title" in (found := json.loads(path.read_text()))
    }


def as_csv() -> str:
    """What the table tells, a line for each run and training set, as numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "name",
            "data",
            "images_per_class",
            "trained_on",
            "accuracy",
            "std",
            "networks",
            "training_steps",
            "bytes",
            "seconds",
            "outer_steps",
            "seed",
            "hardware",
            "torch",
            "command",
        ]
    )
    for name, found in runs().items():
        one = found["evaluation"]
        for line in one["rows"]:
            figure = line["accuracy"]
            writer.writerow(
                [
                    name, found["title"], found["images_per_class"], line["name"],
                    f"{figure['mean']:.4f}", f"{figure['std']:.4f}", figure["n"], line["steps"],
                    line["stored_bytes"], round(found["seconds_of_the_command"]),
                    found["outer_steps"], found.get("seed", 0), one["hardware"],
                    one["versions"]["torch"], found["command"],
                ]
            )  # fmt: skip
    return text.getvalue()


def table() -> str:
    """The table and the sentence under it."""
    results = runs()
    ours = sorted(
        (name for name in results if not name.endswith(PLAIN)),
        key=lambda name: (results[name]["title"], results[name]["seconds_of_the_command"]),
    )
    lines = [row(results[name], results.get(f"{name}-{PLAIN}")) for name in ours]
    evaluations = [result["evaluation"] for result in results.values()]
    counts = sorted({line["accuracy"]["n"] for one in evaluations for line in one["rows"]})
    machines = sorted({one["hardware"] for one in evaluations})
    versions = sorted({f"torch {one['versions']['torch']}" for one in evaluations})
    commands = "\n".join(
        f"    {found['command']}  # {found['title']}" for _, found in sorted(results.items())
    )
    return (
        f"{HEAD}{''.join(lines)}\n"
        f"Test accuracy in %, mean ± standard deviation over {', '.join(map(str, counts))} fresh "
        "networks trained on one\n"
        "distilled set (random: a new subset for each network), one distilling seed; training "
        "length and best step were\n"
        "chosen on held-out validation images. MNIST's 28 x 28 pixels are padded to "
        "32 x 32. Minutes are those of the whole command. Plain "
        "RaT-BPTT: the paper's windows,\n"
        "rates and real batches, for as long.\n"
        f"{'; '.join(machines)}; {', '.join(versions)}. The commands:\n\n{commands}\n"
    )
