"""What a run is made of: frozen dataclasses, read from TOML and the command line and written back, validated in one place.

Every option's name is unique over all sections, so that it is one flag (`--inner-lr`), one keyword of
`potstill.distill` (`inner_lr=`) and one key of the TOML file (`[inner] inner_lr`).
"""

import dataclasses
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from potstill.registry import METHODS, OPTIMIZERS, PREPROCESSING, SOURCES, InputError, near_miss

Auto = Literal["auto"]
EVALUATION_DATA_OPTIONS = ("image_column", "label_column", "image_size", "storage", "cache_dir")
"""Options that tell how real data are read, not how they were distilled."""
WINDOWLESS = ("bptt", "r-bptt")
"""Methods that differentiate every step and so do not read `window`."""
TAPES = ("states", "sqrt", "host", "bfloat16")
AUGMENTATIONS = ("flip", "rotate", "crop", "cutout", "color", "scale")


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None, open_low: bool = False) -> Any:
    """A field with its help text and the interval its numbers lie in: [low, high], or (low, high] with `open_low`."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "open_low": open_low})


@dataclass(frozen=True)
class DataConfig:
    """The real data and what is done to its pixels."""

    data: str = option("digits", "the real data: digits, folder:PATH, parquet:PATH or hf:NAME (see `potstill list`)")
    image_column: str = option("auto", "column of the images in parquet or hf data")
    label_column: str = option("auto", "column of the labels in parquet or hf data")
    image_size: int = option(0, "resize the shorter side to this many pixels and crop the centre; 0: as they are", low=0)
    storage: Literal["auto", "memory", "mapped"] = option(
        "auto", "keep the data in memory, or memory-mapped on disk; auto: mapped above 4 GB of pixels"
    )
    cache_dir: str = option("", "folder for memory-mapped data; empty: the user's cache folder")
    validation: float = option(0.1, "share of the train split held out for every choice", low=0, high=0.5, open_low=True)
    split_seed: int = option(0, "seed of the held-out splits, apart from --seed so that runs share their test data", low=0)
    preprocess: Literal["auto", "none", "normalize", "zca"] = option(
        "auto", "none, normalize (per channel), zca, or auto: zca up to 3,072 values an image (paper D.1)"
    )
    zca_regularization: float = option(0.1, "ZCA: this times the mean eigenvalue is added to all (paper D.1)", low=0, open_low=True)

    @property
    def name(self) -> str:
        """The data in a word: the last part of its path, or its kind."""
        kind, _, rest = self.data.partition(":")
        return Path(rest).stem or kind


@dataclass(frozen=True)
class DistilledConfig:
    """The synthetic set."""

    ipc: int = option(1, "images per class of the distilled set", low=1)
    init: Literal["gaussian", "real"] = option("gaussian", "start: Gaussian images of norm 1 (paper D.1), or real images")
    learn_labels: bool = option(False, "learn soft labels with the images (paper D.1: all but CIFAR-10 IPC 1)")
    boost_blocks: int = option(
        1, "J, Boost-DD: distill the set in so many blocks, one after the other; the first ones are good sets of their size", low=1
    )  # fmt: skip
    boost_beta: float = option(
        0.0, "Boost-DD: factor on the learning rate of earlier blocks; 0: they stay as they are (strong), 0.1: weak, 1: joint",
        low=0, high=1,
    )  # fmt: skip
    block_ipc: int | Auto = option("auto", "Boost-DD: images per class of a block; auto: ipc / boost_blocks", low=1)


@dataclass(frozen=True)
class InnerConfig:
    """The inner loop: a fresh network trained on the synthetic set."""

    model: str = option("convnet", "a model of `potstill list`, or your own as package.module:factory")
    width: int = option(128, "channels of each convolution, or units of each MLP layer", low=1)
    depth: int | Auto = option("auto", "blocks of the network; auto: 3, or what the image size allows", low=1)
    norm: Literal["instance", "batch", "group", "layer", "none"] = option("instance", "normalisation in the ConvNet")
    inner_optimizer: Literal["adam", "sgd"] = option("adam", "optimizer that trains on the synthetic set")
    inner_lr: float = option(0.001, "learning rate of the inner optimizer (paper D.1)", low=0, open_low=True)
    eps_placement: Literal["torch", "higher-0.2.1"] = option(
        "torch", "Adam's eps after bias correction (torch), or before it (PyPI's higher 0.2.1, as in the released code)"
    )
    momentum: float = option(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = option(0.0, "weight decay of SGD", low=0)
    lr_milestones: tuple[int, ...] = option((), "SGD: steps at which the learning rate is multiplied by lr_decay", low=1)
    lr_decay: float = option(0.2, "SGD: factor of each milestone (paper D.6)", low=0, high=1, open_low=True)
    batch_per_class: int | Auto = option("auto", "synthetic images of each class in a step; auto: all, up to 100 in total", low=1)
    classes_per_batch: int | Auto = option("auto", "random classes in a synthetic batch; auto: all", low=1)
    synthetic_micro_batch: int | Auto = option(
        "auto", "synthetic images at once on the device: bounds the memory, not the result (batch norm takes all)", low=1
    )
    augment: tuple[str, ...] = option((), f"augmentation, one of these a batch: {', '.join(AUGMENTATIONS)}; empty: none")


@dataclass(frozen=True)
class OuterConfig:
    """The outer loop: the synthetic set follows the meta-gradient."""

    method: str = option("rat-bptt", "distillation method (see `potstill list`)")
    unroll: int = option(60, "T: most inner steps of one outer step (paper D.2: about 3 windows)", low=1)
    window: int = option(20, "M: last inner steps that are differentiated", low=1)
    trajectories: int = option(
        1,
        "K: unrolls per outer step, each with its own start, window and batches; the mean of their meta-gradients is taken",
        low=1,
    )
    steps: int | Auto = option("auto", "outer steps for each block; auto: 400, dealt out to the blocks of a boosted set", low=1)
    outer_lr: float | Auto = option(
        "auto", "learning rate of the outer Adam on the images; auto: 0.001 at 3,072 values an image (paper D.1), in proportion "
        "to the initial pixel scale elsewhere", low=0, open_low=True,
    )  # fmt: skip
    label_lr: float | Auto = option("auto", "learning rate on learned labels; auto: outer_lr", low=0, open_low=True)
    clip: float = option(2.0, "clip the meta-gradient at this times its moving average; 0: never (paper D.4)", low=0)
    real_batch: int = option(500, "real images in the outer loss (paper D.1: 1,000 to 5,000)", low=1)
    split_real_batch: bool = option(False, "deal one real batch out to the trajectories, in place of one for each")
    real_augment: tuple[str, ...] | Auto = option("auto", "augmentation of the real batch; auto: as augment")
    micro_batch: int | Auto = option(
        "auto", "real images at once on the device: bounds the memory, not the result (but dropout draws anew in each)", low=1
    )
    validate_every: int = option(100, "outer steps between validations; the best set by validation is kept", low=1)
    checkpoint_every: int = option(100, "outer steps between checkpoints", low=1)


@dataclass(frozen=True)
class EvaluationConfig:
    """How long a network trains on the result: chosen on validation data."""

    lengths: tuple[int, ...] = option(
        (300, 600, 1000), "training lengths tried, in steps; the best on validation data is kept", low=1
    )
    validation_nets: int = option(3, "fresh networks in each validation", low=1)


@dataclass(frozen=True)
class RunConfig:
    """The machine and the randomness."""

    seed: int = option(0, "seed of every random draw but the data splits", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "arithmetic in the network; parameters, norms' statistics, loss and meta-gradient stay float32; auto: bfloat16 on "
        "CPUs with AMX and on CUDA from compute capability 8.0"
    )  # fmt: skip
    tf32: bool = option(False, "CUDA: allow TF32 in float32 convolutions and products")
    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile gradient and Hessian product (half a minute, a few seconds in the next run); auto: in long runs"
    )
    tape: str = option(
        "states", "memory against time, what is kept of the window: states; sqrt: every sqrt(M)-th of them; host: states in host "
        "memory; bfloat16: rounded states; graphs:MB: states, and as many graphs as fit (see docs/speed.md)"
    )  # fmt: skip
    threads: int | Auto = option("auto", "CPU threads; results repeat to the byte only at the same number", low=1, high=4096)


@dataclass(frozen=True)
class Config:
    """A whole run. `Config.from_options(ipc=10, window=40)` builds one; `validated` checks it."""

    data: DataConfig = field(default_factory=DataConfig)
    distilled: DistilledConfig = field(default_factory=DistilledConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_options(cls, base: "Config | None" = None, /, **options: Any) -> "Config":
        """`base`, or the defaults, with some options changed; each is given by its unique name.

        Raises:
            InputError: an unknown name (the nearest right one is told), a value of the wrong type or out of its range.
        """
        config = base or cls()
        homes = {item.name: (section, item, hint) for section, item, hint in options_of_config()}
        changed: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in homes:
                raise InputError(
                    f"unknown option {name!r}{near_miss(name, [*homes, 'images_per_class'])}; `potstill distill --help` lists all"
                )
            section, item, hint = homes[name]
            changed.setdefault(section, {})[name] = checked(item, convert(name, value, hint))
        sections = {name: dataclasses.replace(getattr(config, name), **values) for name, values in changed.items()}
        return validated(dataclasses.replace(config, **sections))

    @property
    def all_steps(self) -> int:
        """Outer steps of the whole run, when "auto" is resolved: of each block, times the blocks."""
        return int(self.outer.steps) * self.distilled.boost_blocks

    def flat(self) -> dict[str, Any]:
        """Option name -> value, over all sections."""
        return {item.name: getattr(getattr(self, section), item.name) for section, item, _ in options_of_config()}


def options_of_config() -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
    """(section, field, type) of every option, in the order of the file."""
    for section, section_type in get_type_hints(Config).items():
        hints = get_type_hints(section_type)
        for item in dataclasses.fields(section_type):
            yield section, item, hints[item.name]


def convert(name: str, value: Any, hint: Any) -> Any:
    """`value` (from TOML, Python, or the text of a flag) as the type `hint`; an InputError if it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value == "auto":
            return "auto"
        return convert(name, value, next(part for part in arguments if part is not Auto))
    if origin is Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise InputError(f"{name} must be one of {known}; got {value!r}{near_miss(str(value), arguments)}")
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise InputError(f"{name} must be a list, got {value!r}")
        return tuple(convert(name, part, arguments[0]) for part in parts if part not in ("", "none"))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value.strip()
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float or number == int(number):
                return number if hint is float else int(value)
        except (TypeError, ValueError, OverflowError):
            pass
    kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]
    raise InputError(f"{name} must be {kind}, got {value!r}")


def checked(item: "dataclasses.Field[Any]", value: Any) -> Any:
    """`value` again, if its numbers lie in the field's interval; an InputError if not."""
    low, high, open_low = (item.metadata[key] for key in ("low", "high", "open_low"))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        above = low is None or (number > low if open_low else number >= low)
        if not (above and (high is None or number <= high) and abs(number) < float("inf")):
            least = "" if low is None else f"above {low}" if open_low else f"at least {low}"
            most = "" if high is None else f"at most {high}"
            raise InputError(f"{item.name} must be {' and '.join(filter(None, (least, most))) or 'finite'}, got {number}")
    return value


def validated(config: Config) -> Config:
    """`config` again, if its options fit each other and every name in it is known.

    Raises:
        InputError: they do not; one sentence says which option, the rule, the value found and the way out.
    """
    outer, inner, run = config.outer, config.inner, config.run
    METHODS.check(outer.method)
    OPTIMIZERS.check(inner.inner_optimizer)
    PREPROCESSING.check(config.data.preprocess)
    check_source(config.data.data)
    check_blocks(config.distilled)
    if outer.window > outer.unroll and outer.method not in WINDOWLESS:
        raise InputError(f"window must lie in [1, unroll={outer.unroll}], got {outer.window}; lower --window or raise --unroll")
    for name, value in (("augment", inner.augment), ("real_augment", outer.real_augment)):
        for part in value if isinstance(value, tuple) else ():
            if part not in AUGMENTATIONS:
                known = ", ".join(AUGMENTATIONS)
                raise InputError(f"unknown {name} {part!r}{near_miss(part, AUGMENTATIONS)}; known: {known}")
    if not config.evaluation.lengths:
        raise InputError("lengths must hold at least one number of steps, got none")
    if isinstance(inner.batch_per_class, int) and inner.batch_per_class > config.distilled.ipc:
        raise InputError(
            f"batch_per_class must be at most ipc={config.distilled.ipc}, got {inner.batch_per_class}; leave it at auto"
        )
    if outer.split_real_batch and outer.trajectories > outer.real_batch:
        raise InputError(
            f"trajectories must be at most real_batch={outer.real_batch} to split it, got {outer.trajectories}; raise --real-batch"
        )
    if graphs_mb(run.tape) is not None and run.compile == "on":
        raise InputError("tape graphs:MB keeps the graphs of uncompiled networks only; use --compile off, or --tape states")
    if run.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, got {run.device!r}")
    return config


def check_blocks(distilled: DistilledConfig) -> None:
    """Raise an InputError unless the blocks add up to the set."""
    ipc, blocks, size = distilled.ipc, distilled.boost_blocks, distilled.block_ipc
    if size == "auto" and ipc % blocks:
        raise InputError(
            f"boost_blocks must divide ipc={ipc} into blocks of equal size, got {blocks}; change --ipc or --boost-blocks"
        )
    if size != "auto" and ipc != blocks * size:
        raise InputError(
            f"ipc must be boost_blocks x block_ipc = {blocks} x {size} = {blocks * size}, got {ipc}; change one of the three"
        )


def graphs_mb(tape: str) -> float | None:
    """The budget of "graphs:MB"; None for the other ways to keep the window.

    Raises:
        InputError: it is none of them.
    """
    kind, colon, number = tape.partition(":")
    if kind == "graphs" and number.replace(".", "", 1).isdecimal():
        return float(number)
    if colon or kind not in TAPES:
        raise InputError(
            f"tape must be one of {', '.join(TAPES)}, or graphs:MB as in graphs:2000; got {tape!r}{near_miss(kind, TAPES)}"
        )
    return None


def check_source(data: str) -> None:
    """Raise an InputError unless `data` begins with a known kind; "arrays" stands for what was given in Python."""
    kind = data.partition(":")[0]
    if kind not in SOURCES and ("/" in kind or Path(data).exists()):
        raise InputError(f"data must begin with its kind, got {data!r}; write folder:{data} or parquet:{data}")
    if kind != "arrays":
        SOURCES.check(kind)


def to_toml(config: Config, comment: str = "") -> str:
    """The complete configuration as TOML, under a first comment line if one is given."""
    tables = {
        section: {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}
        for section, table in dataclasses.asdict(config).items()
    }
    return (f"# {comment}\n\n" if comment else "") + tomli_w.dumps(tables)


def options_from_toml(text: str, source: str) -> dict[str, Any]:
    """The options that a TOML text sets, by unique name.

    Raises:
        InputError: no valid TOML, or a section or key that does not exist; `source` names the file.
    """
    try:
        tables: Mapping[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error
    homes: dict[str, dict[str, None]] = {}
    for section, item, _ in options_of_config():
        homes.setdefault(section, {})[item.name] = None
    found: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in homes or not isinstance(table, Mapping):
            raise InputError(f"{source} has an unknown section [{section}]{near_miss(section, homes)}; known: {', '.join(homes)}")
        for key, value in table.items():
            if key not in homes[section]:
                raise InputError(f"{source} has an unknown key {key!r} in [{section}]{near_miss(key, homes[section])}")
            found[key] = value
    return found


def options_from_file(path: Path) -> dict[str, Any]:
    """The options that a TOML file sets; an InputError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    return options_from_toml(text, str(path))


def preset_names() -> list[tuple[str, str]]:
    """(name, the command that runs it) of every preset: the first line of its file, without the comment sign."""
    folder = resources.files("potstill") / "presets"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: natural(entry.name))
    return [(entry.name.removesuffix(".toml"), entry.read_text().splitlines()[0].lstrip("# ")) for entry in files]


def natural(name: str) -> tuple[str | int, ...]:
    """A sort key that puts ipc10 after ipc2."""
    stem, _, number = name.removesuffix(".toml").rpartition("ipc")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def options_from_preset(name: str) -> dict[str, Any]:
    """The options of a preset; an InputError that names the nearest one if there is none."""
    names = [known for known, _ in preset_names()]
    if name not in names:
        raise InputError(f"unknown preset {name!r}{near_miss(name, names)}; known: {', '.join(names)}")
    text = (resources.files("potstill") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return options_from_toml(text, f"preset {name}")
