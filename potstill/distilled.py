"""The distilled set: blocks of learned examples with all that is needed to train on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from potstill.config import Config
from potstill.data import Split, sample_per_class
from potstill.images import PADDED_SIDE, UNPADDED_SIDE
from potstill.preprocess import Preprocess
from potstill.registry import InputError
from potstill.seeds import generator


@dataclass(frozen=True)
class Recipe:
    """How a network is to be trained on the set; the same inner loop as in distillation, for `steps` steps.

    Args:
        model: registered name or "package.module:factory".
        width: channels or units, for registered models.
        depth: blocks or layers, for registered models.
        norm: normalisation, for the ConvNet.
        optimizer: "adam" or "sgd".
        lr: its learning rate.
        momentum: of sgd.
        weight_decay: of sgd.
        lr_milestones: of sgd: steps at which the learning rate is multiplied by lr_decay.
        lr_decay: that factor.
        batch_per_class: synthetic images of a class in a batch.
        classes_per_batch: random classes in a batch.
        augment: augmentation operations, one a batch.
        steps: how many steps.
        precision: "float32", or "bfloat16" for the arithmetic in the network.
    """

    model: str = "convnet"
    width: int = 128
    depth: int | str = "auto"
    norm: str = "instance"
    optimizer: str = "adam"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_milestones: tuple[int, ...] = ()
    lr_decay: float = 0.2
    batch_per_class: int = 1
    classes_per_batch: int = 10
    augment: tuple[str, ...] = ()
    steps: int = 300
    precision: str = "float32"

    @classmethod
    def of(cls, config: Config, steps: int) -> "Recipe":
        """As in the inner loop of a run whose every "auto" is resolved, for so many steps."""
        inner = config.inner
        return cls(
            inner.model, inner.width, inner.depth, inner.norm, inner.inner_optimizer, inner.inner_lr, inner.momentum,
            inner.weight_decay, inner.lr_milestones, inner.lr_decay, int(inner.batch_per_class),
            int(inner.classes_per_batch), inner.augment, steps, str(config.run.precision),
        )  # fmt: skip

    @property
    def model_options(self) -> dict[str, Any]:
        """What `models.resolve` takes."""
        return {"width": self.width, "depth": self.depth, "norm": self.norm}


@dataclass(frozen=True)
class Block:
    """Examples that were distilled together, `ipc` of every class, class by class.

    Args:
        leaves: what is learned, by name: "images" (n, C, H, W) and "targets" (n, K).
        labels: (n,) the class of each example.
        parameterisation: how leaves decode to examples; "pixels" keeps the examples themselves.
    """

    leaves: Mapping[str, Tensor]
    labels: Tensor
    parameterisation: str = "pixels"

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) as a network reads them."""
        return self.leaves["images"]

    @property
    def targets(self) -> Tensor:
        """(n, K) what a network is trained to answer; one-hot unless learned."""
        return self.leaves["targets"]

    def to(self, device: torch.device) -> "Block":
        """The same on a device."""
        leaves = {name: leaf.to(device) for name, leaf in self.leaves.items()}
        return Block(leaves, self.labels.to(device), self.parameterisation)


class DistilledSet(Dataset[tuple[Tensor, Tensor]]):
    """A distilled set, as a data set of (image, target) pairs.

    Args:
        blocks: the examples; a nested set has several, and a prefix of blocks is a set of its own.
        class_names: name of each class.
        fitted: the preprocessing that the real data went through.
        recipe: how a network is to be trained on it.
        learned_labels: whether targets are soft and learned.
        meta: method, configuration, seed, versions, data, accuracy: plain data, as it is in the file.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        class_names: tuple[str, ...],
        fitted: Preprocess,
        recipe: Recipe,
        *,
        learned_labels: bool = False,
        meta: Mapping[str, Any] | None = None,
    ):
        self.blocks = blocks
        self.class_names = class_names
        self.fitted = fitted
        self.recipe = recipe
        self.learned_labels = learned_labels
        self.meta = dict(meta or {})

    def with_blocks(self, blocks: tuple[Block, ...]) -> "DistilledSet":
        """Other examples of the same make, without what the file says of these."""
        return DistilledSet(blocks, self.class_names, self.fitted, self.recipe, learned_labels=self.learned_labels)

    @cached_property
    def images(self) -> Tensor:
        """(n, C, H, W): what a network trains on."""
        return torch.cat([block.images for block in self.blocks])

    @cached_property
    def targets(self) -> Tensor:
        """(n, K): what it is trained to answer, as non-negative weights; one-hot unless the labels were learned."""
        return torch.cat([block.targets for block in self.blocks])

    @cached_property
    def labels(self) -> Tensor:
        """(n,): the class of each example."""
        return torch.cat([block.labels for block in self.blocks])

    @property
    def pixels(self) -> Tensor:
        """(n, C, H, W) in [0, 1]: pictures for the eye, see `Preprocess.pictures`. Train on `images`, not on these."""
        return self.fitted.pictures(self.images)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self) // len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.blocks[0].images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return sum(len(block.labels) for block in self.blocks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(image, class), or (image, weights (K,)) if the labels were learned; torch's cross-entropy takes either."""
        return self.images[index], (self.targets if self.learned_labels else self.labels)[index]

    def __repr__(self) -> str:
        return f"DistilledSet({self.ipc} of each of {len(self.class_names)} classes, {tuple(self.shape)}, {self.fitted.kind})"

    def preprocess(self, real: Any) -> Tensor:
        """Make real images fit for a network that was trained on this set.

        Args:
            real: tensor or array, (N, C, H, W), grey (N, H, W), or one (C, H, W); whole numbers 0..255, or floats on the scale of
                the data it was distilled from ([0, 1] for image files). 28 x 28 images are padded where the set's were.
        Returns:
            (N, C, H, W) float32.
        Raises:
            InputError: another shape than the set's.
        """
        images = torch.as_tensor(real)
        if images.dtype == torch.bool:
            raise InputError("real images must be whole numbers 0..255 or floats, got true and false")
        images = images.float() if images.is_floating_point() else images.float() / 255
        if images.ndim == 3:
            images = images[:, None] if self.shape[0] == 1 and len(images) != 1 else images[None]
        if images.shape[-2:] == (UNPADDED_SIDE, UNPADDED_SIDE) and self.shape[1:] == (PADDED_SIDE, PADDED_SIDE):
            images = torch.nn.functional.pad(images, [(PADDED_SIDE - UNPADDED_SIDE) // 2] * 4)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise InputError(f"real images must have shape (N, {wanted}), got {tuple(images.shape)}")
        return self.fitted(images)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Images per class of every set that this one holds: of its first block, its first two, and so on up to itself."""
        sizes = (len(block.labels) // len(self.class_names) for block in self.blocks)
        return tuple(accumulate(sizes))

    def prefix(self, ipc: int) -> "DistilledSet":
        """The set of the first blocks that hold `ipc` images per class, with the training length and accuracy measured for it.

        Raises:
            InputError: no blocks add up to it.
        """
        if ipc not in self.budgets:
            held = ", ".join(map(str, self.budgets))
            raise InputError(
                f"ipc must be a budget that the set holds, {held}, got {ipc}; --boost-blocks makes sets that hold several"
            )
        own = [budget for budget in self.meta.get("budgets", ()) if budget["ipc"] <= ipc]
        recipe, meta = self.recipe, dict(self.meta)
        if own:
            recipe = replace(recipe, steps=own[-1]["steps"])
            meta |= {"budgets": own, "accuracy": own[-1]["accuracy"]}
        return DistilledSet(
            self.blocks[: self.budgets.index(ipc) + 1], self.class_names, self.fitted, recipe,
            learned_labels=self.learned_labels, meta=meta,
        )  # fmt: skip


@dataclass(frozen=True)
class BatchPlan:
    """Which synthetic examples make up a batch: of each class (or of some random classes) a few, without replacement.

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
        object.__setattr__(self, "members", [torch.nonzero(labels == label)[:, 0] for label in range(self.classes)])

    def draw(self, rng: torch.Generator) -> Tensor:
        """Positions of one batch, on the CPU."""
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


def initial_blocks(
    kind: str, sizes: Sequence[int], classes: int, shape: tuple[int, int, int], train: Split, seed: int, device: torch.device
) -> tuple[Block, ...]:
    """Blocks before distillation, all different.

    Args:
        kind: "gaussian": N(0, 1) images, each divided by its L2 norm (paper D.1); "real": random train images.
        sizes: images per class of each block.
        classes: number of classes.
        shape: (C, H, W).
        train: where real images come from, preprocessed.
        seed: of the draw.
        device: where the blocks live.
    Raises:
        InputError: a class has fewer train images than the blocks hold of it.
    """
    counts, ipc = torch.bincount(train.labels, minlength=classes), sum(sizes)
    if int(counts.min()) < ipc:
        raise InputError(
            f"ipc must be at most the smallest class's number of train images (after the held-out shares), "
            f"{int(counts.min())} in class {int(counts.argmin())}, got {ipc}"
        )
    rng = generator(seed, "initial images")
    chosen = sample_per_class(train.labels, classes, ipc, rng).view(classes, ipc) if kind == "real" else None
    made, first = [], 0
    for size in sizes:
        if chosen is not None:
            images = train.take(chosen[:, first : first + size].flatten())[0]
        else:
            noise = torch.randn(classes * size, *shape, generator=rng)
            images = (noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(device)
        made.append(class_by_class({"images": images}, classes))
        first += size
    return tuple(made)


def class_by_class(leaves: Mapping[str, Tensor], classes: int) -> Block:
    """A block of as many images of each class, one class after the other; targets that are not among the leaves are one-hot."""
    images = leaves["images"]
    labels = torch.arange(classes, device=images.device).repeat_interleave(len(images) // classes)
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return Block({**leaves, "targets": leaves.get("targets", one_hot)}, labels)
