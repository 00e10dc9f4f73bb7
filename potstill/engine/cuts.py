"""How a batch is cut into parts that are computed one by one, or by threads side by side."""

import math
from dataclasses import dataclass

MOST_PARTS = 8
"""Parts of a batch that memory would not have cut."""
PAYS = 1.2e9
"""Floating-point operations of a gradient from which a part costs little more than its share."""
TWO_FROM = 24
"""The least batch that is cut in two has a part's worth of operations over this."""
FILLED = 0.5
"""Most examples that a stage adds to its batch, as a share of it."""


@dataclass(frozen=True)
class Cut:
    """How many examples of a batch are taken at once.

    It follows from sizes alone, never from the number of threads, so that any number of them gives
    the same bytes.

    Args:
        most: examples whose activations fit the memory meant for them.
        least: examples that are worth a part of their own where threads share the parts; 0: they do
            not, and a batch is cut for its memory only.
    """

    most: int
    least: int = 0

    @classmethod
    def of(cls, most: int, operations: float, device_type: str) -> "Cut":
        """Return the cut for networks whose gradient takes `operations` for one example."""
        if device_type != "cpu":
            return cls(most)
        return cls(most, max(1, math.ceil(PAYS / max(1.0, operations))))

    def size(self, count: int) -> int:
        """Return the size of parts that cut `count` examples most evenly.

        Even sizes mean few shapes, and so few compilations. Where threads share the parts, their
        number is a power of two or a multiple of eight.
        """
        parts = math.ceil(count / self.most)
        if self.least and count * TWO_FROM >= self.least:
            worth = 2 ** int(math.log2(max(2, count // self.least)))
            parts = max(parts, min(MOST_PARTS, worth))
            most = MOST_PARTS
            parts = -(-parts // most) * most if parts > most else 2 ** math.ceil(math.log2(parts))
        return math.ceil(count / min(parts, count))

    def of_stage(self, batch: int, last: int, *, compiled: bool) -> int:
        """Return how many examples of a batch to take at once, in a stage of a run.

        A compiled run takes what suits its last stage's batch, `last`, or the half, quarter, ... of
        that which fills the last part up to it with at most FILLED of the batch: a shape for each
        stage would be a compilation for each. Otherwise it is what a run of this stage alone would
        take, to the same bytes.

        Args:
            batch: synthetic examples in the stage's batch.
            last: synthetic examples in the last stage's batch.
            compiled: whether the run is compiled.
        """
        own = self.size(batch)
        if not compiled:
            return own
        size, least = self.size(last), 2 if own < batch else 1
        while size > 1:
            parts = -(-batch // size)
            if parts >= least and parts * size <= (1 + FILLED) * batch:
                break
            size = -(-size // 2)
        return size
