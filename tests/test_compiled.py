"""Compiled derivatives against plain ones, in float64; what is not compiled, and what is said of
it.
"""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from test_inner import NETWORKS, assert_equal
from torch import Tensor, nn
from twins import CPU, Tiny

from potstill.engine.compiled_losses import CannotCompile, CompiledNetwork
from potstill.engine.flat import FlatModel
from potstill.engine.fusible import Fusible, conv2d, group_norm
from potstill.engine.losses import Batch, Differentiable, InMicroBatches, cross_entropy
from potstill.engine.when_to_compile import missing_compiler
from potstill.seeds import generator, global_seed


def derivatives(loss: Differentiable, tiny: Tiny) -> list[Tensor]:
    """Loss, gradient, and Hessian product in parameters, inputs and targets."""
    batch = Batch(
        *(tiny.leaves[name][:4].clone().requires_grad_() for name in ("images", "targets"))
    )
    along = torch.randn(tiny.model.theta.shape, generator=generator(3), dtype=torch.float64)
    theta = tiny.model.theta
    of_theta, *of_batch = loss.product(theta, batch, 0, along)
    alone = loss.batch_product(theta, batch, 0, along)
    pulled = loss.pulled(theta, batch, 0, lambda grad: grad * along)
    return [
        *loss.gradient(theta, batch, 0),
        of_theta,
        *(of for of in (*of_batch, *alone, *pulled) if of is not None),
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 9])
@pytest.mark.parametrize("filled", [False, True])
def test_products_in_the_batch_alone_are_the_last_two_of_a_product(size, filled):
    tiny = Tiny.make("instance", learn_labels=True)
    loss = InMicroBatches(cross_entropy(tiny.model), size, filled)
    batch = Batch(
        *(tiny.leaves[name][:4].clone().requires_grad_() for name in ("images", "targets"))
    )
    theta = tiny.model.theta
    grad = loss.gradient(theta, batch, 0)[1]
    for frozen in (0, 1, 4):
        batch = dataclasses.replace(batch, frozen=frozen)
        wanted = loss.product(theta, batch, 0, grad.square())[1:]
        alone = loss.batch_product(theta, batch, 0, grad.square())
        pulled = loss.pulled(theta, batch, 0, torch.square)
        for one, other, third in zip(wanted, alone, pulled, strict=True):
            assert (one is None) == (other is None) == (third is None) == (frozen == 4)
            if one is not None and other is not None and third is not None:
                torch.testing.assert_close(other[frozen:], one[frozen:], rtol=1e-10, atol=1e-15)
                torch.testing.assert_close(third[frozen:], one[frozen:], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("network", NETWORKS)
def test_traced_derivatives_equal_plain_ones_for_another_network_of_the_make(network):
    traced = CompiledNetwork(Tiny.make(network, learn_labels=True).model, backend="eager")
    tiny = Tiny.make(network, learn_labels=True, seed=1)
    for found, expected in zip(
        derivatives(traced.of(tiny.model), tiny),
        derivatives(cross_entropy(tiny.model), tiny),
        strict=True,
    ):
        assert_equal(found, expected, network)


@pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}"
)
@pytest.mark.parametrize("network", ["instance", "group"])
def test_compiled_derivatives_equal_plain_ones(network):
    compiled = CompiledNetwork(Tiny.make(network, learn_labels=True).model)
    tiny = Tiny.make(network, learn_labels=True, seed=1)
    for _ in range(2):
        for found, expected in zip(
            derivatives(compiled.of(tiny.model), tiny),
            derivatives(cross_entropy(tiny.model), tiny),
            strict=True,
        ):
            assert_equal(found, expected, network)
    # One for each kind, none anew for the second network or the second call.
    assert compiled.compilations == 3


def test_only_a_new_shape_of_batch_is_compiled_anew():
    traced = CompiledNetwork(Tiny.make("instance").model, backend="eager")
    images, targets = (
        torch.randn(6, 1, 8, 8, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64).repeat(2, 1),
    )
    for count in (4, 6, 4, 6, 6):
        traced.of(traced.model).gradient(
            traced.model.theta, Batch(images[:count], targets[:count]), 0
        )
    assert traced.compilations == 2


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2, "padding": 1}, {"padding": (2, 1), "dilation": 2}, {"groups": 2}]
)
def test_convolution_has_torchs_values_and_derivatives_of_three_orders(geometry):
    rng = generator(0)
    x = torch.randn(2, 4, 7, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    w = torch.randn(
        6,
        4 // geometry.get("groups", 1),
        3,
        3,
        generator=rng,
        dtype=torch.float64,
        requires_grad=True,
    )
    bias = torch.randn(6, generator=rng, dtype=torch.float64, requires_grad=True)
    found, expected = conv2d(x, w, bias, **geometry), nn.functional.conv2d(x, w, bias, **geometry)
    torch.testing.assert_close(found, expected)
    for _ in range(3):  # value -> gradients -> gradients of a function of these -> ...
        found, expected = (
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(value.sin().sum(), (x, w), create_graph=True)
                ]
            )
            for value in (found, expected)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_torchs(groups):
    x, weight, bias = (
        torch.randn(shape, generator=generator(0), dtype=torch.float64)
        for shape in ((3, 6, 4, 5), 6, 6)
    )
    torch.testing.assert_close(
        group_norm(x, groups, weight, bias, 1e-3),
        nn.functional.group_norm(x, groups, weight, bias, 1e-3),
    )
    torch.testing.assert_close(
        group_norm(x[..., 0, 0], groups), nn.functional.group_norm(x[..., 0, 0], groups)
    )


def test_group_norm_keeps_its_statistics_in_float32():
    x = (torch.randn(2, 4, 8, 8, generator=generator(0)) + 200).bfloat16()
    torch.testing.assert_close(
        group_norm(x, 4).float(), nn.functional.group_norm(x.float(), 4), atol=0.02, rtol=0
    )
    assert group_norm(x, 4).dtype == torch.bfloat16


def test_fusible_replaces_the_layers_and_leaves_the_rest():
    seen = []
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 2, 3, padding="same"),
        nn.Flatten(),
    )
    x = torch.randn(2, 3, 6, 6, generator=generator(0))
    with Fusible():
        found = module(x)
    torch.testing.assert_close(found, module(x))
    node = found.grad_fn
    while node is not None:
        seen.append(type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None
    assert "ConvolutionBackward0" in seen  # padding by name stays torch's
    assert "ContractionBackward" in seen  # the first layer is ours
    assert "NativeGroupNormBackward0" not in seen


@pytest.mark.parametrize("height", [6, 5])
def test_a_convolution_of_grey_images_is_a_product_of_windows(height):
    x = torch.randn(2, 1, height, 7, generator=generator(0)).double().requires_grad_()
    for layer in (nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, (3, 5), padding=(1, 2))):
        with Fusible():
            found = layer.double()(x)
        expected = layer(x)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
        assert "Convolution" not in str(found.grad_fn.next_functions)
        along = torch.randn(found.shape, generator=generator(1)).double()
        for one, other in zip(
            torch.autograd.grad(found, (x, layer.weight), along),
            torch.autograd.grad(expected, (x, layer.weight), along),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    with Fusible():  # not where its windows are another's
        strided = nn.Conv2d(1, 4, 3, stride=2, padding=1).double()
        torch.testing.assert_close(
            strided(x), nn.functional.conv2d(x, strided.weight, strided.bias, 2, 1)
        )


CACHE = """
import os, torch
from potstill.engine.when_to_compile import missing_compiler
print(missing_compiler(torch.device("cpu")))
import torch._dynamo
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


def test_the_compilers_cache_is_the_users_or_the_one_named(tmp_path):
    def said(**environment: str) -> list[str]:
        kept = {
            name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"
        }
        command = [sys.executable, "-c", CACHE]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=kept | environment
        ).stdout.splitlines()

    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert said(**home)[1].startswith(str(tmp_path))
    assert said(**home, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "own"))[1] == str(tmp_path / "own")
    (tmp_path / "file").touch()
    (reason, *_) = said(TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "in it"))
    assert reason.startswith(f"its cache folder {tmp_path / 'file' / 'in it'} cannot be made")
    assert reason.endswith("; set TORCHINDUCTOR_CACHE_DIR")


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(inputs.flatten(1), 0.5))


class Branching(Noisy):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1)) * (2 if inputs.sum() > 0 else 1)


class Hidden(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1)) * self.scale


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Noisy, "random numbers"),
        (Branching, "cannot be traced"),
        (Hidden, "neither parameter nor buffer|traced"),
    ],
)
def test_what_would_not_be_the_same_function_is_not_compiled(network, why):
    with global_seed(0, CPU):
        model = FlatModel(network())
    batch = Batch(torch.randn(2, 1, 8, 8, generator=generator(0)), torch.eye(3)[:2])
    with pytest.raises(CannotCompile, match=why):
        CompiledNetwork(model, backend="eager").of(model).gradient(model.theta, batch, 0)
