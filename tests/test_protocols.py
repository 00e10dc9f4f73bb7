"""Protocols against the published code written out with torch.optim, and what they may look at."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_evaluation import blobs, measured, set_of

from potstill.cli.parser import main
from potstill.data import augmentation
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.engine.optimizers import SGD
from potstill.errors import InputError
from potstill.evaluation.bench import recipe_under
from potstill.evaluation.learners import SquaredNetwork
from potstill.evaluation.protocols import (
    DSA_1000,
    EvaluationOptions,
    as_in_frepo,
    published,
)
from potstill.evaluation.training import accuracy, set_batches, train_network
from potstill.models import fresh, resolve
from potstill.registry import PROTOCOLS
from potstill.seeds import derive, generator

CPU = torch.device("cpu")
DSA = ("color", "crop", "cutout", "flip", "scale", "rotate")
EPOCHS = {
    "dc-300": (300, ()),
    "dsa-1000": (1000, DSA),
    "dsa-1000-digits": (1000, tuple(n for n in DSA if n != "flip")),
}


def published_training(net, images, labels, epochs, operations, seed):
    """`evaluate_synset` and `epoch` of the published code (VICO-UoE/DatasetCondensation, utils.py),
    with our draws.
    """
    rng, rate = generator(seed, "batches"), 0.01
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=0.0005)
    for epoch in range(epochs + 1):
        for rows in torch.randperm(len(images), generator=rng).split(256):
            drawn = augmentation.draw(operations, len(rows), rng)
            loss = F.cross_entropy(net(augmentation.apply(images[rows], drawn)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == epochs // 2 + 1:
            rate *= 0.1
            optimizer = torch.optim.SGD(
                net.parameters(), lr=rate, momentum=0.9, weight_decay=0.0005
            )
    return net.eval()


@pytest.mark.parametrize("count", [9, 300])
@pytest.mark.parametrize("epochs", [4, 7])
def test_training_is_the_published_one(count, epochs):
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 4, 4, generator=generator(0)) + labels.view(-1, 1, 1, 1)
    factory = resolve("mlp", (1, 4, 4), 3, width=8, depth=1)
    recipe = recipe_under(
        published("p", epochs, ("flip", "color")), Recipe(precision="bfloat16", lr=9.0), count
    )
    assert recipe.steps == (epochs + 1) * (1 if count == 9 else 2)
    ours = fresh(factory, 5, CPU)
    list(
        train_network(
            ours,
            set_batches(images, F.one_hot(labels, 3).float(), labels, recipe, 2),
            recipe,
            (recipe.steps,),
            2,
        )
    )
    theirs = published_training(
        fresh(factory, 5, CPU), images, labels, epochs, ("flip", "color"), 2
    )
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EPOCHS)
def test_a_published_evaluation_tests_once_at_the_end_and_chooses_nothing(name):
    real, (epochs, operations) = blobs(), EPOCHS[name]
    distilled = set_of(real)
    unseen = replace(real, validation=None)  # whoever looks at it fails
    (row,) = measured(distilled, unseen, nets=2, protocol=name, compile="off", seed=4)
    found = []
    for net in range(2):
        seed = derive(derive(4, "test"), "network", net)
        module = fresh(resolve("mlp", real.shape, 3, width=8, depth=1), seed, CPU)
        trained = published_training(
            module, distilled.images, distilled.labels, epochs, operations, seed
        )
        found.append(accuracy(trained, real.test))
    assert row.accuracy.mean == pytest.approx(sum(found) / 2)
    assert (row.steps, row.lr) == (epochs + 1, 0.01)
    assert row.protocol.startswith(f"{name}: {epochs + 1:,} epochs of SGD")
    assert ("flip" in row.protocol) == ("flip" in operations)


def test_random_images_train_by_the_protocol_and_all_images_by_the_set_s_recipe():
    real = blobs(600)
    distilled = set_of(real, lr=0.02)
    rows = measured(
        distilled,
        real,
        nets=1,
        protocol="dc-300",
        baselines=("random", "full"),
        full_epochs=2,
        compile="off",
    )
    assert [(row.name, row.lr) for row in rows] == [
        ("distilled", 0.01),
        ("random", 0.01),
        ("full", 0.02),
    ]
    assert rows[1].protocol == rows[0].protocol
    assert rows[2].protocol.endswith("on validation data")
    own = measured(distilled, real, nets=1, baselines=("full",), full_epochs=2, compile="off")
    assert own[1] == rows[2]


def test_a_set_of_several_blocks_trains_in_epochs_over_all_of_it():
    real = blobs(900)
    # 270 examples: an epoch is 256 and 14.
    blocks = tuple(set_of(real).blocks[0] for _ in range(90))
    distilled = DistilledSet(blocks, real.class_names, real.preprocess, set_of(real).recipe)
    (row,) = measured(distilled, real, nets=1, protocol="dc-300", compile="off")
    assert row.steps == 301 * 2


def test_a_protocol_changes_nothing_else_of_the_recipe():
    recipe = Recipe("mlp", width=8, depth=1, norm="none", augment=("flip",), steps=7)
    under = recipe_under(DSA_1000, recipe, 10)
    assert (under.model, under.width, under.depth, under.norm) == ("mlp", 8, 1, "none")
    assert under.steps == 1001
    assert under.optimizer == SGD(0.9, 5e-4, (502,), 0.1, restart=True)
    assert (
        recipe_under(PROTOCOLS["validation"], recipe, 10)
        == recipe_under(PROTOCOLS["paper"], recipe, 10)
        == recipe
    )


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_is_listed_and_selectable(name, capsys):
    assert EvaluationOptions.of(protocol=name).protocol == name
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert name in capsys.readouterr().out
    main(["list"])
    assert f"\n  {name} " in capsys.readouterr().out


def test_options_are_read_from_text_and_told_when_they_are_wrong():
    read = EvaluationOptions.of(
        nets="3", lr="0.5", steps="auto", model="mlp,vgg11", baseline=["random"], compile="off"
    )
    assert read == EvaluationOptions(
        nets=3, lr=0.5, models=("mlp", "vgg11"), baselines=("random",), compile="off"
    )
    for wrong, message in (
        ({"nets": "x"}, "nets must be a whole number, got 'x'"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"steps": "long"}, "steps must be a whole number or auto, got 'long'"),
        ({"compile": "maybe"}, "compile must be one of auto, on, off; got 'maybe'"),
        ({"protocol": "dsa"}, "unknown protocol 'dsa'"),
        ({"protocol": "dc-300", "steps": 9}, "steps must be auto with the protocol dc-300"),
        ({"basline": "random"}, r"unknown option 'basline' \(did you mean 'baseline'\?\)"),
    ):
        with pytest.raises(InputError, match=message):
            EvaluationOptions.of(**wrong)


def test_frepos_training_is_the_published_one(monkeypatch):
    """Squared error, Adam, full batches; optax's warm-up from 0 and cosine to a hundredth."""
    monkeypatch.setattr("potstill.evaluation.protocols.FREPO_UPDATES", ((10, 30), (100, 2000)))
    protocol = replace(
        as_in_frepo("p", ("crop", "color")),
        recipe={**as_in_frepo("p", ("crop", "color")).recipe, "warm_up": 12},
    )
    labels = torch.arange(9) % 3
    images = torch.randn(9, 1, 4, 4, generator=generator(0)) + labels.view(-1, 1, 1, 1)
    targets = F.one_hot(labels, 3) + 0.1 * torch.randn(9, 3, generator=generator(1))
    factory = resolve("mlp", (1, 4, 4), 3, width=8, depth=1)
    recipe = recipe_under(protocol, Recipe(optimizer=SGD(), lr=9.0), 9)
    assert recipe.steps == 30
    (own,) = SquaredNetwork(recipe, factory, CPU).course(
        set_batches(images, targets, labels, recipe, 5), (30,), 5
    )
    twin, rng = fresh(factory, 5, CPU), generator(5, "batches")
    optimizer = torch.optim.Adam(twin.parameters(), 1.0)
    for step in range(30):
        share = (
            step / 12 if step < 12 else 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 12) / 18)) / 2
        )
        optimizer.param_groups[0]["lr"] = 3e-4 * share
        rows = torch.randperm(9, generator=rng)
        drawn = augmentation.draw(("crop", "color"), 9, rng)
        loss = (twin(augmentation.apply(images[rows], drawn)) - targets[rows] + 1 / 3).square()
        optimizer.zero_grad()
        (loss.mean() / 2).backward()
        optimizer.step()
    torch.testing.assert_close(own(images), twin(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        (4, 1000),
        (10, 1000),
        (100, 2000),
        (250, 20_000),
        (500, 5000),
        (1000, 10_000),
        (9999, 40_000),
    ],
)
def test_frepo_trains_for_longer_on_larger_sets(examples, steps):
    assert recipe_under(PROTOCOLS["frepo"], Recipe(), examples).steps == steps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 5}, "steps must be auto with the protocol frepo"),
        (
            {"learner": "network"},
            "learner must be auto with the protocol frepo, which is of network-mse",
        ),
    ],
)
def test_what_frepos_protocol_decides_is_not_given(options, said):
    with pytest.raises(InputError, match=said):
        EvaluationOptions(protocol="frepo", **options)
