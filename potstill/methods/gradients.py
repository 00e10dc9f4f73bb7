"""Methods that match the gradients that real and distilled examples give a network.

**DC**, gradient matching: Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR
2021, arXiv:2006.05929. **DSA**: the same under one random augmentation that both sides share: Zhao
& Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021,
arXiv:2102.08259.

With g_r and g_s the gradients of the mean cross-entropy on a real batch of a class and on the
distilled examples of that class, an outer step follows the gradient of the sum over classes of

    D(g_s, g_r) = sum over output rows i of 1 - <g_s[i], g_r[i]> / (|g_s[i]| |g_r[i]| + eps).

A row is what leads to one output of a layer; biases and the affine parameters of norms have none.
A fresh network serves for O outer steps; between two of them it trains on the set for I epochs.

D depends on the examples through g_s alone. So its gradient in them is one Hessian product, with
the gradient of D in g_s as the cotangent; no graph of a gradient is kept (tests hold it to a double
backward).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from potstill.config.options import Auto, option
from potstill.data import augmentation
from potstill.data.augmentation import Draw
from potstill.data.sampling import ClassWise
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, Differentiable, InMicroBatches
from potstill.engine.optimizers import Descent, root
from potstill.engine.unroll import InnerProblem, Leaves, forward
from potstill.errors import InputError
from potstill.evaluation.protocols import DSA as DSA_OPERATIONS
from potstill.evaluation.training import batches_an_epoch, shuffled
from potstill.methods.base import Estimate, Examples, Method, Needs, Problem, Sizes, State, Work
from potstill.seeds import derive

NETWORK_LR, NETWORK_BATCH = 0.01, 256
"""How the network trains on the set between two outer steps: SGD without momentum."""
EPS = 1e-6
PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Examples per class -> (O, I), of the released code's `get_loops`, which refuses other sizes."""


@dataclass(frozen=True)
class GradientOptions:
    """Options of gradient matching."""

    real_per_class: int = option(256, "real examples of each class in a step", low=1)
    network_steps: int | Auto = option(
        "auto", "O: outer steps for each fresh network; auto: by ipc, as published", low=1
    )
    network_epochs: int | Auto = option(
        "auto", "I: epochs that it trains on the set in between; auto: as published", low=0
    )
    distance: Literal["rows", "cosine", "squares", "absolute"] = option(
        "rows", "of gradients: 1 - cosine by rows or in all, or sum of squares or absolute values"
    )
    distance_eps: float = option(EPS, "added to the product of two norms", low=0)
    relative_eps: bool = option(False, "distance_eps is a share of that product")

    def __post_init__(self) -> None:
        if self.distance in ("squares", "absolute") and (
            self.relative_eps or self.distance_eps != EPS
        ):
            raise InputError(
                f"distance_eps and relative_eps have no effect with distance {self.distance}, "
                "which divides by nothing; leave them out"
            )

    def resolved(self, sizes: Sizes) -> Self:
        """Replace every "auto" for a run of these sizes."""
        steps, epochs = published_loops(sizes.stages[-1])
        return replace(
            self,
            network_steps=steps if self.network_steps == "auto" else self.network_steps,
            network_epochs=epochs if self.network_epochs == "auto" else self.network_epochs,
        )


def published_loops(per_class: int) -> tuple[int, int]:
    """Return (O, I) for so many examples per class: as published for the next lower number.

    O is never more than the number of examples, as in the published ones.
    """
    known = max(number for number in PUBLISHED if number <= per_class)
    return PUBLISHED[known]


@dataclass(frozen=True)
class Distance:
    """A distance of two gradients.

    Args:
        kind: "rows", "cosine", "squares" or "absolute", see `GradientOptions`.
        eps: added to the product of two norms.
        relative: whether eps is a share of that product.
        least: fewest dimensions of the parameters that count: 2 leaves out biases and the affine
            parameters of norms, 4 linear layers, too.
    """

    kind: str
    eps: float = 0.0
    relative: bool = False
    least: int = 1

    def __call__(self, own: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Compute the distance, differentiable in the first.

        Args:
            own: a gradient, parameter by parameter.
            wanted: the gradient to come near to, likewise.
        """
        least = 2 if self.kind == "rows" else self.least
        own, wanted = ([part for part in some if part.dim() >= least] for some in (own, wanted))
        if self.kind == "rows":
            pairs = zip(own, wanted, strict=True)
            return sum(
                (self.apart(rows_of(one), rows_of(other)).sum() for one, other in pairs),
                own[0].new_zeros(()),
            )
        one, other = (torch.cat([part.reshape(-1) for part in some]) for some in (own, wanted))
        if self.kind == "cosine":
            return self.apart(one[None], other[None]).sum()
        return ((one - other).abs() if self.kind == "absolute" else (one - other).square()).sum()

    def apart(self, one: Tensor, other: Tensor) -> Tensor:
        """Return 1 - cosine of corresponding rows, (rows,)."""
        norms = root(one.square().sum(1)) * root(other.square().sum(1))
        eps = self.eps * norms if self.relative else self.eps
        # Where both norms and eps are 0 the product is, too; 1 stands for "no direction".
        below = norms + eps
        return 1 - (one * other).sum(1) / torch.where(below > 0, below, 1)


def rows_of(parameter: Tensor) -> Tensor:
    """View a parameter of two or more dimensions as (outputs, inputs)."""
    return parameter.reshape(len(parameter), -1)


class GradientMatching(Method):
    """Gradients of real and distilled examples, class by class, on networks in training.

    A subclass says by what distance, and how a network trains between the steps that it serves for.
    """

    needs: ClassVar[Needs] = Needs(
        second_derivative=True, targets="classes", uncoupled=True, unused=("real_batch",)
    )
    step_words: ClassVar[str] = (
        "Each outer step shows real and synthetic {noun}s of a class to a network, and changes the "
        "synthetic ones so that it would learn the same from both."
    )
    distance: Distance
    network_steps: int
    """Outer steps for each fresh network."""

    def __init__(self, problem: Problem, options: Any):
        super().__init__(problem, options)
        self.members = problem.plan.members
        self.real = ClassWise(problem.real.train, problem.real.sampler)
        self.filled = problem.networks.compiled is not None

    def start(self) -> tuple[State, dict[str, Any]]:
        if self.network_steps == 1:  # no network lives on to the next step
            return {}, {}
        return {**self.untrained(self.model(0)), "network": 0}, {}

    def untrained(self, model: FlatModel) -> dict[str, Tensor]:
        """Return the state of a network before its training; "theta" (P,) are its parameters."""
        return {"theta": model.theta}

    def trained(
        self, model: FlatModel, state: State, examples: Examples, step: int
    ) -> dict[str, Tensor]:
        """Return a network's state after its training between two outer steps.

        Args:
            model: the network.
            state: its state at the step before.
            examples: the distilled set as it is now.
            step: number of the outer step that follows.
        """
        raise NotImplementedError

    def chosen(self, label: int, step: int) -> Tensor:
        """Return the indices (n,) of the distilled examples of a class that a step reads."""
        return self.members[label]

    def read_of(self, per_class: int) -> int:
        """Return how many of so many distilled examples of a class a step reads."""
        return per_class

    def model(self, step: int) -> FlatModel:
        """Return the fresh network of an outer step."""
        number = step // self.network_steps
        return self.problem.networks.flat(self.problem.network("start", number))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        model, problem = self.model(step), self.problem
        number, done = divmod(step, self.network_steps)
        # A first step that was skipped leaves the state of the network before.
        goes_on = done and state["network"] == number
        now = self.trained(model, state, examples, step) if goes_on else self.untrained(model)
        theta = now["theta"]
        loss = problem.networks.loss(model, lambda _: derive(problem.seed, "dropout", step))
        grad = torch.zeros_like(examples.images)
        total, classes = 0.0, [label for label, rows in enumerate(self.members) if len(rows)]
        rng, count = problem.rng("real batch", step), self.options.real_per_class
        for label, real in zip(classes, self.real.of_each(classes, count, rng), strict=True):
            drawn = augmentation.shared_draw(
                problem.real.augment, problem.rng("augmentation", step, label)
            )
            wanted = self.real_gradient(loss, theta, real, drawn)
            own = self.chosen(label, step).to(grad.device)
            value, of_images = self.match(model, loss, theta, examples, own, drawn, wanted)
            grad[own] = of_images
            total += value
        after = {**now, "network": number} if self.network_steps > 1 else state
        return Estimate(total, {"images": grad}, after)

    def real_gradient(
        self, loss: Differentiable, theta: Tensor, rows: Tensor, drawn: Draw
    ) -> Tensor:
        """Return the gradient (P,) of the mean loss on real examples, in micro-batches.

        Args:
            loss: of the network.
            theta: (P,) its parameters.
            rows: (B,) indices in the train split, all of one class.
            drawn: how the examples are augmented.
        """
        real, total = self.problem.real, torch.zeros_like(theta)
        size = self.problem.at_once(self.options.real_per_class)
        for part in rows.split(size):
            images, labels = real.train.take(part)
            targets = real.one_hot(labels).to(theta.dtype)
            batch = Batch(augmentation.apply(images, drawn), targets)
            grad = InMicroBatches(loss, size, self.filled).gradient(theta, batch, 0)[1]
            total.add_(grad, alpha=len(part) / len(rows))
        return total

    def match(
        self,
        model: FlatModel,
        loss: Differentiable,
        theta: Tensor,
        examples: Examples,
        rows: Tensor,
        drawn: Draw,
        wanted: Tensor,
    ) -> tuple[float, Tensor]:
        """Compute the distance from the gradient on real examples, and its gradient.

        Args:
            model: the network.
            loss: its loss.
            theta: (P,) its parameters.
            examples: the distilled set.
            rows: (n,) indices in it, of a class.
            drawn: how the examples are augmented.
            wanted: (P,) the gradient on real examples.
        Returns:
            The distance, and its gradient in the images at these rows.
        """
        images = examples.images[rows].detach().requires_grad_()
        targets = examples.targets[rows].to(theta.dtype)
        still = int((rows < examples.frozen).sum())
        batch = Batch(augmentation.apply(images, drawn), targets, still)
        size = self.problem.at_once(len(rows), self.read_of(self.problem.final_per_class))
        parts = InMicroBatches(loss, size, self.filled)
        value = theta.new_zeros(())

        def pull(own: Tensor) -> Tensor:
            nonlocal value
            own = own.detach().requires_grad_()
            value = self.distance(model.parameters(own), model.parameters(wanted))
            return torch.autograd.grad(value, own)[0]

        of_inputs = parts.pulled(theta, batch, 0, pull)[0]
        if of_inputs is None:  # all are frozen
            return float(value.detach()), torch.zeros_like(images)
        (of_images,) = torch.autograd.grad(batch.inputs, images, of_inputs)
        return float(value.detach()), of_images


class DC(GradientMatching):
    """DC: the network trains on the set between the steps that it serves for."""

    Options: ClassVar[type] = GradientOptions
    options: GradientOptions
    defaults: ClassVar[dict[str, Any]] = {
        "init": "normal",
        "preprocess": "normalize",
        "outer_optimizer": "sgd",
        "outer_momentum": 0.5,
        "outer_lr": 0.1,
        "clip": 0.0,
        "steps": 1000,
    }
    loss_words: ClassVar[str] = (
        "How differently real and synthetic {noun}s would change a network, class by class: 0 for "
        "each of its outputs that they move the same way, 1 for one that they move unrelated ways. "
        "Lower is better."
    )

    def __init__(self, problem: Problem, options: GradientOptions):
        super().__init__(problem, options)
        self.distance = Distance(options.distance, options.distance_eps, options.relative_eps)
        self.network_steps = int(options.network_steps)

    def trained(
        self, model: FlatModel, state: State, examples: Examples, step: int
    ) -> dict[str, Tensor]:
        """Return a network's state after its epochs on the set, by plain SGD."""
        problem, epochs = self.problem, int(self.options.network_epochs)
        rng = problem.rng("training", step)
        rows = shuffled(len(examples.labels), NETWORK_BATCH, rng)
        still = replace(examples, images=examples.images.detach(), targets=examples.targets)

        def batch(leaves: Leaves, number: int) -> Batch:
            chosen = next(rows)
            drawn = augmentation.draw(problem.recipe.augment, len(chosen), rng)
            return still.batch({}, chosen, drawn)

        loss = problem.networks.loss(
            model, lambda number: derive(problem.seed, "training dropout", step, number)
        )
        count = epochs * batches_an_epoch(len(examples.labels), NETWORK_BATCH)
        whole = problem.final_per_class * problem.real.classes
        size = problem.at_once(*(min(NETWORK_BATCH, n) for n in (len(examples.labels), whole)))
        inner = InnerProblem(InMicroBatches(loss, size, self.filled), batch, Descent())
        theta = state["theta"]
        lr = {"lr": torch.tensor(NETWORK_LR, dtype=theta.dtype, device=theta.device)}
        return {"theta": forward(inner, {}, lr, (theta,), range(count))[0]}

    @classmethod
    def work(cls, options: GradientOptions, sizes: Sizes) -> Work:
        each, steps = sizes.stages[-1], sizes.steps * len(sizes.stages)
        whole = sizes.classes * each
        own = sizes.at_once(lambda per_class: per_class)
        real = sizes.at_once(lambda per_class: options.real_per_class)
        training = sizes.at_once(lambda per_class: min(NETWORK_BATCH, per_class * sizes.classes))
        lives = int(options.network_steps)
        epochs = int(options.network_epochs) * (lives - 1) / lives
        gradients = sizes.classes * options.real_per_class + whole * (1 + epochs)
        batches = {*own, *real, *(training if epochs else ())}
        return Work(
            gradients=steps * gradients,
            products=steps * whole,
            gradient_batches=tuple(sorted(batches)),
            pulled_batches=own,
            functions=len(batches) + len(own),
        )

    @classmethod
    def words(cls, options: GradientOptions) -> list[tuple[str, str]]:
        lives = int(options.network_steps)
        network = "a fresh one in every step"
        if lives > 1:
            network = (
                f"a fresh one every {lives:,} steps, trained for {options.network_epochs:,} epochs "
                "on the set before each of the others"
            )
        return [
            ("Real examples in a step", f"{options.real_per_class:,} of each class, at most"),
            ("Networks", network),
        ]


class DSA(DC):
    """DSA: DC with one augmentation that the real and the distilled batch of a class share."""

    needs: ClassVar[Needs] = replace(DC.needs, augment=DSA_OPERATIONS)
    defaults: ClassVar[dict[str, Any]] = {**DC.defaults, "init": "real"}
