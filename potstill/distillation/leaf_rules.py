"""How the outer optimiser treats each leaf of a run: its rate, its bounds, what of it stays."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How the outer optimiser treats a leaf.

    Args:
        lr: its learning rate.
        clipped: whether its gradient is clipped and counts in the norm that decides on clipping.
        least: lower bound of its values; None: no bound.
        bounds: least and greatest values, which broadcast to it; None: no bounds.
        still: (n,) which of its rows stay as they are, to the byte; None: none.
    """

    lr: float
    clipped: bool = False
    least: float | None = None
    bounds: tuple[Tensor, Tensor] | None = None
    still: Tensor | None = None

    def held(self, leaf: Tensor, other: Tensor) -> Tensor:
        """Return `other`, with the rows of `leaf` that stay as they are."""
        return other if self.still is None else torch.where(rows_of(self.still, leaf), leaf, other)

    def free(self, grad: Tensor) -> Tensor:
        """Return a gradient with zeros in the rows that stay as they are."""
        return grad if self.still is None else grad.masked_fill(rows_of(self.still, grad), 0.0)

    def bounded(self, leaf: Tensor) -> Tensor:
        """Return the nearest values within the bounds."""
        if self.bounds:
            leaf = leaf.clamp(*self.bounds)
        return leaf if self.least is None else leaf.clamp_min(self.least)


def rows_of(which: Tensor, leaf: Tensor) -> Tensor:
    """Return a mask of rows (n,) so that it broadcasts to a leaf (n, ...)."""
    return which.view(-1, *[1] * (leaf.ndim - 1))
