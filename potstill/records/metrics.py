"""Measured figures, and the record of an outer step: a line of metrics.jsonl."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from potstill.records.plain import Unreadable, dump_fields, fields_of, parse, parse_fields


@dataclass(frozen=True)
class Figure:
    """A measured fraction: mean and sample standard deviation (None of one) over n networks."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "Figure":
        """Return the figure of a 1-d tensor."""
        std = float(values.std()) if len(values) > 1 else None
        return Figure(float(values.mean()), std, len(values))

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread} % (n = {self.n})"


@dataclass(frozen=True)
class StepRecord:
    """The log of one outer step.

    Args:
        step: counted from 1, over all blocks.
        loss: the outer loss before the step; None: not finite.
        grad_norm: norm of the meta-gradient before clipping, over the clipped leaves; None: not
            finite.
        clipped: whether it was clipped.
        skipped: whether it was not finite, so that the set stayed as it was.
        seconds: duration of the step, without scoring and validation.
        memory_mb: peak of the process or, on CUDA, of the device.
        block: of a boosted set, counted from 1.
        validation: accuracy on validation data, where it was measured.
        decode_seconds: part of `seconds` that decoding the images and its way back took.
        hardness_seconds: duration of scoring the real images before the step, where it was done.
        info: what the method adds, such as burn_in and window.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    clipped: bool
    skipped: bool
    seconds: float
    memory_mb: float
    block: int = 1
    validation: Figure | None = None
    decode_seconds: float | None = None
    hardness_seconds: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """Return the field of this name, or what the method logged under it, or None."""
        return getattr(self, name) if name in fields_of(StepRecord)[0] else self.info.get(name)

    def to_plain(self) -> dict[str, Any]:
        """Return one flat table, in which the method's entries stand beside the fields."""
        own = dump_fields(dataclasses.replace(self, info={}))
        return {**own, **{name: value for name, value in self.info.items() if name not in own}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "StepRecord":
        """Return the record of a flat table; entries that are not fields are the method's."""
        names = fields_of(StepRecord)[0].keys() - {"info"}
        own = {name: value for name, value in plain.items() if name in names}
        record: StepRecord = parse_fields(StepRecord, own, "step")
        return dataclasses.replace(
            record, info={name: value for name, value in plain.items() if name not in names}
        )

    @property
    def line(self) -> str:
        """The record as a line of metrics.jsonl."""
        return json.dumps(self.to_plain()) + "\n"

    @classmethod
    def of_line(cls, line: str) -> "StepRecord":
        """Return the record of a line.

        Raises:
            Unreadable: the line was cut short, or is no record.
        """
        try:
            record: StepRecord = parse(cls, json.loads(line))
        except Unreadable:  # it is a ValueError, too
            raise
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"the line is no JSON: {error}") from error
        return record


def hardness_share(records: Iterable[StepRecord]) -> float:
    """Return the share of the time, without validation, that scoring real images took."""
    spent = steps = 0.0
    for record in records:
        spent += record.hardness_seconds or 0.0
        steps += record.seconds
    return spent / (spent + steps) if spent else 0.0
