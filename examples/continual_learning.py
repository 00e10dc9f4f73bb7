"""Continual learning: a memory of distilled images beside one of real images, of the same size.

    python examples/continual_learning.py

Scikit-learn's digits arrive in five tasks of two classes. After each task its data are gone but for
a memory of so many images a class: distilled from the task's data, or real ones at random (a
reservoir). A network is trained on the memory after the last task, and tested on all classes.
"""

import argparse
import statistics

import torch
from sklearn.datasets import load_digits
from torch import nn

import potstill

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def trained(images, labels, seed, steps=300):
    """Return a small ConvNet that learned a memory by heart."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="outer steps of each task")
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=1, help="images of a class in the memory")
    given = parser.parse_args()
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    split = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, rest = split[:360], split[360:]
    memory, kept = [], []
    for task in TASKS:
        rows = rest[torch.isin(labels[rest], torch.tensor(task))]
        distilled = potstill.distill(
            images[rows].numpy(), (labels[rows] - task[0]).numpy(), ipc=given.per_class,
            steps=given.steps, width=32, init="real", preprocess="none", lengths=(100,),
            validation_nets=1, progress=False,
        )  # fmt: skip
        memory.append(distilled.images)
        kept.append(distilled.labels + task[0])
        print(f"after task {task}: {sum(map(len, memory))} images in the memory")
    results = {"distilled memory": [], "reservoir": []}
    for seed in range(given.nets):
        rng = torch.Generator().manual_seed(seed)
        real = torch.cat(
            [
                rest[labels[rest] == label][
                    torch.randperm(int((labels[rest] == label).sum()), generator=rng)
                ][: given.per_class]
                for label in range(10)
            ]
        )
        for name, (x, y) in {
            "distilled memory": (torch.cat(memory), torch.cat(kept)),
            "reservoir": (images[real], labels[real]),
        }.items():
            network = trained(x, y, seed)
            with torch.no_grad():
                right = network(images[test]).argmax(1) == labels[test]
            results[name].append(100 * float(right.float().mean()))
    for name, found in results.items():
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        mean = statistics.mean(found)
        print(f"{name:<20}{mean:.1f}{spread} % on all ten classes (n = {len(found)})")


if __name__ == "__main__":
    main()
