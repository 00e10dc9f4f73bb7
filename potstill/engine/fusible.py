"""Convolution and group norm whose first and second derivatives compile to fast operations.

<x * w, y> is linear in the input x, in the weight w and in the output's cotangent y. Its
derivatives in the three are convolution and its two transposes, and each of these has the other two
as its own derivatives: three fast kernels serve every order. Autograd's own second derivative in
the weight is instead a slow convolution with a kernel as large as the image.

On a GPU, whose arithmetic is free and whose passes over memory and launches are not, three more are
written anew: norm, ReLU and pooling in one (norm_pool.py), a convolution of few channels as a
matrix product with its windows as rows, and a small linear layer as a sum.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from potstill.engine.norm_pool import fits, norm_pool

aten = torch.ops.aten
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, transposed, output padding, groups: as torch's convolution takes."""
NORMS = (F.group_norm, torch.group_norm)
RELUS = (F.relu, torch.relu, Tensor.relu)
FEW, ALIGNED = 32, 8
"""Most numbers of a window that stand in a row, and what their number is filled up to."""
COLOURS = 3
"""Channels from which a CPU's library convolves as fast as it multiplies matrices."""
SMALL_LINEAR = 2**22
"""Most products of a linear layer that is written as sums."""


class Contraction(torch.autograd.Function):
    """The derivative of <x * w, y> in one of x, w and y, `wanted`, given the other two.

    The tensor named by `wanted` only lends its shape.
    """

    @staticmethod
    def forward(
        ctx: Any, wanted: str, x: Tensor, w: Tensor, y: Tensor | None, how: Geometry
    ) -> Any:
        ctx.wanted, ctx.how = wanted, how
        if w.is_cuda and w.dim() == 4:  # else the library copies what is not, at each call
            x, w = (each.contiguous(memory_format=torch.channels_last) for each in (x, w))
            y = y if y is None else y.contiguous(memory_format=torch.channels_last)
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
    *,
    by_rows: bool = False,
) -> Tensor:
    """Compute F.conv2d, with the same arguments; padding must be numeric.

    Grey images go through `convolution_of_few`: on CPUs convolutions of one channel are up to six
    times as slow. `by_rows`: so do those of a few more channels.
    """
    stride, padding, dilation = (
        [number] * 2 if isinstance(number, int) else list(number)
        for number in (stride, padding, dilation)
    )
    kind = autocast_type(input)
    how = (stride, padding, dilation, False, [0, 0], groups)
    if (by_rows or weight.shape[1] < COLOURS) and has_few(weight, how):
        output = convolution_of_few(input.to(kind), weight.to(kind))
    else:
        output = contraction("y", x=input.to(kind), w=weight.to(kind), y=None, how=how)
    return output if bias is None else output + bias.to(kind).view(-1, 1, 1)


def has_few(weight: Tensor, how: Geometry) -> bool:
    """Return whether `convolution_of_few` takes such a convolution."""
    stride, padding, dilation, _, _, groups = how
    tall, wide = weight.shape[2:]
    return (
        weight.shape[1] * tall * wide <= FEW
        and tall % 2 == wide % 2 == 1
        and padding == [tall // 2, wide // 2]
        and stride == dilation == [1, 1]
        and groups == 1
    )


def convolution_of_few(x: Tensor, weight: Tensor) -> Tensor:
    """Compute a convolution of few channels as a product with its windows as rows.

    A library's kernels take at least 8 channels, and fill up an image's 3 at each call.

    Args:
        x: (B, C, H, W).
        weight: (D, C, h, w) with odd h and w; the output is as large as x.
    """
    tall, wide = weight.shape[2:]
    rows = Windows.apply(x, tall, wide)  # type: ignore[no-untyped-call]
    missing = -rows.shape[3] % ALIGNED
    rows = F.pad(rows, (0, missing))
    columns = F.pad(weight.permute(0, 2, 3, 1).flatten(1), (0, missing))
    output: Tensor = rows.flatten(0, 2) @ columns.t()
    return output.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)


class Windows(torch.autograd.Function):
    """(B, C, H, W) -> (B, H, W, h w C): around each pixel, 0 beyond the edges."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tall: int, wide: int) -> Tensor:
        ctx.size = tall, wide
        padded = F.pad(x, (wide // 2, wide // 2, tall // 2, tall // 2))
        # One pass over the result; as a concatenation of slices each would be a kernel.
        return padded.unfold(2, tall, 1).unfold(3, wide, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (tall, wide), (cotangent,) = ctx.size, cotangents
        parts = cotangent.unflatten(3, (tall, wide, -1)).permute(3, 4, 0, 5, 1, 2)
        total = torch.zeros_like(parts[0, 0])
        for row in range(tall):
            for column in range(wide):
                up, left = tall // 2 - row, wide // 2 - column
                shifted = F.pad(parts[row, column], (-left, left, -up, up))
                total = total + shifted
        return total, None, None


def linear_by_sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute F.linear of inputs (B, C) as sums of products in at least float32.

    A matrix product of ten rows keeps one processor of a GPU busy and the others waiting.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    output = (x[:, None, :].to(kind) * weight.to(kind)).sum(-1)
    return output if bias is None else output + bias


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


@dataclass(frozen=True)
class Known:
    """What a group norm gave, or a ReLU behind one.

    Args:
        result: it, which is kept so that no other tensor has its id.
        arguments: x, weight, bias and eps of the norm.
        versions: of result and x: another one was changed in place.
    """

    result: Tensor
    arguments: tuple[Any, ...]
    versions: tuple[int, int]

    @classmethod
    def of(cls, result: Tensor, arguments: tuple[Any, ...]) -> "Known":
        """Note a result as it is now."""
        return cls(result, arguments, (result._version, arguments[0]._version))

    @property
    def unchanged(self) -> bool:
        """Whether result and x are what they were."""
        return self.versions == (self.result._version, self.arguments[0]._version)


class Fusible(TorchFunctionMode):
    """A context in which a network's 2-d convolutions and group norms are those of this file.

    Args:
        on_gpu: whether the layers that are slow on a GPU are, too.
    """

    def __init__(self, *, on_gpu: bool = False):
        super().__init__()
        self.on_gpu = on_gpu
        self.normed: dict[int, Known] = {}
        """What group norms gave, by its id."""
        self.rectified: dict[int, Known] = {}
        """What ReLUs behind them gave."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return (self.for_gpu if self.on_gpu else self.for_all)(function, args, kwargs)

    def for_gpu(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch, or what replaces it on a GPU."""
        if function is F.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if x.dim() == 2 and len(x) * weight.numel() <= SMALL_LINEAR:
                return linear_by_sums(x, weight, bias)
        if function is F.avg_pool2d and args and halves(*args[1:], **kwargs):
            known = self.rectified.get(id(args[0]))
            if known and known.unchanged:
                return norm_pool(*known.arguments)  # norm and ReLU are dead code now
        result = self.for_all(function, args, kwargs)
        if function in NORMS:
            x, groups, weight, bias, eps = of_norm(*args, **kwargs)
            if fits(x, groups, weight, bias):
                self.normed[id(result)] = Known.of(result, (x, weight, bias, eps))
        elif function in RELUS and args and result is not args[0]:
            before = self.normed.get(id(args[0]))
            if before and before.unchanged:
                self.rectified[id(result)] = Known.of(result, before.arguments)
        return result

    def for_all(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch, or what replaces it on every device."""
        if function is torch.conv2d and not isinstance(
            kwargs.get("padding", args[4] if len(args) > 4 else 0), str
        ):
            return conv2d(*args, **kwargs, by_rows=self.on_gpu)
        if function in NORMS:
            return group_norm(
                *args[:5],
                **{name: value for name, value in kwargs.items() if name != "cudnn_enabled"},
            )
        return function(*args, **kwargs)


def of_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> tuple[Tensor, int, Tensor | None, Tensor | None, float]:  # fmt: skip
    """Return the arguments of a group norm, however they are given."""
    return input, num_groups, weight, bias, eps


def halves(
    kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> bool:  # fmt: skip
    """Return whether these arguments of a pooling make it take squares of 2 x 2 pixels."""
    sizes = [list(size) if isinstance(size, tuple | list) else [size, size]
             for size in (kernel_size, stride or kernel_size, padding)]  # fmt: skip
    return sizes == [[2, 2], [2, 2], [0, 0]] and divisor_override is None
