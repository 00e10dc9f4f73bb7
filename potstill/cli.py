"""The command line: a thin layer over the library. Its options are those of config.py.

The commands themselves are in commands.py, which needs torch and is imported when one runs: `--help` and `list` answer at once.
"""

import argparse
import dataclasses
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from potstill import __version__
from potstill.config import Config, options_of_config, preset_names
from potstill.protocols import BASELINES, EvaluationOptions
from potstill.registry import (
    EXPORTS,
    LEARNERS,
    METHODS,
    MODELS,
    OPTIMIZERS,
    PARAMETERISATIONS,
    PREPROCESSING,
    PROTOCOLS,
    SOURCES,
    STUDIES,
    InputError,
    near_miss,
)
from potstill.sections import EVALUATION_DATA_OPTIONS

PAPER = (
    "paper: Feng, Vedantam & Kempe, Embarrassingly Simple Dataset Distillation, ICLR 2024, arXiv:2311.07025;\n"
    "help texts name its sections"
)
EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with room for option names."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. 2: the input was wrong, told in one sentence. 130: interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" gets "?" and no traceback
    if "OMP_WAIT_POLICY" not in os.environ:
        # Idle threads of torch's OpenMP spin long before they sleep, and steal the cores of whatever else runs: two runs beside
        # each other on two cores took 60 times longer than one, with this 8 times; alone it costs nothing. Read when torch loads.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    sys.path.insert(0, str(Path.cwd()))  # --model package.module:factory is looked for where the user stands
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt as error:
        print(f"potstill: {str(error) or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `potstill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(f"cannot access {error.filename or 'a file'}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "not enough memory" in str(error):
            return fail(
                "out of memory; lower --micro-batch, --width, --real-batch or (with --param) --budget-ipc, or use --storage mapped"
            )
        raise
    finally:
        sys.path.pop(0)


def fail(message: str) -> int:
    """Print one sentence; the exit code."""
    print(f"potstill: error: {message}", file=sys.stderr)
    return EXIT_INPUT


def dispatch(arguments: list[str]) -> int:
    """Parse and run one command."""
    parser, commands = make_parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in commands[parsed.command]._actions for flag in action.option_strings]
        name = unknown[0].partition("=")[0]
        raise InputError(f"unknown argument {name!r}{near_miss(name, flags)}; see `potstill {parsed.command} --help`")
    if parsed.command == "list":
        return list_parts()
    run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module("potstill.commands"), parsed.command)
    return run(parsed)


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of everything, and those of the commands by name."""
    parser = Parser(
        "potstill", description="Distill a labelled data set into a few synthetic examples.", epilog=PAPER, formatter_class=Help
    )
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    commands: dict[str, Parser] = {}
    positive, natural = at_least(1), at_least(0)

    def command(name: str, line: str, example: str, usage: str = "") -> Parser:
        made = added.add_parser(
            name,
            help=line,
            description=f"{line}\n\nexample: {example}",
            epilog=PAPER,
            formatter_class=Help,
            allow_abbrev=False,
            usage=f"potstill {name} {usage}".rstrip(),
        )
        commands[name] = made
        return made

    distill = command("distill", "Distill a data set.", "potstill distill --data digits --ipc 1 --out runs/digits", "[options]")
    distill.add_argument("--out", type=Path, help="the run's folder (default: runs/DATA-ipcN[-PARAM]-METHOD)")
    distill.add_argument("--preset", help="start from a named setting of the paper (see `potstill list`)")
    distill.add_argument(
        "--config", type=Path, help="start from a config.toml; it wins over --preset, and flags on the command line win over both"
    )
    distill.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder, to the bytes it would have given; its data may be given anew with --data",
    )
    distill.add_argument("--overwrite", action="store_true", help="replace the run that --out holds, once the new set is written")
    distill.add_argument("--quiet", action="store_true", help="print the result only")
    add_options(distill, [item.name for _, item, _ in options_of_config()])

    evaluate = command(
        "evaluate",
        "Train fresh networks on a set and test them.",
        "potstill evaluate runs/digits --nets 10",
        "RUN_OR_FILE [options]",
    )
    evaluate.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--ipc", type=positive, help="measure the first blocks of a boosted set that hold so many images per class")
    which.add_argument("--all-budgets", action="store_true", help="measure every set that a boosted set holds")
    add_evaluation_options(evaluate)
    add_data(evaluate)
    add_options(evaluate, ("threads",))

    export = command(
        "export", "Write a set in another format.", "potstill export runs/digits --format folder", "RUN_OR_FILE [options]"
    )
    export.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors")
    export.add_argument(
        "--format", choices=list(EXPORTS),
        help="an annotated grid, one PNG an image in class folders, Hugging Face parquet, NumPy arrays (default: by the suffix of "
        "--out, else png)",
    )  # fmt: skip
    export.add_argument("--out", type=Path, help="file or folder to write (default: beside the set)")
    export.add_argument("--ipc", type=positive, help="write the first blocks of a boosted set that hold so many images per class")
    export.add_argument("--no-check", action="store_true", help="do not measure what accuracy a lossy format costs")
    add_data(export)
    add_options(export, ("device", "threads"))

    report = command(
        "report", "Write a page about one or more runs.", "potstill report runs/digits --out report.html", "RUN [RUN ...] [options]"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, finished or not; several are compared")
    report.add_argument("--out", type=Path, help="the HTML file to write (default: report.html in the first run's folder)")

    diagnose = command(
        "diagnose", "Measure how noisy a run's meta-gradient is.", "potstill diagnose runs/digits --signs 10", "RUN [options]"
    )
    diagnose.add_argument("run", type=Path, metavar="RUN", help="a run's folder, finished or not: at its start and its checkpoints")
    for name, default, text in (
        ("samples", 100, "real samples over which the variance is taken (paper D.3); 0: leave it out"),
        ("size", 1, "real images in a sample"),
        ("signs", 0, "estimate it by so many random-sign combinations, which costs less; 0: from each sample's own gradient"),
        ("unrolls", 1, "of how many outer steps, from the next one on, each with its own start and window"),
        ("sources", 0, "tell apart the noise of N real batches, N starts and N windows, in N^2 unrolls; 0: leave it out"),
    ):
        diagnose.add_argument(f"--{name}", type=natural, default=default, metavar="N", help=f"{text} (default: {default})")
    add_options(diagnose, ("data", "cache_dir", "device", "threads"), default="the run's")

    study = command("study", "Repeat a study of the paper.", "potstill study boosting --seeds 3", "NAME [options]")
    study.add_argument("name", metavar="NAME", help=f"one of {', '.join(STUDIES)} (see `potstill list`)")
    study.add_argument(
        "--preset", choices=("small", "paper"), default="small",
        help="small: minutes on two CPU cores; paper: the paper's own setting (default: small)",
    )  # fmt: skip
    study.add_argument("--data", help="the real data (default: digits for small; paper needs it)")
    study.add_argument("--seeds", type=positive, default=3, help="distilling seeds, paired over all that is compared (default: 3)")
    study.add_argument("--nets", type=positive, default=5, help="fresh networks for each figure (default: 5)")
    study.add_argument("--jobs", type=positive, help="processes (default: one for each of up to 4 CPU cores; 1 on a GPU)")
    study.add_argument("--out", type=Path, default=Path("studies"), help="folder for runs and results (default: studies)")
    study.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    add_options(study, ("device", "threads"))

    command("list", "List data sources, methods, models, studies, presets.", "potstill list")
    return parser, commands


def add_options(parser: argparse.ArgumentParser, names: Sequence[str], default: str | None = None) -> None:
    """Flags for these options of config.py, in groups by section. A flag that is not given sets nothing.

    `default` says what holds then, if it is not the option's own default.
    """
    groups: dict[str, Any] = {}
    for section, item, hint in options_of_config():
        if item.name not in names:
            continue
        if section not in groups:
            described = next(field.type for field in dataclasses.fields(Config) if field.name == section)
            groups[section] = parser.add_argument_group(section, (described.__doc__ or "").strip())
        own = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        own = "no" if own is False else own
        text = f"{item.metadata['help']} (default: {default or (own if own != '' else 'none')})".replace("%", "%%")
        flag, common = "--" + item.name.replace("_", "-"), {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
        if hint is bool:
            groups[section].add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        else:
            groups[section].add_argument(flag, metavar=metavar(hint), **common)
        if second := item.metadata["also"]:
            same = {"dest": second, "default": argparse.SUPPRESS, "help": f"the same as {flag}"}
            groups[section].add_argument("--" + second.replace("_", "-"), metavar=metavar(hint), **same)


def metavar(hint: Any) -> str:
    """What stands for the value in the help: the choices, or the type."""
    if hint is str:
        return "TEXT"
    names = {int: "N", float: "X", tuple[int, ...]: "N,N", tuple[str, ...]: "NAME,NAME"}
    if hint in names:
        return names[hint]
    return "|".join(names.get(part) or "|".join(get_args(part)) or str(part) for part in get_args(hint))


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of at least `least`."""

    def whole(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return whole


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flags of commands that measure a finished set on real data."""
    parser.add_argument("--data", help="real data to measure on (default: what it was distilled from)")
    add_options(parser, EVALUATION_DATA_OPTIONS, default="as when it was distilled")


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `EvaluationOptions`, which reads their texts. A flag of several names may be given again for more."""
    names = {"protocol": "|".join(PROTOCOLS), "learner": "|".join(("auto", *LEARNERS)), "baselines": ",".join(BASELINES)}
    for item in dataclasses.fields(EvaluationOptions):
        flags = [f"--{name.replace('_', '-')}" for name in (item.name, item.metadata["also"]) if name]
        default = "none" if item.default == () else item.default
        common: dict[str, Any] = {
            "dest": item.name, "default": argparse.SUPPRESS, "help": f"{item.metadata['help']} (default: {default})",
            "metavar": names.get(item.name) or metavar(get_type_hints(EvaluationOptions)[item.name]),
        }  # fmt: skip
        if isinstance(item.default, tuple):
            parser.add_argument(*flags, action="extend", type=lambda text: text.split(","), **common)
        else:
            parser.add_argument(*flags, **common)


def list_parts() -> int:
    """`potstill list`."""
    tables = [
        ("data (--data)", SOURCES.described()),
        ("methods (--method)", METHODS.described()),
        ("parameterisations (--param)", PARAMETERISATIONS.described()),
        (
            "models (--model)",
            [*MODELS.described(), ("package.module:factory", "your own: a function or class that makes a network")],
        ),
        ("inner optimizers (--inner-optimizer)", OPTIMIZERS.described()),
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
