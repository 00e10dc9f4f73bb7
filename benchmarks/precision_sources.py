"""Which rounding of bfloat16 spoils a meta-gradient? Cosine and length against float64, part by
part.

    python benchmarks/precision_sources.py        # writes benchmarks/results/precision_sources.json

One meta-gradient of digits by the ConvNet, or of the small problem of the test suite by an MLP, is
taken in float64 and then with one part of the arithmetic rounded at a time, from the same start,
images and real batch:

- float32, bfloat16: all of it;
- steps: the gradients of the inner steps in bfloat16, the way back in float32;
- first step: the gradient of the first inner step in bfloat16, all else in float32;
- way back: Hessian products and the outer gradient in bfloat16, the steps in float32;
- exact start: all in bfloat16 but the first inner step, which is what `--precision bfloat16` does.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from curves import RESULTS, provenance
from precision_by_sampler import blobs
from torch import Tensor

from potstill.config.config import configuration
from potstill.data.preparation import prepare
from potstill.data.sources import read
from potstill.engine.flat import FlatModel
from potstill.engine.losses import (
    Batch,
    Differentiable,
    ExactStart,
    OfBatch,
    Products,
    Pull,
    cross_entropy,
)
from potstill.engine.optimizers import SGD, Adam, Optimizer
from potstill.engine.unroll import InnerProblem, Leaves, Unrolled
from potstill.models import fresh, resolve
from potstill.seeds import derive, generator

CPU = torch.device("cpu")
REAL = 200
SINGLE, HALF = "float32", "bfloat16"
WAYS = {
    "float32": (SINGLE, SINGLE, SINGLE, SINGLE),
    "bfloat16": (HALF, HALF, HALF, HALF),
    "steps": (HALF, SINGLE, HALF, SINGLE),
    "first step": (HALF, SINGLE, SINGLE, SINGLE),
    "way back": (SINGLE, HALF, SINGLE, HALF),
    "exact start": (SINGLE, SINGLE, HALF, HALF),
}
"""Name -> precision of the first step's gradient and Hessian product, and of the others with the
outer gradient.
"""


@dataclass(frozen=True)
class Case:
    """Where a meta-gradient is taken."""

    problem: str = "digits"
    images: str = "gaussian"
    optimizer: str = "adam"
    width: int = 32
    burn_in: int = 0
    window: int = 20


def cases() -> Iterator[Case]:
    """One thing after another is changed."""
    for problem in ("digits", "blobs"):
        for optimizer in ("adam", "sgd"):
            same: dict[str, Any] = {"problem": problem, "optimizer": optimizer}
            yield from (Case(**same, burn_in=burn_in) for burn_in in (0, 1, 2, 5, 20, 60))
            yield from (Case(**same, window=window) for window in (1, 5, 60))
            yield from (Case(**same, width=width) for width in (8, 128))
        yield from (Case(problem, "real", burn_in=burn_in) for burn_in in (0, 1))


@dataclass(frozen=True)
class Mixed:
    """Gradients of one loss, Hessian products of another."""

    gradients: Differentiable
    products: Differentiable

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        return self.gradients.gradient(theta, batch, step)

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        return self.products.product(theta, batch, step, cotangent)

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        return self.products.batch_product(theta, batch, step, cotangent)

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        grad = self.gradients.gradient(theta, batch, step)[1]
        return self.products.batch_product(theta, batch, step, pull(grad))


class Bench:
    """The data of a problem, and meta-gradients on it."""

    def __init__(self, name: str):
        config = configuration(preprocess="none" if name == "blobs" else "normalize")
        dataset = blobs() if name == "blobs" else read(config.data)
        self.real = prepare(dataset, config.data, CPU, config.preprocessing)
        self.model, self.rate = ("mlp", 0.01) if name == "blobs" else ("convnet", 0.001)
        self.classes = len(self.real.class_names)

    def images(self, kind: str, seed: int) -> Tensor:
        """One image of each class: Gaussian of norm 1, or real."""
        rng = generator(seed, "images")
        if kind == "gaussian":
            images = torch.randn(self.classes, *self.real.shape, generator=rng)
            images /= images.flatten(1).norm(dim=1)[:, None, None, None]
            return images
        labels = self.real.train.labels
        rows = [torch.nonzero(labels == own)[:, 0] for own in range(self.classes)]
        return self.real.train.take(
            torch.stack([one[torch.randint(len(one), (), generator=rng)] for one in rows])
        )[0]

    def meta_gradient(
        self, case: Case, seed: int, precisions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """That of the images, and the gradient of the first inner step; all precisions are float64,
        or none.
        """
        dtype = torch.float64 if "float64" in precisions else torch.float32
        depth = 1 if self.model == "mlp" else "auto"
        factory = resolve(
            self.model,
            self.real.shape,
            self.classes,
            width=case.width,
            depth=depth,
            norm="instance",
        )
        module = fresh(factory, derive(seed, "start"), CPU).to(dtype)
        # Float32: as the module.
        models = [FlatModel(module, precision.replace("64", "32")) for precision in precisions]
        losses = [cross_entropy(model) for model in models]
        rule: Optimizer = Adam() if case.optimizer == "adam" else SGD()
        rows = torch.randperm(len(self.real.train), generator=generator(seed, "real"))[:REAL]
        images, labels = self.real.train.take(rows)
        batch = Batch(images.to(dtype), F.one_hot(labels, self.classes).to(dtype))
        targets = torch.eye(self.classes, dtype=dtype)

        class Outer:
            def gradient(
                self, theta: Tensor, leaves: Leaves, part: None
            ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                return *losses[3].gradient(theta, batch, 0), {}

        loss = ExactStart(full=Mixed(*losses[:2]), rounded=Mixed(*losses[2:]))
        problem = InnerProblem(loss, lambda leaves, step: Batch(leaves["images"], targets), rule)
        leaves, hyper = (
            {"images": self.images(case.images, seed).to(dtype)},
            {"lr": torch.tensor(self.rate, dtype=dtype)},
        )
        theta = models[0].theta
        unrolled = Unrolled(
            problem, leaves, hyper, rule.init(theta), burn_in=case.burn_in, window=case.window
        )
        first = losses[0].gradient(theta, Batch(leaves["images"], targets), 0)[1]
        return unrolled.meta_gradient(Outer(), [(None, 1.0)]).leaves[
            "images"
        ].double().flatten(), first


def measured(bench: Bench, case: Case, starts: int) -> dict[str, Any]:
    """Over so many starts: median and least cosine to float64, median and greatest length over that
    of float64.

    Beside them, of the gradients of the first step that are not 0: the median of their size and of
    the error of bfloat16, the smallest one (a median over starts), and how many come to exactly 0
    in bfloat16 (a mean).
    """
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    size, error, smallest, zero = ([] for _ in range(4))
    for seed in range(starts):
        expected, exact = bench.meta_gradient(case, seed, ["float64"] * 4)
        for way, precisions in WAYS.items():
            grad, first = bench.meta_gradient(case, seed, precisions)
            found[way].append(
                (
                    float(grad @ expected / (grad.norm() * expected.norm())),
                    float(grad.norm() / expected.norm()),
                )
            )
            if way == "bfloat16":
                live = exact != 0
                size.append(float(exact[live].abs().median()))
                error.append(float((first - exact)[live].abs().median()))
                smallest.append(float(exact[live].abs().min()))
                zero.append(int((live & (first == 0)).sum()))
    return {
        **vars(case),
        "starts": starts,
        "first_gradient": {
            "size": statistics.median(size),
            "error": statistics.median(error),
            "smallest": statistics.median(smallest),
            "zero_in_bfloat16": statistics.fmean(zero),
        },
        "ways": {
            way: {
                "cosine": statistics.median(cosine for cosine, _ in pairs),
                "least_cosine": min(cosine for cosine, _ in pairs),
                "length": statistics.median(length for _, length in pairs),
                "greatest_length": max(length for _, length in pairs),
            }
            for way, pairs in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--starts",
        type=int,
        default=8,
        help="networks, images and real batches for each case (default: 8)",
    )
    known = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "precision_sources.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    benches: dict[str, Bench] = {}
    for case in dict.fromkeys(cases()):
        if any(vars(case).items() <= row.items() for row in rows):
            continue
        if case.problem not in benches:
            benches[case.problem] = Bench(case.problem)
        rows.append(measured(benches[case.problem], case, known.starts))
        print(json.dumps(rows[-1]), flush=True)
        result = {"rows": rows, "ways": WAYS, "real_batch": REAL, **provenance()}
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
