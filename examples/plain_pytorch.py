"""Train on a distilled set in a plain PyTorch loop, without potstill: a reader of twenty lines.

    python examples/plain_pytorch.py runs/first/distilled.safetensors

It reads sets that are stored as pixels with hard labels, prepared by `--preprocess normalize` or
`none`; for all others `potstill export --format npz` writes plain arrays.
"""

import json
import sys

import torch
from safetensors import safe_open
from torch import nn


def read(path):
    """Return images (n, C, H, W), labels (n,), the function that prepares real images, and all
    that the file tells."""
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["potstill"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    images = torch.cat([tensors[f"blocks.{i}.images"] for i in range(len(told["blocks"]))])
    classes = len(told["class_names"])
    labels = torch.cat(
        [torch.arange(classes).repeat_interleave(block["ipc"]) for block in told["blocks"]]
    )
    mean, std = tensors.get("preprocess.mean", 0.0), tensors.get("preprocess.std", 1.0)
    return images, labels, lambda real: (real - mean) / std, told


def network(shape, classes, width=32):
    """A small ConvNet of one's own; the set was not made for it, but it learns from it."""
    sides = [side // 4 for side in shape[1:]]
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(width * sides[0] * sides[1], classes),
    )  # fmt: skip


def main():
    images, labels, prepare, told = read(sys.argv[1])
    recipe = told["recipe"]
    torch.manual_seed(0)
    model = network(images.shape[1:], len(told["class_names"]))
    optimizer = torch.optim.Adam(model.parameters(), recipe["lr"])
    for _ in range(recipe["steps"]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    print(f"trained for {recipe['steps']} steps on {len(images)} images of {told['class_names']}")

    # The data that it was distilled from, if they are scikit-learn's digits.
    from sklearn.datasets import load_digits

    digits = load_digits()
    real = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    if real.shape[1:] == images.shape[1:]:
        with torch.no_grad():
            right = model(prepare(real)).argmax(1) == torch.tensor(digits.target)
        print(f"right on {100 * right.float().mean():.1f} % of all 1,797 digits")


if __name__ == "__main__":
    main()
