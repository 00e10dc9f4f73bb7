"""What the study of methods found, for README's table and for `--method auto`."""

import json
from collections.abc import Iterator
from pathlib import Path

from potstill.config.choosing import LARGER
from potstill.config.durations import in_words, seconds_of
from potstill.registry import METHODS
from potstill.studies.boosting import RANDOM
from potstill.studies.methods import ALL, COMMON, STEPS, Methods, scale_of
from potstill.studies.results import Results, Table

ROOT = Path(__file__).parent.parent
STORED = ROOT / "docs" / "studies"
TABLE = ROOT / "potstill" / "config" / "measured_methods.json"
DATA = {"digits": (1, 8, 8), "mnist": (1, 32, 32), "cifar10": (3, 32, 32)}
"""Name -> shape of an example; MNIST is padded."""
TITLES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}


def stored() -> Iterator[tuple[str, Results]]:
    """Yield (data, results) of every stored study."""
    for data in DATA:
        path = STORED / f"methods-small-{data}" / "results.csv"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            yield data, Results.of_csv(text, Methods.quantities)


def tables() -> Iterator[tuple[str, float, Table]]:
    """Yield (data, seconds of a run, test accuracies) of every stored study."""
    for data, results in stored():
        time = scale_of("small", None if data == "digits" else data).time
        yield data, seconds_of("time_budget", time), results[COMMON]


def steps_taken() -> str:
    """Say how many outer steps RaT-BPTT took in each setting."""
    return ", ".join(
        f"{results[STEPS].spread('rat-bptt', at)[0]:.0f} ({TITLES[data]}, {at:g} a class)"
        for data, results in stored()
        for at in results[STEPS].positions("rat-bptt")
    )


def columns() -> list[tuple[str, float, Table, float]]:
    """List (data, seconds, accuracies, images per class)."""
    return [
        (data, seconds, table, at)
        for data, seconds, table in tables()
        for at in table.positions(RANDOM)
    ]


def measured() -> str:
    """Return what `--method auto` reads, as JSON."""
    settings = [
        {
            "data": TITLES[data],
            "shape": DATA[data],
            "ipc": round(at),
            "seconds": seconds,
            "accuracy": {
                method: [round(mean, 4), round(std, 4) if std == std else None]
                for method in METHODS
                if table.cell(method, at)
                for mean, std in [table.spread(method, at)]
            },
        }
        for data, seconds, table, at in columns()
    ]
    return json.dumps(settings, indent=1) + "\n"


def one_table() -> str:
    """Return the table of all methods, one column for each setting, the best printed bold."""
    known = columns()
    heads = [
        f"{TITLES[data]}, {at:g} a class, {in_words(seconds)}" for data, seconds, _, at in known
    ]
    lines = [f"| method | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|\n"]
    best = [
        max(
            table.spread(name, at)[0]
            for name in METHODS
            if name not in LARGER and table.cell(name, at)
        )
        for _, _, table, at in known
    ]
    for way in (*METHODS, RANDOM, ALL):
        cells = []
        for (_, _, table, at), most in zip(known, best, strict=True):
            words = table.words(way, at).removesuffix(" %")
            is_best = way in METHODS and words and table.spread(way, at)[0] == most
            cells.append(f"**{words}**" if is_best else words)
        if any(cells):
            name = f"`{way}`" if way in METHODS else way
            lines.append(f"| {name} | {' | '.join(cells)} |\n")
    pages = ", ".join(
        f"[{TITLES[data]}](docs/studies/methods-small-{data}/summary.md)" for data, *_ in tables()
    )
    return (
        f"{''.join(lines)}\nTest accuracy in % of ConvNets that train on each set under one "
        "protocol (`dsa-300`, on digits without flip), mean over distilling seeds, ± standard "
        "deviation where there are several. Every run had about the time of its column, experts "
        "and the choice of a training length included, on one CPU core, other programs at times "
        "beside; options are those of quick presets, so nothing here is a published setting. "
        "`haba` has two images a class where others have one; MNIST is padded to "
        "32 x 32. How much fits depends on the core "
        f"and on what else it does: `rat-bptt` took so many outer steps: {steps_taken()}. All that "
        f"was measured, with pictures, a second network, scores, seconds and memory: {pages}.\n"
    )
