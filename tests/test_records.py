"""Records: each type survives its file, what is no record is told, and Python leaves the files that
the command line leaves.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_runs import QUICK, flags

import potstill
from potstill.cli.parser import main
from potstill.diagnosis.over_a_run import Diagnosis, DiagnosisRecord, Noise
from potstill.diagnosis.variance import Variance
from potstill.distillation import run_folder
from potstill.evaluation.records import (
    DIAGNOSIS,
    EVALUATION,
    DataSource,
    EvaluationRecord,
    Row,
    add_record,
    entries,
    read_records,
)
from potstill.records.metadata import BudgetRecord, ChosenAccuracy, DataRecord, SetMetadata
from potstill.records.metrics import Figure, StepRecord, hardness_share
from potstill.records.plain import Unreadable, dump, parse

STEP = StepRecord(
    3,
    0.5,
    None,
    True,
    False,
    0.25,
    90.5,
    2,
    Figure(0.5, None, 1),
    0.125,
    1.5,
    {"burn_in": 4, "image_grad_norm": 0.25},
)
ROW = Row("distilled", "mlp", 20, 2, 300, Figure(0.75, 0.25, 4), "fixed steps", 5120, 0.001)
EVALUATED = EvaluationRecord(
    (ROW, replace(ROW, name="random", steps=None, lr=None)),
    "test",
    359,
    "image",
    10,
    DataSource("f00", "digits"),
    {"nets": 4, "lr": "auto"},
    True,
    "a machine",
    {"torch": "2.6"},
)
VARIANCE = Variance(0.5, 2.0, 8.0, 64, 10)
DIAGNOSED = DiagnosisRecord(
    Noise(samples=10, sources=2),
    DataSource("f00"),
    (
        Diagnosis(0, (VARIANCE,), None),
        Diagnosis(4, (VARIANCE, replace(VARIANCE, norm=0.0)), {"real": VARIANCE}),
    ),
    "a machine",
    {"torch": "2.6"},
)
ACCURACY = ChosenAccuracy(0.5, 0.125, 3, "validation", "fresh networks", 5120)
METADATA = SetMetadata(
    "rat-bptt",
    {"data": {"data": "digits"}, "run": {"seed": 3}},
    3,
    {"torch": "2.6"},
    DataRecord("f00", 7, 2, 1, "b4"),
    40,
    ACCURACY,
    (BudgetRecord(1, 300, 0.001, ACCURACY), BudgetRecord(2, 600, 0.001, ACCURACY)),
    {"patience": 5},
)
RECORDS = [
    STEP,
    replace(STEP, block=1, validation=None, info={}),
    EVALUATED,
    DIAGNOSED,
    METADATA,
    SetMetadata(),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_json(record):
    assert parse(type(record), json.loads(json.dumps(dump(record), allow_nan=False))) == record


def test_a_line_of_the_log_is_flat_and_leaves_out_what_was_not_measured():
    assert json.loads(STEP.line)["burn_in"] == 4
    bare = replace(
        STEP, block=1, validation=None, decode_seconds=None, hardness_seconds=None, info={}
    )
    assert set(json.loads(bare.line)) == {
        "step",
        "loss",
        "grad_norm",
        "clipped",
        "skipped",
        "seconds",
        "memory_mb",
    }
    assert (STEP.value("seconds"), STEP.value("burn_in"), STEP.value("nothing")) == (0.25, 4, None)
    assert hardness_share([STEP, bare]) == 1.5 / 2.0


@pytest.mark.parametrize("cut", [1, 10, -3])
def test_a_torn_line_is_no_record(cut):
    with pytest.raises(Unreadable):
        StepRecord.of_line(STEP.line[:cut])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "x"}, r"step.loss must be .*, got 'x'"),
        ({"loss": float("nan")}, r"step.loss must be .*, got nan"),
        ({"step": 1.5}, "step.step must be int, got 1.5"),
        ({"step": True}, "step.step must be int, got True"),
        ({"clipped": 1}, "step.clipped must be bool, got 1"),
        ({"validation": {"mean": 0.5, "n": 1}}, "step.validation must be"),
        ({"seconds": None}, "step.seconds must be float, got None"),
    ],
)
def test_a_line_of_another_type_is_no_record(changes, message):
    with pytest.raises(Unreadable, match=message):
        StepRecord.of_line(json.dumps({**json.loads(STEP.line), **changes}))


@pytest.mark.parametrize(
    ("record", "key"), [(EVALUATED, "rows"), (EVALUATED, "standard"), (DIAGNOSED, "places")]
)
def test_a_missing_unknown_or_wrong_field_is_told(record, key):
    plain = dump(record)
    with pytest.raises(Unreadable, match=f"record lacks the field '{key}'"):
        parse(type(record), {name: value for name, value in plain.items() if name != key})
    with pytest.raises(Unreadable, match="record has an unknown field 'colour'"):
        parse(type(record), {**plain, "colour": 1})
    with pytest.raises(Unreadable, match=rf"record\.{key} must be"):
        parse(type(record), {**plain, key: 5})


def test_a_diagnosis_tells_the_figures_that_follow_and_leaves_out_infinite_ones():
    first, second = dump(DIAGNOSED)["places"][1]["real"]
    assert (first["normalised"], first["share"]) == (0.125, 4.0)
    assert "normalised" not in second


def test_a_results_file_keeps_what_it_cannot_read_and_replaces_the_same_question(tmp_path):
    path = tmp_path / EVALUATION
    add_record(path, EVALUATED)
    path.write_text(
        json.dumps({EvaluationRecord.KEY: [*entries(path, EvaluationRecord.KEY), {"mine": 1}, 7]})
    )
    assert read_records(path, EvaluationRecord) == ([EVALUATED], 2)
    newer, other = replace(EVALUATED, hardware="another"), replace(EVALUATED, settings={"nets": 5})
    add_record(path, newer)
    add_record(path, other)
    assert read_records(path, EvaluationRecord) == ([newer, other], 1)
    assert entries(path, EvaluationRecord.KEY)[0] == {"mine": 1}
    for text in ("{", "[]", '{"evaluations": 5}'):
        path.write_text(text)
        assert read_records(path, EvaluationRecord) == ([], 0)


def files(folder: Path) -> dict[str, bytes]:
    """The files of a run, without its clock: name -> content."""
    found = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    return {
        name: b"" if name in (run_folder.METRICS, run_folder.CURVES) else path.read_bytes()
        for name, path in found.items()
    }


def test_python_leaves_the_files_that_the_command_line_leaves(tmp_path):
    python, command = tmp_path / "python", tmp_path / "command"
    small = {"steps": 2, "keep_checkpoints": 0}
    potstill.distill(**{**QUICK, **small}, out=python)
    assert main(["distill", "--out", str(command), *flags(**small), "--quiet"]) == 0
    potstill.evaluate(python, nets=2, baselines=("random",), model="mlp")
    words = ["evaluate", str(command), "--nets", "2", "--baseline", "random", "--model", "mlp"]
    assert main(words) == 0
    potstill.diagnose(python, samples=4)
    assert main(["diagnose", str(command), "--samples", "4"]) == 0
    assert {
        EVALUATION,
        DIAGNOSIS,
        run_folder.PICTURE,
        "distilled.safetensors",
        run_folder.METRICS,
    } <= files(python).keys()
    assert files(python) == files(command)
    (record,) = read_records(python / EVALUATION, EvaluationRecord)[0]
    assert (record.standard, record.settings["model"], record.settings["baselines"]) == (
        False,
        "mlp",
        ["random"],
    )


def test_a_set_in_memory_leaves_no_file_and_gives_the_rows_of_its_file(tmp_path):
    potstill.distill(**{**QUICK, "steps": 1}, out=tmp_path / "run")
    alone = Path(
        shutil.copy(tmp_path / "run" / "distilled.safetensors", tmp_path / "mine.safetensors")
    )
    rows = potstill.evaluate(potstill.load(alone), nets=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "run"]
    assert potstill.evaluate(str(alone), nets=2) == rows
    (record,), _ = read_records(tmp_path / f"mine.{EVALUATION}", EvaluationRecord)
    assert (list(record.rows), record.standard) == (rows, True)


def test_a_run_on_arrays_is_evaluated_when_they_are_given_again(tmp_path):
    images, labels = torch.rand(90, 1, 8, 8), torch.arange(90) % 3
    options = {**QUICK, "ipc": 1, "classes_per_batch": "auto", "steps": 1}
    potstill.distill(images, labels, **options, out=tmp_path)
    with pytest.raises(
        potstill.InputError, match="does not tell where its data lie; give them with --data"
    ):
        potstill.evaluate(tmp_path, nets=1)
    assert not (tmp_path / EVALUATION).exists()
    rows = potstill.evaluate(tmp_path, images, labels, nets=1)
    (record,), _ = read_records(tmp_path / EVALUATION, EvaluationRecord)
    assert (list(record.rows), record.data.source) == (rows, "arrays")
    with pytest.raises(
        potstill.InputError, match="model and models are one option, got mlp and vgg11"
    ):
        potstill.evaluate(tmp_path, images, labels, model="mlp", models=("vgg11",))
