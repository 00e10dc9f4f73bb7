"""A rank's connection to the others: heartbeats, meetings, and who is gone.

Ranks wait for a slow rank, but not for a dead one. Heartbeats tell which it is: each rank counts up
in a store beside the run, in a separate thread, whatever the rank is busy with. And ranks meet in
the store before each message, since a call of gloo or NCCL that waits for a dead rank cannot be
cancelled.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.errors import InputError
from potstill.files import canonical

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of each process."""
START = "start by `torchrun --nproc-per-node N -m potstill ...`"
AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Is "True" where torchrun itself keeps the store in which ranks meet."""
BEAT, PATIENCE, HURRY = 1.0, 40.0, 5.0
"""Seconds between heartbeats; until a rank without one counts as dead; the same when told to stop.
"""
JOINING = timedelta(seconds=PATIENCE)
"""How long ranks wait for the store."""
MESSAGE = timedelta(seconds=PATIENCE)
"""How long a message may take, once all ranks are ready for it."""
POLL, MOST_POLL = 0.0005, 0.05
"""Seconds between polls: the first, and the longest."""
ANSWER: list[bool] = []
"""The answer of `first_to_tell` in this process, once it was called."""


class Store(Protocol):
    """The methods of torch's stores that ranks use: texts by name, which all ranks see."""

    def set(self, key: str, value: str) -> None:
        """Store a text."""

    def get(self, key: str) -> bytes:
        """Read a text; wait until it is there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether all of these texts are there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and return the new number."""
        ...


class Lost(InputError):
    """Another rank has ended, so that this one cannot go on."""


class Link:
    """A rank's connection to the others.

    Args:
        index: the rank's number.
        count: how many there are.
        known: the environment.
    """

    def __init__(self, index: int, count: int, known: Mapping[str, str]):
        self.index, self.count = index, count
        self.cause, self.patience = "", PATIENCE
        """Why another rank ended; seconds until a rank without a heartbeat counts as dead."""
        self.calls = self.told = 0
        """How often `gather` and `tell` were called."""
        # torchrun keeps the store itself; started by hand, rank 0 does.
        self.serves = index == 0 and known.get(AGENT) != "True"
        self.store = store_of(known, JOINING, serve=self.serves)
        # A connection of its own: the other may be waiting in a call.
        self.life = store_of(known, JOINING)
        self.looked = time.monotonic()
        """When the thread last polled: if it is held up, the others do not count as silent."""
        self.seen = {rank: ("", self.looked) for rank in range(self.count) if rank != self.index}
        """Other rank -> its last heartbeat, and when it arrived."""
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.live, name="signs of life", daemon=True)
        self.thread.start()
        self.tell({})  # all are here: connecting takes no time
        backend = (
            "cpu:gloo,cuda:nccl"
            if torch.cuda.is_available() and dist.is_nccl_available()
            else "gloo"
        )
        store: Any = self.store
        dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=MESSAGE)

    def hurry(self) -> None:
        """Wait less long for the others from now on."""
        self.patience = HURRY

    def live(self) -> None:
        """Send heartbeats, and watch for those of the others."""
        beats = 0
        while not self.closed.wait(BEAT):
            beats += 1
            try:
                self.life.set(f"alive/{self.index}", str(beats))
                for rank, (before, _) in self.seen.items():
                    beat = read(self.life, f"alive/{rank}")
                    if beat != before:
                        self.seen[rank] = (beat, time.monotonic())
                self.looked = time.monotonic()
                self.cause = self.cause or read(self.life, "ended")
            except RuntimeError:
                self.cause = (
                    self.cause or "torchrun, or the rank that all are connected to, is gone"
                )
                return

    def until(self, done: Callable[[], bool]) -> None:
        """Wait until `done` says so; raise Lost if a rank ends before."""
        began = time.monotonic()
        while not done():
            if self.cause:
                raise Lost(self.cause)
            for rank in self.silent(self.patience):
                raise Lost(
                    f"rank {rank} of {self.count} is gone: no sign of life for {self.patience:.0f} "
                    "s"
                )
            time.sleep(min(MOST_POLL, max(POLL, 0.02 * (time.monotonic() - began))))

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks without a heartbeat for so many seconds."""
        return [rank for rank, (_, when) in self.seen.items() if self.looked - when > seconds]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, of one size, in the order of ranks."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        try:
            self.calls += 1
            # Each adds 1 for each meeting, and none goes on to the next before all have.
            arrived = self.store.add("arrived", 1)
            self.until(
                lambda: max(arrived, self.store.add("arrived", 0)) >= self.calls * self.count
            )
            dist.all_gather(parts, tensor)
        except RuntimeError as error:  # a connection is closed
            raise self.lost() from error
        return parts

    def tell(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the texts of all ranks, in the order of ranks."""
        self.told += 1
        keys = [f"told/{self.told}/{rank}" for rank in range(self.count)]
        try:
            self.store.set(keys[self.index], canonical(values))
            self.until(lambda: self.store.check(keys))
            return [json.loads(self.store.get(key)) for key in keys]
        except RuntimeError as error:
            raise self.lost() from error

    def lost(self) -> Lost:
        """Return the error that names the rank that is gone.

        After a connection is closed, that is the rank whose heartbeats stop.
        """
        deadline = time.monotonic() + 4 * BEAT
        while not self.cause and time.monotonic() < deadline:
            time.sleep(BEAT / 10)
        silent = self.silent(2.5 * BEAT)
        return Lost(
            self.cause or f"{f'rank {silent[0]}' if silent else 'a rank'} of {self.count} is gone"
        )

    def end(self, reason: str) -> None:
        """Tell the others that this rank ends, and why; the first reason counts."""
        with suppress(RuntimeError):
            if self.store.add("ends", 1) == 1:
                self.store.set("ended", f"rank {self.index} of {self.count} ended: {reason}")

    def close(self) -> None:
        """Close the connections; a rank that keeps the store first lets the others read it."""
        with suppress(RuntimeError):
            self.store.add("left", 1)
            deadline = time.monotonic() + HURRY
            while (
                self.serves
                and self.store.add("left", 0) < self.count
                and time.monotonic() < deadline
            ):
                time.sleep(MOST_POLL)
        self.closed.set()
        self.thread.join()
        dist.destroy_process_group()


def first_to_tell(store: Store | None = None) -> bool:
    """Return whether this rank is the first to report how the run ended.

    Only the first reports it. `store` is the ranks'; None: torchrun's, which exists before the
    ranks connect.
    """
    if not ANSWER:
        try:
            if store is None and os.environ.get(AGENT) == "True":
                store = store_of(os.environ, timedelta(seconds=5))
            ANSWER.append(store is None or store.add("told", 1) == 1)
        except (InputError, KeyError, RuntimeError):  # nobody can be asked; better twice than never
            ANSWER.append(True)
    return ANSWER[0]


def store_of(known: Mapping[str, str], timeout: timedelta, *, serve: bool = False) -> Store:
    """Connect to the store of the ranks, or serve it.

    Raises:
        InputError: it cannot be reached.
    """
    host, port = known["MASTER_ADDR"], whole(known, "MASTER_PORT", 1, 65535)
    try:
        store = torch_part("TCPStore")(host, port, None, serve, timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise InputError(
            f"MASTER_ADDR and MASTER_PORT must tell where the ranks meet, {host}:{port} cannot be "
            "reached; start all ranks by one torchrun command"
        ) from error
    # A restart by torchrun finds the old keys in the same store.
    shared: Store = torch_part("PrefixStore")(
        f"potstill/{known.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
    )
    return shared


def torch_part(name: str) -> Any:
    """Return a part of torch.distributed.

    Raises:
        InputError: torch is built without it.
    """
    if not dist.is_available():
        raise InputError(
            "several ranks need a torch that is built with torch.distributed, this one is not; "
            "start one process"
        )
    return getattr(dist, name)


def read(store: Store, key: str) -> str:
    """Read a text of the store without waiting for it; empty if it is not there."""
    return store.get(key).decode() if store.check([key]) else ""


def whole(known: Mapping[str, str], name: str, low: int, high: int) -> int:
    """Read a whole number of the environment.

    Args:
        known: the environment.
        name: of the variable.
        low: least value.
        high: greatest value.
    Raises:
        InputError: it is not a whole number, or out of its range.
    """
    text = known[name]
    if not text.isdecimal() or not low <= int(text) <= high:
        raise InputError(
            f"the variable {name} must be a whole number in [{low}, {high}], got {text!r}; "
            f"{START}, or unset {' '.join(VARIABLES)}"
        )
    return int(text)
