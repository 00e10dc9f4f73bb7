"""The commands of the command line."""

import argparse
import dataclasses
import itertools
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from potstill import api, distillation, evaluation, exports, runs, sources, store
from potstill.analysis import SOURCES
from potstill.config import Given, changed, configuration, options_from_file, options_from_preset
from potstill.devices import hardware, pick_device, versions
from potstill.diagnosis import Diagnosis, Noise, diagnose_run
from potstill.display import Display
from potstill.distillation import Listener
from potstill.distilled import DistilledSet
from potstill.evaluation import Row
from potstill.grid import write_grid
from potstill.loading import RealData
from potstill.outer import Interrupted
from potstill.registry import EXPORTS, METHODS, STUDIES, InputError
from potstill.scoring import Figure, factory_for
from potstill.sections import EVALUATION_DATA_OPTIONS, DataConfig


def distill(parsed: argparse.Namespace) -> int:
    """`potstill distill`."""
    config = resumed_config(parsed) if parsed.resume else new_config(parsed)
    out = parsed.resume or parsed.out or default_out(config)
    if not (parsed.resume or parsed.overwrite):
        runs.RunFolder.check_free(out)  # before the data are read, which may take long
    display = Display(parsed.quiet)
    try:
        with display, listening(display) as listener:
            dataset = sources.read(config.data)
            if parsed.resume:
                distilled = distillation.resumed_run(out, config, dataset, listener=listener)
            else:
                distilled = distillation.new_run(config, dataset, out, overwrite=parsed.overwrite, listener=listener)
    except (Interrupted, KeyboardInterrupt) as error:
        begun = display.begun or parsed.resume
        way_on = f"go on with `potstill distill --resume {shlex.quote(str(out))}`" if begun else "no step was done"
        raise KeyboardInterrupt(f"{str(error) or 'interrupted'}; {way_on}") from error
    print(f"distilled set: {out / store.ARTEFACT}")
    print(f"stored:        {distilled.stored}")
    nested = len(distilled.budgets) > 1
    for part in map(distilled.prefix, distilled.budgets):
        figure = Figure(**{name: part.meta["accuracy"][name] for name in ("mean", "std", "n")})
        size = f"{'budget of ' * part.decoded}{part.ipc} of each class, {part.stored_bytes:,} bytes: " if nested else ""
        print(f"validation:    {size}{figure}, {part.recipe.steps} training steps; this split chose them")
    print(f"next:          potstill evaluate {shlex.quote(str(out))}{' --all-budgets' * nested}")
    if distilled.kind == "vector":
        exports.export(distilled, "csv", out / runs.TABLE, overwrite=True)
        print(f"table:         {out / runs.TABLE}")
    else:
        write_grid(distilled, out / runs.PICTURE)
        print(f"picture:       {out / runs.PICTURE}")
    return 0


def given_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of config.py that the command line sets, by name."""
    known = vars(parsed)
    return {name: known[name] for name in known.get("option_names", ()) if name in known}


def new_config(parsed: argparse.Namespace) -> Given:
    """Defaults, then the preset, then the file, then the command line."""
    return configuration(*layers(parsed.preset, parsed.config), given_options(parsed))


def layers(preset: str | None, config: Path | None) -> list[dict[str, Any]]:
    """Read the options that a preset and a file set; the file wins."""
    found = [options_from_preset(preset)] if preset else []
    return found + ([options_from_file(config)] if config else [])


def resumed_config(parsed: argparse.Namespace) -> Given:
    """The configuration of the run to resume; only where things are may be given anew.

    Raises:
        InputError: the command line sets other options beside it.
    """
    given = given_options(parsed)
    others = [name for name in ("out", "preset", "config", "overwrite") if getattr(parsed, name)]
    for name in (*given, *others):
        if name not in ("data", "cache_dir", "device"):
            raise InputError(f"--resume takes every option from the run's config.toml; remove --{name.replace('_', '-')}")
    return changed(runs.RunFolder.open(parsed.resume).config(), **given)


def default_out(config: Given) -> Path:
    """runs/DATA-ipcN-METHOD, or runs/DATA-ipcN-PARAM-METHOD."""
    param = f"-{config.parameterisation.name}" if config.decoded else ""
    method = config.method.name.rpartition(":")[2]
    return Path("runs") / f"{config.data.name}-ipc{config.distilled.ipc}{param}-{method}"


@contextmanager
def listening(display: Display) -> Iterator[Listener]:
    """A listener that shows what it hears.

    The first Ctrl-C (or SIGTERM) in the outer loop asks it to stop after its step; anywhere else, or again, it stops at once.
    """
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked or not display.looping:
            raise KeyboardInterrupt
        asked.append(number)
        display.say("stopping after this step; once more stops at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield Listener(display.say, display.step, display.work, lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def folder_of(path: Path) -> Path:
    """The run's folder, or the one that a file lies in."""
    return path if path.is_dir() else path.parent


def open_set(parsed: argparse.Namespace) -> tuple[DistilledSet, DataConfig | None]:
    """The distilled set of a run or file, and where its real data are, if that can be told."""
    path = parsed.path
    run = runs.RunFolder(folder_of(path))
    if path.is_dir() and run.is_run and not run.finished:
        raise InputError(f"the run in {path} is not finished; go on with `potstill distill --resume {path}`")
    distilled = store.load(path, parsed.ipc)
    # A file that was copied elsewhere may have some other run's configuration beside it.
    beside = run.is_run and (path.is_dir() or path.name == store.ARTEFACT)
    recorded = (run.config() if beside else api.recorded_config(distilled)).data
    given = {name: getattr(parsed, name) for name in EVALUATION_DATA_OPTIONS if hasattr(parsed, name)}
    if parsed.data:
        given = {"storage": "auto", **given, "data": parsed.data}
    config = changed(configuration(dataclasses.asdict(recorded)), **given).data
    return distilled, None if config.data == "arrays" else config


def machine(parsed: argparse.Namespace) -> torch.device:
    """The device that a command asks for; its threads are set."""
    given = {name: getattr(parsed, name) for name in ("device", "threads") if hasattr(parsed, name)}
    config = configuration(given).run
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    return pick_device(config.device)


def open_real(distilled: DistilledSet, data: DataConfig, device: torch.device, say: Callable[[str], None]) -> RealData:
    """The real data of a set, through its own preprocessing; `say` hears if they are not those that it was distilled from."""
    dataset = sources.read(data)
    real = api.fitting(distilled, dataset, data, str(device))
    if dataset.fingerprint != distilled.meta.get("data", {}).get("fingerprint"):
        say(f"note: these are not the data that the set was distilled from; its validation and test {distilled.noun}s may differ")
    return real


def evaluate(parsed: argparse.Namespace) -> int:
    """`potstill evaluate`."""
    distilled, data = open_set(parsed)
    if data is None:
        raise InputError(f"{parsed.path} does not tell where its data lie; give them with --data")
    in_run = parsed.path.is_dir() or parsed.path.name == store.ARTEFACT
    folder = folder_of(parsed.path)
    target = folder / (runs.EVALUATION if in_run else f"{parsed.path.stem}.{runs.EVALUATION}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {target}: no permission; copy the set to a folder of your own")
    sets = [distilled.prefix(ipc) for ipc in distilled.budgets] if parsed.all_budgets else [distilled]
    models = parsed.models.split(",") if parsed.models else [parsed.model]
    for model in models:
        factory_for(distilled, model)  # a name that is wrong is told before anything is measured
    device = machine(parsed)
    lengths = api.recorded_config(distilled).evaluation.lengths
    rows: list[Row] = []
    try:
        with Display() as display:
            real = open_real(distilled, data, device, display.say)
            for one, model in itertools.product(sets, models):
                if len(sets) * len(models) > 1:
                    display.say(f"{model or distilled.recipe.model}, {one.ipc} {one.noun}s per class")
                # All real images are the same beside every budget: they are measured once.
                baselines = [name for name in parsed.baseline if name != "full" or one is sets[-1]]
                found = evaluation.evaluate(
                    one, real, nets=parsed.nets, model=model, steps=parsed.steps, lr=parsed.lr, protocol=parsed.protocol,
                    baselines=baselines, full_epochs=parsed.full_epochs, lengths=lengths, seed=parsed.seed, device=str(device),
                    compile=parsed.compile, progress=display.work, say=display.say,
                )  # fmt: skip
                rows += found
                runs.add_evaluation(target, evaluation_record(parsed, found, one.ipc, model, data, real, device))
    finally:  # a full disk or Ctrl-C must not cost what was measured
        if rows:
            show(rows, len(real.test), len(real.class_names), hardware(device), f"{distilled.noun}s")
    print(f"written: {target}")
    return 0


def evaluation_record(
    parsed: argparse.Namespace,
    rows: list[Row],
    ipc: int,
    model: str | None,
    data: DataConfig,
    real: RealData,
    device: torch.device,
) -> dict[str, Any]:
    """An entry of evaluation.json: what was measured, on what, how, and with what."""
    names = ("nets", "steps", "protocol", "seed", "full_epochs")
    settings = {name: getattr(parsed, name) for name in names}
    settings |= {"model": model, "baselines": sorted(set(parsed.baseline)), "ipc": ipc}
    settings |= {} if parsed.lr is None else {"lr": parsed.lr}
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "split": "test",
        "test_images": len(real.test),
        "data": {"source": data.data.partition(":")[0], "fingerprint": real.fingerprint},
        "settings": settings,
        "hardware": hardware(device),
        "versions": versions(),
    }


def show(rows: list[Row], test_images: int, classes: int, machine: str, noun: str) -> None:
    """Print an evaluation as a table."""
    table = Table(title=f"Test accuracy on {test_images} {noun}, fresh networks ({machine})", title_justify="left")
    for column in ("trained on", noun, "per class", "bytes", "network", "steps", "lr", "accuracy", "protocol"):
        right = column in (noun, "per class", "bytes", "steps", "lr")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        numbers = f"{row.images:,}", row.per_class(classes), f"{row.stored_bytes:,}"
        table.add_row(row.name, *numbers, row.model, f"{row.steps:,}", f"{row.lr:g}", str(row.accuracy), row.protocol)
    # No terminal means a log or a pipe: there the table takes the room that it needs.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


def export(parsed: argparse.Namespace) -> int:
    """`potstill export`."""
    distilled, data = open_set(parsed)
    folder = folder_of(parsed.path)
    suffixes = {".png": "png", ".csv": "csv", ".parquet": "parquet", ".npz": "npz"}
    usual = exports.DEFAULTS[distilled.kind]
    format = parsed.format or (suffixes.get(parsed.out.suffix, "folder") if parsed.out else usual)
    out = parsed.out or folder / EXPORTS[format].default_name
    told = exports.export(distilled, format, out, overwrite=parsed.out is None)
    print(f"written: {out}\n{told}")
    if parsed.no_check or EXPORTS[format].exact:
        return 0
    if data is None:
        print("what accuracy the pictures cost was not measured; give the real data with --data")
        return 0
    device = machine(parsed)
    with Display() as display:
        real = open_real(distilled, data, device, display.say)
        exact, pictures = evaluation.accuracy_of_export(
            distilled, exports.exported_images(distilled), real, device=str(device), progress=display.work
        )
    print(f"validation accuracy of networks trained on the set: {exact}; on these pictures: {pictures}")
    return 0


def report(parsed: argparse.Namespace) -> int:
    """`potstill report`."""
    from potstill.report import write_report  # here: matplotlib takes half a second

    out = parsed.out or runs.RunFolder.open(parsed.runs[0]).path / runs.REPORT
    for note in write_report(parsed.runs, out):
        print(f"note: {note}", file=sys.stderr)
    print(f"written: {out}")
    return 0


def diagnose(parsed: argparse.Namespace) -> int:
    """`potstill diagnose`."""
    noise = Noise(parsed.samples, parsed.size, parsed.signs, parsed.unrolls, parsed.sources)
    folder = runs.RunFolder.open(parsed.run)
    config = changed(folder.config(), **given_options(parsed))
    with Display() as display, listening(display) as listener:
        quiet = dataclasses.replace(listener, say=distillation.SILENT.say)
        dataset, target, found = sources.read(config.data), folder.path / runs.DIAGNOSIS, []
        for one in diagnose_run(folder, config, dataset, noise, listener=quiet):
            found.append(one)
            entry = {
                "settings": dataclasses.asdict(noise), "data": {"fingerprint": dataset.fingerprint},
                "places": [place.record() for place in found], "hardware": hardware(pick_device(config.run.device)),
                "versions": versions(),
            }  # fmt: skip
            runs.add_evaluation(target, entry, "diagnoses")
    show_diagnosis(found, config)
    print(f"written: {target}")
    return 0


def show_diagnosis(found: list[Diagnosis], config: Given) -> None:
    """Print the noise at each place as a table."""
    first, method = found[0], config.method
    words = "; ".join(f"{term.lower()}: {value}" for term, value in METHODS[method.name].words(method.options))
    print(f"Meta-gradient of {method.name}; {words}.")
    print("Noise is the share of its squared length that varies when something is drawn anew.")
    table = Table()
    columns = ["step"]
    columns += ["norm", "normalised variance", "noise of a sample"] if first.real else []
    columns += [f"noise with {SOURCES[name]}" for name in first.sources or ()]
    for column in columns:
        table.add_column(column, justify="right")
    for one in found:
        cells = []
        if one.real:
            names = ("norm", "normalised", "share")
            norm, normalised, share = (statistics.median(getattr(variance, name) for variance in one.real) for name in names)
            cells = [f"{norm:.3g}", f"{normalised:.3g}", in_percent(share)]
        cells += [in_percent(variance.share) for variance in (one.sources or {}).values()]
        table.add_row(f"{one.step:,}", *cells)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)


def in_percent(share: float) -> str:
    """A fraction in words."""
    return f"{100 * share:.0f} %"


def study(parsed: argparse.Namespace) -> int:
    """`potstill study`."""
    from potstill import studies  # here: matplotlib takes half a second

    device = machine(parsed)
    chosen: studies.Study = STUDIES[parsed.name]()
    points = chosen.points(parsed.preset, parsed.data, range(parsed.seeds))
    config = points[0].config
    folder = parsed.out / f"{parsed.name}-{parsed.preset}-{config.data.name}"
    jobs = parsed.jobs or (min(4, cores()) if device.type == "cpu" else 1)
    threads = getattr(parsed, "threads", "auto" if jobs == 1 else max(1, cores() // jobs))
    if threads != "auto":
        torch.set_num_threads(int(threads))
    display = Display(parsed.helper)
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        with display, listening(display) as listener:
            workplace = studies.Workplace(
                folder, parsed.out / studies.RUNS, sources.read(config.data), parsed.nets, str(device), threads, listener
            )
            if parsed.helper:
                studies.work(points, workplace)
                return 0
            command = helper_command(parsed, threads)
            helpers += [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(jobs - 1)]
            studies.run_study(chosen, points, workplace, chosen.about(parsed.preset, parsed.data))
    except (Interrupted, KeyboardInterrupt) as error:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from error
    finally:
        for process in helpers:
            process.terminate()
            process.wait()
    print((folder / studies.SUMMARY).read_text(encoding="utf-8"))
    print(f"written: {folder}")
    return 0


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def helper_command(parsed: argparse.Namespace, threads: Any) -> list[str]:
    """A command that works on the same study and leaves the summary to this process."""
    words = [sys.executable, "-m", "potstill.cli", "study", parsed.name, "--preset", parsed.preset, "--helper"]
    words += ["--seeds", parsed.seeds, "--nets", parsed.nets, "--out", parsed.out, "--threads", threads]
    words += ["--data", parsed.data] if parsed.data else []
    words += ["--device", parsed.device] if hasattr(parsed, "device") else []
    return list(map(str, words))
