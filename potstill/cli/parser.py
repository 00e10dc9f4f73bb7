"""The command line: a thin layer over the library, with the options of the configuration.

The commands themselves are in commands.py, which needs torch and is imported when one runs:
`--help` and `list` answer at once.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from potstill import __version__
from potstill.config.config import SECTIONS, Option, layered, options_of_run, preset_names
from potstill.config.options import declared, words_of
from potstill.config.sections import EVALUATION_DATA_OPTIONS, DataConfig, RunConfig
from potstill.config.slots import SLOTS, owners_of, unused
from potstill.evaluation.protocols import BASELINES, EvaluationOptions
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
    InputError,
    near_miss,
)

PAPER = (
    "paper: Feng, Vedantam & Kempe, Embarrassingly Simple Dataset Distillation, ICLR 2024, "
    "arXiv:2311.07025;\n"
    "help texts name its sections"
)
PARTS = (
    "What holds unless it is given stands in [brackets]. Parts have options of their own: "
    "`potstill list` names them,\n"
    "`potstill distill --method NAME --help` shows those of another method; likewise --param, "
    "--model, --real-sampler and the\n"
    f"optimizers. {PAPER}"
)
EXIT_INPUT, EXIT_INTERRUPTED = 2, 130
SHARED = ("distill", "evaluate")
"""Commands that several ranks can share."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    2: the input was wrong, as one sentence says. 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" gets "?" and no traceback
    if "OMP_WAIT_POLICY" not in os.environ:
        # Idle threads of torch's OpenMP spin long before they sleep, and steal the cores of
        # whatever else runs: two runs beside each other on two cores took 60 times longer than one,
        # with this 8 times; alone it costs nothing. Read when torch loads.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    sys.path.insert(
        0, str(Path.cwd())
    )  # --model package.module:factory is looked for where the user stands
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt as error:
        if tells():
            print(f"potstill: {str(error) or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `potstill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(f"cannot access {error.filename or 'a file'}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if (
            isinstance(error, MemoryError)
            or "out of memory" in str(error)
            or "not enough memory" in str(error)
        ):
            return fail(
                "out of memory; lower --micro-batch, --width, --real-batch or --ipc, or use "
                "--storage mapped"
            )
        raise
    finally:
        sys.path.pop(0)


def fail(message: str) -> int:
    """Print one sentence and return the exit code."""
    if tells():
        print(f"potstill: error: {message}", file=sys.stderr)
    return EXIT_INPUT


def tells() -> bool:
    """Return whether this process reports how a command ended; of ranks, the first that knows."""
    return (
        "RANK" not in os.environ or importlib.import_module("potstill.distributed").first_to_tell()
    )


def dispatch(arguments: list[str]) -> int:
    """Parse and run one command."""
    known = options_of_chosen(arguments[1:]) if arguments[:1] == ["distill"] else None
    parser, commands = make_parser(known)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        flags = [
            flag for action in commands[parsed.command]._actions for flag in action.option_strings
        ]
        raise InputError(unknown_argument(parsed.command, name, flags, known or ()))
    if parsed.command == "list":
        return list_parts()
    if parsed.command not in SHARED and "RANK" in os.environ:
        importlib.import_module("potstill.distributed").require_alone(parsed.command)
    run: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module("potstill.cli.commands"), parsed.command
    )
    return run(parsed)


def options_of_chosen(arguments: Sequence[str]) -> list[Option]:
    """Return a run's options, with those of the parts that command line, preset and file choose.

    Raises:
        InputError: an unknown part, preset, or a file that cannot be read.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    for slot in SLOTS:
        first.add_argument(flag_of(slot.choice), dest=slot.choice, default=argparse.SUPPRESS)
    for name in ("preset", "config", "resume"):
        first.add_argument(f"--{name}")
    chosen = vars(first.parse_known_args(list(arguments))[0])
    preset, config, resume = (chosen.pop(name) for name in ("preset", "config", "resume"))
    if resume:
        return list(options_of_run({}))
    layers = importlib.import_module("potstill.cli.commands").layers
    return list(options_of_run(layered(*layers(preset, config and Path(config)), chosen)))


def flag_of(name: str) -> str:
    """Return the flag of an option's name."""
    return "--" + name.replace("_", "-")


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
            f"{', '.join(parts)}: "
            "choose one of them, or leave it out"
        )
    return f"unknown argument {name!r}{near_miss(name, flags)}; see `potstill {command} --help`"


def make_parser(known: Sequence[Option] | None = None) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the whole command line, and the parsers of the commands by name.

    `known` are the options that `distill` has; they depend on the parts that are chosen, and
    finding them needs torch.
    """
    parser = Parser(
        "potstill",
        description="Distill a labelled data set into a few synthetic examples.",
        epilog=PAPER,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    added = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    commands: dict[str, Parser] = {}
    positive, natural = at_least(1), at_least(0)

    def command(name: str, line: str, example: str, usage: str = "", epilog: str = PAPER) -> Parser:
        made = added.add_parser(
            name,
            help=line,
            description=f"{line} Example: {example}",
            epilog=epilog,
            formatter_class=Help,
            allow_abbrev=False,
            usage=f"potstill {name} {usage}".rstrip(),
        )
        commands[name] = made
        return made

    distill = command(
        "distill",
        "Distill a data set.",
        "potstill distill --data digits --ipc 1 --out runs/digits",
        "[options]",
        PARTS,
    )
    distill.add_argument(
        "--out", type=Path, help="the run's folder (default: runs/DATA-ipcN[-PARAM]-METHOD)"
    )
    distill.add_argument(
        "--preset", help="start from a named setting of the paper (see `potstill list`)"
    )
    distill.add_argument(
        "--config",
        type=Path,
        help="start from a config.toml; it wins over --preset, and flags win over both",
    )
    distill.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder, to the bytes it would have given",
    )
    distill.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that --out holds, once the new set is written",
    )
    distill.add_argument("--quiet", action="store_true", help="print the result only")
    add_options(distill, known or [])

    evaluate = command(
        "evaluate",
        "Train fresh networks on a set and test them.",
        "potstill evaluate runs/digits --nets 10",
        "RUN_OR_FILE [options]",
    )
    evaluate.add_argument(
        "path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors"
    )
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument(
        "--ipc",
        type=positive,
        help="measure the first blocks of a boosted set that hold so many images per class",
    )
    which.add_argument(
        "--all-budgets", action="store_true", help="measure every set that a boosted set holds"
    )
    add_evaluation_options(evaluate)
    add_data(evaluate)
    add_options(evaluate, house_options("threads"))

    export = command(
        "export",
        "Write a set in another format.",
        "potstill export runs/digits --format folder",
        "RUN_OR_FILE [options]",
    )
    export.add_argument(
        "path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors"
    )
    export.add_argument(
        "--format", choices=list(EXPORTS),
        help="an annotated grid, one PNG an image in class folders, CSV of vectors, Hugging Face "
             "parquet, NumPy arrays (default: "
        "by the suffix of --out, else png, or csv of vectors)",
    )  # fmt: skip
    export.add_argument(
        "--out", type=Path, help="file or folder to write (default: beside the set)"
    )
    export.add_argument(
        "--ipc",
        type=positive,
        help="write the first blocks of a boosted set that hold so many images per class",
    )
    export.add_argument(
        "--no-check", action="store_true", help="do not measure what accuracy a lossy format costs"
    )
    add_data(export)
    add_options(export, house_options("device", "threads"))

    report = command(
        "report",
        "Write a page about one or more runs.",
        "potstill report runs/digits --out report.html",
        "RUN [RUN ...] [options]",
    )
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs, finished or not; several are compared",
    )
    report.add_argument(
        "--out",
        type=Path,
        help="the HTML file to write (default: report.html in the first run's folder)",
    )

    diagnose = command(
        "diagnose",
        "Measure how noisy a run's meta-gradient is.",
        "potstill diagnose runs/digits --signs 10",
        "RUN [options]",
    )
    diagnose.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run's folder, finished or not: at its start and its checkpoints",
    )
    for name, default, text in (
        (
            "samples",
            100,
            "real samples over which the variance is taken (paper D.3); 0: leave it out",
        ),
        ("size", 1, "real images in a sample"),
        (
            "signs",
            0,
            "estimate it by so many random-sign combinations, which costs less; 0: from each "
            "sample's own gradient",
        ),
        (
            "unrolls",
            1,
            "of how many outer steps, from the next one on, each with its own start and window",
        ),
        (
            "sources",
            0,
            "tell apart the noise of N real batches, N starts and N windows, in N^2 unrolls; 0: "
            "leave it out",
        ),
    ):
        diagnose.add_argument(
            f"--{name}",
            type=natural,
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    add_options(diagnose, house_options("data", "cache_dir", "device", "threads"), "the run's")

    study = command(
        "study",
        "Repeat a study of the paper.",
        "potstill study boosting --seeds 3",
        "NAME [options]",
    )
    study.add_argument(
        "name", metavar="NAME", help=f"one of {', '.join(STUDIES)} (see `potstill list`)"
    )
    study.add_argument(
        "--preset", choices=("small", "paper"), default="small",
        help="small: minutes on two CPU cores; paper: the paper's own setting (default: small)",
    )  # fmt: skip
    study.add_argument("--data", help="the real data (default: digits for small; paper needs it)")
    study.add_argument(
        "--seeds",
        type=positive,
        default=3,
        help="distilling seeds, paired over all that is compared (default: 3)",
    )
    study.add_argument(
        "--nets", type=positive, default=5, help="fresh networks for each figure (default: 5)"
    )
    study.add_argument(
        "--jobs",
        type=positive,
        help="processes (default: one for each of up to 4 CPU cores; 1 on a GPU)",
    )
    study.add_argument(
        "--out",
        type=Path,
        default=Path("studies"),
        help="folder for runs and results (default: studies)",
    )
    study.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    add_options(study, house_options("device", "threads"))

    command("list", "List data sources, methods, models, studies, presets.", "potstill list")
    return parser, commands


def house_options(*names: str) -> list[Option]:
    """Return the options of potstill's own sections by name; this needs no torch."""
    found = []
    for table, section in (("data", DataConfig), ("run", RunConfig)):
        for item, hint in declared(section):
            if item.name in names:
                known = (item.name, table, item, hint, item.default, item.metadata["help"])
                found.append(Option(*known))
    return found


def add_options(
    parser: argparse.ArgumentParser, options: Sequence[Option], default: str | None = None
) -> None:
    """Add a flag for each option, in groups by table. A flag that is not given sets nothing.

    `default` says what holds then, if it is not the option's own default.
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
        text = f"{option.help} [{default or (own if own != '' else 'none')}]".replace("%", "%%")
        known = {"dest": option.name, "default": argparse.SUPPRESS, "help": text}
        flag = flag_of(option.name)
        if option.hint is bool:
            groups[table].add_argument(flag, action=argparse.BooleanOptionalAction, **known)
        else:
            word = "NAME" if option.field is None else metavar(option.hint)
            groups[table].add_argument(flag, metavar=word, **known)
    before = parser.get_default("option_names") or ()
    parser.set_defaults(option_names=(*before, *(option.name for option in options)))


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


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that measure a finished set on real data."""
    parser.add_argument(
        "--data", help="real data to measure on (default: what it was distilled from)"
    )
    add_options(parser, house_options(*EVALUATION_DATA_OPTIONS), default="as when it was distilled")


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `EvaluationOptions`, which parses their texts.

    A flag that takes several names may be repeated.
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
            "dest": item.name, "default": argparse.SUPPRESS, "help": f"{item.metadata['help']} "
                                                                     f"(default: {default})",
            "metavar": names.get(item.name) or metavar(hint),
        }  # fmt: skip
        if isinstance(item.default, tuple):
            parser.add_argument(
                *flags, action="extend", type=lambda text: text.split(","), **common
            )
        else:
            parser.add_argument(*flags, **common)


def list_parts() -> int:
    """Run `potstill list`; return the exit code."""
    tables = [
        ("data (--data)", SOURCES.described()),
        ("methods (--method)", METHODS.described()),
        ("parameterisations (--param)", PARAMETERISATIONS.described()),
        (
            "models (--model)",
            [
                *MODELS.described(),
                ("package.module:factory", "your own: a function or class that makes a network"),
            ],
        ),
        ("optimizers (--inner-optimizer, --outer-optimizer)", OPTIMIZERS.described()),
        ("real batches (--real-sampler)", REAL_SAMPLERS.described()),
        ("augmentations (--augment)", AUGMENTATIONS.described()),
        ("preprocessing (--preprocess)", PREPROCESSING.described()),
        ("protocols (potstill evaluate --protocol)", PROTOCOLS.described()),
        ("learners (potstill evaluate --learner)", LEARNERS.described()),
        ("export formats (--format)", EXPORTS.described()),
        ("studies (potstill study NAME)", STUDIES.described()),
        ("presets (--preset)", preset_names()),
    ]
    width = max(len(name) for _, rows in tables for name, _ in rows)
    for title, rows in tables:
        print(f"{title}\n" + "\n".join(f"  {name:<{width}}  {line}" for name, line in rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
