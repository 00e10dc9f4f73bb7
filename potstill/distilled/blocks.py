"""Blocks of learned examples, and what they are before distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from potstill.data.splits import NOUNS, Split, kind_of, sample_per_class
from potstill.errors import InputError
from potstill.parameterisations.base import Budget, Parameterisation
from potstill.parameterisations.pixels import Pixels
from potstill.seeds import generator


@dataclass(frozen=True)
class Block:
    """Examples that were distilled together: equally many of every class, class by class.

    Args:
        leaves: the tensors that are stored and learned, by name: those that the parameterisation
            decodes to images and, if labels are learned, "targets" (m, K).
        parameterisation: how leaves decode to examples.
    """

    leaves: Mapping[str, Tensor]
    parameterisation: Parameterisation

    @classmethod
    def of_pixels(cls, images: Tensor, classes: int, targets: Tensor | None = None) -> "Block":
        """Make a block of images, equally many of each class, class by class.

        Args:
            images: (n, C, H, W) or (n, d).
            classes: number of classes.
            targets: (n, K) learned targets; None: one-hot, not learned.
        """
        budget = Budget(
            tuple(images.shape[1:]),
            classes,
            len(images) // classes,
            learn_labels=targets is not None,
        )
        return cls(
            {"images": images} | ({} if targets is None else {"targets": targets}), Pixels(budget)
        )

    @cached_property
    def images(self) -> Tensor:
        """The images (n, C, H, W) or vectors (n, d), as a network reads them."""
        return self.parameterisation.decode(self.leaves)

    @property
    def labels(self) -> Tensor:
        """The class of each example, (n,)."""
        one, leaf = self.parameterisation, next(iter(self.leaves.values()))
        return torch.arange(one.budget.classes, device=leaf.device).repeat_interleave(one.per_class)

    @cached_property
    def targets(self) -> Tensor:
        """The targets (n, K) that a network is trained on; one-hot unless learned."""
        if "targets" in self.leaves:
            return self.leaves["targets"].repeat_interleave(self.parameterisation.sharing, dim=0)
        one, leaf = self.parameterisation, next(iter(self.leaves.values()))
        return torch.nn.functional.one_hot(self.labels, one.budget.classes).to(leaf)

    @property
    def ipc(self) -> int:
        """Images per class; if images are decoded, the number that the storage budget was for."""
        return self.parameterisation.budget.ipc

    @property
    def stored_bytes(self) -> int:
        """Bytes that the leaves take; hard labels follow from the order and take none."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves.values())

    def to(self, device: torch.device) -> "Block":
        """Return the same block on a device."""
        return Block(
            {name: leaf.to(device) for name, leaf in self.leaves.items()}, self.parameterisation
        )


def initial_blocks(
    kind: str,
    parameterisations: Sequence[Parameterisation],
    train: Split,
    seed: int,
    device: torch.device,
    names: Sequence[str] = (),
) -> tuple[Block, ...]:
    """Make the blocks before distillation, all different; their labels are one-hot.

    Args:
        kind: "gaussian": noise whose images have norm about 1 (paper D.1); "normal": the nearest
            to values N(0, 1); "real": the nearest to random train images.
        parameterisations: one for each block.
        train: where real images come from, preprocessed.
        seed: of the draw.
        device: where the blocks live.
        names: of the classes, for messages.
    Raises:
        InputError: a class has fewer train images than the blocks' budget.
    """
    budget, ipc = parameterisations[0].budget, sum(one.budget.ipc for one in parameterisations)
    counts = torch.bincount(train.labels, minlength=budget.classes)
    least = int(counts.min())
    if least < ipc:
        noun, label = NOUNS[kind_of(budget.shape)], int(counts.argmin())
        name = names[label] if names else str(label)
        raise InputError(
            f"ipc must be at most the smallest class's number of train {noun}s (after the held-out "
            f"shares), {least} in class {name!r}, got {ipc}"
        )
    rng, wanted = (
        generator(seed, "initial images"),
        sum(one.real_per_class for one in parameterisations),
    )
    # What decodes to more images than a class has takes some again.
    rows = torch.arange(wanted) % min(wanted, least)
    if kind == "real":
        chosen = sample_per_class(train.labels, budget.classes, min(wanted, least), rng).view(
            budget.classes, -1
        )[:, rows]
    made, first = [], 0
    for one in parameterisations:
        if kind == "real":
            leaves = one.from_real(
                train.take(chosen[:, first : first + one.real_per_class].flatten())[0], rng
            )
            first += one.real_per_class
        elif kind == "normal":
            count = budget.classes * one.real_per_class
            leaves = one.from_real(torch.randn(count, *budget.shape, generator=rng), rng)
        else:
            leaves = one.noise(rng)
        if budget.learn_labels:
            labels = torch.arange(budget.classes).repeat_interleave(
                one.labels_stored // budget.classes
            )
            leaves["targets"] = torch.nn.functional.one_hot(labels, budget.classes).float()
        made.append(Block(leaves, one).to(device))
    return tuple(made)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the parts; a single part is not copied, which saves memory."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
