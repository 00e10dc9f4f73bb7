"""Whatever stands in a file or an option: it is read, or it is one sentence."""

import json
import os
import warnings
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration, options_from_toml, options_of_run, to_toml
from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.distillation.run_folder import METRICS, RunFolder
from potstill.errors import InputError
from potstill.evaluation.records import EVALUATION, EvaluationRecord, read_records
from potstill.records.metrics import StepRecord
from potstill.records.plain import Unreadable

NAMES = [option.name for option in options_of_run({})]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "real", "adam", "0", "1e9", "nan", "-1", "a:b", "../x", "\0"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
READ = ["distilled.safetensors", "config.toml", METRICS, EVALUATION]
"""Files of a run's folder."""
QUICKLY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def one_sentence(error: InputError) -> None:
    """It says something, on one line."""
    assert str(error)
    assert len(str(error)) < 5000


@QUICKLY
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_options_are_a_configuration_or_one_sentence(options):
    try:
        config = configuration(options)
    except InputError as error:
        one_sentence(error)
        return
    again = configuration(options_from_toml(to_toml(config), "x"))
    assert again == config, "what is written is read back"


@QUICKLY
@given(st.text() | st.builds(lambda name, text: f"[{name}]\n{text}", st.text(), st.text()))
def test_any_text_is_a_configuration_file_or_one_sentence(text):
    try:
        configuration(options_from_toml(text, "c.toml"))
    except InputError as error:
        one_sentence(error)


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "9" * 5001, "[" * 5000])
def test_a_deep_or_endless_configuration_is_one_sentence(text):
    with pytest.raises(InputError, match="is not valid TOML"):
        options_from_toml(text, "c.toml")


@QUICKLY
@given(st.text() | st.builds(json.dumps, VALUES))
def test_any_line_of_a_log_is_a_record_or_unreadable(line):
    with suppress(Unreadable):
        assert isinstance(StepRecord.of_line(line), StepRecord)


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5001, '{"step": NaN}', "\ud800"])
def test_a_deep_line_of_a_log_is_unreadable(line):
    with pytest.raises(Unreadable):
        StepRecord.of_line(line)


@QUICKLY
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(READ),
)
def test_any_bytes_in_a_run_s_folder_are_read_or_one_sentence(tmp_path, content, name):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(content)
    for use in (
        lambda: potstill.load(folder),
        lambda: RunFolder.open(folder).config(),
        lambda: RunFolder(folder).records(),
        lambda: read_records(folder / EVALUATION, EvaluationRecord),
    ):
        try:
            use()
        except InputError as error:
            one_sentence(error)


BEGINNINGS = [
    b"",
    b"PK\x03\x04",
    b"\x93NUMPY",
    b"PAR1",
    b"\x89PNG\r\n\x1a\n",
    b"\x1f\x8b",
    b"a,b\n",
]


@settings(QUICKLY, max_examples=60)
@given(
    content=st.builds(bytes.__add__, st.sampled_from(BEGINNINGS), st.binary(max_size=200)),
    suffix=st.sampled_from([".npz", ".csv", ".parquet", ".zip", ".tar", ".png", ".bin", ""]),
)
def test_any_bytes_are_data_or_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(DataConfig(data=str(path)))
        except InputError as error:
            one_sentence(error)


def test_named_pipes_are_not_waited_for(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("distilled.safetensors", "config.toml", METRICS, EVALUATION):
        os.mkfifo(folder / name)
    for words in (["evaluate", str(folder)], ["report", str(folder)]):
        assert main(words) == 2
    assert capsys.readouterr().err.count("potstill: error: ") == 2
    assert RunFolder(folder).records() == []
    for name in ("data.npz", "data.csv", "data.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError):
            read(DataConfig(data=str(tmp_path / name)))
