"""Runs whose accuracy is followed over steps and seconds; a run that was cut off goes on when it is
asked for again.
"""

import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from potstill.cli.parser import main as potstill
from potstill.devices import hardware, versions
from potstill.distillation import checkpoints, run_folder

RESULTS = Path(__file__).parent / "results"
COMMON = {
    "preset": "cifar10-ipc1",
    "unroll": 60,
    "window": 20,
    "lengths": 300,
    "validation-nets": 3,
    "compile": "on",
    "checkpoint-every": 10,
}


def curve(out: Path, **options: Any) -> list[dict[str, float]]:
    """Validation accuracy after so many outer steps and so many seconds in them; validation itself
    is not counted.
    """
    words = [
        word
        for name, value in {**COMMON, **options}.items()
        for word in flag(name.replace("_", "-"), value)
    ]
    if not (out / "distilled.safetensors").exists():
        words = (
            ["--resume", str(out)]
            if (out / checkpoints.CONFIG).exists()
            else ["--out", str(out), *words]
        )
        if potstill(["distill", *words]):
            raise SystemExit(2)
    points, seconds = [], 0.0
    for record in run_folder.RunFolder(out).records():
        seconds += record.seconds
        if record.validation:
            points.append(
                {
                    "step": record.step,
                    "seconds": round(seconds, 1),
                    "accuracy": record.validation.mean,
                }
            )
    return points


def flag(name: str, value: Any) -> list[str]:
    """An option as the command line takes it."""
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def provenance() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": {**versions(), "python": platform.python_version()},
    }


def figure(values: list[float]) -> dict[str, Any]:
    """Mean, sample deviation and n."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }
