"""Every method by its quick preset on MNIST: accuracy, seconds, memory.

    python benchmarks/quick_methods.py --data parquet:mnist     # results/quick_methods.json
    python benchmarks/quick_methods.py --data parquet:mnist --only dm,mtt --seeds 1

Each run is `potstill distill --preset METHOD-quick-mnist` in a process of its own, whose seconds
and peak memory count; then networks train on the set, by its recipe and by one protocol for all,
and are tested on MNIST's test images, which chose nothing. Experts and features are trained anew in
the first seed and found in the others, so that the first seed's seconds are those of a first run.
What is measured already is not measured again: delete the file to begin anew.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import potstill
from potstill.devices import hardware, versions

RESULTS = Path(__file__).parent / "results" / "quick_methods.json"
METHODS = (
    "random", "herding", "k-center", "dc", "dsa", "dm", "idc", "mtt", "tesla", "ftd", "haba",
    "kip", "frepo", "rfad", "rcig",
)  # fmt: skip
NETS = 5
COMMON = "dsa-1000-digits"
"""The protocol that tests all sets alike, beside each set's own recipe."""


def distilled(method: str, data: str, seed: int, folder: Path) -> dict[str, float]:
    """Run a preset; return its seconds and peak memory in MB."""
    command = [
        sys.executable, "-m", "potstill", "distill", "--preset", f"{method}-quick-mnist", "--data",
        data, "--seed", str(seed), "--cache-dir", str(folder / "cache"), "--out",
        str(folder / "run"), "--overwrite",
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = 0.0
    while process.poll() is None:
        memory = max(memory, peak_of(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1)} | ({"MB": round(memory)} if memory else {})


def peak_of(pid: int) -> float:
    """Return the peak memory of a process so far, in MB; 0 where the system does not tell.

    What `wait4` gives is no less than the memory of the process that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def tested(folder: Path, data: str) -> dict[str, Any]:
    """Train networks on the set of a run and test them."""
    own, common = (
        potstill.evaluate(
            folder / "run",
            data=data,
            nets=NETS,
            progress=False,
            protocol=protocol,
            learner=learner,
        )[0]
        for protocol, learner in (("validation", "auto"), (COMMON, "network"))
    )
    done = potstill.load(folder / "run")
    return {
        "accuracy": own.accuracy.mean,
        "std over networks": own.accuracy.std,
        f"accuracy by {COMMON}": common.accuracy.mean,
        "networks": own.accuracy.n,
        "steps": own.steps,
        "images": len(done),
        "stored bytes": done.stored_bytes,
        "validation": round(done.metadata.accuracy.mean, 4) if done.metadata.accuracy else None,
    }


def measured(method: str, data: str, seeds: int, found: dict[str, Any]) -> None:
    """Measure the seeds of a method that are missing, and keep each."""
    runs = found.setdefault(method, {})
    with tempfile.TemporaryDirectory() as name:
        for seed in range(seeds):
            if str(seed) in runs:
                continue
            load = os.getloadavg()[0]
            run = {**distilled(method, data, seed, Path(name)), **tested(Path(name), data)}
            known = {"load before": load, "date": datetime.now(UTC).date().isoformat()}
            machine = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
            runs[str(seed)] = {**run, **known, **machine}
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")
            mean = statistics.fmean(one["accuracy"] for one in runs.values())
            print(
                f"{method:9} seed {seed}: {100 * run['accuracy']:.1f} %, {run['seconds']:.0f} s, "
                f"{run.get('MB', '?')} MB; mean so far {100 * mean:.1f} %",
                flush=True,
            )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="MNIST, such as parquet:PATH")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for method in asked.only.split(","):
        measured(method, asked.data, asked.seeds, found)


if __name__ == "__main__":
    main()
