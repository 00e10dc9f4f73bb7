"""Where an outer step's time is best spent: in more trajectories or in a larger real batch?
CIFAR-10, one image per class.

    python benchmarks/trajectories.py --data parquet:PATH

Every setting gets as many outer steps as fit the same number of seconds. The result that is kept is
older: in its runs the trajectories of an outer step shared one real batch.
"""

import argparse
import json
from pathlib import Path

from curves import RESULTS, curve, provenance

SETTINGS = [(count, real) for real in (250, 5000) for count in (1, 4, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="parquet:PATH of CIFAR-10")
    parser.add_argument(
        "--seconds", type=float, default=160, help="in outer steps, for each setting (default: 160)"
    )
    parser.add_argument(
        "--step",
        type=float,
        default=0.65,
        help="seconds of a step with one trajectory, 250 real (default: 0.65)",
    )
    parser.add_argument(
        "--real",
        type=float,
        default=0.45,
        help="seconds that 1,000 real images take (default: 0.45)",
    )
    parser.add_argument("--seed", type=int, default=0, help="distilling seed (default: 0)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the runs (default: runs)"
    )
    known = parser.parse_args()
    curves = {}
    for count, real in SETTINGS:
        # Every trajectory has a real batch.
        cost = count * (known.step + known.real * (real - 250) / 1000)
        steps = max(2, round(known.seconds / cost))
        curves[f"K {count}, real batch {real}"] = curve(
            known.work / f"trajectories-{count}-{real}-{known.seed}",
            data=known.data,
            precision="bfloat16",
            seed=known.seed,
            steps=steps,
            real_batch=real,
            trajectories=count,
            validate_every=max(1, steps // 5),
        )
    result = {
        "data": "CIFAR-10", "images_per_class": 1, "precision": "bfloat16", "split": "validation",
        "protocol": "3 fresh networks, 300 steps; one distilling seed; each trajectory with a real "
                    "batch of its own",
        "seed": known.seed, "curves": curves, **provenance(),
    }  # fmt: skip
    (RESULTS / "trajectories.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, points in curves.items():
        print(
            name,
            [
                (point["step"], point["seconds"], round(100 * point["accuracy"], 1))
                for point in points
            ],
        )


if __name__ == "__main__":
    main()
