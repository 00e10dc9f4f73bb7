"""The command `potstill study`."""

import argparse
import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from potstill.cli.commands import machine
from potstill.cli.interrupts import listening
from potstill.config.durations import seconds_of
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
    from potstill.studies.workplace import Workplace

    device = machine(parsed)
    chosen = study_of(parsed)
    asked = parsed.preset, parsed.data
    points = chosen.points(*asked, range(parsed.seeds), parsed.steps)
    config = points[0].config
    name = "-".join(filter(None, (parsed.name, parsed.method, parsed.time_budget)))
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
            workplace = Workplace(
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
        InputError: a method or a time is given to a study that takes none, there is no such method,
            or it is no time.
    """
    kind: Any = STUDIES[parsed.name]
    given = {"method": parsed.method, "time_budget": parsed.time_budget}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        takes = [study for study in STUDIES if name in inspect.signature(STUDIES[study]).parameters]
        if parsed.name not in takes:
            raise InputError(
                f"{name} has no effect on the study {parsed.name}; it is for {', '.join(takes)}: "
                f"leave --{name.replace('_', '-')} out"
            )
        if name == "method":
            METHODS.check(value)
        else:
            seconds_of(name, value)
    if parsed.steps and parsed.time_budget:
        raise InputError(
            f"time_budget has no effect with --steps, got {parsed.time_budget}; give one of them"
        )
    made: runner.Study = kind(**given)
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
    words += ["--time-budget", parsed.time_budget] if parsed.time_budget else []
    words += ["--steps", parsed.steps] if parsed.steps else []
    words += ["--device", parsed.device] if hasattr(parsed, "device") else []
    return list(map(str, words))
