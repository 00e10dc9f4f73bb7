"""Mistakes that a command line shows by itself, told before torch is loaded, which takes a second.

What is not found here is found later by the code whose rules these are, in the same words.
"""

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from potstill.cli.options import Parser, add_options, flag_of, shared_options
from potstill.config.choosing import AUTO
from potstill.config.config import (
    Option,
    check_preset,
    check_source,
    own_section_options,
    text_of_file,
)
from potstill.config.options import checked, convert
from potstill.config.sections import READ_FROM_PATHS, DataConfig
from potstill.config.slots import SLOTS, check_names
from potstill.errors import InputError
from potstill.evaluation.protocols import EvaluationOptions
from potstill.registry import STUDIES

PACKAGE = Path(__file__).parent.parent
DECLARED = re.compile(r"^    +(\w+): .*= option\(", re.MULTILINE)
"""The line on which a part declares an option."""
STAYS = {"--resume", "--data", "--cache-dir", "--device", "--steps", "--quiet"}
"""Flags that go together with --resume."""


def check_distill(arguments: Sequence[str], flags: Iterable[str]) -> str:
    """Check the arguments of `potstill distill` as far as that needs no part of a run.

    Args:
        arguments: after the command.
        flags: the flags that the command has whatever the parts.
    Returns:
        The first argument that no part can have; "" if there is none.
    Raises:
        InputError: a part, preset, file, value or path is wrong.
    """
    known, named = own_section_options(), {argument.partition("=")[0] for argument in arguments}
    if named & {"-h", "--help"}:
        return ""
    parser = Parser("potstill distill", add_help=False, allow_abbrev=False)
    for name in ("preset", "config", "resume", *(slot.choice for slot in SLOTS)):
        parser.add_argument(flag_of(name), dest=name, default=argparse.SUPPRESS)
    add_options(parser, known)
    given = vars(parser.parse_known_args(list(arguments))[0])
    if given.get("method") == AUTO:  # chosen once the data are read
        del given["method"]
    check_names(given)
    own_part = any(":" in given.get(slot.choice, "") for slot in SLOTS) or "config" in given
    unknown = "" if own_part else first_unknown(arguments, flags)
    if unknown:
        return unknown
    if "preset" in given:
        check_preset(given["preset"])
    if "config" in given:
        text_of_file(Path(given["config"]))
    if "resume" in given and {name for name in named if name.startswith("--")} <= STAYS:
        check_run(Path(given["resume"]))
    check_values(given, known)
    check_data(given.get("data"))
    return ""


def first_unknown(arguments: Sequence[str], flags: Iterable[str]) -> str:
    """Return the first flag that neither the command nor any registered part has; "" if none."""
    names = names_of_options()
    if "ipc" not in names:  # installed without its source
        return ""
    every = {*flags, *map(flag_of, names)}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and not {flag, flag.replace("--no-", "--", 1)} & every:
            return flag
    return ""


@cache
def names_of_options() -> frozenset[str]:
    """Return all names that an option of a run may have, some more, and the choices of parts.

    Those of parts are read from the package's source, since the parts themselves need torch.
    """
    names = {
        name
        for file in PACKAGE.rglob("*.py")
        for name in DECLARED.findall(file.read_text(encoding="utf-8"))
    }
    choices = {slot.choice for slot in SLOTS}
    return frozenset(choices | {slot.prefix + name for slot in SLOTS for name in names})


def check_parsed(parsed: argparse.Namespace) -> None:
    """Check what a command that is parsed names: a run or file, a study, data, values."""
    given = vars(parsed)
    check_values(given, shared_options(*given.get("option_names", ())))
    command = parsed.command
    if command == "evaluate":
        names = {item.name for item in dataclasses.fields(EvaluationOptions)}
        EvaluationOptions.of(**{name: given[name] for name in names & given.keys()})
    if command in ("evaluate", "export"):
        check_set(parsed.path)
    if command in ("finish", "diagnose"):
        check_run(parsed.run)
    if command == "report":
        for run in parsed.runs:
            check_run(run)
    if command == "study":
        STUDIES.check(parsed.name)
    check_data(given.get("data"))


def check_values(given: Mapping[str, Any], known: Iterable[Option]) -> None:
    """Raise an InputError if a value is not of its option's type, or out of its range."""
    for option in known:
        if option.name in given and option.field is not None:
            value = convert(option.name, given[option.name], option.hint)
            checked(option.name, option.field, value)


def check_run(path: Path) -> None:
    """Raise an InputError if a path surely is no run's folder."""
    if not (path / "config.toml").is_file():
        raise InputError(f"{path} holds no run of potstill (it has no config.toml); check the path")


def check_set(path: Path) -> None:
    """Raise an InputError if there is neither a run's folder nor a set's file."""
    if not path.exists():
        raise InputError(f"there is no file {path}; check the path, or distill first")


def check_data(data: str | None) -> None:
    """Raise an InputError if data are of no known kind, or a path that does not exist."""
    if data is None:
        return
    config = DataConfig(data=data)
    check_source(config)
    kind, path = config.source
    if kind in READ_FROM_PATHS and not Path(path).expanduser().exists():
        raise InputError(f"{kind} {path} does not exist; give the path with --data {kind}:PATH")
