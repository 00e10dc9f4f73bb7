"""How the outer learning rate changes over a run: warm-up, and a decay to 0."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "cosine", "cosine-to-tenth", "linear"]
DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "cosine-to-tenth": lambda share: 0.55 + 0.45 * math.cos(math.pi * share),
    "linear": lambda share: 1 - share,
}


@dataclass(frozen=True)
class Course:
    """The factor on all outer learning rates, by the share of the run that is over.

    It grows in a straight line over the warm-up, and then decays.

    Args:
        shape: "constant"; "cosine" or "linear", from 1 to 0; "cosine-to-tenth", from 1 to 0.1.
        warm_up: share of the run that the warm-up takes.
    """

    shape: str = "constant"
    warm_up: float = 0.0

    def __call__(self, share: float) -> float:
        """Return the factor when a share in [0, 1] of the run is over."""
        share = min(1.0, max(0.0, share))
        if share < self.warm_up:
            return share / self.warm_up
        return DECAYS[self.shape]((share - self.warm_up) / (1 - self.warm_up))

    @property
    def changes(self) -> bool:
        """Whether the factor is ever another than 1."""
        return self != Course()
