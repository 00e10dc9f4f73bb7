"""What the flags of several commands share: how a command is added, sets, data, numbers."""

import argparse
import importlib
from collections.abc import Iterable
from pathlib import Path

from potstill.cli.options import Help, Parser, add_options, at_least, shared_options
from potstill.config.sections import EVALUATION_DATA_OPTIONS
from potstill.errors import InputError

PAPER = (
    "paper: Feng, Vedantam & Kempe, Embarrassingly Simple Dataset Distillation, ICLR 2024, "
    "arXiv:2311.07025"
)
SOURCED = "--verbose --help names the paper's sections (arXiv:2311.07025)"
READ_FILES = (
    "distill",
    "extend",
    "finish",
    "evaluate",
    "audit",
    "export",
    "merge",
    "push",
    "report",
    "watch",
    "diagnose",
)
"""Commands that read what a stranger may have written."""


class Commands:
    """The commands' parsers by name, as they are added.

    Args:
        parser: of everything.
    """

    def __init__(self, parser: Parser):
        self.parsers: dict[str, Parser] = {}
        self.added = parser.add_subparsers(
            dest="command", metavar="COMMAND", required=True, parser_class=Parser
        )

    def add(
        self, name: str, line: str, example: str, usage: str = "", epilog: str = PAPER
    ) -> Parser:
        """Make the parser of a command.

        Args:
            name: of the command.
            line: what it does, in one sentence.
            example: a command that works.
            usage: its arguments, in short.
            epilog: what its help ends with.
        """
        made = self.added.add_parser(
            name,
            help=line,
            description=f"{line} Example: {example}",
            epilog=epilog,
            formatter_class=Help,
            allow_abbrev=False,
            usage=f"potstill {name} {usage}".rstrip(),
        )
        if name in READ_FILES:
            made.add_argument(
                "--trust",
                action="append",
                metavar="PACKAGE",
                help="let a set, a run or a configuration name code of this package; it is run",
            )
        self.parsers[name] = made
        return made


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the flag that makes help longer."""
    parser.add_argument(
        "--verbose", action="store_true", help="with --help: say where the paper has an option, too"
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a distilled set."""
    parser.add_argument(
        "path",
        type=set_place,
        metavar="RUN_OR_FILE",
        help="a run's folder, a distilled.safetensors, zoo:NAME or hf://user/name",
    )


def add_numbers(
    parser: argparse.ArgumentParser, rows: Iterable[tuple[str, int, str]], least: int = 0
) -> None:
    """Add flags that take whole numbers: (name, default, help) of each."""
    for name, default, text in rows:
        parser.add_argument(
            f"--{name}",
            type=at_least(least),
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )


def set_place(text: str) -> Path:
    """Return the place of a set; one of the Hub or a ready-made one is fetched."""
    if not text.startswith(("hf://", "zoo:")):
        return Path(text)
    try:
        found: Path = importlib.import_module("potstill.distilled.remote").fetched(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return found


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that measure a finished set on real data."""
    parser.add_argument(
        "--data", help="real data to measure on (default: what it was distilled from)"
    )
    add_options(parser, shared_options(*EVALUATION_DATA_OPTIONS), "as when it was distilled")
