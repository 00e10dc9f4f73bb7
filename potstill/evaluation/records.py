"""Results beside a set: what evaluation.json holds, and how such a file keeps records."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from potstill.files import write
from potstill.parameterisations.base import FLOAT_BYTES
from potstill.records.metrics import Figure
from potstill.records.plain import Unreadable, dump, parse

EVALUATION, DIAGNOSIS, AUDIT = "evaluation.json", "diagnosis.json", "audit.json"


@dataclass(frozen=True)
class Row:
    """One measured line of an evaluation.

    Args:
        name: "distilled", "random" or "full".
        model: the network, or the learner that trains none.
        images: how many examples it was trained on.
        ipc: images per class of the set that this row belongs to; its storage budget, if images are
            decoded.
        steps: training steps; None: the learner takes none.
        accuracy: on the test split.
        protocol: how it was trained and what chose the number of steps, in words.
        stored_bytes: of the examples as they are stored, 4 for each number, also for real images.
        lr: the learning rate that the networks trained with; None: the learner has none.
        tested: number of test examples.
        cautions: sentences on whether this figure tells what it seems to.
    """

    name: str
    model: str
    images: int
    ipc: int
    steps: int | None
    accuracy: Figure
    protocol: str
    stored_bytes: int
    lr: float | None
    tested: int = 0
    cautions: tuple[str, ...] = ()

    def per_class(self, classes: int) -> str:
        """Say how many examples of each class it was trained on."""
        return "all" if self.name == "full" else f"{self.images // classes:,}"


def pixel_bytes(images: int, shape: tuple[int, ...]) -> int:
    """Return the bytes that so many images of a shape take, 4 for each value."""
    return images * math.prod(shape) * FLOAT_BYTES


@dataclass(frozen=True)
class DataSource:
    """The data that something was measured on: a hash of the content, and the kind of source."""

    fingerprint: str
    source: str | None = None


class Kept(Protocol):
    """A record that a results file keeps in its list `KEY`; it has `settings` and `data`."""

    KEY: ClassVar[str]


Record = TypeVar("Record", bound=Kept)


@dataclass(frozen=True)
class EvaluationRecord:
    """An entry of evaluation.json: one set measured with one network or learner.

    Args:
        rows: what was measured.
        split: on which split of the data.
        test_images: how many examples it has.
        noun: what an example of it is called.
        classes: of the data.
        data: which data.
        settings: the options that decide the result, by name; with the network's ("model") and the
            set's size ("ipc").
        standard: whether the set was used as it is meant to be: its own recipe, and nothing chosen
            on test data.
        hardware: the machine, in words.
        versions: library -> version.
    """

    KEY: ClassVar[str] = "evaluations"
    rows: tuple[Row, ...]
    split: str
    test_images: int
    noun: str
    classes: int
    data: DataSource
    settings: Mapping[str, Any]
    standard: bool
    hardware: str
    versions: Mapping[str, str]


FEW_STEPS, NEAR_CHANCE = 100, 1.5
"""Outer steps that few sets can do with; accuracy of so many times that of guessing is chance."""


def worse_than_random(
    distilled: Figure, random: Figure, steps: int | None, classes: int, noun: str
) -> str:
    """Say that a set is worse than as many real examples, with the likeliest reason; else "".

    Args:
        distilled: accuracy on the set.
        random: accuracy on as many real examples.
        steps: outer steps that the set took; None: not known.
        classes: number of classes.
        noun: what an example is called.
    """
    if distilled.mean >= random.mean:
        return ""
    if steps is not None and steps < FEW_STEPS:
        reason = (
            f"it took {steps} outer steps, and most sets need some hundreds; go on with "
            "`potstill distill --resume RUN --steps MORE`"
        )
    elif distilled.mean < NEAR_CHANCE / classes:
        reason = (
            "its networks do little better than guessing: a learning rate may be too high "
            "(--outer-lr, --inner-lr)"
        )
    else:
        reason = "distil for longer (`--resume RUN --steps MORE`), or with another --outer-lr"
    return f"the set is worse than as many real {noun}s: {reason}"


def entries(path: Path, key: str) -> list[Any]:
    """Return the plain entries of a results file; none if it is missing or not potstill's."""
    if not path.is_file():  # a named pipe would be waited for
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return records if isinstance(records, list) else []


def read_records(path: Path, kind: type[Record]) -> tuple[list[Record], int]:
    """Return the records of a results file, in order, and how many entries cannot be read."""
    records, plain = [], entries(path, kind.KEY)
    for entry in plain:
        try:
            records.append(parse(kind, entry))
        except Unreadable:
            continue
    return records, len(plain) - len(records)


def add_record(path: Path, record: Kept) -> None:
    """Write a record to its file; it replaces a record of the same settings and data.

    Raises:
        InputError: no space, no permission.
    """
    new: dict[str, Any] = dump(record)
    kept = [
        one
        for one in entries(path, record.KEY)
        if isinstance(one, dict) and not same_question(one, new)
    ]
    write(path, json.dumps({record.KEY: [*kept, new]}, indent=2) + "\n")


def same_question(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two entries were measured with the same settings on the same data."""
    return all(entry.get(name) == other[name] for name in ("settings", "data"))
