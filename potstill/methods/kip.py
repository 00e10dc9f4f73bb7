"""KIP: kernel inducing points, Nguyen, Chen & Lee 2021, arXiv:2011.00050 and arXiv:2107.13034.

What kernel ridge regression on the set predicts of real examples is compared with their classes,

    L = 1/2 mean (y_t - k(x_t, S) (k(S, S) + r tr(k(S, S)) / n I)^(-1) y_S)^2,

k being a kernel of a network of infinite width, its tangents' by default, and y one-hot targets
less 1 / K. No network is drawn and none is trained.

**Label solve**, of the same source: real examples stay as they are, and their targets are those of
least L over all real examples. L is a square in them, so this is one least-squares problem.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.options import Auto, option
from potstill.distilled.recipes import Recipe
from potstill.engine.kernels import InfiniteNetwork, in_its_precision, kernel
from potstill.engine.ridge import LeastSquares, centred, coefficients, doubled
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.methods import coresets
from potstill.methods.base import Estimate, Examples, Method, Needs, State
from potstill.registry import KERNELS


@dataclass(frozen=True)
class KipOptions:
    """Options of KIP."""

    kernel: str = option("fc", "network of infinite width: fc, convnet, convnet-prepended")
    kernel_depth: int | Auto = option("auto", "its hidden layers, or blocks; auto: 1, or 3", low=1)
    kernel_kind: Literal["ntk", "nngp"] = option(
        "ntk", "of its tangents, as if all layers learned, or of its outputs, as if the last did"
    )
    ridge: float = option(
        1e-6, "regularisation, relative to the mean of the kernel's diagonal", low=0, open_low=True
    )

    def resolved(self, sizes: Any) -> Self:
        """Replace every "auto"."""
        return replace(self, kernel_depth=self.depth)

    @property
    def depth(self) -> int:
        """The depth of the kernel."""
        if self.kernel_depth != "auto":
            return self.kernel_depth
        return 1 if self.kernel == "fc" else 3


class Kip(Method):
    """KIP, with labels that stay as they are or are learned."""

    Options: ClassVar[type] = KipOptions
    options: KipOptions
    needs: ClassVar[Needs] = Needs(targets="numbers")
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "preprocess": "normalize",
        "outer_lr": 0.04,
        "clip": 0.0,
        "steps": 300,
        "real_batch": 5000,
        "real_sampler": "balanced",
    }
    step_words: ClassVar[str] = (
        "Each outer step has a kernel regression on the synthetic {noun}s predict real training "
        "{noun}s, and changes the synthetic ones so that it errs less."
    )
    loss_words: ClassVar[str] = (
        "The mean square error of a kernel regression on the synthetic {noun}s, on real training "
        "{noun}s, halved. Lower is better."
    )
    remedy: ClassVar[str] = "raise --ridge or lower --outer-lr"

    @property
    def network(self) -> InfiniteNetwork:
        """The network whose kernel it is."""
        made: InfiniteNetwork = KERNELS[self.options.kernel](self.options.depth)
        return made

    def check(self, cache: Cache) -> None:
        KERNELS.check(self.options.kernel)
        if self.problem.device.type == "mps":
            raise InputError("the kernel regression needs float64, device mps has none; use cpu")
        images, _ = self.problem.real.train.take(torch.zeros(1, dtype=torch.int64))
        self.network.check(tuple(images.shape[1:]))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        problem, network = self.problem, self.network
        real = problem.real
        rows = real.sampler.draw(real.train, real.batch, problem.rng("real batch", step))
        seen, labels = real.train.take(rows)
        wanted = centred(real.one_hot(labels).double())
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in examples.leaves.items()}
        targets = leaves.get("targets", examples.targets)
        exact = in_its_precision(network, leaves["images"])
        weights = coefficients(
            self.kernel(exact, exact), centred(targets.double()), self.options.ridge
        )
        predicted = self.kernel(seen.to(exact), exact).double() @ weights
        loss = (predicted - wanted).square().mean() / 2
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return Estimate(loss.detach(), dict(zip(leaves, grads, strict=True)), state)

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the kernel (n, m) of inputs (n, ...) and (m, ...)."""
        found: Tensor = getattr(kernel(self.network, first, second), self.options.kernel_kind)
        return found

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        return replace(
            recipe,
            learner="krr",
            kernel=self.options.kernel,
            kernel_depth=self.options.depth,
            kernel_kind=self.options.kernel_kind,
            ridge=self.options.ridge,
        )

    @classmethod
    def words(cls, options: KipOptions) -> list[tuple[str, str]]:
        kind = options.kernel_kind.upper()
        return [
            ("Kernel", f"{options.kernel}, {kind}, depth {options.depth}, ridge {options.ridge:g}")
        ]


@dataclass(frozen=True)
class LabelSolveOptions(KipOptions):
    """Options of label solve."""

    label_examples: int = option(
        0, "real examples that the labels are fitted to, drawn at random; 0: all", low=0
    )


class LabelSolve(Kip):
    """Real examples with the labels that let a kernel regression on them err least."""

    Options: ClassVar[type] = LabelSolveOptions
    options: LabelSolveOptions
    needs: ClassVar[Needs] = Needs(
        targets="numbers",
        pixels=True,
        unused=(*(name for name in coresets.UNUSED if name != "init"), "label_lr", "real_sampler"),
    )
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "preprocess": "normalize",
        "learn_labels": True,
        "outer_lr": 1.0,
        "label_lr": 1.0,
        "clip": 0.0,
        "steps": 1,
    }
    step_words: ClassVar[str] = (
        "The one step gives the {noun}s, which stay as they are, labels of least error."
    )
    remedy: ClassVar[str] = "raise --ridge"

    def check(self, cache: Cache) -> None:
        super().check(cache)
        if not self.problem.learn_labels:
            raise InputError("method label-solve finds labels, got learn_labels off; leave it out")
        asked, images = self.options.label_examples, len(self.problem.labels)
        if 0 < asked <= images:
            raise InputError(
                f"label_examples must be more than the set's {images:,} examples, whose labels "
                f"would fit to those alone, got {asked:,}"
            )

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        problem, exact = self.problem, in_its_precision(self.network, examples.images)
        first = examples.frozen
        identity = torch.eye(len(exact), dtype=torch.float64, device=exact.device)
        inverse = coefficients(self.kernel(exact, exact), identity, self.options.ridge)
        known = centred(doubled(examples.targets[:first]))
        fit = LeastSquares(len(exact) - first)
        for rows in self.rows().split(problem.real.micro_batch):
            seen, labels = problem.real.train.take(rows)
            predicting = doubled(self.kernel(seen.to(exact), exact)) @ doubled(inverse)
            wanted = centred(doubled(problem.real.one_hot(labels)))
            fit.add(predicting[:, first:], wanted - predicting[:, :first] @ known)
        solution, loss = fit.solved()
        targets = (solution + 1 / problem.real.classes).to(examples.targets)
        both = torch.cat([examples.targets[:first], targets])
        chosen = {"images": examples.images, "targets": both}
        return Estimate(loss / 2, {}, state, values=chosen)

    def rows(self) -> Tensor:
        """Return the real examples that the labels are fitted to."""
        count = len(self.problem.real.train)
        wanted = self.options.label_examples
        if not 0 < wanted < count:
            return torch.arange(count)
        return torch.randperm(count, generator=self.problem.rng("label examples"))[:wanted]
