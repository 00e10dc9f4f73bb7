"""Instance norm, ReLU and 2 x 2 average pooling in one, with its first and second derivatives.

What a ConvNet does between two convolutions is cheap arithmetic on large tensors: on a GPU the
passes over memory are all of its time. Each of the three functions here reads what it needs of an
example's channel for its sums, again, from a cache, for its result, and writes that once.

With x the S pixels of a channel of an example, m and r the mean and the reciprocal deviation,
x' = (x - m) r, z = w x' + b, and p the mean of max(z, 0) over squares of 2 x 2 pixels:

- `pooled` gives p.
- `pooled_gradient`, of a cotangent of p, which spread over the pixels and cut by the ReLU is g:
      of x  = w r (g - sum(g) / S - x' sum(g x') / S)
      of w  = sum(g x'),  of b = sum(g)
- `pooled_product`, of cotangents u, k, j of these three:
      T     = sum(u g) - sum(u) sum(g) / S - sum(u x') sum(g x') / S
      of g  = w r (u - sum(u) / S - x' sum(u x') / S) + k x' + j
      of w  = r T
      of x' = k g - w r / S (u sum(g x') + sum(u x') g) =: v
      of x  = r (v - sum(v) / S - x' sum(v x') / S) - w T r^2 x' / S

Here they are written in torch, for any device and type; norm_pool_kernels.py has the fast ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_TYPES = (torch.float32, torch.bfloat16)
LARGEST = 2048
"""Most pixels of a channel that stay in a cache until they are read again."""


def fits(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether a group norm's arguments are such that there is a kernel for what follows it.

    Args:
        x: (B, C, H, W).
        groups: of the norm.
        weight: (C,) or None.
        bias: (C,) or None.
    """
    return (
        x.dim() == 4
        and groups == x.shape[1]
        and weight is not None
        and bias is not None
        and (x.device.type == "cpu" or x.dtype in KERNEL_TYPES)
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.shape[2] * x.shape[3] <= LARGEST
    )


def norm_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute avg_pool2d(relu(group_norm(x)), 2) with a group for each channel.

    Args:
        x: (B, C, H, W) with even H and W.
        weight: (C,) scale after the norm.
        bias: (C,) shift after it.
        eps: added to the variance.
    """
    return NormPool.apply(x, weight, bias, eps)  # type: ignore[no-any-return, no-untyped-call]


class NormPool(torch.autograd.Function):
    """`norm_pool`; its derivative is `NormPoolGradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        result, moments = pooled(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, moments)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        x, weight, bias, moments = ctx.saved_tensors
        found = NormPoolGradient.apply(x, weight, bias, moments, cotangent)  # type: ignore[no-untyped-call]
        return *found, None


class NormPoolGradient(torch.autograd.Function):
    """The cotangents of x, weight and bias; it can be differentiated once.

    The moments count as given: what hangs on x through them is in its own derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor
    ) -> Any:
        of_x, sums = pooled_gradient(x, weight, bias, moments, cotangent)
        ctx.save_for_backward(x, weight, bias, moments, cotangent, sums)
        of_bias, of_weight = sums.sum(1).to(weight.dtype).unbind()
        return of_x, of_weight, of_bias

    @staticmethod
    def backward(ctx: Any, u: Tensor, k: Tensor, j: Tensor) -> Any:
        of_x, of_weight, of_cotangent = pooled_product(*ctx.saved_tensors, u, k, j)
        return of_x, of_weight.sum(0).to(ctx.saved_tensors[1].dtype), None, None, of_cotangent


def spread(pooled_values: Tensor) -> Tensor:
    """Share the value of a square of 2 x 2 pixels equally among them: pooling's transpose."""
    return pooled_values.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4


class Plane:
    """x' and the other numbers of each channel, in at least float32."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor):
        self.kind: torch.dtype = moments.dtype
        self.count = x.shape[2] * x.shape[3]
        mean, self.r = moments[:, :, :, None, None]
        self.x = (x.to(self.kind) - mean) * self.r
        self.w, self.b = self.each(weight), self.each(bias)
        self.z = self.w * self.x + self.b

    def each(self, channels: Tensor) -> Tensor:
        """View (C,) numbers beside (B, C, H, W) ones."""
        return channels.to(self.kind).view(1, -1, 1, 1)

    def spread(self, cotangent: Tensor) -> Tensor:
        """Return g, the cotangent of z."""
        spread_out: Tensor = spread(cotangent.to(self.kind)) * (self.z > 0)
        return spread_out

    def share(self, values: Tensor) -> Tensor:
        """Sum over the pixels and divide by their number."""
        return values.mean((2, 3), keepdim=True)


@torch.library.custom_op("potstill::pooled", mutates_args=())
def pooled(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute p, (B, C, H / 2, W / 2), and (m, r), (2, B, C)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (2, 3), correction=0)
    moments = torch.stack([mean, torch.rsqrt(variance + eps)])
    result = F.avg_pool2d(Plane(x, weight, bias, moments).z.relu(), 2)
    return formatted(result, x), moments


@torch.library.custom_op("potstill::pooled_gradient", mutates_args=())
def pooled_gradient(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the cotangents of x, and of b and w for each example, (2, B, C)."""
    plane = Plane(x, weight, bias, moments)
    g = plane.spread(cotangent)
    of_x = plane.w * plane.r * (g - plane.share(g) - plane.x * plane.share(g * plane.x))
    return formatted(of_x, x), torch.stack([g, g * plane.x]).sum((3, 4))


@torch.library.custom_op("potstill::pooled_product", mutates_args=())
def pooled_product(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor, sums: Tensor,
    u: Tensor, k: Tensor, j: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the cotangents of x, of w for each example, (B, C), and of the cotangent of p.

    `sums` are those of `pooled_gradient`.
    """
    plane = Plane(x, weight, bias, moments)
    w, r, normed, share = plane.w, plane.r, plane.x, plane.share
    g, u, k, j = plane.spread(cotangent), u.to(plane.kind), plane.each(k), plane.each(j)
    mean_g, mean_gx = sums[:, :, :, None, None] / plane.count
    of_gradient = w * r * (u - share(u) - normed * share(u * normed)) + k * normed + j
    squares = F.avg_pool2d(of_gradient * (plane.z > 0), 2)
    t = share(u * g) - share(u) * mean_g - share(u * normed) * mean_gx
    v = k * g - w * r * (u * mean_gx + share(u * normed) * g)
    of_x = r * (v - share(v) - normed * share(v * normed)) - w * t * r.square() * normed
    of_w = plane.count * (r * t)[:, :, 0, 0]
    return formatted(of_x, x), of_w, formatted(squares, cotangent)


def formatted(result: Tensor, like: Tensor) -> Tensor:
    """Return a result in another tensor's type, with channels last."""
    return result.to(like.dtype).contiguous(memory_format=torch.channels_last)


def empty_like(tensor: Tensor) -> Tensor:
    """Return room for a result with channels last."""
    return torch.empty_like(tensor, memory_format=torch.channels_last)


def sums_of(x: Tensor, *count: int) -> Tensor:
    """Return room for `count` numbers for each example and channel, one without it."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((*count, *x.shape[:2]), dtype=kind)


def room_pooled(x: Tensor) -> Tensor:
    """Return room for p."""
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@pooled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return room_pooled(x), sums_of(x, 2)


@pooled_gradient.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    return empty_like(x), sums_of(x, 2)


@pooled_product.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor, sums: Tensor,
    u: Tensor, k: Tensor, j: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_like(x), sums_of(x), empty_like(cotangent)
