"""Learners: what all rows promise, and the nearest example against a loop."""

import dataclasses
import json

import pytest
import torch
from test_evaluation import blobs, linear, measured, set_of
from test_runs import QUICK

import potstill
from potstill.cli.parser import main
from potstill.errors import InputError
from potstill.evaluation.bench import examples_of
from potstill.evaluation.learners import FeatureRidge, Nearest, SquaredNetwork, TrainingSet
from potstill.evaluation.records import EVALUATION
from potstill.evaluation.training import accuracy, set_batches, train_network
from potstill.models import fresh, resolve
from potstill.registry import LEARNERS
from potstill.seeds import generator

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", list(LEARNERS))
def test_the_same_examples_and_seed_give_the_same_answers(name):
    real = blobs()
    distilled, inputs = set_of(real), real.test.take(torch.arange(7))[0]
    factory = resolve("mlp", real.shape, 3, width=8, depth=1)
    learner = LEARNERS[name].of(distilled.recipe, factory, CPU)
    first, again, other = (learner.fit(examples_of(distilled), seed)(inputs) for seed in (1, 1, 2))
    assert first.shape == (7, 3)
    assert torch.equal(first, again)
    assert torch.equal(first, other) != learner.random
    assert accuracy(learner.fit(examples_of(distilled), 1), real.test) > 0.4  # the blobs are easy


def test_the_nearest_example_is_that_of_a_loop():
    rng = generator(0)
    images, inputs = (
        torch.randn(40, 2, 3, 3, generator=rng) + 2000,
        torch.randn(30, 2, 3, 3, generator=rng) + 2000,
    )
    targets = torch.rand(40, 5, generator=rng)
    answers = Nearest(CPU).fit(TrainingSet(images, targets, targets.argmax(1)), 0)(inputs)
    for answer, one in zip(answers, inputs, strict=True):
        distances = [float((one.double() - image.double()).square().sum()) for image in images]
        assert torch.equal(answer, targets[distances.index(min(distances))])


def test_of_several_nearest_examples_the_first_one_answers():
    image = torch.randn(1, 1, 4, 4, generator=generator(1)) * 100
    images = torch.cat([image + 7, image, image, image])
    predict = Nearest(CPU).fit(TrainingSet(images, torch.eye(4), torch.arange(4)), 0)
    noise = 1e-3 * torch.randn(50, 1, 4, 4, generator=generator(2))
    assert predict(image + noise).argmax(1).tolist() == [1] * 50


def test_an_evaluation_by_the_nearest_example_trains_nothing():
    real = blobs(600)
    rows = measured(set_of(real), real, nets=3, learner="nearest", baselines=("random", "full"))
    assert [(row.name, row.model, row.steps, row.lr, row.accuracy.n) for row in rows] == [
        ("distilled", "nearest", None, None, 1),
        ("random", "nearest", None, None, 3),
        ("full", "nearest", None, None, 1),
    ]
    right = accuracy(Nearest(CPU).fit(examples_of(set_of(real)), 0), real.test)
    assert rows[0].accuracy.mean == pytest.approx(right)
    assert rows[2].images == len(real.train)
    assert {row.protocol for row in rows} == {"the nearest example gives the class"}


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 3},
        {"lr": 0.1},
        {"protocol": "paper"},
        {"models": ("mlp",)},
        {"model": linear},
        {"compile": "on"},
    ],
)
def test_an_option_without_effect_on_the_learner_is_refused(option):
    real = blobs()
    name = "models" if "model" in option else next(iter(option))
    with pytest.raises(
        InputError,
        match=f"{name} has no effect on the learner nearest, which trains no networks, got ",
    ):
        measured(set_of(real), real, learner="nearest", **option)


def test_the_command_and_the_report_show_a_learner(tmp_path, capsys):
    potstill.distill(**{**QUICK, "steps": 1}, out=tmp_path / "run")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                "--learner",
                "nearest",
                "--baseline",
                "random",
                "--nets",
                "2",
            ]
        )
        == 0
    )
    assert "the nearest example gives the class" in " ".join(capsys.readouterr().out.split())
    (entry,) = json.loads((tmp_path / "run" / EVALUATION).read_text())["evaluations"]
    assert (entry["standard"], entry["settings"]["learner"], entry["rows"][0]["steps"]) == (
        False,
        "nearest",
        None,
    )
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "the nearest example gives the class" in (tmp_path / "run" / "report.html").read_text()


def test_a_regression_on_features_is_a_direct_solve_on_those_of_the_trained_network():
    real = blobs()
    distilled, inputs = set_of(real), real.test.take(torch.arange(7))[0]
    factory = resolve("mlp", real.shape, 3, width=8, depth=1)
    recipe = dataclasses.replace(distilled.recipe, steps=20, ridge=1e-2)
    images, targets, labels = examples_of(distilled)
    found = FeatureRidge(recipe, factory, CPU).fit(TrainingSet(images, targets, labels), 3)(inputs)
    network = fresh(factory, 3, CPU)
    batches = set_batches(images, targets, labels, recipe, 3)
    for _ in train_network(network, batches, recipe, (20,), 3, SquaredNetwork.loss):
        pass
    rows, seen = (network.features(some).detach().double() for some in (images, inputs))
    gram = rows @ rows.T
    gram = gram + 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram))
    expected = seen @ rows.T @ torch.linalg.inv(gram) @ (targets - 1 / 3).double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_regression_on_features_says_what_it_cannot_do():
    real = blobs()
    distilled = set_of(real)
    with pytest.raises(InputError, match="leave the baseline full out"):
        measured(distilled, real, learner="krr-features", baselines=("full",), nets=1)
    learner = FeatureRidge(distilled.recipe, lambda: torch.nn.Linear(16, 3), CPU)
    with pytest.raises(InputError, match="needs a network whose features"):
        learner.fit(examples_of(distilled), 0)
