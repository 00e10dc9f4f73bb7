"""Ridge regression in closed form: what a kernel learns from a few examples.

    p(x) = k(x, S) (k(S, S) + r tr(k(S, S)) / n I)^(-1) y,

S being n examples with targets y. Classes are told by numbers around 0: targets less 1 / K.
"""

import torch
from torch import Tensor


def centred(targets: Tensor) -> Tensor:
    """Return targets (n, K) less 1 / K, which is what a regression is trained on."""
    return targets - 1 / targets.shape[1]


def coefficients(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return (gram + ridge tr(gram) / n I)^(-1) targets, computed in float64; differentiable.

    Where that has no Cholesky factor, since the matrix is singular or not finite, all is NaN.

    Args:
        gram: (n, n), symmetric.
        targets: (n, K).
        ridge: relative to the mean of the diagonal.
    """
    exact = doubled(gram)
    added = ridge * exact.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(
        exact + added * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    )
    solved = torch.cholesky_solve(doubled(targets), factor)
    return torch.where(failed > 0, torch.nan, solved)


def doubled(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its own device has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
