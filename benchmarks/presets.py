"""Can every preset begin? The first two outer steps of each, on data of its shape: time and memory.

    python benchmarks/presets.py                 # goes on; updates benchmarks/results/presets.json
    python benchmarks/presets.py --only cifar10  # of these alone
    python benchmarks/presets.py --again         # measures anew

The data are random images of the shape and the classes that the preset is for, at most 20,000 of
    them (2,000 for methods that train experts, of which there is one): what a step takes does not
    depend on how many there are. Every preset runs in a process of its own, uncompiled unless the
    preset says otherwise, with the steps of its first two outer steps (one, where that takes over
    two minutes), and with one short validation at the end.
    Memory is the peak of the process; "before" is what it took to read and prepare the data and to
    train the expert.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from curves import RESULTS

import potstill
from potstill.config.config import options_from_preset, preset_names
from potstill.devices import versions
from potstill.diagnosis.machine import processor
from potstill.distillation.outer import Interrupted
from potstill.progress import Listener
from potstill.records.metrics import StepRecord

OUT = RESULTS / "presets.json"
SHAPES = {
    "cifar100": ((32, 32, 3), 100),
    "cifar10": ((32, 32, 3), 10),
    "tiny-imagenet": ((64, 64, 3), 200),
    "imagenet": ((64, 64, 3), 1000),
    "cub200": ((32, 32, 3), 200),
    "mnist": ((28, 28), 10),
}
"""Part of a preset's data -> (shape, classes) of these data."""
IMAGES, FOR_EXPERTS, LONGEST = 20_000, 2_000, 1800
SLOW = 120.0
"""Seconds of the first outer step from which on there is no second one."""
EXPERTS = ("mtt", "tesla", "ftd", "haba")


def measured(preset: str) -> dict[str, Any]:
    """Take the first two outer steps of a preset."""
    options = options_from_preset(preset)
    data, method = str(options.pop("data", "digits")), str(options.get("method", "rat-bptt"))
    began, records = time.perf_counter(), list[StepRecord]()
    listener = Listener(
        step=lambda record, _: records.append(record),
        stop=lambda: sum(record.seconds or 0.0 for record in records) > SLOW,
    )
    options |= {"steps": 2, "validate_every": 1000, "lengths": (1,), "validation_nets": 1}
    options.pop("time_budget", None)
    if method in EXPERTS:
        options |= {"experts": 1}
    if method in ("random", "herding", "k-center"):
        for name in ("steps", "validate_every"):
            options.pop(name)
    arrays: dict[str, Any] = {}
    known = next((part for name, part in SHAPES.items() if name in data), None)
    if known:
        shape, classes = known
        count = max(FOR_EXPERTS if method in EXPERTS else IMAGES, 12 * classes)
        rng = np.random.default_rng(0)
        arrays = {
            "images": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
            "labels": np.arange(count) % classes,
        }
        for name in ("image_size", "image_column", "label_column"):
            options.pop(name, None)
    else:
        options["data"] = data
    with contextlib.suppress(Interrupted):
        potstill.distill(**arrays, **options, listener=listener)
    steps = [record.seconds for record in records]
    return {
        "data": f"random images, {shape}, {classes} classes" if known else data,
        "seconds": steps,
        "before": round(time.perf_counter() - began - sum(steps), 1),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def main() -> None:
    """Measure what is not known yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        print(json.dumps(measured(given.serve)))
        return
    results = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    for name, _ in preset_names():
        known = results["rows"].get(name)
        done = known and "beside" not in known  # what ran beside other programs is measured again
        if given.only not in name or (done and not given.again):
            continue
        words = [sys.executable, str(Path(__file__)), "--serve", name]
        began = time.perf_counter()
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST)
            row = (
                json.loads(done.stdout.splitlines()[-1])
                if done.returncode == 0
                else {"error": done.stderr.strip().splitlines()[-1][:300]}
            )
        except subprocess.TimeoutExpired:
            row = {"error": f"two steps take over {LONGEST} s"}
        machine = {"processor": processor().value, "versions": versions()}
        results["rows"][name] = {**row, **machine, "date": str(date.today())}
        OUT.write_text(json.dumps(results, indent=2) + "\n")
        print(f"{name}: {json.dumps(row)} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
