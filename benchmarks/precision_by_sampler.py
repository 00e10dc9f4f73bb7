"""Does bfloat16 cost accuracy? Every window sampler in both precisions, from the same seeds for the
same outer steps.

    python benchmarks/precision_by_sampler.py --data parquet:PATH_OF_MNIST

Three problems: the small one of the test suite (three blobs, an MLP with a large inner learning
    rate), digits and MNIST. Runs of one seed share the images that they start from, their windows,
    and at every outer step the network's start and the real batch, so that only rounding tells them
    apart. The set of the last outer step is tested by fresh networks that train on it in float32
    for a fixed number of steps; nothing is chosen. Results are written as they come, and a
    benchmark that was cut off goes on when it is asked for again.

"bfloat16 throughout" rounds the first inner step too, which `--precision bfloat16` does not; it is
measured for the samplers whose window often begins there.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from curves import RESULTS, provenance

from potstill.config.config import configuration, options_of_run
from potstill.data.arrays import from_arrays
from potstill.data.sources import read
from potstill.data.splits import Dataset
from potstill.distillation.runs import new_run
from potstill.evaluation.bench import Bench
from potstill.evaluation.fitting import fitting
from potstill.methods import unrolled
from potstill.methods.unrolled import UnrolledMethod
from potstill.progress import Listener
from potstill.records.metrics import StepRecord
from potstill.registry import METHODS
from potstill.seeds import generator

RESULT = RESULTS / "precision_by_sampler.json"
PRECISIONS, THROUGHOUT = ("float32", "bfloat16"), "bfloat16 throughout"
FROM_THE_START = ("bptt", "r-bptt", "forward", "growing")
"""Samplers whose window begins at the first inner step, always or for a while."""
SAMPLERS = tuple(
    name for name in METHODS if issubclass(METHODS[name], UnrolledMethod) and name != "fixed"
)
"""At its defaults `fixed` is t-bptt."""
BLOBS = {
    "model": "mlp",
    "width": 16,
    "depth": 1,
    "inner_lr": 0.01,
    "unroll": 20,
    "window": 8,
    "steps": 60,
    "real_batch": 100,
    "outer_lr": 0.03,
    "preprocess": "none",
    "lengths": (20,),
}
CONVNET = {
    "width": 32,
    "unroll": 30,
    "window": 10,
    "steps": 100,
    "real_batch": 200,
    "outer_lr": 0.02,
    "preprocess": "normalize",
    "lengths": (60,),
}
MNIST = {**CONVNET, "steps": 150, "real_batch": 100, "outer_lr": 0.01, "validation": 0.01}
SETTINGS: dict[str, dict[str, Any]] = {
    "blobs, Adam": BLOBS,
    "blobs, SGD": {**BLOBS, "inner_optimizer": "sgd"},
    "digits": CONVNET,
    "MNIST": MNIST,
    "MNIST, 40 steps": {**MNIST, "steps": 40},
}
"""Options of the runs by the name of the problem."""
SEEDS = {"blobs, Adam": 10, "blobs, SGD": 3, "digits": 3, "MNIST": 3, "MNIST, 40 steps": 1}
"""Distilling seeds: more where a run takes a second. 40 steps of MNIST tell nothing, runs differ
too much so early.
"""
MORE = {("MNIST", "forward"): 20, ("MNIST", "early"): 10}
"""Distilling seeds where the first three showed a loss: whether seven others show it, too."""


def blobs() -> Dataset:
    """Three well-separated classes of 1 x 4 x 4, as in the test of every method; 600 images to test
    on.
    """
    centres, labels = torch.randn(3, 1, 4, 4, generator=generator(1)), torch.arange(840) % 3
    images = centres[labels] + 0.5 * torch.randn(840, 1, 4, 4, generator=generator(2))
    return from_arrays(images[:240], labels[:240], images[240:], labels[240:])


def mnist(data: str) -> Dataset:
    """The first images of MNIST: 10,000 to train on, 2,000 to test on."""
    dataset = read(configuration(data=data).data)
    train, test = dataset.train, dataset.test
    assert test is not None
    return from_arrays(
        train.images[:10_000], train.labels[:10_000], test.images[:2_000], test.labels[:2_000]
    )


def measured(dataset: Dataset, options: dict[str, Any], nets: int) -> dict[str, Any]:
    """One run: the accuracy of its set, the seconds of its outer steps, and the losses in their
    course.
    """
    steps, records = options["steps"], list[StepRecord]()
    shared = {"threads": 1, "compile": "off", "validation_nets": 1, "validate_every": steps}
    shared["patience"] = max(1, steps // 40)
    known = {option.name for option in options_of_run(options)}
    config = configuration(
        {name: value for name, value in {**shared, **options}.items() if name in known}
    )
    distilled = new_run(
        config, dataset, None, listener=Listener(step=lambda record, _: records.append(record))
    )
    bench = Bench.of(
        distilled, fitting(distilled, dataset, config.data, "cpu"), nets, 0, torch.device("cpu")
    )
    bench = dataclasses.replace(
        bench, recipe=dataclasses.replace(bench.recipe, precision="float32")
    )
    accuracy = bench.of_set("distilled", distilled, options["lengths"]).accuracy
    return {
        "accuracy": dataclasses.asdict(accuracy),
        "seconds_per_step": statistics.median(record.seconds or 0.0 for record in records),
        "last_losses": statistics.fmean(
            record.loss or 0.0 for record in records[-max(1, steps // 10) :]
        ),
        "skipped": sum(record.skipped for record in records),
    }


def work(settings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What tells the runs apart, seed after seed, so that what is measured is always a balanced
    part of the whole.
    """
    for throughout in (False, True):
        for seed in range(max(*SEEDS.values(), *MORE.values())):
            for setting, method in itertools.product(
                settings, FROM_THE_START if throughout else SAMPLERS
            ):
                seeds = SEEDS[setting]
                if seed < (seeds if throughout else MORE.get((setting, method), seeds)):
                    for precision in (THROUGHOUT,) if throughout else PRECISIONS:
                        yield {
                            "setting": setting,
                            "method": method,
                            "seed": seed,
                            "precision": precision,
                        }


@contextmanager
def rounding(precision: str) -> Iterator[str]:
    """The option `precision` of a run; inside it, the first step is rounded too if that is asked
    for.
    """
    if precision != THROUGHOUT:
        yield precision
        return
    with mock.patch.object(unrolled, "ExactStart", lambda rounded, full: rounded):
        yield "bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="parquet:PATH of MNIST")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all"
    )
    parser.add_argument(
        "--nets", type=int, default=5, help="test networks for each set (default: 5)"
    )
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the result")
    known = parser.parse_args()
    torch.set_num_threads(1)
    sources: dict[str, Callable[[], Dataset]] = {
        "blobs": blobs,
        "digits": lambda: read(configuration().data),
        "MNIST": lambda: mnist(known.data),
    }
    datasets: dict[str, Dataset] = {}
    rows = json.loads(known.result.read_text())["rows"] if known.result.exists() else []
    for row in work(known.settings):
        if any(row.items() <= done.items() for done in rows):
            continue
        data = row["setting"].partition(",")[0]
        if data not in datasets:
            datasets[data] = sources[data]()
        with rounding(row["precision"]) as precision:
            own = {"method": row["method"], "seed": row["seed"], "precision": precision}
            rows.append(
                {**row, **measured(datasets[data], {**SETTINGS[row["setting"]], **own}, known.nets)}
            )
        print(json.dumps(rows[-1]), flush=True)
        result = {"rows": rows, "settings": SETTINGS, "nets": known.nets, **provenance()}
        known.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
