"""What holds on a GPU; skipped without one. Every other test runs on whatever `auto` picks."""

import copy

import pytest
import torch
from test_runs import QUICK, bytes_of, interrupted_run
from torch.nn import functional as F
from twins import CPU, OPTIMIZERS, EagerObjective, Tiny, lr, meta_gradient, plain_unroll

import potstill
from potstill.devices import pick_device
from potstill.engine.flat import FlatModel

GPU = pick_device("auto")
pytestmark = pytest.mark.skipif(GPU.type == "cpu", reason="no GPU here")
CONVNET = {**QUICK, "model": "convnet", "depth": 2, "width": 16, "device": str(GPU)}


def on_gpu(tiny: Tiny) -> Tiny:
    """The same problem on the GPU."""
    images, labels = tiny.real
    return Tiny(
        FlatModel(copy.deepcopy(tiny.model.module).to(GPU)),
        {name: leaf.to(GPU) for name, leaf in tiny.leaves.items()},
        {name: value.to(GPU) for name, value in tiny.fixed.items()},
        (images.to(GPU), labels.to(GPU)),
    )


@pytest.mark.skipif(GPU.type == "mps", reason="Apple's GPUs have no float64")
@pytest.mark.parametrize("network", ["mlp", "instance", "batch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replay_on_the_gpu_equals_the_plain_unroll_on_the_cpu(optimizer, network):
    here = Tiny.make(network, learn_labels=True)
    there = on_gpu(here)

    def outer(tiny: Tiny):
        return lambda theta, leaves, part=None: F.cross_entropy(
            tiny.model(theta, tiny.real[0]), tiny.real[1]
        )

    rule = OPTIMIZERS[optimizer]
    rate = {"lr": lr(0.01)["lr"].to(GPU)}
    found = meta_gradient(
        there.problem(rule),
        there.leaves,
        rate,
        rule.init(there.model.theta),
        EagerObjective(outer(there)),
        [(None, 1.0)],
        burn_in=2,
        window=3,
    )
    plain = plain_unroll(
        here.problem(rule),
        here.leaves,
        lr(0.01),
        rule.init(here.model.theta),
        outer(here),
        burn_in=2,
        window=3,
    )
    for name, expected in plain.leaves.items():
        assert expected.any()
        torch.testing.assert_close(found.leaves[name].to(CPU), expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.hyper["lr"].to(CPU), plain.hyper["lr"], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("compile_", ["off", "on"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes_also_after_an_interruption(
    precision, compile_, tmp_path
):
    options = {**CONVNET, "precision": precision, "compile": compile_}
    potstill.distill(**options, out=tmp_path / "one")
    potstill.distill(**options, out=tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    interrupted_run(tmp_path / "three", after=5, **options)
    potstill.resume(tmp_path / "three")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "three")


@pytest.mark.parametrize("compile_", ["off", "on"])
def test_a_set_of_the_gpu_has_the_accuracy_that_the_cpu_measures(compile_, tmp_path):
    options = {**CONVNET, "steps": 60, "unroll": 20, "window": 8, "lengths": (80,)}
    options |= {"compile": compile_, "validate_every": 60, "augment": ()}
    distilled = potstill.distill(**options)
    there, here = (
        potstill.evaluate(distilled, nets=3, device=device)[0] for device in (str(GPU), "cpu")
    )
    assert there.accuracy.mean > 0.4
    assert abs(there.accuracy.mean - here.accuracy.mean) < 0.05
