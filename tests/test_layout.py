"""The house: which module may import which, and what start-up costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import potstill

ROOT = Path(potstill.__file__).parent
ORDER = [
    "plain", "metrics", "metadata", "registry", "seeds", "files", "options", "protocols",
    "sections", "slots", "config", "devices", "distributed", "cache", "data", "sampling", "images", "folders",
    "tables", "sources", "preprocess", "loading", "augment", "optimizers", "models",
    "parameterisations", "records", "distilled", "store", "derivatives", "fusible", "compiled",
    "compilation", "inner", "rows", "training", "learners", "scoring", "bench", "evaluation",
    "hardness", "methods", "analysis", "outer", "boosting", "resolve", "runs", "testing",
    "grid", "figures", "results", "claims", "templates", "page", "summary", "curves", "gallery", "features",
    "facts", "report", "exports", "distillation", "diagnosis", "api", "studies", "nested",
    "courses", "stability", "ablations", "storage", "transfer", "strata", "display", "commands",
    "cli", "__main__",
]  # fmt: skip


def module_of(path: Path) -> str:
    """The name in ORDER of a file: its folder's where it lies in one."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """The modules of the package that a source text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "potstill":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("potstill."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("potstill.")}
    return found & set(ORDER)


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = module_of(path)
    later = set(ORDER[ORDER.index(own) + 1 :])
    assert imported(path.read_text()) & later == set()


def test_the_check_sees_an_upward_import():
    assert imported("def f():\n    from potstill.cli import main\n    from potstill import outer") == {"cli", "outer"}


def test_every_module_has_its_place_one_level_deep():
    assert {module_of(path) for path in FILES} == set(ORDER)
    assert max(len(path.relative_to(ROOT).parts) for path in FILES) == 2


def test_help_and_list_do_not_import_torch():
    script = "import sys; from potstill.cli import main; main(['list']); print('torch' in sys.modules or 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_public_names_are_there_and_documented():
    for name in potstill.__all__:
        assert getattr(potstill, name).__doc__
        assert name in dir(potstill)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = potstill.distil
