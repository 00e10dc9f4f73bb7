"""Statistics of training examples, to which a preprocessing is fitted."""

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST_NORM = 1e-8


def centred(images: Tensor) -> Tensor:
    """Return (N, D): each image less its own mean, divided by its own norm."""
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    # Again: the mean of a constant image is rounded, and the division would blow the remainder up
    # to norm 1.
    flat = flat - flat.mean(1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / norm.clamp_min(SMALLEST_NORM)


def typical(images: Tensor) -> dict[str, Tensor]:
    """Return "typical" (2,): mean and standard deviation of an image's pixels; {} for vectors."""
    if images.ndim != 4:
        return {}
    flat = images.flatten(1)
    return {"typical": torch.stack((flat.mean(), flat.std(1, correction=0).mean()))}


def ranges(chunks: Iterable[Tensor]) -> Tensor:
    """Return (3, d): least value, mean and greatest value of each feature.

    Args:
        chunks: the vectors, in pieces (n, d).
    """
    parts = [(part.amin(0), part.double().mean(0), part.amax(0), len(part)) for part in chunks]
    mean = average(({"mean": mean}, size) for _, mean, _, size in parts)["mean"]
    low = torch.stack([low for low, _, _, _ in parts]).amin(0)
    return torch.stack((low, mean, torch.stack([high for _, _, high, _ in parts]).amax(0)))


def average(parts: Iterable[tuple[dict[str, Tensor], int]]) -> dict[str, Tensor]:
    """Return the means over all examples, from (means over n examples, n) pairs."""
    totals: dict[str, Tensor] = {}
    count = 0
    for means, size in parts:
        for name, mean in means.items():
            if name not in totals:
                totals[name] = torch.zeros_like(mean)
            totals[name].add_(mean, alpha=size)
        count += size
    return {name: total.div_(count) for name, total in totals.items()}
