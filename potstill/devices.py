"""The machine: which device, how much memory, what to write down of it beside a measurement."""

import platform
import sys
from importlib.metadata import version

import torch

from potstill.registry import InputError


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: it is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
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
    """The most memory this process has used, in MB: of the GPU on CUDA, else of the host (0 where it cannot be told).

    On the host, pages of memory-mapped data count too, though the system may take them back at any time.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def versions() -> dict[str, str]:
    """The libraries that a result depends on."""
    return {name: version(name) for name in ("potstill", "torch", "numpy")}


def hardware(device: torch.device) -> str:
    """One line for tables, e.g. "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type.upper()}, {threads} thread{'s'[: threads > 1]}"
