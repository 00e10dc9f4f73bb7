"""Whether images may be mirrored, and the augmentation that follows from it."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import potstill
from potstill.data.augmentation import GENTLE, OF_THE_PAPER
from potstill.data.mirrored import mirrored_alike
from potstill.data.splits import TensorSplit
from potstill.seeds import generator

TINY = {
    "model": "mlp", "width": 8, "depth": 1, "steps": 1, "unroll": 3, "window": 2, "real_batch": 16,
    "lengths": (2,), "validation_nets": 1, "threads": 1, "compile": "off", "device": "cpu",
}  # fmt: skip


def bright(side: str, count: int = 400, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two classes of noise of 3 x 20 x 20 pixels, the second brighter at one side."""
    rng = generator(0, side)
    labels = torch.arange(count) % 2
    images = noise * torch.randn(count, 3, 20, 20, generator=rng)
    half = {"left": (..., slice(10)), "top": (..., slice(10), slice(None))}[side]
    images[half] += labels.view(-1, 1, 1, 1)
    return images, labels


@pytest.mark.parametrize(("side", "alike"), [("top", True), ("left", False)])
def test_a_class_that_mirroring_changes_is_found(side, alike):
    images, labels = bright(side)
    assert mirrored_alike(TensorSplit(images, labels), 2) is alike


def test_digits_may_not_be_mirrored():
    images, labels = load_digits(return_X_y=True)
    split = TensorSplit(torch.as_tensor(images.reshape(-1, 1, 8, 8) / 16), torch.as_tensor(labels))
    assert not mirrored_alike(split, 10)


def test_where_nothing_is_known_the_answer_is_no():
    images, labels = bright("top")
    shuffled = labels[torch.randperm(len(labels), generator=generator(1))]
    assert not mirrored_alike(TensorSplit(images, shuffled), 2)
    assert not mirrored_alike(TensorSplit(torch.zeros_like(images), labels), 2)
    assert not mirrored_alike(TensorSplit(images[:1], labels[:1]), 2)


@pytest.mark.parametrize(("side", "expected"), [("top", OF_THE_PAPER), ("left", GENTLE)])
def test_auto_augmentation_mirrors_where_that_keeps_the_class(side, expected):
    images, labels = bright(side)
    pixels = ((images + 6) / 12).clamp(0, 1).numpy()
    distilled = potstill.distill(pixels, labels.numpy(), **TINY)
    assert distilled.recipe.augment == expected
    assert potstill.distill(pixels, labels.numpy(), **TINY, augment=()).recipe.augment == ()


def test_vectors_are_not_augmented():
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    assert potstill.distill(rows, np.arange(40) % 2, **TINY).recipe.augment == ()
