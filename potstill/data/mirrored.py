"""Whether mirrored images are images of the same classes, as of cats, or are not, as of digits."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.data.splits import Split
from potstill.seeds import generator

LOOKED_AT, SIDE, RIDGE, SURE = 4000, 16, 0.1, 2.0


def mirrored_alike(split: Split, classes: int) -> bool:
    """Return whether a linear classifier knows mirrored images as well as images as they are.

    Ridge regression on one-hot labels learns from half of the images that are looked at, at most 16
    pixels a side, and sorts the others. Where it does so no better than by chance nothing is known,
    and the answer is no. Else mirrored ones must not do worse by more than two standard errors of
    the difference between pairs (McNemar 1947).

    Args:
        split: train images, preprocessed.
        classes: number of classes.
    """
    rows = torch.randperm(len(split), generator=generator(0, "mirrored"))[:LOOKED_AT]
    images, labels = split.take(rows)
    if len(labels) < 2:
        return False
    images, labels = images.float().cpu(), labels.cpu()
    if min(images.shape[2:]) > SIDE:
        images = F.adaptive_avg_pool2d(images, SIDE)
    half = len(labels) // 2
    classify = linear_classifier(images[:half], F.one_hot(labels[:half], classes).float())
    told, others = labels[half:], images[half:]
    right, mirrored = (classify(some) == told for some in (others, others.flip(3)))
    share, chance = float(right.float().mean()), 1 / classes
    if share - chance <= SURE * (chance * (1 - chance) / len(told)) ** 0.5:
        return False
    lost, won = float((right & ~mirrored).sum()), float((mirrored & ~right).sum())
    return lost - won <= SURE * math.sqrt(lost + won)


def linear_classifier(images: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a ridge regression of targets (n, K) on pixels; return a function: images -> classes."""
    rows = images.flatten(1)
    mean = rows.mean(0)
    rows = rows - mean
    gram = rows.T @ rows
    ridge = RIDGE * gram.trace() / len(gram) + torch.finfo(gram.dtype).tiny
    weights = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram)), rows.T @ (targets - targets.mean(0))
    )
    return lambda some: ((some.flatten(1) - mean) @ weights + targets.mean(0)).argmax(1)
