"""Preprocessing fitted on the train split and stored with the distilled set, with a way back to pixels for pictures."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from potstill.registry import InputError

ZCA_UP_TO = 3072
SMALLEST_NORM = 1e-8
SMALLEST_STD = 1e-6
Chunks = Callable[[], Iterable[Tensor]]
"""Gives, each time it is called, the training images (n, C, H, W) in [0, 1], piece by piece."""


class Preprocess:
    """A fitted preprocessing; calling it turns images in [0, 1] into what the network reads.

    Args:
        kind: "none", "normalize" or "zca".
        tensors: what was fitted: always "typical", the mean over train images of their pixels' mean and of their pixels'
            standard deviation; "mean" and "std" (C, 1, 1) for normalize; the symmetric "matrix" (D, D) for zca.
    """

    def __init__(self, kind: str, tensors: Mapping[str, Tensor]):
        self.kind = kind
        self.tensors = dict(tensors)

    def to(self, device: torch.device) -> "Preprocess":
        """The same on a device."""
        return Preprocess(self.kind, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape, as the network reads it."""
        if self.kind == "normalize":
            images = (images - self.tensors["mean"]) / self.tensors["std"]
        if self.kind == "zca":
            images = (centred(images) @ self.tensors["matrix"]).view_as(images)
        return images

    def inverse(self, images: Tensor) -> Tensor:
        """The way back. For zca, where each image's own mean and norm are lost, it ends at centred images of norm 1."""
        if self.kind == "normalize":
            images = images * self.tensors["std"] + self.tensors["mean"]
        if self.kind == "zca":
            images = (images.flatten(1) @ self.unwhiten.to(images)).view_as(images)
        return images

    def state(self) -> dict[str, Tensor]:
        """What a file keeps, on the CPU: the fitted tensors, of the symmetric zca matrix only the upper triangle."""
        kept = {name: tensor.cpu() for name, tensor in self.tensors.items()}
        if "matrix" in kept:
            side = len(kept["matrix"])
            rows, columns = torch.triu_indices(side, side)
            kept["matrix"] = kept["matrix"][rows, columns]
        return kept

    @classmethod
    def from_state(cls, kind: str, kept: Mapping[str, Tensor]) -> "Preprocess":
        """The preprocessing that `state` was taken of."""
        tensors = dict(kept)
        if "matrix" in tensors:
            packed = tensors["matrix"]
            side = math.isqrt(2 * len(packed))
            rows, columns = torch.triu_indices(side, side)
            tensors["matrix"] = packed.new_empty(side, side)
            tensors["matrix"][rows, columns] = packed
            tensors["matrix"][columns, rows] = packed
        return cls(kind, tensors)

    @cached_property
    def unwhiten(self) -> Tensor:
        """The inverse of the zca matrix. It is derived, not stored."""
        inverse: Tensor = torch.linalg.inv(self.tensors["matrix"].cpu().double())
        return inverse.float()

    def pictures(self, images: Tensor) -> Tensor:
        """Images as the network reads them -> pixels in [0, 1], (N, C, H, W), **for the eye only**.

        The way back, then each image gets the mean and the standard deviation of a typical train image, and what lies
        outside [0, 1] is cut off. (A network with instance norm hardly sees an image's brightness and contrast, so
        distilled images come in arbitrary ones.)
        """
        back = self.inverse(images)
        flat = back.flatten(1)
        mean, std = self.tensors["typical"].to(images).unbind()
        if not 0 <= float(mean) <= 1:  # the data were floats on another scale, which has no black and white: mid-grey
            mean, std = torch.full_like(mean, 0.5), torch.full_like(std, 0.2)
        standard = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True).clamp_min(SMALLEST_NORM)
        return (standard * std + mean).clamp(0, 1).reshape(back.shape)


def centred(images: Tensor) -> Tensor:
    """(N, D): each image less its own mean, divided by its own norm."""
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    # Again: the mean of a constant image is rounded, and the division would blow the remainder up to norm 1.
    flat = flat - flat.mean(1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / norm.clamp_min(SMALLEST_NORM)


def resolved_kind(kind: str, shape: tuple[int, ...]) -> str:
    """`kind`, or for "auto": zca up to 3,072 values an image, beyond which its matrix grows out of hand, else normalize."""
    if kind != "auto":
        return kind
    return "zca" if torch.Size(shape).numel() <= ZCA_UP_TO else "normalize"


def fit(kind: str, chunks: Chunks, regularization: float = 0.1) -> Preprocess:
    """Fit a preprocessing to the train split.

    Args:
        kind: "none", "normalize" (per channel) or "zca".
        chunks: the training images.
        regularization: ZCA adds this times the mean eigenvalue to every eigenvalue.
    Returns:
        The preprocessing, on the CPU, in float32.
    Raises:
        InputError: zca, and every image is constant.
    Source: paper D.1 for ZCA; as its released code does it: each image less its own mean and divided by its own norm,
    C = X'X / n, W = V diag(1 / sqrt(E + regularization * mean(E))) V'. No mean over images is removed.
    """
    found = average((statistics(kind, part.double()), len(part)) for part in chunks())
    tensors = {"typical": found["typical"]}
    if kind == "normalize":
        mean = found["mean"].view(-1, 1, 1)
        std = (found["square"].view(-1, 1, 1) - mean.square()).clamp_min(0).sqrt()
        # A constant channel keeps its scale: divided by next to nothing, other images would be blown up in it.
        tensors |= {"mean": mean, "std": torch.where(std > SMALLEST_STD * mean.abs().clamp_min(1), std, 1)}
    if kind == "zca":
        if tensors["typical"][1] < SMALLEST_NORM:
            raise InputError("preprocess zca needs train images that are not constant, found none; give --preprocess none")
        values, vectors = torch.linalg.eigh(found["gram"])
        scale = (values.clamp_min(0) + regularization * values.mean()).rsqrt()
        matrix = (vectors * scale) @ vectors.T
        tensors["matrix"] = (matrix + matrix.T) / 2  # symmetric to the last bit: a file keeps one triangle
    return Preprocess(kind, {name: tensor.float().contiguous() for name, tensor in tensors.items()})


def statistics(kind: str, images: Tensor) -> dict[str, Tensor]:
    """What `fit` needs of some images (n, C, H, W), float64, as means over them: one pass over the data gives all.

    "typical" (2,): of an image's pixels, the mean and the standard deviation; "mean" and "square" (C,): of a channel's pixels
    and of their squares; "gram" (D, D): X'X / n of the centred images.
    """
    flat = images.flatten(1)
    found = {"typical": torch.stack((flat.mean(), flat.std(1, correction=0).mean()))}
    if kind == "normalize":
        found |= {"mean": images.mean((0, 2, 3)), "square": images.square().mean((0, 2, 3))}
    if kind == "zca":
        rows = centred(images)
        found["gram"] = rows.T @ rows / len(rows)
    return found


def average(parts: Iterable[tuple[dict[str, Tensor], int]]) -> dict[str, Tensor]:
    """The means over all examples, from (means over n examples, n) pairs."""
    totals: dict[str, Tensor] = {}
    count = 0
    for means, size in parts:
        totals = {name: totals.get(name, 0) + mean * size for name, mean in means.items()}
        count += size
    return {name: total / count for name, total in totals.items()}
