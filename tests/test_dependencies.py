"""What docs/dependencies.md says of dependencies is what pyproject.toml asks for, and what the
packages say of themselves.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_USERS = ("hf", "tensorboard", "timm")
WORDS = {"BSD": "BSD", "MIT": "MIT", "Apache": "Apache", "MPL": "MPL", "PSF": "Python Software"}
"""A word of the table -> a word of the package's own statement."""


def rows(columns):
    found = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [row for row in found if len(row) == columns and row[0] not in ("package", "extra")]


def split(requirement):
    return tuple(re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement).groups())


def test_the_page_has_what_is_asked_for():
    assert [tuple(row[:2]) for row in rows(4)] == [*map(split, PROJECT["dependencies"])]
    extras = PROJECT["optional-dependencies"]
    wanted = [(extra, *split(one)) for extra in OF_USERS for one in extras[extra]]
    assert [tuple(row[:3]) for row in rows(5)] == wanted


@pytest.mark.parametrize("row", [row[-4:] for row in (*rows(4), *rows(5))], ids=lambda row: row[0])
def test_licenses_are_those_that_packages_state(row):
    name, _, license, _ = row
    try:
        known = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    stated = " ".join(
        [
            known.get("License-Expression") or "",
            known.get("License") or "",
            *(one for one in known.get_all("Classifier") or [] if one.startswith("License")),
        ]
    )
    words = [word for word in WORDS if word in license]
    assert words
    assert all(word in stated or WORDS[word] in stated for word in words)
