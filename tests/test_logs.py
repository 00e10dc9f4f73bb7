"""What a run writes of its steps for other programs."""

import csv
import subprocess
import sys

import pytest
from test_runs import QUICK

import potstill
from potstill.distillation import logs
from potstill.distillation.logs import TENSORBOARD, as_csv
from potstill.records.metrics import Figure, StepRecord

SHOW = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1]).Reload()
for name in read.Tags()["scalars"]:
    print(name, *(f"{one.step}:{one.value:.6g}" for one in read.Scalars(name)))
"""


def shown(folder):
    told = subprocess.run(
        [sys.executable, "-c", SHOW, str(folder)], capture_output=True, text=True, check=True
    )
    return {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines()}


def test_every_run_has_a_table_of_its_steps(tmp_path):
    potstill.distill(**{**QUICK, "steps": 4}, out=tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert 0 < float(rows[3]["validation"]) <= 1
    assert {"loss", "grad_norm", "seconds", "validation_std"} <= set(rows[0])


def test_columns_are_those_of_all_rows():
    first = StepRecord(1, 2.0, None, False, False, 0.5, 9.0, info={"window": 3})
    second = StepRecord(2, 1.0, 0.1, True, False, 0.5, 9.0, validation=Figure(0.5, 0.25, 2))
    head, one, two = as_csv([first, second]).splitlines()
    names = head.split(",")
    assert dict(zip(names, one.split(","), strict=True))["window"] == "3"
    assert dict(zip(names, two.split(","), strict=True))["validation_std"] == "0.25"
    assert as_csv([]) == "\n"


def test_tensorboard_reads_the_curves_of_a_run_that_was_resumed(tmp_path):
    run = tmp_path / "run"
    potstill.distill(**{**QUICK, "steps": 2}, out=run, log="tensorboard")
    potstill.resume(run, steps=4)
    curves = shown(run / TENSORBOARD)
    assert [one.split(":")[0] for one in curves["outer/loss"]] == ["1", "2", "3", "4"]
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    told = [float(one.split(":")[1]) for one in curves["outer/loss"]]
    assert told == pytest.approx(losses, rel=1e-5)
    assert "accuracy/validation" in curves


def test_the_set_is_the_same_whatever_is_logged(tmp_path):
    for log in ("none", "tensorboard"):
        potstill.distill(**{**QUICK, "steps": 2}, out=tmp_path / log, log=log)
    one, other = (tmp_path / log / "distilled.safetensors" for log in ("none", "tensorboard"))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "none" / TENSORBOARD).exists()


def test_without_the_package_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(potstill.InputError, match=r"pip install 'potstill\[tensorboard\]'"):
        potstill.distill(**{**QUICK, "steps": 2}, out=tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()
