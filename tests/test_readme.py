"""The README and the docs: their code runs, their tables are those of the results, what they name
is there.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.config.config import preset_names
from potstill.methods.unrolled import UnrolledMethod
from potstill.registry import LEARNERS, METHODS, PARAMETERISATIONS, PROTOCOLS, SOURCES, STUDIES
from potstill.testing import contracts, methods, parameterisations

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LABORATORY, STORED, DATA, EVALUATED, OWN = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("laboratory", "parameterisations", "data", "evaluation", "methods")
)


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
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda path: path.parent.name,
)
def test_every_picture_and_every_page_that_is_linked_is_there(page):
    linked = [
        link
        for link in re.findall(r"\[.*?\]\((.+?)\)", page.read_text())
        if not link.startswith("http")
    ]
    for link in linked:
        file, _, anchor = link.partition("#")
        linked_page = page.parent / file if file else page
        assert linked_page.stat().st_size > 0
        headings = re.findall(r"^#+ (.+)$", linked_page.read_text(), re.MULTILINE) if anchor else []
        known = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
        assert not anchor or anchor in known


def test_the_laboratory_names_every_sampler_and_study():
    unrolled = {name for name in METHODS if issubclass(METHODS[name], UnrolledMethod)}
    assert unrolled | set(STUDIES) <= first_cells(LABORATORY)


def test_the_data_page_names_every_preset_and_every_source():
    families = re.findall(r"`([a-z0-9-]+-ipc\d+)`((?:, `-ipc\d+`)*)", DATA)
    named = {
        name
        for first, others in families
        for name in (
            first,
            *(first.rpartition("-ipc")[0] + one for one in re.findall(r"-ipc\d+", others)),
        )
    }
    of_paper = {
        name
        for name, _ in preset_names()
        if not name.startswith(tuple(f"{method}-" for method in ("digits", *METHODS)))
    }
    by_time = {"quick", "standard", "long"}
    assert named | by_time >= of_paper
    assert all(f"`{name}`" in DATA for name in by_time)
    others = {name.partition("-cifar")[0] for name, _ in preset_names() if "-cifar" in name}
    assert all(f"`{method}-" in DATA for method in others)
    assert all(f"| `{source}" in DATA for source in SOURCES)


def test_the_evaluation_page_names_every_protocol_and_learner_and_its_example_runs(
    tmp_path, monkeypatch
):
    cells = {
        line.split("|")[1].strip(" `") for line in EVALUATED.splitlines() if line.startswith("| `")
    }
    assert cells == set(PROTOCOLS) | set(LEARNERS)
    monkeypatch.chdir(tmp_path)
    names = example(EVALUATED)
    assert (list(names["record"].rows), names["unreadable"]) == (names["rows"], 0)


def test_the_method_of_your_own_keeps_to_the_contract_and_distills(tmp_path, monkeypatch):
    (file,) = re.findall(r"```python\n(# centres\.py\n.*?)```", OWN, re.DOTALL)
    (tmp_path / "centres.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = example(OWN)
    assert names["scale"] != 1.0
    assert (tmp_path / "potstill" / "prepared").is_dir()


def test_the_page_on_methods_has_every_rule_of_the_contract():
    told = {
        line.split("|")[2].strip(" `")
        for line in OWN.split("## The contract")[1].splitlines()
        if line.startswith("| ")
    }
    protected = []
    for module in (contracts, methods, parameterisations):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.keyword) and node.arg == "protects":
                text = ast.unparse(node.value)
                protected.append(eval(text, vars(module)) if text != "protects" else "")
    assert len(protected) > 25
    assert {text.replace("--help", "`--help`").strip("`") for text in protected} <= {*told, ""}


def test_every_parameterisation_is_told_with_what_a_budget_buys():
    with_options, with_formula = STORED.split("## How many images")
    assert set(PARAMETERISATIONS) <= first_cells(with_options) & first_cells(with_formula)


def first_cells(text: str) -> set[str]:
    """What stands as code in the first column of the tables."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {name for line in lines for name in re.findall(r"`([a-z-]+)`", line.split("|")[1])}


def example(text: str) -> dict[str, object]:
    """The names that the page's Python examples leave, one after the other."""
    codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert codes
    names: dict[str, object] = {}
    for code in codes:
        exec(code, names)
    return names


def test_the_docs_examples_run():
    assert example(STORED)["basis"]
    names = example(DATA)
    assert names["distilled"].meta["data"]["identity"]
    assert (names["table"].shape, names["classes"].shape) == ((6, 13), (5,))
    names = example(LABORATORY)
    assert (names["burn_in"], names["window"]) == (0, 20)
    assert names["state"] == {"burn_in": 0, "steps": 1, "average": 1.2, "lowest": 1.2, "waited": 0}
