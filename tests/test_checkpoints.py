"""Which checkpoints a run keeps, and that a sampler's state goes on from one."""

import pytest
import torch
from test_runs import QUICK, bytes_of, interrupted_run, resume

import potstill
from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.distillation import run_folder
from potstill.distillation.outer import Interrupted
from potstill.progress import Listener


def test_a_moving_window_resumes_where_it_was(tmp_path):
    moving = {"method": "forward", "patience": 1, "shift": 1, "unroll": 8, "steps": 30}
    potstill.distill(**{**QUICK, **moving}, out=tmp_path / "undisturbed")
    interrupted_run(tmp_path / "run", after=17, **moving)
    resume(tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "undisturbed")
    places = [
        [record.info["burn_in"] for record in run_folder.RunFolder(tmp_path / name).records()]
        for name in ("undisturbed", "run")
    ]
    assert places[0] == places[1]
    assert 0 == places[0][0] < places[0][16] < places[0][-1]  # it moved before and after the stop


def test_all_checkpoints_are_kept_if_wanted_and_the_set_is_the_same(tmp_path):
    potstill.distill(**QUICK, keep_checkpoints=0, out=tmp_path / "run")
    folder = run_folder.RunFolder(tmp_path / "run")
    assert [path.stem for path in folder.checkpoints.files] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]
    states = list(
        folder.checkpoints.states(
            folder.config(), read(DataConfig()).fingerprint, torch.device("cpu")
        )
    )
    assert [state.step for state in states] == [4, 8, 12]
    assert not torch.equal(states[0].leaves["0.images"], states[1].leaves["0.images"])
    potstill.distill(**QUICK, out=tmp_path / "few")
    one, other = potstill.load(tmp_path / "run"), potstill.load(tmp_path / "few")
    assert torch.equal(one.images, other.images)


def test_an_interruption_leaves_no_checkpoint_of_its_own(tmp_path):
    interrupted_run(tmp_path / "run", after=6, keep_checkpoints=0)
    folder = run_folder.RunFolder(tmp_path / "run")
    assert [path.stem for path in folder.checkpoints.files] == [
        "step-00000004",
        "step-00000006-interrupted",
    ]
    resume(tmp_path / "run")
    assert [path.stem for path in folder.checkpoints.files] == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]


def test_a_damaged_checkpoint_does_not_push_out_a_newer_one(tmp_path):
    interrupted_run(tmp_path / "run", after=8, keep_checkpoints=0)
    folder = run_folder.RunFolder(tmp_path / "run")
    folder.checkpoints.files[-1].write_bytes(b"")
    seen: list[int] = []
    with pytest.raises(Interrupted):
        resume(
            tmp_path / "run",
            listener=Listener(
                step=lambda record, steps: seen.append(1), stop=lambda: len(seen) >= 2
            ),
        )
    assert [path.stem for path in folder.checkpoints.files] == [
        "step-00000004",
        "step-00000006-interrupted",
    ]


def test_more_checkpoints_may_be_kept_than_there_are(tmp_path):
    potstill.distill(**QUICK, keep_checkpoints=9, out=tmp_path / "run")
    assert len(run_folder.RunFolder(tmp_path / "run").checkpoints.files) == 3
