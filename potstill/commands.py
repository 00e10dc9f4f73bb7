"""The commands of the command line."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from potstill import distillation, evaluation, exports, runs, sources, store
from potstill.config import (
    EVALUATION_DATA_OPTIONS,
    Config,
    DataConfig,
    options_from_file,
    options_from_preset,
    options_of_config,
)
from potstill.devices import hardware, pick_device, versions
from potstill.display import Display
from potstill.distillation import Listener
from potstill.distilled import DistilledSet
from potstill.evaluation import Row
from potstill.loading import RealData, prepare
from potstill.outer import Interrupted
from potstill.registry import EXPORTS, InputError
from potstill.report import write_grid


def distill(parsed: argparse.Namespace) -> int:
    """`potstill distill`."""
    config = resumed_config(parsed) if parsed.resume else new_config(parsed)
    out = parsed.resume or parsed.out or default_out(config)
    if not (parsed.resume or parsed.overwrite):
        runs.RunFolder.check_free(out)  # before the data are read, which may take long
    try:
        with listening(parsed.quiet) as listener:
            dataset = sources.read(config.data)
            if parsed.resume:
                distilled = distillation.resumed_run(out, dataset, listener=listener)
            else:
                distilled = distillation.new_run(config, dataset, out, overwrite=parsed.overwrite, listener=listener)
    except (Interrupted, KeyboardInterrupt) as error:
        way_on = f"go on with `potstill distill --resume {out}`" if (out / runs.CONFIG).is_file() else "nothing was written"
        raise KeyboardInterrupt(f"{str(error) or 'interrupted'}; {way_on}") from error
    write_grid(distilled, out / runs.PICTURE)
    accuracy = distilled.meta["accuracy"]
    print(
        f"distilled set: {out / 'distilled.safetensors'}\n"
        f"picture:       {out / runs.PICTURE}\n"
        f"validation:    {percent(accuracy)}, {distilled.recipe.steps} training steps; this split chose them\n"
        f"next:          potstill evaluate {out}"
    )
    return 0


def given_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of config.py that the command line sets, by name."""
    return {item.name: getattr(parsed, item.name) for _, item, _ in options_of_config() if hasattr(parsed, item.name)}


def new_config(parsed: argparse.Namespace) -> Config:
    """Defaults, then the preset, then the file, then the command line."""
    options = options_from_preset(parsed.preset) if parsed.preset else {}
    options |= options_from_file(parsed.config) if parsed.config else {}
    return Config.from_options(**{**options, **given_options(parsed)})


def resumed_config(parsed: argparse.Namespace) -> Config:
    """The configuration of the run to resume; an InputError if the command line sets options beside it."""
    others = [name for name in ("out", "preset", "config", "overwrite") if getattr(parsed, name)]
    for name in (*given_options(parsed), *others):
        raise InputError(f"--resume takes every option from the run's config.toml; remove --{name.replace('_', '-')}")
    return runs.RunFolder.open(parsed.resume).config()


def default_out(config: Config) -> Path:
    """runs/DATA-ipcN-METHOD."""
    kind, _, rest = config.data.data.partition(":")
    name = Path(rest).stem if rest else kind
    return Path("runs") / f"{name}-ipc{config.distilled.ipc}-{config.outer.method}"


def percent(figure: Any) -> str:
    """{"mean", "std", "n"} as "88.1 ± 0.5 % (n = 10)"."""
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:.1f}{spread} % (n = {figure['n']})"


@contextmanager
def listening(quiet: bool) -> Iterator[Listener]:
    """A listener that shows a bar, or lines where there is no terminal.

    The first Ctrl-C (or SIGTERM) asks the running loop to stop after its step; before the loop, or again, it stops at once.
    """
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked or not display.stepped:
            raise KeyboardInterrupt
        asked.append(number)
        display.say("stopping after this step; once more stops at once")

    display = Display(quiet)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with display:
            yield Listener(display.say, display.step, display.work, lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_set(parsed: argparse.Namespace) -> tuple[DistilledSet, DataConfig | None]:
    """The distilled set of a run or file, and where its real data are, if that can be told."""

    path = parsed.path
    if path.is_dir() and (path / runs.CONFIG).is_file() and not (path / store.ARTEFACT).is_file():
        raise InputError(f"the run in {path} is not finished; go on with `potstill distill --resume {path}`")
    distilled = store.load(path)
    recorded = Config.from_options(**flat_options(distilled)).data
    folder = path if path.is_dir() else path.parent
    given = {name: getattr(parsed, name) for name in EVALUATION_DATA_OPTIONS if hasattr(parsed, name)}
    if parsed.data:
        recorded = Config.from_options(Config(data=recorded), data=parsed.data, **{"storage": "auto", **given}).data
    elif (folder / runs.CONFIG).is_file():
        recorded = Config.from_options(Config(data=runs.RunFolder(folder).config().data), **given).data
    elif recorded.data != "digits":
        return distilled, None
    return distilled, recorded


def flat_options(distilled: DistilledSet) -> dict[str, Any]:
    """The options that a set's file records; where its data lie is not among them."""
    known = {item.name for _, item, _ in options_of_config()}
    flat = {name: value for table in distilled.meta.get("config", {}).values() for name, value in table.items() if name in known}
    if flat.get("data") not in ("digits", None):
        flat["data"] = "arrays"
    return flat


def machine(parsed: argparse.Namespace) -> torch.device:
    """The device that a command asks for; its threads are set."""
    given = {name: getattr(parsed, name) for name in ("device", "threads") if hasattr(parsed, name)}
    config = Config.from_options(**given).run
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    return pick_device(config.device)


def open_real(distilled: DistilledSet, data: DataConfig, device: torch.device, say: Callable[[str], None]) -> RealData:
    """The real data of a set, through the set's own preprocessing; an InputError if they do not fit it."""

    dataset = sources.read(data)
    shape = tuple(dataset.train.images.shape[1:])
    if shape != distilled.shape:
        raise InputError(f"the data must have images of shape {distilled.shape} like the distilled set, got {shape}")
    if dataset.class_names != distilled.class_names:
        raise InputError(
            f"the data must have the classes of the distilled set ({len(distilled.class_names)}, {distilled.class_names[0]} ..), "
            f"got {len(dataset.class_names)}, {dataset.class_names[0]} .."
        )
    if dataset.fingerprint != distilled.meta.get("data", {}).get("fingerprint"):
        say("note: these are not the data that the set was distilled from; its validation and test images may differ")
    return prepare(dataset, data, device, distilled.fitted)


def evaluate(parsed: argparse.Namespace) -> int:
    """`potstill evaluate`."""

    distilled, data = open_set(parsed)
    if data is None:
        raise InputError(f"{parsed.path} does not tell where its data lie; give them with --data")
    folder = parsed.path if parsed.path.is_dir() else parsed.path.parent
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {folder / runs.EVALUATION}: no permission; copy the set to a folder of your own")
    device = machine(parsed)
    with Display() as display:
        real = open_real(distilled, data, device, display.say)
        config = Config.from_options(**flat_options(distilled))
        rows = evaluation.evaluate(
            distilled, real, nets=parsed.nets, model=parsed.model, steps=parsed.steps, protocol=parsed.protocol,
            baselines=parsed.baseline, full_epochs=parsed.full_epochs, lengths=config.evaluation.lengths, seed=parsed.seed,
            device=str(device), progress=display.work,
        )  # fmt: skip
    result = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "split": "test",
        "test_images": len(real.test),
        "data": {"source": data.data.partition(":")[0], "fingerprint": real.fingerprint},
        "seed": parsed.seed,
        "hardware": hardware(device),
        "versions": versions(),
    }
    store.write(folder / runs.EVALUATION, json.dumps(result, indent=2) + "\n")
    show(rows, len(real.test), hardware(device))
    print(f"written: {folder / runs.EVALUATION}")
    return 0


def show(rows: list[Row], test_images: int, machine: str) -> None:
    """Print an evaluation as a table."""

    table = Table(title=f"Test accuracy on {test_images} images, fresh networks ({machine})", title_justify="left")
    for column in ("trained on", "images", "network", "steps", "accuracy", "protocol"):
        table.add_column(column, justify="right" if column in ("images", "steps") else "left", overflow="fold")
    for row in rows:
        table.add_row(row.name, f"{row.images:,}", row.model, f"{row.steps:,}", str(row.accuracy), row.protocol)
    # No terminal means a log or a pipe: there the table takes the room that it needs.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


def export(parsed: argparse.Namespace) -> int:
    """`potstill export`."""
    distilled, data = open_set(parsed)
    folder = parsed.path if parsed.path.is_dir() else parsed.path.parent
    out = parsed.out or folder / EXPORTS[parsed.format].default_name
    told = exports.export(distilled, parsed.format, out)
    print(f"written: {out}\n{told}")
    if parsed.no_check or EXPORTS[parsed.format].exact:
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
