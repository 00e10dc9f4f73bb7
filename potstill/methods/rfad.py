"""RFAD: Loo et al., "Efficient Dataset Distillation using Random Feature Approximation", NeurIPS
2022, arXiv:2210.12067.

The covariance kernel of an infinitely wide network is estimated by features of several fresh random
networks, others in each outer step,

    k(a, b) = 2 phi(a)' phi(b) / (M d) + 0.01,

M networks with d features each, that have no norm. What a ridge regression with it predicts of a
real batch is compared with the classes: by cross-entropy, the predictions times exp(k), k being
learned too (Platt scaling), or by squared error.

The published code learns, beside the images, a square matrix that multiplies each of them; we do
not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.config.options import Auto, option
from potstill.distilled.recipes import Recipe
from potstill.engine.ridge import centred
from potstill.engine.unroll import Leaves
from potstill.methods.base import Examples, Learnable, State
from potstill.methods.features import FeatureOptions, FeatureRegression
from potstill.methods.network_pool import Trained

WEIGHTS, BIAS = 2.0, 0.1
"""Variance of weights, times fan-in, and standard deviation of biases, of the last layer."""
PLATT = "platt"
"""The learned logarithm of the factor on predictions."""


@dataclass(frozen=True)
class RfadOptions(FeatureOptions):
    """Options of RFAD."""

    ridge: float = option(
        5e-3, "regularisation, relative to the mean of the kernel's diagonal", low=0, open_low=True
    )
    mirrored_copies: Literal["on", "off"] | Auto = option(
        "off", "regress on each image and its mirrored copy; auto: of colour images"
    )
    networks: int = option(8, "fresh random networks in a step", low=1)
    regression_loss: Literal["platt", "squares"] = option(
        "platt", "cross-entropy of scaled predictions, or their squared error"
    )
    platt_lr: float = option(0.01, "learning rate of the scale", low=0)
    label_scale: float = option(
        8.0,
        "by which the learner network-centred multiplies targets (published: 8 or 2)",
        low=0,
        open_low=True,
    )


class Rfad(FeatureRegression):
    """RFAD, without the matrix on images."""

    Options: ClassVar[type] = RfadOptions
    options: RfadOptions
    offset: ClassVar[float] = BIAS
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "preprocess": "normalize",
        "learn_labels": True,
        "norm": "none",
        "network_init": "he",
        "outer_optimizer": "adabelief",
        "outer_lr": 1e-3,
        "clip": 0.0,
        "real_batch": 5120,
        "precision": "float32",
        "steps": 2000,
    }
    step_words: ClassVar[str] = (
        "Each outer step has a regression on random networks' features of the synthetic {noun}s "
        "predict real training {noun}s, and changes the synthetic ones so that it errs less."
    )
    loss_words: ClassVar[str] = (
        "The error of a regression on the synthetic {noun}s, on real training {noun}s. Lower is "
        "better."
    )

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        if self.options.regression_loss != "platt":
            return {}, {}
        zero = torch.zeros((), device=self.problem.device)
        return {}, {PLATT: Learnable(zero, self.options.platt_lr)}

    def networks(self, examples: Examples, state: State, step: int) -> tuple[list[Trained], State]:
        return [self.of.fresh(step, number) for number in range(self.options.networks)], state

    def scale(self, networks: int, features: int) -> float:
        return math.sqrt(WEIGHTS / (networks * features))

    def loss(self, predicted: Tensor, labels: Tensor, learned: Leaves) -> Tensor:
        if PLATT in learned:
            scaled = learned[PLATT].exp() * predicted
            return F.cross_entropy(scaled, labels, reduction="sum")
        wanted = centred(self.problem.real.one_hot(labels)).to(predicted)
        # As published: a mean over classes too.
        return (predicted - wanted).square().sum() / (2 * wanted.shape[1])

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        images = len(self.problem.networks.shape) > 1
        return replace(
            recipe,
            learner="krr-random",
            ridge=self.options.ridge,
            kernel="convnet" if images else "fc",
            kernel_depth=recipe.depth if isinstance(recipe.depth, int) else 3 if images else 1,
            kernel_kind="nngp",
            label_scale=self.options.label_scale,
        )

    @classmethod
    def words(cls, options: RfadOptions) -> list[tuple[str, str]]:
        return [
            ("Networks", f"{options.networks} fresh random ones in each step"),
            ("Ridge", f"{options.ridge:g}"),
        ]
