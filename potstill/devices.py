"""The machine: device, memory, precision, and what a measurement records of them."""

import contextlib
import ctypes
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.errors import InputError
from potstill.workers import one_thread_a_task, threads

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""
PRECISIONS, AUTO_PRECISION = ("float32", "bfloat16"), "POTSTILL_AUTO_PRECISION"
"""Precisions of a network's arithmetic; the environment variable that sets what "auto" means."""
DOTS_PAY = 5e7
"""Operations of a gradient of one example from which dot products of bfloat16 save time.

Of an outer step with a ConvNet of width 32 (2e7 at 32 pixels) they save little or nothing, with one
of width 128 (3e8) two fifths.
"""


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Give torch the global state that potstill needs inside the block, and restore it after it.

    A caller or another import may have set another default type or device, or have switched
    gradients off. Attention takes the one path that has a second derivative. On CUDA a
    convolution gives the same bits every time. On a CPU each task has a thread (workers.py).
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as restored:
        restored.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        restored.enter_context(torch.inference_mode(False))
        restored.enter_context(torch.enable_grad())
        restored.enter_context(sdpa_kernel(SDPBackend.MATH))
        restored.enter_context(one_thread_a_task())
        for flag, value in (("deterministic", True), ("benchmark", False)):
            restored.callback(
                setattr, torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag)
            )
            setattr(torch.backends.cudnn, flag, value)
        if device.type != "cpu":  # not always: such a context costs time in every call of torch
            restored.enter_context(torch.device("cpu"))
        yield


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "mps" if available["mps"] else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    there = available.get(device.type, False)
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {name} is not available here; use --device auto")
    return device


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory that this process has used since `forget_peak_memory`, in MB.

    It is the GPU's memory on CUDA, else the host's; 0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return 0.0
    if STATUS.exists():  # unlike what getrusage tells, it can be forgotten
        found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        if found:
            return int(found[1]) * 1024 / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` tell the most from now on, where the system allows that."""
    if device.type == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
    elif PEAK.exists():
        with contextlib.suppress(OSError):
            PEAK.write_text("5")  # see man 5 proc_pid_clear_refs


STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells the peak of a process, and takes the order to forget it."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device, without waiting for what the device is at."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_its_way(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Send a tensor to the host; what is returned waits for it, but not for anything later."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    host, event = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record()

    def arrived() -> torch.Tensor:
        event.synchronize()
        return host

    return arrived


def auto_precision(device: torch.device, operations: float = math.inf) -> str:
    """Choose the precision that "auto" stands for: bfloat16 where it is faster, else float32.

    Whether it costs accuracy at equal outer steps is in docs/speed.md, by window sampler. The
    environment variable POTSTILL_AUTO_PRECISION takes the place of the machine's answer, so that
    one machine can run what another would.

    Args:
        device: where the run computes.
        operations: floating-point operations of a gradient of its network, for one example.
    Raises:
        InputError: the variable holds something else.
    """
    forced = os.environ.get(AUTO_PRECISION, "")
    if forced not in ("", *PRECISIONS):
        raise InputError(
            f"{AUTO_PRECISION} must be float32 or bfloat16, got {forced!r}; change it, or unset it"
        )
    return forced or ("bfloat16" if fast_bfloat16(device, operations) else "float32")


def fast_bfloat16(device: torch.device, operations: float = math.inf) -> bool:
    """Return whether the hardware multiplies bfloat16 faster than float32 in a network.

    CPUs with instructions for dot products of bfloat16 (AVX-512), but no tiles, do so twice as
    fast, which small networks do not see.

    Args:
        device: the hardware.
        operations: floating-point operations of a gradient of the network, for one example.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)

    def has(name: str) -> bool:
        return bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)())

    return device.type == "cpu" and (
        has("amx_tile") or (has("avx512_bf16") and operations >= DOTS_PAY)
    )


def bfloat16_cost(device: torch.device) -> float:
    """Return how many times as long a convolution and its gradient take in bfloat16 as in float32.

    It is measured, in about a tenth of a second; on other devices than CPUs it is 0: not known.
    """
    if device.type != "cpu":
        return 0.0
    inputs = torch.zeros(16, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, requires_grad=True)

    def seconds(dtype: torch.dtype) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            outputs = F.conv2d(inputs.to(dtype), weight.to(dtype), padding=1)
            torch.autograd.grad(outputs.sum(), weight)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory in the process.

    Every tensor of tens of MB would else be mapped anew, page by page, each time one is made: a
    third of a training step. It holds for the whole process; without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, 1 << 30)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {name: version(name) for name in ("potstill", "torch", "numpy")}


def hardware(device: torch.device) -> str:
    """Return the device in one line for tables, e.g. "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = threads()
    return f"{platform.machine()} {device.type.upper()}, {count} thread{'s'[: count > 1]}"
