"""The command line: a thin layer over the library. Its options are those of config.py.

Whatever needs torch is imported inside a command, so that `--help` and `list` answer at once.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from potstill import __version__
from potstill.config import Config, DataConfig, convert, options_from_file, options_from_preset, options_of_config, preset_names
from potstill.registry import METHODS, MODELS, OPTIMIZERS, PREPROCESSING, SOURCES, WINDOWS, InputError, near_miss

if TYPE_CHECKING:
    from potstill.distillation import Listener
    from potstill.distilled import DistilledSet
    from potstill.evaluation import Row
    from potstill.loading import RealData

EXPORT_FORMATS = ("png", "folder", "parquet", "npz")
EVALUATION_DATA_OPTIONS = ("image_column", "label_column", "image_size", "storage", "cache_dir")
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
    sys.path.insert(0, str(Path.cwd()))  # --model package.module:factory is looked for where the user stands
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("\npotstill: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `potstill list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(f"cannot access {error.filename or 'a file'}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "not enough memory" in str(error):
            return fail("out of memory; lower --micro-batch, --width or --real-batch, or use --storage mapped")
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
    run: Callable[[argparse.Namespace], int] = parsed.run
    return run(parsed)


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of everything, and those of the commands by name."""
    parser = Parser("potstill", description="Distill a labelled data set into a few synthetic examples.", formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    commands: dict[str, Parser] = {}

    def command(name: str, run: Callable[[argparse.Namespace], int], line: str, example: str) -> Parser:
        made = added.add_parser(
            name, help=line, description=f"{line}\n\nexample: {example}", formatter_class=Help, allow_abbrev=False
        )
        made.set_defaults(run=run)
        commands[name] = made
        return made

    distill = command("distill", run_distill, "Distill a data set.", "potstill distill --data digits --ipc 1 --out runs/digits")
    distill.add_argument("--out", type=Path, help="the run's folder (default: runs/DATA-ipcN-METHOD)")
    distill.add_argument("--preset", help="start from a named setting of the paper (see `potstill list`)")
    distill.add_argument("--config", type=Path, help="start from a config.toml; flags on the command line go first")
    distill.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder, to the same bytes")
    distill.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    distill.add_argument("--quiet", action="store_true", help="print the result only")
    add_options(distill, [item.name for _, item, _ in options_of_config()])

    evaluate = command(
        "evaluate", run_evaluate, "Train fresh networks on a set and test them.", "potstill evaluate runs/digits --nets 10"
    )
    evaluate.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors")
    evaluate.add_argument("--nets", type=positive, default=10, help="fresh networks for each row (default: 10)")
    evaluate.add_argument("--model", help="another network than the recipe's: a name, or package.module:factory")
    evaluate.add_argument("--steps", type=positive, help="training steps (default: the recipe's, chosen on validation data)")
    evaluate.add_argument(
        "--protocol", choices=("validation", "paper"), default="validation",
        help="what chooses the length: validation data (default), or the test set among 300, 600, 1,000, 3,000 steps, as the "
        "paper's released code does (optimistic)",
    )  # fmt: skip
    evaluate.add_argument(
        "--baseline", choices=("random", "full"), action="append", default=[],
        help="measure beside it, and again for both: as many random real images, or all of them",
    )  # fmt: skip
    evaluate.add_argument("--full-epochs", type=positive, default=20, help="most epochs of --baseline full (default: 20)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the networks (default: 0)")
    add_machine_and_data(evaluate)

    export = command("export", run_export, "Write a set in another format.", "potstill export runs/digits --format folder")
    export.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a distilled.safetensors")
    export.add_argument(
        "--format", choices=EXPORT_FORMATS, default="png",
        help="an annotated grid (default), one PNG an image in class folders, Hugging Face parquet, NumPy arrays",
    )  # fmt: skip
    export.add_argument("--out", type=Path, help="file or folder to write (default: beside the set)")
    export.add_argument("--no-check", action="store_true", help="do not measure what accuracy a lossy format costs")
    add_machine_and_data(export)

    command("list", run_list, "List data sources, methods, windows, models, presets.", "potstill list")
    return parser, commands


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Flags for these options of config.py, in groups by section. A flag that is not given sets nothing."""
    groups: dict[str, Any] = {}
    for section, item, hint in options_of_config():
        if item.name not in names:
            continue
        if section not in groups:
            described = next(field.type for field in dataclasses.fields(Config) if field.name == section)
            groups[section] = parser.add_argument_group(section, (described.__doc__ or "").strip())
        default = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        text = f"{item.metadata['help']} (default: {default if default != '' else 'none'})".replace("%", "%%")
        flag, common = "--" + item.name.replace("_", "-"), {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
        if hint is bool:
            groups[section].add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        else:
            groups[section].add_argument(flag, type=typed(item.name, hint), metavar=metavar(hint), **common)


def typed(name: str, hint: Any) -> Callable[[str], Any]:
    """A converter of a flag's text; its InputError passes through argparse unchanged."""
    return lambda text: convert(name, text, hint)


def metavar(hint: Any) -> str:
    """What stands for the value in the help: the choices, or the type."""
    if hint is str:
        return "TEXT"
    names = {int: "N", float: "X", tuple[int, ...]: "N,N", tuple[str, ...]: "NAME,NAME"}
    if hint in names:
        return names[hint]
    return "|".join("auto" if get_args(part) == ("auto",) else names.get(part, str(part)) for part in get_args(hint))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_machine_and_data(parser: argparse.ArgumentParser) -> None:
    """The flags of commands that look at a finished set."""
    parser.add_argument("--data", help="real data to measure on (default: what it was distilled from)")
    add_options(parser, (*EVALUATION_DATA_OPTIONS, "device", "threads"))


def run_distill(parsed: argparse.Namespace) -> int:
    """`potstill distill`."""
    given = {item.name: getattr(parsed, item.name) for _, item, _ in options_of_config() if hasattr(parsed, item.name)}
    if parsed.resume:
        strange = [*given, *(name for name in ("out", "preset", "config", "overwrite") if getattr(parsed, name))]
        if strange:
            raise InputError(f"--resume takes every option from the run's config.toml; remove --{strange[0].replace('_', '-')}")
        out = parsed.resume
        config = None
    else:
        base = options_from_preset(parsed.preset) if parsed.preset else {}
        base |= options_from_file(parsed.config) if parsed.config else {}
        config = Config.from_options(**{**base, **given})
        out = parsed.out or default_out(config)

    from potstill import distillation, runs, sources
    from potstill.outer import Interrupted
    from potstill.report import write_grid

    if config is None:
        config = runs.RunFolder.open(out).config()
    elif not parsed.overwrite:
        runs.RunFolder.check_free(out)  # before the data are read, which may take long
    try:
        with listening(parsed.quiet) as listener:
            dataset = sources.read(config.data)
            if parsed.resume:
                distilled = distillation.resume(out, dataset, listener=listener)
            else:
                distilled = distillation.run(config, dataset, out, overwrite=parsed.overwrite, listener=listener)
    except (Interrupted, KeyboardInterrupt) as error:
        way_on = f"go on with `potstill distill --resume {out}`" if (out / runs.CONFIG).is_file() else "nothing was written"
        print(f"potstill: {str(error) or 'interrupted'}; {way_on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    write_grid(distilled, out / runs.PICTURE)
    accuracy = distilled.meta["accuracy"]
    print(
        f"distilled set: {out / 'distilled.safetensors'}\n"
        f"picture:       {out / runs.PICTURE}\n"
        f"validation:    {percent(accuracy)}, {distilled.recipe.steps} training steps; this split chose them\n"
        f"next:          potstill evaluate {out}"
    )
    return 0


def default_out(config: Config) -> Path:
    """runs/DATA-ipcN-METHOD."""
    kind, _, rest = config.data.data.partition(":")
    name = Path(rest).stem if rest else kind
    return Path("runs") / f"{name}-ipc{config.distilled.ipc}-{config.outer.method}"


def percent(figure: Any) -> str:
    """{"mean", "std", "n"} as "88.1 ± 0.5 % (n = 10)"."""
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:.1f}{spread} % (n = {figure['n']})"


@contextmanager
def listening(quiet: bool) -> Iterator["Listener"]:
    """A listener that shows a bar, or lines where there is no terminal.

    The first Ctrl-C (or SIGTERM) asks the loop to stop after its step; a second one stops at once.
    """
    from potstill.display import Display
    from potstill.distillation import Listener

    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        display.say("stopping after this step; once more stops at once")

    display = Display(quiet)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with display:
            yield Listener(display.say, display.step, display.work, lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_set(parsed: argparse.Namespace) -> tuple["DistilledSet", DataConfig | None]:
    """The distilled set of a run or file, and where its real data are, if that can be told."""
    from potstill import runs, store

    path = parsed.path
    if path.is_dir() and (path / runs.CONFIG).is_file() and not (path / store.ARTEFACT).is_file():
        raise InputError(f"the run in {path} is not finished; go on with `potstill distill --resume {path}`")
    distilled = store.load(path)
    recorded = Config.from_options(**flat_options(distilled)).data
    folder = path if path.is_dir() else path.parent
    given = {name: getattr(parsed, name) for name in EVALUATION_DATA_OPTIONS if hasattr(parsed, name)}
    if parsed.data:
        recorded = Config.from_options(Config(data=recorded), data=parsed.data, **{"storage": "auto", **given}).data
    elif (folder / runs.CONFIG).is_file():
        recorded = Config.from_options(Config(data=runs.RunFolder(folder).config().data), **given).data
    elif recorded.data != "digits":
        return distilled, None
    return distilled, recorded


def flat_options(distilled: "DistilledSet") -> dict[str, Any]:
    """The options that a set's file records; where its data lie is not among them."""
    known = {item.name for _, item, _ in options_of_config()}
    flat = {name: value for table in distilled.meta.get("config", {}).values() for name, value in table.items() if name in known}
    if flat.get("data") not in ("digits", None):
        flat["data"] = "arrays"
    return flat


def open_real(distilled: "DistilledSet", data: DataConfig, parsed: argparse.Namespace, say: Callable[[str], None]) -> "RealData":
    """The real data of a set, through the set's own preprocessing; an InputError if they do not fit it."""
    import torch

    from potstill.devices import pick_device
    from potstill.loading import prepare
    from potstill.sources import read

    threads = getattr(parsed, "threads", distilled.meta.get("config", {}).get("run", {}).get("threads", "auto"))
    if threads != "auto":
        torch.set_num_threads(int(threads))
    dataset = read(data)
    shape = tuple(dataset.train.images.shape[1:])
    if shape != distilled.shape:
        raise InputError(f"the data must have images of shape {distilled.shape} like the distilled set, got {shape}")
    if dataset.class_names != distilled.class_names:
        raise InputError(
            f"the data must have the classes of the distilled set ({len(distilled.class_names)}, {distilled.class_names[0]} ..), "
            f"got {len(dataset.class_names)}, {dataset.class_names[0]} .."
        )
    if dataset.fingerprint != distilled.meta.get("data", {}).get("fingerprint"):
        say("note: these are not the data that the set was distilled from; its validation and test images may differ")
    return prepare(dataset, data, pick_device(getattr(parsed, "device", "auto")), distilled.fitted)


def run_evaluate(parsed: argparse.Namespace) -> int:
    """`potstill evaluate`."""
    from potstill import evaluation, runs, store
    from potstill.devices import hardware, pick_device, versions
    from potstill.display import Display

    distilled, data = open_set(parsed)
    if data is None:
        raise InputError(f"{parsed.path} does not tell where its data lie; give them with --data")
    folder = parsed.path if parsed.path.is_dir() else parsed.path.parent
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {folder / runs.EVALUATION}: no permission; copy the set to a folder of your own")
    device = getattr(parsed, "device", "auto")
    with Display() as display:
        real = open_real(distilled, data, parsed, display.say)
        config = Config.from_options(**flat_options(distilled))
        rows = evaluation.evaluate(
            distilled, real, nets=parsed.nets, model=parsed.model, steps=parsed.steps, protocol=parsed.protocol,
            baselines=parsed.baseline, full_epochs=parsed.full_epochs, lengths=config.evaluation.lengths, seed=parsed.seed,
            device=device, progress=display.work,
        )  # fmt: skip
    machine = hardware(pick_device(device))
    result = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "split": "test",
        "test_images": len(real.test),
        "data": {"source": data.data.partition(":")[0], "fingerprint": real.fingerprint},
        "seed": parsed.seed,
        "hardware": machine,
        "versions": versions(),
    }
    store.write(folder / runs.EVALUATION, json.dumps(result, indent=2) + "\n")
    show(rows, len(real.test), machine)
    print(f"written: {folder / runs.EVALUATION}")
    return 0


def show(rows: "list[Row]", test_images: int, machine: str) -> None:
    """Print an evaluation as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Test accuracy on {test_images} images, fresh networks ({machine})", title_justify="left")
    for column in ("trained on", "images", "network", "steps", "accuracy", "protocol"):
        table.add_column(column, justify="right" if column in ("images", "steps") else "left", overflow="fold")
    for row in rows:
        table.add_row(row.name, f"{row.images:,}", row.model, f"{row.steps:,}", str(row.accuracy), row.protocol)
    # No terminal means a log or a pipe: there the table takes the room that it needs.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


def run_export(parsed: argparse.Namespace) -> int:
    """`potstill export`."""
    from potstill.display import Display
    from potstill.evaluation import accuracy_of_export
    from potstill.export import FORMATS, LOSSY_FORMATS, export, exported_images

    distilled, data = open_set(parsed)
    folder = parsed.path if parsed.path.is_dir() else parsed.path.parent
    out = parsed.out or folder / FORMATS[parsed.format][1]
    told = export(distilled, parsed.format, out)
    print(f"written: {out}\n{told}")
    if parsed.no_check or parsed.format not in LOSSY_FORMATS:
        return 0
    if data is None:
        print("what accuracy the pictures cost was not measured; give the real data with --data")
        return 0
    with Display() as display:
        real = open_real(distilled, data, parsed, display.say)
        exact, pictures = accuracy_of_export(distilled, exported_images(distilled), real, progress=display.work)
    print(f"validation accuracy of networks trained on the set: {exact}; on these pictures: {pictures}")
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """`potstill list`."""
    tables = [
        ("data (--data)", SOURCES.described()),
        ("methods (--method)", METHODS.described()),
        ("windows (of the bptt methods)", WINDOWS.described()),
        (
            "models (--model)",
            [*MODELS.described(), ("package.module:factory", "your own: a function or class that makes a network")],
        ),
        ("inner optimizers (--inner-optimizer)", OPTIMIZERS.described()),
        ("preprocessing (--preprocess)", PREPROCESSING.described()),
        ("presets (--preset)", preset_names()),
    ]
    width = max(len(name) for _, rows in tables for name, _ in rows)
    for title, rows in tables:
        print(f"{title}\n" + "\n".join(f"  {name:<{width}}  {line}" for name, line in rows) + "\n")
    return 0
