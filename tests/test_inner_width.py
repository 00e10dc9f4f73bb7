"""Sets that are distilled with narrower networks than those they are for."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import potstill
from potstill.config.config import configuration, options_from_preset
from potstill.data.sources import read
from potstill.distillation import auto_values
from potstill.distillation.setup import Setup
from potstill.engine import when_to_compile
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.errors import InputError
from potstill.progress import SILENT

SMALL: dict[str, Any] = {
    "data": "digits",
    "preprocess": "normalize",
    "steps": 3,
    "validate_every": 3,
    "unroll": 4,
    "window": 2,
    "real_batch": 16,
    "compile": "off",
    "precision": "float32",
    "lengths": (20,),
    "validation_nets": 1,
    "threads": 1,
}


def test_the_images_are_those_of_the_narrow_networks_and_the_recipe_is_for_the_wide():
    wide = potstill.distill(**SMALL, width=16, inner_width=4)
    narrow = potstill.distill(**SMALL, width=4)
    assert torch.equal(wide.images, narrow.images)
    assert (wide.recipe.width, narrow.recipe.width) == (16, 4)
    wider = potstill.distill(**SMALL, width=4, inner_width=16)
    assert torch.equal(wider.images, narrow.images)
    assert wider.metadata.accuracy == narrow.metadata.accuracy
    assert potstill.train(wide).features(wide.images).shape != potstill.train(narrow).features(
        wide.images
    ).shape  # fmt: skip


def test_a_preset_leaves_the_inner_width_out_where_it_has_no_effect(tmp_path):
    preset = options_from_preset("standard")
    assert configuration(preset).model.options.inner_width == 64
    assert "inner_width" not in configuration(preset, {"model": f"{__name__}:linear"}).flat()
    options = {"method": "random", "data": "digits", "lengths": (5,), "validation_nets": 1}
    potstill.distill(**options, progress=False, out=tmp_path / "run")
    assert "inner_width" not in (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(InputError, match="inner_width has no effect with --method random"):
        potstill.distill(**options, inner_width=4)


def test_validation_trains_the_networks_that_the_set_is_for():
    def scores(**widths: int) -> torch.Tensor:
        config = configuration({**SMALL, **widths})
        setup = Setup.of(config, read(config.data), None, SILENT)
        return setup.validation_scores(setup.blocks, setup.recipe, (20,))

    assert torch.equal(scores(width=16, inner_width=4), scores(width=16))
    assert not torch.equal(scores(width=16, inner_width=4), scores(width=4))


def test_networks_that_a_set_is_for_are_compiled_with_those_it_is_distilled_with(monkeypatch):
    config = configuration({**SMALL, "width": 16, "inner_width": 4})
    setup = Setup.of(config, read(config.data), None, SILENT)
    assert setup.tested.compiled is None
    built = []

    def compiled(family: Any, gradients: Any, products: Any, logits: Any, *_: Any) -> Any:
        built.append((len(family.model(0).theta), gradients, products, logits))
        return CompiledNetwork(family.model(0), backend="eager")

    monkeypatch.setattr(when_to_compile, "compiled_networks", compiled)
    narrow = setup.networks.with_compiled(CompiledNetwork(setup.networks.model(0), backend="eager"))
    tested = auto_values.tested_networks(narrow, setup.tested.factory, 10, SILENT)
    count = sum(one.numel() for one in setup.tested.factory().parameters())
    assert built == [(count, [tested.cut.size(10)], [], [tested.cut.most])]
    traced = dataclasses.replace(setup, networks=narrow, tested=tested)
    assert traced.compiled_evaluation is tested.compiled
    plain, fast = (one.validation_scores(one.blocks, one.recipe, (20,)) for one in (setup, traced))
    torch.testing.assert_close(plain, fast, atol=0.02, rtol=0)


def test_a_network_without_a_width_cannot_be_narrower():
    def linear(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    with pytest.raises(
        InputError, match=r"inner_width has no effect with --model .*linear; it belongs to"
    ):
        potstill.distill(**SMALL, model=linear, inner_width=4)
