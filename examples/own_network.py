"""A network of your own: distill for it, and test the set on it.

    python examples/own_network.py

Any function that returns an nn.Module will do; it gets those of input_shape, in_channels,
in_features and num_classes that it names. From the command line the same is
`potstill distill --model own_network:residual` in this folder.
"""

import argparse

import torch
from torch import nn

import potstill


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width),
        )  # fmt: skip

    def forward(self, inputs):
        return torch.relu(inputs + self.path(inputs))


def residual(in_channels, num_classes, width=16):
    """Make a small residual network."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), Residual(width), nn.AvgPool2d(2),
        Residual(width), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="outer steps")
    parser.add_argument("--nets", type=int, default=5)
    given = parser.parse_args()
    distilled = potstill.distill(
        data="digits", ipc=1, model=residual, steps=given.steps, init="real", lengths=(100, 300),
        validation_nets=2, progress=False,
    )  # fmt: skip
    rows = potstill.evaluate(
        distilled, model=residual, nets=given.nets, baselines=("random",), progress=False
    )
    for row in rows:
        print(f"{row.name:<10}{row.accuracy}")


if __name__ == "__main__":
    main()
