"""What a parameterisation is: stored numbers, the images that they decode to, and how many of them
a budget buys.

Methods never see one. The outer loop asks a block for its images, and sends their gradient back
through `decode` by autograd.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.config.options import Nothing, option
from potstill.data.splits import KINDS, Shape
from potstill.registry import PARAMETERISATIONS, InputError

Leaves = Mapping[str, Tensor]
"""What is stored and learned: name -> tensor."""
FLOAT_BYTES, SMALLEST_NORM = 4, 1e-12


@dataclass(frozen=True)
class Budget:
    """What a block may store: as many numbers as so many images of each class, and their labels if
    those are learned.

    Args:
        shape: (C, H, W) of an image, (d,) of a vector.
        classes: number of classes.
        ipc: images per class that it would pay for as pixels.
        learn_labels: whether labels are stored, K numbers each.
    """

    shape: Shape
    classes: int
    ipc: int
    learn_labels: bool = False

    @property
    def values(self) -> int:
        """Numbers of an image."""
        return math.prod(self.shape)

    @property
    def label(self) -> int:
        """Numbers of a learned label; hard ones follow from the order and take none."""
        return self.classes if self.learn_labels else 0

    @property
    def of_one(self) -> int:
        """Numbers that one image of each class takes as pixels."""
        return self.classes * (self.values + self.label)

    @property
    def floats(self) -> int:
        """Numbers in all."""
        return self.ipc * self.of_one

    def require(self, least: int, what: str, way_out: str) -> None:
        """Raise an InputError unless `least` numbers, for `what`, are within it."""
        if least > self.floats:
            needed = math.ceil(least / self.of_one)
            raise InputError(
                f"ipc must be at least {needed} in each block for {what} ({least:,} numbers), got "
                f"{self.ipc} "
                f"({self.floats:,} numbers); raise --ipc, or {way_out}"
            )

    def reduced(self, factor: int) -> Shape:
        """(C, H / factor, W / factor); an InputError if that is not whole."""
        channels, height, width = self.shape
        if height % factor or width % factor:
            side = math.gcd(height, width)
            fitting = ", ".join(str(number) for number in range(1, side + 1) if side % number == 0)
            raise InputError(
                f"factor must divide the images' height and width, {height} x {width}, got "
                f"{factor}; give --factor one of {fitting}"
            )
        return channels, height // factor, width // factor


@dataclass(frozen=True)
class Stored:
    """What is stored, for the eye.

    Args:
        title: what the pictures are.
        images: (m, C, H, W) as a network reads them, at whatever scale.
        tiles: so many pictures on a side make up one, each at 1 / tiles of its size.
    """

    title: str
    images: Tensor
    tiles: int = 1


@dataclass(frozen=True)
class Parameterisation(ABC):
    """How the examples of a block are stored, as a value: its geometry, without the numbers.

    Decoded examples come class by class, `per_class` of each. Every subclass is one of
    `registry.PARAMETERISATIONS`.

    Args:
        budget: what the block may store.
    """

    budget: Budget
    kinds: ClassVar[tuple[str, ...]] = KINDS
    """The data that it stores."""

    Options: ClassVar[type] = Nothing
    """A frozen dataclass of `option(...)` fields."""

    @classmethod
    @abstractmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        """Make the one with as many examples as the budget allows; `options` is one of `Options`.

        Raises:
            InputError: it allows none, or an option does not fit the images.
        """

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what images are made of."""

    @property
    @abstractmethod
    def per_class(self) -> int:
        """Examples of each class that it decodes to."""

    @property
    def sharing(self) -> int:
        """How many examples, one after the other, share a stored label."""
        return 1

    @property
    def speeds(self) -> dict[str, float]:
        """Name -> factor on the outer learning rate, so that every leaf moves by the same share of
        its scale in a step.
        """
        return dict.fromkeys(self.shapes, 1.0)

    @property
    @abstractmethod
    def words(self) -> str:
        """What is stored, without labels."""

    @abstractmethod
    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        """A start whose images are noise, about N(0, 1) divided by its L2 norm (paper D.1)."""

    @property
    def real_per_class(self) -> int:
        """Real images of each class that `from_real` takes."""
        return self.per_class

    @abstractmethod
    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The start nearest to real images, class by class, `real_per_class` of each."""

    @abstractmethod
    def decode(self, leaves: Leaves) -> Tensor:
        """(n, C, H, W): the images, differentiable in the leaves."""

    def stored(self, leaves: Leaves) -> Stored | None:
        """Pictures of what is stored; None if the images themselves are."""
        return None

    @property
    def labels_stored(self) -> int:
        """How many labels are stored, if they are learned."""
        return self.budget.classes * self.per_class // self.sharing

    @property
    def floats(self) -> int:
        """Numbers that it really stores, at most the budget's."""
        return sum(map(math.prod, self.shapes.values())) + self.labels_stored * self.budget.label

    @property
    def pixel_scale(self) -> float:
        """Root mean square of a pixel of an image of norm 1."""
        return math.sqrt(1 / self.budget.values)

    def plain(self) -> dict[str, Any]:
        """As plain data, without what the set itself knows; `from_plain` reads it."""
        kind = PARAMETERISATIONS.name_of(type(self))
        own = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name != "budget"
        }
        return {"kind": kind, "ipc": self.budget.ipc, **own}


def from_plain(
    plain: Mapping[str, Any], shape: Shape, classes: int, learn_labels: bool
) -> Parameterisation:
    """The parameterisation that `plain` was taken of; an InputError if this potstill does not know
    it.
    """
    own = {name: value for name, value in plain.items() if name not in ("kind", "ipc")}
    try:
        made: Parameterisation = PARAMETERISATIONS[plain["kind"]](
            Budget(shape, classes, plain["ipc"], learn_labels), **own
        )
    except TypeError as error:
        raise InputError(
            f"{plain['kind']} is stored in another way than this potstill does it: {error}; change "
            "the version"
        ) from error
    return made


@dataclass(frozen=True)
class Reduced:
    """The options of what is stored at a reduced resolution."""

    factor: int = option(
        2, "stored at 1 / this of the resolution, or so many parts on a side", low=1
    )


@lru_cache
def stretch(small: int, large: int) -> Tensor:
    """(large, small): bilinear interpolation along one axis, as a matrix in float64;
    `align_corners` is off.
    """
    return F.interpolate(torch.eye(small, dtype=torch.float64)[:, None], size=large, mode="linear")[
        :, 0
    ].T


def upsampled(images: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) -> (..., H, W), bilinear; as products of matrices, which repeat to the bit on
    every device.
    """
    sides = zip(images.shape[-2:], (height, width), strict=True)
    rows, columns = (like(stretch(small, large), images) for small, large in sides)
    made: Tensor = rows @ images @ columns.T
    return made


def downsampled(images: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> (..., h, w) whose `upsampled` is nearest to the images: least squares."""
    sides = zip((height, width), images.shape[-2:], strict=True)
    rows, columns = (
        like(torch.linalg.pinv(stretch(small, large)), images) for small, large in sides
    )
    fitted: Tensor = rows @ images @ columns.T
    return fitted


def like(matrix: Tensor, images: Tensor) -> Tensor:
    """In the type and on the device of the images. The type first: MPS has no float64."""
    return matrix.to(images.dtype).to(images.device)


def unit(small: Tensor, height: int, width: int) -> Tensor:
    """(n, C, h, w), each divided by the L2 norm that it has upsampled to H x W."""
    norms = upsampled(small, height, width).flatten(1).norm(dim=1)
    normed: Tensor = small / norms.clamp_min(SMALLEST_NORM).view(-1, 1, 1, 1)
    return normed


def size_words(shape: tuple[int, ...]) -> str:
    """A shape, as in 3 x 16 x 16."""
    return " x ".join(map(str, shape))
