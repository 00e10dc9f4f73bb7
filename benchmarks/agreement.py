"""What two outer steps' meta-gradients have in common, by the depth and width of the network.

    python benchmarks/agreement.py
    python benchmarks/agreement.py --title MNIST --data parquet:PATH

The set is the same for both: real images, before the first step. Start, window and real batch are
new. The part of a meta-gradient that other networks share is what an outer step can use; the rest
is noise to it. What the result file holds of this machine is not measured again.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import torch
from curves import RESULTS, provenance
from torch import Tensor

from potstill.config.config import configuration
from potstill.data.sources import read
from potstill.distillation.outer import Carried
from potstill.distillation.setup import Setup
from potstill.progress import SILENT

COMMON: dict[str, Any] = {
    "preprocess": "normalize",
    "init": "real",
    "augment": [],
    "real_batch": 200,
    "unroll": 30,
    "window": 5,
    "compile": "off",
    "precision": "float32",
}
MEASURED = ("cosine", "error", "norms")
NETWORKS: tuple[dict[str, Any], ...] = (
    {"model": "convnet", "width": 8},
    {"model": "convnet", "width": 32},
    {"model": "convnet", "width": 128},
    {"model": "alexnet", "width": 32},
    {"model": "vgg11", "width": 8},
    {"model": "vgg11", "width": 16},
    {"model": "vgg11", "width": 32},
    {"model": "vgg11", "width": 16, "norm": "group"},
    {"model": "vgg11", "width": 16, "window": 1},
    {"model": "vgg11", "width": 16, "window": 10},
    {"model": "vgg11", "width": 16, "inner_lr": 0.0003},
    {"model": "resnet18", "width": 8},
    {"model": "resnet18", "width": 16},
    {"model": "resnet18", "width": 32},
    {"model": "resnet18", "width": 16, "norm": "group"},
    {"model": "resnet18", "width": 16, "norm": "batch"},
    {"model": "resnet18", "width": 16, "window": 1},
    {"model": "resnet18", "width": 16, "inner_lr": 0.0003},
    {"model": "alexnet", "width": 32, "network_init": "identity"},
    {"model": "vgg11", "width": 16, "network_init": "identity"},
    {"model": "vgg11", "width": 16, "norm": "batch", "network_init": "identity"},
    {"model": "resnet18", "width": 16, "network_init": "identity"},
    {"model": "resnet18", "width": 16, "network_init": "identity", "inner_lr": 0.003},
    {"model": "resnet18", "width": 16, "norm": "group", "network_init": "identity"},
    {"model": "resnet18", "width": 16, "norm": "batch", "network_init": "identity"},
)
"""What is measured on digits."""
DEPTHS: tuple[dict[str, Any], ...] = (
    *({"model": "convnet", "width": 32, "depth": depth} for depth in (1, 2, 3, 4)),
    {"model": "alexnet", "width": 16},
    {"model": "vgg11", "width": 8},
    {"model": "resnet18", "width": 8},
)
"""What is measured on other data, of 28 pixels or more."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=24, help="of each network (default: 24)")
    parser.add_argument("--data", default="digits", help="default: digits")
    parser.add_argument("--title", default="digits", help="of the data (default: digits)")
    known = parser.parse_args()
    path = RESULTS / "agreement.json"
    found = json.loads(path.read_text()) if path.exists() else {"data": {}}
    how = {"draws": known.draws, "common": COMMON, **provenance()}
    part = found["data"].get(known.title, {})
    if {name: part.get(name) for name in how} != how:
        part = found["data"][known.title] = {**how, "rows": []}
    done = [{name: row[name] for name in row if name not in MEASURED} for row in part["rows"]]
    for options in NETWORKS if known.data == "digits" else DEPTHS:
        if options in done:
            continue
        cosine, error, norms = agreement(options, known.data, known.draws)
        part["rows"].append({**options, "cosine": cosine, "error": error, "norms": norms})
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{options}: {cosine:.4f} ± {error:.4f}, norms {norms[0]:.2g} to {norms[1]:.2g}")


def agreement(
    options: dict[str, Any], data: str, draws: int
) -> tuple[float, float, tuple[float, float]]:
    """Return the mean cosine of two meta-gradients, its standard error, and their norms' range.

    Args:
        options: of the run, beside `COMMON`.
        data: as `--data` takes it.
        draws: how many meta-gradients; each is compared with every other one.
    """
    config = configuration({**COMMON, **options, "data": data, "steps": 1})
    setup = Setup.of(config, read(config.data), None, SILENT)
    stage = setup.stage(None)
    method = setup.make_method(stage, Carried())
    first, on_blocks = setup.begin(stage, method), stage.on_blocks(method, setup.device)
    found = [
        flat(on_blocks.estimate(first.leaves, first.method, step).grads) for step in range(draws)
    ]
    norms = sorted(float(one.norm()) for one in found)
    units = torch.stack([one / one.norm() for one in found])
    products = units @ units.T
    pairs = (products.sum(1) - 1).double()
    whole = float(pairs.sum()) / (draws * (draws - 1))
    # The jackknife: each draw left out once.
    left = (pairs.sum() - 2 * pairs) / ((draws - 1) * (draws - 2))
    error = float(((draws - 1) / draws * (left - left.mean()).square().sum()).sqrt())
    return whole, error, (norms[0], norms[-1])


def flat(grads: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient in the images as one vector."""
    return torch.cat([grad.flatten() for name, grad in grads.items() if name.endswith("images")])


if __name__ == "__main__":
    main()
