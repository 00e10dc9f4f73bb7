"""A run's configuration: the options of the sections and of the chosen parts, as one value."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Never, cast

import tomli_w

from potstill.config.options import A, Auto, checked, convert, declared
from potstill.config.sections import (
    STARTED,
    DataConfig,
    DistilledConfig,
    EvaluationConfig,
    InnerConfig,
    OuterConfig,
    RunConfig,
)
from potstill.config.slots import (
    SLOTS,
    Chosen,
    Slot,
    chosen_names,
    method_defaults,
    own_class,
    owners_of,
    unused,
)
from potstill.errors import InputError, first_line, near_miss
from potstill.registry import AUGMENTATIONS, SOURCES

SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "distilled": DistilledConfig,
    "inner": InnerConfig,
    "outer": OuterConfig,
    "evaluation": EvaluationConfig,
    "run": RunConfig,
}
ORDER = (
    "data", "preprocessing", "distilled", "parameterisation", "model", "inner", "inner_optimizer",
    "method", "outer", "outer_optimizer", "real_sampler", "evaluation", "run",
)  # fmt: skip
"""Order of the tables, in a file and in help texts."""
Layer = Mapping[str, Any]
"""Option name -> value, from a preset, a file, the command line or Python."""


@dataclass(frozen=True)
class Option:
    """An option of a run.

    Args:
        name: unique in the run.
        table: the table of the TOML file that holds it.
        field: its dataclass field; None for the option that names a part.
        hint: its type.
        default: its value unless one is given; for a choice of part, that part's name.
        help: its text.
    """

    name: str
    table: str
    field: "dataclasses.Field[Any] | None"
    hint: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Config(Generic[A]):
    """A whole run; `Config.of(ipc=10, window=40)` builds one.

    `Given` may hold "auto" where an option allows it; in a `Resolved` one every "auto" is replaced.
    """

    data: DataConfig
    preprocessing: Chosen
    distilled: DistilledConfig
    parameterisation: Chosen
    model: Chosen
    inner: InnerConfig[A]
    inner_optimizer: Chosen
    method: Chosen
    outer: OuterConfig[A]
    outer_optimizer: Chosen
    real_sampler: Chosen
    evaluation: EvaluationConfig
    run: RunConfig[A]

    @property
    def all_steps(self) -> int:
        """Outer steps of a whole run, with "auto" resolved: steps of a block, times the blocks."""
        return int(cast(int, self.outer.steps)) * self.distilled.boost_blocks

    @property
    def decoded(self) -> bool:
        """Whether images are decoded from other stored numbers."""
        return self.parameterisation.name != "pixels"

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the complete configuration, table by table, as in a file; tuples as lists."""
        slots, without = {slot.table: slot for slot in SLOTS}, unused({"method": self.method.name})
        tables: dict[str, dict[str, Any]] = {}
        for table in ORDER:
            value = getattr(self, table)
            if table in slots:
                slot = slots[table]
                own = {
                    name: getattr(value.options, item.name)
                    for name, item, _ in own_options(slot, value.name)
                    if name not in without
                }
                tables[table] = {slot.choice: value.name, **own}
            else:
                fields = [
                    item.name for item, _ in declared(type(value)) if item.name not in without
                ]
                tables[table] = {name: getattr(value, name) for name in fields}
        return {
            table: {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
            for table, values in tables.items()
        }

    def flat(self) -> dict[str, Any]:
        """Return option name -> value, over all tables."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for table in self.tables().values()
            for name, value in table.items()
        }


Given = Config[Auto]
"""A configuration as a user gives it."""
Resolved = Config[Never]
"""A configuration as a run uses and stores it."""


def configuration(*layers: Layer, **options: Any) -> Given:
    """Build a configuration from layers of options and from `options`.

    A later layer wins over an earlier one, and `options` over all.

    Where a later layer names another part, the earlier layers' options of the part that it replaces
    go with it. Within one layer every option must have an effect.

    Raises:
        InputError: an unknown name (the nearest right one is told), an option without effect on the
            chosen parts, a value of the wrong type or out of its range, options that do not fit.
    """
    given = layered(*layers, options)
    known = {option.name: option for option in options_of_run(given)}
    hidden, parts = unused(given), {slot.choice: slot.default for slot in SLOTS}
    for name, value in given.items():
        without_effect = name in hidden and value != parts.get(name)
        if name not in known or without_effect:
            raise InputError(no_effect(name, known, chosen_names(given)))
    values = {name: value for name, value in method_defaults(given).items() if name in hidden}
    for name, option in known.items():
        value = given.get(name, option.default)
        value = convert(name, value, option.hint)
        values[name] = value if option.field is None else checked(name, option.field, value)
    made: dict[str, Any] = {}
    for table, section in SECTIONS.items():
        fields = [item.name for item, _ in declared(section) if item.name in values]
        made[table] = section(**{name: values[name] for name in fields})
    for slot in SLOTS:
        name = values[slot.choice]
        own = {
            item.name: values[full] for full, item, _ in own_options(slot, name) if full in values
        }
        made[slot.table] = Chosen(name, own_class(slot, name)(**own))
    return validated(Config(**made))


def changed(config: "Given | Resolved", **options: Any) -> Given:
    """Build the configuration that differs from another one in these options."""
    return configuration(config.flat(), **options)


def decided(config: Given, **parts: str) -> Given:
    """Build the configuration in which the data have decided the parts that "auto" left open.

    Args:
        config: as the user gave it.
        parts: the name of each part by its choice, e.g. model="mlp".
    Raises:
        InputError: an option was given that the decided part does not have.
    """
    made = changed(config, **parts)
    left, before = made.flat(), config.flat()
    for option in options_of_run(before):
        if option.name not in left and before[option.name] != option.default:
            raise InputError(no_effect(option.name, left, chosen_names(left)))
    return made


def layered(*layers: Layer) -> dict[str, Any]:
    """Merge layers of options as `configuration` does."""
    given: dict[str, Any] = {}
    for layer in layers:
        before, merged = chosen_names(given), {**given, **layer}
        after = chosen_names(merged)
        for slot in SLOTS:
            if before[slot.choice] == after[slot.choice]:
                continue
            kept = {name for name, *_ in own_options(slot, after[slot.choice])}
            for name, *_ in own_options(slot, before[slot.choice]):
                if name not in kept and name not in layer:
                    merged.pop(name, None)
        given = merged
    return given


def options_of_run(given: Layer) -> Iterator[Option]:
    """Yield every option of a run with the parts that are given, in the order of a file."""
    names, wanted, without = chosen_names(given), method_defaults(given), unused(given)
    slots = {slot.table: slot for slot in SLOTS}
    for table in ORDER:
        if table in slots:
            slot = slots[table]
            yield Option(slot.choice, table, None, str, names[slot.choice], slot.help)
            fields = [
                (name, item, hint) for name, item, hint in own_options(slot, names[slot.choice])
            ]
        else:
            fields = [(item.name, item, hint) for item, hint in declared(SECTIONS[table])]
        for name, item, hint in fields:
            if name in without:
                continue
            default = wanted.get(name, item.default)
            yield Option(name, table, item, hint, default, item.metadata["help"])


def own_section_options() -> list[Option]:
    """List the options of potstill's own sections, which need none of the parts."""
    return [
        Option(item.name, table, item, hint, item.default, item.metadata["help"])
        for table, section in SECTIONS.items()
        for item, hint in declared(section)
    ]


def own_options(slot: Slot, name: str) -> list[tuple[str, "dataclasses.Field[Any]", Any]]:
    """List (name in the run, field, type) of every option of a part."""
    return [(slot.prefix + item.name, item, hint) for item, hint in declared(own_class(slot, name))]


def no_effect(name: str, known: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the sentence that says why an option is not one of this run."""
    if name in unused(names):
        return f"{name} has no effect with --method {names['method']}; leave it out"
    home = owners_of(name)
    if home:
        slot, parts = home
        flag = "--" + slot.choice.replace("_", "-")
        return (
            f"{name} has no effect with {flag} {names[slot.choice]}; it belongs to "
            f"{', '.join(parts)}: choose another {flag}, or leave it out"
        )
    return f"unknown option {name!r}{near_miss(name, known)}; `potstill distill --help` lists all"


def validated(config: Given) -> Given:
    """Return `config` if its options fit each other and its data have a known kind.

    Raises:
        InputError: they do not; one sentence says which option, the rule, the value found and the
            way out.
    """
    check_source(config.data)
    _ = config.outer.budget_seconds  # it is a time
    ipc, blocks = config.distilled.ipc, config.distilled.boost_blocks
    if ipc % blocks:
        raise InputError(
            f"boost_blocks must divide ipc={ipc} into blocks of equal size, got {blocks}; change "
            "--ipc or --boost-blocks"
        )
    for operation in config.inner.augment if isinstance(config.inner.augment, tuple) else ():
        for name in operation.split("+"):
            AUGMENTATIONS.check(name)
    check_data(config.data)
    if getattr(config.inner_optimizer.options, "outer_only", False):
        raise InputError(
            f"inner_optimizer must move a network layer by layer, {config.inner_optimizer.name} is "
            "for the set only, as --outer-optimizer; take adam or sgd"
        )
    if not config.evaluation.lengths:
        raise InputError("lengths must hold at least one number of steps, got none")
    if config.run.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(
            f"device must be auto, cpu, cuda, cuda:N or mps, got {config.run.device!r}"
        )
    return config


IMAGE_FILES = ("folder", "archive", "webdataset", "parquet", "csv", "hf")
READ_BY = {
    "image_column": ("webdataset", "archive", "parquet", "csv", "hf"),
    "label_column": IMAGE_FILES,
    "image_size": IMAGE_FILES,
    "bit_depth": IMAGE_FILES,
}
"""Options that tell how data are read -> the sources that they have an effect on."""


def check_data(data: DataConfig) -> None:
    """Raise an InputError if an option of the data has no effect on its source."""
    source, default = data.source[0], DataConfig()
    for name, kinds in READ_BY.items():
        if (
            source not in (*kinds, "arrays")
            and ":" not in source
            and getattr(data, name) != getattr(default, name)
        ):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{name} has no effect with data {data.data}, {flag} is for {' and '.join(kinds)}; "
                "leave it out"
            )


def resolved(config: "Given | Resolved", **options: Any) -> Resolved:
    """Build the configuration of a run: `config` with these options, in which no "auto" is left."""
    made = changed(config, **options)
    left = [
        name for name, value in made.flat().items() if value == "auto" and name not in STAYS_AUTO
    ]
    assert not left, f"every auto must be resolved, left: {left}"
    return cast(Resolved, made)


STAYS_AUTO = ("image_column", "label_column", "bit_depth")
"""Options whose "auto" may hold for good: columns have usual names, few images have 16 bits."""


def check_source(config: DataConfig) -> None:
    """Raise an InputError unless the data have a source; "arrays" stands for what Python gave."""
    data, source = config.data, config.source[0]
    if not source:
        raise InputError(
            f"data must be a folder, or a file of parquet, npz, csv, idx, zip or tar, got "
            f"{data!r}; unpack other archives, or load it in Python: arrays work"
        )
    if source not in SOURCES and "/" in source.partition(":")[0]:
        raise InputError(f"data {data} does not exist; check the path")
    if source != "arrays":
        SOURCES.check(source)


def to_toml(config: Config[Any], comment: str = "") -> str:
    """Write the complete configuration as TOML, under a first comment line if one is given."""
    return (f"# {comment}\n\n" if comment else "") + tomli_w.dumps(config.tables())


def options_from_toml(text: str, source: str, only: str = "") -> dict[str, Any]:
    """Read the options that a TOML text sets, by name.

    Args:
        text: the text.
        source: names the file, for messages.
        only: the one table to read; empty: all.
    Raises:
        InputError: no valid TOML, an unknown table, or a key that is no option of that table;
            `source` names the file.
    """
    try:
        tables: Mapping[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise InputError(f"{source} is not valid TOML: {first_line(error)}") from error
    if only:
        tables = {table: values for table, values in tables.items() if table == only}
    options: dict[str, Any] = {}
    for table, values in tables.items():
        if table in ORDER and not isinstance(values, Mapping):
            raise InputError(
                f"{table} in {source} must be a section, [{table}] with keys, got {values!r:.99}"
            )
        if table not in ORDER:
            known = ", ".join(ORDER)
            raise InputError(
                f"{source} has an unknown section [{table}]{near_miss(table, ORDER)}; known: "
                f"{known}"
            )
        options |= values
    homes: dict[str, list[str]] = {}
    for option in options_of_run(options):
        homes.setdefault(option.table, []).append(option.name)
    for table, values in tables.items():
        for key in values:
            if key not in homes[table] and not owners_of(key):
                near = near_miss(key, homes[table])
                raise InputError(f"{source} has an unknown key {key!r} in [{table}]{near}")
    return options


QUICK = "quick"
"""The preset of a first try."""


def quick_options(*layers: Layer) -> dict[str, Any]:
    """Return the options of a quick run that have an effect beside those of the layers."""
    given = layered(*layers)
    known = {option.name for option in options_of_run(given)}
    both = {"time_budget", "steps"} & given.keys()
    return {
        name: value
        for name, value in options_from_preset(QUICK).items()
        if name in known and name not in given and not (name == "time_budget" and both)
    }


def options_from_file(path: Path) -> dict[str, Any]:
    """Read the options that a TOML file sets; raise an InputError if it cannot be read.

    A set that the file keeps beside it is found there.
    """
    options = options_from_toml(text_of_file(path), str(path))
    beside = path.parent / STARTED
    return options | ({"init": str(beside.resolve())} if options.get("init") == STARTED else {})


def text_of_file(path: Path) -> str:
    """Read a TOML file's text; raise an InputError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            raise InputError(f"cannot read the configuration {path}: it is no file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error


def preset_names() -> list[tuple[str, str]]:
    """List (name, command) of every preset; the command is the first line of its file."""
    folder = resources.files("potstill.config") / "presets"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    files.sort(key=lambda entry: natural(entry.name))
    return [
        (entry.name.removesuffix(".toml"), entry.read_text().splitlines()[0].lstrip("# "))
        for entry in files
    ]


def natural(name: str) -> tuple[str | int, ...]:
    """Return a sort key that puts ipc10 after ipc2."""
    stem, _, number = name.removesuffix(".toml").rpartition("ipc")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def check_preset(name: str) -> None:
    """Raise an InputError if there is no such preset; the message names the nearest one."""
    names = [known for known, _ in preset_names()]
    if name not in names:
        known, near = ", ".join(names), near_miss(name, names) if isinstance(name, str) else ""
        raise InputError(f"unknown preset {name!r}{near}; known: {known}")


def options_from_preset(name: str) -> dict[str, Any]:
    """Read the options of a preset.

    Raises:
        InputError: there is no such preset; the message names the nearest one.
    """
    check_preset(name)
    text = (resources.files("potstill.config") / "presets" / f"{name}.toml").read_text(
        encoding="utf-8"
    )
    return options_from_toml(text, f"preset {name}")
