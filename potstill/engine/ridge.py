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


class LeastSquares:
    """Least squares over many equations, taken some at a time: the least norm of all solutions.

    The equations are kept as the triangular factor of what came so far, which has the same
    solutions.

    Args:
        unknowns: rows of a solution.
    """

    def __init__(self, unknowns: int):
        self.unknowns = unknowns
        self.count = 0
        self.triangle: Tensor | None = None

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """Take equations rows @ solution = wanted, of (m, unknowns) and (m, K), in float64."""
        both = torch.cat([rows, wanted], 1)
        if self.triangle is not None:
            both = torch.cat([self.triangle, both])
        self.triangle = torch.linalg.qr(both, mode="r").R
        self.count += len(rows)

    def solved(self) -> tuple[Tensor, Tensor]:
        """Return the solution (unknowns, K), and the mean square of what is wrong with it.

        All is NaN if an equation was not finite.
        """
        assert self.triangle is not None  # something was added
        left, right = self.triangle[:, : self.unknowns], self.triangle[:, self.unknowns :]
        if not bool(self.triangle.isfinite().all()):
            solution = torch.full_like(right[:1], torch.nan).expand(self.unknowns, -1)
        else:
            solution = torch.linalg.pinv(left) @ right
        wrong = (left @ solution - right).square().sum()
        return solution, wrong / (self.count * right.shape[1])


def doubled(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its own device has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
