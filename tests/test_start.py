"""A run that starts from a set."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_runs import QUICK, bytes_of, flags, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.config.sections import STARTED
from potstill.data.sources import read
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.setup import Setup
from potstill.progress import SILENT, Listener

OPTIONS = {**QUICK, "preprocess": "zca", "augment": ()}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("first") / "run"
    potstill.distill(**OPTIONS, zca_regularization=0.5, out=out)
    return out


def started(init: Path | str, **options) -> Setup:
    """What a run with these options begins with."""
    config = configuration({**OPTIONS, "init": str(init), **options})
    return Setup.of(config, read(config.data), None, SILENT)


def test_a_run_starts_from_the_stored_numbers_and_the_preprocessing_of_a_set(first):
    old, setup = potstill.load(first), started(first)
    (block,) = setup.blocks
    assert block.leaves.keys() == old.blocks[0].leaves.keys()
    for name, leaf in old.blocks[0].leaves.items():
        assert torch.equal(block.leaves[name].cpu(), leaf)
    assert torch.equal(setup.real.preprocess.tensors["matrix"].cpu(), old.fitted.tensors["matrix"])
    assert setup.config.flat()["zca_regularization"] == 0.5
    assert setup.config.flat()["init"] == STARTED


def test_the_rate_follows_the_norm_of_the_set(first):
    norm = float(potstill.load(first).images.flatten(1).square().sum(1).mean().sqrt())
    free = {"outer_lr": "auto"}
    ratio = (
        started(first, **free).config.outer.outer_lr
        / started("gaussian", **free).config.outer.outer_lr
    )
    assert ratio == pytest.approx(norm, rel=1e-5)
    assert norm != pytest.approx(1, rel=1e-3)


def test_such_a_run_resumes_and_moves_without_the_set_it_started_from(first, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(first, elsewhere)
    whole = tmp_path / "whole"
    assert main(["distill", "--init", str(first), "--out", str(whole), *flags(augment=())]) == 0
    assert bytes_of(whole) != bytes_of(first)
    interrupted_run(tmp_path / "run", after=5, init=str(elsewhere), augment=())
    shutil.rmtree(elsewhere)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    potstill.resume(moved)
    assert bytes_of(moved) == bytes_of(whole)
    assert str(tmp_path).encode() not in bytes_of(whole)
    again = tmp_path / "again"
    assert main(["distill", "--config", str(moved / "config.toml"), "--out", str(again)]) == 0
    assert bytes_of(again) == bytes_of(whole)


def test_starting_over_in_the_same_folder_keeps_what_it_starts_from(first, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(first, run)
    before = bytes_of(run)
    words = ["distill", "--init", str(run), "--out", str(run), "--overwrite", *flags(augment=())]
    assert main(words) == 0
    assert (run / STARTED).read_bytes() == before
    assert RunFolder(run).finished


def test_a_nested_set_and_other_parameterisations_are_started_from(tmp_path):
    for name, more in {
        "nested": {"ipc": 2, "boost_blocks": 2},
        "basis": {"ipc": 2, "param": "basis", "factor": 2},
    }.items():
        potstill.distill(**{**OPTIONS, **more}, out=tmp_path / name)
        setup = started(tmp_path / name, **more)
        old = potstill.load(tmp_path / name)
        for block, known in zip(setup.blocks, old.blocks, strict=True):
            for leaf, expected in known.leaves.items():
                assert torch.equal(block.leaves[leaf].cpu(), expected)
    half = started(tmp_path / "nested", ipc=1)
    assert torch.equal(
        half.blocks[0].images.cpu(), potstill.load(tmp_path / "nested").prefix(1).images
    )


def test_hard_labels_become_learned_ones_but_not_the_other_way(first, tmp_path):
    hard = potstill.distill(**{**OPTIONS, "learn_labels": False}, out=tmp_path / "hard")
    targets = started(tmp_path / "hard").blocks[0].leaves["targets"]
    assert torch.equal(targets.cpu(), hard.targets)
    with pytest.raises(potstill.InputError, match="has learned labels; give --learn-labels, too"):
        started(first, learn_labels=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ipc": 3}, "has 2 of each class, the run asks for 3 of each class; give --ipc 2 and"),
        (
            {"init": "gausian"},
            r"init must be gaussian, normal, real, or a run's .* \(did you mean 'gauss",
        ),
        ({"init": "no/such"}, "init must be .* got 'no/such', which does not exist"),
        (
            {"preprocess": "none"},
            "preprocess must be that of the set in .*, zca, got none; give --preprocess zca",
        ),
        ({"param": "basis", "factor": 2}, "is stored as pixels, the run asks for basis"),
        (
            {"data": "sklearn:wine", "classes_per_batch": "auto"},
            "must have the classes of the data",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_one_sentence(options, sentence, first):
    with pytest.raises(potstill.InputError, match=sentence):
        started(**{"init": first, **options})


def test_a_set_without_its_preprocessing_is_no_start(first, tmp_path):
    small = tmp_path / "small.safetensors"
    assert main(["export", str(first), "--without-preprocessing", "--out", str(small)]) == 0
    with pytest.raises(potstill.InputError, match=r"--init needs the whole set"):
        started(small)


def test_data_on_another_scale_are_noted(first):
    said: list[str] = []
    dataset = read(configuration({}).data)
    brighter = replace(dataset.train, images=dataset.train.images.astype("float32") * 100)
    known = configuration({**OPTIONS, "init": str(first)})
    other = replace(dataset, train=brighter, test=None, fingerprint="another")
    Setup.of(known, other, None, Listener(say=said.append))
    assert any("note: values of these images reach more than those" in one for one in said)
    said.clear()
    Setup.of(known, dataset, None, Listener(say=said.append))
    assert not any(one.startswith("note: ") for one in said)
