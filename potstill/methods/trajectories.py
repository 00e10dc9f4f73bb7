"""Methods that match the course of training: a student on the set, experts on all real examples.

**MTT**: Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022,
arXiv:2203.11932. In each outer step a student starts at an expert's parameters after t epochs,
t ~ U{0, ..., max_start - 1}, and takes N steps of gradient descent on the set, at a rate alpha that
is learned, too. The set and alpha follow the gradient of

    |theta_N - theta*|^2 / |theta_0 - theta*|^2,

theta* being the expert M epochs later. The unroll is the engine's own: its memory does not grow
with N by more than the parameters, and its gradient is exact.

**TESLA**: Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML
2023, arXiv:2211.10586. The same loss by a cheaper gradient: as if the parameters at which the
student's gradients are taken did not depend on the set or on alpha. (That is not the gradient of
MTT: the two agree for N = 1, and at N = 20 the part left out may be most of it.) Labels may be the
expert's answers on the distilled examples.

**FTD**: Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation",
CVPR 2023, arXiv:2211.11004. MTT with flat experts (`Sharpness`) and a running average of the set.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.cache import Cache
from potstill.config.options import option
from potstill.data import augmentation
from potstill.distilled.recipes import Recipe
from potstill.engine.flat import FlatModel, couples_batch
from potstill.engine.losses import Batch
from potstill.engine.optimizers import Descent
from potstill.engine.unroll import InnerProblem, Keep, Leaves, Unrolled
from potstill.errors import InputError
from potstill.evaluation.protocols import DSA
from potstill.evaluation.training import shuffled
from potstill.methods.base import (
    Estimate,
    Examples,
    Learnable,
    Method,
    Needs,
    Sizes,
    State,
    Work,
)
from potstill.methods.experts import PLAIN, ExpertOptions, Experts, Sharpness
from potstill.seeds import derive, generator, global_seed

LEAST_RATE = 1e-6
"""Lower bound of a student's learning rate: the published one, which has none, turns negative."""
RATE_LR, ALPHA = 0.01, 0.3
"""The defaults of two options that have no effect beside some values of others."""


@dataclass(frozen=True)
class StudentOptions(ExpertOptions):
    """Options of trajectory matching."""

    student_steps: int = option(20, "N: steps that the student takes on the set", low=1)
    expert_epochs: int = option(2, "M: epochs of the expert that these are to equal", low=1)
    max_start: int = option(10, "the student starts at an epoch of an expert below this", low=1)
    student_batch: int = option(
        0, "synthetic examples in a step of the student; 0: all of them", low=0
    )
    student_lr: float = option(0.01, "its first learning rate", low=0, open_low=True)
    learn_student_lr: Literal["log", "raw", "off"] = option(
        "log", "learn that rate by its logarithm, or as it is (raw, as published), or not"
    )
    lr_lr: float = option(RATE_LR, "outer learning rate on it", low=0)
    keep: Literal["states", "sqrt", "host", "bfloat16"] = option(
        "states", "what is kept of the student's steps, as --tape of unrolls (docs/speed.md)"
    )

    def __post_init__(self) -> None:
        if self.learn_student_lr == "off" and self.lr_lr != RATE_LR:
            raise InputError(
                f"lr_lr has no effect with learn_student_lr off, which learns no rate, got "
                f"{self.lr_lr:g}; leave it at {RATE_LR:g}"
            )

    def resolved(self, sizes: Sizes) -> Self:
        """Return the options with a folder that is found from wherever the run is resumed."""
        given = self.expert_folder
        folder = str(Path(given).expanduser().resolve()) if given else ""
        return dataclasses.replace(self, expert_folder=folder)

    @property
    def epochs(self) -> int:
        """The last epoch of an expert that is read."""
        return self.max_start - 1 + self.expert_epochs


@dataclass(frozen=True)
class Nearness:
    """The outer loss: how near the student is to the expert, over how far it was at its start."""

    target: Tensor
    scale: Tensor

    def gradient(
        self, theta: Tensor, leaves: Leaves, part: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        left = theta - self.target
        return left.square().sum() / self.scale, 2 * left / self.scale, {}


class MTT(Method):
    """MTT: a student's steps on the set are to lead where an expert's epochs lead."""

    Options: ClassVar[type] = StudentOptions
    options: StudentOptions
    needs: ClassVar[Needs] = Needs(
        second_derivative=True,
        unused=("real_batch", "real_sampler", "weights", "inner_lr"),
        augment=DSA,
    )
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "inner_optimizer": "sgd",
        "inner_momentum": 0.9,
        "inner_weight_decay": 5e-4,
        "outer_optimizer": "sgd",
        "outer_momentum": 0.5,
        "outer_lr": 100.0,
        "clip": 0.0,
        "steps": 1000,
    }
    step_words: ClassVar[str] = (
        "Each outer step trains a network on the synthetic {noun}s, from where one that trains on "
        "the real ones was, and changes them so that both come out nearer to each other."
    )
    loss_words: ClassVar[str] = (
        "How far a network trained on the synthetic {noun}s ends from where real ones lead, in "
        "squares, over how far it was at its start. Below 1 it comes nearer. Lower is better."
    )
    remedy: ClassVar[str] = "lower --student-lr, --lr-lr, --student-steps or --max-start"
    least_rate: ClassVar[float] = LEAST_RATE
    """Lower bound of the student's learning rate."""
    through_one: ClassVar[bool] = False
    """Whether a step of the student reads one of the examples that a stored one decodes to."""
    exact: ClassVar[bool] = True
    """Whether the gradient is that of the student's steps as they are."""

    def sharpness(self) -> Sharpness:
        """Return how the experts descend."""
        return PLAIN

    def to_prepare(self) -> Experts:
        """Return the experts that the student follows."""
        return Experts(self.problem, self.options, self.options.epochs, self.sharpness())

    def check(self, cache: Cache) -> None:
        self.to_prepare().check(cache)

    def prepare(self, cache: Cache) -> None:
        self.experts = self.to_prepare().prepare(cache)

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        first, how = self.options.student_lr, self.options.learn_student_lr
        value = torch.tensor(first, device=self.problem.device)
        if how == "off":
            return {}, {}
        if how == "log":
            least = math.log(self.least_rate)
            return {}, {"log_student_lr": Learnable(value.log(), self.options.lr_lr, least)}
        return {}, {"student_lr": Learnable(value, self.options.lr_lr, self.least_rate)}

    def rate(self, learned: Leaves) -> Tensor:
        """Return the student's learning rate, 0-d."""
        if "log_student_lr" in learned:
            return learned["log_student_lr"].exp()
        return learned.get(
            "student_lr", torch.tensor(self.options.student_lr, device=self.problem.device)
        )

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        return dataclasses.replace(recipe, lr=float(self.rate(learned)))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        problem, options, rate = self.problem, self.options, self.rate(learned)
        expert = self.expert(step)
        begin = int(torch.randint(options.max_start, (), generator=problem.rng("start", step)))
        epochs = (begin, begin + options.expert_epochs)
        theta, target = (
            one.to(examples.images.dtype) for one in self.experts.at(expert, epochs, problem.device)
        )
        model = self.experts.made.model(expert)
        examples, values = self.labelled(examples, model, target, step)
        unrolled = Unrolled(
            self.student(examples, model, step), examples.leaves, {"lr": rate},
            Descent().init(theta), burn_in=0, window=options.student_steps,
            keep=Keep.named(options.keep),
        )  # fmt: skip
        nearness = Nearness(target, (theta - target).square().sum())
        found = unrolled.meta_gradient(nearness, [(None, 1.0)], exact=self.exact)
        grads = dict(found.leaves)
        if "log_student_lr" in learned:
            grads["log_student_lr"] = rate * found.hyper["lr"]
        elif "student_lr" in learned:
            grads["student_lr"] = found.hyper["lr"]
        info = {"expert": expert, "start_epoch": begin, "student_lr": float(rate)}
        return Estimate(float(found.loss), grads, state, info, values)

    def expert(self, step: int) -> int:
        """Draw the expert of an outer step: all of them come before one comes again."""
        count = self.experts.count
        turn = generator(self.problem.seed, "expert order", step // count)
        return int(torch.randperm(count, generator=turn)[step % count])

    def labelled(
        self, examples: Examples, model: FlatModel, target: Tensor, step: int
    ) -> tuple[Examples, dict[str, Tensor]]:
        """Return the examples with the labels that the student learns, and what is to be stored.

        Args:
            examples: the distilled set.
            model: the network.
            target: (P,) the parameters that the student is to reach.
            step: number of the outer step.
        """
        return examples, {}

    def student(self, examples: Examples, model: FlatModel, step: int) -> InnerProblem:
        """Return the problem of training the student on the set.

        Args:
            examples: the distilled set.
            model: the network.
            step: number of the outer step.
        """
        problem, rows = self.problem, self.student_rows(len(examples.labels), step)

        def batch(leaves: Leaves, number: int) -> Batch:
            rng = problem.rng("student augmentation", step, number)
            drawn = augmentation.draw(problem.recipe.augment, len(rows[number]), rng)
            return examples.batch(leaves, rows[number], drawn)

        def dropout(number: int) -> int:
            return derive(problem.seed, "student dropout", step, number)

        own, last = (
            self.student_size(each * problem.real.classes)
            for each in (len(problem.labels) // problem.real.classes, problem.final_per_class)
        )
        size = problem.at_once(own, last)
        loss = problem.networks.in_parts(problem.networks.loss(model, dropout), model.module, size)
        return InnerProblem(loss, batch, Descent())

    def student_size(self, count: int) -> int:
        """Return how many of so many examples a step of the student reads."""
        most = self.readable(count)
        return min(self.options.student_batch or most, most)

    def readable(self, count: int) -> int:
        """Return how many of so many examples a step of the student can read."""
        return count

    def student_rows(self, count: int, step: int) -> list[Tensor]:
        """Return the indices of the examples that each of the student's steps reads.

        Args:
            count: of examples.
            step: number of the outer step.
        """
        size = self.student_size(count)
        order = shuffled(self.readable(count), size, self.problem.rng("student batches", step))
        return [next(order) for _ in range(self.options.student_steps)]

    @classmethod
    def work(cls, options: StudentOptions, sizes: Sizes) -> Work:
        def of_stage(per_class: int) -> int:
            whole = sizes.classes * per_class // (sizes.sharing if cls.through_one else 1)
            return min(options.student_batch or whole, whole)

        own, real = sizes.at_once(of_stage), sizes.at_once(lambda per_class: options.expert_batch)
        if sizes.coupled:
            own, real = tuple(sorted({*map(of_stage, sizes.stages)})), (options.expert_batch,)
        taken = sizes.steps * options.student_steps * sum(map(of_stage, sizes.stages))
        return Work(
            gradients=taken,
            products=taken,
            gradient_batches=tuple(sorted({*own, *real})),
            product_batches=own if cls.exact else (),
            pulled_batches=() if cls.exact else own,
            functions=len({*own, *real}) + len(own),
        )

    @classmethod
    def words(cls, options: StudentOptions) -> list[tuple[str, str]]:
        lines = [
            (
                "Student",
                f"{options.student_steps:,} steps for {options.expert_epochs:,} epochs of an "
                f"expert, from its epochs 0 to {options.max_start - 1:,}",
            ),
            ("Experts", f"{options.experts:,}, trained at {options.expert_lr:g}"),
        ]
        return lines + [("Student's learning rate", "learned")] * (
            options.learn_student_lr != "off"
        )


@dataclass(frozen=True)
class TeslaOptions(StudentOptions):
    """Options of TESLA."""

    expert_labels: bool = option(
        False, "labels are the expert's answers on the set; needs --learn-labels, to store them"
    )


class Tesla(MTT):
    """TESLA: MTT's loss by a gradient that does not follow the student's own course."""

    Options: ClassVar[type] = TeslaOptions
    options: TeslaOptions
    exact: ClassVar[bool] = False

    def check(self, cache: Cache) -> None:
        if self.options.expert_labels and not self.problem.learn_labels:
            raise InputError(
                "expert_labels needs a set that stores labels; give --learn-labels, too, or leave "
                "--expert-labels out"
            )
        super().check(cache)

    def labelled(
        self, examples: Examples, model: FlatModel, target: Tensor, step: int
    ) -> tuple[Examples, dict[str, Tensor]]:
        if not self.options.expert_labels:
            return examples, {}
        problem, sharing = self.problem, self.problem.sharing
        whole = couples_batch(model.module)
        with torch.no_grad(), global_seed(derive(problem.seed, "answers", step), problem.device):
            parts = examples.images.split(len(examples.images) if whole else problem.cut.most)
            answers = torch.cat([F.softmax(model(target, part), dim=1) for part in parts])
        # Examples that are decoded from one that is stored share its label.
        stored = answers.unflatten(0, (-1, sharing)).mean(1)
        targets = stored.repeat_interleave(sharing, dim=0).to(examples.targets)
        told = dataclasses.replace(examples, targets=targets, learn_targets=False)
        return told, {"targets": targets}


@dataclass(frozen=True)
class FlatOptions(StudentOptions):
    """Options of FTD."""

    flat_rho: float = option(0.01, "how far flat experts look uphill; 0: plain experts", low=0)
    flat_alpha: float = option(
        ALPHA, "their descent along what the gradient there leaves out", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flat_rho == 0 and self.flat_alpha != ALPHA:
            raise InputError(
                f"flat_alpha has no effect with flat_rho 0, which trains plain experts, got "
                f"{self.flat_alpha:g}; leave it at {ALPHA:g}"
            )


class FTD(MTT):
    """FTD: MTT with flat experts and a running average of the set."""

    Options: ClassVar[type] = FlatOptions
    options: FlatOptions
    defaults: ClassVar[dict[str, Any]] = {**MTT.defaults, "average": 0.999}

    def sharpness(self) -> Sharpness:
        rho, alpha = self.options.flat_rho, self.options.flat_alpha
        return Sharpness(rho, alpha) if rho else PLAIN
