"""What is random in the steps of a program, drawn ahead and read by the number of the step."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from potstill.data import augmentation
from potstill.devices import sent


@dataclass
class Drawn:
    """What is random in the steps of an outer step, or in the parts of its real batch.

    Args:
        rows: (steps, B) indices, on the device.
        values: (steps, B, V) parameters of augmentation, on the device.
        operations: of each step.
        frozen: how many of the first rows ask for no gradient, of each step.
    """

    rows: Tensor
    values: Tensor
    operations: list[str]
    frozen: list[int]

    @classmethod
    def empty(
        cls, steps: int, size: int, operations: tuple[str, ...], device: torch.device
    ) -> Self:
        """Return room for so many steps of so many rows each."""
        width = max((values_of(one) for one in operations), default=0)
        return cls(
            torch.zeros(steps, size, dtype=torch.int64, device=device),
            torch.zeros(steps, size, width, device=device),
            ["none"] * steps,
            [0] * steps,
        )

    def put(
        self, rows: Tensor, draws: list[augmentation.Draw], frozen: list[int], first: int = 0
    ) -> None:
        """Take what was drawn for the steps from `first` on, on the CPU."""
        count, width, last = len(rows), self.values.shape[2], first + len(rows)
        values = torch.zeros(count, rows.shape[1], width)
        for index, one in enumerate(draws):
            values[index, :, : one.values.shape[1]] = one.values
        self.rows[first:last].copy_(sent(rows, self.rows.device))
        self.values[first:last].copy_(sent(values, self.rows.device))
        self.operations[first:last] = [one.operation for one in draws]
        self.frozen[first:last] = frozen

    def at(self, counter: Tensor, step: int) -> tuple[Tensor, augmentation.Draw, int]:
        """Return rows, draw and number of frozen rows of the step that a counter tells.

        Args:
            counter: number of the step, 0-d int64 on the device.
            step: a step of the same variant.
        """
        operation = self.operations[step]
        values = self.values.index_select(0, counter[None])[0, :, : values_of(operation)]
        rows = self.rows.index_select(0, counter[None])[0]
        return rows, augmentation.Draw(operation, values), self.frozen[step]


def values_of(operation: str) -> int:
    """Return how many values a draw of an operation has for each example."""
    return 0 if operation == "none" else 4 * len(operation.split("+"))
