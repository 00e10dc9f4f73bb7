"""Sets that grow, beside starting over in the same time: digits.

    python benchmarks/growing.py            # results/growing.json; about 15 minutes on one core

Each seed: a set of one image a class is made; then it is extended to two a class, and beside it two
a class are distilled from the start, in the time that the extension took and in the time that both
took. Likewise a set of the digits 0 to 7 gets the classes 8 and 9, beside all ten from the start;
and the sets of two owners, who have half of the data each, are merged, beside a set of two a class
of all data in the time of both. Networks train by each set's recipe and are tested on the test
digits, which chose nothing.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from curves import RESULTS, figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import potstill
from potstill.devices import versions
from potstill.diagnosis.machine import processor

OUT = RESULTS / "growing.json"
SHARED: dict[str, Any] = {
    "width": 32, "unroll": 60, "window": 20, "real_batch": 200, "init": "real", "threads": 1,
    "lengths": (100, 300), "validation_nets": 2, "validate_every": 1000, "progress": False,
    "class_names": tuple("0123456789"),
}  # fmt: skip
STEPS, NETS, FEW, TEST = 150, 5, 8, 360
PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = (PIXELS.reshape(-1, 8, 8) * 15).astype(np.uint8)
Arrays = dict[str, Any]


def arrays(chosen: NDArray[np.bool_]) -> Arrays:
    """The digits of a mask, in an order of no meaning; the last ones are the test digits of all."""
    known, tested = np.flatnonzero(chosen[:-TEST]), np.flatnonzero(chosen[-TEST:]) - TEST
    return {
        "images": IMAGES[known],
        "labels": LABELS[known],
        "test_images": IMAGES[tested],
        "test_labels": LABELS[tested],
    }


EVERY = np.ones(len(LABELS), bool)
ALL, SOME = arrays(EVERY), arrays(LABELS < FEW)


def half(number: int) -> Arrays:
    """The data of one of two owners; test digits are common."""
    mine = np.arange(len(LABELS)) % 2 == number
    mine[-TEST:] = True
    return arrays(mine)


def timed(make: Any, **options: Any) -> tuple[potstill.DistilledSet, float]:
    """Make a set; return it and the seconds that it took."""
    began = time.perf_counter()
    return make(**options), time.perf_counter() - began


def tested(distilled: potstill.DistilledSet) -> float:
    """Mean accuracy of networks on the test digits."""
    rows = potstill.evaluate(distilled, **ALL, nets=NETS, progress=False)
    return rows[0].accuracy.mean


def anew(seconds: float, **options: Any) -> float:
    """Accuracy of a set of all data that starts over, in so many seconds."""
    return tested(
        potstill.distill(**{**SHARED, **ALL, **options, "time_budget": f"{seconds:.0f}s"})
    )


def measured(seed: int, place: Path) -> dict[str, Any]:
    """Everything with one seed."""
    own = {**SHARED, "seed": seed}
    of_all, of_some = {**own, **ALL}, {**own, **SOME, "class_names": own["class_names"][:FEW]}
    first, one = timed(potstill.distill, **of_all, steps=STEPS, out=place / "first")
    grown, two = timed(
        potstill.extend, run=place / "first", ipc=2, out=place / "grown", **ALL, progress=False
    )
    _, few = timed(potstill.distill, **of_some, steps=STEPS, out=place / "some")
    wider, more = timed(
        potstill.extend, run=place / "some", new_classes=True, out=place / "wider", **ALL,
        class_names=own["class_names"], progress=False,
    )  # fmt: skip
    owners = [timed(potstill.distill, **{**own, **half(number)}, steps=STEPS) for number in (0, 1)]
    both = sum(seconds for _, seconds in owners)
    return {
        "seconds": {"first": one, "extension": two, "some": few, "classes": more, "owners": both},
        "extended": {
            "one a class": tested(first),
            "extended to two": tested(grown),
            "two anew, in the extension's time": anew(two, ipc=2, seed=seed),
            "two anew, in the time of both": anew(one + two, ipc=2, seed=seed),
        },
        "classes": {
            "eight classes, then two more": tested(wider),
            "ten classes anew, in the time of the two": anew(more, seed=seed),
            "ten classes anew, in the time of both": anew(few + more, seed=seed),
        },
        "merged": {
            "one owner, half of the data": tested(owners[0][0]),
            "two owners, merged": tested(potstill.merge(*(made for made, _ in owners))),
            "two a class of all data, in the time of both": anew(both, ipc=2, seed=seed),
        },
    }


def main() -> None:
    """Measure every seed and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured(seed, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
    result: dict[str, Any] = {
        part: {name: figure([one[part][name] for one in found]) for name in found[0][part]}
        for part in found[0]
    }
    result |= {
        "nets": NETS, "steps": STEPS, "processor": processor().value, "versions": versions(),
        "date": str(date.today()),
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
