"""Distribution matching: closed forms, what both sides share, and that it works from one end to the
other.
"""

import dataclasses
import json
from typing import Any

import pytest
import torch
from test_runs import QUICK, bytes_of, for_method
from torch import Tensor, nn
from twins import CPU

import potstill
from potstill.cli.parser import main
from potstill.data import augmentation
from potstill.data.sampling import Weighted
from potstill.data.splits import TensorSplit
from potstill.distillation.outer import Interrupted
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.when_to_compile import NetworkFamily, missing_compiler
from potstill.errors import InputError
from potstill.evaluation.protocols import DSA
from potstill.methods.base import Estimate, Examples, Problem, Real, Sizes
from potstill.methods.matching import DistributionMatching
from potstill.models import fresh, resolve
from potstill.progress import Listener
from potstill.registry import METHODS
from potstill.seeds import derive, generator

SHAPE, EACH = (1, 8, 8), 20
LABELS = torch.arange(3).repeat_interleave(2)
SMALL = {**for_method("dm", QUICK), "real_per_class": 20}
del SMALL["outer_lr"]


class Linear(nn.Module):
    """Features W x, the same W for every seed, and a layer on them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 64, generator=generator(3), dtype=torch.float64))
        self.last = nn.Linear(5, 3)

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) @ self.weight.T

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.features(inputs).float())


def problem(factory: Any = Linear, operations: tuple[str, ...] = (), **options: Any) -> Problem:
    """Six distilled images against sixty real ones of three classes, in float64."""
    images = torch.randn(3 * EACH, *SHAPE, generator=generator(1), dtype=torch.float64)
    train = TensorSplit(images, torch.arange(3).repeat_interleave(EACH))
    networks = NetworkFamily(factory, SHAPE, 3, CPU, "float32")
    real = Real(train, 3, 0, operations)
    return Problem(
        real,
        networks,
        **{
            "labels": LABELS,
            "recipe": Recipe(),
            "seed": 0,
            "device": CPU,
            "cut": Cut(7),
            **options,
        },
    )


def convnet(**options: Any) -> Any:
    """A factory of small ConvNets in float64."""
    factory = resolve("convnet", SHAPE, 3, width=8, depth=1, **options)
    return lambda: factory().double()


def estimate(task: Problem, images: Tensor, step: int = 4, real_per_class: int = EACH) -> Estimate:
    """One estimate at some images of the problem's classes."""
    method = DistributionMatching(task, DistributionMatching.Options(real_per_class))
    targets = torch.eye(3, dtype=torch.float64)[task.labels]
    return method.estimate(Examples(images, targets, task.labels), {}, method.start()[0], step)


def distilled_images() -> Tensor:
    return torch.randn(6, *SHAPE, generator=generator(2), dtype=torch.float64)


def test_linear_features_have_their_closed_form():
    task, images = problem(), distilled_images()
    found, weight = estimate(task, images), Linear().weight.detach()
    loss = 0.0
    for label in range(3):
        real = task.real.train.take(torch.nonzero(task.real.train.labels == label)[:, 0])[
            0
        ].flatten(1)
        own = images[label == LABELS].flatten(1)
        apart = real.mean(0) - own.mean(0)
        loss += float((weight @ apart).square().sum())
        expected = -(2 / len(own)) * weight.T @ weight @ apart
        for grad in found.grads["images"][label == LABELS]:
            torch.testing.assert_close(grad.flatten(), expected, rtol=1e-12, atol=1e-13)
    assert found.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("step", range(8))
def test_there_is_nothing_to_do_at_the_real_images(step):
    # Both sides are augmented by one draw: with one each, the loss would not be 0.
    labels = torch.arange(3).repeat_interleave(EACH)
    task = problem(convnet(), DSA, labels=labels)
    found = estimate(task, task.real.train.take(torch.arange(3 * EACH))[0], step)
    assert found.loss < 1e-25
    assert found.grads["images"].abs().max() < 1e-13


def test_classes_are_augmented_apart():
    drawn = [
        augmentation.shared_draw(DSA, problem().rng("augmentation", 0, label)) for label in range(3)
    ]
    assert len({(one.operation, *one.values.flatten().tolist()) for one in drawn}) == 3


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_class_by_class_is_the_joint_step(micro_batch):
    whole, apart = (
        estimate(problem(convnet(), DSA, micro_batch=size), distilled_images())
        for size in (100, micro_batch)
    )
    torch.testing.assert_close(apart.grads["images"], whole.grads["images"], rtol=1e-12, atol=1e-14)
    assert apart.loss == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.parametrize("real_per_class", [EACH, 5])
def test_compiled_features_are_the_plain_ones(real_per_class):
    plain = problem(convnet(), DSA)  # 20 real images are taken as 7, 7, 6
    traced = CompiledNetwork(plain.networks.model(1), backend="eager")
    fast = dataclasses.replace(plain, networks=plain.networks.with_compiled(traced))
    for step in range(2):
        found, expected = (
            estimate(task, distilled_images(), step, real_per_class) for task in (fast, plain)
        )
        torch.testing.assert_close(
            found.grads["images"], expected.grads["images"], rtol=1e-11, atol=1e-14
        )
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    # The last micro-batch is filled, so that one function serves all, and all networks.
    assert traced.compilations == 1


def test_a_class_that_would_fill_little_of_a_compiled_batch_is_not_compiled():
    plain = problem(convnet(), DSA, cut=Cut(100))
    traced = CompiledNetwork(plain.networks.model(1), backend="eager")
    fast = dataclasses.replace(plain, networks=plain.networks.with_compiled(traced))
    found, expected = (estimate(task, distilled_images(), 0, 27) for task in (fast, plain))
    assert found.loss == expected.loss  # 20 of 27
    assert traced.compilations == 0
    estimate(fast, distilled_images(), 0, 26)
    assert traced.compilations == 1


class Noisy(nn.Module):
    """A small ConvNet with dropout before its last layer alone."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.body = resolve("convnet", input_shape, num_classes, width=8, depth=1)()
        self.dropout = nn.Dropout(0.1)

    def features(self, inputs: Tensor) -> Tensor:
        return self.body.features(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body.head(self.dropout(self.features(inputs)))


@pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}"
)
def test_a_run_compiles_features_and_trains_its_networks_plainly():
    said: list[str] = []
    given = {name: SMALL[name] for name in SMALL if name not in ("model", "width", "depth")}
    fast, plain = (
        potstill.distill(
            **given,
            model=Noisy,
            compile=how,
            precision="float32",
            listener=Listener(say=said.append),
        )
        for how in ("on", "off")
    )
    (told,) = (sentence for sentence in said if sentence.startswith("compiled "))
    assert told.startswith("compiled 1 function in ")
    torch.testing.assert_close(fast.images, plain.images, rtol=1e-4, atol=1e-5)


def test_a_network_that_couples_its_batch_is_not_compiled():
    task = problem(convnet(norm="batch"))
    traced = CompiledNetwork(task.networks.model(1), backend="eager")
    fast = dataclasses.replace(task, networks=task.networks.with_compiled(traced))
    assert estimate(fast, distilled_images()).loss == estimate(task, distilled_images()).loss
    assert traced.compilations == 0
    sizes = Sizes(SHAPE, 3, (2,), (6,), Cut(8), 20, 20, 5)
    options = DistributionMatching.Options(EACH)
    work = DistributionMatching.work
    assert work(options, sizes).feature_batches == (7,)
    assert work(options, sizes).features == 5 * 3 * EACH
    assert not work(options, dataclasses.replace(sizes, coupled=True)).functions


def test_a_network_with_batch_norm_sees_all_classes_of_a_side_at_once():
    task, images = problem(convnet(norm="batch"), micro_batch=1), distilled_images()
    network = fresh(task.networks.factory, derive(0, "start", 4), CPU).train()
    real = network.features(task.real.train.take(torch.arange(3 * EACH))[0]).flatten(1)
    own = network.features(images).flatten(1)
    wanted = real.view(3, EACH, -1).mean(1) - own.view(3, 2, -1).mean(1)
    assert estimate(task, images).loss == pytest.approx(wanted.square().sum().item(), rel=1e-10)


def test_the_noise_floor_is_the_variance_of_a_mean_of_the_real_batch():
    # A mean of B of N images drawn without replacement varies by tr Cov / B * (N - B) / (N - 1).
    task, images, size = problem(), distilled_images(), 4
    full, noisy = (
        estimate(task, images).loss,
        [estimate(task, images, step, size).loss for step in range(600)],
    )
    features = (
        Linear().features(task.real.train.take(torch.arange(3 * EACH))[0]).detach().view(3, EACH, 5)
    )
    variance = float((features - features.mean(1, keepdim=True)).square().mean(1).sum())
    expected = variance / size * (EACH - size) / (EACH - 1)
    assert sum(noisy) / len(noisy) - full == pytest.approx(expected, rel=0.15)


def test_frozen_examples_count_in_the_means():
    task, images = problem(), distilled_images()
    method = DistributionMatching(task, DistributionMatching.Options(EACH))
    frozen = Examples(images, torch.eye(3, dtype=torch.float64)[LABELS], LABELS, frozen=2)
    grads = method.estimate(frozen, {}, {}, 4).grads["images"]
    torch.testing.assert_close(grads[2:], estimate(task, images).grads["images"][2:])


def test_weights_that_leave_a_class_nothing_are_refused():
    task = problem()
    weights = torch.ones(3 * EACH)
    weights[:EACH] = 0
    task = dataclasses.replace(task, real=dataclasses.replace(task.real, sampler=Weighted(weights)))
    with pytest.raises(
        InputError, match="weights must leave every class a real example, class 0 has none"
    ):
        estimate(task, distilled_images())


@pytest.mark.parametrize("seed", range(3))
def test_it_gains_more_than_ten_points_over_its_own_start(seed):
    shared = {
        "method": "dm",
        "ipc": 1,
        "width": 16,
        "lengths": (100,),
        "validation_nets": 3,
        "validate_every": 100,
        "augment": ("crop", "scale", "rotate"),
        "real_per_class": 32,
        "precision": "float32",
        "seed": seed,
    }
    start = potstill.distill(**shared, steps=1, outer_lr=1e-12).metadata.accuracy.mean
    end = potstill.distill(**shared, steps=150).metadata.accuracy.mean

    assert end > start + 0.1


def test_a_run_is_resumed_evaluated_and_reported(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    potstill.distill(**SMALL, out=whole)
    seen: list[int] = []
    listener = Listener(
        step=lambda record, steps: seen.append(record.step), stop=lambda: len(seen) >= 7
    )
    with pytest.raises(Interrupted):
        potstill.distill(**SMALL, out=cut, listener=listener)
    potstill.resume(cut)
    assert bytes_of(cut) == bytes_of(whole)
    recorded = potstill.load(whole).metadata
    assert recorded.method == "dm"
    assert [
        recorded.option(name) for name in ("outer_optimizer", "outer_momentum", "outer_lr", "clip")
    ] == ["sgd", 0.5, 1, 0]
    assert recorded.option("init") == "real"
    assert (
        main(
            [
                "evaluate",
                str(whole),
                "--nets",
                "1",
                "--protocol",
                "dsa-1000-digits",
                "--compile",
                "off",
            ]
        )
        == 0
    )
    ((row,),) = (
        one["rows"] for one in json.loads((whole / "evaluation.json").read_text())["evaluations"]
    )
    assert (row["steps"], row["lr"]) == (1001, 0.01)
    assert main(["report", str(whole)]) == 0
    page = (whole / "report.html").read_text()
    assert "Real examples in a step" in page
    assert "How far apart random networks see real and synthetic images" in page
    assert "trains a network on the synthetic" not in page
    assert main(["diagnose", str(whole)]) == 2
    assert "the noise of dm cannot be taken apart, it does not unroll" in capsys.readouterr().err


def test_rows_of_numbers_are_matched_too():
    rows = torch.randn(60, 7, generator=generator(5)) + 3 * torch.nn.functional.one_hot(
        torch.arange(60) % 3, 7
    )
    options = {**SMALL, "model": "mlp", "classes_per_batch": "auto", "augment": "auto"}
    assert potstill.distill(rows, torch.arange(60) % 3, **options).shape == (7,)


class Featureless(nn.Module):
    """A network that does not say what its last layer reads."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_labels": True}, "learn_labels has no effect with --method dm"),
        ({"real_batch": 10}, "real_batch has no effect with --method dm"),
        ({"window": 5}, "window has no effect with --method dm"),
        ({"real_per_class": 0}, "real_per_class must be at least 1, got 0"),
        ({"model": Featureless}, "features"),
    ],
)
def test_what_it_cannot_take_is_told_in_one_sentence(options, message):
    base = {
        name: value
        for name, value in SMALL.items()
        if "model" not in options or name not in ("width", "depth", "model")
    }
    with pytest.raises(InputError) as error:
        potstill.distill(**{**base, **options})
    assert message in str(error.value)


def test_it_is_a_row():
    assert METHODS["dm"] is DistributionMatching
