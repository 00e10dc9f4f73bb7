"""Does bfloat16 cost accuracy? CIFAR-10, one image per class, the same seeds and steps in both
precisions.

python benchmarks/precision.py --data parquet:PATH
"""

import argparse
import json
from pathlib import Path

from curves import RESULTS, curve, figure, provenance


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="parquet:PATH of CIFAR-10")
    parser.add_argument("--steps", type=int, default=100, help="outer steps (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="distilling seeds (default: 3)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the runs (default: runs)"
    )
    known = parser.parse_args()
    curves = {
        precision: [
            curve(
                known.work / f"precision-{precision}-{seed}",
                data=known.data,
                precision=precision,
                seed=seed,
                steps=known.steps,
                real_batch=250,
                validate_every=20,
            )
            for seed in range(known.seeds)
        ]
        for precision in ("float32", "bfloat16")
    }
    steps = [point["step"] for point in curves["float32"][0]]
    accuracy = {
        precision: {
            step: figure([run[place]["accuracy"] for run in found])
            for place, step in enumerate(steps)
        }
        for precision, found in curves.items()
    }
    differences = [
        [half["accuracy"] - single["accuracy"] for single, half in zip(one, other, strict=True)]
        for one, other in zip(curves["float32"], curves["bfloat16"], strict=True)
    ]
    result = {
        "data": "CIFAR-10",
        "images_per_class": 1,
        "split": "validation",
        "protocol": "3 fresh networks, 300 steps, after each number of outer steps; mean and "
        "deviation over distilling seeds",
        "curves": curves,
        "accuracy": accuracy,
        "bfloat16_minus_float32": {
            step: figure([found[place] for found in differences])
            for place, step in enumerate(steps)
        },
        **provenance(),
    }
    (RESULTS / "precision.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps({"accuracy": accuracy, "difference": result["bfloat16_minus_float32"]}, indent=2)
    )


if __name__ == "__main__":
    main()
