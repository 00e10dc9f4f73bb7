"""What Ctrl-C and SIGTERM do to a command."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.distributed.ranks import ALONE, Ranks
from potstill.engine.when_to_compile import COMPILING
from potstill.progress import Display, Listener

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""What asks a run to stop; Windows has no SIGHUP."""
RECEIVED: list[int] = []
"""The signals of this command, in their order."""


@contextmanager
def listening(display: Display, ranks: Ranks = ALONE) -> Iterator[Listener]:
    """Yield a listener that shows what it is told.

    The first Ctrl-C (or SIGTERM, or a closed terminal) in the outer loop asks the loop to stop
    after its step; anywhere else, or the second time, it stops at once. Ranks ignore a second one:
    torchrun passes on to each what the terminal already sent, and kills ranks that run for 30
    seconds more. What the shell had this process ignore stays ignored, as under nohup.
    """
    asked = RECEIVED
    asked.clear()
    compiling: set[str] = set()
    shared = ranks.count > 1

    def work(what: str, done: int, total: int) -> None:
        display.work(what, done, total)
        compiling.clear()
        if what == COMPILING and done < total:
            if asked:
                raise KeyboardInterrupt
            compiling.add(what)

    def handle(number: int, frame: Any) -> None:
        if asked and shared:
            return
        asked.append(number)
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        ranks.stopping()
        if len(asked) == 1 and (display.looping or compiling):
            what = "this step" if display.looping else "what is being compiled"
            display.say(f"stopping after {what}" + "; once more stops at once" * (not shared))
        # Inside the compiler an exception may be caught, or end in a traceback of its threads.
        elif len(asked) > 2 or compiling:
            stop_at_once(number, frame)
        else:
            raise KeyboardInterrupt

    before = {
        number: signal.signal(number, handle)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield Listener(display.say, display.step, work, lambda: bool(asked), display.run)
    finally:
        for number, handler in before.items():
            # A rank that has ended its work is not cut off while it says why; and who is already
            # leaving has no traceback to show when asked again.
            ending = signal.SIG_IGN if shared else stop_at_once if asked else handler
            signal.signal(number, ending)


def leave_terminal() -> None:
    """Send to nowhere what would be written to a terminal that is gone, and so fail."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def stop_at_once(number: int, frame: Any) -> None:
    """End the process, as at a second Ctrl-C; what was saved stays whole."""
    os.write(2, b"\npotstill: stopped at once; what was saved is whole\n")
    os._exit(128 + number)
