"""Randomness that can be replayed: every generator follows from (seed, purpose, step, ...).

A resumed run therefore needs no stored state.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_global = threading.RLock()
"""Held by whoever seeds the global generators, which all threads share."""


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. derive(seed, "window", outer_step).

    Other parts give independent streams.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive`.

    Draws are made on the CPU for every device, so that all devices see the same numbers.
    """
    return torch.Generator().manual_seed(derive(seed, *parts))


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For code that can only use the global generator: initialisers of nn.Module and dropout. One
    thread at a time is inside.
    """
    devices = [device] if device.type == "cuda" else []
    with _global, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def draws_random(call: Callable[[], object], device: torch.device) -> bool:
    """Return whether a call draws from torch's global generators of the CPU or the device."""

    def states() -> list[torch.Tensor]:
        found = [torch.get_rng_state()]
        if device.type == "cuda":
            found.append(torch.cuda.get_rng_state(device))
        elif device.type == "mps":
            found.append(torch.mps.get_rng_state())
        return found

    with global_seed(0, device):
        before = states()
        call()
        return not all(map(torch.equal, before, states()))
