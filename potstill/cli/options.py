"""Options as flags: how a parser, its help and its errors look."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, get_args

from potstill.config.config import SECTIONS, Option, own_section_options
from potstill.config.options import declared, words_of
from potstill.config.slots import SLOTS
from potstill.errors import InputError
from potstill.evaluation.protocols import BASELINES, EvaluationOptions
from potstill.registry import LEARNERS, PROTOCOLS, with_source


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


class Help(argparse.RawDescriptionHelpFormatter):
    """A help formatter with room for option names, one line for each."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=124)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)


def flag_of(name: str) -> str:
    """Return the flag of an option's name."""
    return "--" + name.replace("_", "-")


def shared_options(*names: str) -> list[Option]:
    """Return the options of potstill's own sections by name; this needs no torch."""
    return [option for option in own_section_options() if option.name in names]


def add_options(
    parser: argparse.ArgumentParser,
    options: Sequence[Option],
    default: str | None = None,
    *,
    sourced: bool = False,
    but: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add a flag for each option, in groups by table. A flag that is not given sets nothing.

    Args:
        parser: gets the flags.
        options: the options.
        default: what holds then, if it is not the option's own default.
        sourced: whether help says where a paper has an option.
        but: what holds for some options by name, in place of `default`.
    """
    groups: dict[str, Any] = {}
    slots = {slot.table: slot for slot in SLOTS}
    chosen = {option.name: option.default for option in options if option.field is None}
    for option in options:
        table = option.table
        if table not in groups:
            if table in slots:
                title = f"{table.replace('_', ' ')} {chosen[slots[table].choice]}"
            else:
                described = (SECTIONS[table].__doc__ or "").partition("\n")[0].rstrip(".")
                title = f"{table}: {described[:1].lower()}{described[1:]}"
            groups[table] = parser.add_argument_group(title)
        own = option.default
        own = ",".join(map(str, own)) if isinstance(own, tuple) else "no" if own is False else own
        told = help_text(option.help, option.field, sourced=sourced)
        own = but.get(option.name) or default or (own if own != "" else "none")
        text = f"{told} [{own}]".replace("%", "%%")
        known = {"dest": option.name, "default": argparse.SUPPRESS, "help": text}
        flag = flag_of(option.name)
        if option.hint is bool:
            groups[table].add_argument(flag, action=argparse.BooleanOptionalAction, **known)
        else:
            word = "NAME" if option.field is None else metavar(option.hint)
            groups[table].add_argument(flag, metavar=word, **known)
    before = parser.get_default("option_names") or ()
    parser.set_defaults(option_names=(*before, *(option.name for option in options)))


def help_text(line: str, item: "dataclasses.Field[Any] | None", *, sourced: bool) -> str:
    """Return an option's line of help; `sourced`: with where a paper has it."""
    return with_source(line, item.metadata.get("source", "") if sourced and item else "")


def metavar(hint: Any) -> str:
    """Return the placeholder of a value in the help: the choices if they are short, or the type."""
    names = {
        str: "TEXT",
        int: "N",
        float: "X",
        tuple[int, ...]: "N,N",
        tuple[str, ...]: "NAME,NAME",
    }
    if hint in names:
        return names[hint]
    parts = (names.get(part) or "|".join(words_of(part)) or str(part) for part in get_args(hint))
    choices = "|".join(parts)
    return choices if len(choices) <= 12 else "NAME"


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of a flag that takes a whole number of at least `least`."""

    def whole(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text!r}"
            )
        return int(text)

    return whole


def add_evaluation_options(parser: argparse.ArgumentParser, *, sourced: bool) -> None:
    """Add the flags of `EvaluationOptions`, which parses their texts.

    A flag that takes several names may be repeated; `sourced` as in `add_options`.
    """
    names = {
        "protocol": "|".join(PROTOCOLS),
        "learner": "|".join(("auto", *LEARNERS)),
        "baselines": ",".join(BASELINES),
    }
    for item, hint in declared(EvaluationOptions):
        flags = [
            f"--{name.replace('_', '-')}" for name in (item.name, item.metadata["also"]) if name
        ]
        default = "none" if item.default == () else item.default
        common: dict[str, Any] = {
            "dest": item.name,
            "default": argparse.SUPPRESS,
            "help": f"{help_text(item.metadata['help'], item, sourced=sourced)} (default: "
            f"{default})",
            "metavar": names.get(item.name) or metavar(hint),
        }
        if isinstance(item.default, tuple):
            parser.add_argument(
                *flags, action="extend", type=lambda text: text.split(","), **common
            )
        else:
            parser.add_argument(*flags, **common)
