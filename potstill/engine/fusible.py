"""Convolution and group norm whose first and second derivatives compile to fast operations.

<x * w, y> is linear in the input x, in the weight w and in the output's cotangent y. Its
derivatives in the three are convolution and its two transposes, and each of these has the other two
as its own derivatives: three fast kernels serve every order. Autograd's own second derivative in
the weight is instead a slow convolution with a kernel as large as the image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, transposed, output padding, groups: as torch's convolution takes."""


class Contraction(torch.autograd.Function):
    """The derivative of <x * w, y> in one of x, w and y, `wanted`, given the other two.

    The tensor named by `wanted` only lends its shape.
    """

    @staticmethod
    def forward(
        ctx: Any, wanted: str, x: Tensor, w: Tensor, y: Tensor | None, how: Geometry
    ) -> Any:
        ctx.wanted, ctx.how = wanted, how
        ctx.save_for_backward(x, w, y)
        if wanted == "y":
            return aten.convolution(x, w, None, *how)
        of_x, of_w, _ = aten.convolution_backward(
            y, x, w, None, *how, [wanted == "x", wanted == "w", False]
        )
        return of_x if wanted == "x" else of_w

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        given = dict(zip("xwy", ctx.saved_tensors, strict=True)) | {ctx.wanted: cotangent}
        asked = zip("xwy", ctx.needs_input_grad[1:4], strict=True)
        grads = (
            contraction(name, **given, how=ctx.how) if needed and name != ctx.wanted else None
            for name, needed in asked
        )
        return None, *grads, None


def contraction(wanted: str, *, x: Tensor, w: Tensor, y: Tensor | None, how: Geometry) -> Tensor:
    """Apply `Contraction`; "y" is the convolution x * w itself.

    Args:
        wanted: "x", "w" or "y".
        x: input (B, C, H, W).
        w: weight (D, C / groups, h, w).
        y: cotangent of the output (B, D, ...); None if it is wanted.
        how: stride, padding and the like.
    """
    return Contraction.apply(wanted, x, w, y, how)  # type: ignore[no-any-return, no-untyped-call]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Compute F.conv2d, with the same arguments; padding must be numeric."""
    stride, padding, dilation = (
        [number] * 2 if isinstance(number, int) else list(number)
        for number in (stride, padding, dilation)
    )
    kind = autocast_type(input)
    how = (stride, padding, dilation, False, [0, 0], groups)
    output = contraction("y", x=input.to(kind), w=weight.to(kind), y=None, how=how)
    return output if bias is None else output + bias.to(kind).view(-1, 1, 1)


def autocast_type(tensor: Tensor) -> torch.dtype:
    """Return the type in which autocast, if it is on, computes convolutions."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute F.group_norm, with the same arguments, by one scale and one shift a channel.

    Each example has a scale and a shift of its own for each channel.
    Its statistics are in at least float32. Each derivative costs one pass over the images for its
    sums and one to write the result. The variance is taken around a pivot that counts as a
    constant: var x = mean (x - p)^2 - (mean x - p)^2 holds for every p, and so do all its
    derivatives; at p = mean x nothing is lost to rounding.
    """
    x: Tensor = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    x = x.unflatten(1, (num_groups, -1))
    dims = tuple(range(2, x.dim()))
    mean = x.mean(dims, keepdim=True)
    pivot = mean.detach()
    x, mean = x - pivot, mean - pivot
    scale = torch.rsqrt(x.square().mean(dims, keepdim=True) - mean.square() + eps)
    each = (len(input), num_groups, input.shape[1] // num_groups, *[1] * (input.dim() - 2))
    scale = scale.expand(each) if weight is None else scale * weight.view(1, *each[1:]).expand(each)
    shift = -mean * scale
    shift = shift if bias is None else shift + bias.view(1, *each[1:]).expand(each)
    return (x * scale + shift).flatten(1, 2).to(input.dtype)


class Fusible(TorchFunctionMode):
    """A context in which a network's 2-d convolutions and group norms are those of this file."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d and not isinstance(
            kwargs.get("padding", args[4] if len(args) > 4 else 0), str
        ):
            return conv2d(*args, **kwargs)
        if function in (F.group_norm, torch.group_norm):
            return group_norm(
                *args[:5],
                **{name: value for name, value in kwargs.items() if name != "cudnn_enabled"},
            )
        return function(*args, **kwargs)
