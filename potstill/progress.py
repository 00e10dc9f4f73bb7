"""Progress of long work: who listens to it, and how it is shown in terminals and notebooks."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from potstill.errors import InputError, visible
from potstill.records.metrics import StepRecord

SECONDS_BETWEEN_LINES = 10.0
RUN = "run"
"""Name of the bar that counts the runs of a study."""


def ignore(*what: object) -> None:
    """Do nothing with what is told."""


def never() -> bool:
    """Return that nobody asks to stop."""
    return False


@dataclass(frozen=True)
class Listener:
    """What is told of long work; each is a function that may be left out.

        potstill.distill(images, labels, listener=potstill.Listener(say=print))

    Args:
        say: takes a sentence that the user should see.
        step: takes (`StepRecord` of the outer step, number of outer steps of the run); with a time
            budget that number is foreseen, and moves.
        work: takes (name of the work, done, total) outside the outer loop.
        stop: returns whether to stop after this outer step; the run can then be resumed.
        run: takes (number of the run, number of runs, the time left in words, or "" before it is
            known), in a study of several.
    """

    say: Callable[[str], None] = ignore
    step: Callable[[StepRecord, int], None] = ignore
    work: Callable[[str, int, int], None] = ignore
    stop: Callable[[], bool] = never
    run: Callable[[int, int, str], None] = ignore


SILENT = Listener()


@contextmanager
def followed(listener: Listener | None, progress: bool) -> Iterator[Listener]:
    """Yield who is told: the listener, or a display where there is a terminal or a notebook.

    Args:
        listener: the user's; None: a display.
        progress: whether to show a display at all.
    """
    if listener is not None:
        if not isinstance(listener, Listener):
            raise InputError(f"listener must be a potstill.Listener, got {listener!r:.80}")
        yield listener
        return
    display = Display()
    if not progress or not display.live:
        yield SILENT
        return
    with display:
        yield Listener(display.say, display.step, display.work, run=display.run)


class Remaining(TimeRemainingColumn):
    """The time left by the pace of the bar, but of a study, which tells a better one itself."""

    def render(self, task: Task) -> Text:
        """Return what stands in the column."""
        return Text() if task.fields.get("told") else super().render(task)


class Display:
    """Progress on standard error, so that standard output holds results only."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
        )
        self.live = sys.stderr.isatty() or self.console.is_jupyter
        """Whether it can show a bar."""
        hidden = quiet or not self.live
        self.bar = Progress(*columns, console=self.console, disable=hidden, transient=True)
        self.lines = not quiet and hidden
        self.tasks: dict[str, TaskID] = {}
        self.done: dict[str, int] = {}
        self.last_line = 0.0
        self.accuracy = self.place = self.left = ""
        self.begun = self.looping = False

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, sentence: str) -> None:
        """Show a sentence, above the bar if there is one."""
        if not self.quiet:
            self.console.print(visible(sentence), markup=False)

    def work(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done.

        Args:
            what: name of the work.
            done: how many are done.
            total: how many there are.
            note: words after the count.
        """
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        if done < self.done.get(what, 0):  # the same work of another run
            self.bar.reset(self.tasks[what])
        self.done[what] = done
        self.bar.update(self.tasks[what], completed=done, total=total, description=f"{what}{note}")
        if self.lines and (
            done == total or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        ):
            self.last_line = time.monotonic()
            self.say(f"{self.place}{what} {done}/{total}{note}{self.left}")

    def run(self, number: int, runs: int, left: str) -> None:
        """Show which run of a study is at work, and how long the study still takes."""
        self.place, self.left = f"run {number} of {runs}, ", f"; the study: {left}" * bool(left)
        if RUN not in self.tasks:
            self.tasks[RUN] = self.bar.add_task(RUN, total=runs, told=True)
        words = f"run {number} of {runs}{self.left}"
        self.bar.update(self.tasks[RUN], completed=number - 1, description=words)

    def step(self, record: StepRecord, steps: int) -> None:
        """Show one outer step."""
        self.begun, self.looping = True, record.step < steps
        if record.step == 1:  # of another run
            self.accuracy = ""
        if record.validation:
            self.accuracy = f", validation {100 * record.validation.mean:.1f} %"
        loss = "not finite" if record.loss is None else f"{record.loss:.3f}"
        self.work("outer step", record.step, steps, f": loss {loss}{self.accuracy}")
