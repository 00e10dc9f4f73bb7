"""The tables of docs/comparing.md; tables.py writes them."""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMON = "dsa-1000-digits"
QUICK, STEPS, REGRESSIONS = "quick_methods.json", "methods.json", "regression_steps.json"
RESULTS = Path(__file__).parent / "results"


def of_seeds(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def quick() -> str:
    """Accuracy, seconds and memory of the quick presets."""
    found: dict[str, dict[str, Any]] = json.loads((RESULTS / QUICK).read_text())
    lines = [
        f"| method | test accuracy, %, by `{COMMON}` | by the set's recipe | images, bytes "
        f"| seconds, first run | peak memory, MB |\n{'|---' * 6}|\n"
    ]
    for method, seeds in found.items():
        runs = list(seeds.values())
        first = seeds["0"]
        peaks = [run["MB"] for run in runs if "MB" in run]
        memory = f"{max(peaks):,}" if peaks else ""
        lines.append(
            f"| `{method}` | **{of_seeds([run[f'accuracy by {COMMON}'] for run in runs])}** "
            f"| {of_seeds([run['accuracy'] for run in runs])} | {first['images']}, "
            f"{first['stored bytes']:,} | {first['seconds']:.0f} | {memory} |\n"
        )
    every = [run for seeds in found.values() for run in seeds.values()]
    machines = sorted({run["hardware"] for run in every})
    torches = sorted({run["versions"]["torch"] for run in every})
    counts = sorted({len(seeds) for seeds in found.values()})
    nets = sorted({run["networks"] for run in every})
    return (
        f"{''.join(lines)}\nMean ± standard deviation over {', '.join(map(str, counts))} "
        f"distilling seeds, each the mean of {', '.join(map(str, nets))} fresh networks tested on "
        "MNIST's test images. Seconds are those of the whole command in the first seed, reading "
        "MNIST, training experts and choosing the length included; memory "
        "is the most of all seeds. "
        f"{'; '.join(machines)}; torch {', '.join(torches)}.\n"
    )


def made() -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, function) of every table whose figures there are."""
    for name, file, make in (
        ("quick", QUICK, quick),
        ("methods", STEPS, steps),
        ("regressions", REGRESSIONS, regressions),
    ):
        if (RESULTS / file).exists():
            yield name, make


def regressions() -> str:
    """Seconds and memory of a step of FRePo and RFAD, beside plain PyTorch and convolutions."""
    known = json.loads((RESULTS / REGRESSIONS).read_text())
    lines = [
        "| step | plain PyTorch | potstill | its convolutions alone | times as fast as plain "
        f"| over its convolutions | plain memory over ours |\n{'|---' * 7}|\n"
    ]
    for name, part in known["parts"].items():
        cells = [
            f"{statistics.median(part['seconds'][way]):.2g} s, {part['peak_mb'][way]:,.0f} MB"
            for way in ("plain", "potstill")
        ]
        alone = statistics.median(part["seconds"]["convolutions"])
        ratio = part["over_ours"]
        memory = part["peak_mb"]["plain"] / part["peak_mb"]["potstill"]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {alone:.2g} s | {ratio['plain']:.2f} "
            f"| {1 / ratio['convolutions']:.2f} | {memory:.2g} |\n"
        )
    pairs = sorted({len(part["seconds"]["plain"]) for part in known["parts"].values()})
    return (
        f"{''.join(lines)}\nMedian of {', '.join(map(str, pairs))} turns in alternation, in one "
        "process, uncompiled; 1,024 real images a step; memory is the peak of one step over what "
        f"was resident before. {known['hardware']}; torch {known['versions']['torch']}.\n"
    )


def steps() -> str:
    """Seconds and memory of an outer step, beside plain PyTorch."""
    known = json.loads((RESULTS / STEPS).read_text())
    lines = [
        "| step | plain PyTorch | potstill, not compiled | potstill, compiled | times as fast "
        f"| its memory over ours |\n{'|---' * 6}|\n"
    ]
    for name, part in known["parts"].items():
        best = "compiled" if "compiled" in part["seconds"] else "plain"
        cells = []
        for way in ("eager", "plain", "compiled"):
            own = part["seconds"].get(way)
            about = "≈ " if way in part["extrapolated"] else ""
            cells.append(
                f"{about}{statistics.median(own):.2g} s, {part['peak_mb'][way]:,.0f} MB"
                if own
                else ""
            )
        ratio = part["ratio"][best]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {ratio['median']:.2f} ({ratio['least']:.2f} to "
            f"{ratio['most']:.2f}) | {part['memory_ratio'][best]:.2g} |\n"
        )
    some = next(iter(known["parts"].values()))
    pairs = sorted({len(part["seconds"]["plain"]) for part in known["parts"].values()})
    return (
        f"{''.join(lines)}\nMedian (least to most) of {', '.join(map(str, pairs))} pairs in "
        "alternation, each way in a process of its own; memory is the peak of one step over what "
        f"was resident before; ≈: extrapolated from fewer steps. {some['hardware']}; torch "
        f"{some['versions']['torch']}.\n"
    )
