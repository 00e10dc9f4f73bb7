"""The interface of a parameterisation: stored numbers, and the images that they decode to.

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
from potstill.errors import InputError
from potstill.registry import PARAMETERISATIONS

Leaves = Mapping[str, Tensor]
"""Stored and learned tensors: name -> tensor."""
FLOAT_BYTES, SMALLEST_NORM = 4, 1e-12


@dataclass(frozen=True)
class Budget:
    """How many numbers a block may store.

    It is as many as `ipc` images of each class take, and their labels if those are learned.

    Args:
        shape: (C, H, W) of an image, (d,) of a vector.
        classes: number of classes.
        ipc: images per class that would take the same numbers, stored as pixels.
        learn_labels: whether labels are stored, K numbers each.
    """

    shape: Shape
    classes: int
    ipc: int
    learn_labels: bool = False

    @property
    def values(self) -> int:
        """Numbers in an image."""
        return math.prod(self.shape)

    @property
    def label(self) -> int:
        """Numbers in a learned label; 0 for hard labels, which follow from the order."""
        return self.classes if self.learn_labels else 0

    @property
    def of_one(self) -> int:
        """Numbers that one image of each class takes as pixels."""
        return self.classes * (self.values + self.label)

    @property
    def floats(self) -> int:
        """Numbers that the block may store in all."""
        return self.ipc * self.of_one

    def require(self, least: int, what: str, way_out: str) -> None:
        """Raise an InputError unless the budget covers `least` numbers for `what`."""
        if least > self.floats:
            needed = math.ceil(least / self.of_one)
            raise InputError(
                f"ipc must be at least {needed} in each block for {what} ({least:,} numbers), got "
                f"{self.ipc} ({self.floats:,} numbers); raise --ipc, or {way_out}"
            )

    def reduced(self, factor: int) -> Shape:
        """Return (C, H / factor, W / factor); raise an InputError if that is not whole."""
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
    """Pictures of the stored tensors, for reports.

    Args:
        title: what the pictures are.
        images: (m, C, H, W) as a network reads them, at any scale.
        tiles: images on a side of a sheet; each is shown at 1 / tiles of its size.
    """

    title: str
    images: Tensor
    tiles: int = 1


@dataclass(frozen=True)
class Parameterisation(ABC):
    """How a block stores its examples: its geometry, without the numbers.

    Decoded examples come class by class, `per_class` of each. Every subclass is one of
    `registry.PARAMETERISATIONS`.

    Args:
        budget: what the block may store.
    """

    budget: Budget
    kinds: ClassVar[tuple[str, ...]] = KINDS
    """Kinds of data that it stores."""

    Options: ClassVar[type] = Nothing
    """A frozen dataclass of `option(...)` fields."""
    pixels: ClassVar[tuple[str, ...]] = ()
    """Names of the stored tensors that hold pixels, on the scale of the examples."""

    @classmethod
    @abstractmethod
    def fitting(cls, budget: Budget, options: Any) -> Self:
        """Return the parameterisation with as many examples as the budget allows.

        `options` is an instance of `Options`.

        Raises:
            InputError: it allows none, or an option does not fit the images.
        """

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the stored tensors, without labels."""

    @property
    @abstractmethod
    def per_class(self) -> int:
        """Examples of each class that the stored tensors decode to."""

    @property
    def sharing(self) -> int:
        """Number of consecutive examples that share a stored label."""
        return 1

    @property
    def speeds(self) -> dict[str, float]:
        """Name -> factor on the outer learning rate.

        With it every stored tensor moves by the same share of its scale in a step of Adam. Other
        optimizers take no notice of it.
        """
        return dict.fromkeys(self.shapes, 1.0)

    @property
    @abstractmethod
    def words(self) -> str:
        """A description of what is stored, without labels."""

    @abstractmethod
    def noise(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw a start whose images are noise, about N(0, 1) over its L2 norm (paper D.1)."""

    @property
    def real_per_class(self) -> int:
        """Real images of each class that `from_real` takes."""
        return self.per_class

    @abstractmethod
    def from_real(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the start nearest to real images.

        `images` are class by class, `real_per_class` of each.
        """

    @abstractmethod
    def decode(self, leaves: Leaves) -> Tensor:
        """Return the images (n, C, H, W), differentiable in the stored tensors."""

    def stored(self, leaves: Leaves) -> Stored | None:
        """Return pictures of the stored tensors; None if they are the images themselves."""
        return None

    @property
    def labels_stored(self) -> int:
        """Number of labels that are stored if labels are learned."""
        return self.budget.classes * self.per_class // self.sharing

    @property
    def floats(self) -> int:
        """Numbers that are really stored, at most the budget's."""
        return sum(map(math.prod, self.shapes.values())) + self.labels_stored * self.budget.label

    @property
    def pixel_scale(self) -> float:
        """Root mean square of a pixel in an image of L2 norm 1."""
        return math.sqrt(1 / self.budget.values)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, without the set's shape and classes; see `from_plain`."""
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
    """Rebuild a parameterisation from `Parameterisation.plain`.

    Args:
        plain: the stored description.
        shape: (C, H, W) of an image, or (d,) of a vector.
        classes: number of classes.
        learn_labels: whether labels are stored.
    Raises:
        InputError: this version of potstill does not know it.
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
    """Options of a parameterisation that stores at a reduced resolution."""

    factor: int = option(
        2, "stored at 1 / this of the resolution, or so many parts on a side", low=1
    )


@lru_cache
def stretch(small: int, large: int) -> Tensor:
    """Return the matrix (large, small) of bilinear interpolation along one axis, in float64.

    `align_corners` is off.
    """
    return F.interpolate(torch.eye(small, dtype=torch.float64)[:, None], size=large, mode="linear")[
        :, 0
    ].T


def upsampled(images: Tensor, height: int, width: int) -> Tensor:
    """Upsample images (..., h, w) to (..., H, W), bilinear.

    It multiplies matrices, which repeats to the bit on every device.
    """
    sides = zip(images.shape[-2:], (height, width), strict=True)
    rows, columns = (like(stretch(small, large), images) for small, large in sides)
    made: Tensor = rows @ images @ columns.T
    return made


def downsampled(images: Tensor, height: int, width: int) -> Tensor:
    """Return the images (..., h, w) whose `upsampled` is nearest to `images`: least squares."""
    sides = zip((height, width), images.shape[-2:], strict=True)
    rows, columns = (
        like(torch.linalg.pinv(stretch(small, large)), images) for small, large in sides
    )
    fitted: Tensor = rows @ images @ columns.T
    return fitted


def like(matrix: Tensor, images: Tensor) -> Tensor:
    """Return a matrix in the type and on the device of the images.

    The type comes first: MPS has no float64.
    """
    return matrix.to(images.dtype).to(images.device)


def unit(small: Tensor, height: int, width: int) -> Tensor:
    """Divide each image (n, C, h, w) by the L2 norm that it has upsampled to H x W."""
    norms = upsampled(small, height, width).flatten(1).norm(dim=1)
    normed: Tensor = small / norms.clamp_min(SMALLEST_NORM).view(-1, 1, 1, 1)
    return normed


def size_words(shape: tuple[int, ...]) -> str:
    """Return a shape as text, as in 3 x 16 x 16."""
    return " x ".join(map(str, shape))
