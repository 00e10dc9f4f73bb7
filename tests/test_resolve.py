"""What "auto" comes to."""

import pytest
import torch
from test_runs import QUICK

import potstill
from potstill.seeds import generator


def test_the_automatic_learning_rate_follows_the_scale_of_the_first_images():
    labels = torch.arange(90) // 30  # sorted by class, of different scales
    images = (
        torch.randn(90, 8, 8, generator=generator(0))
        * torch.tensor([1.0, 2.0, 6.0])[labels, None, None]
    )
    given = {
        **QUICK,
        "ipc": 1,
        "classes_per_batch": 2,
        "outer_lr": "auto",
        "steps": 1,
        "preprocess": "none",
    }

    def rates(images=images, **options) -> tuple[float, float]:
        outer = potstill.distill(images, labels, **{**given, **options}).meta["config"]["outer"]
        return outer["outer_lr"], outer["label_lr"]

    of_norm_1 = 0.001 * (3072 / 64) ** 0.5  # paper D.1: 0.001 for 3,072 values
    assert rates() == pytest.approx((of_norm_1, of_norm_1))
    # One that falls to 0 over the run begins higher.
    assert rates(outer_schedule="cosine") == pytest.approx((2.5 * of_norm_1, 2.5 * of_norm_1))
    real, of_labels = rates(init="real")
    # 64 pixels of these scales.
    assert real == pytest.approx(of_norm_1 * 8 * (41 / 3) ** 0.5, rel=0.05)
    assert of_labels == pytest.approx(of_norm_1)
    assert rates(init="real", param="multi-formation", ipc=4)[0] == pytest.approx(real)
    assert rates(init="real", param="factorised", ipc=4)[0] == pytest.approx(of_norm_1)
    assert rates(init="real", outer_lr=0.5) == (0.5, 0.5)
    assert rates(torch.zeros(90, 8, 8), init="real")[0] == pytest.approx(of_norm_1)
