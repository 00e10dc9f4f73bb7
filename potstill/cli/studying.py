"""The command `potstill study`."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from potstill.cli.commands import machine
from potstill.cli.interrupts import listening
from potstill.data import sources
from potstill.distillation.outer import Interrupted
from potstill.errors import InputError
from potstill.progress import Display
from potstill.registry import METHODS, STUDIES
from potstill.workers import set_threads

if TYPE_CHECKING:
    from potstill.studies import runner


def study(parsed: argparse.Namespace) -> int:
    """Run `potstill study`; return the exit code."""
    from potstill.studies import runner  # here: matplotlib takes half a second

    device = machine(parsed)
    chosen = study_of(parsed)
    asked = parsed.preset, parsed.data
    points = chosen.points(*asked, range(parsed.seeds), parsed.steps)
    config = points[0].config
    name = f"{parsed.name}-{parsed.method}" if parsed.method else parsed.name
    folder = parsed.out / f"{name}-{parsed.preset}-{config.data.name}"
    length = runner.Length.of(chosen, *asked, parsed.steps)
    wanted = parsed.jobs or (min(4, cores()) if device.type == "cpu" else 1)
    jobs = min(wanted, len(points))
    threads = getattr(parsed, "threads", "auto" if jobs == 1 else max(1, cores() // jobs))
    if threads != "auto":
        set_threads(int(threads))
    display = Display(parsed.helper)
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        with display, listening(display) as listener:
            if parsed.helper:
                listener = dataclasses.replace(listener, stop=orphaned(listener.stop))
            workplace = runner.Workplace(
                folder,
                parsed.out / runner.RUNS,
                sources.read(config.data),
                parsed.nets,
                str(device),
                threads,
                listener,
            )
            if parsed.helper:
                runner.work(points, workplace)
                return 0
            length.keep(folder)
            if parsed.jobs and parsed.jobs > jobs:
                display.say(f"--jobs {parsed.jobs}: the study has {jobs} runs, one for a process")
            command = helper_command(parsed, threads)
            helpers += [
                subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(jobs - 1)
            ]
            about = chosen.about(*asked, parsed.steps)
            runner.run_study(chosen, points, workplace, about, caution=length.caution, jobs=jobs)
    except (Interrupted, KeyboardInterrupt) as error:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from error
    finally:
        for process in helpers:
            process.terminate()
            process.wait()
    print((folder / runner.SUMMARY).read_text(encoding="utf-8"))
    print(f"written: {folder}")
    return 0


def study_of(parsed: argparse.Namespace) -> "runner.Study":
    """Return the study that is asked for.

    Raises:
        InputError: it takes no method and one is given, or there is no such method.
    """
    from potstill.studies import boosting  # here: matplotlib takes half a second

    kind: Any = STUDIES[parsed.name]
    made: runner.Study
    if parsed.method is None:
        made = kind()
        return made
    METHODS.check(parsed.method)
    if not issubclass(kind, boosting.Nested):
        takes = ", ".join(name for name in STUDIES if issubclass(STUDIES[name], boosting.Nested))
        raise InputError(
            f"method has no effect on the study {parsed.name}; it is for {takes}: leave --method "
            "out"
        )
    made = kind(parsed.method)
    return made


def orphaned(asked: Callable[[], bool]) -> Callable[[], bool]:
    """Return whether to stop: as asked, or since the process that wanted the work is gone."""
    parent = os.getppid()
    return lambda: asked() or os.getppid() != parent


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def helper_command(parsed: argparse.Namespace, threads: Any) -> list[str]:
    """Return a command that works on the same study and leaves the summary to this process."""
    words = [
        sys.executable,
        "-m",
        "potstill.cli.parser",
        "study",
        parsed.name,
        "--preset",
        parsed.preset,
        "--helper",
    ]
    words += [
        "--seeds",
        parsed.seeds,
        "--nets",
        parsed.nets,
        "--out",
        parsed.out,
        "--threads",
        threads,
    ]
    words += ["--data", parsed.data] if parsed.data else []
    words += ["--method", parsed.method] if parsed.method else []
    words += ["--steps", parsed.steps] if parsed.steps else []
    words += ["--device", parsed.device] if hasattr(parsed, "device") else []
    return list(map(str, words))
