"""**IDC**: gradients of many parts an image, on networks that train on real data.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022,
arXiv:2205.14959. Each stored image decodes to several (`--param multi-formation`). In an outer step
the distilled examples of each class follow the gradient of

    sum over convolutions of | g_s - g_r |^2, or of absolute values,

g_r and g_s being the gradients of the mean cross-entropy on real and on distilled examples, both
under one augmentation. Linear layers, biases and norms do not count. A fresh network serves for 100
steps, between which it trains on real examples: SGD with momentum, augmented and mixed by CutMix.

The authors step class by class, with one optimizer of momentum 0.5 over all: a class's velocity has
died away before its turn comes again, so that it amounts to plain SGD at twice the rate, all
classes at once. That is what the defaults are. Pixels are clamped at each step, there only when a
network is made.

**DREAM**, Liu et al., ICCV 2023, arXiv:2302.14416, is IDC with real batches by `--real-sampler
k-means`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.options import option
from potstill.data import augmentation
from potstill.data.mixing import cutmix
from potstill.data.splits import sample
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, InMicroBatches
from potstill.engine.optimizers import SGD
from potstill.engine.unroll import InnerProblem, Leaves, forward
from potstill.errors import InputError
from potstill.methods.base import Examples, Needs, Problem, Sizes, State, Work
from potstill.methods.gradients import Distance, GradientMatching
from potstill.seeds import derive

CONVOLUTION = 4
"""Dimensions of a convolution's weights; nothing else has as many."""
TRAINING, LR, BATCH, CUTMIX = SGD(momentum=0.9, weight_decay=5e-4), 0.01, 64, 0.5
AUGMENT = ("color+crop",)
"""How the network trains on real examples."""


@dataclass(frozen=True)
class CondensationOptions:
    """Options of IDC."""

    real_per_class: int = option(64, "real examples of each class in a step", low=1)
    most_per_class: int = option(
        128, "distilled examples of each class in a step, at random if there are more", low=1
    )
    network_steps: int = option(100, "outer steps for each fresh network", low=1)
    network_examples: int = option(
        2000, "real examples that it trains on between two of them", low=1
    )
    gradient_distance: Literal["squares", "absolute"] = option(
        "squares", "of gradients of convolutions: sum of squares, or of absolute values"
    )


class IDC(GradientMatching):
    """IDC: the network trains on real examples between the steps that it serves for."""

    Options: ClassVar[type] = CondensationOptions
    options: CondensationOptions
    needs: ClassVar[Needs] = Needs(
        second_derivative=True,
        targets="classes",
        uncoupled=True,
        kinds=("image",),
        unused=("real_batch",),
        augment=("color+crop+cutout",),
    )
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "param": "multi-formation",
        "preprocess": "normalize",
        "clamp": True,
        "outer_optimizer": "sgd",
        "outer_momentum": 0.0,
        "outer_lr": 0.02,
        "clip": 0.0,
        "steps": 1000,
    }
    loss_words: ClassVar[str] = (
        "How differently real and synthetic {noun}s would change a network's convolutions, class "
        "by class. It depends on how far the network is trained. Lower is better."
    )

    def __init__(self, problem: Problem, options: CondensationOptions):
        super().__init__(problem, options)
        self.distance = Distance(options.gradient_distance, least=CONVOLUTION)
        self.network_steps = options.network_steps

    def check(self, cache: Cache) -> None:
        if all(len(shape) < CONVOLUTION for shape in self.model(0).shapes):
            raise InputError(
                "method idc compares gradients of convolutions, this network has none; take "
                "another --model, such as convnet, or --method dc"
            )

    def untrained(self, model: FlatModel) -> dict[str, Tensor]:
        return {"theta": model.theta, "velocity": torch.zeros_like(model.theta)}

    def read_of(self, per_class: int) -> int:
        return min(per_class, self.options.most_per_class)

    def chosen(self, label: int, step: int) -> Tensor:
        own, most = self.members[label], self.options.most_per_class
        if len(own) <= most:
            return own
        order = torch.randperm(len(own), generator=self.problem.rng("examples", step, label))
        return own[order[:most].sort().values]

    def trained(
        self, model: FlatModel, state: State, examples: Examples, step: int
    ) -> dict[str, Tensor]:
        """Return a network's state after its training on real examples."""
        problem, real = self.problem, self.problem.real
        rng = problem.rng("training", step)
        rows = sample(real.train, self.options.network_examples, rng).split(BATCH)

        def batch(leaves: Leaves, number: int) -> Batch:
            images, labels = real.train.take(rows[number])
            drawn = augmentation.draw(AUGMENT, len(labels), rng)
            targets = real.one_hot(labels).to(images.dtype)
            mixed = cutmix(augmentation.apply(images, drawn), targets, CUTMIX, rng)
            return Batch(*mixed)

        loss = problem.networks.loss(
            model, lambda number: derive(problem.seed, "training dropout", step, number)
        )
        parts = InMicroBatches(loss, problem.at_once(BATCH), self.filled)
        inner = InnerProblem(parts, batch, TRAINING)
        theta, velocity = state["theta"], state["velocity"]
        lr = {"lr": torch.tensor(LR, dtype=theta.dtype, device=theta.device)}
        theta, velocity = forward(inner, {}, lr, (theta, velocity), range(len(rows)))
        return {"theta": theta, "velocity": velocity}

    @classmethod
    def work(cls, options: CondensationOptions, sizes: Sizes) -> Work:
        steps = sizes.steps * len(sizes.stages)
        each = min(sizes.stages[-1], options.most_per_class)
        own = sizes.at_once(lambda per_class: min(per_class, options.most_per_class))
        real = sizes.at_once(lambda per_class: options.real_per_class)
        batches = {*own, *real, *sizes.at_once(lambda per_class: BATCH)}
        examples = sizes.classes * (options.real_per_class + each) + options.network_examples
        return Work(
            gradients=steps * examples,
            products=steps * sizes.classes * each,
            gradient_batches=tuple(sorted(batches)),
            pulled_batches=own,
            functions=len(batches) + len(own),
        )

    @classmethod
    def words(cls, options: CondensationOptions) -> list[tuple[str, str]]:
        return [
            ("Real examples in a step", f"{options.real_per_class:,} of each class, at most"),
            (
                "Networks",
                f"a fresh one every {options.network_steps:,} steps, trained on "
                f"{options.network_examples:,} real examples before each of the others",
            ),
        ]
