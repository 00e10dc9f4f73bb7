"""What outer steps tell the log, read once the device has computed it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.devices import peak_memory_mb
from potstill.errors import InputError
from potstill.records.metrics import StepRecord

MOST_SKIPPED = 20
LATE = 4
"""Steps that the device may be behind when the log reads what one of them tells."""
INFO = "info."
"""Before the name of a value of a method's own."""


@dataclass(frozen=True)
class Unread:
    """What an outer step tells the log, perhaps still on its way from the device.

    Args:
        step: counted from 1.
        names: of the values.
        values: returns them, (n,) float64 on the host, once they are there.
        info: what the method logs beside them.
        clipping: whether a factor below 1 means that the gradient was clipped.
        began: when the step began.
        scoring: seconds that scoring the real images took before it; None: they were not scored.
    """

    step: int
    names: tuple[str, ...]
    values: Callable[[], Tensor]
    info: Mapping[str, Any]
    clipping: bool
    began: float = 0.0
    scoring: float | None = None


class Reader:
    """Reads what outer steps tell, in order.

    Args:
        remedy: what to change when gradients are not finite.
        device: whose memory is told.
    """

    def __init__(self, remedy: str, device: torch.device):
        self.remedy, self.device = remedy, device
        self.seconds, self.until = 0.0, 0.0
        """Of the last step that was read; when it was."""

    def read(self, unread: Unread) -> StepRecord:
        """Return the record of a step.

        Raises:
            InputError: it was one of too many in a row that were not finite.
        """
        values = dict(zip(unread.names, unread.values().tolist(), strict=True))
        if values["skipped"] >= MOST_SKIPPED:
            raise InputError(
                f"the meta-gradient was not finite in {MOST_SKIPPED} outer steps in a row, up to "
                f"step {unread.step}; {self.remedy}"
            )
        now = time.perf_counter()
        self.seconds, self.until = round(now - max(unread.began, self.until), 4), now
        info = {
            name: finite_or_none(values.get(INFO + name, value))
            for name, value in unread.info.items()
        }
        return StepRecord(
            unread.step,
            finite_or_none(values["loss"]),
            finite_or_none(values["norm"]),
            clipped=unread.clipping and values["factor"] < 1,
            skipped=values["skipped"] > 0,
            seconds=self.seconds,
            memory_mb=round(peak_memory_mb(self.device), 1),
            decode_seconds=info.pop("decode_seconds", None),
            hardness_seconds=None if unread.scoring is None else round(unread.scoring, 4),
            info=info,
        )


def finite_or_none(value: Any) -> Any:
    """Return `value`, or None for a float that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
