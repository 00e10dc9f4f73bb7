"""Preprocessing fitted on the train split and stored with the distilled set.

Each has an inverse, back to pixels or to a table's units.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potstill.config.slots import Chosen
from potstill.data.splits import KINDS, kind_of
from potstill.data.statistics import SMALLEST_NORM, average, ranges, typical
from potstill.errors import InputError
from potstill.registry import PREPROCESSING

ZCA_UP_TO = 3072
SMALLEST_STD = 1e-6
Chunks = Callable[[], Iterable[Tensor]]
"""Function without arguments -> pieces of the training data.

A piece is images (n, C, H, W) in [0, 1], or vectors (n, d).
"""
Means = Mapping[str, Tensor]
"""Name of a statistic -> its mean over all training examples."""


@dataclass(frozen=True)
class NoOptions:
    """A preprocessing without options."""


class Preprocess(ABC):
    """A fitted preprocessing, called on images in [0, 1] or on vectors.

    Each of `registry.PREPROCESSING` is a subclass, and so is one of a user's own
    ("package.module:Name").

    Args:
        tensors: what was fitted. Always, of images, "typical" (2,), the mean over train images of
            their pixels' mean and of their pixels' standard deviation; of vectors, "ranges" (3, d):
            each feature's least value, mean and greatest value over the train split. What else, its
            class says.
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS
    """Kinds of data that it takes."""
    Options: ClassVar[type] = NoOptions
    """A frozen dataclass of its options."""
    words: ClassVar[Mapping[str, str]] = {}
    """Kind of data -> a description of the preprocessing, for reports."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)

    @property
    def name(self) -> str:
        """The registered name, or "package.module:Name"."""
        return PREPROCESSING.name_of(type(self))

    @classmethod
    def statistics(cls, images: Tensor) -> dict[str, Tensor]:
        """Return the means over images that `solve` needs, in float64.

        Args:
            images: (n, C, H, W) images, or (n, d) vectors, in float64.
        """
        return {}

    @classmethod
    def solve(cls, means: Means, options: Any) -> dict[str, Tensor]:
        """Compute the tensors, in float64, from the means of `statistics` over all images.

        Raises:
            InputError: these images cannot be preprocessed so.
        """
        return {}

    @classmethod
    def fit(cls, chunks: Chunks, options: Any = None) -> Self:
        """Fit to the train split, in one pass over images or two over vectors.

        Args:
            chunks: the training examples.
            options: of the type `Options`; None: the defaults.
        Returns:
            The preprocessing, on the CPU, in float32.
        Raises:
            InputError: these examples cannot be preprocessed so.
        """
        means = average(
            ({**typical(part), **cls.statistics(part)}, len(part))
            for part in map(Tensor.double, chunks())
        )
        common = (
            {"typical": means["typical"]} if "typical" in means else {"ranges": ranges(chunks())}
        )
        tensors = {**common, **cls.solve(means, cls.Options() if options is None else options)}
        return cls({name: tensor.float().contiguous() for name, tensor in tensors.items()})

    def to(self, device: torch.device) -> Self:
        """Return the same preprocessing on a device."""
        return type(self)({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess images (N, C, H, W) in [0, 1], or vectors (N, d), to the same shape."""

    @abstractmethod
    def inverse(self, images: Tensor) -> Tensor:
        """Undo the preprocessing as far as possible."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a file keeps, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.tensors.items()}

    @classmethod
    def from_state(cls, kept: Mapping[str, Tensor]) -> Self:
        """Return the preprocessing whose `state` this is."""
        return cls(kept)

    def pictures(self, images: Tensor) -> Tensor:
        """Turn preprocessed images into pixels in [0, 1], (N, C, H, W), **for the eye only**.

        The inverse, then each image gets the mean and the standard deviation of a typical train
        image, and values outside [0, 1] are cut off. (A network with instance norm hardly sees an
        image's brightness and contrast, so distilled images come in arbitrary ones.)

        Raises:
            InputError: `images` are vectors.
        """
        if images.ndim != 4:
            raise InputError(
                "a picture shows an image, this set holds vectors; read the numbers in its rows"
            )
        back = self.inverse(images)
        flat = back.flatten(1)
        mean, std = self.tensors["typical"].to(images).unbind()
        # The data were floats on another scale, which has no black and white: mid-grey.
        if not 0 <= float(mean) <= 1:
            mean, std = torch.full_like(mean, 0.5), torch.full_like(std, 0.2)
        deviation = flat.std(1, correction=0, keepdim=True).clamp_min(SMALLEST_NORM)
        standard = (flat - flat.mean(1, keepdim=True)) / deviation
        return (standard * std + mean).clamp(0, 1).reshape(back.shape)


class Absent(Preprocess):
    """The preprocessing of a set whose file was written without it; only its name is known."""

    def __init__(self, name: str):
        super().__init__({})
        self.known_name = name

    @property
    def name(self) -> str:
        return self.known_name

    def to(self, device: torch.device) -> Self:
        return self

    @property
    def missing(self) -> str:
        """What a set without it cannot do, as a sentence."""
        return (
            f"a set exported without its preprocessing ({self.name}) can be trained on, but real "
            "examples cannot be prepared for such networks, nor its own be shown; evaluating it "
            "needs the data that it was distilled from, with --data"
        )

    def __call__(self, images: Tensor) -> Tensor:
        raise InputError(self.missing)

    def inverse(self, images: Tensor) -> Tensor:
        raise InputError(self.missing)


class Unchanged(Preprocess):
    """Examples as they are."""

    words = MappingProxyType(
        {"image": "none, pixels in [0, 1]", "vector": "none, features as they are"}
    )

    def __call__(self, images: Tensor) -> Tensor:
        return images

    def inverse(self, images: Tensor) -> Tensor:
        return images


class Normalize(Preprocess):
    """Mean 0 and standard deviation 1 over the train split, for each channel or feature.

    Its tensors are "mean" and "std", (C, 1, 1) or (d,).
    """

    words = MappingProxyType(
        {
            kind: f"each {part} to mean 0 and standard deviation 1"
            for kind, part in (("image", "channel"), ("vector", "feature"))
        }
    )

    @classmethod
    def statistics(cls, images: Tensor) -> dict[str, Tensor]:
        every = (0, 2, 3) if images.ndim == 4 else (0,)
        return {"mean": images.mean(every), "square": images.square().mean(every)}

    @classmethod
    def solve(cls, means: Means, options: Any) -> dict[str, Tensor]:
        if "typical" not in means:
            return standardisation(means)
        mean = means["mean"].view(-1, 1, 1)
        std = (means["square"].view(-1, 1, 1) - mean.square()).clamp_min(0).sqrt()
        varies = std > SMALLEST_STD * mean.abs().clamp_min(1)
        if not varies.any():
            raise InputError(
                "preprocess normalize needs train images that differ in a channel, found all alike;"
                " give other images, or --preprocess none"
            )
        # A constant channel keeps its scale: divided by next to nothing, other images would be
        # blown up in it.
        return {"mean": mean, "std": torch.where(varies, std, 1)}

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.tensors["mean"]) / self.tensors["std"]

    def inverse(self, images: Tensor) -> Tensor:
        return images * self.tensors["std"] + self.tensors["mean"]


def standardisation(means: Means) -> dict[str, Tensor]:
    """Return "mean" and "std" (d,) of features, from the means of them and their squares.

    A constant feature keeps its scale.
    """
    mean = means["mean"]
    std = (means["square"] - mean.square()).clamp_min(0).sqrt()
    # In proportion to the mean alone: a table may hold wavelengths in metres, and they are no
    # constants.
    return {"mean": mean, "std": torch.where(std > SMALLEST_STD * mean.abs(), std, 1)}


def auto_preprocessing(shape: tuple[int, ...]) -> str:
    """Return what "auto" is for examples of a shape.

    It is zca for colour images of up to 3,072 values, beyond which its matrix becomes too large,
    and normalize for everything else. That is the field's way with grey images (KIP, RFAD and FRePo
    on MNIST), and on MNIST it is worth six points (docs/speed.md).
    """
    small = torch.Size(shape).numel() <= ZCA_UP_TO
    return "zca" if small and kind_of(shape) == "image" and shape[0] > 1 else "normalize"


def preprocessing(name: str) -> type[Preprocess]:
    """Return the preprocessing class of this name; raise an InputError if there is none."""
    chosen: Any = PREPROCESSING[name]
    if not (isinstance(chosen, type) and issubclass(chosen, Preprocess)):
        raise InputError(
            f"preprocessing {name} must be a subclass of potstill.data.preprocessing.Preprocess, "
            f"got {chosen!r}"
        )
    return chosen


def fitted(chosen: Chosen, chunks: Chunks) -> Preprocess:
    """Fit the chosen preprocessing to training examples."""
    return preprocessing(chosen.name).fit(chunks, chosen.options)


def restored(name: str, kept: Mapping[str, Tensor]) -> Preprocess:
    """Return the preprocessing of this name whose `state` was kept."""
    return preprocessing(name).from_state(kept)
