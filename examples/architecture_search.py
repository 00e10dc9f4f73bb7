"""Architecture search by proxy: which of twelve networks is best, asked of five images a class.

    python examples/architecture_search.py

Twelve ConvNets are trained on all of scikit-learn's digits, on a distilled set and on random real
subsets of its size. What counts is whether the small set puts them in the order of the whole data:
Spearman's rank correlation.
"""

import argparse
import itertools

from scipy.stats import spearmanr

import potstill

GRID = tuple(itertools.product((2, 4, 16), (1, 2), ("instance", "none")))
"""Width, depth and norm of each network."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="outer steps")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--nets", type=int, default=3, help="networks for each figure")
    parser.add_argument("--epochs", type=int, default=40, help="on all data")
    parser.add_argument("--networks", type=int, default=len(GRID))
    given = parser.parse_args()
    distilled = potstill.distill(
        data="digits", ipc=given.ipc, steps=given.steps, width=16, init="real", progress=False,
        lengths=(300,), validation_nets=1,
    )  # fmt: skip
    found = {"distilled": [], "random": [], "full": []}
    for width, depth, norm in GRID[: given.networks]:

        def network(input_shape, num_classes, width=width, depth=depth, norm=norm):
            from potstill.models.convnet import ConvNet

            return ConvNet(tuple(input_shape), num_classes, width, depth, norm)

        rows = potstill.evaluate(
            distilled, model=network, nets=given.nets, steps=300, baselines=("random", "full"),
            full_epochs=given.epochs, progress=False,
        )  # fmt: skip
        for row in rows:
            found[row.name].append(row.accuracy.mean)
        print(
            f"width {width:>2}, depth {depth}, norm {norm:<9}"
            + "".join(f"{row.name} {100 * row.accuracy.mean:.1f} %   " for row in rows)
        )
    for name in ("distilled", "random"):
        rank = spearmanr(found[name], found["full"]).statistic
        print(f"{name}: rank correlation with training on everything {rank:.2f}")


if __name__ == "__main__":
    main()
