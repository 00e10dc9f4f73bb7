"""One meta-gradient by potstill and by the released way (PyPI's higher 0.2.1 under PyTorch): time,
memory, accuracy.

    pip install higher==0.2.1
    python benchmarks/meta_gradient.py                # writes benchmarks/results/meta_gradient.json
    python benchmarks/meta_gradient.py --quick        # small shapes, to see that it works

The work: ConvNet of width 128 and depth 3 with instance norm, 100 synthetic images of 3 x 32 x 32 a
    step, inner Adam, 5 steps of burn-in, 500 real images. Each way runs in a process of its own.
    Times are taken in alternation, one process at work and the others idle, and compared pair by
    pair. Memory is the peak of the resident set while one meta-gradient is computed, over what was
    resident after importing and, for potstill, compiling.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results" / "meta_gradient.json"
BURN_IN, REAL = 5, 500
Run = Callable[..., Any]
"""(window, count of real images, burn_in=BURN_IN) -> the meta-gradient of the images."""


@dataclass(frozen=True)
class Work:
    """The sizes of the work."""

    width: int = 128
    synthetic: int = 100
    side: int = 32
    micro: int = 34


FULL, QUICK = Work(), Work(width=16, synthetic=20, side=16, micro=10)


def tensors(work: Work, dtype: Any) -> tuple[Any, ...]:
    """Synthetic images of norm 1 and their labels, real images and labels, and a network, all from
    fixed seeds.
    """
    import torch

    from potstill.models.convnet import ConvNet

    torch.manual_seed(0)
    network = ConvNet((3, work.side, work.side), 10, width=work.width).to(dtype)
    images = torch.randn(work.synthetic, 3, work.side, work.side)
    images = (images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(dtype)
    labels = torch.arange(work.synthetic) % 10
    real, real_labels = (
        torch.randn(5000, 3, work.side, work.side).to(dtype),
        torch.arange(5000) % 10,
    )
    return network, images, labels, real, real_labels


def released(work: Work, dtype: str) -> Run:
    """higher, as the released code uses it: burn-in by torch's optimiser, the window inside
    innerloop_ctx, one backward.
    """
    import higher
    import torch
    import torch.nn.functional as F

    network, images, labels, real, real_labels = tensors(work, getattr(torch, dtype))
    start = {name: value.clone() for name, value in network.state_dict().items()}

    def run(window: int, count: int, burn_in: int = BURN_IN) -> Any:
        network.load_state_dict(start)
        leaf = images.clone().requires_grad_()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(burn_in):
            optimizer.zero_grad()
            F.cross_entropy(network(leaf), labels).backward()
            optimizer.step()
        leaf.grad = None
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=True) as (
            inner,
            inner_optimizer,
        ):
            for _ in range(window):
                inner_optimizer.step(F.cross_entropy(inner(leaf), labels))
            F.cross_entropy(inner(real[:count]), real_labels[:count]).backward()
        return leaf.grad

    return run


def ours(
    work: Work, precision: str, *, compiled: bool = True, tape: str = "states",
    placement: Literal["torch", "higher-0.2.1"] = "torch",
) -> Run:  # fmt: skip
    """potstill's engine."""
    import torch
    import torch.nn.functional as F

    from potstill.devices import keep_freed_memory
    from potstill.engine.compiled_losses import CompiledNetwork
    from potstill.engine.flat import FlatModel, cut_of
    from potstill.engine.losses import Batch, InMicroBatches, cross_entropy
    from potstill.engine.optimizers import Adam
    from potstill.engine.unroll import InnerProblem, Keep, meta_gradient

    keep_freed_memory()
    dtype = torch.float64 if precision == "float64" else torch.float32
    network, images, labels, real, real_labels = tensors(work, dtype)
    targets = F.one_hot(labels, 10).to(dtype)
    model = FlatModel(network, "bfloat16" if precision == "bfloat16" else "float32")
    loss = CompiledNetwork(model).of(model) if compiled else cross_entropy(model)
    cut = cut_of(network, (3, work.side, work.side), torch.device("cpu"))
    whole = InMicroBatches(loss, cut.size(work.synthetic), filled=compiled)
    of_real = InMicroBatches(loss, cut.size(REAL), filled=compiled)
    optimizer = Adam(eps_placement=placement)
    problem = InnerProblem(whole, lambda leaves, step: Batch(leaves["images"], targets), optimizer)
    keep = Keep(dtype=torch.bfloat16 if tape == "bfloat16" else None, checkpoints=tape == "sqrt")

    class Real:
        def gradient(self, theta: Any, leaves: Any, rows: slice) -> Any:
            batch = Batch(real[rows], F.one_hot(real_labels[rows], 10).to(dtype))
            return *of_real.gradient(theta, batch, 0), {}

    def run(window: int, count: int, burn_in: int = BURN_IN) -> Any:
        ends = [(at, min(at + of_real.size, count)) for at in range(0, count, of_real.size)]
        parts = [(slice(at, end), (end - at) / count) for at, end in ends]
        hyper, start = {"lr": torch.tensor(1e-3, dtype=dtype)}, optimizer.init(model.theta)
        found = meta_gradient(
            problem,
            {"images": images},
            hyper,
            start,
            Real(),
            parts,
            burn_in=burn_in,
            window=window,
            keep=keep,
        )
        return found.leaves["images"]

    return run


WAYS: dict[str, Callable[[Work], Run]] = {
    "higher": lambda work: released(work, "float32"),
    "higher-float64": lambda work: released(work, "float64"),
    "float32": lambda work: ours(work, "float32"),
    "bfloat16": lambda work: ours(work, "bfloat16"),
    "eager": lambda work: ours(work, "float32", compiled=False),
    "float64": lambda work: ours(work, "float64", compiled=False),
    "float64-placement-higher": lambda work: ours(
        work, "float64", compiled=False, placement="higher-0.2.1"
    ),
    "sqrt": lambda work: ours(work, "float32", tape="sqrt"),
    "states-bfloat16": lambda work: ours(work, "float32", tape="bfloat16"),
}


def resident() -> tuple[float, float]:
    """(now, peak) of the resident set in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def trimmed() -> float:
    """Give freed memory back, begin to watch the peak, and return the resident set in MB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()[0]


def serve(way: str, work: Work) -> None:
    """Answer requests on standard input, a JSON line each, until it ends."""
    warnings.simplefilter("ignore")
    import torch

    began = time.perf_counter()
    from potstill.workers import one_thread_a_task

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with nullcontext() if way.startswith("higher") else one_thread_a_task():
        answer_requests(WAYS[way](work), work, began)


def answer_requests(run: Run, work: Work, began: float) -> None:
    """Do what the lines of standard input ask for."""
    import torch

    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("warm", False):
            began = time.perf_counter()
            run(1, work.micro, 0)
            print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
            continue
        keep = request.pop("save", None)
        before, began = trimmed(), time.perf_counter()
        found = run(**request)
        answer = {
            "seconds": time.perf_counter() - began,
            "peak_mb": resident()[1] - before,
            "before_mb": before,
        }
        if keep:
            torch.save(found, keep)
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that works one way."""

    def __init__(self, way: str, quick: bool):
        words = [sys.executable, __file__, "--serve", way, *(["--quick"] if quick else [])]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, **request: Any) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise MemoryError(f"the worker died at {request}")
        return json.loads(answer)  # type: ignore[no-any-return]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def timings(quick: bool, pairs: int, window: int, real: int) -> dict[str, Any]:
    """Seconds of each way in alternation, and the median over the pairs of the rival's time over
    ours.
    """
    ways = ("higher", "float32", "bfloat16")
    with (
        Worker(ways[0], quick) as rival,
        Worker(ways[1], quick) as single,
        Worker(ways[2], quick) as half,
    ):
        workers = dict(zip(ways, (rival, single, half), strict=True))
        compiling = {way: workers[way](warm=True)["seconds"] for way in ways[1:]}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(pairs + 1):  # the first of each warms up
            for way, worker in workers.items():
                seconds[way].append(worker(window=window, count=real)["seconds"])
    seconds = {way: values[1:] for way, values in seconds.items()}
    speedups = {
        way: statistics.median(
            theirs / mine for theirs, mine in zip(seconds["higher"], seconds[way], strict=True)
        )
        for way in ways[1:]
    }
    return {
        "window": window,
        "seconds": seconds,
        "speedup": speedups,
        "first_call_seconds": compiling,
    }


def memories(quick: bool, windows: list[int], real: int) -> dict[str, Any]:
    """Peak memory and time of single runs, each way and window in a fresh process."""
    found: dict[str, Any] = {}
    for way in ("higher", "float32", "bfloat16", "eager", "sqrt", "states-bfloat16"):
        for window in windows if way in ("higher", "float32", "bfloat16") else [20]:
            if (
                way == "higher"
                and window > 10
                and not quick
                and not fits(found["higher"]["10"]["peak_mb"] * window / 10)
            ):
                found[way][str(window)] = extrapolated(found[way], window)
                continue
            with Worker(way, quick) as worker:
                if way != "higher":
                    worker(warm=True)
                found.setdefault(way, {})[str(window)] = worker(window=window, count=real)
    for way in ("float32", "bfloat16"):
        with Worker(way, quick) as worker:
            worker(warm=True)
            found[way]["10, real batch 5000"] = worker(window=10, count=5000)
    return found


def fits(megabytes: float) -> bool:
    """Whether the machine has that much memory to spare, and a tenth more."""
    available = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())[
        "MemAvailable"
    ]
    return 1.1 * megabytes < int(available.split()[0]) * 1024 / 1e6


def extrapolated(found: dict[str, Any], window: int) -> dict[str, Any]:
    """A straight line through the two largest windows that were measured."""
    low, high = sorted(int(name) for name in found if "extrapolated" not in found[name])[-2:]
    line = {}
    for name in ("seconds", "peak_mb"):
        slope = (found[str(high)][name] - found[str(low)][name]) / (high - low)
        line[name] = found[str(high)][name] + slope * (window - high)
    return {**line, "extrapolated": True}


def accuracies(quick: bool, window: int, real: int) -> dict[str, float]:
    """Cosine of each way's meta-gradient to that of its own definition in float64, and the two
    definitions against each other.
    """
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:

        def gradient(way: str, **request: int) -> Any:
            path = f"{folder}/{way}.pt"
            with Worker(way, quick) as worker:
                worker(save=path, **{"window": window, "count": real, **request})
            return torch.load(path).double().flatten()

        exact = {"higher": gradient("higher-float64"), "potstill": gradient("float64")}
        found = {"higher": cosine(gradient("higher"), exact["higher"])}
        for way in ("float32", "bfloat16", "eager", "states-bfloat16"):
            found[way] = cosine(gradient(way), exact["potstill"])
        one = gradient("higher-float64", window=3, burn_in=0)
        other = gradient("float64-placement-higher", window=3, burn_in=0)
        found[
            "relative difference of higher and potstill in float64, same placement of eps, 3 "
            "steps, no burn-in"
        ] = float((one - other).norm() / one.norm())
    return found


def cosine(one: Any, other: Any) -> float:
    """Of two vectors."""
    return float(one @ other / one.norm() / other.norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="small shapes, nothing written")
    parser.add_argument(
        "--pairs", type=int, default=5, help="measurements of each way (default: 5)"
    )
    known = parser.parse_args()
    work = QUICK if known.quick else FULL
    if known.serve:
        serve(known.serve, work)
        return
    real, windows = (500, [10, 20, 40, 80]) if not known.quick else (100, [2, 4])
    result: dict[str, Any] = {"work": {**vars(work), "burn_in": BURN_IN, "real": real}}
    result["timing"] = timings(known.quick, known.pairs, windows[0], real)
    print(json.dumps(result["timing"]["speedup"]), flush=True)
    result["memory"] = memories(known.quick, windows, real) if not known.quick else {}
    result["cosine"] = accuracies(known.quick, windows[0], real)
    import torch
    from convolution_limit import limit

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    result["convolution_limit"] = limit(lambda: tensors(work, torch.float32), work.micro)
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "capabilities": flags(),
        "threads": torch.get_num_threads(),
    }
    result["versions"] = {
        name: version(name) for name in ("potstill", "torch", "numpy", "higher")
    } | {"python": platform.python_version()}
    print(json.dumps(result, indent=2))
    if not known.quick:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(last_line(result))


def flags() -> list[str]:
    """Which instructions the processor has, of those that decide how fast it is here."""
    import torch

    known = torch.cpu.get_capabilities()
    return [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if known.get(name)]


def last_line(result: dict[str, Any]) -> str:
    """The figures that matter, on one line; ratios are the rival's over ours."""
    speedup, memory, multiple = (
        result["timing"]["speedup"],
        result["memory"],
        result["convolution_limit"],
    )
    ratio = {
        way: memory["higher"]["10"]["peak_mb"] / memory[way]["10"]["peak_mb"]
        for way in ("float32", "bfloat16")
    }
    theta_mb = 4 * 4 * 319626 / 1e6  # parameters, two moments and the gradient of one step
    flat = (memory["float32"]["80"]["peak_mb"] - 80 * theta_mb) / (
        memory["float32"]["20"]["peak_mb"] - 20 * theta_mb
    )
    return (
        f"float32_speedup={speedup['float32']:.2f} bfloat16_speedup={speedup['bfloat16']:.2f} "
        f"memory_ratio_float32_m10={ratio['float32']:.1f} "
        f"memory_ratio_bfloat16_m10={ratio['bfloat16']:.1f} memory_m80_over_m20={flat:.2f} "
        f"limit_multiple_float32={multiple['float32']['multiple']:.2f} "
        f"limit_multiple_bfloat16={multiple['bfloat16']['multiple']:.2f}"
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
