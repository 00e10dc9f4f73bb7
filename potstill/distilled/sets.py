"""The distilled set: blocks of learned examples with all that is needed to train on them."""

import warnings
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from potstill.data.arrays import as_array, as_vectors
from potstill.data.decoding import PADDED_SIDE, UNPADDED_SIDE
from potstill.data.preprocessing import Preprocess
from potstill.data.splits import NOUNS, Shape, kind_of
from potstill.distilled.blocks import Block, joined
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError, first_line
from potstill.parameterisations.pixels import Pixels
from potstill.records.metadata import SetMetadata
from potstill.records.plain import dump

FACTOR, FEW = 4.0, 8
"""How many times as great the values of real data may be, or as small; examples that tell it."""


def other_scale(greatest: float, known: tuple[float, float]) -> str:
    """Say that values are on another scale than those that a set was distilled from; else "".

    Args:
        greatest: the greatest absolute value.
        known: the least and the greatest value of those; bytes count as 0 to 1.
    """
    reach = max(map(abs, known))
    if reach / FACTOR <= greatest <= reach * FACTOR:
        return ""
    word = "more" if greatest > reach else "less"
    return (
        f"reach {word} than those of the data that the set was distilled from, {greatest:.3g} and "
        f"{reach:.3g} (bytes count as 0 to 1); give them on the same scale"
    )


def as_tensor(real: Any) -> Tensor:
    """Return real images as a tensor; raise an InputError if they are none."""
    try:
        return torch.as_tensor(real)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"real images must be a tensor or an array, got {real!r:.80} ({first_line(error)})"
        ) from error


def require_features(
    rule: str, got: tuple[str, ...], wanted: tuple[str, ...], way_out: str
) -> None:
    """Raise an InputError if features have other names, or the same ones in another order.

    Args:
        rule: what must hold.
        got: their names; () if they have none, which fits.
        wanted: the names that they should have; () likewise.
        way_out: what to do.
    """
    if got and wanted and got != wanted:
        other, first = next(pair for pair in zip(got, wanted, strict=True) if pair[0] != pair[1])
        raise InputError(
            f"{rule}, in its order; the first that differs is {other!r} in place of {first!r}; "
            f"{way_out}"
        )


def require_set(given: Any) -> None:
    """Raise an InputError unless a set was given."""
    if not isinstance(given, DistilledSet):
        raise InputError(
            f"the set must be a DistilledSet, as potstill.load gives, got {given!r:.80}"
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
        """The targets (n, K): one-hot or, if learned, non-negative weights of the classes.

        Those that were learned for a regression are numbers around 1 / K.
        """
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
        made = (f"feature {number}" for number in range(1, self.shape[0] + 1))
        return self.known_features or tuple(made)

    @property
    def known_features(self) -> tuple[str, ...]:
        """The name of each feature, where the real data had names; else ()."""
        data = self.metadata.data
        return (data.features if data else ()) or self.metadata.features

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
        Warns:
            UserWarning: they are on another scale than the data that the set was distilled from.
        Raises:
            InputError: another shape than the set's.
        """
        if self.kind == "vector":
            return self.fitted(self.on_the_scale(self.real_vectors(real)))
        images = as_tensor(real)
        if images.dtype == torch.bool:
            raise InputError(
                "real images must be whole numbers 0..255 or floats, got true and false"
            )
        if not images.is_floating_point() and images.numel():
            low, high = int(images.min()), int(images.max())
            if low < 0 or high > 255:
                raise InputError(f"real images of whole numbers must be 0..255, got {low}..{high}")
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
        return self.fitted(self.on_the_scale(images))

    def on_the_scale(self, real: Tensor) -> Tensor:
        """Return real examples; warn if they are on another scale than the set's were."""
        if not real.isfinite().all():
            raise InputError(f"real {self.noun}s must be finite numbers, got NaN or infinity")
        known = self.metadata.data
        if known and known.values and real.numel():
            told = other_scale(float(real.abs().max()), known.values)
            # A few images may be dark.
            if told and (len(real) >= FEW or told.startswith("reach more")):
                warnings.warn(f"values of these {self.noun}s {told}", stacklevel=3)
        return real

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
                f"ipc must be one that the set holds, {held}, got {ipc}; --boost-blocks makes "
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
