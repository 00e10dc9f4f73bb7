"""Does a ResNet-18 (11 M parameters) distill within 6 GB? One outer step on CIFAR-10: window 20, 100 synthetic images a step.

    python benchmarks/resnet18.py --data parquet:PATH

The figure is the peak of the whole process, the data included.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    "group norm": {"model": "resnet18:group"},
    "group norm, --tape sqrt": {"model": "resnet18:group", "tape": "sqrt"},
    "batch norm, --tape sqrt": {"model": "resnet18:batch", "tape": "sqrt", "real-batch": "100"},
    "group norm, compiled, bfloat16": {"model": "resnet18:group", "compile": "on", "precision": "bfloat16"},
}


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stride: int, norm: type[nn.Module]):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), norm(width)
        self.second, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm(width))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.first(inputs)))
        return F.relu(self.norm2(self.second(hidden)) + self.shortcut(inputs))


class ResNet18(nn.Module):
    """With a 3 x 3 stem, for images of 32 pixels."""

    def __init__(self, num_classes: int, norm: type[nn.Module]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), norm(64), nn.ReLU()]
        channels = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [Block(channels, width, stride, norm), Block(width, width, 1, norm)]
            channels = width
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(512, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.blocks(inputs).mean((2, 3)))


class Groups(nn.GroupNorm):
    """Group norm of 8 groups."""

    def __init__(self, width: int):
        super().__init__(8, width)


def group(num_classes: int) -> nn.Module:
    """With group norm."""
    return ResNet18(num_classes, Groups)


def batch(num_classes: int) -> nn.Module:
    """With batch norm."""
    return ResNet18(num_classes, nn.BatchNorm2d)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet:PATH of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    known = parser.parse_args()
    found = {}
    for name, options in SETTINGS.items():
        out = known.work / f"resnet18-{name.replace(' ', '-').replace(',', '')}"
        words = {
            "data": known.data, "ipc": "10", "unroll": "22", "window": "20", "steps": "1", "real-batch": "500", "lengths": "1",
            "validation-nets": "1", "compile": "off", **options,
        }  # fmt: skip
        flags = [word for option, value in words.items() for word in (f"--{option}", value)]
        subprocess.run(
            [sys.executable, "-m", "potstill.cli", "distill", *flags, "--out", str(out), "--overwrite"],
            check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        record = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
        found[name] = {"peak_memory_mb": record["memory_mb"], "seconds": record["seconds"], "options": options}
        print(name, found[name], flush=True)
    import curves

    parameters = sum(p.numel() for p in group(10).parameters())
    result = {"parameters": parameters, "window": 20, "synthetic": 100, "runs": found, **curves.provenance()}
    (RESULTS / "resnet18.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
