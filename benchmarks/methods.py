"""One outer step of each matching method, by potstill and by plain PyTorch (eager.py): time and
memory.

    python benchmarks/methods.py                 # updates benchmarks/results/methods.json
    python benchmarks/methods.py --only dm,dc    # of these methods only
    python benchmarks/methods.py --only mtt --match "ipc 1,"
    python benchmarks/methods.py --quick         # small shapes, to see that it works
    python benchmarks/methods.py --check         # do both give the same gradient?

The work: 3 x 32 x 32 images of ten classes, 1 and 10 a class, and a ConvNet of width 128 and depth
    3 with instance norm, in float32. DM, DC and DSA see 256 real images of each class, IDC 64 and
    four parts of each stored image; a student of MTT and TESLA takes 20 or 30 steps. A part
    "training first" is a step before which the network trains, as it does in the published loops
    of DC and DSA at ten images per class (on the set, 50 epochs, before nine of ten steps) and of
    IDC (on 2,000 real images, before all but the first of 100 steps).
Each way runs in a process of its own: "eager", and potstill "compiled" and "plain"; of DM real
    features are compiled. potstill keeps freed memory, as its runs do, and plain PyTorch is left as
    it is. Times are taken in alternation, one process at work and the others idle, after a step to
    warm up, and compared pair by pair; a ratio is the rival's over ours. Memory is the peak of the
    resident set in one step over what was resident before. Where the rival would not fit into
    memory, its figures are on a straight line through those of fewer steps, and marked so.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import date
from typing import Any

import torch
from curves import RESULTS, provenance
from meta_gradient import fits, resident, trimmed
from method_checks import check
from method_steps import Ours, Rival, compiles
from method_work import NAMES, Part, Work, parts

from potstill.devices import keep_freed_memory
from potstill.registry import METHODS
from potstill.workers import one_thread_a_task

OUT = RESULTS / "methods.json"
FULL = Work()
QUICK = Work(8, 8, (10,), 500, per_class=20, idc_per_class=10, students=(4,), micro=10)
"""All batches are of one size, so that only two functions are compiled."""
RIVAL, OURS = "eager", ("compiled", "plain")
PROBES = (2, 4)
"""Steps of a student by which the memory of more of them is foreseen."""
PAGE = 0.004
"""MB that stand for a peak of nothing, which small shapes may have."""


def threads() -> int:
    """Return how many threads each way uses: what the environment says, or all."""
    return int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def serve(way: str, work: Work, part: Part) -> None:
    """Say when ready; then take a step for each line of standard input, and answer with a line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads())
    if way == RIVAL:
        return answer(Rival(work, part), f"{part.name} by {way}")
    keep_freed_memory()  # these two as a run does
    with one_thread_a_task():
        step = Ours(work, part, "compiled" if way == "compiled" else "none")
        step.begin()
        return answer(step, f"{part.name} by {way}")


def answer(step: Ours | Rival, name: str) -> None:
    """Take a step for each line of standard input, and answer with a line."""
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        before = trimmed() if json.loads(line)["memory"] else None
        began = time.perf_counter()
        loss, grads = step()
        found = {"seconds": time.perf_counter() - began}
        if before is not None:
            found["peak_mb"] = resident()[1] - before
        if not all(bool(grad.isfinite().all()) for grad in grads.values()):
            raise ArithmeticError(f"{name}: the gradient is not finite at {loss}")
        print(json.dumps(found), flush=True)


class Worker:
    """A process that takes the steps of a part one way."""

    def __init__(self, way: str, part: Part, quick: bool):
        words = ["--serve", way, "--part", json.dumps(asdict(part)), *(["--quick"] * quick)]
        self.what = f"{part.name} by {way}"
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *, memory: bool = False) -> dict[str, float]:
        """Take a step, and return its seconds or, with its peak of memory, "peak_mb"."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"memory": memory}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        """Read a line."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.what}: the process ended, with {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def alternated(
    workers: dict[str, Worker], pairs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of each way in alternation, and its peak of memory.

    Args:
        workers: one process for each way.
        pairs: measurements of each.
    """
    memory = {}
    for worker in workers.values():
        worker.answer()  # it is ready, and has compiled
    for way, worker in workers.items():
        worker()
        memory[way] = worker(memory=True)["peak_mb"]
    seconds: dict[str, list[float]] = {way: [] for way in workers}
    for turn in range(pairs):
        # The other way round in every other turn: what drifts cancels.
        for way in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            seconds[way].append(workers[way]()["seconds"])
    return seconds, memory


def rival_line(part: Part, steps: tuple[int, int], repeats: int, quick: bool) -> dict[str, float]:
    """Return the rival's seconds and memory on a straight line through two shorter students.

    Args:
        part: what is foreseen.
        steps: of the two students.
        repeats: measurements of each.
        quick: small shapes.
    """
    points = []
    for number in steps:
        with closing(Worker(RIVAL, replace(part, students=number), quick)) as worker:
            seconds, memory = alternated({RIVAL: worker}, repeats)
            points.append((statistics.median(seconds[RIVAL]), memory[RIVAL]))
    reach = (part.students - steps[0]) / (steps[1] - steps[0])
    found = [low + reach * (high - low) for low, high in zip(*points, strict=True)]
    return dict(zip(("seconds", "peak_mb"), found, strict=True))


def measured(part: Part, pairs: int, quick: bool) -> dict[str, Any]:
    """Measure a part: seconds in alternation, and memory.

    Args:
        part: what is measured.
        pairs: measurements of each way.
        quick: small shapes.
    """
    load = os.getloadavg()[0]
    own = OURS if compiles(QUICK if quick else FULL, part).functions else OURS[1:]
    fitting = not part.students or fits(rival_line(part, PROBES, 1, quick)["peak_mb"])
    with ExitStack() as opened:
        seconds, memory = alternated(
            {
                way: opened.enter_context(closing(Worker(way, part, quick)))
                for way in (*own, RIVAL)[: None if fitting else -1]
            },
            pairs,
        )
    if not fitting:
        line = rival_line(part, (part.students // 4, part.students // 2), pairs, quick)
        seconds[RIVAL], memory[RIVAL] = [line["seconds"]] * pairs, line["peak_mb"]
    return {
        "seconds": seconds,
        "ratio": {way: ratio(seconds[RIVAL], seconds[way]) for way in own},
        "peak_mb": memory,
        "memory_ratio": {way: memory[RIVAL] / (memory[way] or PAGE) for way in own},
        "load_before": load,
        "date": date.today().isoformat(),
        "extrapolated": [] if fitting else [RIVAL],
    }


def ratio(theirs: list[float], mine: list[float]) -> dict[str, float]:
    """Return the median of their time over ours, pair by pair, and its spread."""
    found = [one / other for one, other in zip(theirs, mine, strict=True)]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def shown(name: str, result: dict[str, Any]) -> str:
    """Return a part's figures in one line."""
    seconds = ", ".join(
        f"{way} {statistics.median(values):.3g} s, {result['peak_mb'][way]:.0f} MB"
        for way, values in result["seconds"].items()
    )
    ratios = ", ".join(
        f"{way} {figure['median']:.2f} ({figure['least']:.2f} to {figure['most']:.2f}), memory "
        f"{result['memory_ratio'][way]:.2f}"
        for way, figure in result["ratio"].items()
    )
    marked = " (eager extrapolated)" if result["extrapolated"] else ""
    return f"{name}: {seconds}{marked}; eager over ours: {ratios}"


def keep(name: str, result: dict[str, Any]) -> None:
    """Put a part's figures into the results, with what they depend on."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {"parts": {}}
    work = {**asdict(FULL), "dtype": str(FULL.dtype)}
    known["parts"][name] = {**result, **provenance()}
    OUT.write_text(json.dumps({"command": "python benchmarks/methods.py", "work": work,
                               "parts": known["parts"]}, indent=2) + "\n")  # fmt: skip


def names(text: str) -> tuple[str, ...]:
    """Read names of methods, separated by commas."""
    found = tuple(text.split(","))
    if strange := set(found) - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"methods must be of {', '.join(NAMES)}, got {', '.join(sorted(strange))}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small shapes, nothing written; its ratios mean nothing",
    )
    parser.add_argument("--check", action="store_true", help="compare the gradients in float64")
    parser.add_argument("--only", type=names, default=NAMES, help="methods, separated by commas")
    parser.add_argument(
        "--pairs", type=int, help="measurements of each way (default: 5; with --quick 2)"
    )
    parser.add_argument("--match", default="", help="only parts whose name holds this text")
    known = parser.parse_args()
    work = QUICK if known.quick else FULL
    if known.serve:
        serve(known.serve, work, Part(**known.part))
        return
    torch.set_num_threads(threads())  # what provenance() tells
    if known.check:
        raise SystemExit(not check(known.only))
    wanted = [part for part in parts(work, known.only) if known.match in part.name]
    if known.quick:  # the last of each method
        wanted = list({part.method: part for part in wanted}.values())
    for part in wanted:
        if part.method not in METHODS:
            print(f"{part.name}: not registered, skipped", flush=True)
            continue
        result = measured(part, known.pairs or (2 if known.quick else 5), known.quick)
        print(shown(part.name, result), flush=True)
        if not known.quick:
            keep(part.name, result)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
