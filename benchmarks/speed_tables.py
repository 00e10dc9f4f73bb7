"""Tables of docs/speed.md; tables.py writes them."""

import json
import statistics
from pathlib import Path
from typing import Any

from potstill.config.config import preset_names

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "higher": "`higher` 0.2.1, float32",
    "launched": "bfloat16, kernel by kernel",
    "captured": "bfloat16, recorded",
}


def milliseconds(seconds: list[float]) -> str:
    """Median and extremes."""
    known = [1e3 * value for value in (statistics.median(seconds), min(seconds), max(seconds))]
    return "{:.0f} ({:.0f} to {:.0f})".format(*known)


def gpu() -> str:
    """Times and memory of an outer step by each way, and what each program takes."""
    found = json.loads((RESULTS / "gpu.json").read_text())
    lines = ["| an outer step | ms | times as fast | MB beyond the data |\n|---|---|---|---|\n"]
    missing = []
    for name, part in parts_of(found).items():
        if "error" in part:
            missing.append(name)
        elif name.startswith("times "):
            lines += [row(name.removeprefix("times "), way, part) for way in WAYS]
        elif name.startswith("trajectories "):
            lines += [
                f"| {name.removeprefix('trajectories ')}, each of K = {count} | "
                f"{milliseconds(entry['seconds_a_trajectory'])} | | {entry['memory_mb']:,.0f} |\n"
                for count, entry in part.items()
                if count.isdigit()
            ]
    timings = min(
        len(part["seconds"]["captured"]) for part in parts_of(found).values() if "seconds" in part
    )
    note = f" Not measured: {', '.join(missing)}." if missing else ""
    return (
        f"{''.join(lines)}\n{found['hardware']}, torch {found['versions']['torch']}, "
        f"{found['date']}; medians, least and most of {timings}. Uncompiled, "
        f"relative error in float64 "
        f"{found['exactness']['relative_error']:.0e}; equal bytes for equal seeds: "
        f"{'yes' if found['bytes']['same_seed'] else 'no'}; compiling from a cold cache "
        f"{found['compile_seconds']:.0f} s for both settings.{note}\n"
    )


def short_runs() -> str:
    """What single changes gave in a few minutes."""
    return "\n".join(map(changes, json.loads((RESULTS / "short_runs.json").read_text())["tables"]))


def changes(found: dict[str, Any]) -> str:
    """A table of runs that take about the same time, or that have as many outer steps."""
    timed = "seconds_of" in found
    names = ["", *([f"seconds {found['seconds_of']}", "outer steps"] if timed else [])]
    names += ["validation accuracy, %"]
    lines = [f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"]
    for one in found["rows"]:
        cost = [str(one["seconds"]), str(one["steps"])] if timed else []
        cells = [one["change"], *cost, f"{one['mean']:.1f} ± {one['std']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |\n")
    return (
        f"{''.join(lines)}\n{found['about']}. {found['n']} fresh networks, one distilling seed "
        f"each. {found['hardware']}; torch {found['torch']}; {found['date']}.\n"
    )


def agreement() -> str:
    """What the meta-gradients of two outer steps have in common, by network."""
    found = json.loads((RESULTS / "agreement.json").read_text())
    lines, parts = [], list(found["data"].values())
    common = parts[0]["common"]
    for title, part in found["data"].items():
        for one in part["rows"]:
            known = {**part["common"], **one}
            how = [f"width {one['width']}"]
            forms = {
                "depth": "depth {}",
                "norm": "{} norm",
                "inner_lr": "inner rate {:g}",
                "network_init": "from the {}",
            }
            how += [form.format(one[name]) for name, form in forms.items() if name in one]
            lines.append(
                f"| {title} | `{one['model']}`, {', '.join(how)} | {known['window']} | "
                f"{one['cosine']:.4f} ± {one['error']:.4f} | "
                f"{one['norms'][1] / one['norms'][0]:,.0f} |\n"
            )
    draws = sorted({part["draws"] for part in parts})
    machines = sorted({f"{one['hardware']}; torch {one['versions']['torch']}" for one in parts})
    return (
        "| data | network | M | cosine | longest over shortest |\n|---|---|---|---|---|\n"
        f"{''.join(lines)}\nMean cosine of the meta-gradients of two outer steps at ten real "
        f"images, ± its standard error (jackknife); {' or '.join(map(str, draws))} outer steps, "
        f"T = {common['unroll']}, real batches of {common['real_batch']}, "
        f"instance norm unless said otherwise. {', '.join(machines)}.\n"
    )


def row(setting: str, way: str, part: dict[str, Any]) -> str:
    """One way's line."""
    times = part.get(f"{way}_times_higher")
    return (
        f"| {setting}, {WAYS[way]} | {milliseconds(part['seconds'][way])} | "
        f"{'' if times is None else f'{times:.1f}'} | {part['memory_mb'][way]:,.0f} |\n"
    )


def parts_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The benchmark's parts, without what tells of the machine."""
    return {
        name: part
        for name, part in found.items()
        if isinstance(part, dict) and ("took" in part or "error" in part)
    }


def presets() -> str:
    """The first two outer steps of every preset: time and memory."""
    rows = json.loads((RESULTS / "presets.json").read_text())["rows"]
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        line = (
            f"| `{name}` | {row['error']} | | |\n"
            if "error" in row
            else f"| `{name}` | {seconds_of(row)} | {row['memory_mb']:,} |\n"
        )
        machine = f"{row['processor']}; torch {row['versions']['torch']}; {row['date']}"
        if "beside" in row:
            machine += f"; seconds mean nothing, for they ran beside {row['beside']}"
        groups.setdefault(machine, []).append(line)
    head = (
        "| preset | seconds of the first two outer steps | seconds before them | "
        "peak memory, MB |\n|---|---|---|---|\n"
    )
    most = max((row["memory_mb"], name) for name, row in rows.items() if "error" not in row)
    tables = "\n".join(f"{head}{''.join(lines)}\n{machine}.\n" for machine, lines in groups.items())
    return (
        f"{len(rows)} of the {len(preset_names())} presets; the most memory, {most[0]:,} MB, takes "
        f"`{most[1]}`. Data are random "
        "images of the shape and the classes that a preset is\nfor, at most 20,000 of them (2,000 "
        "for methods that train experts, of which there is one); the memory is that\nof the "
        f"process, data included (`benchmarks/presets.py`).\n\n{tables}"
    )


def seconds_of(row: dict[str, Any]) -> str:
    """The seconds of a preset's first outer steps, and before them, if they were its own."""
    if "beside" in row:
        return " | "
    return f"{' and '.join(f'{one:,.3g}' for one in row['seconds'])} | {row['before']:,.0f}"
