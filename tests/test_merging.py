"""One set of several."""

import pytest
import torch

import potstill
from potstill.cli.parser import main
from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.distilled.artefact import without_preprocessing
from potstill.errors import InputError

DIGITS = read(DataConfig()).train
IMAGES, LABELS = torch.from_numpy(DIGITS.images), torch.from_numpy(DIGITS.labels)
OPTIONS = {
    "method": "random", "model": "mlp", "width": 32, "ipc": 2, "lengths": (40,),
    "validation_nets": 1, "preprocess": "normalize", "progress": False,
}  # fmt: skip


def chosen(rows, names=None, **options):
    labels = LABELS[rows]
    own = sorted(set(labels.tolist()))
    named = names or [f"digit {label}" for label in own]
    labels = torch.tensor([own.index(label) for label in labels.tolist()])
    return potstill.distill(IMAGES[rows], labels, class_names=named, **{**OPTIONS, **options})


def owners(**options):
    """Two sets of all classes from different halves of the data."""
    half = torch.arange(len(LABELS)) % 2 == 0
    return chosen(half, seed=1, **options), chosen(~half, seed=2, **options)


def test_sets_of_the_same_classes_become_blocks_and_the_first_stays_to_the_byte():
    one, other = owners()
    both = potstill.merge(one, other)
    assert both.budgets == (2, 4)
    assert torch.equal(both.prefix(2).images, one.images)
    assert both.per_class == 4
    assert both.recipe.batch_per_class == 4
    # The halves' means differ: the other's images are prepared as the first prepares pixels.
    moved = one.fitted(other.fitted.inverse(other.images))
    assert torch.equal(both.blocks[1].images, moved)
    assert not torch.equal(moved, other.images)
    assert torch.allclose(moved, other.images, atol=0.2)
    rows = potstill.evaluate(both, IMAGES, LABELS, nets=1, progress=False)
    assert rows[0].accuracy.mean > 0.5


def test_an_equal_set_is_taken_as_it_is():
    one, _ = owners()
    both = potstill.merge(one, one)
    assert torch.equal(both.images, torch.cat([one.images, one.images]))


def test_classes_in_another_order_are_put_in_the_first_one_s():
    low = LABELS < 3
    one = chosen(low)
    turned = potstill.distill(
        IMAGES[low], 2 - LABELS[low], class_names=["digit 2", "digit 1", "digit 0"], **OPTIONS
    )
    both = potstill.merge(one, turned)
    assert both.class_names == ("digit 0", "digit 1", "digit 2")
    assert torch.allclose(both.blocks[1].images[:2], turned.images[4:], atol=0.01)
    assert not torch.allclose(both.blocks[1].images[:2], turned.images[:2], atol=0.01)


@pytest.mark.parametrize("learned", [False, True])
def test_sets_of_different_classes_become_one_that_knows_all(tmp_path, learned):
    more = {"method": "rat-bptt", "steps": 2, "unroll": 3, "window": 2, "real_batch": 20}
    more |= {"learn_labels": True, "init": "real"}
    low = chosen(LABELS < 5, **(more if learned else {}))
    high = chosen(LABELS >= 5)
    both = potstill.merge(low, high)
    assert both.class_names == tuple(f"digit {label}" for label in range(10))
    assert both.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert both.learned_labels is learned
    assert torch.equal(both.targets[:10, :5], low.targets)
    assert not both.targets[:10, 5:].any()
    assert torch.equal(both.targets[10:, 5:], high.targets)
    assert both.recipe.classes_per_batch == 10
    potstill.save(both, tmp_path / "both.safetensors")
    again = potstill.load(tmp_path / "both.safetensors")
    assert torch.equal(again.images, both.images)
    rows = potstill.evaluate(again, IMAGES, LABELS, nets=1, steps=200, progress=False)
    assert rows[0].accuracy.mean > 0.4


def test_a_decoded_set_becomes_images():
    low = LABELS < 3
    small = {"method": "rat-bptt", "steps": 1, "unroll": 2, "window": 1, "real_batch": 20}
    decoded = chosen(low, param="basis", **small)
    pixels = chosen(low)
    both = potstill.merge(pixels, decoded)
    assert len(both) == len(pixels) + len(decoded)
    assert both.images.isfinite().all()


def test_the_command_writes_a_file_and_evaluates(tmp_path, capsys):
    one, other = owners()
    for name, part in (("a", one), ("b", other)):
        potstill.save(part, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    out = tmp_path / "new" / "both.safetensors"
    assert main(["merge", *files, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "as on" in told
    assert "steps" not in told
    assert "the same" not in told
    before = out.read_bytes()
    assert main(["merge", *files, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["merge", *files, "--out", str(tmp_path / "both.png")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_what_does_not_fit_gets_a_sentence(tmp_path):
    low, high = LABELS < 3, LABELS >= 3
    one = chosen(low)
    for other, said in (
        (chosen(low, preprocess="none"), "the same preprocessing, got normalize and none"),
        (chosen(LABELS < 4), "only some have the class 'digit 0'"),
        (chosen(high, ipc=3), "equally many examples of each, got 2 and 3"),
        (without_preprocessing(one), "merging needs the whole sets"),
    ):
        with pytest.raises(InputError, match=said):
            potstill.merge(one, other)
    with pytest.raises(InputError, match="at least two sets, got 1"):
        potstill.merge(one)
    with pytest.raises(InputError, match="must be a DistilledSet"):
        potstill.merge(one, "two")
    vectors = potstill.distill(IMAGES[low].flatten(1), LABELS[low], **{**OPTIONS, "model": "mlp"})
    with pytest.raises(InputError, match="of one kind, got images and rows"):
        potstill.merge(one, vectors)
    with pytest.raises(InputError, match="of one shape"):
        potstill.merge(vectors, potstill.load("zoo:iris-ipc1"))


def test_what_comes_twice_and_the_longest_training_are_said(tmp_path, capsys):
    low = LABELS < 3
    for name, steps in (("a", 40), ("b", 60)):
        potstill.save(chosen(low, lengths=(steps,)), tmp_path / f"{name}.safetensors")
    words = ["merge", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "both.safetensors")]
    assert main([*words, str(tmp_path / "b.safetensors")]) == 0  # a name behind a flag, too
    told = capsys.readouterr().out
    assert "a.safetensors, but for 60 steps, the most of any" in told
    assert "are the same, so that their examples come twice" in told


def table(names, classes=(0, 1, 2)):
    rows = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(90) % len(classes)
    own = [f"class {label}" for label in classes]
    data = {"feature_names": names, "class_names": own}
    return rows, labels, data


def test_features_keep_their_names_and_others_are_refused(tmp_path):
    def made(names, classes=(0, 1, 2)):
        rows, labels, data = table(names, classes)
        return potstill.distill(rows, labels, **data, **OPTIONS)

    first = made(["a", "b"])
    for other in (first, made(["a", "b"], (3, 4)), made(None)):
        both = potstill.merge(first, other)
        potstill.save(both, tmp_path / "both.safetensors")
        assert potstill.load(tmp_path / "both.safetensors").feature_names == ("a", "b")
    potstill.save(potstill.merge(first, first), tmp_path / "both.safetensors")
    rows, labels, _ = table(["a", "b"])
    lines = [f"{a},{b},class {label}" for (a, b), label in zip(rows.tolist(), labels, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,label", *lines]) + "\n")
    file, data = str(tmp_path / "both.safetensors"), str(tmp_path / "table.csv")
    assert main(["evaluate", file, "--data", data, "--nets", "2"]) == 0
    with pytest.raises(InputError, match="the first that differs is 'b' in place of 'a'"):
        potstill.merge(first, made(["b", "a"]))
    rows, labels, data = table(["b", "a"])
    start = {"init": str(tmp_path / "both.safetensors"), "ipc": 4, "boost_blocks": 2}
    with pytest.raises(InputError, match="'b' in place of 'a'; rename or reorder columns"):
        potstill.distill(rows, labels, **data, **{**OPTIONS, "method": "rat-bptt", **start})


def test_a_merged_set_claims_no_data_and_no_choice(tmp_path, capsys):
    names = [str(number) for number in range(10)]
    potstill.save(potstill.merge(*owners(names=names)), tmp_path / "both.safetensors")
    file = str(tmp_path / "both.safetensors")
    assert main(["evaluate", file, "--data", "digits", "--nets", "2"]) == 0
    shown = capsys.readouterr()
    assert "the set does not say what data it was distilled from" in shown.out + shown.err
    assert "the set's steps" in shown.out
    assert main(["audit", file, "--data", "digits"]) == 2
    assert "audit its parts one by one" in capsys.readouterr().err
