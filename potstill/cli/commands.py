"""The commands of the command line."""

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from potstill.api.runs import extension, longer
from potstill.cli.interrupts import listening
from potstill.cli.tables import show_diagnosis, show_machine, tell
from potstill.config import choosing
from potstill.config.config import (
    Given,
    changed,
    configuration,
    options_from_file,
    options_from_preset,
    quick_options,
)
from potstill.data import sources
from potstill.data.splits import Dataset
from potstill.devices import own_torch_state, pick_device
from potstill.diagnosis.machine import examined
from potstill.diagnosis.over_a_run import Noise, recorded_diagnoses
from potstill.distillation import run_folder, runs
from potstill.distillation.outer import Interrupted
from potstill.distilled.sets import DistilledSet
from potstill.distributed.link import Lost
from potstill.distributed.ranks import ALONE, Ranks, joined
from potstill.errors import InputError
from potstill.evaluation.records import DIAGNOSIS
from potstill.progress import SILENT, Display
from potstill.workers import set_threads


def doctor(parsed: argparse.Namespace) -> int:
    """Run `potstill doctor`; return the exit code."""
    with own_torch_state():
        show_machine(examined(Path.cwd()))
    return 0


def distill(parsed: argparse.Namespace) -> int:
    """Run `potstill distill`; return the exit code."""
    asked = Asked(resumed_config(parsed)) if parsed.resume else new_config(parsed)
    out = parsed.resume or parsed.out or default_out(asked.config)
    with joined() as ranks:
        distilled = distilled_by(ranks, asked, out, parsed)
        if ranks.first:
            tell(distilled, out)
    return 0


class Asked(NamedTuple):
    """The options of a run and, if its method was chosen, why it is that and the data it is for."""

    config: Given
    why: str = ""
    dataset: Dataset | None = None


def distilled_by(ranks: Ranks, asked: Asked, out: Path, parsed: argparse.Namespace) -> DistilledSet:
    """Distill as one of several ranks, and show the progress.

    Args:
        ranks: the processes that share the run.
        asked: the options.
        out: the run's folder.
        parsed: the command line.
    """
    if ranks.first and not (parsed.resume or parsed.overwrite):
        run_folder.RunFolder.check_free(out)  # before the data are read, which may take long
    config = changed(asked.config, device=ranks.device(asked.config.run.device))
    display = Display(parsed.quiet or not ranks.first)
    try:
        with display, listening(display, ranks) as listener:
            if asked.why:
                listener.say(asked.why)
            with ranks.in_turn():
                dataset = asked.dataset or sources.read(config.data)
            if parsed.resume:
                return runs.resumed_run(out, config, dataset, listener=listener, ranks=ranks)
            return runs.new_run(
                config,
                dataset,
                out,
                overwrite=parsed.overwrite,
                listener=listener,
                ranks=ranks,
                began=parsed.began,
            )
    except (Interrupted, KeyboardInterrupt, Lost) as error:
        begun = display.begun or parsed.resume
        run = shlex.quote(str(out))
        way_on = f"go on with `potstill distill --resume {run}`" if begun else "no step was done"
        if display.accuracy:
            way_on += f", or take the best set so far with `potstill finish {run}`"
        kind = Lost if isinstance(error, Lost) else KeyboardInterrupt
        raise kind(f"{str(error) or 'interrupted'}; {way_on}") from error


def extend(parsed: argparse.Namespace) -> int:
    """Run `potstill extend`; return the exit code."""
    options = extension(parsed.run, parsed.ipc, given_options(parsed))
    parsed.resume = None
    distilled = distilled_by(ALONE, Asked(configuration(options)), parsed.out, parsed)
    tell(distilled, parsed.out)
    return 0


def finish(parsed: argparse.Namespace) -> int:
    """Run `potstill finish`; return the exit code."""
    out = run_folder.RunFolder.open(parsed.run).path
    config = changed(run_folder.RunFolder(out).config(), **given_options(parsed))
    with Display() as display, listening(display) as listener:
        dataset = sources.read(config.data)
        distilled = runs.finished_early(out, config, dataset, listener=listener)
    tell(distilled, out)
    print(f"go on:         potstill distill --resume {shlex.quote(str(out))}")
    return 0


def given_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the run's options that the command line sets, by name."""
    known = vars(parsed)
    return {name: known[name] for name in known.get("option_names", ()) if name in known}


def new_config(parsed: argparse.Namespace) -> Asked:
    """Return the configuration of a new run.

    The command line comes before the file, the file before the preset, the preset before defaults.
    """
    given = [*layers(parsed.preset, parsed.config), given_options(parsed)]
    if not choosing.asked(*given):
        return Asked(configuration(quick_options(*given) if parsed.quick else {}, *given))
    if "RANK" in os.environ:
        raise InputError(
            "method auto is chosen by one process, this is one of several; give the method that a "
            "run of one chooses"
        )
    if parsed.out and not parsed.overwrite:
        run_folder.RunFolder.check_free(parsed.out)
    dataset = sources.read(configuration(choosing.of_data(*given)).data)
    merged, why = choosing.with_method(dataset.shape, *given)
    quick = quick_options(merged) if parsed.quick else {}
    return Asked(configuration(quick, merged), why, dataset)


def layers(preset: str | None, config: Path | None) -> list[dict[str, Any]]:
    """Read the options that a preset and a file set; the file wins."""
    of_preset = [options_from_preset(preset)] if preset else []
    return of_preset + ([options_from_file(config)] if config else [])


def resumed_config(parsed: argparse.Namespace) -> Given:
    """Return the configuration of the run to resume.

    Paths, devices, threads and steps may be given anew.

    Raises:
        InputError: the command line sets other options beside it.
    """
    given = given_options(parsed)
    others = [
        name for name in ("out", "preset", "config", "overwrite", "quick") if getattr(parsed, name)
    ]
    for name in (*given, *others):
        if name not in ("data", "weights", "cache_dir", "device", "threads", "steps"):
            raise InputError(
                "--resume takes every option from the run's config.toml; remove "
                f"--{name.replace('_', '-')}"
            )
    config = run_folder.RunFolder.open(parsed.resume).config()
    return longer(config, changed(config, **given))


def default_out(config: Given) -> Path:
    """Return runs/DATA-ipcN-METHOD, or runs/DATA-ipcN-PARAM-METHOD."""
    param = f"-{config.parameterisation.name}" if config.decoded else ""
    method = config.method.name.rpartition(":")[2]
    return Path("runs") / f"{config.data.name}-ipc{config.distilled.ipc}{param}-{method}"


def machine(parsed: argparse.Namespace) -> torch.device:
    """Return the device that a command asks for, and set its threads."""
    given = {name: getattr(parsed, name) for name in ("device", "threads") if hasattr(parsed, name)}
    config = configuration(given).run
    if config.threads != "auto":
        set_threads(config.threads)
    return pick_device(config.device)


def report(parsed: argparse.Namespace) -> int:
    """Run `potstill report`; return the exit code."""
    from potstill.reports.report import write_report  # here: matplotlib takes half a second

    out = parsed.out or run_folder.RunFolder.open(parsed.runs[0]).path / run_folder.REPORT
    for note in write_report(parsed.runs, out):
        print(f"note: {note}", file=sys.stderr)
    print(f"written: {out}")
    return 0


def watch(parsed: argparse.Namespace) -> int:
    """Run `potstill watch`; return the exit code."""
    from potstill.reports.report import watch as kept_up  # here: matplotlib takes half a second

    out = parsed.out or run_folder.RunFolder.open(parsed.runs[0]).path / run_folder.REPORT
    print(f"open {out} in a browser; Ctrl-C ends watching, not the run", flush=True)
    kept_up(parsed.runs, out, parsed.every)
    print(f"no process works on it any more; written: {out}")
    return 0


def diagnose(parsed: argparse.Namespace) -> int:
    """Run `potstill diagnose`; return the exit code."""
    noise = Noise(parsed.samples, parsed.size, parsed.signs, parsed.unrolls, parsed.sources)
    folder = run_folder.RunFolder.open(parsed.run)
    config = changed(folder.config(), **given_options(parsed))
    with Display() as display, listening(display) as listener, own_torch_state():
        quiet = dataclasses.replace(listener, say=SILENT.say)
        diagnoses = list(
            recorded_diagnoses(folder, config, sources.read(config.data), noise, listener=quiet)
        )
    show_diagnosis(diagnoses, config)
    print(f"written: {folder.path / DIAGNOSIS}")
    return 0
