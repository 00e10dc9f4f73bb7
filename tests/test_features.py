"""Regressions on features, FRePo and RFAD; LAMB; initialisations; norms in distilling alone."""

import copy
import dataclasses
import math

import pytest
import torch
from test_unrolled import SHAPE
from torch import Tensor, nn
from twins import CPU

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.data.splits import TensorSplit
from potstill.distillation.outer import Interrupted
from potstill.distilled.recipes import Recipe
from potstill.engine.kernels import FullyConnected, kernel
from potstill.engine.optimizers import Adam, Lamb
from potstill.engine.when_to_compile import NetworkFamily
from potstill.errors import InputError
from potstill.methods.base import Examples, Method, Problem, Real
from potstill.methods.frepo import Frepo, FrepoOptions, scaled_labels
from potstill.methods.rfad import Rfad, RfadOptions
from potstill.models import fresh, resolve
from potstill.progress import Listener
from potstill.seeds import derive, generator

CLASSES, IPC = 4, 2
LABELS = torch.arange(CLASSES).repeat_interleave(IPC)
POOL = {"networks": 2, "network_life": 2, "ridge": 1e-3}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def in_float64(norm: str) -> Problem:
    """Eight distilled images against forty real ones, two micro-batches each, in float64."""
    made = resolve("convnet", SHAPE, CLASSES, width=8, depth=2, norm=norm, network_init="lecun")
    networks = NetworkFamily(lambda: made().double(), SHAPE, CLASSES, CPU, "float32")
    train = TensorSplit(normal(60, *SHAPE, seed=1), torch.arange(60) % CLASSES)
    real = Real(train, CLASSES, 40, micro_batch=15)
    recipe = Recipe(optimizer=Adam(), lr=0.01)
    return Problem(real, networks, LABELS, recipe, 0, CPU, micro_batch=5)


def examples(learn: bool = True, seed: int = 0, frozen: int = 0) -> Examples:
    targets = nn.functional.one_hot(LABELS, CLASSES) + 0.05 * normal(len(LABELS), CLASSES, seed=7)
    return Examples(normal(len(LABELS), *SHAPE, seed=seed), targets, LABELS, frozen, learn)


def frepo(mirrored: bool = True, **options) -> Frepo:
    return Frepo(
        in_float64("between"),
        FrepoOptions(**{**POOL, **options}, mirrored_copies="on" if mirrored else "off"),
    )


def rfad(loss: str = "platt") -> Rfad:
    return Rfad(in_float64("none"), RfadOptions(networks=3, regression_loss=loss))


def learned(method: Method, more: float = 0.3) -> dict[str, Tensor]:
    return {name: one.value.double() + more for name, one in method.start()[1].items()}


MADE = {
    "frepo": frepo, "plain frepo": lambda: frepo(mirrored=False), "rfad": rfad,
    "rfad, squares": lambda: rfad("squares"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("learn", [True, False])
def test_the_gradient_is_how_the_loss_changes(name, learn):
    method, given = MADE[name](), examples(learn)
    values, state = learned(method), method.start()[0]
    found = method.estimate(given, values, state, 1)
    assert set(found.grads) == {"images", *(["targets"] if learn else []), *values}
    for leaf, grad in found.grads.items():
        along = 1e-5 * normal(*grad.shape, seed=4)

        def loss(sign: float, leaf: str = leaf, along: Tensor = along) -> float:
            if leaf in values:
                moved = {**values, leaf: values[leaf] + sign * along}
                return float(method.estimate(given, moved, state, 1).loss)
            there = dataclasses.replace(given, **{leaf: getattr(given, leaf) + sign * along})
            return float(method.estimate(there, values, state, 1).loss)

        expected = (loss(1) - loss(-1)) / 2
        assert float((grad * along).sum()) == pytest.approx(expected, rel=1e-5), leaf


def plain_frepo(method: Frepo, course: list[Examples]) -> list[tuple[float, dict[str, Tensor]]]:
    """FRePo as the paper has it, with torch's networks, optimisers and autograd; no micro-batches.

    The loss and gradients of each outer step, in which the set is as in `course`.
    """
    task, options = method.problem, method.options
    count, life = options.networks, options.network_life

    def made(place: int, born: int) -> tuple[nn.Module, torch.optim.Adam]:
        module = fresh(task.networks.factory, derive(0, "network", place, born), CPU)
        return module, torch.optim.Adam(module.parameters(), task.recipe.lr)

    nets = [made(place, 0) for place in range(count)]
    ages, found, last = [place * (life // count) for place in range(count)], [], -1
    for step, given in enumerate(course):
        images, targets = given.images, given.targets - 1 / CLASSES
        if last >= 0 and ages[last] > life:
            nets[last], ages[last] = made(last, step + 1), 0
        elif last >= 0:
            module, optimizer = nets[last]
            error = module.train()(images) - targets
            optimizer.zero_grad()
            (error.square().sum(1).mean() / 2).backward()
            optimizer.step()
            ages[last] += 1
        last = int(torch.randint(count, (), generator=task.rng("place", step)))
        network = nets[last][0].eval()
        own, wanted = images.clone().requires_grad_(), targets.clone().requires_grad_()
        rows = task.real.sampler.draw(task.real.train, 40, task.rng("real batch", step))
        seen, labels = task.real.train.take(rows)
        features = network.features(torch.cat([own, own.flip(-1)]))
        gram = features @ features.T
        gram = gram + options.ridge * gram.trace() / len(gram) * torch.eye(len(gram)).double()
        weights = torch.linalg.inv(gram) @ torch.cat([wanted, wanted])
        predicted = network.features(seen).detach() @ features.T @ weights
        right = nn.functional.one_hot(labels, CLASSES) - 1 / CLASSES
        ordered = wanted.sort(1, descending=True).values
        ahead = (ordered[:, 0] - ordered[:, 1]).clamp_max(1 / CLASSES).mean()
        loss = (predicted - right).square().sum(1).mean() / 2 - ahead
        grads = torch.autograd.grad(loss, [own, wanted])
        found.append((float(loss.detach()), dict(zip(("images", "targets"), grads, strict=True))))
    return found


def test_frepo_is_a_plain_loop_of_torchs_own_parts():
    """Both networks train, take statistics of batch norm, and give way to fresh ones."""
    method, course = frepo(), [examples(seed=step) for step in range(16)]
    state, ages = method.start()[0], []
    for step, (loss, grads) in enumerate(plain_frepo(method, course)):
        found = method.estimate(course[step], {}, state, step)
        state = found.state
        ages.append([age for _, age, _ in state["networks"]])
        assert float(found.loss) == pytest.approx(loss, rel=1e-9), step
        for name, grad in grads.items():
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-7, atol=1e-10)
    for place in (0, 1):
        course_of = [each[place] for each in ages]
        assert max(course_of) == 3 > course_of[-1] or 0 in course_of[course_of.index(3) :]


def test_a_micro_batch_changes_nothing():
    method = frepo()
    whole = Frepo(dataclasses.replace(method.problem, micro_batch=100), method.options)
    one, other = (each.estimate(examples(), {}, each.start()[0], 0) for each in (method, whole))
    torch.testing.assert_close(one.grads["images"], other.grads["images"], rtol=1e-12, atol=1e-15)


def test_many_distilled_examples_train_a_network_a_thousand_at_a_time(monkeypatch):
    monkeypatch.setattr("potstill.methods.frepo.MOST", 4)
    method, given = frepo(), examples()
    state = method.estimate(given, {}, method.start()[0], 0).state
    rows = torch.randperm(len(LABELS), generator=method.problem.rng("training", 1))[:4]
    few = Examples(given.images[rows], given.targets[rows], LABELS[rows], 0, True)
    own, of_few = (method.trained(each, state, 1) for each in (given, few))
    monkeypatch.setattr("potstill.methods.frepo.MOST", 100)
    expected = method.trained(few, state, 1)
    name = f"network {state['used']}.state 0"
    torch.testing.assert_close(own[name], expected[name], rtol=1e-12, atol=0)
    assert not torch.equal(own[name], of_few[name])  # four of four, in another order, or twice


def test_labels_start_nearer_to_each_other_the_more_classes_there_are():
    assert scaled_labels(torch.eye(10)) is None
    scaled = scaled_labels(torch.eye(40))
    assert scaled is not None
    expected = (torch.eye(40) - 1 / 40) / 2 + 1 / 40
    torch.testing.assert_close(scaled, expected)
    assert scaled_labels(scaled) is None


def test_rfads_features_estimate_the_covariance_kernel():
    """Of the network that all its random networks are of, with a last layer of weights 2 / d."""
    task = in_float64("none")
    wide = resolve("mlp", SHAPE, CLASSES, width=2000, depth=2, network_init="he")
    networks = NetworkFamily(lambda: wide().double(), SHAPE, CLASSES, CPU, "float32")
    method = Rfad(dataclasses.replace(task, networks=networks), RfadOptions(networks=20))
    images = normal(5, *SHAPE)
    rows = method.features(method.networks(examples(), {}, 0)[0], images, 5)
    flat = images.flatten(1)
    torch.testing.assert_close(
        rows @ rows.T, kernel(FullyConnected(2), flat, flat).nngp, rtol=0.05, atol=0.02
    )


def test_lamb_moves_a_leaf_by_a_share_of_its_norm_along_adams_step():
    lr = {"lr": torch.tensor(0.01, dtype=torch.float64)}
    state, theta = Lamb().init(normal(5, 3)), normal(5, 3)
    mean = square = torch.zeros(5, 3, dtype=torch.float64)
    for count in range(4):
        grad = normal(5, 3, seed=10 + count)
        state = Lamb().step(state, grad, lr, count)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        along = mean / (1 - 0.9 ** (count + 1))
        along = along / ((square / (1 - 0.999 ** (count + 1))).sqrt() + 1e-6)
        theta = theta - 0.01 * theta.norm() / along.norm() * along
        torch.testing.assert_close(state[0], theta, rtol=1e-12, atol=1e-14)
    still = Lamb().step(Lamb().init(torch.zeros(2)), torch.ones(2), {"lr": torch.tensor(0.1)}, 0)
    torch.testing.assert_close(still[0], torch.full((2,), -0.1))


def test_lamb_is_for_the_set_only():
    with pytest.raises(
        InputError, match="inner_optimizer must move a network layer by layer, lamb"
    ):
        configuration({"inner_optimizer": "lamb"})


VARIANCES = {"lecun": (1.0, 0.0), "he": (2.0, 0.01), "pytorch": (1 / 3, 1 / 3)}


@pytest.mark.parametrize(
    "model", ["convnet", "convnet-wide", "vgg11", "mlp", "resnet18", "alexnet"]
)
@pytest.mark.parametrize("rule", VARIANCES)
def test_weights_have_the_variance_of_their_rule(model, rule):
    network = fresh(resolve(model, (3, 32, 32), 10, norm="none", network_init=rule), 0, CPU)
    weight, bias = VARIANCES[rule]
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len(layers) > 2
    for layer in layers:
        inputs = layer.weight[0].numel()
        assert float(layer.weight.detach().var()) * inputs == pytest.approx(weight, rel=0.12)
    biases = torch.cat([one.bias for one in layers if one.bias is not None]).detach()
    if rule != "pytorch":
        assert float(biases.square().mean()) == pytest.approx(bias, rel=0.35, abs=1e-12)
    if rule == "lecun":
        bound = 2 / (layers[1].weight[0].numel() ** 0.5 * 0.8796)
        assert 0.97 * bound < float(layers[1].weight.detach().abs().max()) <= bound * 1.0001


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "layer", "none"])
def test_a_resnet_begins_as_its_shortcuts(norm):
    factory = resolve("resnet18", SHAPE, 3, width=8, norm=norm, network_init="identity")
    network = fresh(factory, 0, CPU)
    expected = inputs = torch.randn(5, *SHAPE)
    for part in network.blocks:
        expected = part.shortcut(expected).relu() if hasattr(part, "shortcut") else part(expected)
    expected = network.head(expected.mean((2, 3)))
    torch.testing.assert_close(network(inputs), expected, rtol=1e-5, atol=1e-6)
    logits = network(inputs)
    grads = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
    assert sum(bool(grad.any()) for grad in grads) > 8 + 8, "every block can begin to learn"


@pytest.mark.parametrize("model", ["vgg11", "alexnet", "convnet", "mlp"])
def test_a_plain_stack_begins_as_the_identity_and_something_random(model):
    made = [
        fresh(resolve(model, (3, 32, 32), 10, norm="none", network_init=rule), 0, CPU)
        for rule in ("identity", "pytorch")
    ]
    kinds = nn.Conv2d | nn.Linear
    layers, random = ([one for one in each.modules() if isinstance(one, kinds)] for each in made)
    for index, (layer, start) in enumerate(zip(layers, random, strict=True)):
        if index in (0, len(layers) - 1):
            assert torch.equal(layer.weight, start.weight), "the first layer and the head"
            continue
        inputs = torch.rand(2, layer.weight.shape[1], *([9, 9] if layer.weight.dim() == 4 else []))
        bias = layer.bias.detach().view(-1, *[1] * (inputs.dim() - 2))
        repeats = -(-layer.weight.shape[0] // layer.weight.shape[1])
        passed = inputs.repeat(1, repeats, *[1] * (inputs.dim() - 2))[:, : layer.weight.shape[0]]
        rest = layer(inputs) - bias - passed
        torch.testing.assert_close(rest, 0.3 * (start(inputs) - bias), rtol=1e-4, atol=1e-5)


def test_the_tangent_parameterisation_is_hes_function_of_parameters_of_variance_1():
    network = fresh(resolve("mlp", SHAPE, 3, width=400, depth=2, network_init="ntk"), 0, CPU)
    plain = fresh(resolve("mlp", SHAPE, 3, width=400, depth=2), 0, CPU)
    for name, parameter in network.named_parameters():
        if parameter.numel() > 1000:
            assert float(parameter.detach().var()) == pytest.approx(1, rel=0.05), name
    inputs = torch.randn(4, *SHAPE)
    pairs = [
        [one for one in each.modules() if isinstance(one, nn.Linear)] for each in (plain, network)
    ]
    with torch.no_grad():
        for target, source in zip(*pairs, strict=True):
            fan_in = source.weight.shape[1]
            own = source.parametrizations
            target.weight.copy_(math.sqrt(2 / fan_in) * own.weight.original)
            target.bias.copy_(0.1 * own.bias.original)
        torch.testing.assert_close(plain(inputs), network(inputs))
    torch.testing.assert_close(copy.deepcopy(network)(inputs), network(inputs))


SMALL = {
    "data": "digits", "ipc": 1, "steps": 6, "real_batch": 60, "width": 8, "depth": 2,
    "lengths": (10,), "validation_nets": 1, "validate_every": 3, "checkpoint_every": 3,
    "threads": 1, "device": "cpu", "compile": "off", "progress": False,
}  # fmt: skip


def test_a_set_is_measured_on_networks_without_the_norm_that_it_was_distilled_with():
    made = potstill.distill(**SMALL, method="frepo", norm="none", inner_norm="between")
    recipe = made.recipe
    assert (recipe.norm, recipe.network_init, recipe.learner) == ("none", "lecun", "network-mse")
    network = potstill.train(made, device="cpu", steps=2)
    assert not any(isinstance(part, nn.BatchNorm2d | nn.GroupNorm) for part in network.modules())


@pytest.mark.parametrize("method", ["frepo", "rfad"])
def test_an_interrupted_run_gives_the_bytes_of_an_undisturbed_one(method, tmp_path):
    options = {**SMALL, "method": method, "networks": 2}
    if method == "frepo":
        options |= {"network_life": 1, "inner_norm": "between"}
    whole = potstill.distill(**options, out=tmp_path / "whole")
    stops = iter([False] * 4 + [True] * 9)
    with pytest.raises(Interrupted):
        potstill.distill(
            **options, out=tmp_path / "cut", listener=Listener(stop=lambda: next(stops))
        )
    potstill.resume(tmp_path / "cut")
    files = [(tmp_path / name / "distilled.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert whole.images.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_set(threads):
    options = {**SMALL, "method": "frepo", "micro_batch": 5, "inner_norm": "between"}
    one, other = (potstill.distill(**{**options, "threads": count}) for count in (1, threads))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.targets, other.targets)


MIRRORED = ["--mirrored-copies", "on"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "frepo", "--inner-norm", "sometimes"], "inner_norm"),
        (["--method", "frepo", "--model", "vgg11", "--inner-norm", "between"], "inner_norm"),
        (
            ["--method", "frepo", "--model", "mlp", "--inner-norm", "batch"],
            "no effect with --model",
        ),
        (["--method", "rfad", "--network-init", "xavier"], "network_init must be"),
        (["--data", "sklearn:wine", "--method", "rfad", *MIRRORED], "is for images"),
        (["--data", "sklearn:wine", "--method", "rcig", *MIRRORED], "is for images"),
        (["--inner-optimizer", "lamb"], "lamb is for the set only"),
        (["--method", "frepo", "--ridge", "0"], "ridge must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(words, said, tmp_path, capsys):
    assert main(["distill", "--data", "digits", "--out", str(tmp_path / "r"), *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert said in error[0]
