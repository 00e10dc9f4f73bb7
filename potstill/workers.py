"""CPU threads that each take a whole task, and results that do not depend on how many there are.

Within a small operation threads meet at a barrier, and wait there for the slowest: beside another
busy process an outer step took five times as long with two threads as with one. Micro-batches and
networks are independent, so each is computed by one thread from beginning to end, and what they
give is used in the order of the tasks.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
CPU = torch.device("cpu")
AHEAD = 2
"""Tasks for each thread that are begun, or wait, before the result of the first is used."""


class Task(Generic[T]):
    """A function that is called once, by whichever thread claims it first."""

    def __init__(self, function: Callable[[], T]):
        self.function = function
        self.unclaimed, self.done = threading.Lock(), threading.Event()
        self.values: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the function, unless another thread does or did."""
        if not self.unclaimed.acquire(blocking=False):
            return
        try:
            self.values.append(self.function())
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def cancel(self) -> None:
        """Return once the function is not running and never will be."""
        if self.unclaimed.acquire(blocking=False):
            self.done.set()
        self.done.wait()

    def result(self, others: Iterable["Task[T]"] = ()) -> T:
        """Return the function's value, or raise its error.

        While another thread computes it, this one takes `others`.
        """
        for task in (self, *others):
            if self.done.is_set():
                break
            task.run()
        self.done.wait()
        if self.error:
            raise self.error
        return self.values.pop()


class Workers:
    """Threads of one core each that take tasks, beside the one that needs the results.

    Args:
        count: how many threads compute, the caller's included.
    """

    def __init__(self, count: int):
        self.count = count
        self.queue = SimpleQueue[Task[object] | None]()
        self.threads = [
            threading.Thread(target=self.work, name=f"potstill worker {number}", daemon=True)
            for number in range(1, count)
        ]
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        """Take tasks until there is a None."""
        torch.set_num_threads(1)  # of this thread
        while (task := self.queue.get()) is not None:
            task.run()
            del task  # its value is the caller's

    def stop(self) -> None:
        """End the threads once they have finished what they are at."""
        for _ in self.threads:
            self.queue.put(None)
        for thread in self.threads:
            thread.join()

    def in_order(self, functions: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield what each function returns, in their order; see the function of this name."""
        begun = deque[Task[T]]()
        try:
            for function in functions:
                begun.append(Task(function))
                self.queue.put(begun[-1])  # type: ignore[arg-type]
                if len(begun) >= AHEAD * self.count:
                    yield begun.popleft().result(begun)
            while begun:
                yield begun.popleft().result(begun)
        finally:
            for task in begun:
                task.cancel()


class Gate:
    """What many threads may do at a time, or one something else while no other is inside."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside, self.closed = 0, False

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """Be inside, perhaps with others."""
        with self.changed:
            self.changed.wait_for(lambda: not self.closed)
            self.inside += 1
        try:
            yield
        finally:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be inside alone: others wait."""
        with self.changed:
            self.changed.wait_for(lambda: not self.closed and not self.inside)
            self.closed = True
        try:
            yield
        finally:
            with self.changed:
                self.closed = False
                self.changed.notify_all()


_workers: Workers | None = None
"""Those of the process, as torch's number of threads is the process's."""


@contextmanager
def one_thread_a_task() -> Iterator[None]:
    """Let tasks inside the block run side by side, each on one of torch's threads.

    Outside of tasks one thread computes, too. Afterwards torch has as many as before.
    """
    global _workers
    if _workers:
        yield
        return
    _workers = Workers(torch.get_num_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        count = _workers.count
        _workers.stop()
        _workers = None
        torch.set_num_threads(count)


def set_threads(count: int) -> None:
    """Compute with so many threads, now and later."""
    global _workers
    if _workers is None:
        torch.set_num_threads(count)
    elif _workers.count != count:
        _workers.stop()
        _workers = Workers(count)


def threads() -> int:
    """Return how many threads compute."""
    return _workers.count if _workers else torch.get_num_threads()


@contextmanager
def all_threads_at_once() -> Iterator[None]:
    """Let every operation in the block use all threads: for work that cannot be cut into tasks.

    Its last bits may depend on how many there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(functions: Iterable[Callable[[], T]], device: torch.device = CPU) -> Iterator[T]:
    """Yield what each function returns, in their order.

    Within `one_thread_a_task` some run at the same time, on other threads: they must not change
    what others read, and each begins with gradients enabled. A task may have tasks of its own.

    Args:
        functions: the tasks; taken as they are needed.
        device: where they compute; only those of a CPU need its threads.
    """
    if _workers is None or _workers.count == 1 or device.type != "cpu":
        for function in functions:
            yield function()
    else:
        yield from _workers.in_order(functions)
