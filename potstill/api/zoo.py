"""Ready-made sets: which there are, and whether they are still worth what is said of them."""

import math
from dataclasses import dataclass

from potstill.api.measurements import evaluate
from potstill.distilled.zoo import ZOO, ReadySet, catalogue, content, ready_set
from potstill.errors import InputError
from potstill.progress import Listener
from potstill.records.metrics import Figure

ERRORS, ALLOWANCE = 3.0, 0.005
"""Standard errors of the difference, and accuracy beside them, by which figures may differ: other
machines compute in another precision."""
LEAST = 3
"""Networks, of whose accuracies a deviation is taken."""


@dataclass(frozen=True)
class Verified:
    """What measuring a ready-made set again has found.

    Args:
        name: of the set.
        said: its accuracy by the catalogue.
        found: that of the networks trained now; None: there were no data to test them on.
    """

    name: str
    said: Figure
    found: Figure | None

    @property
    def agrees(self) -> bool:
        """Whether the figures differ by no more than chance and other hardware explain."""
        if self.found is None:
            return True
        errors = sum((one.std or 0.0) ** 2 / one.n for one in (self.said, self.found))
        allowed = ERRORS * math.sqrt(errors) + ALLOWANCE
        return abs(self.said.mean - self.found.mean) <= allowed

    def __str__(self) -> str:
        if self.found is None:
            return (
                f"{self.name}: its file is the catalogue's; the accuracy, {self.said}, was not "
                "measured: give its data with --data (in Python data=)"
            )
        word = "agrees with" if self.agrees else "DIFFERS from"
        return f"{self.name}: {self.found}, which {word} the catalogue's {self.said}"


def zoo() -> tuple[ReadySet, ...]:
    """List the ready-made sets that come with potstill.

    `potstill.load("zoo:NAME")` reads one; so does every command that takes a set.
    """
    return catalogue()


def verify(
    name: str,
    *,
    data: str | None = None,
    nets: int = 10,
    device: str = "auto",
    listener: Listener | None = None,
    progress: bool = True,
) -> Verified:
    """Compare a ready-made set with what the catalogue says of it: its checksum and its accuracy.

    Args:
        name: of the set, with or without "zoo:".
        data: where its real data are, as the option `data`; not needed for those that come with a
            package. Without them only the checksum is compared.
        nets: networks to train.
        device: where.
        listener: is told of the progress; None: it is shown in terminals and notebooks.
        progress: False to show nothing.
    Raises:
        InputError: no such set, another file than the catalogue's, or data that do not fit.
    """
    if type(nets) is not int or nets < LEAST:
        raise InputError(f"nets must be at least {LEAST}, for their deviation, got {nets!r}")
    one = ready_set(name)
    source = data or one.data
    found = None
    if not source:
        content(one)  # evaluating reads the file, and compares the checksum, too
    else:
        rows = evaluate(
            f"{ZOO}{one.name}",
            data=source,
            nets=nets,
            device=device,
            listener=listener,
            progress=progress,
        )
        found = rows[0].accuracy
    return Verified(one.name, one.accuracy["distilled"], found)
