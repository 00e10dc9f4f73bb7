"""The distilled set: blocks of learned examples with all that is needed to train on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from potstill.config.config import Resolved
from potstill.config.options import declared
from potstill.data.decoding import PADDED_SIDE, UNPADDED_SIDE
from potstill.data.preprocessing import Preprocess
from potstill.data.sources import as_array, as_vectors
from potstill.data.splits import NOUNS, Shape, Split, kind_of, sample_per_class
from potstill.engine.optimizers import Adam, Optimizer
from potstill.parameterisations.base import Budget, Parameterisation
from potstill.parameterisations.pixels import Pixels
from potstill.records.metadata import SetMetadata
from potstill.records.plain import dump
from potstill.registry import OPTIMIZERS, InputError
from potstill.seeds import generator


def tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the lists of plain data, as JSON gives them back, to tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }


@dataclass(frozen=True)
class Recipe:
    """How to train a network on the set, by the inner loop of distillation, for `steps` steps.

    Args:
        model: registered name or "package.module:factory".
        width: channels or units, for registered models.
        depth: blocks or layers, for registered models.
        norm: normalisation, for the ConvNet.
        optimizer: with its own options.
        lr: its learning rate.
        batch_per_class: synthetic images of a class in a batch.
        classes_per_batch: random classes in a batch.
        augment: augmentation operations, one a batch.
        steps: how many steps.
        precision: "float32", or "bfloat16" for the arithmetic in the network.
        batch_size: shuffled batches of so many examples, epoch after epoch; None: by class, as
            above.
        learner: what learns from the set, a name in the registry.
    """

    model: str = "convnet"
    width: int = 128
    depth: int | str = "auto"
    norm: str = "instance"
    optimizer: Optimizer = Adam()
    lr: float = 0.001
    batch_per_class: int = 1
    classes_per_batch: int = 10
    augment: tuple[str, ...] = ()
    steps: int = 300
    precision: str = "float32"
    batch_size: int | None = None
    learner: str = "network"

    @classmethod
    def of(cls, config: Resolved, steps: int) -> "Recipe":
        """Return the recipe that trains for so many steps as in the inner loop of a run."""
        inner, model = config.inner, config.model.options
        return cls(
            model=config.model.name,
            width=getattr(model, "width", 1),
            depth=getattr(model, "depth", "auto"),
            norm=getattr(model, "norm", "instance"),
            optimizer=config.inner_optimizer.options,
            lr=inner.inner_lr,
            batch_per_class=inner.batch_per_class,
            classes_per_batch=inner.classes_per_batch,
            augment=inner.augment,
            steps=steps,
            precision=inner.precision,
        )

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}
        name = OPTIMIZERS.name_of(type(self.optimizer))
        own = {
            item.name: getattr(self.optimizer, item.name)
            for item, _ in declared(type(self.optimizer))
        }
        return {**known, "optimizer": {"name": name, **own}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Recipe":
        """Return the recipe of plain data that `plain` gave."""
        known: dict[str, Any] = tuples(plain)
        own: dict[str, Any] = tuples(known.pop("optimizer"))
        return cls(optimizer=OPTIMIZERS[own.pop("name")](**own), **known)

    @property
    def model_options(self) -> dict[str, Any]:
        """The options of the model that `models.resolve` takes."""
        return {"width": self.width, "depth": self.depth, "norm": self.norm}


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


class DistilledSet(Dataset[tuple[Tensor, Tensor]]):
    """A distilled set, as a data set of (image, target) pairs.

    Args:
        blocks: the examples; a nested set has several, and a prefix of blocks is a set of its own.
        class_names: name of each class.
        fitted: the preprocessing that the real data went through.
        recipe: how a network is to be trained on it.
        learned_labels: whether targets are soft and learned.
        metadata: method, configuration, seed, versions, data, accuracy, as far as they are known.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        class_names: tuple[str, ...],
        fitted: Preprocess,
        recipe: Recipe,
        *,
        learned_labels: bool = False,
        metadata: SetMetadata | None = None,
    ):
        self.blocks = blocks
        self.class_names = class_names
        self.fitted = fitted
        self.recipe = recipe
        self.learned_labels = learned_labels
        self.metadata = metadata or SetMetadata()

    @property
    def meta(self) -> dict[str, Any]:
        """`metadata` as plain data, as the file holds it; what is not known is left out."""
        plain: dict[str, Any] = dump(self.metadata)
        return plain

    def with_blocks(self, blocks: tuple[Block, ...]) -> "DistilledSet":
        """Return a set with other blocks and without the metadata of this one."""
        return DistilledSet(
            blocks, self.class_names, self.fitted, self.recipe, learned_labels=self.learned_labels
        )

    @cached_property
    def images(self) -> Tensor:
        """The images (n, C, H, W) or vectors (n, d) that a network trains on."""
        return joined([block.images for block in self.blocks])

    @cached_property
    def targets(self) -> Tensor:
        """The targets (n, K), as non-negative weights of the classes; one-hot unless learned."""
        return joined([block.targets for block in self.blocks])

    @cached_property
    def labels(self) -> Tensor:
        """The class of each example, (n,)."""
        return torch.cat([block.labels for block in self.blocks])

    @property
    def pixels(self) -> Tensor:
        """Pictures (n, C, H, W) in [0, 1] for the eye, see `Preprocess.pictures`.

        Train on `images`, not on these.
        """
        return self.fitted.pictures(self.images)

    @property
    def ipc(self) -> int:
        """Images per class; if images are decoded, the number that the storage budget was for."""
        return sum(block.ipc for block in self.blocks)

    @property
    def per_class(self) -> int:
        """Images of each class that a network trains on: `ipc`, or more if images are decoded."""
        return sum(block.parameterisation.per_class for block in self.blocks)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the learned numbers, without the preprocessing and metadata in the file."""
        return sum(block.stored_bytes for block in self.blocks)

    @property
    def stored(self) -> str:
        """A phrase that says what is stored."""
        one, each = (
            self.blocks[0].parameterisation,
            " in each block" if len(self.blocks) > 1 else "",
        )
        labels = (
            f", {one.labels_stored:,} labels of {len(self.class_names)}"
            if self.learned_labels
            else ""
        )
        return f"{one.words}{labels}{each}; {self.stored_bytes:,} bytes{' in all' if each else ''}"

    @property
    def decoded(self) -> bool:
        """Whether the images are decoded from other tensors, which are stored."""
        return any(not isinstance(block.parameterisation, Pixels) for block in self.blocks)

    @property
    def shape(self) -> Shape:
        """The shape of an example: (C, H, W) of an image, (d,) of a vector."""
        return self.blocks[0].parameterisation.budget.shape

    @property
    def kind(self) -> str:
        """The kind of data, "image" or "vector"."""
        return kind_of(self.shape)

    @property
    def noun(self) -> str:
        """The word for an example, "image" or "row"."""
        return NOUNS[self.kind]

    @property
    def rows(self) -> Tensor:
        """Vectors (n, d) in the units of the real data; preprocessed, they are `images`.

        Raises:
            InputError: the set holds images.
        """
        if self.kind != "vector":
            raise InputError(
                "rows are of a set of vectors, this one holds images; take .images or .pixels"
            )
        return self.fitted.inverse(self.images)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each feature of vectors; "feature 1", ... if the data have no names."""
        known = self.meta.get("data", {}).get("features")
        return tuple(known or (f"feature {number}" for number in range(1, self.shape[0] + 1)))

    def __len__(self) -> int:
        return self.per_class * len(self.class_names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (image, class) or, if the labels were learned, (image, weights (K,)).

        torch's cross-entropy takes either.
        """
        return self.images[index], (self.targets if self.learned_labels else self.labels)[index]

    def __repr__(self) -> str:
        return (
            f"DistilledSet({self.per_class} of each of {len(self.class_names)} classes, "
            f"{self.shape}, {self.fitted.name})"
        )

    def preprocess(self, real: Any) -> Tensor:
        """Prepare real images for a network that was trained on this set.

        Args:
            real: tensor or array, (N, C, H, W), grey (N, H, W), or one (C, H, W); whole numbers
                0..255, or floats on the scale of the data it was distilled from ([0, 1] for image
                files). 28 x 28 images are padded where the set's were. For a set of vectors, (N,
                d), or one (d,), or a data frame with its columns in the set's order.
        Returns:
            (N, C, H, W) or (N, d) float32.
        Raises:
            InputError: another shape than the set's.
        """
        if self.kind == "vector":
            return self.fitted(self.real_vectors(real))
        images = torch.as_tensor(real)
        if images.dtype == torch.bool:
            raise InputError(
                "real images must be whole numbers 0..255 or floats, got true and false"
            )
        images = images.float() if images.is_floating_point() else images.float() / 255
        if images.ndim == 3:
            images = images[:, None] if self.shape[0] == 1 and len(images) != 1 else images[None]
        if images.shape[-2:] == (UNPADDED_SIDE, UNPADDED_SIDE) and self.shape[1:] == (
            PADDED_SIDE,
            PADDED_SIDE,
        ):
            images = torch.nn.functional.pad(images, [(PADDED_SIDE - UNPADDED_SIDE) // 2] * 4)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise InputError(
                f"real images must have shape (N, {wanted}), got {tuple(images.shape)}"
            )
        return self.fitted(images)

    def real_vectors(self, real: Any) -> Tensor:
        """Return real vectors (N, d) as float32.

        Raises:
            InputError: the number or the names of the features differ from the set's.
        """
        columns = tuple(map(str, getattr(real, "columns", ())))
        if columns and "features" in self.meta.get("data", {}) and columns != self.feature_names:
            raise InputError(
                f"real rows must have the columns {', '.join(self.feature_names)}, got "
                f"{', '.join(columns)}"
            )
        rows = (
            real
            if isinstance(real, Tensor)
            else torch.from_numpy(as_vectors("real rows", as_array("real rows", real)))
        )
        rows = rows.float()[None] if rows.ndim == 1 else rows.float()
        if rows.ndim != 2 or tuple(rows.shape[1:]) != self.shape:
            raise InputError(
                f"real rows must have shape (N, {self.shape[0]}), got {tuple(rows.shape)}"
            )
        return rows

    @property
    def budgets(self) -> tuple[int, ...]:
        """Images per class of every prefix of blocks: the first block, the first two, ... all."""
        return tuple(accumulate(block.ipc for block in self.blocks))

    def prefix(self, ipc: int) -> "DistilledSet":
        """Return the set of the first blocks that hold `ipc` images per class.

        It has the training length and the accuracy that were measured for it.

        Raises:
            InputError: no blocks add up to it.
        """
        if ipc not in self.budgets:
            held = ", ".join(map(str, self.budgets))
            raise InputError(
                f"ipc must be a budget that the set holds, {held}, got {ipc}; --boost-blocks makes "
                "sets that hold several"
            )
        own = tuple(budget for budget in self.metadata.budgets if budget.ipc <= ipc)
        recipe, metadata = self.recipe, self.metadata
        if own:
            recipe = replace(recipe, steps=own[-1].steps, lr=own[-1].lr)
            metadata = replace(metadata, budgets=own, accuracy=own[-1].accuracy)
        return DistilledSet(
            self.blocks[: self.budgets.index(ipc) + 1], self.class_names, self.fitted, recipe,
            learned_labels=self.learned_labels, metadata=metadata,
        )  # fmt: skip


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


def initial_blocks(
    kind: str,
    parameterisations: Sequence[Parameterisation],
    train: Split,
    seed: int,
    device: torch.device,
) -> tuple[Block, ...]:
    """Make the blocks before distillation, all different; their labels are one-hot.

    Args:
        kind: "gaussian": noise whose images have norm about 1 (paper D.1); "real": the nearest to
            random train images.
        parameterisations: one for each block.
        train: where real images come from, preprocessed.
        seed: of the draw.
        device: where the blocks live.
    Raises:
        InputError: a class has fewer train images than the blocks' budget.
    """
    budget, ipc = parameterisations[0].budget, sum(one.budget.ipc for one in parameterisations)
    counts = torch.bincount(train.labels, minlength=budget.classes)
    least = int(counts.min())
    if least < ipc:
        noun = NOUNS[kind_of(budget.shape)]
        raise InputError(
            f"ipc must be at most the smallest class's number of train {noun}s (after the held-out "
            f"shares), {least} in class {int(counts.argmin())}, got {ipc}"
        )
    rng, wanted = (
        generator(seed, "initial images"),
        sum(one.real_per_class for one in parameterisations),
    )
    # What decodes to more images than a class has takes some again.
    places = torch.arange(wanted) % min(wanted, least)
    if kind == "real":
        chosen = sample_per_class(train.labels, budget.classes, min(wanted, least), rng).view(
            budget.classes, -1
        )[:, places]
    made, first = [], 0
    for one in parameterisations:
        if kind == "real":
            leaves = one.from_real(
                train.take(chosen[:, first : first + one.real_per_class].flatten())[0], rng
            )
            first += one.real_per_class
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
