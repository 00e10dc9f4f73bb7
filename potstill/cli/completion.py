"""Completion of commands, flags and names in the user's shell, by shtab."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import shtab

from potstill.cli.flags import make_parser
from potstill.config.config import Option, options_of_run, preset_names
from potstill.config.options import words_of
from potstill.config.slots import SLOTS
from potstill.registry import LEARNERS, MODELS, PROTOCOLS, STUDIES


def completion(parsed: argparse.Namespace) -> int:
    """Run `potstill completion`; return the exit code."""
    print(script(parsed.shell))
    return 0


def script(shell: str) -> str:
    """Return what a shell is to read, with the options of every part and the names of all."""
    options = {option.name: option for option in every_option()}
    parser, commands = make_parser(list(options.values()))
    names = {**known_names(), **{name: words(option.hint) for name, option in options.items()}}
    names |= {slot.choice: tuple(slot.registry) for slot in SLOTS}
    for command in commands.values():
        for action in command._actions:
            suggest(action, names)
    completed: str = shtab.complete(parser, shell)
    return completed


def every_option() -> Iterator[Option]:
    """Yield every option that a run can have, whatever its parts; some more than once."""
    yield from options_of_run({})
    for slot in SLOTS:
        for part in slot.registry:
            for name, item, hint in slot.options(part):
                yield Option(name, slot.table, item, hint, item.default, item.metadata["help"])


def known_names() -> Mapping[str, tuple[str, ...]]:
    """Return what may be given for options and arguments that are no options of a run."""
    presets = tuple(name for name, _ in preset_names())
    return {
        "preset": presets,
        "name": tuple(STUDIES),
        "models": tuple(MODELS),
        "protocol": tuple(PROTOCOLS),
        "learner": ("auto", *LEARNERS),
    }


def words(hint: Any) -> tuple[str, ...]:
    """List the words that an option of this type can be."""
    return tuple(word for part in (hint, *get_args(hint)) for word in words_of(part))


def suggest(action: argparse.Action, names: Mapping[str, tuple[str, ...]]) -> None:
    """Let the shell offer the names that an argument takes, or files."""
    if action.choices is None and names.get(action.dest):
        action.choices = names[action.dest]
    elif action.type is Path or action.dest in ("data", "init"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
