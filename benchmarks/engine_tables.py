"""Tables of the engine: times, memory, precision, noise; tables.py writes them."""

import json
import statistics
from pathlib import Path

from run_tables import percent

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "higher": "`higher` 0.2.1, float32",
    "eager": "potstill, not compiled",
    "float32": "potstill",
    "bfloat16": "potstill, `--precision bfloat16`",
    "sqrt": "potstill, `--tape sqrt`",
    "states-bfloat16": "potstill, `--tape bfloat16`",
    "graphs": "potstill, not compiled, graphs of 5 steps kept",
}
"""Each that the result has; "graphs" only older ones."""


def speed() -> str:
    """The tables of docs/speed.md."""
    result = json.loads((RESULTS / "meta_gradient.json").read_text())
    memory, cosine, limit, timing = (
        result[name] for name in ("memory", "cosine", "convolution_limit", "timing")
    )

    def cell(way: str, window: str, name: str, form: str) -> str:
        found = memory[way].get(window)
        return (
            ""
            if found is None
            else ("≈ " if "extrapolated" in found else "") + format(found[name], form)
        )

    windows = [name for name in memory["higher"] if name.isdigit()]
    lines = [
        f"| | {' | '.join(f'M = {window}' for window in windows)} | cosine to float64 "
        f"|\n{'|---' * (len(windows) + 2)}|\n"
    ]
    for way, label in WAYS.items():
        if way not in memory:
            continue
        cells = [
            f"{cell(way, window, 'seconds', '.1f')} s, {cell(way, window, 'peak_mb', ',.0f')} MB"
            for window in windows
        ]
        shown = ["" if entry.startswith(" s") else entry for entry in cells]
        lines.append(
            f"| {label} | {' | '.join(shown)} | "
            f"{format(cosine[way], '.4f') if way in cosine else ''} |\n"
        )
    work, machine = result["work"], result["machine"]
    pairs, threads = len(timing["seconds"]["higher"]), machine["threads"]
    large = memory["float32"]["10, real batch 5000"]["peak_mb"] / memory["float32"]["10"]["peak_mb"]
    speedups = "".join(
        f"- {way}: {value:.1f} times as fast as `higher`; a Hessian product takes "
        f"{limit[way]['multiple']:.2f} times what its "
        "convolutions alone take.\n"
        for way, value in timing["speedup"].items()
    )
    return (
        f"One meta-gradient of the ConvNet (width {work['width']}, depth 3, instance norm): "
        f"{work['synthetic']} synthetic images\n"
        f"of 3 x {work['side']} x {work['side']} a step, {work['burn_in']} steps of burn-in, "
        f"{work['real']} real images. "
        "Time and peak memory of single runs,\neach in a process of its own (≈: extrapolated from "
        "smaller windows):\n\n"
        f"{''.join(lines)}\n"
        f"In alternation with the rival at M = {timing['window']} (median ratio of {pairs} "
        f"pairs):\n\n{speedups}\n"
        f"A real batch of 5,000 takes {large:.2f} times the memory of one of 500.\n\n"
        f"{threads} threads of a {machine['processor']} CPU with "
        f"{', '.join(machine['capabilities'])}; "
        f"torch {result['versions']['torch']}.\n"
    )


def precision() -> str:
    """bfloat16 against float32 at equal steps."""
    result = json.loads((RESULTS / "precision.json").read_text())
    steps = list(result["accuracy"]["float32"])
    rows = [f"| outer steps | {' | '.join(steps)} | seconds |\n{'|---' * (len(steps) + 2)}|\n"]
    for name, found in result["accuracy"].items():
        seconds = [run[-1]["seconds"] for run in result["curves"][name]]
        rows.append(
            f"| {name} | {' | '.join(percent(found[step]) for step in steps)} | "
            f"{sum(seconds) / len(seconds):.0f} |\n"
        )
    difference = result["bfloat16_minus_float32"]
    rows.append(
        f"| difference, same seed | {' | '.join(percent(difference[step]) for step in steps)} | |\n"
    )
    return (
        f"{''.join(rows)}\n{result['data']}, one image a class; accuracy in % on validation images "
        f"({result['protocol']}, n = "
        f"{difference[steps[0]]['n']}).\nSeconds are those in outer steps. "
        f"{result['hardware']}; torch {result['versions']['torch']}.\n"
    )


def by_sampler() -> str:
    """Accuracy in float32 and in bfloat16 for every window sampler at equal steps."""
    result = json.loads((RESULTS / "precision_by_sampler.json").read_text())
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in result["rows"]:
        key = row["setting"], row["method"], row["precision"]
        found.setdefault(key, {})[row["seed"]] = row["accuracy"]["mean"]
    settings, methods = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))

    def cell(setting: str, method: str, precision: str) -> str:
        """Both means and the difference, over the seeds of which both are measured."""
        other, single = (found.get((setting, method, kind), {}) for kind in (precision, "float32"))
        pairs = [(single[seed], value) for seed, value in other.items() if seed in single]
        if not pairs:
            return ""
        before, after = (100 * statistics.fmean(values) for values in zip(*pairs, strict=True))
        differences = [100 * (rounded - exact) for exact, rounded in pairs]
        spread = f" ± {statistics.stdev(differences):.1f}" if len(pairs) > 1 else ""
        mean = round(after - before, 1) + 0.0  # no -0.0
        return f"{before:.1f} → {after:.1f} ({mean:+.1f}{spread}, n = {len(pairs)})"

    def lines(precision: str) -> str:
        rows = [
            (method, [cell(setting, method, precision) for setting in settings])
            for method in methods
        ]
        head = f"| | {' | '.join(settings)} |\n{'|---' * (len(settings) + 1)}|\n"
        return head + "".join(
            f"| `{name}` | {' | '.join(own)} |\n" for name, own in rows if any(own)
        )

    steps = ", ".join(
        f"{own['steps']} ({name})" for name, own in result["settings"].items() if name in settings
    )
    return (
        f"{lines('bfloat16')}\nThe same with the first inner step rounded too, which `--precision "
        "bfloat16` does not "
        f"do:\n\n{lines('bfloat16 throughout')}\n"
        "Test accuracy in %, float32 → bfloat16, and the difference from the same seed: mean ± "
        "deviation over n distilling\n"
        f"seeds. {result['nets']} test networks for each set, trained in float32 for a fixed "
        "number of steps; nothing was "
        f"chosen on test data.\nOuter steps: {steps}. Blobs: three blobs of 16 numbers,\nan MLP of "
        "width 16, inner learning "
        "rate 0.01, T = 20, M = 8. The others: the ConvNet of width 32 with Adam,\nT = 30, M = 10; "
        "of "
        "MNIST the first 10,000 training and 2,000 test images.\n`fixed` is `t-bptt` at its "
        "defaults.\n"
        f"{result['hardware']}; torch {result['versions']['torch']}.\n"
    )


WHERE = {
    "0": {},
    "1": {"burn_in": 1},
    "2": {"burn_in": 2},
    "5": {"burn_in": 5},
    "20": {"burn_in": 20},
    "60": {"burn_in": 60},
    "0, M = 1": {"window": 1},
    "0, M = 5": {"window": 5},
    "0, M = 60": {"window": 60},
    "0, width 8": {"width": 8},
    "0, width 128": {"width": 128},
}
"""Burn-in, and what else a row of the table of sources changes, beside Gaussian images, width 32
and M = 20.
"""


CASES = {
    "digits, ConvNet, Adam": ({"problem": "digits", "optimizer": "adam"}, list(WHERE)),
    "digits, ConvNet, SGD": (
        {"problem": "digits", "optimizer": "sgd"},
        ["0", "60", "0, M = 1", "0, width 128"],
    ),
    "blobs, MLP, Adam": (
        {"problem": "blobs", "optimizer": "adam"},
        ["0", "1", "0, M = 1", "0, width 128"],
    ),
}


def sources() -> str:
    """Which part of the arithmetic spoils a meta-gradient when it is rounded."""
    result = json.loads((RESULTS / "precision_sources.json").read_text())
    common = {"images": "gaussian", "width": 32, "burn_in": 0, "window": 20}
    ways, lines = list(result["ways"]), []
    for title, (own, labels) in CASES.items():
        for label in labels:
            for row in result["rows"]:
                if {**common, **own, **WHERE[label]}.items() <= row.items():
                    cells = [
                        f"{way['cosine']:.3f} ({way['least_cosine']:.2f})"
                        for way in row["ways"].values()
                    ]
                    lines.append(f"| {title}, {label} | {' | '.join(cells)} |\n")
    starts = ", ".join(sorted({str(row["starts"]) for row in result["rows"]}))
    return (
        f"| steps before the window | {' | '.join(ways)} "
        f"|\n{'|---' * (len(ways) + 1)}|\n{''.join(lines)}\n"
        f"Cosine of the meta-gradient to that in float64, median (least) of {starts} starts; width "
        "32, M = 20 and Gaussian\n"
        f"images unless said otherwise. {result['hardware']}; torch "
        f"{result['versions']['torch']}.\n"
    )


def trajectories() -> str:
    """Accuracy against seconds for numbers of trajectories and sizes of the real batch."""
    result = json.loads((RESULTS / "trajectories.json").read_text())
    rows = ["| | after a part of the time | in the end |\n|---|---|---|\n"]
    for name, points in result["curves"].items():
        cells = [
            f"{100 * point['accuracy']:.1f} ({point['step']} steps, {point['seconds']:.0f} s)"
            for point in points
        ]
        rows.append(f"| {name} | {', '.join(cells[:-1])} | {cells[-1]} |\n")
    return (
        f"{''.join(rows)}\n{result['data']}, one image a class, {result['precision']}; accuracy in "
        "% on validation images "
        f"({result['protocol']}).\n{result['hardware']}; torch {result['versions']['torch']}.\n"
    )


def threads() -> str:
    """Both ways to use threads, by kind of CPU."""
    known = json.loads((RESULTS / "threads.json").read_text())
    lines = []
    for kind, result in known.items():
        lines.append(
            f"\n{kind}; {result['hardware']}, torch {result['versions']['torch']}:\n\n"
            "| milliseconds | alone: operations | tasks | one thread | beside a busy process: "
            "operations | tasks | one thread |\n|---|---|---|---|---|---|---|\n"
        )
        for name, row in result["rows"].items():
            cells = [
                f"{row[situation][way]:,.0f}" if row[situation][way] >= 100
                else f"{row[situation][way]:.1f}"
                for situation in ("alone", "busy")
                for way in ("operations", "tasks", "one")
            ]  # fmt: skip
            lines.append(f"| {name} | {' | '.join(cells)} |\n")
    return (
        "A gradient and a Hessian product of the ConvNet (width 128) on batches of 10 and 100 "
        'digits and images of 3 x 32 x 32.\n"Operations": threads share each operation, as torch '
        'has it; "tasks": potstill; "one thread": the same parts\nby one. The busy process '
        "multiplies matrices on one thread. Medians, in turns (`benchmarks/threads.py`).\n"
        + "".join(lines)
    )


def networks() -> str:
    """Memory and time of the paper's networks."""
    result = json.loads((RESULTS / "networks.json").read_text())
    rows = "".join(
        f"| `--model {name}` | {run['parameters'] / 1e6:.1f} M | {run['peak_memory_mb']:,.0f} MB | "
        f"{run['seconds']:.0f} s |\n"
        for name, run in result["runs"].items()
    )
    return (
        f"| | parameters | peak of the process | one outer step |\n|---|---|---|---|\n{rows}\n"
        f"Instance norm unless said otherwise; CIFAR-10, M = {result['window']}, "
        f"{result['synthetic']} synthetic images a step, "
        "500 real ones\n(100 with batch norm, which takes batches whole); single runs, not "
        "compiled unless said, the data in "
        "memory included.\n"
        f"{result['hardware']}; torch {result['versions']['torch']}.\n"
    )


def variance() -> str:
    """What the variance of a meta-gradient costs."""
    result = json.loads((RESULTS / "variance.json").read_text())
    ratio, single, k = result["ratio"], result["single_sign_over_exact"], result["signs"]
    rows = [
        f"| {label} | {products} | {ratio[way]:.1f} |\n"
        for way, label, products in (
            ("brute force", "an unroll for each sample", "n (N + M)"),
            ("exact", "`--samples 100`: one unroll, n ways back", "N + n M"),
            ("signs", f"`--samples 100 --signs {k}`: one unroll, k + 1 ways back", "N + (k + 1) M"),
        )
    ]
    return (
        f"| | inner steps and products | times as fast |\n|---|---|---|\n{''.join(rows)}\n"
        f"Digits, one image a class, N = {result['unroll']}, M = {result['window']}, n = "
        f"{result['samples']}; median of "
        f"{len(result['seconds']['exact'])} turns; an unroll for each sample was timed for "
        f"{result['brute_force_timed']} of them\n"
        f"and multiplied. One combination of signs gives {single['mean']:.2f} ± "
        f"{single['std']:.2f} times the exact variance "
        f"({single['n']} combinations), k of them 1 / sqrt(k) of that spread.\n"
        f"{result['hardware']}; torch {result['versions']['torch']}.\n"
    )
