"""Every example runs, in a short form, from a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import potstill

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = {
    "architecture_search": ["--networks", "3", "--epochs", "1", "--nets", "1", "--ipc", "1"],
    "continual_learning": ["--nets", "1"],
    "federated_merge": ["--nets", "1"],
    "own_method": ["--nets", "1"],
    "own_network": ["--nets", "1"],
    "own_photos": ["--nets", "1"],
    "plain_pytorch": None,
}
"""Name -> options beside two outer steps; None: it takes none."""


def run(name, words, folder):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *words], cwd=folder, capture_output=True,
        text=True, check=False, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SHORT.keys()


@pytest.mark.parametrize("name", [name for name, words in SHORT.items() if words is not None])
def test_an_example_runs_and_tells_figures(name, tmp_path):
    told = run(name, ["--steps", "2", *SHORT[name]], tmp_path)
    assert re.search(r"\d\d\.\d %", told), told


def test_a_set_is_read_without_potstill(tmp_path):
    made = potstill.distill(
        data="digits", method="random", model="mlp", width=8, lengths=(100,), validation_nets=1,
        preprocess="normalize", progress=False,
    )  # fmt: skip
    potstill.save(made, tmp_path / "set.safetensors")
    # A package of that name that cannot be imported: the example must do without.
    (tmp_path / "potstill.py").write_text("raise ImportError\n")
    told = run("plain_pytorch", ["set.safetensors"], tmp_path)
    right = re.search(r"right on ([\d.]+) % of all 1,797 digits", told)
    assert right is not None
    assert float(right[1]) > 30
