"""The commands on finished sets."""

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from potstill.api import hub, measurements
from potstill.api import zoo as zoos
from potstill.cli.commands import machine
from potstill.cli.tables import show, show_audit, show_card, show_zoo
from potstill.config.sections import EVALUATION_DATA_OPTIONS
from potstill.data import sources
from potstill.data.preprocessing import Absent
from potstill.devices import hardware
from potstill.distilled import artefact, exports, merging
from potstill.distilled.zoo import OtherFile, catalogue, ready_set
from potstill.distributed.ranks import joined
from potstill.errors import InputError
from potstill.evaluation import measuring
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.records import AUDIT, EvaluationRecord
from potstill.progress import Display, Listener
from potstill.registry import EXPORTS

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
    parts = [artefact.load(path) for path in parsed.paths]
    merged = merging.merge(*parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    artefact.save(merged, out)
    print(f"written: {out}\n{merged.stored}")
    own, longest = parts[0].recipe.steps, merged.recipe.steps
    length = "" if own == longest else f", but for {longest:,} steps, the most of any"
    print(
        f"networks train on it as on {parsed.paths[0]}{length}; what it is worth is not measured "
        f"yet: potstill evaluate {shlex.quote(str(out))} --data DATA"
    )
    if len({part.images.numpy().tobytes() for part in parts}) < len(parts):
        print("note: some of these sets are the same, so that their examples come twice")
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


def zoo(parsed: argparse.Namespace) -> int:
    """Run `potstill zoo`; return the exit code: 1 if a set is not what its card says."""
    words: list[str] = parsed.words
    if words[:1] == ["verify"]:
        return verified(parsed, words[1:])
    idle = [f"--{name}" for name in ("data", "nets", "device", "threads") if hasattr(parsed, name)]
    if idle:
        raise InputError(f"{idle[0]} is for potstill zoo verify; leave it out")
    if len(words) > 1:
        raise InputError(
            f"zoo takes one name to show its card, got {' '.join(words)!r}; to measure sets "
            "again: potstill zoo verify NAME NAME"
        )
    if words:
        show_card(ready_set(words[0]))
    else:
        show_zoo(catalogue())
    return 0


def verified(parsed: argparse.Namespace, names: list[str]) -> int:
    """Run `potstill zoo verify`; return the exit code."""
    given = {name: getattr(parsed, name) for name in ("data", "nets") if hasattr(parsed, name)}
    if "data" in given and not names:
        raise InputError(
            f"--data {parsed.data} must be that of the sets that are named, got no names; name them"
        )
    chosen = [ready_set(name).name for name in names] or [one.name for one in catalogue()]
    device, good = str(machine(parsed)), True
    for name in chosen:
        with Display() as display:
            listener = Listener(display.say, work=display.work)
            try:
                found = zoos.verify(name, **given, device=device, listener=listener)
            except OtherFile as error:  # the others may be whole
                print(error, flush=True)
                good = False
                continue
        print(found, flush=True)
        good = good and found.agrees
    return 0 if good else 1
