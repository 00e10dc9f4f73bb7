"""The options that do not depend on the chosen parts, section by section.

Parts have options of their own, beside their code.

Every option's name is unique over all sections and parts, so that it is one flag (`--inner-lr`),
one keyword of `potstill.distill` (`inner_lr=`) and one key of the TOML file (`[inner] inner_lr`).
"""

import itertools
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal

from potstill.config.durations import seconds_of
from potstill.config.options import A, Auto, option
from potstill.errors import near_miss
from potstill.registry import AUGMENTATIONS, SOURCES

Unit = Literal["unit"]
EVALUATION_DATA_OPTIONS = (
    "image_column",
    "label_column",
    "image_size",
    "bit_depth",
    "weights",
    "storage",
    "cache_dir",
)
"""Options that tell how real data are read, not how they were distilled."""


KINDS_OF_FILES = {".parquet": "parquet", ".npz": "npz", ".csv": "csv", ".tsv": "csv"}
"""Extension of a file -> the source that reads it."""
FOLDERS, ENTRIES = 100, 1000
"""So many folders in a folder, and files in each, are looked at to tell what it is."""
READ_FROM_PATHS = ("folder", "archive", "webdataset", "idx", "parquet", "npz", "csv")
"""Sources whose name is followed by a path."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
ARCHIVES = (".zip", *TARS)
"""Extensions of archives, which are read without unpacking them."""
WEIGHTS_FILES = (".npy", ".csv", ".txt")
"""Extensions of files of weights."""
IDX_NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test|val|valid|validation)"
    r"[-_.](?P<part>images|labels)[-_.]idx\d-\w+?(?P<packed>\.gz)?",
    re.IGNORECASE,
)
"""Name of a file in MNIST's format, as in train-images-idx3-ubyte.gz."""


def is_archive(name: str) -> bool:
    """Return whether a file of this name is an archive that is read."""
    return name.lower().endswith(ARCHIVES)


def is_weights_file(given: str) -> bool:
    """Return whether weights that were given are a file's, and not a column's, by their name."""
    return given.lower().endswith(WEIGHTS_FILES)


def kind_of_path(path: Path) -> str:
    """Return the source that reads a file or folder, by what it looks like; "" if none does."""
    if path.is_dir():
        return kind_of_folder(path)
    if IDX_NAME.fullmatch(path.name):
        return "idx"
    return "archive" if is_archive(path.name) else KINDS_OF_FILES.get(path.suffix.lower(), "")


def kind_of_folder(path: Path) -> str:
    """Return the source that reads a folder, by some names of files in it and its folders."""
    own = some_entries(path)
    folders = [entry.name for entry in own if entry.is_dir() and entry.name[0] != "."]
    top = [entry.name for entry in own if not entry.is_dir()]
    inner = [[entry.name for entry in some_entries(path / name)] for name in folders[:FOLDERS]]
    files = [*top, *itertools.chain.from_iterable(inner)]
    if any(name.endswith(".parquet") for name in files):
        return "parquet"
    if any(map(IDX_NAME.fullmatch, files)):
        return "idx"
    shards = [any(map(is_shard, names)) for names in inner]
    # An archive beside class folders is none of the data.
    return "webdataset" if all(shards) and (shards or any(map(is_shard, top))) else "folder"


def some_entries(folder: Path) -> list["os.DirEntry[str]"]:
    """List the first entries of a folder; none if it cannot be read, as its source will say."""
    with suppress(OSError), os.scandir(folder) as entries:
        return list(itertools.islice(entries, ENTRIES))
    return []


def is_shard(name: str) -> bool:
    """Return whether a file of this name can be a shard of samples."""
    return name.lower().endswith(TARS)


@dataclass(frozen=True)
class DataConfig:
    """The real data."""

    data: str = option(
        "digits",
        "a path, digits, sklearn:NAME, hf:NAME or your own module:function; `potstill list`",
    )
    image_column: str = option("auto", "column of the images in parquet, csv or hf data")
    label_column: str = option("auto", "column of the labels in parquet, csv or hf data")
    weights: str = option(
        "", "draw real examples by weight: a column, or a file (.npy, .csv, .txt) in train's order"
    )
    image_size: int = option(0, "resize the shorter side to this and crop; 0: as they are", low=0)
    bit_depth: int | Auto = option(
        "auto", "bits that hold the values of 16-bit grey images; auto: looked at", low=8, high=16
    )
    storage: Literal["auto", "memory", "mapped"] = option(
        "auto", "memory, or memory-mapped on disk; auto: mapped above 4 GB of pixels"
    )
    cache_dir: str = option("", "folder for what is kept of data; empty: the user's cache folder")
    validation: float = option(
        0.1, "share of train held out for every choice", low=0, high=0.5, open_low=True
    )
    split_seed: int = option(0, "seed of the held-out splits", low=0, high=math.inf)

    @property
    def source(self) -> tuple[str, str]:
        """The data source and what follows it: ("folder", "photos"), ("package.module:name", "").

        What looks like a registered name is one, written wrongly.
        """
        name, _, rest = self.data.partition(":")
        if name not in SOURCES.rows and Path(self.data).expanduser().exists():
            return kind_of_path(Path(self.data).expanduser()), self.data
        if name in SOURCES.rows or name == "arrays" or near_miss(name, SOURCES) or not rest:
            return name, rest
        function, _, rest = rest.partition(":")
        return f"{name}:{function}", rest

    @property
    def embedded(self) -> bool:
        """Whether the data come with scikit-learn, so that their name finds them everywhere."""
        return self.source[0] in ("digits", "sklearn")

    @property
    def name(self) -> str:
        """The data in a word: the last part of its path, or its kind."""
        source, rest = self.source
        name = Path(rest).name
        packed = next((end for end in ARCHIVES if name.lower().endswith(end)), Path(name).suffix)
        return name[: len(name) - len(packed)] or source.rpartition(":")[2]


ABOUT = "about "
"""Before a time budget: better late than nothing."""
STARTS = ("gaussian", "normal", "real")
"""What a set can start from beside another set."""
STARTED = "start.safetensors"
"""The copy, in a run's folder, of the set that it started from."""


@dataclass(frozen=True)
class DistilledConfig:
    """The synthetic set."""

    ipc: int = option(
        1, "images per class; with another --param than pixels, the bytes of so many", low=1
    )
    init: str = option(
        "gaussian",
        "start: gaussian (norm 1), normal (N(0, 1)), real, or a set: a folder or file",
        source="paper D.1",
    )
    learn_labels: bool = option(False, "learn soft labels with the images", source="paper D.1")
    boost_blocks: int = option(
        1, "Boost-DD: so many blocks, the first of which are good sets of their size", low=1
    )
    boost_beta: float = option(
        0.0, "Boost-DD: factor on the rate of earlier blocks; 0: they are frozen",
        low=0, high=1,
    )  # fmt: skip

    extend: Literal["no", "gaussian", "normal", "real"] = option(
        "no", "keep the blocks of --init and add new ones, which start from: gaussian, normal, real"
    )
    new_classes: bool = option(
        False, "with --extend: keep --init's images and add those of classes that it lacks"
    )

    @property
    def ipc_of_block(self) -> int:
        """Images per class of a block."""
        return self.ipc // self.boost_blocks


@dataclass(frozen=True)
class InnerConfig(Generic[A]):
    """How a network trains on the synthetic set."""

    inner_lr: float = option(
        0.001, "learning rate on the synthetic set", low=0, open_low=True, source="paper D.1"
    )
    batch_per_class: int | A = option(
        "auto", "synthetic images of a class in a step; auto: all, up to 100 in total", low=1
    )
    classes_per_batch: int | A = option("auto", "random classes in a step; auto: all", low=1)
    augment: tuple[str, ...] | A = option(
        "auto",
        f"one a batch: {', '.join(AUGMENTATIONS)}; a+b: both; auto: by the data",
    )
    precision: Literal["float32", "bfloat16"] | A = option(
        "auto", "float32 or bfloat16 in the network; auto: what suits the hardware"
    )


@dataclass(frozen=True)
class OuterConfig(Generic[A]):
    """How the synthetic set follows the gradient that the method gives."""

    steps: int | A = option(
        "auto", "outer steps for each block; auto: 400, dealt out to the blocks", low=1
    )
    time_budget: str = option(
        "", "plan by time instead, e.g. 10m or 1h30m: as many steps as fit; empty: by steps"
    )
    outer_lr: float | A = option(
        "auto", "learning rate on the images; auto: 0.001 at norm 1, 0.0025 if it falls; to scale",
        low=0, open_low=True, source="paper D.1: 0.001",
    )  # fmt: skip
    label_lr: float | A = option(
        "auto", "learning rate on learned labels; auto: outer_lr, or what auto is at norm 1",
        low=0, open_low=True,
    )  # fmt: skip
    outer_schedule: Literal["constant", "cosine", "cosine-to-tenth", "linear"] = option(
        "constant",
        "outer rates, by steps or time: constant, cosine or linear (to 0), cosine-to-tenth",
    )
    warm_up: float = option(
        0.0, "share of the run over which outer rates grow from 0", low=0, high=0.5
    )
    average: float = option(
        0.0, "decay of a running average of the set, which is the result; 0: the set itself",
        low=0, high=0.999999,
    )  # fmt: skip
    clamp: bool = option(
        False, "keep pixels between black and white, with --preprocess none or normalize"
    )
    clip: float | Unit = option(
        2.0, "clip at this times the mean norm; 0: never; unit: norm 1", low=0, source="paper D.4"
    )
    real_batch: int = option(
        500, "real images in the outer loss", low=1, source="paper D.1: 1,000 to 5,000"
    )
    micro_batch: int | A = option(
        "auto", "images at once on the device: bounds the memory, not the result", low=1
    )
    validate_every: int = option(
        100, "outer steps between validations; the best set by them is kept", low=1
    )
    checkpoint_every: int = option(100, "outer steps between checkpoints", low=1)
    keep_checkpoints: int = option(2, "how many of the newest are kept; 0: all", low=0)

    @property
    def budget_seconds(self) -> float:
        """Seconds that the run may take; 0: it is planned by steps."""
        return seconds_of("time_budget", self.time_budget.removeprefix(ABOUT))

    @property
    def budget_about(self) -> bool:
        """Whether the run may take longer where the time is too short for anything."""
        return self.time_budget.startswith(ABOUT)


@dataclass(frozen=True)
class EvaluationConfig:
    """How long a network trains on the result: chosen on validation data."""

    lengths: tuple[int, ...] = option(
        (300, 600, 1000), "training lengths tried, in steps; the best is kept", low=1
    )
    validation_nets: int = option(3, "fresh networks in each validation", low=1)


@dataclass(frozen=True)
class RunConfig(Generic[A]):
    """The machine and the randomness."""

    seed: int = option(0, "seed of every random draw but the data splits", low=0, high=math.inf)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    compile: Literal["on", "off"] | A = option(
        "auto", "compile derivatives (half a minute once); auto: in long runs"
    )
    threads: int | A = option(
        "auto", "CPU threads; any number gives the same set", low=1, high=4096
    )
    log: Literal["none", "tensorboard"] = option(
        "none", "curves beside metrics.csv: none, or tensorboard, in the run's folder of that name"
    )
