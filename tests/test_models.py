"""The networks, and a user's own."""

import pytest
import torch
from torch import Tensor, nn
from twins import EagerObjective, Tiny, lr, meta_gradient, plain_unroll

from potstill.config.options import options_class
from potstill.distillation.network_checks import check_second_derivative
from potstill.engine.optimizers import Adam
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.imports import trust
from potstill.models import check_model, fresh, model_name, resolve
from potstill.models.convnet import ConvNet, auto_depth
from potstill.models.mlp import MLP
from potstill.registry import MODELS

trust("no.such.module", "torch.nn", "math", "test_models")

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("side", "depth"), [(4, 1), (8, 2), (12, 2), (16, 3), (28, 3), (32, 3), (64, 4), (128, 5)]
)
def test_depth_fits_itself_and_no_norm_sees_less_than_4_x_4_pixels(side, depth):
    assert auto_depth((3, side, side)) == depth
    net = ConvNet((3, side, side), 10, width=4)
    seen = []
    for part in net.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_hook(
                lambda module, inputs, output: seen.append(min(inputs[0].shape[2:]))
            )
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 10)
    assert len(seen) == depth
    assert min(seen) >= 4


def test_the_papers_network_has_its_published_size():
    # Three 3 x 3 convolutions without bias, three affine norms, a linear layer on 128 * 4 * 4
    # features.
    expected = 9 * 128 * (3 + 128 + 128) + 3 * 2 * 128 + 2048 * 10 + 10
    assert sum(p.numel() for p in ConvNet((3, 32, 32), 10).parameters()) == expected


def test_the_instance_norm_is_one():
    inputs = torch.randn(3, 5, 6, 6)
    norm = ConvNet((5, 8, 8), 2, width=5, depth=1).blocks[1]
    torch.testing.assert_close(norm(inputs), nn.functional.instance_norm(inputs))


@pytest.mark.parametrize("network", [ConvNet((1, 8, 8), 3, width=8), MLP((1, 8, 8), 3, width=8)])
def test_the_head_on_the_features_is_the_network(network):
    inputs = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network.head(network.features(inputs)), network(inputs))


def test_a_fresh_network_follows_from_its_seed_and_leaves_the_global_generator_alone():
    factory = resolve("convnet", (1, 8, 8), 3, width=8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (fresh(factory, seed, CPU).head.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def named_like_torchvision(weights=None, **options):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, options["num_classes"]))


def with_shape(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes))


@pytest.mark.parametrize("factory", [named_like_torchvision, with_shape])
def test_a_users_factory_gets_what_it_names(factory):
    for spec in (factory, f"{__name__}:{factory.__name__}"):
        made = resolve(spec, (1, 8, 8), 3)
        check_model(model_name(spec), made, (1, 8, 8), 3)
        assert made()(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert model_name(factory) == f"{__name__}:{factory.__name__}"


class Detaching(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Linear(64, 6), nn.Linear(6, num_classes)

    def forward(self, inputs):
        hidden = self.first(inputs.flatten(1)).tanh()
        return self.second(hidden / hidden.norm(dim=1, keepdim=True).detach())


class Attending(nn.Module):
    """torch's fused attention has no second derivative."""

    def __init__(self, num_classes):
        super().__init__()
        self.embed, self.linear = nn.Linear(8, 16), nn.Linear(128, num_classes)

    def forward(self, inputs):
        tokens = self.embed(inputs.view(-1, 1, 8, 8))
        return self.linear(
            nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)
        )


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (Detaching, r"model mine must be differentiable throughout"),
        (Attending, r"mine cannot be differentiated twice"),
    ],
)
def test_a_network_unfit_for_second_derivatives_is_refused_by_name(factory, sentence):
    made = resolve(factory, (1, 8, 8), 3)
    with pytest.raises(InputError, match=sentence):
        check_second_derivative("mine", made, (1, 8, 8), 3)


class ZeroBranch(nn.Module):
    """A residual block whose branch begins at 0, as torchvision's `zero_init_residual` has it."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, num_classes)
        nn.init.zeros_(self.norm.weight)

    def forward(self, inputs):
        hidden = self.stem(inputs).relu()
        return self.head((hidden + self.norm(self.branch(hidden))).relu().mean((2, 3)))


def test_a_network_that_begins_at_the_kinks_of_its_relus_is_no_wrong_derivative():
    check_second_derivative("mine", resolve(ZeroBranch, (1, 8, 8), 3), (1, 8, 8), 3)


class SinglePrecision(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1).float()).tanh()


BACKBONE = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).requires_grad_(False)


def on_a_shared_backbone(num_classes):
    return nn.Sequential(BACKBONE, nn.Linear(8, num_classes), nn.Tanh())


@pytest.mark.parametrize("factory", [SinglePrecision, on_a_shared_backbone])
def test_networks_that_insist_on_single_precision_or_share_a_frozen_part_pass_unchanged(factory):
    made = resolve(factory, (1, 8, 8), 3)
    check_model("mine", made, (1, 8, 8), 3)
    check_second_derivative("mine", made, (1, 8, 8), 3)
    assert {p.dtype for p in made().parameters()} == {torch.float32}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_registered_networks_are_fit_for_second_derivatives(name, shape):
    check_second_derivative(name, resolve(name, shape, 10, width=16), shape, 10)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", list(MODELS))
def test_the_engine_differentiates_every_registered_network_as_a_plain_unroll(name, norm):
    """float64; with batch norm, which normalises by the batch and leaves running statistics alone,
    too.
    """
    tiny = Tiny.of(fresh(resolve(name, (1, 8, 8), 3, width=4, norm=norm), 0, CPU))
    problem, rate = tiny.problem(Adam()), lr(0.01)

    def outer(theta: Tensor, leaves: Leaves, part: None = None) -> Tensor:
        return nn.functional.cross_entropy(tiny.model(theta, tiny.real[0]), tiny.real[1])

    start = Adam().init(tiny.model.theta)
    found = meta_gradient(
        problem, tiny.leaves, rate, start, EagerObjective(outer), [(None, 1.0)], burn_in=1, window=2
    )
    plain = plain_unroll(problem, tiny.leaves, rate, start, outer, burn_in=1, window=2)
    torch.testing.assert_close(
        found.leaves["images"], plain.leaves["images"], rtol=1e-9, atol=1e-15
    )
    assert found.leaves["images"].any()


def size(name: str, shape=(3, 32, 32), **options) -> int:
    return sum(p.numel() for p in resolve(name, shape, 10, **options)().parameters())


def test_parameters_are_as_many_as_published():
    # With the stem for CIFAR, as its well-known implementation has it.
    assert size("resnet18", norm="batch") == 11_173_962
    # torchvision's vgg11 has 9,220,480 in its convolutions; then a linear layer on 512 features.
    assert size("vgg11", norm="none") == 9_220_480 + 5_130
    # Convolutions of 5, 5, 3, 3 and 3 pixels with biases, 192 maps of 4 x 4 to the linear layer.
    alexnet = (
        75 * 128
        + 25 * 128 * 192
        + 9 * (192 * 256 + 256 * 192 + 192 * 192)
        + 128
        + 3 * 192
        + 256
        + 3072 * 10
        + 10
    )
    assert size("alexnet", norm="none") == alexnet
    wide = 9 * (3 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512) + 512 * 16 * 10 + 10
    assert size("convnet-wide") == wide


@pytest.mark.parametrize("side", [4, 6, 8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", ["vgg11", "alexnet", "resnet18", "convnet-wide"])
def test_networks_fit_themselves_to_the_images_and_no_norm_sees_too_few_pixels(name, side):
    net, seen = resolve(name, (2, side, side + 1), 5, width=8)(), []
    for part in net.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_hook(
                lambda module, inputs, output: seen.append(min(inputs[0].shape[2:]))
            )
    outputs = net(torch.randn(3, 2, side, side + 1))
    assert outputs.shape == (3, 5)
    assert outputs.std(0).min() > 0  # inputs tell in every output
    assert min(seen) >= (2 if side >= 32 else 4)
    torch.testing.assert_close(
        net.head(net.features(torch.ones(1, 2, side, side + 1))),
        net(torch.ones(1, 2, side, side + 1)),
    )


def test_the_width_is_each_networks_own_unless_it_is_given():
    assert [options_class(MODELS[name])().width for name in MODELS] == [128, 128, 64, 128, 64, 128]
    assert size("vgg11", width="auto") == size("vgg11", width=64)


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        (
            "convnett",
            {},
            r"unknown model 'convnett' \(did you mean 'convnet'\?\); known: alexnet, convnet, "
            r"convnet-wide, mlp",
        ),
        ("no.such.module:net", {}, r"cannot import 'no.such.module' of 'no.such.module:net'"),
        ("torch.nn:Linea", {}, r"module 'torch.nn' has no 'Linea' \(did you mean 'Linear'\?\)"),
        (":", {}, r"expected 'package.module:name', got ':'"),
        (
            "math:pi",
            {},
            r"model math:pi must be a function or class that returns a network, got 3.14",
        ),
        (
            nn.Linear(2, 2),
            {},
            r"must make a fresh network at every call, got a Linear that exists; give `lambda: "
            r"Linear",
        ),
        (
            "convnet",
            {"depth": 3},
            r"depth must be at most 2 for images of 8 x 8 pixels with instance norm .*, got 3; "
            r"leave it at auto",
        ),
        (
            "convnet",
            {"norm": "group", "width": 12},
            r"width must be a multiple of 8 for group norm, got 12",
        ),
        (
            "alexnet",
            {"norm": "group", "width": 8},
            r"width must be a multiple of 16 for group norm, got 8",
        ),
        (
            "resnet18",
            {"norm": "group", "width": 12},
            r"width must be a multiple of 8 for group norm, got 12",
        ),
    ],
)
def test_a_wrong_model_is_told_how_to_get_right(spec, options, sentence):
    with pytest.raises(InputError, match=sentence):
        resolve(spec, (1, 8, 8), 3, **options)


SHARED = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda: nn.Flatten(), r"model mine must have parameters to train, it has none"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            r"model mine must return logits of shape \(B, 3\), got \(2, 4\) for B = 2",
        ),
        (
            lambda: nn.Linear(9, 3),
            r"model mine fails on inputs of shape \(2, 1, 8, 8\): RuntimeError: mat1 and mat2",
        ),
        (
            lambda: SHARED,
            r"model mine must make a fresh network at every call, two calls share trainable "
            r"parameters",
        ),
        (lambda: 3, r"model mine fails on .*: it returned int, which is no torch.nn.Module"),
    ],
)
def test_a_network_that_does_not_fit_is_told_before_the_run(factory, sentence):
    with pytest.raises(InputError, match=sentence):
        check_model("mine", factory, (1, 8, 8), 3)
