"""Three owners share ten images each in place of their data; one network learns from all of them.

    python examples/federated_merge.py

Each owner has a third of scikit-learn's digits, distills it alone, and gives away the set. The sets
are merged and tested on digits that no owner had, beside as many real images as the merged set has.
"""

import argparse

import torch
from sklearn.datasets import load_digits

import potstill

OWNERS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="outer steps of each owner")
    parser.add_argument("--nets", type=int, default=5)
    given = parser.parse_args()
    digits = load_digits()
    images, labels = digits.images[:, None] / 16, digits.target
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    test, rest = order[:360], order[360:]
    told, sets = {}, []
    for owner in range(OWNERS):
        own = rest[owner::OWNERS]
        distilled = potstill.distill(
            images[own], labels[own], ipc=1, steps=given.steps, width=32, init="real", seed=owner,
            lengths=(100, 300), validation_nets=2, progress=False,
        )  # fmt: skip
        sets.append(distilled)
        told[f"owner {owner + 1}'s ten images"] = distilled
    told["all thirty, merged"] = potstill.merge(*sets)
    for name, distilled in told.items():
        (row,) = potstill.evaluate(
            distilled, images[test], labels[test], nets=given.nets, progress=False
        )
        print(f"{name:<28}{row.accuracy}")
    merged = told["all thirty, merged"]
    rows = potstill.evaluate(
        merged, images[rest], labels[rest], test_images=images[test], test_labels=labels[test],
        nets=given.nets, baselines=("random",), progress=False,
    )  # fmt: skip
    print(f"{'thirty real images':<28}{rows[1].accuracy}")


if __name__ == "__main__":
    main()
