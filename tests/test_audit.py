"""What an audit finds: attacks that find what is there, distances by brute force."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import potstill
from potstill.cli.parser import main
from potstill.data.splits import TensorSplit
from potstill.diagnosis.audit import attacked, nearest, neighbours
from potstill.errors import InputError
from potstill.seeds import generator

SMALL = {
    "data": "digits", "method": "random", "model": "mlp", "width": 64, "lengths": (300,),
    "validation_nets": 1, "progress": False, "augment": (),
}  # fmt: skip


def test_the_area_is_the_chance_that_a_member_has_less_loss():
    rng = generator(0)
    members, others = torch.rand(40, generator=rng), torch.rand(60, generator=rng) + 0.3
    area, hits = attacked(members, others)
    truth = [1] * 40 + [0] * 60
    assert area == pytest.approx(roc_auc_score(truth, -torch.cat([members, others]).numpy()))
    assert area == pytest.approx(float((members[:, None] < others).float().mean()))
    assert hits == pytest.approx(float((members < others.min()).float().mean()))  # 0 of 60 at 1 %
    assert attacked(torch.zeros(5), torch.ones(5)) == (1.0, 1.0)
    assert attacked(torch.ones(5), torch.ones(5))[0] == 0.5


def test_distances_are_those_of_standardised_examples():
    rng = generator(1)
    train, test, own = (torch.randn(count, 1, 4, 4, generator=rng) for count in (2100, 300, 7))
    labels = torch.zeros(2100, dtype=torch.long)

    def plain(images):
        flat = images.flatten(1).double()
        flat = flat - flat.mean(1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True)

    split = TensorSplit(train, labels)
    expected = torch.cdist(plain(own), plain(train)).min(1).values
    torch.testing.assert_close(nearest(own, split).double(), expected, rtol=1e-5, atol=1e-5)
    # Another brightness and contrast is no other distance.
    torch.testing.assert_close(nearest(own * 3 + 1, split).double(), expected, rtol=1e-4, atol=1e-4)
    found = neighbours(torch.cat([own, train[:3]]), split, TensorSplit(test, labels[:300]))
    assert (found.nearer, found.count) == (3, 10)
    assert found.synthetic[0] < 1e-3


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """A "set" of twenty real images a class, which gives away who they are."""
    place = tmp_path_factory.mktemp("runs") / "run"
    potstill.distill(**SMALL, ipc=20, out=place)
    return place


def test_a_set_of_real_images_is_found_out(leaking, tmp_path, capsys):
    assert main(["audit", str(leaking), "--nets", "2", "--epochs", "2"]) == 0
    told = capsys.readouterr().out
    assert "200 of 200 are nearer than 99 % of test images" in told
    assert "No guarantee follows" in told
    (record,) = json.loads((leaking / "audit.json").read_text())["audits"]
    areas = {one["trained_on"]: one["auc"]["mean"] for one in record["attacks"]}
    assert list(areas) == ["the set", "as many held-out images", "all training images"]
    # Of 1,295 members 200 are in the set, and have less loss.
    assert areas["the set"] > areas["as many held-out images"] + 0.02
    assert areas["as many held-out images"] == pytest.approx(0.5, abs=0.04)
    again = potstill.audit(leaking, nets=2, epochs=2, progress=False)
    assert [one.auc.mean for one in again.attacks] == list(areas.values())
    assert len(json.loads((leaking / "audit.json").read_text())["audits"]) == 1


def test_networks_that_learn_all_by_heart_are_found_out(tmp_path):
    rng = np.random.default_rng(0)
    # Labels without a rule: a network can only learn them by heart.
    images, labels = rng.random((120, 8, 8)), rng.integers(0, 2, 120)
    potstill.distill(images, labels, **{**SMALL, "data": "arrays"}, ipc=2, out=tmp_path / "run")
    record = potstill.audit(tmp_path / "run", images, labels, nets=2, epochs=400, progress=False)
    areas = {one.trained_on: one.auc.mean for one in record.attacks}
    assert areas["all training images"] > 0.9 > 0.75 > areas["the set"]


def test_other_data_and_other_learners_are_refused(leaking, tmp_path):
    images = np.random.default_rng(0).random((60, 8, 8))
    with pytest.raises(InputError, match="the very data that the set was distilled from"):
        potstill.audit(leaking, images, np.arange(60) % 10, progress=False)
    potstill.distill(images, np.arange(60) % 2, **{**SMALL, "data": "arrays"}, out=tmp_path / "own")
    with pytest.raises(InputError, match="does not tell where its data lie; give them with --data"):
        potstill.audit(tmp_path / "own", progress=False)
    with pytest.raises(InputError, match="nets must be at least 1"):
        potstill.audit(leaking, nets=0)
    potstill.distill(
        data="digits", method="frepo", ipc=1, steps=1, width=8, real_batch=50,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="this set is for the learner"):
        potstill.audit(tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "audit.json").exists()


def test_a_card_and_a_report_tell_of_it(leaking, tmp_path):
    run = shutil.copytree(leaking, tmp_path / "run")
    record = potstill.audit(run, nets=2, epochs=1, progress=False)
    potstill.evaluate(run, nets=1, progress=False)
    areas = [
        f"{one.auc.mean:.3f} ± {one.auc.std:.3f} for networks trained on {one.trained_on}"
        for one in record.attacks
    ]
    assert main(["push", str(run), "--to", "me/set", "--dry-run", str(tmp_path / "card")]) == 0
    card = (tmp_path / "card" / "README.md").read_text()
    assert "## What it tells of single images" in card
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "What they tell of single images" in page
    for text in (card, page):
        assert all(area in text for area in areas)
        near = record.neighbours
        assert f"{near.nearer} of {near.count} of the chosen real images are nearer" in text
    assert (tmp_path / "card" / "audit.json").exists()
    entry = json.loads((run / "audit.json").read_text())["audits"][0]
    near = {**entry["neighbours"], "synthetic": []}
    for damaged in ({}, {**entry, "attacks": []}, {**entry, "neighbours": near}):
        kept = {"audits": [damaged]} if damaged else {}
        (run / "audit.json").write_text(json.dumps(kept))
        assert main(["report", str(run)]) == 0
        assert "The audit cannot be shown" in (run / "report.html").read_text()


def test_an_audit_belongs_to_its_file_and_goes_with_its_set(leaking, tmp_path):
    shutil.copy(leaking / "distilled.safetensors", tmp_path / "mine.safetensors")
    potstill.audit(tmp_path / "mine.safetensors", nets=1, epochs=1, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.safetensors", "mine.audit.json"}
    run = tmp_path / "run"
    potstill.distill(**SMALL, ipc=1, out=run)
    potstill.audit(run, nets=1, epochs=1, progress=False)
    assert (run / "audit.json").exists()
    potstill.distill(**SMALL, ipc=1, seed=1, out=run, overwrite=True)
    assert not (run / "audit.json").exists(), "it was about another set"
