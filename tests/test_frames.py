"""How a set looked in the course of its run: what is kept, and what the report shows of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import report
from test_runs import QUICK, interrupted_run, resume

import potstill
from potstill.distillation import frames
from potstill.distillation.frames import FRAMES
from potstill.distilled import artefact
from potstill.reports.gallery import BAR_HEIGHT, label_bars


def kept(run):
    return {path.name: path.read_bytes() for path in (run / FRAMES).iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "run"
    potstill.distill(**QUICK, out=folder)
    return folder


def test_frames_are_kept_at_steps_that_lie_ever_farther_apart():
    assert [step for step in range(0, 4001, 50) if frames.due(step, 100)] == [
        0, 100, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200,
    ]  # fmt: skip


def test_a_run_keeps_the_first_image_of_each_class(run):
    assert sorted(kept(run)) == [f"{step:08d}.png" for step in (0, 3, 6, 9, 12)]
    distilled = artefact.load(run)
    step = distilled.metadata.outer_step
    shown = np.asarray(Image.open(io.BytesIO(kept(run)[f"{step:08d}.png"])))
    assert shown.shape == (8, 80)
    first = distilled.pixels[torch.arange(0, 20, 2), 0]
    wanted = torch.cat(list(first), dim=1).mul(255).round().to(torch.uint8).numpy()
    assert np.array_equal(shown, wanted)


def test_a_run_that_was_resumed_has_the_frames_of_one_that_was_not(run, tmp_path):
    interrupted_run(tmp_path / "cut", after=7)
    for name in ("00000015.png", "00000018.png", ".00000009.png.7.tmp"):  # of one killed further on
        (tmp_path / "cut" / FRAMES / name).write_bytes(b"half")
    resume(tmp_path / "cut")
    assert kept(tmp_path / "cut") == kept(run)


def test_a_run_that_is_replaced_leaves_no_frame(run, tmp_path):
    potstill.distill(**QUICK, out=tmp_path / "run")
    potstill.distill(**{**QUICK, "steps": 3}, out=tmp_path / "run", overwrite=True)
    assert sorted(kept(tmp_path / "run")) == ["00000000.png", "00000003.png"]


def test_frozen_blocks_have_no_frames(tmp_path):
    options = {**QUICK, "learn_labels": False, "steps": 3}
    for beta, steps in ((0, (0, 3)), (0.5, (0, 3, 6))):
        out = tmp_path / str(beta)
        potstill.distill(**options, boost_blocks=2, boost_beta=beta, out=out)
        assert sorted(kept(out)) == [f"{step:08d}.png" for step in steps]


def test_rows_have_no_frames(tmp_path):
    options = {**QUICK, "data": "sklearn:iris", "classes_per_batch": "auto", "steps": 3}
    options |= {"real_batch": 30, "augment": ()}
    potstill.distill(**options, out=tmp_path / "run")
    assert not (tmp_path / "run" / FRAMES).exists()


def test_the_report_shows_them_one_at_a_time(run, tmp_path):
    page = report(tmp_path / "report.html", run)
    radios = [one for one in page.all("input") if one["type"] == "radio"]
    step = artefact.load(run).metadata.outer_step
    assert len(radios) == (5 if step == 12 else 6)
    assert [("checked" in one) for one in radios] == [False] * (len(radios) - 1) + [True]
    assert "The first image of each class after so many outer steps" in page.text
    pictures = [
        one for one in page.all("img") if one["alt"].startswith("The first image of each class: ")
    ]
    assert len(pictures) == len(radios)


def test_what_lies_in_the_folder_and_is_no_frame_is_left_out(run, tmp_path):
    (tmp_path / FRAMES).mkdir()
    (tmp_path / FRAMES / "00000003.png").write_bytes(b"<script>")
    (tmp_path / FRAMES / "note.png").write_bytes(kept(run)["00000003.png"])
    (tmp_path / FRAMES / "00000006.png").write_bytes(kept(run)["00000006.png"])
    assert [step for step, _ in frames.frames(tmp_path)] == [6]


def test_negative_weights_hang_from_the_middle():
    names = ("a", "b", "c")
    weights = torch.tensor([0.5, -1.0, 0.25])
    bars = label_bars(weights, 0, names)
    assert bars.signed
    assert f" {BAR_HEIGHT / 2:g}v-2.5h" in bars.own
    assert bars.others.startswith(f"M1 {BAR_HEIGHT / 2:g}v5.0h0.8v-5.0z")
    assert bars.words == "learned weights: a 0.50, c 0.25"
    plain = label_bars(weights.abs(), 1, names)
    assert not plain.signed
    assert f" {BAR_HEIGHT:g}v-10.0h" in plain.own
