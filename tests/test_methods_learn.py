"""Every method that matches: in seconds, networks do better on what it made than on its start.

The bounds are what a sound method reaches on digits with some room; with a gradient of the wrong
sign, or another expert's parameters as the target, each run ends below them.
"""

from typing import Any

import pytest

import potstill

COMMON = {
    "data": "digits", "preprocess": "normalize", "width": 16, "augment": (), "device": "cpu",
    "precision": "float32", "compile": "off",
    "lengths": (60,), "validation_nets": 4, "validate_every": 1000,
}  # fmt: skip
SGD = {"inner_optimizer": "sgd", "inner_momentum": 0.9}
EXPERTS = {
    **SGD,
    "experts": 2, "expert_batch": 32, "expert_lr": 0.05, "expert_epochs": 1, "max_start": 2,
    "student_steps": 15, "student_lr": 0.05, "lr_lr": 0.01,
}  # fmt: skip
REGRESSION = {"real_batch": 128, "inner_optimizer": "adam", "inner_lr": 0.003}
BY_CLASS = {**SGD, "real_per_class": 64, "inner_lr": 0.02}
CASES: dict[str, dict[str, Any]] = {
    "dc": {"steps": 30, **BY_CLASS},
    "dsa": {"steps": 30, "augment": ("crop", "scale"), **BY_CLASS},
    "dm": {"steps": 60, **BY_CLASS},
    "idc": {
        "steps": 30, **BY_CLASS, "network_examples": 128, "network_steps": 10,
        "outer_lr": 0.5, "factor": 2,
    },
    "mtt": {"steps": 40, **EXPERTS},
    "tesla": {"steps": 40, **EXPERTS},
    "ftd": {"steps": 40, "average": 0.8, **EXPERTS},
    "haba": {
        "steps": 40, "ipc": 4, "hallucinators": 2, "factor": 2, "outer_optimizer": "adam",
        "outer_lr": 0.03, **EXPERTS,
    },
    "frepo": {"steps": 40, "outer_lr": 0.02, "networks": 3, **REGRESSION},
    "rfad": {"steps": 40, "outer_lr": 0.02, "networks": 2, **REGRESSION},
    "rcig": {"steps": 12, "outer_lr": 0.06, "networks": 3, "average": 0.0, **REGRESSION},
}  # fmt: skip
GAINS = {"dc": 30, "dsa": 8, "dm": 7, "idc": 4, "mtt": 6, "tesla": 5, "ftd": 6, "haba": 8}
GAINS |= {"frepo": 9, "rfad": 10, "rcig": 10}
"""Points of validation accuracy above the start's, in the mean of two seeds."""


def accuracy(method: str, cache: str, **options: Any) -> float:
    """Validation accuracy of networks on a set, in percent, in the mean of two seeds."""
    found = [
        potstill.distill(
            method=method, seed=seed, cache_dir=cache, progress=False,
            **{**COMMON, **CASES[method], **options},
        ).metadata.accuracy
        for seed in (0, 1)
    ]  # fmt: skip
    return sum(100 * one.mean for one in found if one) / 2


@pytest.mark.parametrize("method", list(CASES))
def test_networks_do_better_on_the_set_than_on_its_start(method, tmp_path):
    start = accuracy(method, str(tmp_path), steps=1, outer_lr=1e-12)
    assert accuracy(method, str(tmp_path)) >= start + GAINS[method]
