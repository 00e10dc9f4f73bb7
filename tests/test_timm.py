"""Networks of timm, which needs a torchvision that was built for the torch at hand.

Tests cannot count on one: a module of timm's name that has what we call stands in.
"""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import potstill
from potstill.cli.parser import main
from potstill.errors import InputError
from potstill.models import resolve
from potstill.registry import MODELS


class Small(nn.Module):
    def __init__(self, num_classes, in_chans, img_size=None):
        super().__init__()
        self.sizes = img_size
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, num_classes),
        )  # fmt: skip

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.fixture
def timm(monkeypatch):
    """Stands in for timm: two networks, one of which is for images of one size."""
    asked = []

    def create_model(name, **how):
        asked.append((name, how))
        assert how.pop("pretrained") is False
        return Small(**how)

    module = types.ModuleType("timm")
    module.__version__ = "1.0"
    module.list_models = lambda: ["small", "small_vit"]
    module.get_pretrained_cfg = lambda name: types.SimpleNamespace(
        fixed_input_size=name == "small_vit"
    )
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return asked


def test_they_get_the_shape_of_the_data(timm):
    network = resolve("timm:small", (3, 16, 12), 7)()
    assert network(torch.zeros(2, 3, 16, 12)).shape == (2, 7)
    assert network.sizes is None
    assert resolve("timm:small_vit", (1, 16, 12), 7)().sizes == (16, 12)
    assert [name for name, _ in timm] == ["small", "small_vit"]


def test_a_run_and_an_evaluation_take_them(timm, tmp_path, capsys):
    options = "--steps 1 --unroll 3 --window 2 --real-batch 30 --lengths 5 --validation-nets 1"
    words = ["--data", "digits", "--threads", "1", "--model", "timm:small", "--out"]
    assert main(["distill", *options.split(), *words, str(tmp_path / "run"), "--quiet"]) == 0
    assert potstill.load(tmp_path / "run").recipe.model == "timm:small"
    words = ["evaluate", str(tmp_path / "run"), "--nets", "1", "--models", "timm:small_vit,mlp"]
    assert main([*words, "--threads", "1"]) == 0
    assert "timm:small_vit" in capsys.readouterr().out


def test_bad_input_gets_one_sentence(timm, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"timm 1\.0 has no network 'smal' \(did you mean 'small'"):
        resolve("timm:smal", (1, 8, 8), 2)
    with pytest.raises(InputError, match="weights are fresh"):
        resolve("timm:small.a1_in1k", (1, 8, 8), 2)
    with pytest.raises(InputError, match="use --model mlp"):
        resolve("timm:small", (5,), 2)
    tiny = np.arange(240, dtype=np.uint8).reshape(60, 2, 2), np.arange(60) % 2
    with pytest.raises(InputError, match="timm:small fails on inputs of shape"):
        potstill.distill(*tiny, model="timm:small", steps=1, progress=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["distill", "--data", "digits", "--model", "timm:small"]) == 2
    assert "need the package timm; run: pip install 'potstill[timm]'" in capsys.readouterr().err


def test_a_torchvision_that_does_not_fit_is_told(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InputError, match="needs a torchvision that was built for this torch"):
        MODELS["timm:resnet18"]


def test_they_are_listed(capsys):
    assert main(["list"]) == 0
    assert "timm:NAME" in capsys.readouterr().out


def test_a_family_without_a_name_is_told():
    with pytest.raises(InputError, match="model timm: lacks a name; give one, timm:NAME"):
        MODELS.check("timm:")
