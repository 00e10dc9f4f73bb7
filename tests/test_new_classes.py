"""A set that gets the classes that its data have got: what it has stays, to the byte."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from test_runs import QUICK

import potstill
from potstill.cli.parser import main
from potstill.distillation.outer import Interrupted
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError

SMALL = {
    **QUICK, "ipc": 2, "steps": 4, "learn_labels": False, "progress": False,
    "classes_per_batch": "auto",
}  # fmt: skip
DIGITS = load_digits()
SOME, ALL = ("7", "1", "4"), ("1", "4", "5", "7", "9")


def of(names):
    """Digits of some classes, in the order of the names."""
    numbers = [int(name) for name in names]
    chosen = np.isin(DIGITS.target, numbers)
    labels = np.array([numbers.index(label) for label in DIGITS.target[chosen]])
    pixels = (DIGITS.images[chosen] * 15).astype(np.uint8)
    return {"images": pixels, "labels": labels, "class_names": names}


def made(place, **options):
    return potstill.distill(**{**SMALL, **options}, **of(SOME), out=place)


def grown(run, out, **options):
    return potstill.extend(run, out=out, new_classes=True, progress=False, **of(ALL), **options)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    place = tmp_path_factory.mktemp("first") / "run"
    made(place)
    return place


def of_class(distilled, name):
    return distilled.images[distilled.labels == distilled.class_names.index(name)]


def test_old_images_stay_to_the_byte_and_new_ones_learn(first, tmp_path):
    old = potstill.load(first)
    more = grown(first, tmp_path / "more")
    assert more.class_names == ALL
    assert more.per_class == 2
    assert len(more) == 10
    assert more.recipe.classes_per_batch == 5
    for name in SOME:
        assert torch.equal(of_class(more, name), of_class(old, name))
    assert [record.block for record in RunFolder(tmp_path / "more").records()] == [1] * 4
    one = grown(first, tmp_path / "one", steps=1)
    for name in ("5", "9"):
        assert not torch.equal(of_class(more, name), of_class(one, name)), "they learned"
    # The preprocessing stays that of the set, for which its images were made.
    assert all(
        torch.equal(tensor, more.fitted.state()[name])
        for name, tensor in old.fitted.state().items()
    )
    data = of(ALL)
    del data["class_names"]
    rows = potstill.evaluate(tmp_path / "more", **data, nets=1, progress=False)
    assert rows[0].images == 10


@pytest.mark.parametrize(
    "options",
    [
        {"average": 0.7},
        {"learn_labels": True},
        {"method": "dm"},
        {"outer_optimizer": "adabelief"},
        {"outer_optimizer": "lamb"},
        {"outer_optimizer": "sgd"},
    ],
    ids=str,
)
def test_they_stay_whatever_moves_the_others(tmp_path, options):
    chosen = {**SMALL, **options}
    if "method" in options:
        for name in ("unroll", "window", "real_batch", "micro_batch", "learn_labels"):
            del chosen[name]
    old = potstill.distill(**chosen, **of(SOME), out=tmp_path / "old")
    more = grown(tmp_path / "old", tmp_path / "more")
    for name in SOME:
        assert torch.equal(of_class(more, name), of_class(old, name))
        mine, theirs = (one.class_names.index(name) for one in (more, old))
        columns = [more.class_names.index(other) for other in old.class_names]
        weights = more.targets[more.labels == mine]
        assert torch.equal(weights[:, columns], old.targets[old.labels == theirs])
        rest = [index for index in range(5) if index not in columns]
        assert not weights[:, rest].any()
    one = grown(tmp_path / "old", tmp_path / "one", steps=1)
    for name in ("5", "9"):
        assert not torch.equal(of_class(more, name), of_class(one, name)), "they learned"


def test_a_killed_run_goes_on_to_the_same_bytes(first, tmp_path):
    whole = grown(first, tmp_path / "whole")
    stop = potstill.Listener(stop=lambda: len(RunFolder(tmp_path / "cut").records()) >= 2)
    with pytest.raises(Interrupted):
        potstill.extend(first, out=tmp_path / "cut", new_classes=True, listener=stop, **of(ALL))
    done = potstill.resume(tmp_path / "cut", progress=False, **of(ALL))
    assert torch.equal(done.images, whole.images)
    files = [tmp_path / name / "distilled.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_command(tmp_path, capsys):
    for names, place in ((SOME, "some"), (ALL, "all")):
        data = of(names)
        np.savez(
            tmp_path / f"{place}.npz",
            **{name: data[name] for name in ("images", "labels")},
            class_names=np.array(names),
        )
    run = tmp_path / "run"
    potstill.distill(**SMALL, data=f"npz:{tmp_path / 'some.npz'}", out=run)
    words = ["extend", str(run), "--data", f"npz:{tmp_path / 'all.npz'}", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "more"), "--new-classes"]) == 0
    assert "10 images" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "give --ipc, or --new-classes" in capsys.readouterr().err


def test_what_has_got_classes_can_get_images(first, tmp_path):
    wide = grown(first, tmp_path / "wide")
    more = potstill.extend(tmp_path / "wide", 4, out=tmp_path / "more", progress=False, **of(ALL))
    assert torch.equal(more.prefix(2).images, wide.images)
    assert more.per_class == 4


def test_what_does_not_fit_gets_a_sentence(first, tmp_path):
    out = tmp_path / "run"

    def refused(sentence, run=first, ipc=None, data=None, **options):
        options = {"new_classes": True, "progress": False, **(data or of(ALL)), **options}
        with pytest.raises(InputError, match=sentence) as caught:
            potstill.extend(run, ipc, out=out, **options)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    refused("they lack 7, 1; give data that have them", data=of(("4", "5", "9")))
    refused("the data must have more classes than the set, both have", data=of(SOME))
    refused("new classes get as many images as the set has of each, 2, got 3", ipc=3)
    refused("by the method that made it, rat-bptt, got t-bptt", method="t-bptt")
    refused("extend must be real, gaussian or normal", extend="no")
    refused("a set of one block, got --boost-blocks 2", boost_blocks=2)
    targets = tmp_path / "targets"
    options = {"steps": 1, "real_batch": 30, "lengths": (5,), "validation_nets": 1, "width": 8}
    potstill.distill(method="frepo", **of(SOME), **options, progress=False, out=targets)
    refused("centred over all classes", run=targets)
    soft = tmp_path / "soft"
    made(soft, learn_labels=True)
    refused("has learned labels; give --learn-labels, too", run=soft, learn_labels=False)
    nested = tmp_path / "nested"
    made(nested, boost_blocks=2)
    refused("must have one block, got 2 blocks", run=nested, boost_blocks=1)
    with pytest.raises(InputError, match="extend adds blocks to the set that --init names"):
        potstill.distill(**SMALL, **of(ALL), extend="real", new_classes=True, out=out)
    with pytest.raises(InputError, match="give --extend gaussian, normal or real"):
        potstill.distill(**SMALL, **of(ALL), new_classes=True, out=out)
