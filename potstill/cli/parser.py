"""The command line: a thin layer over the library. Its flags are in flags.py.

The commands themselves are in commands.py and studying.py, which are imported when one runs:
they need torch, and `--help` and `list` answer at once.
"""

import argparse
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.cli import early
from potstill.cli.flags import make_parser
from potstill.cli.options import Parser, flag_of
from potstill.config.choosing import AUTO
from potstill.config.config import Option, layered, options_of_run, preset_names
from potstill.config.slots import SLOTS, owners_of, unused
from potstill.errors import InputError, near_miss, out_of_memory, visible
from potstill.imports import trust
from potstill.registry import (
    AUGMENTATIONS,
    EXPORTS,
    LEARNERS,
    METHODS,
    MODELS,
    OPTIMIZERS,
    PARAMETERISATIONS,
    PREPROCESSING,
    PROTOCOLS,
    REAL_SAMPLERS,
    SOURCES,
    STUDIES,
    Registry,
    trust_given,
)

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130
OUT_OF_MEMORY = (
    "out of memory; lower --micro-batch, --width, --real-batch or --ipc, or use --storage mapped"
)
SHARED = ("distill", "evaluate")
"""Commands that several ranks can share."""
COMMANDS, OF_SETS = "potstill.cli.commands", "potstill.cli.sets"
HOMES = {
    "study": "potstill.cli.studying",
    "completion": "potstill.cli.completion",
    **dict.fromkeys(("evaluate", "audit", "export", "merge", "push", "zoo"), OF_SETS),
}
"""Module of each command that is not with the others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    2: the input was wrong, as one sentence says. 130: interrupted; 143: by SIGTERM, 129: by a
    terminal that was closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" gets "?" and no traceback
    if "OMP_WAIT_POLICY" not in os.environ:
        # Idle threads of torch's OpenMP spin long before they sleep, and steal the cores of
        # whatever else runs: two runs beside each other on two cores took 60 times longer than one,
        # with this 8 times; alone it costs nothing. Read when torch loads.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt as error:
        if tells():
            print(f"potstill: {str(error) or 'interrupted'}", file=sys.stderr)
        received = getattr(sys.modules.get("potstill.cli.interrupts"), "RECEIVED", None)
        return 128 + received[0] if received else EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `potstill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if out_of_memory(error):
            return fail(OUT_OF_MEMORY)
        return fail(f"cannot access {error.filename or 'a file'}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return fail(OUT_OF_MEMORY)
        raise
    except ImportError as error:  # of a library of ours, when it is first needed
        if "failed to map segment" not in str(error):
            raise
        return fail(f"{error}: out of memory, or the folder forbids to execute what is in it")
    except SystemError as error:
        if "without exception set" not in str(error):
            raise
        # Python's words where it imports a module and has no memory even for the error.
        return fail(f"{error}: out of memory, or a defect in a compiled library")


def fail(message: str) -> int:
    """Print one sentence and return the exit code."""
    if tells():
        print(f"potstill: error: {visible(message)}", file=sys.stderr)
    return EXIT_INPUT


def tells() -> bool:
    """Return whether this process reports how a command ended; of ranks, the first that knows."""
    if "RANK" not in os.environ:
        return True
    first: bool = importlib.import_module("potstill.distributed.link").first_to_tell()
    return first


def dispatch(arguments: list[str]) -> int:
    """Parse and run one command."""
    began = time.perf_counter()
    known = None
    if arguments[:1] == ["distill"]:
        check_distill(arguments[1:])
        known = options_of_chosen(arguments[1:])
    parser, commands = make_parser(known or (), sourced="--verbose" in arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    unknown = with_later_names(parsed, commands[parsed.command], unknown) if unknown else []
    if unknown:
        name = unknown[0].partition("=")[0]
        flags = flags_of(commands[parsed.command])
        raise InputError(unknown_argument(parsed.command, name, flags, known or ()))
    trust(*(name for names in getattr(parsed, "trust", None) or () for name in names.split(",")))
    trust_given(vars(parsed).values())
    if parsed.command == "list":
        return list_parts(sourced=parsed.verbose)
    if getattr(parsed, "verbose", False):  # with --help the parser has ended already
        raise InputError("--verbose is for --help and for `potstill list`; leave it out")
    if parsed.command not in SHARED and "RANK" in os.environ:
        importlib.import_module("potstill.distributed.ranks").require_alone(parsed.command)
    if parsed.command != "distill":
        early.check_parsed(parsed)
    parsed.began = began
    run: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module(HOMES.get(parsed.command, COMMANDS)), parsed.command
    )
    return run(parsed)


def check_distill(arguments: Sequence[str]) -> None:
    """Raise an InputError for what is wrong with `potstill distill` whatever the parts are."""
    flags = flags_of(make_parser()[1]["distill"])
    unknown = early.check_distill(arguments, flags)
    if unknown:
        every = [*flags, *map(flag_of, early.names_of_options())]
        raise InputError(unknown_argument("distill", unknown, every, ()))


def with_later_names(
    parsed: argparse.Namespace, parser: Parser, unknown: Sequence[str]
) -> list[str]:
    """Add names that stand behind flags to those before them, which argparse ends a list with.

    Args:
        parsed: what is known.
        parser: of the command.
        unknown: what argparse did not take.
    Returns:
        What is unknown, flags first.
    """
    several = [one for one in parser._actions if not one.option_strings and one.nargs in ("+", "*")]
    flags = [text for text in unknown if text.startswith("-")]
    if flags or not several:
        return [*flags, *unknown]
    (action,) = several
    read = action.type if callable(action.type) else str
    setattr(parsed, action.dest, [*getattr(parsed, action.dest), *map(read, unknown)])
    return []


def flags_of(parser: Parser) -> list[str]:
    """List the flags of a command."""
    return [flag for action in parser._actions for flag in action.option_strings]


def options_of_chosen(arguments: Sequence[str]) -> list[Option]:
    """Return a run's options, with those of the parts that command line, preset and file choose.

    Raises:
        InputError: an unknown part, preset, or a file that cannot be read.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    for slot in SLOTS:
        first.add_argument(flag_of(slot.choice), dest=slot.choice, default=argparse.SUPPRESS)
    for name in ("preset", "config", "resume", "trust"):
        first.add_argument(f"--{name}")
    chosen = vars(first.parse_known_args(list(arguments))[0])
    preset, config, resume = (chosen.pop(name) for name in ("preset", "config", "resume"))
    trust(*(chosen.pop("trust") or "").split(","))
    trust_given(chosen.values())
    if resume:
        return list(options_of_run({}))
    if chosen.get("method") == AUTO:  # once the data are read
        del chosen["method"]
    layers = importlib.import_module(COMMANDS).layers
    return list(options_of_run(layered(*layers(preset, config and Path(config)), chosen)))


def unknown_argument(command: str, name: str, flags: Sequence[str], known: Sequence[Option]) -> str:
    """Say why an argument is not taken: without effect on the chosen parts, or unknown.

    Args:
        command: name of the command.
        name: the argument.
        flags: the flags of the command.
        known: the options of the chosen parts.
    """
    option = name.removeprefix("--").removeprefix("no-").replace("-", "_")
    names = {one.name: one.default for one in known if one.field is None}
    if names and option in unused(names):
        return f"{name} has no effect with --method {names['method']}; leave it out"
    home = owners_of(option) if names else None
    if home:
        slot, parts = home
        flag = flag_of(slot.choice)
        return (
            f"{name} has no effect with {flag} {names[slot.choice]}; it belongs to {flag} "
            f"{', '.join(parts)}: choose one of them, or leave it out"
        )
    return f"unknown argument {name!r}{near_miss(name, flags)}; see `potstill {command} --help`"


def list_parts(*, sourced: bool) -> int:
    """Run `potstill list`; return the exit code."""

    def rows_of(registry: Registry) -> list[tuple[str, str]]:
        return registry.described(sourced=sourced)

    tables = [
        ("data (--data)", rows_of(SOURCES)),
        (
            "methods (--method)",
            [*rows_of(METHODS), (AUTO, "the best measured at the nearest size and time")],
        ),
        ("parameterisations (--param)", rows_of(PARAMETERISATIONS)),
        (
            "models (--model)",
            [
                *rows_of(MODELS),
                ("package.module:factory", "your own: a function or class that makes a network"),
            ],
        ),
        ("optimizers (--inner-optimizer, --outer-optimizer)", rows_of(OPTIMIZERS)),
        ("real batches (--real-sampler)", rows_of(REAL_SAMPLERS)),
        ("augmentations (--augment)", rows_of(AUGMENTATIONS)),
        ("preprocessing (--preprocess)", rows_of(PREPROCESSING)),
        ("protocols (potstill evaluate --protocol)", rows_of(PROTOCOLS)),
        ("learners (potstill evaluate --learner)", rows_of(LEARNERS)),
        ("export formats (--format)", rows_of(EXPORTS)),
        ("studies (potstill study NAME)", rows_of(STUDIES)),
        ("presets (--preset)", preset_names()),
    ]
    width = max(len(name) for _, rows in tables for name, _ in rows)
    for title, rows in tables:
        print(f"{title}\n" + "\n".join(f"  {name:<{width}}  {line}" for name, line in rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
