"""Evaluation against a training loop written by hand, and what each protocol may look at."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_store import make_set
from torch import nn

import potstill
from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays
from potstill.data.preparation import RealData, prepare
from potstill.data.splits import TensorSplit
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.flat import FlatModel
from potstill.engine.optimizers import SGD, Adam
from potstill.engine.when_to_compile import NetworkFamily
from potstill.errors import InputError
from potstill.evaluation import bench, measuring
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.scoring import score_set
from potstill.evaluation.training import (
    accuracy,
    evaluation_batches,
    set_batches,
    split_batches,
    train_compiled,
    train_network,
)
from potstill.models import fresh, resolve
from potstill.records.metrics import Figure
from potstill.seeds import derive, generator

CPU = torch.device("cpu")


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def blobs(count: int = 120, seed: int = 0) -> RealData:
    """Three classes of 1 x 4 x 4 images that a network can tell apart."""
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 1, 4, 4, generator=generator(9))
    images = centres[labels] + torch.randn(count, 1, 4, 4, generator=generator(seed, "noise"))
    unchanged = configuration(preprocess="none").preprocessing
    return prepare(from_arrays(images, labels), DataConfig(), CPU, unchanged)


def set_of(real: RealData, **recipe) -> DistilledSet:
    """A set of three real images with a recipe."""
    plain = make_set("none")
    rows = [int((real.train.labels == label).nonzero()[0]) for label in range(3)]
    block = type(plain.blocks[0]).of_pixels(real.train.images[rows], 3)
    options = {
        "width": 8,
        "depth": 1,
        "batch_per_class": 1,
        "classes_per_batch": 3,
        "steps": 20,
        **recipe,
    }
    return DistilledSet((block,), ("a", "b", "c"), real.preprocess, Recipe("mlp", **options))


def scheduled(optimizer: str, lr: float) -> Recipe:
    """A recipe in which every setting of the optimizer acts."""
    rule = Adam() if optimizer == "adam" else SGD(0.8, 0.01, (5, 9), 0.3)
    return Recipe(optimizer=rule, lr=lr, batch_per_class=1, classes_per_batch=3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_equals_a_loop_written_by_hand(optimizer):
    recipe = scheduled(optimizer, 0.05)
    images, targets = (
        torch.randn(3, 1, 4, 4, generator=generator(0)),
        torch.rand(3, 3, generator=generator(1)),
    )
    module = fresh(linear, 4, CPU)
    batches = set_batches(images, targets, torch.arange(3), recipe, 0)
    assert len(list(train_network(module, batches, recipe, (4, 12), 0))) == 2

    weight, bias = (
        p.detach().double().requires_grad_() for p in fresh(linear, 4, CPU)[1].parameters()
    )
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (weight, bias)]
    for step in range(12):
        # Soft cross-entropy by its definition: - sum over classes of weight times log-probability,
        # mean over the batch.
        logits = images.double().flatten(1) @ weight.T + bias
        loss = -(targets.double() * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
        grads = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for p, grad, moment in zip((weight, bias), grads, moments, strict=True):
                if optimizer == "adam":
                    moment[0] = 0.9 * moment[0] + 0.1 * grad
                    moment[1] = 0.999 * moment[1] + 0.001 * grad**2
                    p -= (
                        0.05
                        * moment[0]
                        / (1 - 0.9 ** (step + 1))
                        / ((moment[1] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                    )
                else:
                    moment[0] = 0.8 * moment[0] + grad + 0.01 * p
                    p -= 0.05 * 0.3 ** ((step >= 5) + (step >= 9)) * moment[0]
    torch.testing.assert_close(
        module[1].weight.detach().double(), weight.detach(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        module[1].bias.detach().double(), bias.detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("optimizer", "restart"), [("adam", False), ("sgd", False), ("sgd", True)])
def test_compiled_training_is_the_plain_one(optimizer, restart):
    recipe = scheduled(optimizer, 0.02)
    if restart:
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, restart=True))
    images, targets = (
        torch.randn(3, 1, 8, 8, generator=generator(0)),
        torch.rand(3, 3, generator=generator(1)),
    )
    factory = resolve("convnet", (1, 8, 8), 3, width=8, depth=1)
    tested = torch.randn(7, 1, 8, 8, generator=generator(2))
    compiled = CompiledNetwork(FlatModel(fresh(factory, 5, CPU)), Cut(2), backend="eager")
    module = fresh(factory, 4, CPU)
    first = train_compiled(
        compiled,
        fresh(factory, 4, CPU),
        set_batches(images, targets, torch.arange(3), recipe, 0),
        recipe,
        (4, 12),
    )
    second = train_network(
        module, set_batches(images, targets, torch.arange(3), recipe, 0), recipe, (4, 12), 0
    )
    for one, other in zip(first, second, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(one(tested), other(tested), rtol=1e-3, atol=1e-3)
    # 2 of the 3 images at a time, 2 of the 7 logits, what is missing is filled up
    assert compiled.compilations == 2


def test_a_compiled_evaluation_gives_the_plain_accuracies():
    real = blobs()
    distilled = set_of(real)
    factory = resolve("mlp", real.shape, 3, width=8, depth=1)
    networks = NetworkFamily(factory, real.shape, 3, CPU, "float32")
    compiled = CompiledNetwork(networks.model(0), networks.cut, backend="eager")
    plain, fast = (
        score_set(
            distilled.images,
            distilled.targets,
            distilled.labels,
            distilled.recipe,
            factory,
            lengths=(5, 25),
            splits=(real.validation, real.test),
            nets=2,
            seed=7,
            device=CPU,
            compiled=one,
        )
        for one in (None, compiled)
    )
    assert torch.equal(plain, fast)


def test_accuracy_counts_right_answers_in_evaluation_mode():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    net[1].running_mean.fill_(0)
    images = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]]).view(4, 1, 1, 3)
    frozen = nn.Sequential(*net, nn.Linear(3, 3))
    with torch.no_grad():
        frozen[2].weight.copy_(torch.eye(3))
        frozen[2].bias.zero_()
    predict = next(
        train_network(
            frozen, lambda step: (images, torch.eye(3)[[0, 1, 2, 0]]), Recipe(lr=1e-9), (0,), 0
        )
    )
    assert accuracy(predict, TensorSplit(images, torch.tensor([0, 1, 2, 1]))) == 0.75
    assert not frozen.training


def test_a_figure_is_mean_sample_deviation_and_n():
    figure = Figure.of(torch.tensor([0.5, 0.7, 0.9]))
    assert (figure.mean, figure.std, figure.n) == (pytest.approx(0.7), pytest.approx(0.2), 3)
    assert str(figure) == "70.0 ± 20.0 % (n = 3)"
    assert Figure.of(torch.tensor([0.5])) == Figure(0.5, None, 1)
    assert str(Figure(0.5, None, 1)) == "50.0 % (n = 1)"


def test_scores_are_of_networks_from_their_own_seeds_at_each_length():
    real = blobs()
    distilled = set_of(real)
    factory = resolve("mlp", real.shape, 3, width=8, depth=1)
    scores = score_set(
        distilled.images, distilled.targets, distilled.labels, distilled.recipe, factory,
        lengths=(5, 25), splits=(real.validation, real.test), nets=2, seed=7, device=CPU,
    )  # fmt: skip
    for net in range(2):
        seed = derive(7, "network", net)
        module = fresh(factory, seed, CPU)
        batches = set_batches(
            distilled.images, distilled.targets, distilled.labels, distilled.recipe, seed
        )
        for place, predict in enumerate(
            train_network(module, batches, distilled.recipe, (5, 25), seed)
        ):
            assert scores[net, place].tolist() == pytest.approx(
                [accuracy(predict, real.validation), accuracy(predict, real.test)]
            )
    assert scores.shape == (2, 2, 2)


def measured(
    distilled: DistilledSet, real: RealData, *, model=None, lengths=measuring.LENGTHS, **options
):
    """The rows of an evaluation with these options."""
    return measuring.evaluate(
        distilled,
        real,
        EvaluationOptions(**{"device": "cpu", **options}),
        model=model,
        lengths=lengths,
    )


def spoilt(real: RealData, which: str) -> RealData:
    """The data with the labels of one split turned round, so that what looks at it chooses
    otherwise.
    """
    fields = {name: getattr(real, name) for name in real.__dataclass_fields__}
    split = fields[which]
    fields[which] = TensorSplit(split.images, (split.labels + 1) % 3)
    return RealData(**fields)


def test_the_validation_protocol_never_chooses_by_the_test_split():
    real = blobs(600)
    distilled = set_of(real)
    honest = measured(
        distilled,
        real,
        nets=2,
        model="mlp",
        baselines=("random", "full"),
        full_epochs=2,
        lengths=(1, 40),
    )
    other_test = measured(
        distilled,
        spoilt(real, "test"),
        nets=2,
        model="mlp",
        baselines=("random", "full"),
        full_epochs=2,
        lengths=(1, 40),
    )
    assert [row.steps for row in honest] == [row.steps for row in other_test]
    assert all(
        one.accuracy.mean != other.accuracy.mean
        for one, other in zip(honest, other_test, strict=True)
    )
    other_validation = measured(
        distilled, spoilt(real, "validation"), nets=2, baselines=("random",), lengths=(1, 40)
    )
    assert [row.steps for row in honest[1:2]] != [row.steps for row in other_validation[1:2]]
    assert "validation" in honest[1].protocol


def test_the_paper_protocol_takes_the_best_of_its_lengths_on_test_and_says_so():
    real = blobs()
    distilled = set_of(real)
    (row,) = measured(distilled, real, nets=2, protocol="paper")
    by_length = {
        steps: measured(distilled, real, nets=2, steps=steps)[0].accuracy.mean
        for steps in (300, 600, 1000, 3000)
    }
    assert row.accuracy.mean == max(by_length.values())
    assert by_length[row.steps] == row.accuracy.mean
    assert "on the test set (optimistic)" in row.protocol


def test_baselines_stand_beside_the_set_with_their_sizes():
    real = blobs(600)
    distilled = set_of(real, lr=0.02)
    rows = measured(
        distilled, real, nets=3, baselines=("random", "full"), full_epochs=20, lengths=(5, 40)
    )
    assert [(row.name, row.images) for row in rows] == [
        ("distilled", 3),
        ("random", 3),
        ("full", len(real.train)),
    ]
    assert rows[0].steps == 20
    assert rows[2].steps in [-(-len(real.train) // 256) * epochs for epochs in range(1, 21)]
    assert rows[2].accuracy.mean > 0.8  # the blobs are easy for a network that sees all of them
    assert all(row.accuracy.n == 3 for row in rows)


def test_random_subsets_differ_from_network_to_network_and_hold_each_class():
    real = blobs(600)
    blocks = tuple(set_of(blobs(600, seed)).blocks[0] for seed in range(4))
    distilled = DistilledSet(blocks, real.class_names, real.preprocess, Recipe())
    for draw in (
        lambda seed: bench.real_subset(real, 2, seed),
        lambda seed: bench.subset(distilled, 2, seed),
    ):
        one, two = draw(1), draw(2)
        assert one[1].sum(0).tolist() == [2, 2, 2]
        assert torch.equal(one[1].argmax(1), one[2])
        assert not torch.equal(one[0], two[0])
        assert torch.equal(one[0], draw(1)[0])


def test_the_full_baseline_sees_every_train_image_once_an_epoch():
    images = torch.arange(600.0).view(-1, 1, 1, 1)
    batch = split_batches(TensorSplit(images, torch.zeros(600, dtype=torch.int64)), Recipe(), 2, 0)
    seen = [torch.cat([batch(step)[0].flatten() for step in range(3)]) for _ in range(2)]
    for epoch in seen:
        assert epoch.sort().values.tolist() == list(range(600))
    assert not torch.equal(*seen)


def test_train_gives_a_network_ready_for_real_images():
    real = blobs(600)
    network = potstill.train(set_of(real), steps=200)
    assert not network.training
    images, labels = real.test.take(torch.arange(len(real.test)))
    assert float((network(images).argmax(1) == labels).float().mean()) > 0.6
    other = potstill.train(set_of(real), linear, steps=3)
    assert isinstance(other, nn.Sequential)
    again = potstill.train(set_of(real), linear, steps=3)
    assert torch.equal(other[1].weight, again[1].weight)


def test_soft_targets_that_do_not_sum_to_1_train_by_their_weights():
    targets = torch.tensor([[2.0, 0.5, 0.0]])
    logits = torch.randn(1, 3, generator=generator(0))
    torch.testing.assert_close(
        F.cross_entropy(logits, targets), -(targets * logits.log_softmax(1)).sum()
    )


def test_a_set_of_an_unimportable_model_asks_for_it():
    real = blobs()
    with pytest.raises(
        InputError,
        match=r"distilled with the model here:<lambda>, which cannot be imported; give it with "
        r"model=",
    ):
        potstill.train(
            DistilledSet(
                set_of(real).blocks, ("a", "b", "c"), real.preprocess, Recipe("here:<lambda>")
            )
        )


def test_another_network_takes_the_learning_rate_that_is_best_on_validation_data():
    """The choice, made again by hand; the test split has no say in it."""
    real = blobs(300)
    distilled = set_of(real, lr=0.05)
    row = measured(distilled, real, nets=4, model=linear, lengths=(2, 6), compile="off")[0]
    means = {}
    for rate in (0.05, 0.3 * 0.05):
        scores = score_set(
            distilled.images,
            distilled.targets,
            distilled.labels,
            replace(distilled.recipe, lr=rate),
            linear,
            lengths=(2, 6),
            splits=(real.validation,),
            nets=3,
            seed=derive(derive(0, "test"), "rate"),
            device=CPU,
        )
        means[rate] = float(scores[:, :, 0].mean(0).max())
    assert means[0.05] != means[0.3 * 0.05]
    assert row.lr == max(means, key=means.get)
    assert (
        row.protocol
        == "best of 2, 6 steps on validation data; learning rate chosen on validation data"
    )
    own = measured(distilled, real, nets=2, compile="off")[0]
    fixed = measured(distilled, real, nets=2, model=linear, lr=0.01, lengths=(2, 6), compile="off")[
        0
    ]
    assert (own.lr, fixed.lr) == (0.05, 0.01)
    assert "learning rate" not in own.protocol + fixed.protocol
    with pytest.raises(InputError, match="lr must be above 0, got 0"):
        measured(distilled, real, lr=0.0)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((1, 8, 8), [512, 88]), ((3, 32, 32), [512, 88]), ((3, 64, 64), [128] * 4 + [88])],
)
def test_larger_images_are_tested_fewer_at_a_time(shape, sizes):
    split = TensorSplit(torch.zeros(1, 1, 1, 1).expand(600, *shape), torch.arange(600))
    parts = list(evaluation_batches(split))
    assert [len(labels) for _, labels in parts] == sizes
    assert torch.equal(torch.cat([labels for _, labels in parts]), torch.arange(600))
