"""How many more meta-gradients a second do two ranks of one thread give than one process of one
thread?

    python benchmarks/ranks.py

Both distill the same in turns, in a new process each time: four trajectories an outer step. The
time is the median of the outer steps after the first, and the figure is the ratio of the two in the
same turn, since other work on the machine changes from turn to turn. The machine's load is written
down beside it. With both, the digits' bytes are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from curves import RESULTS, figure, provenance

from potstill.distillation.run_folder import RunFolder
from potstill.distilled.artefact import ARTEFACT

TRAJECTORIES = 4
OPTIONS: dict[str, Any] = {
    "data": "digits",
    "width": 32,
    "unroll": 40,
    "window": 20,
    "real-batch": 500,
    "trajectories": TRAJECTORIES,
    "validate-every": 100,
    "lengths": 1,
    "validation-nets": 2,
    "threads": 1,
    "precision": "float32",
    "compile": "off",
}
LAUNCH = {
    "one process": (sys.executable, "-m", "potstill"),
    "two ranks": (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "potstill",
    ),
}


def measured(way: str, out: Path, steps: int) -> float:
    """Distill once; the median seconds of an outer step after the first."""
    words = [
        word
        for name, value in {**OPTIONS, "steps": steps}.items()
        for word in (f"--{name}", str(value))
    ]
    line = [*LAUNCH[way], "distill", *words, "--out", str(out), "--overwrite", "--quiet"]
    subprocess.run(
        line,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return statistics.median(record.seconds for record in RunFolder(out).records()[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="default: 7")
    parser.add_argument("--steps", type=int, default=10, help="outer steps of a run (default: 10)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the runs (default: runs)"
    )
    known = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in LAUNCH}
    load, folders = [], {way: known.work / f"ranks-{way.replace(' ', '-')}" for way in LAUNCH}
    for turn in range(known.turns):
        # The other way round in every other turn: what drifts cancels.
        for way in list(LAUNCH)[:: 1 if turn % 2 == 0 else -1]:
            load.append(os.getloadavg()[0])
            seconds[way].append(measured(way, folders[way], known.steps))
    one, two = ((folder / ARTEFACT).read_bytes() for folder in folders.values())
    ratios = [alone / shared for alone, shared in zip(*seconds.values(), strict=True)]
    result = {
        "command": "python benchmarks/ranks.py",
        "options": OPTIONS,
        "steps": known.steps,
        "turns": known.turns,
        "seconds_per_outer_step": seconds,
        "meta_gradients_a_second": {
            way: figure([TRAJECTORIES / value for value in found]) for way, found in seconds.items()
        },
        "ratio": {
            **figure(ratios),
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        },
        "same_bytes": one == two,
        "cores": os.cpu_count(),
        "load_before_each_run": figure(load),
        **provenance(),
    }
    (RESULTS / "ranks.json").write_text(json.dumps(result, indent=2) + "\n")
    print(result["ratio"], result["same_bytes"], result["load_before_each_run"])


if __name__ == "__main__":
    main()
