"""Write the tables of README.md from benchmarks/results/*.json; with --check, say whether they are up to date."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
BEGIN, END = "<!-- results: made by benchmarks/tables.py -->", "<!-- end of results -->"
COLUMNS = ("data", "images per class", "distilled", "as many random real images", "outer steps", "seconds per step")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def percent(figure: dict[str, Any]) -> str:
    """Mean and standard deviation over networks, in percent."""
    return f"{100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}"


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    found = {line["name"]: line for line in result["evaluation"]["rows"]}
    return (
        f"| {result['title']} | {result['images_per_class']} | **{percent(found['distilled']['accuracy'])}** "
        f"| {percent(found['random']['accuracy'])} | {result['outer_steps']:,} | {result['seconds_per_outer_step']:.2f} |\n"
    )


def table() -> str:
    """The table and the sentence under it."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    counts = sorted({line["accuracy"]["n"] for result in results for line in result["evaluation"]["rows"]})
    machines = sorted({result["evaluation"]["hardware"] for result in results})
    versions = sorted({f"torch {result['evaluation']['versions']['torch']}" for result in results})
    commands = "\n".join(f"    {result['command']}" for result in results)
    return (
        f"{HEAD}{''.join(map(row, results))}\n"
        f"Test accuracy in %, mean ± standard deviation over {', '.join(map(str, counts))} fresh networks trained on one\n"
        "distilled set (random: a new subset for each network); training length and best step were chosen on\n"
        "held-out validation images.\n"
        f"{'; '.join(machines)}; {', '.join(versions)}. The commands:\n\n{commands}\n"
    )


def main() -> None:
    text = README.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    new = pattern.sub(lambda _: f"{BEGIN}\n{table()}{END}", text)
    if "--check" in sys.argv:
        sys.exit(None if new == text else "README.md is out of date; run: python benchmarks/tables.py")
    README.write_text(new)


if __name__ == "__main__":
    main()
