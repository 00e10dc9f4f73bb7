# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The functions of norm_pool.py as kernels for GPUs, in Triton.

A program takes some channels of one example, whose pixels it reads as the four corners a, b, c, d
of the squares that are pooled: tiles of (squares, channels), one after the other, first for the
sums over them, then for the results. Images have their channels last, so a tile's rows are
contiguous. Numbers are float32, whatever is read and written.
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

GROUP = 16
"""Channels of a program."""
ROWS = 64
"""Squares of a tile where there are programs enough to keep a GPU busy."""
MANY = 512
"""Programs that are."""
OF_WARP = 256
"""Numbers of a tile for each warp."""


@triton.jit
def place(start, channels, height, width, tile: tl.constexpr, group: tl.constexpr):
    """Return the places of a tile's first corners and of its squares, and which are there."""
    example = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * group + tl.arange(0, group)
    square = start + tl.arange(0, tile)
    row, column = square // (width // 2), square % (width // 2)
    count = (height // 2) * (width // 2)
    mask = (square < count)[:, None] & (channel < channels)[None, :]
    pixel = (2 * row * width + 2 * column)[:, None] * channels + channel[None, :]
    return (
        example * height * width * channels + pixel,
        (example * count * channels + square[:, None] * channels + channel[None, :]),
        mask,
    )


@triton.jit
def corners(x, at, mask, channels, width):
    """Read the four corners; 0 where nothing is."""
    a = tl.load(x + at, mask, 0.0).to(tl.float32)
    b = tl.load(x + at + channels, mask, 0.0).to(tl.float32)
    c = tl.load(x + at + width * channels, mask, 0.0).to(tl.float32)
    d = tl.load(x + at + width * channels + channels, mask, 0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def put(out, at, mask, channels, width, a, b, c, d):
    """Write the four corners."""
    kind = out.dtype.element_ty
    tl.store(out + at, a.to(kind), mask)
    tl.store(out + at + channels, b.to(kind), mask)
    tl.store(out + at + width * channels, c.to(kind), mask)
    tl.store(out + at + width * channels + channels, d.to(kind), mask)


@triton.jit
def numbers(given, channels, group: tl.constexpr):
    """Read the numbers of this program's channels."""
    channel = tl.program_id(1) * group + tl.arange(0, group)
    return tl.load(given + channel, channel < channels, 0.0).to(tl.float32)


@triton.jit
def of_example(index, channels):
    """Return the place of the numbers `index` of this program's example, (index, B, C)."""
    return (index * tl.num_programs(0) + tl.program_id(0)) * channels


@triton.jit
def keep(out, value, channels, group: tl.constexpr):
    """Write a number for each of this program's channels."""
    channel = tl.program_id(1) * group + tl.arange(0, group)
    tl.store(out + channel, value, channel < channels)


@triton.jit
def pooled_kernel(
    x, weight, bias, out, moments, eps, channels, height, width,
    squares: tl.constexpr, tile: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    count = height * width
    w, s = numbers(weight, channels, group), numbers(bias, channels, group)
    total = tl.zeros((tile, group), tl.float32)
    for start in range(0, squares, tile):
        at, _, mask = place(start, channels, height, width, tile, group)
        a, b, c, d = corners(x, at, mask, channels, width)
        total += (a + b) + (c + d)
    mean = tl.sum(total, 0) / count
    total = tl.zeros((tile, group), tl.float32)
    for start in range(0, squares, tile):
        at, _, mask = place(start, channels, height, width, tile, group)
        a, b, c, d = corners(x, at, mask, channels, width)
        a, b, c, d = a - mean, b - mean, c - mean, d - mean
        total += tl.where(mask, (a * a + b * b) + (c * c + d * d), 0.0)
    r = tl.rsqrt(tl.sum(total, 0) / count + eps)
    keep(moments + of_example(0, channels), mean, channels, group)
    keep(moments + of_example(1, channels), r, channels, group)
    scale, shift = w * r, s - w * r * mean
    for start in range(0, squares, tile):
        at, square, mask = place(start, channels, height, width, tile, group)
        a, b, c, d = corners(x, at, mask, channels, width)
        found = tl.maximum(scale * a + shift, 0.0) + tl.maximum(scale * b + shift, 0.0)
        found += tl.maximum(scale * c + shift, 0.0) + tl.maximum(scale * d + shift, 0.0)
        tl.store(out + square, (found * 0.25).to(out.dtype.element_ty), mask)


@triton.jit
def cut(x, cotangent, at, square, mask, channels, width, w, s, mean, r):
    """Return the corners of x' and of g."""
    a, b, c, d = corners(x, at, mask, channels, width)
    a, b, c, d = (a - mean) * r, (b - mean) * r, (c - mean) * r, (d - mean) * r
    g = tl.load(cotangent + square, mask, 0.0).to(tl.float32) * 0.25
    ga, gb = tl.where(w * a + s > 0, g, 0.0), tl.where(w * b + s > 0, g, 0.0)
    gc, gd = tl.where(w * c + s > 0, g, 0.0), tl.where(w * d + s > 0, g, 0.0)
    return a, b, c, d, ga, gb, gc, gd


@triton.jit
def pooled_gradient_kernel(
    x, weight, bias, moments, cotangent, of_x, sums, channels, height, width,
    squares: tl.constexpr, tile: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    count = height * width
    w, s = numbers(weight, channels, group), numbers(bias, channels, group)
    mean = numbers(moments + of_example(0, channels), channels, group)
    r = numbers(moments + of_example(1, channels), channels, group)
    total_g = tl.zeros((tile, group), tl.float32)
    total_gx = tl.zeros((tile, group), tl.float32)
    for start in range(0, squares, tile):
        at, square, mask = place(start, channels, height, width, tile, group)
        a, b, c, d, ga, gb, gc, gd = cut(
            x, cotangent, at, square, mask, channels, width, w, s, mean, r
        )
        total_g += (ga + gb) + (gc + gd)
        total_gx += (ga * a + gb * b) + (gc * c + gd * d)
    sum_g, sum_gx = tl.sum(total_g, 0), tl.sum(total_gx, 0)
    keep(sums + of_example(0, channels), sum_g, channels, group)
    keep(sums + of_example(1, channels), sum_gx, channels, group)
    scale, mean_g, mean_gx = w * r, sum_g / count, sum_gx / count
    for start in range(0, squares, tile):
        at, square, mask = place(start, channels, height, width, tile, group)
        a, b, c, d, ga, gb, gc, gd = cut(
            x, cotangent, at, square, mask, channels, width, w, s, mean, r
        )
        put(
            of_x, at, mask, channels, width,
            scale * (ga - mean_g - a * mean_gx), scale * (gb - mean_g - b * mean_gx),
            scale * (gc - mean_g - c * mean_gx), scale * (gd - mean_g - d * mean_gx),
        )  # fmt: skip


@triton.jit
def pooled_product_kernel(
    x, weight, bias, moments, cotangent, sums, along_x, along_weight, along_bias,
    of_x, of_weight, of_cotangent, channels, height, width,
    squares: tl.constexpr, tile: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    count = height * width
    w, s = numbers(weight, channels, group), numbers(bias, channels, group)
    k, j = numbers(along_weight, channels, group), numbers(along_bias, channels, group)
    mean = numbers(moments + of_example(0, channels), channels, group)
    r = numbers(moments + of_example(1, channels), channels, group)
    sum_g = numbers(sums + of_example(0, channels), channels, group)
    sum_gx = numbers(sums + of_example(1, channels), channels, group)
    total_u = tl.zeros((tile, group), tl.float32)
    total_ux = tl.zeros((tile, group), tl.float32)
    total_ug = tl.zeros((tile, group), tl.float32)
    for start in range(0, squares, tile):
        at, square, mask = place(start, channels, height, width, tile, group)
        a, b, c, d, ga, gb, gc, gd = cut(
            x, cotangent, at, square, mask, channels, width, w, s, mean, r
        )
        ua, ub, uc, ud = corners(along_x, at, mask, channels, width)
        total_u += (ua + ub) + (uc + ud)
        total_ux += (ua * a + ub * b) + (uc * c + ud * d)
        total_ug += (ua * ga + ub * gb) + (uc * gc + ud * gd)
    sum_u, sum_ux = tl.sum(total_u, 0), tl.sum(total_ux, 0)
    t = tl.sum(total_ug, 0) - sum_u * sum_g / count - sum_ux * sum_gx / count
    keep(of_weight + of_example(0, channels), r * t, channels, group)
    scale, mean_u, mean_ux = w * r, sum_u / count, sum_ux / count
    # v = q g - p u, and its sums in those above
    p, q = scale * sum_gx / count, k - scale * mean_ux
    mean_v = (q * sum_g - p * sum_u) / count
    slope = (q * sum_gx - p * sum_ux + scale * t) / count
    for start in range(0, squares, tile):
        at, square, mask = place(start, channels, height, width, tile, group)
        a, b, c, d, ga, gb, gc, gd = cut(
            x, cotangent, at, square, mask, channels, width, w, s, mean, r
        )
        ua, ub, uc, ud = corners(along_x, at, mask, channels, width)
        found = tl.where(w * a + s > 0, scale * (ua - mean_u - a * mean_ux) + k * a + j, 0.0)
        found += tl.where(w * b + s > 0, scale * (ub - mean_u - b * mean_ux) + k * b + j, 0.0)
        found += tl.where(w * c + s > 0, scale * (uc - mean_u - c * mean_ux) + k * c + j, 0.0)
        found += tl.where(w * d + s > 0, scale * (ud - mean_u - d * mean_ux) + k * d + j, 0.0)
        tl.store(of_cotangent + square, (found * 0.25).to(of_cotangent.dtype.element_ty), mask)
        put(
            of_x, at, mask, channels, width,
            r * (q * ga - p * ua - mean_v - a * slope), r * (q * gb - p * ub - mean_v - b * slope),
            r * (q * gc - p * uc - mean_v - c * slope), r * (q * gd - p * ud - mean_v - d * slope),
        )  # fmt: skip


def launch(kernel: Any, x: Tensor, *arguments: Any) -> None:
    """Launch a kernel whose first argument is x and whose last ones are its sizes."""
    batch, channels, height, width = x.shape
    squares, groups = triton.next_power_of_2(height * width // 4), triton.cdiv(channels, GROUP)
    tile = min(squares, ROWS) if batch * groups >= MANY else squares
    kernel[(batch, groups)](
        x, *arguments, channels, height, width, squares=squares, tile=tile, group=GROUP,
        num_warps=max(1, min(16, tile * GROUP // OF_WARP)),
    )  # fmt: skip


def last(tensor: Tensor) -> Tensor:
    """Return a tensor with its channels last."""
    return tensor.contiguous(memory_format=torch.channels_last)


@pooled.register_kernel("cuda")
def pooled_by_kernel(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, out, moments = last(x), room_pooled(x), sums_of(x, 2)
    launch(pooled_kernel, x, weight, bias, out, moments, eps)
    return out, moments


@pooled_gradient.register_kernel("cuda")
def gradient_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    x, cotangent = last(x), last(cotangent)
    of_x, sums = empty_like(x), sums_of(x, 2)
    launch(pooled_gradient_kernel, x, weight, bias, moments, cotangent, of_x, sums)
    return of_x, sums


@pooled_product.register_kernel("cuda")
def product_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, cotangent: Tensor, sums: Tensor,
    u: Tensor, k: Tensor, j: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, cotangent, u = last(x), last(cotangent), last(u)
    of_x, of_weight, of_cotangent = empty_like(x), sums_of(x), empty_like(cotangent)
    launch(
        pooled_product_kernel, x, weight, bias, moments, cotangent, sums, u, k, j, of_x,
        of_weight, of_cotangent,
    )  # fmt: skip
    return of_x, of_weight, of_cotangent
