"""What a stranger's file names is not run, and what lies in the current folder is not imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_runs import QUICK, interrupted_run

import potstill
from potstill.errors import InputError
from potstill.files import load_tensors, save_tensors
from potstill.imports import trust, trusted
from potstill.registry import trust_given

PAYLOAD = """
import pathlib
pathlib.Path({ran!r}).write_text("ran")
import torch
def factory(num_classes=0, **_):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
class Name: pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a payload; what it writes says that it was imported."""
    monkeypatch.setattr("potstill.imports.TRUSTED", set())
    (tmp_path / "payload.py").write_text(PAYLOAD.format(ran=str(tmp_path / "RAN")))
    return tmp_path


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A finished run of our own."""
    out = tmp_path_factory.mktemp("good") / "run"
    potstill.distill(**QUICK, device="cpu", out=out)
    return out


def forged(good: Path, at: Path, **changes) -> Path:
    """A copy of a set with some metadata changed, and a checksum that fits."""
    tensors, meta = load_tensors(good / "distilled.safetensors", "distilled set")
    for name, value in changes.items():
        meta[name] = {**meta[name], **value} if isinstance(value, dict) else value
    known = {key: value for key, value in meta.items() if key not in ("kind", "format_version")}
    save_tensors(at, tensors, "distilled set", known)
    return at


def command(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "potstill", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """It was one sentence, and nothing ran."""
    assert done.returncode == 2, done.stderr
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("potstill: error"))
    assert "is named by a file, and using it would run the code of payload" in line
    assert "--trust payload" in line
    assert "Traceback" not in done.stderr
    assert not (folder / "RAN").exists()


PARTS = {
    "model": {"recipe": {"model": "payload:factory"}},
    "optimizer": {"recipe": {"optimizer": {"name": "payload:Name"}}},
    "preprocessing": {"preprocess": "payload:Name"},
    "augmentation": {"recipe": {"augment": ["payload:factory"]}},
    "parameterisation": {"blocks": [{"kind": "payload:Name", "ipc": 2}]},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_set_from_a_stranger_runs_no_code(part, good, folder):
    path = forged(good, folder / "set.safetensors", **PARTS[part])
    refused(command(folder, "evaluate", path, "--data", "digits", "--nets", "1"), folder)
    for use in (
        lambda: potstill.train(potstill.load(path), steps=1),
        lambda: potstill.evaluate(path, data="digits", nets=1),
    ):
        with pytest.raises(InputError, match="named by a file"):
            use()
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("name", ["os:abort", "sys:exit", "builtins:input", "http.server:test"])
def test_functions_of_pythons_own_are_no_exception(name, good, folder):
    path = forged(good, folder / "set.safetensors", recipe={"model": name})
    done = command(folder, "evaluate", path, "--data", "digits", "--nets", "1")
    assert done.returncode == 2
    assert f"model {name} is named by a file" in done.stderr


@pytest.mark.parametrize("words", [["distill", "--resume"], ["diagnose"], ["finish"]])
def test_a_run_folder_from_a_stranger_runs_no_code(words, folder):
    interrupted_run(folder / "run", after=5, device="cpu")
    config = folder / "run" / "config.toml"
    config.write_text(config.read_text().replace('model = "mlp"', 'model = "payload:factory"'))
    text = config.read_text()
    model = text[text.index("[model]") : text.index("[inner]")]
    text = text.replace(model, '[model]\nmodel = "payload:factory"\n\n')
    config.write_text(text)
    refused(command(folder, *words, folder / "run"), folder)


def test_a_configuration_from_a_stranger_runs_no_code(folder):
    (folder / "c.toml").write_text('[model]\nmodel = "payload:factory"\n')
    refused(command(folder, "distill", "--config", "c.toml", "--out", "r"), folder)
    (folder / "d.toml").write_text('[data]\ndata = "payload:factory"\n')
    refused(command(folder, "distill", "--config", "d.toml", "--out", "r"), folder)


def test_who_names_it_or_allows_its_package_runs_it(good, folder):
    path = forged(good, folder / "set.safetensors", recipe={"model": "payload:factory"})
    short = ("--data", "digits", "--nets", "1", "--compile", "off")
    for way in (("--trust", "payload"), ("--model", "payload:factory")):
        done = command(folder, "evaluate", path, *short, *way)
        assert done.returncode == 0, done.stderr
        assert (folder / "RAN").exists()
        (folder / "RAN").unlink()


@pytest.mark.parametrize(
    "name", ["jinja2", "matplotlib", "pyarrow", "sklearn", "torch", "filelock"]
)
def test_a_module_in_the_current_folder_takes_the_place_of_none_of_ours(name, good, folder):
    shutil.copy(folder / "payload.py", folder / f"{name}.py")
    assert command(folder, "report", good, "--out", "page.html").returncode == 0
    assert command(folder, "evaluate", good, "--nets", "1").returncode == 0
    script = Path(sys.executable).parent / "potstill"
    if script.exists():
        subprocess.run([script, "list"], cwd=folder, check=True, capture_output=True)
    assert not (folder / "RAN").exists()


def test_trust_is_of_packages_and_of_single_names(monkeypatch):
    monkeypatch.setattr("potstill.imports.TRUSTED", set())
    trust("one", "two.inner:Thing")
    assert trusted("one:A")
    assert trusted("one.deep.er:A")
    assert trusted("two.inner:Thing")
    assert not any(map(trusted, ("two.inner:Other", "two:Thing", "onetwo:A", "on:e")))
    trust_given(["mine:net", 3, None, ("a:b", ["c:d"]), "folder:photos", "mine:data:7", "C:\\x:y"])
    assert all(map(trusted, ("mine:net", "a:b", "c:d", "mine:data")))
    assert not any(map(trusted, ("folder:photos", "mine:other", "C:x")))
    monkeypatch.setenv("POTSTILL_TRUST", "three,four.x")
    assert trusted("three.y:Z")
    assert trusted("four.x:Z")
    assert not trusted("four:Z")
