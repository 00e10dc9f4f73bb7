"""What the machine offers a run, and what would be slow on it and why."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import torch
import torch.nn.functional as F
from rich.filesize import decimal

from potstill.devices import bfloat16_cost, fast_bfloat16, pick_device, versions
from potstill.engine.compiled_losses import CACHE_VARIABLE
from potstill.workers import threads

EXTRAS = {
    "datasets": "data from the Hugging Face Hub (--data hf:NAME)",
    "timm": "networks of timm",
    "tensorboard": "curves in TensorBoard",
}
"""Libraries that potstill uses if they are there -> for what."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
LOW_SPACE, LOW_MEMORY = 5e9, 4e9  # bytes
BUSY = 0.5
"""Load of other processes, a core, from which a run is noticeably slower."""


@dataclass(frozen=True)
class Finding:
    """One line about the machine.

    Args:
        name: what was looked at.
        value: what was found.
        advice: what would be slow or fail because of it, and the way out; "" if nothing.
    """

    name: str
    value: str
    advice: str = ""


def examined(folder: Path) -> Iterator[Finding]:
    """Look at the machine, as a run in this folder would find it; it takes a second or two.

    Args:
        folder: where runs would be written.
    """
    yield Finding("potstill", f"{versions()['potstill']}, Python {platform.python_version()}")
    yield Finding("torch", f"{torch.__version__}, numpy {versions()['numpy']}")
    for name, purpose in EXTRAS.items():
        yield Finding(name, installed(name) or f"not installed; only for {purpose}")
    yield Finding("system", f"{platform.system()} {platform.machine()}")
    device = pick_device("auto")
    yield accelerator(device)
    yield processor()
    yield load()
    yield memory()
    if device.type == "cpu":
        yield Finding("convolutions", f"{convolution_rate() / 1e9:,.0f} GFLOP/s on one thread")
    yield precision(device)
    yield compiler(device)
    yield space("free here", folder)
    yield space("free for caches", Path(platformdirs.user_cache_dir("potstill")))


def installed(name: str) -> str:
    """Return the version of a distribution; "" if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def accelerator(device: torch.device) -> Finding:
    """Return what a run with --device auto would compute on."""
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("device", f"cuda: {', '.join(names)}")
    if device.type == "mps":
        return Finding("device", "mps: Apple's GPU", "it never ran on one in our tests")
    if shutil.which("nvidia-smi"):
        return Finding(
            "device", "cpu",
            "there is an NVIDIA driver, but this torch is without CUDA or cannot reach it; install "
            "torch for CUDA",
        )  # fmt: skip
    return Finding("device", "cpu, no GPU")


def processor() -> Finding:
    """Return the CPU's cores and the instructions that matter."""
    cores, used = usable_cores(), threads()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text_of("/proc/cpuinfo"), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    known = ", ".join(name for name in INSTRUCTIONS if name in flags)
    value = f"{cores} core{'s'[: cores > 1]}" + f" with {known}" * bool(known)
    if used < cores:
        return Finding(
            "processor", value,
            f"torch takes {used} thread{'s'[: used > 1]} of them; unset OMP_NUM_THREADS or give "
            "--threads",
        )  # fmt: skip
    return Finding("processor", value)


def usable_cores() -> int:
    """Return the CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def load() -> Finding:
    """Return how busy other processes keep the cores."""
    if not hasattr(os, "getloadavg"):
        return Finding("load", "not known on this system")
    busy, cores = os.getloadavg()[0], usable_cores()
    return Finding(
        "load",
        f"{busy:.1f} processes wait for or have a core",
        "others compute here: time budgets buy fewer outer steps" * (busy / cores > BUSY),
    )


def memory() -> Finding:
    """Return the memory that is free."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", text_of("/proc/meminfo"))
    if not found:
        return Finding("memory", "not known on this system")
    free = int(found[1]) * 1024
    return Finding(
        "memory",
        f"{decimal(free)} free",
        "large networks or data may not fit: lower --micro-batch, or use --storage mapped"
        * (free < LOW_MEMORY),
    )


def precision(device: torch.device) -> Finding:
    """Return what --precision auto stands for in a wide network, and why."""
    cost = bfloat16_cost(device)
    value = "bfloat16 in wide networks" if fast_bfloat16(device) else "float32"
    if not cost:
        return Finding("precision", value)
    value += f"; a convolution in bfloat16 takes {cost:.2g} times as long as in float32"
    return Finding("precision", value, "do not ask for bfloat16 here" * (cost > 1))


def compiler(device: torch.device) -> Finding:
    """Return the compiler with which long runs are compiled."""
    if device.type == "cuda":
        there = find_spec("triton") is not None
        return Finding(
            "compiler", "triton" if there else "none", "runs are not compiled" * (not there)
        )
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    found = next((name for name in names if name and shutil.which(name)), "")
    if not found:
        return Finding(
            "compiler", "none",
            "long runs take up to three times as long as compiled ones; install g++ or clang++",
        )  # fmt: skip
    kept = Path(os.environ.get(CACHE_VARIABLE, platformdirs.user_cache_dir("potstill")))
    return Finding("compiler", found, "" if writable(kept) else f"cannot write to {kept}")


def space(name: str, folder: Path) -> Finding:
    """Return how much room a folder's disk has."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    advice = "" if writable(there) else f"cannot write to {there}"
    if not advice and free < LOW_SPACE:
        advice = "compiled code and prepared data may not fit: make room, or set --cache-dir"
    return Finding(name, decimal(free), advice)


def writable(folder: Path) -> bool:
    """Return whether a folder, or the nearest above it that exists, can be written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return os.access(there, os.W_OK)


def convolution_rate() -> float:
    """Return the floating-point operations a second of a convolution, on one thread."""
    images, channels, side, kernel = 10, 128, 16, 3
    inputs = torch.zeros(images, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(channels, channels, kernel, kernel)
    work = 2 * images * channels**2 * side**2 * kernel**2
    return work / fastest(lambda: F.conv2d(inputs, weight, padding=1))


def fastest(function: Callable[[], object], turns: int = 5) -> float:
    """Return the seconds of a function's fastest call, on one thread."""
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(turns):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return min(times)


def text_of(path: str) -> str:
    """Return what Linux tells in a file, or "" elsewhere."""
    return Path(path).read_text() if sys.platform == "linux" and Path(path).exists() else ""
