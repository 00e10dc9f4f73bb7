"""Norm, ReLU and pooling in one: exact in float64, and its kernels like it."""

import os

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from potstill.engine import norm_pool
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.flat import FlatModel
from potstill.engine.fusible import Fusible
from potstill.engine.losses import Batch, cross_entropy
from potstill.models import resolve
from potstill.seeds import generator

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available()
needs_kernels = pytest.mark.skipif(
    not GPU and not INTERPRETED, reason="no GPU here, nor Triton's interpreter"
)


def arguments(batch: int, channels: int, height: int, width: int, seed: int = 0) -> dict:
    rng = generator(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    image, half = (batch, channels, height, width), (batch, channels, height // 2, width // 2)
    return {
        "x": draw(*image) * 2 + 1, "weight": draw(channels), "bias": draw(channels),
        "cotangent": draw(*half), "u": draw(*image), "k": draw(channels), "j": draw(channels),
    }  # fmt: skip


def doubles(seed: int = 0) -> list[torch.Tensor]:
    given = arguments(2, 3, 4, 6, seed)
    return [given[name].double().requires_grad_() for name in ("x", "weight", "bias")]


def test_it_is_group_norm_relu_and_pooling():
    x, weight, bias = doubles()
    expected = F.avg_pool2d(F.group_norm(x, 3, weight, bias, 1e-5).relu(), 2)
    torch.testing.assert_close(
        norm_pool.norm_pool(x, weight, bias, 1e-5), expected, rtol=1e-13, atol=1e-14
    )


def test_its_derivatives_are_those_of_finite_differences():
    assert gradcheck(lambda *three: norm_pool.norm_pool(*three, 1e-5), doubles())
    assert gradgradcheck(lambda *three: norm_pool.norm_pool(*three, 1e-5), doubles(1))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 20, 8, 6), (3, 16, 32, 32), (2, 5, 14, 14), (2, 128, 16, 16)]
)
@pytest.mark.parametrize("rows", [64, 4096])
def test_kernels_are_like_it(shape, dtype, rows, monkeypatch):
    kernels = pytest.importorskip("potstill.engine.norm_pool_kernels")
    monkeypatch.setattr(kernels, "MANY", 1)
    monkeypatch.setattr(kernels, "ROWS", rows)  # several tiles, or one
    device = "cuda" if GPU else "cpu"
    given = arguments(*shape)
    x, weight, bias, *_ = given.values()
    moments = norm_pool.pooled(x.to(dtype).double(), weight.double(), bias.double(), 1e-5)[1]
    sums = norm_pool.pooled_gradient(
        x.to(dtype).double(), weight.double(), bias.double(), moments,
        given["cotangent"].to(dtype).double(),
    )[1]  # fmt: skip
    given |= {"moments": moments.float(), "sums": sums.float()}
    large = {name: given[name].to(dtype) for name in ("x", "cotangent", "u")}
    given = {name: value.to(device) for name, value in (given | large).items()}
    exact = {name: value.double().cpu() for name, value in given.items()}
    first = ["x", "weight", "bias"]
    gradient = [*first, "moments", "cotangent"]
    for names, twin, kernel in (
        (first, norm_pool.pooled, kernels.pooled_by_kernel),
        (gradient, norm_pool.pooled_gradient, kernels.gradient_by_kernel),
        ([*gradient, "sums", "u", "k", "j"], norm_pool.pooled_product, kernels.product_by_kernel),
    ):
        eps = [1e-5] if names == first else []
        found = kernel(*(given[name] for name in names), *eps)
        expected = twin(*(exact[name] for name in names), *eps)
        for one, other in zip(found, expected, strict=True):
            error = (one.double().cpu() - other).norm() / other.norm()
            assert error < (1e-2 if one.dtype == torch.bfloat16 else 2e-5)


def network(**options: object) -> FlatModel:
    torch.manual_seed(0)
    return FlatModel(resolve("convnet", (3, 16, 16), 10, width=12, **options)().double())


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_layers_as_a_gpu_has_them_have_the_same_derivatives(norm):
    if norm == "group":
        model = FlatModel(
            resolve("convnet", (3, 16, 16), 10, width=16, norm=norm, depth=2)().double()
        )
    else:
        model = network()
    rng = generator(0)
    inputs = torch.randn(4, 3, 16, 16, generator=rng, dtype=torch.float64).requires_grad_()
    targets = torch.eye(10, dtype=torch.float64)[:4].requires_grad_()
    along = torch.randn(model.theta.shape, generator=rng, dtype=torch.float64)
    compiled = CompiledNetwork(model, backend="eager")
    compiled.kernels = True
    batch, fast, plain = Batch(inputs, targets), compiled.of(model), cross_entropy(model)
    for found, expected in zip(
        (*fast.gradient(model.theta, batch, 0), *fast.product(model.theta, batch, 0, along)),
        (*plain.gradient(model.theta, batch, 0), *plain.product(model.theta, batch, 0, along)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def called(model: FlatModel) -> list[str]:
    """Names of the nodes that the graph of a network's output has."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with Fusible(on_gpu=True):
        graph = make_fx(lambda theta: model(theta, torch.zeros(2, 3, 16, 16).double()))(model.theta)
    graph.graph.eliminate_dead_code()
    return [str(node.target) for node in graph.graph.nodes]


def test_every_block_is_one_call_and_norm_and_relu_by_themselves_are_gone():
    names = called(network())
    assert names.count("potstill.pooled.default") == 3
    assert not [name for name in names if "relu" in name or "rsqrt" in name or "pool2d" in name]
    assert names.count("aten.convolution.default") == 2  # the first is a product of windows
    assert names.count("aten.mm.default") == 1  # and the last layer a sum


def test_what_is_no_such_block_stays():
    torch.manual_seed(0)
    layers = [
        torch.nn.GroupNorm(3, 3),
        torch.nn.AvgPool2d(2),  # no ReLU between them
        torch.nn.GroupNorm(3, 3),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(2, stride=1),
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 7 * 7, 2),
    ]
    model = FlatModel(torch.nn.Sequential(*layers).double())
    assert "potstill.pooled.default" not in called(model)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=generator(0))
    with Fusible(on_gpu=True):
        found = model(model.theta, x)
    torch.testing.assert_close(found, model(model.theta, x), rtol=1e-12, atol=1e-13)
