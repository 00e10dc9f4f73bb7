"""The commands of the command line."""

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from potstill.api import hub, measurements
from potstill.api.runs import extension, longer
from potstill.cli.interrupts import listening
from potstill.cli.tables import show, show_audit, show_diagnosis, show_machine, tell
from potstill.config import choosing
from potstill.config.config import (
    Given,
    changed,
    configuration,
    options_from_file,
    options_from_preset,
    quick_options,
)
from potstill.config.sections import EVALUATION_DATA_OPTIONS
from potstill.data import sources
from potstill.data.preprocessing import Absent
from potstill.data.splits import Dataset
from potstill.devices import hardware, own_torch_state, pick_device
from potstill.diagnosis.machine import examined
from potstill.diagnosis.over_a_run import Noise, recorded_diagnoses
from potstill.distillation import run_folder, runs
from potstill.distillation.outer import Interrupted
from potstill.distilled import artefact, exports, merging
from potstill.distilled.sets import DistilledSet
from potstill.distributed.link import Lost
from potstill.distributed.ranks import ALONE, Ranks, joined
from potstill.errors import InputError
from potstill.evaluation import measuring
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.records import AUDIT, DIAGNOSIS, EvaluationRecord
from potstill.progress import SILENT, Display, Listener
from potstill.registry import EXPORTS
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


def evaluate(parsed: argparse.Namespace) -> int:
    """Run `potstill evaluate`; return the exit code."""
    given = {
        item.name: getattr(parsed, item.name)
        for item in dataclasses.fields(EvaluationOptions)
        if hasattr(parsed, item.name)
    }
    records = list[EvaluationRecord]()
    with joined() as ranks:
        given["device"] = parsed.device = ranks.device(given.get("device", "auto"))
        device = machine(parsed)
        try:
            with Display(not ranks.first) as display:
                listener = Listener(display.say, work=display.work)
                measured = measurements.evaluations(
                    parsed.path,
                    ipc=parsed.ipc,
                    all_budgets=parsed.all_budgets,
                    listener=listener,
                    ranks=ranks,
                    **data_options(parsed),
                    **given,
                )
                records.extend(measured)
        finally:  # a full disk or Ctrl-C must not cost what was measured
            if records and ranks.first:
                show(records, hardware(device))
        if ranks.first:
            print(f"written: {measurements.results_file(parsed.path)}")
    return 0


def audit(parsed: argparse.Namespace) -> int:
    """Run `potstill audit`; return the exit code."""
    device = machine(parsed)
    record = measurements.audit(
        parsed.path,
        nets=parsed.nets,
        epochs=parsed.epochs,
        seed=parsed.seed,
        device=str(device),
        **data_options(parsed),
    )
    show_audit(record)
    print(f"written: {measurements.results_file(parsed.path, AUDIT)}")
    return 0


def data_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options that tell where real data are and how they are read, by name."""
    given = {
        name: getattr(parsed, name) for name in EVALUATION_DATA_OPTIONS if hasattr(parsed, name)
    }
    return given | ({"data": parsed.data} if parsed.data else {})


SUFFIXES = {
    ".png": "png",
    ".csv": "csv",
    ".parquet": "parquet",
    ".npz": "npz",
    ".safetensors": "safetensors",
    "": "folder",
}
"""Suffix of a file to export to -> the format."""
NOTICED = 1.0
"""Points of accuracy that pictures cost from which on they are warned of."""


def format_of(out: Path) -> str:
    """Return the export format that a file's suffix tells; without one it is a folder.

    Raises:
        InputError: another suffix.
    """
    if out.suffix.lower() not in SUFFIXES:
        known = ", ".join(suffix for suffix in SUFFIXES if suffix)
        raise InputError(
            f"out must end in {known}, or name a folder of images, got {out.name!r}; --format "
            "writes any name in the format that it says"
        )
    return SUFFIXES[out.suffix.lower()]


def merge(parsed: argparse.Namespace) -> int:
    """Run `potstill merge`; return the exit code."""
    out = parsed.out
    if out.suffix != ".safetensors":
        raise InputError(f"out must end in .safetensors, got {out.name!r}; the set is one file")
    if out.exists():
        raise InputError(f"{out} exists; choose another place with --out, or remove it")
    merged = merging.merge(*map(artefact.load, parsed.paths))
    out.parent.mkdir(parents=True, exist_ok=True)
    artefact.save(merged, out)
    print(f"written: {out}\n{merged.stored}")
    print(
        f"networks train on it as on the first, for {merged.recipe.steps:,} steps; what it is "
        f"worth is not measured yet: potstill evaluate {shlex.quote(str(out))} --data DATA"
    )
    return 0


def push(parsed: argparse.Namespace) -> int:
    """Run `potstill push`; return the exit code."""
    where = hub.push(
        parsed.run,
        parsed.to,
        license=parsed.license,
        private=parsed.private,
        folder=parsed.dry_run,
    )
    print(f"written: {where}" if parsed.dry_run else f"published: {where}")
    return 0


def export(parsed: argparse.Namespace) -> int:
    """Run `potstill export`; return the exit code."""
    distilled, data = measurements.opened(parsed.path, parsed.ipc, data_options(parsed))
    folder = parsed.path if parsed.path.is_dir() else parsed.path.parent
    default = "safetensors" if parsed.without_preprocessing else exports.DEFAULTS[distilled.kind]
    format = parsed.format or (format_of(parsed.out) if parsed.out else default)
    if parsed.without_preprocessing:
        if format != "safetensors":
            raise InputError(
                f"--without-preprocessing is for --format safetensors, got {format}, which never "
                "holds the preprocessing; leave it out"
            )
        distilled = artefact.without_preprocessing(distilled)
    out = parsed.out or folder / EXPORTS[format].default_name
    told = exports.export(distilled, format, out, overwrite=parsed.out is None)
    print(f"written: {out}\n{told}")
    if isinstance(distilled.fitted, Absent):
        print(distilled.fitted.missing)
    if format == "safetensors":
        print(f"size: {artefact.file_words(distilled, out)}")
    if parsed.no_check or EXPORTS[format].exact:
        return 0
    if data.data == "arrays":
        print("what accuracy the pictures cost was not measured; give the real data with --data")
        return 0
    device = machine(parsed)
    with Display() as display:
        real = measurements.real_of(distilled, sources.read(data), data, str(device), display.say)
        exact, pictures = measuring.accuracy_of_export(
            distilled,
            exports.exported_images(distilled),
            real,
            device=str(device),
            progress=display.work,
        )
    print(
        f"validation accuracy of networks trained on the set: {exact}; on these pictures: "
        f"{pictures}"
    )
    lost = 100 * (exact.mean - pictures.mean)
    if lost > NOTICED:
        print(
            f"do not train on the pictures: they cost {lost:.1f} points here; parquet, npz and "
            "potstill.load are exact"
        )
    return 0


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
