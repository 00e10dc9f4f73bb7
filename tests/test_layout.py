"""The house: which module may import which, and what start-up costs."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import potstill

ROOT = Path(potstill.__file__).parent
ORDER = [
    "errors",
    "imports",
    "registry",
    "records",
    "progress",
    "seeds",
    "workers",
    "devices",
    "files",
    "cache",
    "config",
    "data",
    "distributed",
    "models",
    "parameterisations",
    "engine",
    "distilled",
    "evaluation",
    "methods",
    "distillation",
    "diagnosis",
    "reports",
    "testing",
    "api",
    "studies",
    "cli",
    "__main__",
]
"""The rooms: modules and folders of the first level. Each may import those before it."""


def module_of(path: Path) -> str:
    """Name a file as a module below the package: "data.splits"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Name the room that a module is in."""
    return module.partition(".")[0]


def imported(source: str) -> set[str]:
    """List the modules of the package that a source text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "potstill":
            module = (node.module or "").removeprefix("potstill").removeprefix(".")
            inner = {".".join(filter(None, (module, alias.name))) for alias in node.names}
            found |= {name if name in MODULES else module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("potstill.")
                for alias in node.names
                if alias.name.startswith("potstill.")
            }
    return found & MODULES


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
MODULES = {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_one_way(path):
    own = room_of(module_of(path))
    later = set(ORDER[ORDER.index(own) + 1 :])
    assert {room_of(module) for module in imported(path.read_text())} & later == set()


def test_modules_import_in_no_circle():
    graph = {module_of(path): imported(path.read_text()) - {module_of(path)} for path in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises a CycleError


def test_the_check_sees_an_upward_import():
    text = (
        "def f():\n    from potstill.cli.parser import main\n    from potstill.distillation "
        "import outer"
    )
    assert imported(text) == {"cli.parser", "distillation.outer"}


def test_every_room_has_its_place_one_level_deep():
    assert {room_of(module) for module in MODULES} == set(ORDER)
    assert max(len(path.relative_to(ROOT).parts) for path in FILES) == 2


def test_help_and_list_do_not_import_torch():
    script = (
        "import sys; from potstill.cli.parser import main; main(['list']); print('torch' in "
        "sys.modules or 'numpy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"


def test_public_names_are_there_and_documented():
    for name in potstill.__all__:
        assert getattr(potstill, name).__doc__
        assert name in dir(potstill)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = potstill.distil
