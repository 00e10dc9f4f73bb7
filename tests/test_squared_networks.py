"""Networks that learn by squared error as RCIG, RFAD and KIP measure their sets."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_evaluation import blobs, set_of
from torch import nn

from potstill.distilled.recipes import Recipe
from potstill.engine.optimizers import SGD, Adam
from potstill.errors import InputError
from potstill.evaluation.bench import recipe_under
from potstill.evaluation.measuring import evaluate
from potstill.evaluation.protocols import EvaluationOptions
from potstill.evaluation.squared_networks import CentredNetwork, StableNetwork, stable_rate
from potstill.evaluation.training import SetBatches, split_batches
from potstill.models import fresh, resolve
from potstill.registry import PROTOCOLS
from potstill.seeds import generator

CPU = torch.device("cpu")
LABELS = torch.arange(9) % 3
IMAGES = torch.randn(9, 1, 4, 4, generator=generator(0)) + LABELS.view(-1, 1, 1, 1)
TARGETS = F.one_hot(LABELS, 3) + 0.1 * torch.randn(9, 3, generator=generator(1))
FACTORY = resolve("mlp", (1, 4, 4), 3, width=8, depth=1)


def batches(recipe: Recipe) -> SetBatches:
    return SetBatches(IMAGES, TARGETS, LABELS, recipe, 5)


@pytest.mark.parametrize(("examples", "steps"), [(5, 1000), (10, 1000), (11, 2000), (500, 2000)])
@pytest.mark.parametrize("name", ["rcig", "rcig-augmented", "rcig-digits"])
def test_rcigs_training_is_the_published_one(name, examples, steps):
    recipe = recipe_under(PROTOCOLS[name], Recipe(optimizer=SGD(), lr=9.0), examples)
    assert (recipe.steps, recipe.optimizer, recipe.lr) == (steps, Adam(), 1e-4)
    assert (recipe.warm_up, recipe.final_rate, recipe.batch_size) == (500, 0.01, 256)
    assert recipe.learner == "network-mse"
    assert recipe.mirrored_copies == (name != "rcig-digits")
    assert bool(recipe.augment) == (name == "rcig-augmented")
    assert recipe.rate_at(500) == 1e-4
    assert recipe.rate_at(steps) == pytest.approx(1e-6)


def test_mirrored_copies_have_the_labels_of_their_images():
    images, targets = batches(Recipe(batch_size=100, mirrored_copies=True))(0)
    assert len(images) == 18
    for image, target in zip(IMAGES, TARGETS, strict=True):
        for wanted in (image, image.flip(-1)):
            same = (images == wanted).flatten(1).all(1)
            assert torch.equal(targets[same][0], target)
    of_a_class = batches(Recipe(batch_per_class=6, classes_per_batch=3, mirrored_copies=True))
    assert of_a_class(0)[0].shape == (18, 1, 4, 4)


def test_a_centred_network_learns_scaled_targets_from_zero():
    """Written out: f less f at the start, the mean square of its error over s squared."""
    recipe = Recipe(optimizer=SGD(0.9), lr=0.25, batch_size=9, steps=12, label_scale=4.0)
    learner = CentredNetwork(recipe, FACTORY, CPU)
    untrained, trained = [], []
    for lengths, into in (((0,), untrained), ((12,), trained)):
        (told,) = learner.course(batches(recipe), lengths, 3)
        into.append(told(IMAGES).detach().clone())
    assert not untrained[0].any()
    twin, start = fresh(FACTORY, 3, CPU), fresh(FACTORY, 3, CPU)
    optimizer = torch.optim.SGD(twin.parameters(), 0.25, 0.9)
    for _ in range(12):
        off = twin(IMAGES) - start(IMAGES).detach() - 4 * (TARGETS - 1 / 3)
        optimizer.zero_grad()
        (off.square().mean() / 4**2).backward()
        optimizer.step()
    torch.testing.assert_close(trained[0], twin(IMAGES) - start(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_stable_rate_of_a_linear_network_is_known(momentum):
    """Its tangent kernel is that of the inputs, once for each output."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    largest = float(torch.linalg.svdvals(IMAGES.flatten(1))[0]) ** 2
    expected = 2 * (1 + momentum) * 9 * 3 / largest
    assert stable_rate(module, IMAGES, momentum) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("share", "stable"), [(0.95, True), (1.05, False)])
def test_training_is_stable_below_that_rate_and_not_above(share, stable):
    factory = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))  # noqa: E731
    recipe = Recipe(optimizer=SGD(0.9), lr=share, batch_size=9, steps=1500)
    (told,) = StableNetwork(recipe, factory, CPU).course(batches(recipe), (1500,), 0)
    assert (float(told(IMAGES).detach().abs().max()) < 1) == stable


@pytest.mark.parametrize("name", ["rcig", "kip"])
def test_a_set_is_measured_by_name(name, monkeypatch):
    real = blobs(600)
    distilled = set_of(real)
    known = PROTOCOLS[name]
    # The largest stable rate kills the ReLUs of so small a network.
    quick = {"lr": 0.03, "warm_up": 2} if name == "rcig" else {"lr": 0.1}
    short = dataclasses.replace(known, updates=((1, 300),), recipe={**known.recipe, **quick})
    monkeypatch.setattr(f"potstill.evaluation.protocols.{name.upper()}", short)
    options = EvaluationOptions(nets=2, protocol=name, compile="off", baselines=("random",))
    rows = evaluate(distilled, real, options)
    assert [row.name for row in rows] == ["distilled", "random"]
    assert all(row.protocol.startswith(f"{name}: squared error") for row in rows)
    assert rows[0].steps == 300
    assert rows[0].accuracy.mean > 0.5


@pytest.mark.parametrize("name", ["dsa-300", "dc-300", "frepo", "kip", "rfad", "rcig-digits"])
def test_only_its_own_protocols_take_mirrored_copies(name):
    recipe = Recipe(mirrored_copies=True)
    assert not recipe_under(PROTOCOLS[name], recipe, 10).mirrored_copies
    for own in ("validation", "rcig", "rcig-augmented"):
        assert recipe_under(PROTOCOLS[own], recipe, 10).mirrored_copies
    with pytest.raises(InputError, match="mirrored copies are of images"):
        SetBatches(IMAGES.flatten(1), TARGETS, LABELS, recipe, 0)


def test_rfads_protocol_chooses_the_length_on_validation_data(monkeypatch):
    protocol = PROTOCOLS["rfad"]
    recipe = recipe_under(protocol, Recipe(lr=0.01, label_scale=8.0), 10)
    assert (recipe.learner, recipe.optimizer, recipe.lr) == ("network-centred", SGD(0.9), 0.01)
    assert (recipe.label_scale, recipe.batch_size, recipe.augment) == (8.0, 513, ())
    assert protocol.chosen_on == "validation"
    real = blobs(600)
    options = EvaluationOptions(nets=1, protocol="rfad", steps=20, compile="off")
    (row,) = evaluate(set_of(real, lr=0.1), real, options)
    assert row.steps == 20
    assert row.accuracy.mean > 0.5
    short = dataclasses.replace(protocol, candidates=(2, 20))
    monkeypatch.setattr("potstill.evaluation.protocols.RFAD", short)
    options = EvaluationOptions(nets=1, protocol="rfad", compile="off")
    (row,) = evaluate(set_of(real, lr=0.1), real, options)
    assert row.protocol.startswith("rfad: network less its start")
    assert row.protocol.endswith("best of 2, 20 steps on validation data")


def test_a_rate_by_examples_is_for_a_set():
    recipe = Recipe(batch_size=9, optimizer=SGD(0.9))
    every = split_batches(blobs(60).train, recipe, 3, 0)
    with pytest.raises(InputError, match="leave the baseline full out"):
        list(StableNetwork(recipe, FACTORY, CPU).course(every, (1,), 0))
