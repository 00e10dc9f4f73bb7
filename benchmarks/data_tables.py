"""Tables of data that are large, no images, or decoded; tables.py writes them."""

import json
from pathlib import Path

from run_tables import percent

RESULTS = Path(__file__).parent / "results"


def large() -> str:
    """What a data set of ImageNet's size costs."""
    result = json.loads((RESULTS / "large_data.json").read_text())
    first, again, drawn, run = (result[name] for name in ("first", "again", "batches", "run"))
    count = result["train"] + result["test"]
    rows = [
        (
            "reading the folder for the first time",
            f"{first['seconds']:,.0f} s",
            f"{first['own_memory_mb']:,.0f} MB",
        ),
        ("again", f"{again['seconds']:,.0f} s", f"{again['own_memory_mb']:,.0f} MB"),
        (
            "mean and deviation of the channels",
            f"{drawn['preprocessing_seconds']:,.0f} s",
            f"{drawn['own_memory_mb']:,.0f} MB",
        ),
        ("drawing 1,500 images, uniformly", f"{drawn['uniform_draw_seconds']:.3f} s", ""),
        ("by weight", f"{drawn['weighted_draw_seconds']:.3f} s", ""),
        (
            "reading them, where the system holds the file in its cache",
            f"{drawn['warm_seconds']:.2f} s",
            "",
        ),
        ("reading them from the disk", f"{result['cold']['seconds']:.2f} s", ""),
        (
            f"an outer step of `imagenet-ipc1` with T = {run['options']['unroll']}, M = "
            f"{run['options']['window']}",
            f"{run['seconds']:.0f} s",
            f"{run['own_memory_mb']:,.0f} MB",
        ),
    ]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return (
        f"| | time | memory |\n|---|---|---|\n{lines}\n{count:,} JPEG files of {result['pixels']} "
        f"pixels in {result['classes']:,} "
        "classes; photographs of ImageNet's own size take longer to decode. Memory is the "
        "process's own;\npages of mapped files, "
        f"which the system takes back when it needs them, are not in it. {result['hardware']}; "
        "torch "
        f"{result['versions']['torch']}.\n"
    )


def vectors() -> str:
    """Distilled rows of tables beside random real ones and a logistic regression on all."""
    result = json.loads((RESULTS / "vectors.json").read_text())
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    heads = [
        "",
        "rows per class",
        *(f"`{method}`" for method in methods),
        "as many random real rows",
        "logistic regression on all",
    ]
    lines = [f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n"]
    for name, ipc in dict.fromkeys((row["data"], row["ipc"]) for row in result["rows"]):
        own = {
            row["method"]: row for row in result["rows"] if (row["data"], row["ipc"]) == (name, ipc)
        }
        whole = result["all_rows"][name]
        cells = [
            name,
            str(ipc),
            *(
                f"**{percent(own[method]['distilled'])}**" if method in own else ""
                for method in methods
            ),
        ]
        cells += [
            percent(next(iter(own.values()))["random"]),
            f"{100 * whole['accuracy']:.1f} ({whole['train']} rows)",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    sizes = "; ".join(
        f"{name}: {whole['shape'][0]} features, {whole['classes']} classes, {whole['validation']} "
        f"validation and {whole['test']} test rows"
        for name, whole in result["all_rows"].items()
    )
    count = result["rows"][0]["distilled"]["n"]
    return (
        f"{''.join(lines)}\nTest accuracy in %, mean ± standard deviation, n = {count} "
        f"({result['protocol']}).\n{sizes}. "
        f"{result['hardware']}; torch {result['versions']['torch']}, scikit-learn "
        f"{result['versions']['scikit-learn']}.\n"
    )


def decoding() -> str:
    """Which share of an outer step decoding takes."""
    result = json.loads((RESULTS / "decoding.json").read_text())
    rows, params = result["rows"], list(dict.fromkeys(row["param"] for row in result["rows"]))
    lines = [
        f"| | {' | '.join(f'`{param}`' for param in params)} |\n{'|---' * (len(params) + 1)}|\n"
    ]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = {row["param"]: row for row in rows if row["setting"] == setting}
        cells = [
            f"{100 * own[param]['share']:.2g} % of {own[param]['seconds']:.2g} s"
            for param in params
        ]
        lines.append(f"| {setting} | {' | '.join(cells)} |\n")
        counts = [f"{own[param]['images']:,}, {own[param]['bytes']:,}" for param in params]
        lines.append(f"| images, bytes | {' | '.join(counts)} |\n")
    return (
        f"{''.join(lines)}\nShare of an outer step that decoding and the way back through it take "
        f"(T = {result['unroll']}, M = "
        f"{result['window']}, up to 100 images a batch,\n10 classes, budget 1 unless said "
        "otherwise); medians of "
        f"{rows[0]['steps']} steps. {result['hardware']}; torch {result['versions']['torch']}.\n"
    )
