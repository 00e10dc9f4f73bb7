"""Checkpoints that somebody made up, with a checksum that fits: each is one sentence."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_runs import QUICK

import potstill
from potstill import files
from potstill.cli.parser import main
from potstill.distillation.run_folder import RunFolder

Tensors, Meta = dict[str, torch.Tensor], dict[str, Any]
Forgery = Callable[[Tensors, Meta], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run with two checkpoints, its set removed."""
    out = tmp_path_factory.mktemp("good") / "run"
    options = QUICK | {"learn_labels": True, "real_sampler": "hardness", "checkpoint_every": 4}
    potstill.distill(**options, device="cpu", keep_checkpoints=1, out=out)
    (out / "distilled.safetensors").unlink()
    return out


def meta(**changes: Any) -> Forgery:
    """Change metadata; `...` removes."""

    def forge(tensors: Tensors, known: Meta) -> None:
        known |= changes
        for name in [name for name, value in changes.items() if value is ...]:
            del known[name]

    return forge


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Forgery:
    """Change a tensor; None removes it."""

    def forge(tensors: Tensors, known: Meta) -> None:
        old = tensors.pop(name)
        if change:
            tensors[name] = change(old).contiguous()

    return forge


def shorter(old: torch.Tensor) -> torch.Tensor:
    """One number is missing."""
    return old.reshape(-1)[:-1].clone()


def more(name: str) -> Forgery:
    """A tensor that none of the run's is."""
    return lambda tensors, known: tensors.update({name: torch.zeros(3)})


FORGERIES: dict[str, Forgery] = {
    **{
        f"{name} is {value!r}": meta(**{name: value})
        for name in ("step", "updates", "skipped_in_a_row", "stage", "moments")
        for value in ("x", -1, 0.5, None, [], True, ...)
    },
    **{
        f"{name} is {value!r}": meta(**{name: value})
        for name in ("recipes", "method", "sampler", "config", "data")
        for value in (0, None, [1], ...)
    },
    "clip_average is text": meta(clip_average="x"),
    "clip_average is missing": meta(clip_average=...),
    "best is text": meta(best="x"),
    "best without its tensors": lambda tensors, known: [
        tensors.pop(name) for name in list(tensors) if name.startswith("best.")
    ],
    "more moments than there are": meta(moments=9),
    "no moments": meta(moments=0),
    **{
        f"{kind}.0.{leaf}, {what}": tensor(f"{kind}.0.{leaf}", change)
        for kind in ("leaves", "moment0", "moment1", "best")
        for leaf in ("images", "targets")
        for what, change in {
            "gone": None,
            "shorter": shorter,
            "of another type": torch.Tensor.double,
            "of an axis more": lambda old: old[None],
        }.items()
    },
    "images are NaN": tensor("leaves.0.images", lambda old: old * torch.nan),
    "a leaf too many": more("leaves.0.evil"),
    "a moment too many": more("moment0.0.evil"),
    "scores of two axes": tensor("sampler.scores", lambda old: old[None]),
    "scores below 0": tensor("sampler.scores", lambda old: old * 0 - 5),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_checkpoint_that_somebody_made_up_is_one_sentence(what, good, tmp_path, capsys):
    run = shutil.copytree(good, tmp_path / "run")
    (path,) = (run / "checkpoints").glob("*.safetensors")
    tensors, known = files.load_tensors(path, "checkpoint")
    FORGERIES[what](tensors, known)
    files.save_tensors(path, tensors, "checkpoint", known)
    assert main(["distill", "--resume", str(run)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("potstill: error: ")


PREPARATIONS: dict[str, Forgery] = {
    **{f"no {name}": meta(**{name: ...}) for name in (
        "preprocess", "class_names", "input_shape", "cut", "data", "parameterisation")},
    "preprocess is a list": meta(preprocess=[1]),
    "class names are numbers": meta(class_names=list(range(10))),
    "input_shape with 0": meta(input_shape=[1, 0, 8]),
    "ipc is missing": meta(parameterisation={"kind": "pixels"}),
    "no matrix": tensor("matrix", None),
    "a matrix that is too short": tensor("matrix", shorter),
    "a matrix of NaN": tensor("matrix", lambda old: old * torch.nan),
}  # fmt: skip


@pytest.mark.parametrize("what", PREPARATIONS)
def test_a_preparation_that_somebody_made_up_counts_as_none(what, tmp_path, monkeypatch):
    """It can be derived again: the run goes on to the same bytes."""
    monkeypatch.setattr(RunFolder, "drop_replaced", lambda folder: None)
    run = tmp_path / "run"
    potstill.distill(**QUICK, preprocess="zca", device="cpu", out=run)
    expected = (run / "distilled.safetensors").read_bytes()
    (run / "distilled.safetensors").unlink()
    assert RunFolder(run).preparation() is not None
    tensors, known = files.load_tensors(run / "preparation.safetensors", "preparation")
    PREPARATIONS[what](tensors, known)
    files.save_tensors(run / "preparation.safetensors", tensors, "preparation", known)
    assert RunFolder(run).preparation() is None
    assert main(["report", str(run)]) == 0
    assert main(["distill", "--resume", str(run)]) == 0
    assert (run / "distilled.safetensors").read_bytes() == expected
