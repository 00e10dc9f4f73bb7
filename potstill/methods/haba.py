"""**HaBa**: trajectory matching of bases that are seen through several hallucinators.

Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022, arXiv:2210.16774. The set is
stored by `--param factorised`: every basis decodes to one example for each hallucinator. MTT's
student reads, at each of its steps, all bases through one hallucinator that is drawn anew. Two
more networks' worth of losses keep the hallucinators apart: with x_j and x_k the same bases through
two of them and F a feature extractor, the set's loss gains

    weight * mean (1 + cos(F(x_j), F(x_k))) / 2,

and F takes one step a time against it, on its cross-entropy plus `weight` times

    mean (1 - cos(F(x_j), F(x_k))) / 2 + the supervised contrastive loss of both views

(Khosla et al. 2020, arXiv:2004.11362, temperature 0.07). What differs from the authors' code: no
batch is standardised by its own mean and deviation, which theirs does everywhere but in the
distillation; the parameterisation's own departures are in `parameterisations.factorised`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.config.options import option
from potstill.data import augmentation
from potstill.engine.optimizers import SGD
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Learnable, Needs, State
from potstill.methods.trajectories import MTT, StudentOptions
from potstill.seeds import derive, global_seed

TEMPERATURE = 0.07
EXTRACTOR, EXTRACTOR_LR = SGD(momentum=0.9), 0.001


@dataclass(frozen=True)
class FactorOptions(StudentOptions):
    """Options of HaBa."""

    contrast: float = option(
        0.1, "weight of the losses that keep hallucinators apart", low=0, source="HaBa's code"
    )


class HaBa(MTT):
    """HaBa: MTT through hallucinators that an adversary keeps apart."""

    Options: ClassVar[type] = FactorOptions
    options: FactorOptions
    needs: ClassVar[Needs] = Needs(
        features=True,
        second_derivative=True,
        kinds=("image",),
        unused=MTT.needs.unused,
        augment=MTT.needs.augment,
    )
    defaults: ClassVar[dict[str, Any]] = {**MTT.defaults, "param": "factorised"}
    least_rate: ClassVar[float] = 1e-3
    through_one: ClassVar[bool] = True

    def check(self, cache: Cache) -> None:
        if self.problem.sharing < 2:
            raise InputError(
                "method haba needs bases that are seen through several hallucinators; give --param "
                "factorised and --hallucinators of at least 2"
            )
        super().check(cache)

    def start(self) -> tuple[State, Mapping[str, Learnable]]:
        theta = self.extractor_start()
        return {"extractor": theta, "velocity": torch.zeros_like(theta)}, super().start()[1]

    def extractor_start(self) -> Tensor:
        """Return the extractor's parameters (P,) before the first step."""
        return self.problem.networks.flat(self.problem.network("extractor")).theta

    def readable(self, count: int) -> int:
        return count // self.problem.sharing

    def student_rows(self, count: int, step: int) -> list[Tensor]:
        """Return what each of the student's steps reads: bases through one hallucinator."""
        bases = super().student_rows(count, step)
        rng = self.problem.rng("hallucinators", step)
        seen = torch.randint(self.problem.sharing, (len(bases),), generator=rng)
        return [
            rows * self.problem.sharing + int(one) for rows, one in zip(bases, seen, strict=True)
        ]

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        found = super().estimate(examples, learned, state, step)
        if self.options.contrast == 0:
            return found
        likeness, of_images, after = self.kept_apart(examples, state, step)
        grads = {**found.grads, "images": found.grads["images"] + of_images}
        info = {**found.info, "likeness": likeness / self.options.contrast}
        return Estimate(found.loss + likeness, grads, after, info)

    def kept_apart(
        self, examples: Examples, state: State, step: int
    ) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Compute the set's additional loss and its gradient, and take the extractor's step.

        Args:
            examples: the distilled set.
            state: of the extractor.
            step: number of the outer step.
        Returns:
            The loss, its gradient in all images, and the extractor's state after its step.
        """
        problem, sharing = self.problem, self.problem.sharing
        rng = problem.rng("pair", step)
        pair = torch.randperm(sharing, generator=rng)[:2]
        drawn = augmentation.draw(problem.recipe.augment, len(examples.labels) // sharing, rng)
        images = examples.images.detach().requires_grad_()
        views = [augmentation.apply(images[int(one) :: sharing], drawn) for one in pair]
        targets = examples.targets[::sharing].detach()
        module: Any = problem.network("extractor")
        learned = [one for one in module.parameters() if one.requires_grad]
        nn.utils.vector_to_parameters(state["extractor"], learned)
        with global_seed(derive(problem.seed, "extractor", step), problem.device):
            features = [module.features(view).flatten(1) for view in views]
            likeness = self.options.contrast * (1 + cosine(*features)).mean() / 2
            (of_images,) = torch.autograd.grad(likeness, images, retain_graph=True)
            answers = module(torch.cat([view.detach() for view in views]))
            loss = self.extractor_loss(features, answers, targets)
            grads = torch.autograd.grad(loss, learned)
        lr = {"lr": torch.tensor(EXTRACTOR_LR, device=problem.device)}
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        before = (state["extractor"], state["velocity"])
        theta, velocity = EXTRACTOR.step(before, flat, lr, step)
        return float(likeness.detach()), of_images, {"extractor": theta, "velocity": velocity}

    def extractor_loss(self, features: list[Tensor], answers: Tensor, targets: Tensor) -> Tensor:
        """Return what the extractor lowers: it is to classify, and to see both views alike.

        Args:
            features: (n, F) of the same bases through each of two hallucinators.
            answers: (2 n, K) logits of both.
            targets: (n, K).
        """
        right = F.cross_entropy(answers, torch.cat([targets, targets]))
        alike = (1 - cosine(*features)).mean() / 2
        labels = targets.argmax(1).repeat(2)
        return right + self.options.contrast * (alike + contrastive(torch.cat(features), labels))


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of corresponding rows."""
    return F.cosine_similarity(one, other, dim=1)


def contrastive(features: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss of features (n, F) with labels (n,).

    It is the mean over rows i of the mean over other rows p of the same label of
    - log(exp(z_i z_p / t) / sum over a not i of exp(z_i z_a / t)), z being features of norm 1.
    """
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    logs = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
    same = (labels[:, None] == labels) & ~itself
    return -((logs * same).sum(1) / same.sum(1).clamp_min(1)).mean()
