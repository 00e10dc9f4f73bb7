"""Whose code may be imported, and from where."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from potstill.errors import InputError, first_line, let_memory_pass, near_miss

TRUST = "POTSTILL_TRUST"
"""The environment variable that holds more trusted packages and names, with commas between them."""
TRUSTED: set[str] = set()
"""Packages, and names such as "package.module:name", whose code may be run."""
PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""The form of "package.module:name", at the beginning of a text."""


def split_path(path: str) -> tuple[str, str]:
    """Split "package.module:name" at the colon; raise an InputError for another form."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise InputError(f"expected 'package.module:name', got {path!r}")
    return module, name


def trust(*names: str) -> None:
    """Let files name parts of a package, or one part, "package.module:name".

    A set, a run's folder or a configuration may come from a stranger, and a part that it names is
    code that would be run. What is named on the command line or in Python is trusted anyway.
    """
    TRUSTED.update(names)


def trusted(path: str) -> bool:
    """Return whether the code at "package.module:name" may be run."""
    known = TRUSTED | set(filter(None, os.environ.get(TRUST, "").split(",")))
    module = path.partition(":")[0]
    parts = module.split(".")
    packages = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return path in known or bool(known & packages)


def find_modules_here() -> None:
    """Let modules be imported from the current folder, after all others.

    Not before them: a file torch.py or jinja2.py in a folder would else be run by any command.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def import_object(path: str) -> Any:
    """Import "package.module:name".

    Raises:
        InputError: the path has another form, or there is no such module or name.
    """
    module, name = split_path(path)
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        let_memory_pass(error)
        raise InputError(
            f"cannot import {module!r} of {path!r}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not hasattr(loaded, name):
        raise InputError(f"module {module!r} has no {name!r}{near_miss(name, dir(loaded))}")
    return getattr(loaded, name)
