"""How long evaluating takes beside the arithmetic of it: full-width networks at 32 pixels.

    python benchmarks/evaluating.py          # results/evaluating.json; some ten minutes

One hundred random images stand for a set of ten a class, 2,000 others for test data: what a step
takes does not depend on what they show. For every network the seconds of `potstill.evaluate` are
told beside those that its floating-point operations would take at the rate of one thread's plain
convolutions (`potstill doctor`) times the threads: training is three forward passes of a batch, a
test is one of each image. Each is the median of three turns; networks are compiled anew in none of
them.
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import RESULTS, provenance
from torch.utils.flop_counter import FlopCounterMode

import potstill
from potstill.diagnosis.machine import convolution_rate, processor
from potstill.models import fresh, resolve

OUT = RESULTS / "evaluating.json"
SHAPE, CLASSES, SET, TEST = (3, 32, 32), 10, 100, 2_000
TRAINING, TURNS, NETS = 3, 3, 2
"""Forward passes that a training step counts for; turns; networks of each turn."""
RANDOM: dict[str, Any] = {
    "method": "random", "ipc": SET // CLASSES, "lengths": (1,), "validation_nets": 1,
    "preprocess": "normalize", "progress": False,
}  # fmt: skip
STEPS = {"convnet": 100, "alexnet": 40, "vgg11": 40, "resnet18": 10}


def operations(model: str) -> float:
    """Floating-point operations of a forward pass of one image."""
    network = fresh(resolve(model, SHAPE, CLASSES), 0, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(4, *SHAPE))
    return float(counter.get_total_flops() / 4)


def measured(model: str, made: Path, test: dict[str, Any], threads: int) -> dict[str, Any]:
    """Seconds of an evaluation, and those of its operations."""
    steps, seconds = STEPS[model], []
    options: dict[str, Any] = {
        "models": (model,),
        "nets": NETS,
        "steps": steps,
        "lr": 0.001,
        "progress": False,
    }
    for _ in range(TURNS + 1):  # the first one compiles
        began = time.perf_counter()
        potstill.evaluate(made, **test, **options)
        seconds.append(time.perf_counter() - began)
    each = NETS * operations(model)
    rate = convolution_rate() * threads
    training, testing = each * TRAINING * SET * steps / rate, each * TEST / rate
    spent = statistics.median(seconds[1:])
    return {
        "steps": steps, "seconds": seconds[1:], "first": seconds[0], "training": training,
        "testing": testing, "rate": rate, "ratio": spent / (training + testing),
    }  # fmt: skip


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks whose names have this in them")
    known = parser.parse_args()
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    images = rng.integers(0, 256, (SET + TEST, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
    labels = np.arange(len(images)) % CLASSES
    test: dict[str, Any] = {
        "images": images[:SET], "labels": labels[:SET],
        "test_images": images[SET:], "test_labels": labels[SET:],
    }  # fmt: skip
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "run"
        potstill.distill(
            np.repeat(images[:SET], 2, 0), np.repeat(labels[:SET], 2), out=made, **RANDOM
        )
        for model in (name for name in STEPS if known.only in name):
            found[model] = measured(model, made, test, threads)
            print(model, json.dumps(found[model]), flush=True)
    result = {
        "networks": found, "set": SET, "test": TEST, "nets": NETS, "threads": threads,
        "processor": processor().value, **provenance(), "date": str(date.today()),
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
