"""Weights of a user's own for the real images."""

import shutil

import numpy as np
import pytest
import torch
from test_runs import QUICK, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.data.arrays import from_arrays, with_weights
from potstill.data.preparation import prepare
from potstill.data.sampling import Weighted
from potstill.distillation.outer import Carried
from potstill.distillation.setup import Setup
from potstill.evaluation.hardness import hardness_weights
from potstill.progress import SILENT
from potstill.registry import InputError
from potstill.seeds import generator

COUNT = 90
WEIGHTS = np.arange(COUNT) % 4
"""A quarter of them 0."""


def arrays():
    """Images whose every pixel is their weight, and their classes."""
    images = torch.as_tensor(WEIGHTS, dtype=torch.float32).reshape(COUNT, 1, 1).expand(COUNT, 8, 8)
    return images.contiguous(), torch.arange(COUNT) % 3


def setup(**options) -> Setup:
    config = configuration(
        {
            **QUICK,
            "ipc": 1,
            "classes_per_batch": 2,
            "data": "arrays",
            "preprocess": "none",
            "device": "cpu",
            **options,
        }
    )
    return Setup.of(config, with_weights(from_arrays(*arrays()), WEIGHTS), None, SILENT)


def test_each_weight_stays_with_its_image_and_decides_how_often_it_is_drawn():
    real = setup().problem(setup().stage(None), Carried()).real
    sampler, train = real.sampler, real.train
    rng, draws = generator(0), 4000
    images = torch.cat([train.take(sampler.draw(train, 1, rng))[0] for _ in range(draws)])
    drawn = torch.bincount(images[:, 0, 0, 0].int(), minlength=4) / draws
    expected = torch.bincount(train.images[:, 0, 0, 0].int(), minlength=4) * torch.arange(4)
    assert drawn[0] == 0
    assert (drawn - expected / expected.sum()).abs().max() < 4 * 0.5 / draws**0.5


def test_a_hardness_sampler_multiplies_them():
    known = setup(real_sampler="hardness", hardness_nets=2)
    count = len(known.real.train)
    scores = torch.arange(count).remainder(3).to(torch.uint8)
    sampler = known.problem(known.stage(None), Carried(sampler={"scores": scores})).real.sampler
    assert isinstance(sampler, Weighted)
    assert torch.equal(sampler.weights, known.real.weights * hardness_weights(scores, 1, 2))
    assert torch.equal(known.real.weights, known.real.train.images[:, 0, 0, 0].double())


def test_a_run_with_weights_is_another_run_and_resumes_with_the_same_ones_only(tmp_path):
    weights = torch.rand(1797, generator=generator(3))
    whole = potstill.distill(**QUICK, weights=weights)
    assert not torch.equal(whole.images, potstill.distill(**QUICK).images)
    assert "identity" in whole.meta["data"]
    interrupted_run(tmp_path / "cut", 5, weights=weights)
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "cut.html")]) == 0
    page = (tmp_path / "cut.html").read_text()
    assert "by weights of their own" in page
    assert "--resume" not in page  # no command has the weights
    shutil.copytree(tmp_path / "cut", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints")  # as if it was killed before the first
    with pytest.raises(
        InputError, match="was started with other data or weights; give it those again"
    ):
        potstill.resume(tmp_path / "early")
    for others in (None, weights.flip(0)):
        with pytest.raises(
            InputError, match="was started with other data or weights; give it those again"
        ):
            potstill.resume(tmp_path / "cut", weights=others)
    assert torch.equal(potstill.resume(tmp_path / "cut", weights=weights).images, whole.images)
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "cut.html")]) == 0
    page = (tmp_path / "cut.html").read_text()
    assert "by weights of their own" in page
    assert "Make it again" not in page  # no command has the weights


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            np.ones(4),
            r"weights must be a number for each of the 90 training images .*, got shape \(4,\) of "
            r"type float64",
        ),
        (
            ["1"] * COUNT,
            r"weights must be a number for each of the 90 training images .*, got shape \(90,\) of "
            r"type <U1",
        ),
        (-WEIGHTS, "weights must be finite and at least 0, and not all 0, got -3 to 0"),
        (
            np.full(COUNT, np.nan),
            "weights must be finite and at least 0, and not all 0, got nan to nan",
        ),
        (np.zeros(COUNT), "weights must be finite and at least 0, and not all 0, got 0 to 0"),
    ],
)
def test_what_is_no_weights_is_refused(weights, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.distill(*arrays(), ipc=1, weights=weights)


def test_weights_that_only_held_out_images_have_are_refused():
    numbered = torch.arange(COUNT, dtype=torch.float32).reshape(COUNT, 1, 1).expand(COUNT, 8, 8)
    dataset, config = from_arrays(numbered, arrays()[1]), configuration(preprocess="none")
    real = prepare(dataset, config.data, torch.device("cpu"), config.preprocessing)
    only = np.eye(COUNT)[int(real.validation.images[0, 0, 0, 0])]
    with pytest.raises(
        InputError,
        match="weights must be above 0 for some image that is not held out, all of those have 0",
    ):
        prepare(with_weights(dataset, only), config.data, torch.device("cpu"), config.preprocessing)


def test_diagnosing_takes_no_more_samples_than_have_a_weight(tmp_path):
    weights = np.zeros(1797)
    weights[:40] = 1
    potstill.distill(**QUICK, weights=weights, out=tmp_path / "run")
    with pytest.raises(
        InputError, match=r"samples x size must be at most the \d\d train images, got 100 x 1"
    ):
        potstill.diagnose(tmp_path / "run", weights=weights)
    (start, *_) = potstill.diagnose(tmp_path / "run", weights=weights, samples=10)
    assert start.real[0].n == 10
