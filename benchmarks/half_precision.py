"""What half precision of the ZCA matrix costs: one set, ten networks, both matrices.

    python benchmarks/half_precision.py digits parquet:MNIST parquet:CIFAR10

Each data set is distilled for a minute with the whole matrix (`potstill distill --quick`). Ten
networks that train on it are then tested on real images that the whole matrix prepared, and on the
same images prepared by its rounding, which takes half the file. The pairs have the same seeds.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import RESULTS, figure, provenance

import potstill
from potstill.config.config import configuration, quick_options
from potstill.data import whitening
from potstill.data.preparation import cut_splits
from potstill.data.sources import read

NETS = 10


def compared(data: str) -> dict[str, Any]:
    """Distil one data set, and test the same networks behind both matrices."""
    whitening.HALF_FROM = math.inf
    distilled = potstill.distill(data=data, **quick_options({}))
    tensors = distilled.fitted.tensors
    half = type(distilled.fitted)({**tensors, "matrix": tensors["matrix"].half().float()})
    ways = {"float32": distilled.fitted, "float16": half}
    files = {name: way_bytes(way.state()) for name, way in ways.items()}
    config = configuration(data=data)
    test = cut_splits(read(config.data), config.data)["test"]
    found: dict[str, list[float]] = {name: [] for name in ways}
    differing = []
    for seed in range(NETS):
        network, predicted = potstill.train(distilled, seed=seed), {}
        labels = torch.as_tensor(test.arrays.labels[test.rows])
        for name, way in ways.items():
            parts = [
                network(way(test.arrays.floats(rows))).argmax(1)
                for rows in np.array_split(test.rows, max(1, len(test.rows) // 500))
            ]
            predicted[name] = torch.cat(parts)
            found[name].append(float((predicted[name] == labels).double().mean()))
        differing.append(float((predicted["float32"] != predicted["float16"]).double().mean()))
    paired = [one - other for one, other in zip(*found.values(), strict=True)]
    return {
        "accuracy": {name: figure(values) for name, values in found.items()},
        "float32 less float16, by network": figure(paired),
        "share of predictions that differ": figure(differing),
        "bytes of the preprocessing": files,
        "test images": len(test.rows),
        "steps distilled": distilled.metadata.option("steps"),
    }


def way_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes that a file keeps of a preprocessing."""
    return sum(tensor.nbytes for tensor in state.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    known = parser.parse_args()
    result = {
        "command": "python benchmarks/half_precision.py DATA ...",
        "protocol": f"a set of one minute (--quick), {NETS} networks trained on it, each tested "
        "behind both matrices; regularisation 0.1",
        "data": {Path(data.rpartition(":")[2]).name.lower(): compared(data) for data in known.data},
        **provenance(),
    }
    (RESULTS / "half_precision.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
