"""The ready-made sets: that they are what the catalogue says, and how they are named and used."""

import dataclasses
import hashlib
import json
import re
import zlib
from pathlib import Path

import pytest
import torch

import potstill
from potstill.cli.parser import main
from potstill.distilled import artefact, zoo
from potstill.errors import InputError
from potstill.records.metrics import Figure

SETS = {one.name: one for one in potstill.zoo()}
MOST_BYTES = 2_000_000
ROOT = Path(__file__).parent.parent
DOCS = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
SMALL = "iris-ipc1"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    return tmp_path / "cache"


def told(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("potstill: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_what_its_card_says(name):
    one, file = SETS[name], zoo.folder() / f"{name}.safetensors"
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == one.sha256
    assert len(content) == one.size
    distilled = potstill.load(f"zoo:{name}")
    assert len(distilled) == one.examples
    assert distilled.metadata.seed == one.seed
    assert distilled.metadata.method in one.about
    assert one.accuracy["distilled"].n >= 10
    assert one.accuracy["distilled"].mean > one.accuracy["random"].mean
    assert all(value for _, value in one.card)
    words = one.command.split()
    assert words[:2] == ["potstill", "distill"]
    assert (one.data or "DATA") in words
    # No place of the machine that made it.
    assert b"/work" not in content
    assert b"/home" not in content


def test_no_file_is_without_a_card_and_all_are_small():
    files = [Path(str(one)) for one in zoo.folder().iterdir()]
    assert {file.stem for file in files if file.suffix == ".safetensors"} == set(SETS)
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    # As a wheel holds them.
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < MOST_BYTES


def test_networks_train_on_them():
    network = potstill.train(potstill.load(f"zoo:{SMALL}"))
    assert network(torch.zeros(2, 4)).shape == (2, 3)


def test_what_is_measured_is_kept_in_the_cache_and_not_in_the_package(cache, capsys):
    assert main(["evaluate", f"zoo:{SMALL}", "--nets", "3", "--threads", "1"]) == 0
    kept = cache / "sets" / f"zoo--{SMALL}" / SETS[SMALL].sha256[:12]
    assert {path.name for path in kept.iterdir()} == {"distilled.safetensors", "evaluation.json"}
    assert str(kept / "evaluation.json") in capsys.readouterr().out
    test_no_file_is_without_a_card_and_all_are_small()


def test_a_run_starts_from_one(tmp_path):
    made = potstill.distill(
        data="sklearn:iris", init=f"zoo:{SMALL}", steps=1, lengths=(5,), validation_nets=1,
        unroll=2, window=1, real_batch=30, threads=1, outer_lr=1e-9, out=tmp_path / "run",
    )  # fmt: skip
    assert torch.allclose(made.images, potstill.load(f"zoo:{SMALL}").images, atol=1e-6)


def test_the_list_and_a_card(capsys):
    assert main(["zoo"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SETS)
    assert main(["zoo", SMALL]) == 0
    card = capsys.readouterr().out
    one = SETS[SMALL]
    for words in (one.command, one.sha256, str(one.accuracy["distilled"]), one.license):
        assert words in card
    assert main(["zoo", f"zoo:{SMALL}"]) == 0
    assert capsys.readouterr().out == card


def test_verifying_agrees(capsys):
    assert main(["zoo", "verify", SMALL, "--nets", "3", "--threads", "1"]) == 0
    assert "agrees with the catalogue's" in capsys.readouterr().out


def with_entry(monkeypatch, **changes):
    changed = dataclasses.replace(SETS[SMALL], **changes)
    monkeypatch.setattr(zoo, "catalogue", lambda: (changed,))
    monkeypatch.setattr("potstill.cli.sets.catalogue", lambda: (changed,))


def test_a_card_that_says_too_much_is_told(monkeypatch, capsys):
    better = {"distilled": Figure(0.999, 0.001, 10), "random": Figure(0.5, 0.01, 10)}
    with_entry(monkeypatch, accuracy=better)
    assert main(["zoo", "verify", "--nets", "3", "--threads", "1"]) == 1
    assert "DIFFERS from the catalogue's 99.9" in capsys.readouterr().out


def test_without_data_only_the_checksum_is_compared(monkeypatch, capsys):
    with_entry(monkeypatch, data="")
    assert main(["zoo", "verify", SMALL, "--threads", "1"]) == 0
    assert "was not measured: give its data with --data" in capsys.readouterr().out
    words = ["zoo", "verify", SMALL, "--data", "sklearn:iris", "--nets", "3", "--threads", "1"]
    assert main(words) == 0
    assert "agrees" in capsys.readouterr().out


def test_a_file_that_is_another_is_refused(monkeypatch, capsys, tmp_path):
    with_entry(monkeypatch, sha256="0" * 64)
    assert main(["zoo", "verify", "--threads", "1"]) == 1
    assert "is not that of the catalogue: its sha256 is" in capsys.readouterr().out
    for words in (["evaluate", f"zoo:{SMALL}"], ["merge", f"zoo:{SMALL}", "x"]):
        if words[0] == "merge":
            words += ["--out", tmp_path / "both.safetensors"]
        assert "is not that of the catalogue: its sha256 is" in told(capsys, *words)


def test_a_missing_file_keeps_no_other_from_being_measured(monkeypatch, capsys):
    with_entry(monkeypatch, name="gone-ipc1")
    assert main(["zoo", "verify", "--threads", "1"]) == 1
    shown = capsys.readouterr().out
    assert "the file of zoo:gone-ipc1 cannot be read" in shown
    assert "install potstill anew" in shown


@pytest.mark.parametrize("text", ["{", "[]", '{"sets": [{}]}', None])
def test_a_damaged_catalogue_is_told(monkeypatch, capsys, tmp_path, text):
    if text is not None:
        (tmp_path / "catalogue.json").write_text(text)
    monkeypatch.setattr(zoo, "folder", lambda: tmp_path)
    zoo.catalogue.cache_clear()
    try:
        assert "the catalogue of ready-made sets" in told(capsys, "zoo")
    finally:
        zoo.catalogue.cache_clear()


def test_a_damaged_copy_in_the_cache_is_replaced(cache):
    file = artefact.located("path", f"zoo:{SMALL}")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert artefact.located("path", f"zoo:{SMALL}").read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["zoo", "iris-ipc2"], "there is no ready-made set 'iris-ipc2'"),
        (
            ["zoo", "verify", "nothing"],
            "there is no ready-made set 'nothing'; `potstill zoo` lists",
        ),
        (["evaluate", "zoo:"], "there is no ready-made set ''"),
        (["evaluate", "zoo:../x"], "there is no ready-made set '../x'"),
        (["zoo", SMALL, "digits"], "zoo takes one name to show its card"),
        (["zoo", "--data", "digits"], "--data is for potstill zoo verify; leave it out"),
        (["zoo", SMALL, "--nets", "5"], "--nets is for potstill zoo verify; leave it out"),
        (["zoo", "--device", "cpu"], "--device is for potstill zoo verify; leave it out"),
        (["zoo", "verify", "--data", "digits"], "must be that of the sets that are named"),
        (["zoo", "verify", SMALL, "--nets", "2"], "at least 3"),
        (["zoo", "verify", "--nets", "3", SMALL, "nothing"], "no ready-made set 'nothing'"),
        (["zoo", "verify", "--net", "3", SMALL], "unknown argument '--net'"),
        (["zoo", "verify", SMALL, "--data", "digits"], "the data must have 4 features"),
    ],
)
def test_bad_input_gets_one_sentence(capsys, words, sentence):
    assert sentence in told(capsys, *words)


def test_in_python_a_wrong_name_is_an_input_error():
    for call in (potstill.load, lambda name: potstill.verify(name.removeprefix("zoo:"))):
        with pytest.raises(InputError, match="there is no ready-made set 'none-such'"):
            call("zoo:none-such")
    with pytest.raises(InputError, match="nets must be at least 3"):
        potstill.verify(SMALL, nets=1)


def test_the_catalogue_is_sorted_data_and_nothing_else():
    text = (zoo.folder() / zoo.CATALOGUE).read_text("utf-8")
    assert json.loads(text).keys() == {"sets"}


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", *DOCS])
def test_what_is_written_names_sets_that_there_are(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    named = re.findall(
        r"zoo:([a-z][a-z0-9-]*\d)|potstill zoo (?:verify )?([a-z][a-z0-9-]*\d)", text
    )
    assert {one or other for one, other in named} <= set(SETS)
