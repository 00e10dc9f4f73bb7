"""A finished set that grows: its blocks stay, new ones come after them."""

import pytest
import torch
from test_runs import QUICK

import potstill
from potstill.cli.parser import main
from potstill.distillation.outer import Interrupted
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError

SMALL = {
    **QUICK, "data": "digits", "ipc": 1, "steps": 4, "learn_labels": False, "progress": False,
    "classes_per_batch": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    place = tmp_path_factory.mktemp("first") / "run"
    potstill.distill(**SMALL, out=place)
    return place


def test_old_images_stay_to_the_byte_and_new_ones_learn(first, tmp_path):
    old = potstill.load(first)
    grown = potstill.extend(first, 3, out=tmp_path / "grown", progress=False)
    assert grown.budgets == (1, 2, 3)
    assert torch.equal(grown.prefix(1).images, old.images)
    assert len(grown) == 30
    assert grown.recipe.batch_per_class == 3
    records = RunFolder(tmp_path / "grown").records()
    assert [record.block for record in records] == [2] * 4 + [3] * 4, "no step for the old block"
    rows = potstill.evaluate(tmp_path / "grown", all_budgets=True, nets=1, progress=False)
    assert [row.ipc for row in rows] == [1, 2, 3]
    # What is extended can be extended again.
    again = potstill.extend(tmp_path / "grown", 4, out=tmp_path / "again", progress=False)
    assert torch.equal(again.prefix(3).images, grown.images)


def test_new_blocks_are_not_what_they_started_from(first, tmp_path):
    one, two = (
        potstill.extend(first, 2, out=tmp_path / str(steps), steps=steps, progress=False)
        for steps in (1, 4)
    )
    assert not torch.equal(one.blocks[1].images, two.blocks[1].images)


def test_a_killed_extension_goes_on_to_the_same_bytes(first, tmp_path):
    def until(step):
        def stop():
            return len(RunFolder(tmp_path / "stopped").records()) >= step

        return potstill.Listener(stop=stop)

    whole = potstill.extend(first, 3, out=tmp_path / "whole", progress=False)
    with pytest.raises(Interrupted):
        potstill.extend(first, 3, out=tmp_path / "stopped", listener=until(2))
    with pytest.raises(Interrupted):
        potstill.resume(tmp_path / "stopped", listener=until(6))
    done = potstill.resume(tmp_path / "stopped", progress=False)
    assert torch.equal(done.images, whole.images)
    files = [tmp_path / name / "distilled.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_with_beta_old_blocks_move_too(first, tmp_path):
    old = potstill.load(first)
    moved = potstill.extend(first, 2, out=tmp_path / "run", boost_beta=0.5, progress=False)
    assert not torch.equal(moved.prefix(1).images, old.images)


def test_the_command_extends(first, tmp_path, capsys):
    words = ["extend", str(first), "--ipc", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--extend", "gaussian"]) == 0
    assert "--ipc 2, 5,120 bytes" in capsys.readouterr().out
    assert main(words) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_what_does_not_fit_gets_a_sentence(first, tmp_path):
    for ipc in (1, 0):
        with pytest.raises(InputError, match="ipc must be a multiple of 1"):
            potstill.extend(first, ipc, out=tmp_path / "run")
    with pytest.raises(InputError, match="by the method that made it, rat-bptt, got t-bptt"):
        potstill.extend(first, 2, out=tmp_path / "run", method="t-bptt", progress=False)
    with pytest.raises(InputError, match="new blocks must have the size of those that are kept"):
        potstill.extend(first, 4, out=tmp_path / "run", boost_blocks=2, progress=False)
    with pytest.raises(InputError, match="extend adds blocks to the set that --init names"):
        potstill.distill(**{**SMALL, "extend": "real"}, out=tmp_path / "run")
    with pytest.raises(InputError, match="holds no run"):
        potstill.extend(tmp_path / "none", 2, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"takes the folder of a run, .* --extend real --ipc N"):
        potstill.extend(first / "distilled.safetensors", 2, out=tmp_path / "run")
    with pytest.raises(InputError, match="extend must be real, gaussian or normal"):
        potstill.extend(first, 2, out=tmp_path / "run", extend="no")
    assert not (tmp_path / "run").exists()
