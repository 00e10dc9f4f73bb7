"""Which distilled examples make up a training batch."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchPlan:
    """Which synthetic examples make up a batch: some of each class, without replacement.

    Args:
        labels: (n,) class of each example.
        classes: number of classes.
        per_class: examples of a class in a batch; all, if it has no more.
        classes_per_batch: random classes in a batch.
    """

    labels: Tensor
    classes: int
    per_class: int
    classes_per_batch: int
    members: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        labels = self.labels.cpu()
        object.__setattr__(
            self, "members", [torch.nonzero(labels == label)[:, 0] for label in range(self.classes)]
        )

    def draw(self, rng: torch.Generator) -> Tensor:
        """Draw the indices of one batch, on the CPU."""
        chosen: Iterable[int] = range(self.classes)
        if self.classes_per_batch < self.classes:
            chosen = torch.randperm(self.classes, generator=rng)[: self.classes_per_batch].tolist()
        picks = []
        for label in chosen:
            members = self.members[label]
            if self.per_class < len(members):
                members = members[torch.randperm(len(members), generator=rng)[: self.per_class]]
            picks.append(members)
        return torch.cat(picks)
