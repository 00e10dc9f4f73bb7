"""What the normalised variance of a meta-gradient costs: brute force, one unroll for all samples,
random signs. Digits.

    python benchmarks/variance.py

Times are taken in turns, and each way's is the median of its ratios to brute force in the same
turn. Brute force is timed for a tenth of the samples and multiplied.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from curves import RESULTS, provenance

from potstill.config.config import configuration
from potstill.data.sources import read
from potstill.diagnosis.variance import Variance, random_signs, real_variance, variance_of
from potstill.distillation.outer import Carried
from potstill.distillation.setup import Setup
from potstill.methods.one_unroll import Replay, Trajectory
from potstill.methods.unrolled import UnrolledMethod
from potstill.progress import SILENT

SAMPLES, SIGNS, PART = 100, 10, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="default: 5")
    parser.add_argument(
        "--signs", type=int, default=200, help="estimates by signs, for their spread (default: 200)"
    )
    known = parser.parse_args()
    config = configuration(
        method="t-bptt",
        preprocess="normalize",
        width=32,
        unroll=60,
        window=20,
        compile="off",
        outer_lr=0.02,
        real_batch=200,
    )
    setup = Setup.of(config, read(config.data), None, SILENT)
    stage = setup.stage(None)
    method = setup.make_method(stage, Carried())
    assert isinstance(method, UnrolledMethod)
    first, replay = setup.begin(stage, method), Replay(0)
    on_blocks = stage.on_blocks(method, setup.device)
    of_blocks, learned = on_blocks.split(first.leaves)
    examples, state = on_blocks.examples(of_blocks)[0], first.method

    def unrolled() -> Trajectory:
        return method.trajectory(examples, learned, replay, *method.window(state, replay))

    def brute_force() -> Variance:
        def draw(place: int) -> torch.Tensor:
            return (
                unrolled()
                .of_samples(replay, SAMPLES, 1, torch.eye(SAMPLES)[place])
                .leaves["images"]
                .flatten()
            )

        return variance_of(draw(place) for place in range(PART))

    ways: dict[str, Callable[[], Variance]] = {
        "brute force": brute_force,
        "exact": lambda: real_variance(method, examples, learned, state, 0, samples=SAMPLES),
        "signs": lambda: real_variance(
            method, examples, learned, state, 0, samples=SAMPLES, signs=SIGNS
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(known.turns):
        for way, measure in ways.items():
            began = time.perf_counter()
            measure()
            seconds[way].append(
                (time.perf_counter() - began) * (SAMPLES / PART if way == "brute force" else 1)
            )
    exact = ways["exact"]()
    # One combination of signs after another, all of the same samples: how far single estimates lie
    # from the exact value.
    singles = []
    trajectory = unrolled()
    for signs in random_signs(known.signs, SAMPLES, 0, 0):
        combined = trajectory.of_samples(replay, SAMPLES, 1, signs - signs.mean()).leaves["images"]
        singles.append(
            float(combined.square().sum()) / (SAMPLES - 1) / combined.numel() / exact.per_entry
        )
    result = {
        "samples": SAMPLES,
        "signs": SIGNS,
        "unroll": 60,
        "window": 20,
        "seconds": seconds,
        "brute_force_timed": PART,
        "ratio": {
            way: statistics.median(map(float.__truediv__, seconds["brute force"], own))
            for way, own in seconds.items()
        },
        "single_sign_over_exact": {
            "mean": statistics.fmean(singles),
            "std": statistics.stdev(singles),
            "n": len(singles),
        },
        **provenance(),
    }
    (RESULTS / "variance.json").write_text(json.dumps(result, indent=2) + "\n")
    print(result["ratio"], result["single_sign_over_exact"])


if __name__ == "__main__":
    main()
