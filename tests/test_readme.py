"""The README and the docs: their code runs, their tables are those of the results, what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.registry import STUDIES, WINDOWS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LABORATORY = (ROOT / "docs" / "laboratory.md").read_text()


def test_the_python_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    quick = code.replace("steps=100", "steps=2")
    assert quick != code
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", quick + "\nassert classes.shape == (5,)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "digits.safetensors").exists()


def test_the_tables_are_made_from_the_results():
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.parent.name)
def test_every_picture_and_every_page_that_is_linked_is_there(page):
    linked = [link for link in re.findall(r"\[.*?\]\((.+?)\)", page.read_text()) if not link.startswith("http")]
    for link in linked:
        assert (page.parent / link).stat().st_size > 0


def test_the_laboratory_names_every_sampler_and_study():
    rows = {
        name
        for line in LABORATORY.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert set(WINDOWS) | set(STUDIES) <= rows


def test_the_laboratorys_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", LABORATORY, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["burn_in"], names["window"]) == (0, 20)
    assert names["state"] == {"burn_in": 0, "steps": 1, "average": 1.2, "lowest": 1.2, "waited": 0}
