"""The flags of the command line: one parser for each command, made without torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from potstill import __version__
from potstill.cli.adding import PAPER, SOURCED, Commands, add_numbers, add_verbose
from potstill.cli.flags_of_sets import (
    add_audit,
    add_evaluate,
    add_export,
    add_merge,
    add_push,
    add_zoo,
)
from potstill.cli.options import Help, Parser, add_options, at_least, shared_options
from potstill.config.config import Option
from potstill.registry import STUDIES

PARTS = (
    "What holds unless it is given stands in [brackets]. Parts (`potstill list`) have options of "
    "their own: --method NAME --help\n"
    f"shows those of another method; likewise --param, --model and others. {SOURCED}"
)
LEAST_STEPS = 4
"""Outer steps of a run in a study, so that what changes from step to step has a deviation."""
NOISE = (
    (
        "samples",
        100,
        "real samples over which the variance is taken; 0: leave it out",
    ),
    ("size", 1, "real images in a sample"),
    (
        "signs",
        0,
        "estimate it by so many random-sign combinations, which costs less; 0: from each sample's "
        "own gradient",
    ),
    (
        "unrolls",
        1,
        "of how many outer steps, from the next one on, each with its own start and window",
    ),
    (
        "sources",
        0,
        "tell apart the noise of N real batches, N starts and N windows, in N^2 unrolls; 0: leave "
        "it out",
    ),
)
"""Whole numbers that say what `potstill diagnose` measures: name, default, help."""


SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def make_parser(
    known: Sequence[Option] = (), *, sourced: bool = False
) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the whole command line, and the parsers of the commands by name.

    Args:
        known: the options that `distill` has; they depend on the parts that are chosen, and finding
            them needs torch.
        sourced: whether help says where the paper has an option.
    """
    parser = Parser(
        "potstill",
        description="Distill a labelled data set into a few synthetic examples.",
        epilog=PAPER,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    commands = Commands(parser)
    add_distill(commands, known, sourced=sourced)
    add_evaluate(commands, sourced=sourced)
    for add in (
        add_extend,
        add_finish,
        add_audit,
        add_export,
        add_merge,
        add_push,
        add_zoo,
        add_report,
        add_watch,
        add_diagnose,
        add_study,
    ):
        add(commands)
    commands.add(
        "doctor", "Say what this machine offers, and what would be slow on it.", "potstill doctor"
    )
    add_completion(commands)
    listing = commands.add(
        "list", "List data sources, methods, models, studies, presets.", "potstill list"
    )
    listing.add_argument(
        "--verbose", action="store_true", help="say where the paper describes each, too"
    )
    return parser, commands.parsers


def add_distill(commands: Commands, known: Sequence[Option], *, sourced: bool) -> None:
    """Add the flags of `potstill distill`; `known` are the options of the chosen parts."""
    distill = commands.add(
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
        "--quick",
        action="store_true",
        help="a first try: a minute, a small network, short unrolls; every option still wins",
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
        help="go on with the run in this folder, to the bytes it would have given; --steps: longer",
    )
    distill.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that --out holds, once the new set is written",
    )
    distill.add_argument("--quiet", action="store_true", help="print the result only")
    add_verbose(distill)
    add_options(distill, known, sourced=sourced)


def add_extend(commands: Commands) -> None:
    """Add the flags of `potstill extend`."""
    extend = commands.add(
        "extend",
        "Add new blocks or new classes to a finished set, which stays to the byte.",
        "potstill extend runs/digits --ipc 3 --out runs/more",
        "RUN [options]",
    )
    extend.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    extend.add_argument(
        "--ipc", type=at_least(1), help="images per class in the end; not with --new-classes"
    )
    extend.add_argument("--out", type=Path, required=True, help="the new run's folder")
    extend.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    extend.add_argument("--quiet", action="store_true", help="print the result only")
    names = ("data", "weights", "cache_dir", "device", "threads", "steps", "seed")
    own = shared_options(*names, "extend", "new_classes")
    add_options(extend, own, "the run's", but={"extend": "real", "new_classes": "no"})


def add_finish(commands: Commands) -> None:
    """Add the flags of `potstill finish`."""
    finish = commands.add(
        "finish",
        "Make the set of a stopped run, its best so far; the run can go on.",
        "potstill finish runs/digits",
        "RUN [options]",
    )
    finish.add_argument("run", type=Path, metavar="RUN", help="the folder of a stopped run")
    add_options(
        finish, shared_options("data", "weights", "cache_dir", "device", "threads"), "the run's"
    )


def add_report(commands: Commands) -> None:
    """Add the flags of `potstill report`."""
    report = commands.add(
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


def add_watch(commands: Commands) -> None:
    """Add the flags of `potstill watch`."""
    watch = commands.add(
        "watch",
        "Keep a page about runs up to date while they run.",
        "potstill watch runs/digits",
        "RUN [RUN ...] [options]",
    )
    watch.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs; several are compared"
    )
    watch.add_argument(
        "--out", type=Path,
        help="the HTML file, which the browser reads again by itself (default: report.html in the "
        "first run's folder)",
    )  # fmt: skip
    watch.add_argument(
        "--every",
        type=at_least(1),
        default=5,
        metavar="SECONDS",
        help="between two versions of the page (default: 5)",
    )


def add_diagnose(commands: Commands) -> None:
    """Add the flags of `potstill diagnose`."""
    diagnose = commands.add(
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
    add_numbers(diagnose, NOISE)
    add_options(
        diagnose, shared_options("data", "weights", "cache_dir", "device", "threads"), "the run's"
    )


def add_study(commands: Commands) -> None:
    """Add the flags of `potstill study`."""
    study = commands.add(
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
        help="small: a narrow network, for a CPU; paper: the paper's own setting, for a GPU "
        "(default: small)",
    )  # fmt: skip
    study.add_argument(
        "--method",
        help="of boosting and subsets: what is boosted, such as mtt (default: rat-bptt)",
    )
    study.add_argument("--data", help="the real data (default: digits for small; paper needs it)")
    study.add_argument(
        "--steps",
        type=at_least(LEAST_STEPS),
        help="outer steps of each run, or of each block: a study in short, whose figures do not "
        "compare (default: the preset's)",
    )
    study.add_argument(
        "--time-budget",
        help="of levers and methods: the time of each run, such as 5m (default: the preset's)",
    )
    study.add_argument(
        "--seeds",
        type=at_least(1),
        default=3,
        help="distilling seeds, paired over all that is compared (default: 3)",
    )
    study.add_argument(
        "--nets", type=at_least(1), default=5, help="fresh networks for each figure (default: 5)"
    )
    study.add_argument(
        "--jobs",
        type=at_least(1),
        help="processes that share the runs (default: one for each of up to 4 CPU cores; 1 on a "
        "GPU)",
    )
    study.add_argument(
        "--out",
        type=Path,
        default=Path("studies"),
        help="folder for runs and results (default: studies)",
    )
    study.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    add_options(study, shared_options("device", "threads"))


def add_completion(commands: Commands) -> None:
    """Add the argument of `potstill completion`."""
    completion = commands.add(
        "completion",
        "Print what lets a shell complete commands, flags and names.",
        'eval "$(potstill completion bash)"',
        "SHELL",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
