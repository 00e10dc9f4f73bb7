"""How long a run will take: before it is compiled, and after its first steps."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from potstill.config.durations import in_words
from potstill.devices import synchronize
from potstill.engine.losses import Batch, cross_entropy
from potstill.engine.when_to_compile import NetworkFamily
from potstill.methods.base import Work

TOLD_FROM = 120.0
"""Seconds from which on a forecast is told."""
MEASURED_STEPS = 2
"""Outer steps that are timed, after one that warms up."""


class Forecast:
    """Says once, after some steps of a long run, how long it will take.

    Args:
        steps: outer steps of the whole run.
        say: takes the sentence.
    """

    def __init__(self, steps: int, say: Callable[[str], None]):
        self.steps, self.say = steps, say
        self.seconds: list[float] = []

    def see(self, step: int, seconds: float) -> None:
        """Count a step; the first one of a process warms up."""
        if len(self.seconds) > MEASURED_STEPS:
            return
        self.seconds.append(seconds)
        if len(self.seconds) <= MEASURED_STEPS:
            return
        each = sum(self.seconds[1:]) / MEASURED_STEPS
        left = each * (self.steps - step)
        if left > TOLD_FROM:
            self.say(
                f"an outer step takes {each:.2g} s: the other {self.steps - step:,} take "
                f"{in_words(left)}, and validation some more; --time-budget 10m or --quick plan by "
                "time"
            )


def plain_seconds(work: Work, networks: NetworkFamily) -> float:
    """Return about how many seconds a run's derivatives take uncompiled, from one of each."""
    model = networks.model(0)
    loss = cross_entropy(model, lambda _: 0)

    def each(take: Callable[[Batch], object], sizes: Sequence[int]) -> float:
        if not sizes:
            return 0.0
        still = networks.batch(sizes[0])
        batch = dataclasses.replace(still, inputs=still.inputs.requires_grad_())
        take(batch)
        synchronize(networks.device)
        began = time.perf_counter()
        take(batch)
        synchronize(networks.device)
        return (time.perf_counter() - began) / sizes[0]

    along = torch.ones_like(model.theta)
    gradient = each(lambda batch: loss.gradient(model.theta, batch, 0), work.gradient_batches)
    take = loss.product if work.product_batches else loss.batch_product
    sizes = work.product_batches or work.pulled_batches
    product = each(lambda batch: take(model.theta, batch, 0, along), sizes)
    with torch.no_grad():
        seen = each(lambda batch: model.features(model.theta, batch.inputs), work.feature_batches)
    return work.gradients * gradient + work.products * product + work.features * seen


def forecast(seconds: float, steps: int, say: Callable[[str], None]) -> None:
    """Say how long a run would take without compiling, if that is long."""
    if seconds > TOLD_FROM:
        say(
            f"uncompiled, an outer step would take about {seconds / steps:.2g} s here, all "
            f"{steps:,} about {in_words(seconds)}; compiling first shortens that. To plan by time: "
            "--time-budget 10m or --quick"
        )
