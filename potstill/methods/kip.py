"""KIP: kernel inducing points, Nguyen, Chen & Lee 2021, arXiv:2011.00050 and arXiv:2107.13034.

What kernel ridge regression on the set predicts of real examples is compared with their classes,

    L = 1/2 mean (y_t - k(x_t, S) (k(S, S) + r tr(k(S, S)) / n I)^(-1) y_S)^2,

k being the tangent kernel of a network of infinite width and y one-hot targets less 1 / K. No
network is drawn and none is trained.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from potstill.cache import Cache
from potstill.config.options import Auto, option
from potstill.distilled.recipes import Recipe
from potstill.engine.kernels import InfiniteNetwork, in_its_precision, kernel
from potstill.engine.ridge import centred, coefficients
from potstill.engine.unroll import Leaves
from potstill.methods.base import Estimate, Examples, Method, Needs, State
from potstill.registry import KERNELS


@dataclass(frozen=True)
class KipOptions:
    """Options of KIP."""

    kernel: str = option("fc", "network of infinite width: fc, convnet, convnet-prepended")
    kernel_depth: int | Auto = option("auto", "its hidden layers, or blocks; auto: 1, or 3", low=1)
    ridge: float = option(
        1e-6, "regularisation, relative to the mean of the kernel's diagonal", low=0, open_low=True
    )

    def resolved(self, sizes: Any) -> "KipOptions":
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
        images, _ = self.problem.real.train.take(torch.zeros(1, dtype=torch.int64))
        self.network.check(tuple(images.shape[1:]))

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        problem, network = self.problem, self.network
        real = problem.real
        rows = real.sampler.draw(real.train, real.batch, problem.rng("real batch", step))
        seen, labels = real.train.take(rows)
        wanted = centred(real.one_hot(labels).double())
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in examples.leaves.items()}
        images = leaves["images"]
        targets = leaves.get("targets", examples.targets)
        exact = in_its_precision(network, images)
        weights = coefficients(
            kernel(network, exact, exact).ntk, centred(targets.double()), self.options.ridge
        )
        predicted = kernel(network, seen.to(exact), exact).ntk.double() @ weights
        loss = (predicted - wanted).square().mean() / 2
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return Estimate(loss.detach(), dict(zip(leaves, grads, strict=True)), state)

    def recipe(self, recipe: Recipe, learned: Leaves, state: State) -> Recipe:
        return replace(
            recipe,
            learner="krr",
            kernel=self.options.kernel,
            kernel_depth=self.options.depth,
            ridge=self.options.ridge,
        )

    @classmethod
    def words(cls, options: KipOptions) -> list[tuple[str, str]]:
        return [("Kernel", f"{options.kernel}, depth {options.depth}, ridge {options.ridge:g}")]
