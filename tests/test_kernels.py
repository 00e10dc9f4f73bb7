"""Kernels of infinitely wide networks: against the recursion over all positions, networks that are
wide, and values from elsewhere."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.engine import kernels
from potstill.engine.kernels import Convolutional, FullyConnected, Kernel, kernel
from potstill.seeds import generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class AllPositions:
    """S and T of one image and another at all pairs of positions, (H, W, H, W), the plain way."""

    def __init__(self, first: Tensor, second: Tensor):
        self.s = torch.einsum("cij,ckl->ijkl", first, second) / len(first)
        self.t = torch.zeros_like(self.s)

    def mean_over_windows(self, values: Tensor) -> Tensor:
        height, width = values.shape[:2]
        padded = torch.nn.functional.pad(values, (1,) * 8)
        total = torch.zeros_like(values)
        for i in range(3):
            for j in range(3):
                rows, columns = slice(i, i + height), slice(j, j + width)
                total += padded[rows, columns, rows, columns]
        return total / 9

    def convolve(self) -> None:
        self.s = 2 * self.mean_over_windows(self.s) + 0.01
        self.t = 2 * self.mean_over_windows(self.t) + self.s

    def diagonal(self) -> Tensor:
        return torch.einsum("ijij->ij", self.s)

    def rectify(self, first: Tensor, second: Tensor) -> None:
        scale = (first[:, :, None, None] * second).sqrt()
        cosine = (self.s / scale).clamp(-1, 1)
        angle = cosine.acos()
        self.s = scale * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
        self.t = self.t * (math.pi - angle) / (2 * math.pi)

    def pool(self) -> None:
        self.s, self.t = (self.mean_of_pairs(one) for one in (self.s, self.t))

    def mean_of_pairs(self, values: Tensor) -> Tensor:
        height, width = (side // 2 for side in values.shape[:2])
        whole = values[: 2 * height, : 2 * width, : 2 * height, : 2 * width]
        return whole.reshape(height, 2, width, 2, height, 2, width, 2).mean((1, 3, 5, 7))

    def answer(self) -> Kernel:
        s, t = (torch.einsum("ijij->ij", one).mean() for one in (self.s, self.t))
        return Kernel(2 * s + 0.01, 2 * t + 2 * s + 0.01)


def plain(network: Convolutional, first: Tensor, second: Tensor) -> Kernel:
    """The kernel of (C, H, W) and (C, H, W), all positions kept."""
    three = [AllPositions(a, b) for a, b in ((first, second), (first, first), (second, second))]
    for pools in network.pools:
        for one in three:
            one.convolve()
        variances = [one.diagonal() for one in three[1:]]
        three[0].rectify(*variances)
        for one, variance in zip(three[1:], variances, strict=True):
            one.rectify(variance, variance)
        if pools:
            for one in three:
                one.pool()
    return three[0].answer()


@pytest.mark.parametrize("side", [(8, 8), (10, 9), (14, 8)])
@pytest.mark.parametrize("network", [Convolutional(1), Convolutional(2), Convolutional(3, True)])
def test_few_offsets_give_what_all_positions_do(network, side):
    first, second = normal(2, 3, *side), normal(3, 3, *side, seed=1)
    found = kernel(network, first, second)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            expected = plain(network, one, other)
            for part, value in zip(found, expected, strict=True):
                torch.testing.assert_close(part[i, j], value, rtol=1e-13, atol=0)


def test_the_kernel_has_the_values_of_another_program():
    """Source: computed once with NumPy, all positions kept, from these draws."""
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=(1, 3, 8, 8))) for _ in range(2))
    for prepended, nngp, ntk in (
        (False, 0.1385053480229646, 0.2575595906946172),
        (True, 0.1689872242284106, 0.3475130290576499),
    ):
        found = kernel(Convolutional(3, prepended), first, second)
        assert float(found.nngp) == pytest.approx(nngp, rel=1e-14)
        assert float(found.ntk) == pytest.approx(ntk, rel=1e-14)


NETWORKS = [FullyConnected(1), FullyConnected(3), Convolutional(1), Convolutional(2, True)]


@pytest.mark.parametrize("network", NETWORKS)
def test_derivatives_are_right_also_where_an_image_meets_itself(network):
    first, second = normal(2, 2, 4, 4).requires_grad_(), normal(2, 2, 4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: tuple(kernel(network, x, second)), first)
    # On the diagonal the slope of arccos is infinite; what is differentiated there is smooth.
    assert torch.autograd.gradcheck(
        lambda x: tuple(kernel(network, x, x)), first, eps=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_tiles_of_any_size_give_the_same_kernel_and_derivative(network):
    first, second = normal(5, 2, 4, 4).requires_grad_(), normal(7, 2, 4, 4, seed=1)
    whole = kernel(network, first, second)
    weights = normal(5, 7, seed=2)
    grads = [torch.autograd.grad((whole.ntk * weights).sum(), first)[0]]
    for at_once in (1, network.pair_bytes((2, 4, 4), 8) * 6):
        found = kernel(network, first, second, at_once=at_once)
        for part, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-14, atol=1e-14)
        grads.append(torch.autograd.grad((found.ntk * weights).sum(), first)[0])
        torch.testing.assert_close(grads[-1], grads[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("network", [*NETWORKS, Convolutional(3)])
def test_a_kernel_is_symmetric_and_positive(network):
    images = normal(6, 3, 8, 8)
    for part in kernel(network, images, images):
        torch.testing.assert_close(part, part.T, rtol=1e-12, atol=0)
        assert torch.linalg.eigvalsh(part).min() > 0


def finite(
    network: FullyConnected | Convolutional, inputs: Tensor, width: int, seed: int
) -> Tensor:
    """The last hidden activations of a random network, (n, F): biases of variance 0.01."""
    rng, functional = generator(seed), torch.nn.functional
    values = inputs

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    if isinstance(network, FullyConnected):
        values = values.flatten(1)
        for _ in range(network.depth):
            fan_in = values.shape[1]
            weights = drawn(width, fan_in) * math.sqrt(2 / fan_in)
            values = functional.linear(values, weights, 0.1 * drawn(width)).relu()
        return values
    for pools in network.pools:
        channels = values.shape[1]
        weights = drawn(width, channels, 3, 3) * math.sqrt(2 / (9 * channels))
        values = functional.conv2d(values, weights, 0.1 * drawn(width), padding=1).relu()
        values = functional.avg_pool2d(values, 2) if pools else values
    return values.flatten(1)


@pytest.mark.parametrize("network", [FullyConnected(2), Convolutional(2), Convolutional(1, True)])
def test_wide_networks_come_near_the_covariance(network):
    inputs, nets, total = normal(4, 3, 8, 8), 400, torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(nets):
        features = finite(network, inputs, 128, seed)
        total += 2 * features @ features.T / features.shape[1] + 0.01
    torch.testing.assert_close(
        total / nets, kernel(network, inputs, inputs).nngp, rtol=0.05, atol=0
    )


def test_a_tile_takes_what_it_says(monkeypatch):
    """Of 32-pixel images a pair takes megabytes, so that a kernel of many must come in tiles."""
    each = Convolutional(3).pair_bytes((3, 32, 32), 4)
    assert 225 * 1024 * 4 < each < 100 * 225 * 1024 * 4
    sizes = []
    tile = Convolutional.tile

    def counted(self, first, second, *rest):
        sizes.append(len(first) * len(second))
        return tile(self, first, second, *rest)

    monkeypatch.setattr(Convolutional, "tile", counted)
    images = torch.zeros(3, 1, 16, 16)
    limit = Convolutional(3).pair_bytes((1, 16, 16), 4) * 4
    kernels.kernel(Convolutional(3), images, images, at_once=limit)
    assert max(sizes) <= 4
    assert sum(sizes) == 9
