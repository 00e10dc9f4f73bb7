"""Methods that match statistics of distilled and real examples on networks that are not trained.

**DM**, distribution matching: Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV
2023, arXiv:2110.04181. In each outer step, phi being what the last layer of a fresh random network
reads, the distilled examples x_s of each class c follow the gradient of

    sum over c of | mean phi(A x_r) - mean phi(A x_s) |^2,

x_r a real batch of the class and A one augmentation that both share (differentiable Siamese
augmentation, Zhao & Bilen 2021, arXiv:2102.08259). Labels are hard, and not used otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from potstill.config.options import option
from potstill.data import augmentation
from potstill.data.augmentation import Draw
from potstill.data.sampling import ClassWise
from potstill.engine.flat import autocast, couples_batch
from potstill.engine.losses import filled_up
from potstill.engine.unroll import Leaves
from potstill.evaluation.protocols import DSA
from potstill.methods.base import Estimate, Examples, Method, Needs, Problem, Sizes, State, Work
from potstill.seeds import derive, global_seed

FULL = 0.75
"""Share of a compiled batch from which on it pays to fill it up."""


@dataclass(frozen=True)
class DistributionOptions:
    """Options of distribution matching."""

    real_per_class: int = option(256, "real examples of each class in a step", low=1)


class DistributionMatching(Method):
    """DM: means of features of a fresh random network, class by class.

    The loss is a sum over classes, so that classes are taken a few at a time, as many as the
    micro-batch allows. A network that couples the examples of its batch sees all classes at once,
    of the distilled and then of the real examples.
    """

    Options: ClassVar[type] = DistributionOptions
    step_words: ClassVar[str] = (
        "Each outer step shows real and synthetic {noun}s to a random network, and changes the "
        "synthetic ones so that it sees both alike on average."
    )
    loss_words: ClassVar[str] = (
        "How far apart random networks see real and synthetic {noun}s on average, class by class. "
        "Lower is better; the floor is above 0, since a step sees a part of the real {noun}s."
    )
    needs: ClassVar[Needs] = Needs(
        features=True, targets="classes", unused=("real_batch",), augment=DSA
    )
    defaults: ClassVar[dict[str, Any]] = {
        "init": "real",
        "preprocess": "normalize",
        "outer_optimizer": "sgd",
        "outer_momentum": 0.5,
        "outer_lr": 1.0,
        "clip": 0.0,
        "steps": 1000,
    }

    def __init__(self, problem: Problem, options: DistributionOptions):
        super().__init__(problem, options)
        self.members = problem.plan.members
        self.real = ClassWise(problem.real.train, problem.real.sampler)

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        problem, network = self.problem, self.problem.network("start", step).train()
        seen = self.of_real(network, step)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        classes = [label for label, rows in enumerate(self.members) if len(rows)]
        real = self.real_rows(classes, step)
        operations = problem.real.augment
        shared = {
            label: augmentation.shared_draw(operations, problem.rng("augmentation", step, label))
            for label in classes
        }
        images, total = examples.images.detach().requires_grad_(), 0.0
        grad = torch.zeros_like(images)
        for some in self.groups(classes, couples_batch(network)):
            their = {label: real[label] for label in some}
            wanted = self.real_means(seen, network, their, shared, step)
            own = {label: self.members[label] for label in some}
            means = self.means(network, images, own, shared, step)
            loss = (wanted - means).square().sum()
            grad += torch.autograd.grad(loss, images)[0]
            total += float(loss.detach())
        return Estimate(total, {"images": grad}, state)

    def real_rows(self, classes: list[int], step: int) -> dict[int, Tensor]:
        """Draw the real batch of each class: class -> indices (B,) in the train split."""
        rng = self.problem.rng("real batch", step)
        drawn = self.real.of_each(classes, self.options.real_per_class, rng)
        return dict(zip(classes, drawn, strict=True))

    def groups(self, classes: list[int], coupled: bool) -> Iterator[list[int]]:
        """Yield groups of classes with at most a micro-batch of distilled examples each."""
        group: list[int] = []
        size = 0
        for label in classes:
            if group and not coupled and size + len(self.members[label]) > self.problem.micro_batch:
                yield group
                group, size = [], 0
            group.append(label)
            size += len(self.members[label])
        yield group

    def means(
        self,
        network: nn.Module,
        images: Tensor,
        rows: dict[int, Tensor],
        shared: dict[int, Draw],
        step: int,
    ) -> Tensor:
        """Average the features of each class, (K', F), differentiable in the images.

        Args:
            network: a fresh random network.
            images: the distilled images.
            rows: class -> indices of its examples in `images`.
            shared: class -> the augmentation that distilled and real images share.
            step: number of the outer step.
        """
        parts = [
            augmentation.apply(images[own.to(images.device)], shared[label])
            for label, own in rows.items()
        ]
        features = self.features(network, torch.cat(parts), step)
        return torch.stack([part.mean(0) for part in features.split([len(part) for part in parts])])

    @torch.no_grad()
    def real_means(
        self,
        seen: Callable[[Tensor], Tensor],
        network: nn.Module,
        rows: dict[int, Tensor],
        shared: dict[int, Draw],
        step: int,
    ) -> Tensor:
        """Average the features of real images of each class, (K', F), in micro-batches.

        Args:
            seen: computes the features of a micro-batch.
            network: a fresh random network.
            rows: class -> indices of its examples in the train split.
            shared: class -> the augmentation that distilled and real images share.
            step: number of the outer step.
        """
        train, most = self.problem.real.train, self.most
        if couples_batch(network):
            taken = [
                augmentation.apply(train.take(own)[0], shared[label]) for label, own in rows.items()
            ]
            features = self.features(network, torch.cat(taken), step).split(
                [len(own) for own in taken]
            )
            return torch.stack([part.mean(0) for part in features])
        means = []
        for label, own in rows.items():
            parts = [
                augmentation.apply(train.take(part)[0], shared[label]) for part in own.split(most)
            ]
            sums = [seen(part).sum(0) for part in parts]
            means.append(torch.stack(sums).sum(0) / len(own))
        return torch.stack(means)

    @property
    def most(self) -> int:
        """How many real examples to take at once."""
        return self.problem.at_once(self.options.real_per_class)

    def of_real(self, network: nn.Module, step: int) -> Callable[[Tensor], Tensor]:
        """Return what computes features (B, F) of real examples, by compiled code if there is any.

        The examples of the distilled side have theirs differentiated, and are few.

        Args:
            network: a fresh random one, its parameters still to be learned.
            step: number of the outer step.
        """
        compiled, most = self.problem.networks.compiled, self.most
        if compiled is None:
            return lambda images: self.features(network, images, step)
        model = self.problem.networks.flat(network)
        fast, theta = compiled.of(model), model.theta

        def seen(images: Tensor) -> Tensor:
            if len(images) < FULL * most:  # all of a small class
                return self.features(network, images, step)
            filled = filled_up(images, most - len(images))
            return fast.features(theta, filled)[: len(images)].to(images.dtype)

        return seen

    def features(self, network: nn.Module, images: Tensor, step: int) -> Tensor:
        """Compute the input (B, F) of the network's last layer, in float32 or wider.

        Dropout is seeded by the step.
        """
        device = images.device
        with self.seeded(network, step), autocast(self.problem.networks.precision, device):
            result: Tensor = network.features(images)  # type: ignore[operator]
        return result.flatten(1).to(images.dtype)

    def seeded(self, network: nn.Module, step: int) -> AbstractContextManager[None]:
        """Seed dropout by the step, if the network has any: forking generators takes time."""
        if not any(isinstance(part, nn.modules.dropout._DropoutNd) for part in network.modules()):
            return nullcontext()
        return global_seed(derive(self.problem.seed, "dropout", step), self.problem.device)

    @classmethod
    def work(cls, options: DistributionOptions, sizes: Sizes) -> Work:
        if sizes.coupled:  # all classes are seen at once, in a batch of any size
            return Work()
        batches = sizes.at_once(lambda per_class: options.real_per_class)
        return Work(
            features=sizes.steps * len(sizes.stages) * sizes.classes * options.real_per_class,
            feature_batches=batches,
            functions=len(batches),
        )

    @classmethod
    def words(cls, options: DistributionOptions) -> list[tuple[str, str]]:
        return [("Real examples in a step", f"{options.real_per_class:,} of each class, at most")]
