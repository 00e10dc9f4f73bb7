"""One outer step of FRePo and RFAD, by potstill and by plain PyTorch, beside its convolutions only.

    python benchmarks/regression_steps.py            # benchmarks/results/regression_steps.json
    python benchmarks/regression_steps.py --quick    # small shapes, to see that it works

The work: 3 x 32 x 32 images of ten classes, 1 and 10 a class, 1,024 real ones a step, in float32.
FRePo's network has 128, 256 and 512 channels and no norm; it regresses on mirrored copies too, and
trains for one step on the set. RFAD has two networks of 256 channels. "Convolutions" are those of
the step and nothing else: of real images, of distilled ones forth and back, of training. The ways
alternate in one process, after a step to warm up, on all cores; memory is the peak of a step over
what was resident before. Plain PyTorch takes all images at once, potstill in micro-batches.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from curves import RESULTS, provenance
from meta_gradient import resident, trimmed
from torch import Tensor, nn

from potstill.data.splits import TensorSplit
from potstill.devices import keep_freed_memory
from potstill.distilled.recipes import Recipe
from potstill.engine.flat import cut_of
from potstill.engine.when_to_compile import NetworkFamily
from potstill.methods.base import Examples, Method, Problem, Real
from potstill.methods.frepo import Frepo, FrepoOptions
from potstill.methods.rfad import Rfad, RfadOptions
from potstill.models import fresh, resolve
from potstill.seeds import generator
from potstill.workers import one_thread_a_task

CPU, CLASSES, NETWORKS, SHAPE = torch.device("cpu"), 10, 2, (3, 32, 32)
RIDGE, RATE = 1e-6, 3e-4


class Work:
    """The data and networks of a step.

    Args:
        method: frepo or rfad.
        ipc: images per class.
        real: real images of a step.
        width: channels of FRePo's first block; RFAD has twice as many in all.
    """

    def __init__(self, method: str, ipc: int, real: int, width: int):
        self.method, self.real_count = method, real
        rng = generator(0, "data")
        self.real = torch.randn(real, *SHAPE, generator=rng)
        self.labels = torch.arange(real) % CLASSES
        self.own = torch.arange(CLASSES).repeat_interleave(ipc)
        self.images = torch.randn(len(self.own), *SHAPE, generator=rng)
        self.targets = torch.eye(CLASSES)[self.own]
        frepo = method == "frepo"
        self.factory = resolve(
            "convnet-wide" if frepo else "convnet",
            SHAPE,
            CLASSES,
            width=width if frepo else 2 * width,
            depth=3,
            norm="none",
            network_init="lecun" if frepo else "he",
        )

    def potstill(self) -> Callable[[], None]:
        """Return potstill's step."""
        cut = cut_of(self.factory(), SHAPE, CPU)
        real = Real(
            TensorSplit(self.real, self.labels),
            CLASSES,
            self.real_count,
            micro_batch=cut.size(self.real_count),
        )
        problem = Problem(
            real,
            NetworkFamily(self.factory, SHAPE, CLASSES, CPU, "float32"),
            self.own,
            Recipe(lr=RATE),
            0,
            CPU,
            cut.size(len(self.own)),
            learn_labels=True,
        )
        method: Method = (
            Frepo(problem, FrepoOptions(mirrored_copies="on", networks=1))
            if self.method == "frepo"
            else Rfad(problem, RfadOptions(networks=NETWORKS))
        )
        state, learnables = method.start()
        learned = {name: one.value for name, one in learnables.items()}
        examples = Examples(self.images, self.targets, self.own, learn_targets=True)
        at: dict[str, Any] = {"state": state, "step": 0}

        def step() -> None:
            found = method.estimate(examples, learned, at["state"], at["step"])
            at.update(state=found.state, step=at["step"] + 1)

        return step

    def plain(self) -> Callable[[], None]:
        """Return the same step in plain PyTorch."""
        networks: list[Any] = [
            fresh(self.factory, seed, CPU)
            for seed in range(1 if self.method == "frepo" else NETWORKS)
        ]
        optimizer = torch.optim.Adam(networks[0].parameters(), RATE)
        wanted = F.one_hot(self.labels, CLASSES) - 1 / CLASSES

        def features(images: Tensor) -> Tensor:
            parts = [network.features(images).flatten(1) for network in networks]
            return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

        def step() -> None:
            images, targets = self.images.requires_grad_(), self.targets.clone().requires_grad_()
            seen, own = images, targets - 1 / CLASSES
            if self.method == "frepo":
                seen, own = torch.cat([seen, seen.flip(-1)]), own.repeat(2, 1)
            rows = features(seen)
            with torch.no_grad():
                of_real = features(self.real)
            exact = rows.double()
            gram = exact @ exact.T
            ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            solved = torch.linalg.solve(gram + ridge, own.double())
            predicted = of_real @ (exact.T @ solved).float()
            if self.method == "frepo":
                loss = (predicted - wanted).square().sum(1).mean() / 2
            else:
                loss = F.cross_entropy(predicted, self.labels)
            torch.autograd.grad(loss, [images, targets])
            if self.method == "frepo":
                optimizer.zero_grad()
                off = networks[0](self.images.detach()) - (self.targets - 1 / CLASSES)
                (off.square().sum(1).mean() / 2).backward()
                optimizer.step()

        return step

    def convolutions(self) -> Callable[[], None]:
        """Return the convolutions of a step, on random inputs of their shapes."""
        network = fresh(self.factory, 0, CPU)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        frepo, own = self.method == "frepo", len(self.own)
        seen = 2 * own if frepo else own

        def inputs(count: int, layer: int) -> Tensor:
            side = 32 >> layer
            return torch.randn(count, layers[layer].in_channels, side, side)

        def step() -> None:
            for _ in range(1 if frepo else NETWORKS):
                for place, layer in enumerate(layers):
                    with torch.no_grad():
                        layer(given[place][0])
                    image = given[place][1].requires_grad_()
                    output = F.conv2d(image, layer.weight.detach(), None, padding=1)
                    torch.autograd.grad(output, image, output.detach())
                    if frepo:
                        trained = given[place][2].requires_grad_(place > 0)
                        output = layer(trained)
                        asked = [layer.weight, *([trained] if place else [])]
                        torch.autograd.grad(output, asked, output.detach())

        given = [
            (inputs(self.real_count, place), inputs(seen, place), inputs(own, place))
            for place in range(len(layers))
        ]
        return step


def measured(work: Work, pairs: int) -> dict[str, Any]:
    """Measure the three ways in alternation."""
    ways = {"potstill": work.potstill(), "plain": work.plain(), "convolutions": work.convolutions()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    for name, step in ways.items():
        with one_thread_a_task() if name == "potstill" else torch.enable_grad():
            step()
            before = trimmed()
            step()
            memory[name] = round(resident()[1] - before, 1)
    keep_freed_memory()
    for turn in range(pairs):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            with one_thread_a_task() if name == "potstill" else torch.enable_grad():
                began = time.perf_counter()
                ways[name]()
                seconds[name].append(round(time.perf_counter() - began, 4))
    ours = seconds["potstill"]
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(seconds[name], ours, strict=True)), 3)
        for name in ("plain", "convolutions")
    }
    return {"seconds": seconds, "peak_mb": memory, "over_ours": ratios}


def main() -> None:
    """Measure all, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, nothing is kept")
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    load, parts = os.getloadavg()[0], {}
    real, width = (64, 8) if asked.quick else (1024, 128)
    for method in ("frepo", "rfad"):
        for ipc in (1, 10):
            found = measured(Work(method, ipc, real, width), asked.pairs)
            parts[f"{method}, ipc {ipc}"] = found
            median = {name: statistics.median(own) for name, own in found["seconds"].items()}
            print(f"{method}, ipc {ipc}: {median}, {found['over_ours']}, {found['peak_mb']} MB")
    if not asked.quick:
        whole = {"parts": parts, "load_before": load, **provenance()}
        Path(RESULTS / "regression_steps.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
