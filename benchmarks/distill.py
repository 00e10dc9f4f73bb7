"""Distill, evaluate with its baselines, and keep the result with its provenance in
benchmarks/results/NAME.json.

    python benchmarks/distill.py digits-ipc1 --preset digits-ipc1
    python benchmarks/distill.py mnist-ipc1 --title "MNIST" --data parquet:PATH --ipc 1 --steps 300

Other options go to `potstill distill`. A run that was cut off goes on where it was when the same
command is given again.
"""

import argparse
import json
import platform
import shlex
import time
from pathlib import Path

from potstill import load
from potstill.cli.parser import main as potstill
from potstill.distillation import checkpoints, run_folder
from potstill.evaluation.records import EVALUATION, EvaluationRecord, entries

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the result file")
    parser.add_argument("--title", help="of the data in tables (default: the name)")
    parser.add_argument("--nets", default="10", help="networks in the evaluation (default: 10)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the run (default: runs)"
    )
    known, options = parser.parse_known_args()
    out = known.work / known.name
    words = (
        ["--resume", str(out)]
        if (out / checkpoints.CONFIG).exists()
        else ["--out", str(out), *options]
    )
    began = time.perf_counter()
    made = (out / "distilled.safetensors").exists()
    if not made and potstill(["distill", *words]):
        raise SystemExit(2)
    whole = None if made or words[0] == "--resume" else round(time.perf_counter() - began, 1)
    began = time.perf_counter()
    if potstill(["evaluate", str(out), "--nets", known.nets, "--baseline", "random"]):
        raise SystemExit(2)
    records = run_folder.RunFolder(out).records()
    shown = [
        word if not word.startswith(("parquet:", "folder:")) else word.partition(":")[0] + ":PATH"
        for word in options
    ]
    result = {
        "title": known.title or known.name,
        "command": shlex.join(["potstill", "distill", *shown]),
        "evaluation": entries(out / EVALUATION, EvaluationRecord.KEY)[-1],
        "images_per_class": load(out).ipc,
        "validation": load(out).meta["accuracy"],
        "outer_steps": len(records),
        "seconds_per_outer_step": sorted(record.seconds for record in records)[len(records) // 2],
        "seconds_distilling": round(sum(record.seconds for record in records), 1),
        "seconds_of_the_command": whole,
        "seconds_evaluating": round(time.perf_counter() - began, 1),
        "peak_memory_mb": max(record.memory_mb for record in records),
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{known.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
