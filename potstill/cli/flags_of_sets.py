"""The flags of commands on finished sets."""

import argparse
from pathlib import Path

from potstill.cli.adding import (
    SOURCED,
    Commands,
    add_data,
    add_numbers,
    add_set,
    add_verbose,
    set_place,
)
from potstill.cli.options import add_evaluation_options, add_options, at_least, shared_options
from potstill.registry import EXPORTS


def add_evaluate(commands: Commands, *, sourced: bool) -> None:
    """Add the flags of `potstill evaluate`."""
    evaluate = commands.add(
        "evaluate",
        "Train fresh networks on a set and test them.",
        "potstill evaluate runs/digits --nets 10",
        "RUN_OR_FILE [options]",
        SOURCED,
    )
    add_set(evaluate)
    add_verbose(evaluate)
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument(
        "--ipc",
        type=at_least(1),
        help="measure the first blocks of a boosted set that hold so many images per class",
    )
    which.add_argument(
        "--all-budgets", action="store_true", help="measure every set that a boosted set holds"
    )
    add_evaluation_options(evaluate, sourced=sourced)
    add_data(evaluate)
    add_options(evaluate, shared_options("threads"))


def add_audit(commands: Commands) -> None:
    """Add the flags of `potstill audit`."""
    audit = commands.add(
        "audit",
        "Measure what a set tells of the single examples that it was distilled from.",
        "potstill audit runs/digits --nets 5",
        "RUN_OR_FILE [options]",
    )
    add_set(audit)
    counts = (
        ("nets", 5, "networks for each attack"),
        ("epochs", 20, "for which networks train on all training data"),
    )
    add_numbers(audit, counts, least=1)
    add_numbers(audit, [("seed", 0, "of the networks")])
    add_data(audit)
    add_options(audit, shared_options("device", "threads"))


def add_export(commands: Commands) -> None:
    """Add the flags of `potstill export`."""
    export = commands.add(
        "export",
        "Write a set in another format.",
        "potstill export runs/digits --format folder",
        "RUN_OR_FILE [options]",
    )
    add_set(export)
    export.add_argument(
        "--format", choices=list(EXPORTS),
        help="an annotated grid, one PNG an image in class folders, CSV of vectors, Hugging Face "
        "parquet, NumPy arrays, a set's own file (default: by the suffix of --out, else png, or "
        "csv of vectors)",
    )  # fmt: skip
    export.add_argument(
        "--out", type=Path, help="file or folder to write (default: beside the set)"
    )
    export.add_argument(
        "--ipc",
        type=at_least(1),
        help="write the first blocks of a boosted set that hold so many images per class",
    )
    export.add_argument(
        "--without-preprocessing",
        action="store_true",
        help="write the set's own file without what prepares real examples, mostly the larger part",
    )
    export.add_argument(
        "--no-check", action="store_true", help="do not measure what accuracy a lossy format costs"
    )
    add_data(export)
    add_options(export, shared_options("device", "threads"))


def add_merge(commands: Commands) -> None:
    """Add the flags of `potstill merge`."""
    merge = commands.add(
        "merge",
        "Make one set of several, of the same classes or of different ones.",
        "potstill merge runs/mine runs/theirs --out both.safetensors",
        "RUN_OR_FILE RUN_OR_FILE [...] [options]",
    )
    merge.add_argument(
        "paths",
        type=set_place,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="folders of runs, sets' files, zoo:NAME or hf://user/name",
    )
    merge.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write"
    )


def add_push(commands: Commands) -> None:
    """Add the flags of `potstill push`."""
    push = commands.add(
        "push",
        "Publish the set of a run on the Hugging Face Hub, with a card and a table.",
        "potstill push runs/digits --to user/digits-ipc1",
        "RUN [options]",
    )
    push.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    push.add_argument("--to", required=True, metavar="USER/NAME", help="the data set to make")
    push.add_argument("--license", default="", help="of the set, as the Hub names it, e.g. mit")
    push.add_argument("--private", action="store_true", help="others cannot see it")
    push.add_argument(
        "--dry-run",
        type=Path,
        metavar="FOLDER",
        help="write what would be published to this folder, and publish nothing",
    )


def add_zoo(commands: Commands) -> None:
    """Add the flags of `potstill zoo`."""
    zoo = commands.add(
        "zoo",
        "List the ready-made sets, show the card of one, or measure them again.",
        "potstill zoo verify digits-ipc1",
        "[NAME | verify [NAME ...]] [options]",
    )
    zoo.add_argument(
        "words",
        nargs="*",
        metavar="NAME",
        help="a set, to see its card; or verify, and sets (default: all), to compare checksum and "
        "accuracy with the card",
    )
    zoo.add_argument(
        "--data",
        default=argparse.SUPPRESS,
        help="of verify: the real data of the sets that are named",
    )
    zoo.add_argument(
        "--nets",
        type=at_least(3),
        default=argparse.SUPPRESS,
        metavar="N",
        help="of verify: networks for each accuracy (default: 10)",
    )
    add_options(zoo, shared_options("device", "threads"))
