"""CutMix: a training batch in which some images carry a rectangle of another one."""

import torch
from torch import Tensor


def cutmix(
    images: Tensor, targets: Tensor, probability: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Paste one rectangle of other images into a batch, at some batches, and mix their targets.

    The rectangle takes the share 1 - lambda of an image, lambda ~ U(0, 1) = Beta(1, 1), less what
    lies outside; every image gets it from another one at the same place.

    Args:
        images: (B, C, H, W).
        targets: (B, K).
        probability: that a batch is mixed; 0 draws nothing.
        rng: of the draws.
    Returns:
        New images and targets, or those given.
    Source: Yun et al., "CutMix", ICCV 2019, arXiv:1905.04899.
    """
    if probability == 0 or float(torch.rand((), generator=rng)) >= probability:
        return images, targets
    height, width = images.shape[2:]
    side = (1 - float(torch.rand((), generator=rng))) ** 0.5
    spans = []
    for size in (height, width):
        centre, half = int(torch.randint(size, (), generator=rng)), int(size * side) // 2
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    other = torch.randperm(len(images), generator=rng).to(images.device)
    mixed = images.clone()
    mixed[:, :, spans[0], spans[1]] = images[other][:, :, spans[0], spans[1]]
    taken = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start) / (height * width)
    return mixed, (1 - taken) * targets + taken * targets[other]
