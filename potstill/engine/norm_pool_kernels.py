"""The functions of norm_pool.py as kernels for GPUs, in Triton.

A program takes some channels of one example, whose pixels it holds as the four corners of the
squares that are pooled: tiles of (squares, channels). Images have their channels last, so a tile's
rows are contiguous. Numbers are float32, whatever is read and written.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.engine.norm_pool import (
    empty_like,
    pooled,
    pooled_gradient,
    pooled_product,
    room_pooled,
    sums_of,
)

CHANNELS = 16
"""Channels of a program."""
PIXELS = 1024
"""Numbers of a tile's four corners for each warp."""


@triton.jit
def corner(x, at, mask):  # type: ignore[no-untyped-def]
    return tl.load(x + at, mask, 0.0).to(tl.float32)


@triton.jit
def places(C, HEIGHT, WIDTH, SQUARES: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return channels, places of the first corners and of the squares, and which are there."""
    example = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    square = tl.arange(0, SQUARES)
    row, column = square // (WIDTH // 2), square % (WIDTH // 2)
    count = (HEIGHT // 2) * (WIDTH // 2)
    mask = (square < count)[:, None] & (channel < C)[None, :]
    first = example * HEIGHT * WIDTH * C + (2 * row * WIDTH + 2 * column)[:, None] * C
    of_square = example * count * C + square[:, None] * C
    return channel, first + channel[None, :], of_square + channel[None, :], mask


@triton.jit
def normed(x, at, mask, C, HEIGHT, WIDTH, eps):  # type: ignore[no-untyped-def]
    """Return the corners of x' and r; what is not there is 0."""
    count = HEIGHT * WIDTH
    a, b = corner(x, at, mask), corner(x, at + C, mask)
    c, d = corner(x, at + WIDTH * C, mask), corner(x, at + WIDTH * C + C, mask)
    mean = tl.sum(a + b + c + d, 0) / count
    a, b = tl.where(mask, a - mean, 0.0), tl.where(mask, b - mean, 0.0)
    c, d = tl.where(mask, c - mean, 0.0), tl.where(mask, d - mean, 0.0)
    r = tl.rsqrt(tl.sum(a * a + b * b + c * c + d * d, 0) / count + eps)
    return a * r, b * r, c * r, d * r, r


@triton.jit
def put(out, at, mask, C, WIDTH, a, b, c, d):  # type: ignore[no-untyped-def]
    kind = out.dtype.element_ty
    tl.store(out + at, a.to(kind), mask)
    tl.store(out + at + C, b.to(kind), mask)
    tl.store(out + at + WIDTH * C, c.to(kind), mask)
    tl.store(out + at + WIDTH * C + C, d.to(kind), mask)


@triton.jit
def pooled_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, out, eps, C, HEIGHT, WIDTH, SQUARES: tl.constexpr, CHANNELS: tl.constexpr
):
    channel, at, square, mask = places(C, HEIGHT, WIDTH, SQUARES, CHANNELS)
    a, b, c, d, _ = normed(x, at, mask, C, HEIGHT, WIDTH, eps)
    w = tl.load(weight + channel, channel < C, 0.0).to(tl.float32)
    s = tl.load(bias + channel, channel < C, 0.0).to(tl.float32)
    total = tl.maximum(w * a + s, 0.0) + tl.maximum(w * b + s, 0.0)
    total += tl.maximum(w * c + s, 0.0) + tl.maximum(w * d + s, 0.0)
    tl.store(out + square, (total * 0.25).to(out.dtype.element_ty), mask)


@triton.jit
def pooled_gradient_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, cotangent, of_x, of_weight, of_bias, eps, C, HEIGHT, WIDTH,
    SQUARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel, at, square, mask = places(C, HEIGHT, WIDTH, SQUARES, CHANNELS)
    a, b, c, d, r = normed(x, at, mask, C, HEIGHT, WIDTH, eps)
    w = tl.load(weight + channel, channel < C, 0.0).to(tl.float32)
    s = tl.load(bias + channel, channel < C, 0.0).to(tl.float32)
    g = corner(cotangent, square, mask) * 0.25
    ga, gb = tl.where(w * a + s > 0, g, 0.0), tl.where(w * b + s > 0, g, 0.0)
    gc, gd = tl.where(w * c + s > 0, g, 0.0), tl.where(w * d + s > 0, g, 0.0)
    sum_g = tl.sum(ga + gb + gc + gd, 0)
    sum_gx = tl.sum(ga * a + gb * b + gc * c + gd * d, 0)
    here = tl.program_id(0) * C + channel
    tl.store(of_weight + here, sum_gx, channel < C)
    tl.store(of_bias + here, sum_g, channel < C)
    scale, count = w * r, HEIGHT * WIDTH
    mean_g, mean_gx = sum_g / count, sum_gx / count
    put(
        of_x, at, mask, C, WIDTH,
        scale * (ga - mean_g - a * mean_gx), scale * (gb - mean_g - b * mean_gx),
        scale * (gc - mean_g - c * mean_gx), scale * (gd - mean_g - d * mean_gx),
    )  # fmt: skip


@triton.jit
def pooled_product_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, cotangent, along_x, along_weight, along_bias, of_x, of_weight, of_cotangent,
    eps, C, HEIGHT, WIDTH, SQUARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel, at, square, mask = places(C, HEIGHT, WIDTH, SQUARES, CHANNELS)
    a, b, c, d, r = normed(x, at, mask, C, HEIGHT, WIDTH, eps)
    w = tl.load(weight + channel, channel < C, 0.0).to(tl.float32)
    s = tl.load(bias + channel, channel < C, 0.0).to(tl.float32)
    k = tl.load(along_weight + channel, channel < C, 0.0).to(tl.float32)
    l = tl.load(along_bias + channel, channel < C, 0.0).to(tl.float32)
    g = corner(cotangent, square, mask) * 0.25
    ga, gb = tl.where(w * a + s > 0, g, 0.0), tl.where(w * b + s > 0, g, 0.0)
    gc, gd = tl.where(w * c + s > 0, g, 0.0), tl.where(w * d + s > 0, g, 0.0)
    ua, ub = corner(along_x, at, mask), corner(along_x, at + C, mask)
    uc = corner(along_x, at + WIDTH * C, mask)
    ud = corner(along_x, at + WIDTH * C + C, mask)
    count = HEIGHT * WIDTH
    sum_g = tl.sum(ga + gb + gc + gd, 0)
    sum_gx = tl.sum(ga * a + gb * b + gc * c + gd * d, 0)
    sum_u = tl.sum(ua + ub + uc + ud, 0)
    sum_ux = tl.sum(ua * a + ub * b + uc * c + ud * d, 0)
    sum_ug = tl.sum(ua * ga + ub * gb + uc * gc + ud * gd, 0)
    t = sum_ug - sum_u * sum_g / count - sum_ux * sum_gx / count
    tl.store(of_weight + tl.program_id(0) * C + channel, r * t, channel < C)

    scale, mean_u, mean_ux = w * r, sum_u / count, sum_ux / count
    squares = tl.where(w * a + s > 0, scale * (ua - mean_u - a * mean_ux) + k * a + l, 0.0)
    squares += tl.where(w * b + s > 0, scale * (ub - mean_u - b * mean_ux) + k * b + l, 0.0)
    squares += tl.where(w * c + s > 0, scale * (uc - mean_u - c * mean_ux) + k * c + l, 0.0)
    squares += tl.where(w * d + s > 0, scale * (ud - mean_u - d * mean_ux) + k * d + l, 0.0)
    tl.store(of_cotangent + square, (squares * 0.25).to(of_cotangent.dtype.element_ty), mask)

    # v = k' g - p u, with the sums of v and v x' in those above
    p = scale * sum_gx / count
    q = k - scale * sum_ux / count
    mean_v = (q * sum_g - p * sum_u) / count
    slope = (q * sum_gx - p * sum_ux + scale * t) / count
    put(
        of_x, at, mask, C, WIDTH,
        r * (q * ga - p * ua - mean_v - a * slope), r * (q * gb - p * ub - mean_v - b * slope),
        r * (q * gc - p * uc - mean_v - c * slope), r * (q * gd - p * ud - mean_v - d * slope),
    )  # fmt: skip


def launch(kernel: Any, x: Tensor, *arguments: Any) -> None:
    """Launch a kernel whose first argument is x and whose last ones are its sizes."""
    batch, channels, height, width = x.shape
    squares = triton.next_power_of_2(height * width // 4)
    warps = max(1, min(16, 4 * squares * CHANNELS // PIXELS))
    kernel[(batch, triton.cdiv(channels, CHANNELS))](
        x, *arguments, channels, height, width, SQUARES=squares, CHANNELS=CHANNELS,
        num_warps=warps,
    )  # fmt: skip


def last(tensor: Tensor) -> Tensor:
    """Return a tensor with its channels last."""
    return tensor.contiguous(memory_format=torch.channels_last)


@pooled.register_kernel("cuda")
def pooled_by_kernel(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x, out = last(x), room_pooled(x)
    launch(pooled_kernel, x, weight, bias, out, eps)
    return out


@pooled_gradient.register_kernel("cuda")
def gradient_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, cotangent = last(x), last(cotangent)
    of_x, of_weight, of_bias = empty_like(x), sums_of(x), sums_of(x)
    launch(
        pooled_gradient_kernel, x, weight, bias, cotangent, of_x, of_weight, of_bias, eps
    )
    return of_x, of_weight, of_bias


@pooled_product.register_kernel("cuda")
def product_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor,
    u: Tensor, k: Tensor, l: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, cotangent, u = last(x), last(cotangent), last(u)
    of_x, of_weight, of_cotangent = empty_like(x), sums_of(x), empty_like(cotangent)
    launch(
        pooled_product_kernel, x, weight, bias, cotangent, u, k, l, of_x, of_weight,
        of_cotangent, eps,
    )  # fmt: skip
    return of_x, of_weight, of_cotangent
