"""What an outer step's record is written to beside metrics.jsonl: a table, and TensorBoard."""

import csv
import io
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.records.metrics import StepRecord

TENSORBOARD = "tensorboard"
"""The value of the option `log`, the package that it needs, and the folder that it makes."""
PLACES = {"validation": "accuracy/validation", "loss": "outer/loss", "grad_norm": "outer/norm"}
"""Where TensorBoard shows what every method logs; the rest is under "step/"."""


def require_log(log: str) -> None:
    """Raise an InputError if what the option `log` names is not installed."""
    if log == TENSORBOARD and find_spec(TENSORBOARD) is None:
        raise InputError(
            "log tensorboard needs the package tensorboard; run: pip install "
            "'potstill[tensorboard]', or leave --log out (the table metrics.csv is always written)"
        )


def columns(record: StepRecord) -> Mapping[str, Any]:
    """Return what a table has of a record: numbers and words, and a figure's mean and deviation."""
    found: dict[str, Any] = {}
    for name, value in record.to_plain().items():
        if isinstance(value, Mapping):
            found |= {name: value.get("mean"), f"{name}_std": value.get("std")}
        else:
            found[name] = value
    return found


def as_csv(records: Iterable[StepRecord]) -> str:
    """Return records as a table, with a column for whatever one of them has."""
    rows = [columns(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class TensorBoard:
    """Curves of a run for TensorBoard.

    Args:
        folder: of the run.
        done: outer steps that it has taken; what was written of later ones is no longer shown.
    """

    def __init__(self, folder: Path, done: int):
        from torch.utils.tensorboard import SummaryWriter  # here: an optional extra

        self.writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1)

    def add(self, record: StepRecord) -> None:
        """Write a step's numbers."""
        for name, value in columns(record).items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self.writer.add_scalar(PLACES.get(name, f"step/{name}"), value, record.step)
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()
