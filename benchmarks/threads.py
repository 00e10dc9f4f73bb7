"""Threads that share tasks against threads that share operations: alone and beside a busy process.

    python benchmarks/threads.py              # updates benchmarks/results/threads.json
    python benchmarks/threads.py --only "digits, 100, compiled"
    python benchmarks/threads.py --quick      # small shapes, to see that it works

The work is a gradient and a Hessian product of the ConvNet (width 128, depth 3, instance norm) on a
    batch of the sizes that two data sets have. "operations": torch's own way, all threads in each
    operation, in parts that fit the caches. "tasks": potstill's (potstill/workers.py), parts that
    follow from the sizes, each computed by one thread. "one": the same parts by a single thread.
The ways take turns, and figures are medians. The busy process multiplies matrices on one thread,
    without end, and may run on any core. Results of several kinds of CPU stand beside each other.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from functools import partial
from typing import Any

import torch
from curves import RESULTS, provenance
from meta_gradient import flags

from potstill import workers
from potstill.devices import fast_bfloat16, keep_freed_memory
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel, cut_of
from potstill.engine.losses import Batch, InMicroBatches, cross_entropy
from potstill.models.convnet import ConvNet

OUT = RESULTS / "threads.json"
CPU = torch.device("cpu")
CLASSES = 10
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(500, 500)\nwhile True: a @ a"
WAYS, SECONDS, TURNS = ("operations", "tasks", "one"), 6.0, 4
"""For each work, way and situation: how long it is repeated, in how many turns."""
WORKS = {
    "digits, 10": ((1, 8, 8), 10),
    "digits, 100": ((1, 8, 8), 100),
    "32 pixels, 10": ((3, 32, 32), 10),
    "32 pixels, 100": ((3, 32, 32), 100),
}


def ways(
    shape: tuple[int, ...], count: int, width: int, precision: str, *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """The same work by each way."""
    torch.manual_seed(0)
    module = ConvNet(shape, CLASSES, width=width)
    model = FlatModel(module, precision)
    cut = cut_of(module, shape, CPU)
    inputs = torch.randn(count, *shape).requires_grad_()
    batch = Batch(inputs, torch.eye(CLASSES)[torch.arange(count) % CLASSES])
    made = {}
    for way, size in (("operations", Cut(cut.most).size(count)), ("tasks", cut.size(count))):
        network = CompiledNetwork(model) if compiled else None
        if network and way == "operations":
            network.whole = True  # its loops have all threads
        loss = network.of(model) if network else cross_entropy(model)
        made[way] = InMicroBatches(loss, size, filled=compiled)

    def take(loss: InMicroBatches) -> None:
        grad = loss.gradient(model.theta, batch, 0)[1]
        loss.product(model.theta, batch, 0, grad)

    return {way: partial(take, made["tasks" if way == "one" else way]) for way in WAYS}


@contextmanager
def computing(way: str) -> Iterator[None]:
    """Let threads share the work in this way."""
    before = torch.get_num_threads()
    if way == "one":
        torch.set_num_threads(1)
    with workers.one_thread_a_task() if way == "tasks" else nullcontext():
        yield
    torch.set_num_threads(before)


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A busy process beside this one, or none."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    time.sleep(3)  # until it has imported torch
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(taken: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each way, in turns of some calls each."""
    found: dict[str, list[float]] = {way: [] for way in taken}
    for _ in range(TURNS):
        for way, take in taken.items():
            with computing(way):
                take()  # warms up
                end = time.perf_counter() + seconds / TURNS
                while time.perf_counter() < end:
                    began = time.perf_counter()
                    take()
                    found[way].append(1e3 * (time.perf_counter() - began))
    return {way: round(statistics.median(values), 1) for way, values in found.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="rows whose name holds this; the others stay")
    given = parser.parse_args()
    keep_freed_memory()
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    rows: dict[str, Any] = known.get(", ".join(flags()), {}).get("rows", {}) if given.only else {}
    width, seconds = (8, 0.2) if given.quick else (128, SECONDS)
    kinds = [("not compiled", "float32", False), ("compiled", "float32", True)]
    if fast_bfloat16(CPU):
        kinds.append(("compiled, bfloat16", "bfloat16", True))
    for kind, precision, compiled in kinds:
        for name, (shape, count) in WORKS.items():
            if given.only not in f"{name}, {kind}":
                continue
            taken = ways(shape, count, width, precision, compiled=compiled)
            row = {}
            for situation in ("alone", "busy"):
                with neighbour(situation == "busy"):
                    row[situation] = measured(taken, seconds)
            rows[f"{name}, {kind}"] = row
            print(name, kind, json.dumps(row), flush=True)
    if given.quick:
        return
    known[", ".join(flags())] = {
        "date": str(date.today()), **provenance(), "threads": torch.get_num_threads(), "rows": rows
    }  # fmt: skip
    OUT.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
