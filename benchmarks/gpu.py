"""What a GPU does with a meta-gradient: exactness, equal bytes, times, memory, beside `higher`.

    pip install POTSTILL.whl tomli_w platformdirs higher==0.2.1
    python benchmarks/gpu.py                      # at most 5 minutes; writes gpu.json
    python benchmarks/gpu.py --quick --device cpu # small shapes, to see that it works

The work: ConvNet of width 128 and depth 3 with instance norm on random images of 3 x 32 x 32, ten
    classes. "ipc 1": 10 synthetic images a step, M = 60 after 70 steps of burn-in. "ipc 10": 100, M
    = 80 after 85. A real batch of 5,000. "launched" is every kernel launched from Python,
    "captured" programs that were recorded once (potstill/engine/programs.py).
Seconds of a captured outer step are those of STEPS that follow each other without waiting, as in a
    run, after one that warms up: the device is waited for before the first and after the last. What
    is launched from Python keeps no device busy and is timed singly. "told" is when Python has
    launched a captured one. Ways alternate, and a ratio is the median over the pairs. Memory is the
    peak over what the data take. Each part that fails says why, and the others go on. The last line
    is key=value.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data.splits import TensorSplit
from potstill.devices import hardware, own_torch_state, pick_device, synchronize, versions
from potstill.distilled.recipes import Recipe
from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel, cut_of
from potstill.engine.programs import Called, Captured, Programs, Runner
from potstill.engine.when_to_compile import NetworkFamily, compiled_networks
from potstill.evaluation.scoring import score_set
from potstill.methods.base import Examples, Problem, Real
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import Fixed, UnrolledMethod
from potstill.models import resolve
from potstill.seeds import generator

CLASSES, LR = 10, 2.0**-10  # the same number in every precision
FULL_REAL, EVALUATED = 5000, 300
PLACED = 3
"""Kernels that set a program's place."""
STEPS = 3
"""Outer steps that follow each other in a timing."""
TRAJECTORIES = {"ipc 1": (1, 2, 4, 8, 16), "ipc 10": (1, 2, 4)}


@dataclass(frozen=True)
class Setting:
    """One of the two works."""

    name: str
    per_class: int
    window: int
    burn_in: int


SETTINGS = (Setting("ipc 1", 1, 60, 70), Setting("ipc 10", 10, 80, 85))


@dataclass(frozen=True)
class Bench:
    """The device and the sizes."""

    device: torch.device
    width: int = 128
    side: int = 32
    real: int = FULL_REAL
    pairs: int = 3
    short: int = 1
    """Windows and burn-in are divided by this."""

    def factory(self) -> nn.Module:
        """Make a network."""
        return resolve("convnet", (3, self.side, self.side), CLASSES, width=self.width)()

    def data(self) -> TensorSplit:
        """Random real images on the device, twice a real batch."""
        images = torch.randn(2 * self.real, 3, self.side, self.side, generator=generator(1))
        return TensorSplit(images.to(self.device), torch.arange(len(images)) % CLASSES)

    def examples(self, setting: Setting) -> Examples:
        """Synthetic images of norm 1."""
        labels = torch.arange(CLASSES).repeat_interleave(setting.per_class)
        images = torch.randn(len(labels), 3, self.side, self.side, generator=generator(0))
        images = images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        targets = torch.eye(CLASSES)[labels]
        return Examples(images.to(self.device), targets.to(self.device), labels)

    def networks(self, precision: str) -> NetworkFamily:
        """The networks, not compiled."""
        shape = (3, self.side, self.side)
        return NetworkFamily(self.factory, shape, CLASSES, self.device, precision)

    def method(self, setting: Setting, networks: NetworkFamily, count: int = 1) -> UnrolledMethod:
        """An unroll of always the same steps."""
        cut = cut_of(self.factory().to(self.device), networks.shape, self.device)
        labels = self.examples(setting).labels
        recipe = Recipe(
            width=self.width, lr=LR, batch_per_class=setting.per_class, classes_per_batch=CLASSES
        )
        real = Real(self.data(), CLASSES, self.real, (), cut.size(self.real))
        problem = Problem(
            real, networks, labels, recipe, 0, self.device, cut.size(len(labels)), "random", cut=cut
        )
        window, burn_in = setting.window // self.short, setting.burn_in // self.short
        make: Any = Fixed.Options
        options = make(unroll=window + burn_in, window=window, burn_in=burn_in, trajectories=count)
        return Fixed(problem, options)

    def runner(self) -> Runner:
        """What a trajectory's programs are run by."""
        return Captured(self.device) if self.device.type == "cuda" else Called()


def timed(take: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call."""
    synchronize(device)
    began = time.perf_counter()
    take()
    synchronize(device)
    return time.perf_counter() - began


def a_step(take: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one of several calls in a row."""

    def several() -> None:
        for _ in range(STEPS):
            take()

    return timed(several, device) / STEPS


def told(take: Callable[[], Any], device: torch.device) -> float:
    """Seconds until a call returns, whatever the device still has to do."""
    synchronize(device)
    began = time.perf_counter()
    take()
    seconds = time.perf_counter() - began
    synchronize(device)
    return seconds


def peak_mb(take: Callable[[], Any], device: torch.device) -> float | None:
    """Most MB that a first call has, and what it keeps; None where the device does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    take()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def step(method: UnrolledMethod, examples: Examples, number: int = 0) -> Any:
    """Take an outer step."""
    return method.estimate(examples, {}, {"window": {}}, number)


def launched(method: UnrolledMethod) -> UnrolledMethod:
    """The same method, each kernel launched from Python."""
    method.__dict__["make_runner"] = None
    return method


def programmed(method: UnrolledMethod, bench: Bench) -> UnrolledMethod:
    """The same method by programs, on a CPU too."""
    method.__dict__["make_runner"] = bench.runner
    return method


def twin(bench: Bench, setting: Setting, start: FlatModel, examples: Examples, real: Any) -> Tensor:
    """The meta-gradient by a plain unroll that keeps its graph, in the types of its arguments."""
    inputs, labels = real
    images = examples.images.clone().requires_grad_()
    theta = start.theta.clone()
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for count in range((setting.burn_in + setting.window) // bench.short):
        theta = theta if theta.requires_grad else theta.requires_grad_()
        loss = F.cross_entropy(start(theta, images), examples.targets.to(theta))
        keep = count >= setting.burn_in // bench.short
        (grad,) = torch.autograd.grad(loss, theta, create_graph=keep)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        root = (square / (1 - 0.999 ** (count + 1))).clamp_min(1e-300).sqrt()
        theta = theta - LR * mean / (1 - 0.9 ** (count + 1)) / (root + 1e-8)
        if not keep:
            theta, mean, square = theta.detach(), mean.detach(), square.detach()
    return torch.autograd.grad(F.cross_entropy(start(theta, inputs), labels), images)[0]


def exactness(bench: Bench) -> dict[str, Any]:
    """Programs in float64 against the plain unroll, on the device, with a small network."""
    small = replace(bench, width=8, side=8, real=40, short=10)
    setting = SETTINGS[0]
    networks = replace(small.networks("float32"), factory=lambda: small.factory().double())
    method = programmed(small.method(setting, networks), small)
    real, examples = method.problem.real, small.examples(setting)
    split = TensorSplit(real.train.images.double(), real.train.labels)  # type: ignore[attr-defined]
    method.problem = replace(method.problem, real=replace(real, train=split))
    examples = replace(examples, images=examples.images.double(), targets=examples.targets.double())
    found = step(method, examples).grads["images"]
    start = networks.flat(method.problem.network("start", 0))
    rows, _ = method.real_rows(Replay(0))
    inputs, labels = split.take(rows)
    expected = twin(small, setting, start, examples, (inputs, labels))
    error = float((found - expected).norm() / expected.norm())
    return {"relative_error": error}


def bytes_equal(bench: Bench, networks: NetworkFamily) -> dict[str, Any]:
    """Two methods of one seed, two steps each; and captured against launched."""
    setting = SETTINGS[0]
    examples = bench.examples(setting)
    ways = [
        programmed(bench.method(setting, networks), bench),
        programmed(bench.method(setting, networks), bench),
        launched(bench.method(setting, networks)),
    ]
    found = [[step(way, examples, number).grads["images"] for number in (0, 1)] for way in ways]
    one, other, plain = (torch.stack(some) for some in found)
    return {
        "same_seed": torch.equal(one, other),
        "captured_as_launched": torch.equal(one, plain),
        "cosine_to_launched": float(
            torch.cosine_similarity(one.flatten().double(), plain.flatten().double(), dim=0)
        ),
    }


def rival(bench: Bench, setting: Setting) -> Callable[[], Tensor]:
    """`higher`, as the released code uses it, in float32."""
    import higher

    examples, train = bench.examples(setting), bench.data()
    real, labels = train.images[: bench.real], train.labels[: bench.real].to(bench.device)
    network = bench.factory().to(bench.device)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    targets = examples.labels.to(bench.device)

    def run() -> Tensor:
        network.load_state_dict(start)
        leaf = examples.images.clone().requires_grad_()
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        for _ in range(setting.burn_in // bench.short):
            optimizer.zero_grad()
            F.cross_entropy(network(leaf), targets).backward()
            optimizer.step()
        leaf.grad = None
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=True) as (inner, own):
            for _ in range(setting.window // bench.short):
                own.step(F.cross_entropy(inner(leaf), targets))
            F.cross_entropy(inner(real), labels).backward()
        assert leaf.grad is not None
        return leaf.grad

    return run


def times(bench: Bench, setting: Setting, networks: NetworkFamily) -> dict[str, Any]:
    """An outer step by each way, in alternation, and the memory of each."""
    examples = bench.examples(setting)
    ways: dict[str, Callable[[], Any]] = {}
    for name, method in (
        ("launched", launched(bench.method(setting, networks))),
        ("captured", programmed(bench.method(setting, networks), bench)),
    ):
        ways[name] = partial(step, method, examples)
    try:
        ways["higher"] = rival(bench, setting)
    except ImportError:
        print("higher is not installed: no rival", flush=True)
    found: dict[str, Any] = {
        "memory_mb": {name: peak_mb(way, bench.device) for name, way in ways.items()}
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.pairs + 1):
        for name, way in ways.items():
            take = a_step if name == "captured" else timed
            seconds[name].append(take(way, bench.device))
    found["told"] = told(ways["captured"], bench.device)
    found["seconds"] = {name: values[1:] for name, values in seconds.items()}
    for name in ("launched", "captured"):
        if "higher" in ways:
            pairs = zip(found["seconds"]["higher"], found["seconds"][name], strict=True)
            found[f"{name}_times_higher"] = statistics.median(a / b for a, b in pairs)
    return found


def by_trajectories(bench: Bench, setting: Setting, networks: NetworkFamily) -> dict[str, Any]:
    """Seconds of an outer step, a trajectory, of K at the same time."""
    examples, found = bench.examples(setting), {}
    for count in TRAJECTORIES[setting.name]:
        method = programmed(bench.method(setting, networks, count), bench)
        take = partial(step, method, examples)
        memory = peak_mb(take, bench.device)
        each = [a_step(take, bench.device) / count for _ in range(1 if count > 4 else bench.pairs)]
        found[str(count)] = {"seconds_a_trajectory": each, "memory_mb": memory}
        method.slots.clear()
        print(
            f"{setting.name}: K = {count}: {1e3 * statistics.median(each):.1f} ms each", flush=True
        )
    return found


def of_programs(bench: Bench, setting: Setting, networks: NetworkFamily) -> dict[str, Any]:
    """Milliseconds of each program, captured and as a function, and how many kernels it is."""
    found: dict[str, Any] = {}
    for name, runner in (("captured", bench.runner()), ("launched", Called())):
        method = bench.method(setting, networks)
        method.__dict__["make_runner"] = partial(same, runner)
        step(method, bench.examples(setting))
        programs, before = method.slots[0].programs, setting.burn_in // bench.short
        programs.zero(1.0)
        for kind, program in (
            ("burn-in", partial(programs.burn_in_step, 1)),
            ("tape", partial(programs.taped_step, before)),
            ("outer", programs.outer_part),
            ("walk", partial(programs.walk_step, before)),
        ):
            variant = method.slots[0].real.drawn.operations[0]
            key = (kind, variant if kind == "outer" else programs.problem.variant(before), "alone")
            run = partial(times_at, programs, key, program, 10)
            run()
            ms = [1e2 * timed(run, bench.device) for _ in range(bench.pairs)]
            entry = found.setdefault(kind, {})
            entry[f"{name}_ms"] = statistics.median(ms)
            if name == "launched" and bench.device.type == "cuda":
                once = partial(times_at, programs, key, program, 1)
                entry["kernels"] = kernels(once) - PLACED
    return found


def same(runner: Runner) -> Runner:
    """Return what is given."""
    return runner


def times_at(programs: Programs, key: Any, program: Callable[[], None], count: int) -> None:
    """Run a program `count` times at the same place."""
    for _ in range(count):
        with programs.run_program.context():  # its stream, or the place is set too late
            programs.counter.fill_(1)
            programs.at.fill_(1)
            programs.part.fill_(0)
        programs.launch(key, program)


def kernels(take: Callable[[], Any]) -> int:
    """How many kernels a call launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        take()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events())


def evaluation(bench: Bench, networks: NetworkFamily) -> dict[str, Any]:
    """Seconds that one and ten networks take to train on the set and be tested."""
    setting = SETTINGS[0]
    examples, test = bench.examples(setting), bench.data()
    recipe = Recipe(
        width=bench.width, lr=LR, batch_per_class=1, classes_per_batch=CLASSES,
        precision=networks.precision,
    )  # fmt: skip
    length = EVALUATED // bench.short

    def take(nets: int) -> None:
        score_set(
            examples.images, examples.targets, examples.labels.to(bench.device), recipe,
            bench.factory, lengths=(length,), splits=(test,), nets=nets, seed=0,
            device=bench.device, compiled=networks.compiled,
        )  # fmt: skip

    take(1)
    return {
        "steps": length,
        **{str(nets): timed(partial(take, nets), bench.device) for nets in (1, 10)},
    }


def compiled(bench: Bench, results: dict[str, Any]) -> NetworkFamily:
    """The networks with their compiled derivatives, in bfloat16 on a GPU."""
    networks = bench.networks("bfloat16" if bench.device.type == "cuda" else "float32")
    cut: Cut = cut_of(bench.factory().to(bench.device), networks.shape, bench.device)
    batches = sorted({cut.size(CLASSES * setting.per_class) for setting in SETTINGS})
    began = time.perf_counter()
    made = compiled_networks(
        networks, sorted({*batches, cut.size(bench.real)}), batches, [cut.most], print
    )
    results["compile_seconds"] = round(time.perf_counter() - began, 1)
    return networks.with_compiled(made)


def parts(bench: Bench, results: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The parts of the benchmark, by name."""
    yield "exactness", partial(exactness, bench)
    networks = bench.networks("float32")
    try:
        networks = compiled(bench, results)
    except Exception as error:
        results["compile_error"] = f"{type(error).__name__}: {error}"[:500]
    yield "bytes", partial(bytes_equal, bench, networks)
    for setting in SETTINGS:
        yield f"times {setting.name}", partial(times, bench, setting, networks)
        yield f"programs {setting.name}", partial(of_programs, bench, setting, networks)
    for setting in SETTINGS:
        yield f"trajectories {setting.name}", partial(by_trajectories, bench, setting, networks)
    yield "evaluation", partial(evaluation, bench, networks)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    device = pick_device(given.device)
    bench = Bench(device, 16, 16, 200, 1, 20) if given.quick else Bench(device)
    began = time.perf_counter()
    results: dict[str, Any] = {
        "date": str(date.today()), "hardware": hardware(device), "versions": versions(),
        "sizes": {name: getattr(bench, name) for name in ("width", "side", "real", "short")},
    }  # fmt: skip
    with own_torch_state():
        for name, part in parts(bench, results):
            at = time.perf_counter()
            try:
                results[name] = part()
            except Exception as error:  # the other parts are worth their time
                results[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            results[name]["took"] = round(time.perf_counter() - at, 1)
            print(f"{name}: {json.dumps(results[name])}", flush=True)
            if not given.quick:
                given.out.write_text(json.dumps(results, indent=2) + "\n")
    results["seconds"] = round(time.perf_counter() - began, 1)
    given.out.write_text(json.dumps(results, indent=2) + "\n")
    print(last_line(results))


def last_line(results: dict[str, Any]) -> str:
    """The figures that count, as key=value."""
    known: dict[str, Any] = {
        "hardware": results["hardware"].replace(" ", "_"),
        "relative_error": results["exactness"].get("relative_error"),
        "same_bytes": results["bytes"].get("same_seed"),
        "compile_seconds": results.get("compile_seconds"),
    }
    for setting in SETTINGS:
        short, found = setting.name.replace(" ", ""), results[f"times {setting.name}"]
        for way, values in found.get("seconds", {}).items():
            known[f"{short}_{way}_ms"] = round(1e3 * statistics.median(values), 2)
        known[f"{short}_told_ms"] = round(1e3 * found.get("told", 0), 2)
        known[f"{short}_times_higher"] = found.get("captured_times_higher")
        known[f"{short}_mb"] = (found.get("memory_mb") or {}).get("captured")
        for count, entry in results[f"trajectories {setting.name}"].items():
            if count.isdigit():
                each = statistics.median(entry["seconds_a_trajectory"])
                known[f"{short}_k{count}_ms"] = round(1e3 * each, 2)
    known["evaluation_10_over_1"] = (
        round(results["evaluation"]["10"] / results["evaluation"]["1"], 2)
        if "10" in results["evaluation"]
        else None
    )
    known["seconds"] = results["seconds"]
    return " ".join(f"{name}={value}" for name, value in known.items())


if __name__ == "__main__":
    main()
