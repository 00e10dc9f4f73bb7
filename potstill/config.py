"""A run's configuration: all sections of options as one value, validated, read from TOML and text and written back."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from potstill.options import checked, convert
from potstill.registry import (
    AUGMENTATIONS,
    METHODS,
    OPTIMIZERS,
    PARAMETERISATIONS,
    PREPROCESSING,
    SOURCES,
    WINDOWS,
    InputError,
    near_miss,
)
from potstill.sections import (
    TAPES,
    DataConfig,
    DistilledConfig,
    EvaluationConfig,
    HardnessConfig,
    InnerConfig,
    OuterConfig,
    RunConfig,
    SamplerConfig,
)


@dataclass(frozen=True)
class Config:
    """A whole run. `Config.from_options(ipc=10, window=40)` builds one; `validated` checks it."""

    data: DataConfig = field(default_factory=DataConfig)
    distilled: DistilledConfig = field(default_factory=DistilledConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    hardness: HardnessConfig = field(default_factory=HardnessConfig)
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
        for name, value in by_first_name(options).items():
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


def by_first_name(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with second names (`budget_ipc`) replaced by the first; an InputError if one is given by both, differently."""
    found = dict(options)
    for _, item, _ in options_of_config():
        second = item.metadata["also"]
        if second in found:
            value = found.pop(second)
            if found.setdefault(item.name, value) != value:
                raise InputError(
                    f"{item.name} and {second} are the same option, got {found[item.name]} and {value}; give one of them"
                )
    return found


def validated(config: Config) -> Config:
    """`config` again, if its options fit each other and every name in it is known.

    Raises:
        InputError: they do not; one sentence says which option, the rule, the value found and the way out.
    """
    outer, inner, run = config.outer, config.inner, config.run
    METHODS.check(outer.method)
    PARAMETERISATIONS.check(config.distilled.param)
    OPTIMIZERS.check(inner.inner_optimizer)
    if config.data.preprocess != "auto":
        PREPROCESSING.check(config.data.preprocess)
    check_source(config.data.data)
    check_blocks(config.distilled)
    if outer.method in WINDOWS:
        WINDOWS[outer.method].of(config)
    for operations in (inner.augment, outer.real_augment):
        for operation in operations if isinstance(operations, tuple) else ():
            AUGMENTATIONS.check(operation)
    if not config.evaluation.lengths:
        raise InputError("lengths must hold at least one number of steps, got none")
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
        homes.setdefault(section, {}).update(dict.fromkeys(filter(None, (item.name, item.metadata["also"]))))
    found: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in homes or not isinstance(table, Mapping):
            raise InputError(f"{source} has an unknown section [{section}]{near_miss(section, homes)}; known: {', '.join(homes)}")
        for key, value in table.items():
            if key not in homes[section]:
                raise InputError(f"{source} has an unknown key {key!r} in [{section}]{near_miss(key, homes[section])}")
            found[key] = value
    return by_first_name(found)


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
