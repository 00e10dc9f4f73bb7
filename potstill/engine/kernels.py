"""Kernels of infinitely wide networks: what outputs of a random network, or its tangents, have in
common at two inputs.

With weights of variance `WEIGHTS` over the fan-in and biases of variance `BIASES`, S is the
covariance of a random network's activations at a position of one input and a position of another,
and T its tangent part:

    layer: S <- WEIGHTS mean(S) + BIASES, T <- WEIGHTS mean(T) + S (the new one),
           the mean over the positions that the layer reads;
    ReLU:  S <- (r + (pi - th) S) / (2 pi), T <- T (pi - th) / (2 pi),
           r = sqrt(a b - S^2), th = atan2(r, S), a and b the variances at the two positions;
    pool:  S and T <- their means over all pairs of positions in the two windows.

Without a pool over the whole image, only positions near each other matter: before a flattening
layer the same position of both, before a 2 x 2 pool twice the distance and one more. So a network
of three pools needs 15 x 15 offsets of a position, not all positions of the other image.

Source: Jacot, Gabriel & Hongler 2018, arXiv:1806.07572; Arora et al. 2019, arXiv:1904.11955, for
convolutions; the variances are those of Nguyen, Chen & Lee 2021, arXiv:2011.00050.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.errors import InputError

WEIGHTS, BIASES = 2.0, 0.01
ROUNDING = 16
"""Of a product less another one that are equal, in units of the last place."""
SAVED = 24
"""Numbers that a pair of positions takes while a tile is differentiated."""
IN_CACHE, AT_ONCE = 2**26, 2**29
"""Bytes of a tile on a CPU, whose cache holds what one operation reads, and elsewhere."""


class Kernel(NamedTuple):
    """Covariance (NNGP) and tangent kernel (NTK) of outputs, (n, m) each."""

    nngp: Tensor
    ntk: Tensor


def rectified(
    covariance: Tensor, tangent: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """Return S and T after a ReLU, differentiable also where an input meets itself.

    Args:
        covariance: S before it.
        tangent: T before it.
        first: variance of the first input at its position, broadcast to S.
        second: of the second likewise.
    """
    both = first * second
    rest = torch.addcmul(both, covariance, covariance, value=-1)
    # Where it is 0 the root's slope is infinite, and what it multiplies is 0; what rounding leaves
    # of it there would have a root 1e8 times as large in float64.
    inside = rest > ROUNDING * torch.finfo(rest.dtype).eps * both
    if torch.is_grad_enabled():
        root = torch.where(inside, torch.where(inside, rest, 1).sqrt(), 0)
    else:
        root = torch.where(inside, rest, 0).sqrt()
    half = covariance.new_full((), 0.5)
    obtuse = torch.sub(half, torch.atan2(root, covariance), alpha=1 / (2 * math.pi))
    straight = torch.mul(covariance, obtuse)
    return torch.add(straight, root, alpha=1 / (2 * math.pi)), tangent * obtuse


def dense(covariance: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Return S and T after a dense layer."""
    covariance = WEIGHTS * covariance + BIASES
    return covariance, WEIGHTS * tangent + covariance


Variances = Sequence[Tensor]
"""Of inputs, before each ReLU of a network: (n,) or, by position, (n, H, W)."""


class InfiniteNetwork(Protocol):
    """A network of infinite width."""

    def variances(self, inputs: Tensor) -> list[Tensor]:
        """Return the variances of inputs (n, ...) before each ReLU."""
        ...

    def tile(self, first: Tensor, second: Tensor, own: Variances, others: Variances) -> Kernel:
        """Return the kernel of (n, ...) and (m, ...) inputs, by what `variances` says of both."""
        ...

    def pair_bytes(self, shape: tuple[int, ...], width: int) -> int:
        """Return about what a pair of inputs takes in numbers of `width` bytes while it lasts."""
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an InputError unless it takes inputs of this shape."""
        ...


@dataclass(frozen=True)
class FullyConnected:
    """Dense layers with a ReLU between each two.

    Args:
        depth: hidden layers.
    """

    depth: int = 1

    def variances(self, inputs: Tensor) -> list[Tensor]:
        before = WEIGHTS * inputs.flatten(1).square().mean(1) + BIASES
        found = [before]
        for _ in range(self.depth - 1):
            before = WEIGHTS * before / 2 + BIASES  # a ReLU leaves half of a centred square
            found.append(before)
        return found

    def tile(self, first: Tensor, second: Tensor, own: Variances, others: Variances) -> Kernel:
        rows = first.flatten(1)
        covariance = rows @ second.flatten(1).T / rows.shape[1]
        tangent = torch.zeros_like(covariance)
        for one, other in zip(own, others, strict=True):
            covariance, tangent = dense(covariance, tangent)
            covariance, tangent = rectified(covariance, tangent, one[:, None], other)
        return Kernel(*dense(covariance, tangent))

    def pair_bytes(self, shape: tuple[int, ...], width: int) -> int:
        return SAVED * width * (self.depth + 1)

    def check(self, shape: tuple[int, ...]) -> None:
        """Take inputs of any shape."""


@dataclass(frozen=True)
class Convolutional:
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 mean pool, then a dense layer; no norm.

    Args:
        depth: blocks.
        prepended: whether a convolution and a ReLU without a pool come first.
    """

    depth: int = 3
    prepended: bool = False

    def variances(self, inputs: Tensor) -> list[Tensor]:
        planes, found = Planes.of(inputs, inputs, self.reach, paired=True), []
        for pools in self.pools:
            planes = planes.convolved()
            before = planes.variances
            planes = planes.rectified(before, shifted(before, planes.reach))
            planes = planes.pooled() if pools else planes
            found.append(before)
        return found

    def tile(self, first: Tensor, second: Tensor, own: Variances, others: Variances) -> Kernel:
        planes = Planes.of(first, second, self.reach)
        for pools, one, other in zip(self.pools, own, others, strict=True):
            planes = planes.convolved()
            planes = planes.rectified(one[:, None], shifted(other, planes.reach))
            planes = planes.pooled() if pools else planes
        return Kernel(*dense(*planes.flattened()))

    def pair_bytes(self, shape: tuple[int, ...], width: int) -> int:
        height, width_px = shape[1:]
        return SAVED * width * (2 * self.reach + 1) ** 2 * height * width_px

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or min(shape[1:]) < 2**self.depth:
            side = 2**self.depth
            raise InputError(
                f"a convolutional kernel of depth {self.depth} needs images of at least {side} x "
                f"{side} pixels, got {'rows' if len(shape) == 1 else f'{shape[1]} x {shape[2]}'}; "
                "use --kernel fc"
            )

    @property
    def reach(self) -> int:
        """The most by which positions differ that matter, each way."""
        return int(2**self.depth - 1)

    @property
    def pools(self) -> list[bool]:
        """Of each convolution whether a pool follows."""
        return [False] * self.prepended + [True] * self.depth


@dataclass(frozen=True)
class PrependedConvolutional(Convolutional):
    """The network of most of KIP's results: a convolution and a ReLU come first."""

    prepended: bool = True


@dataclass(frozen=True)
class Planes:
    """S and T at positions p of one image and p + d of another, for all offsets d within a reach.

    Args:
        covariance: S, (pairs, D, D, H, W): pairs are (n, m) or (n,), D is twice the reach and one;
            0 where p + d is outside.
        tangent: T likewise; of inputs, where it is 0 everywhere, a single 0.
    """

    covariance: Tensor
    tangent: Tensor

    @classmethod
    def of(cls, first: Tensor, second: Tensor, reach: int, *, paired: bool = False) -> "Planes":
        """Return those of (n, C, H, W) and (m, C, H, W) images.

        Args:
            paired: each with the one of its own index, in place of all with all.
        """
        near, first = shifted(second, reach).contiguous(), first / first.shape[1]
        # A channel at a time: few channels, many positions.
        parts = [
            first[:, channel, None, None] * near[:, channel]
            if paired
            else first[:, None, channel, None, None] * near[None, :, channel]
            for channel in range(first.shape[1])
        ]
        covariance = parts[0]
        for part in parts[1:]:
            covariance = covariance + part
        return cls(covariance, covariance.new_zeros(()))

    @property
    def reach(self) -> int:
        """The largest offset."""
        return self.covariance.shape[-3] // 2

    @property
    def variances(self) -> Tensor:
        """S where both positions are the same, (pairs, H, W)."""
        return self.covariance[..., self.reach, self.reach, :, :]

    @property
    def inside(self) -> Tensor:
        """1 where p + d is inside, else 0, (D, D, H, W)."""
        return shifted(self.covariance.new_ones(self.covariance.shape[-2:]), self.reach)

    def convolved(self) -> "Planes":
        """After a convolution that pads with zeros."""
        inside = self.inside
        weighted = inside * (WEIGHTS / 9)
        covariance = torch.addcmul(inside * BIASES, weighted, boxes(self.covariance))
        if not self.tangent.dim():  # of inputs
            return Planes(covariance, covariance)
        return Planes(covariance, torch.addcmul(covariance, weighted, boxes(self.tangent)))

    def rectified(self, first: Tensor, second: Tensor) -> "Planes":
        """After a ReLU.

        Args:
            first: variances of the first image, (pairs, H, W).
            second: of the second, shifted, (pairs, D, D, H, W).
        """
        return Planes(
            *rectified(self.covariance, self.tangent, first[..., None, None, :, :], second)
        )

    def pooled(self) -> "Planes":
        """After a 2 x 2 mean pool, which drops an odd edge."""
        parts = [halved(halved(part, -4, -2), -3, -1) for part in (self.covariance, self.tangent)]
        planes = Planes(*parts)
        return Planes(*(planes.inside * part for part in parts))

    def flattened(self) -> tuple[Tensor, Tensor]:
        """Means over positions, both the same: S and T of a layer that reads all, (pairs)."""
        if self.reach:
            raise ValueError("offsets are left")
        return self.covariance.mean((-4, -3, -2, -1)), self.tangent.mean((-4, -3, -2, -1))


def shifted(values: Tensor, reach: int) -> Tensor:
    """Return the values at each position plus each offset, 0 outside.

    Args:
        values: (..., H, W).
        reach: the largest offset.
    Returns:
        (..., D, D, H, W), the first D of rows.
    """
    height, width = values.shape[-2:]
    padded = F.pad(values, (reach,) * 4)
    return padded.unfold(-2, height, 1).unfold(-2, width, 1)


def boxes(planes: Tensor) -> Tensor:
    """Return sums over 3 x 3 positions, those outside counted as 0.

    Sums of shifted planes, one direction after the other, are 10 times as fast as a mean pool.
    """
    padded = F.pad(planes, (1, 1, 1, 1))
    for dim in (-2, -1):
        size = padded.shape[dim] - 2
        first, second, third = (padded.narrow(dim, start, size) for start in range(3))
        padded = first + second + third
    return padded


def halved(planes: Tensor, offsets: int, positions: int) -> Tensor:
    """Return means over pairs of positions of windows of 2 in one direction.

    Position 2 P + a and offset 2 D + b - a are at P and D afterwards, for a and b in 0, 1.

    Args:
        planes: (pairs, D, D, H, W).
        offsets: dimension of the offsets in this direction, counted from the end.
        positions: of the positions.
    """
    count, reach = planes.shape[positions] // 2, planes.shape[offsets] // 4
    at = [every_second(planes, positions, a, count) for a in (0, 1)]
    near, same, other, far = (
        every_second(at[a], offsets, 1 + b - a, 2 * reach + 1) for a in (0, 1) for b in (0, 1)
    )
    return (near + same + other + far) / 4


def every_second(values: Tensor, dim: int, start: int, count: int) -> Tensor:
    """Return `count` of the values along a dimension, every second one from `start` on."""
    return values.narrow(dim, start, 2 * count - 1).unfold(dim, 1, 2).squeeze(-1)


def in_its_precision(network: InfiniteNetwork, inputs: Tensor) -> Tensor:
    """Return inputs in the precision of a kernel: float64 of dense layers, which cost so little."""
    return inputs.double() if isinstance(network, FullyConnected) else inputs


def kernel(
    network: InfiniteNetwork, first: Tensor, second: Tensor, *, at_once: int | None = None
) -> Kernel:
    """Return the kernel of (n, ...) and (m, ...) inputs, differentiable in both.

    It is computed in tiles, and what a tile keeps for its derivative is computed again on the way
    back, so that memory does not grow with n or m but for the kernel itself.

    Args:
        at_once: bytes that a tile may take, more or less; None: what suits the device.
    """
    if at_once is None:
        at_once = IN_CACHE if first.device.type == "cpu" else AT_ONCE
    each = network.pair_bytes(tuple(first.shape[1:]), first.element_size())
    pairs = max(1, at_once // each)
    rows = min(len(first), max(1, math.isqrt(pairs)))
    columns = max(1, pairs // rows)
    own, others = (in_parts(network, some, pairs) for some in (first, second))

    def tile(at: int, to: int) -> Kernel:
        here, there = slice(at, at + rows), slice(to, to + columns)
        parts = [first[here], second[there]]
        lists = [[one[here] for one in own], [one[there] for one in others]]
        return Kernel(*checkpoint(network.tile, *parts, *lists, use_reentrant=False))

    lines = [
        [tile(at, to) for to in range(0, len(second), columns)] for at in range(0, len(first), rows)
    ]
    return Kernel(
        *(
            torch.cat([torch.cat([one[part] for one in line], 1) for line in lines])
            for part in (0, 1)
        )
    )


def in_parts(network: InfiniteNetwork, inputs: Tensor, size: int) -> list[Tensor]:
    """Return the variances of inputs, some at a time."""
    parts = [
        checkpoint(network.variances, some, use_reentrant=False) for some in inputs.split(size)
    ]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]
