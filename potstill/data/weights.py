"""Weights of training examples that an option names: a column of the data, or a file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.config.sections import DataConfig, is_weights_file
from potstill.data.layouts import listed
from potstill.errors import InputError, near_miss

Weights = npt.NDArray[np.float64]


def weight_column(config: DataConfig) -> str:
    """Return the name of the column that holds the weights; "" if none does."""
    return "" if is_weights_file(config.weights) else config.weights


def require_column(name: str, columns: Sequence[str]) -> None:
    """Raise an InputError unless the data have the column of weights that is named."""
    if name not in columns:
        raise InputError(
            f"the data has no column {name!r}{near_miss(name, columns)} for --weights; give one of "
            f"{listed(columns, 20)}, or a file (.npy, .csv, .txt)"
        )


def of_column(name: str, values: Iterable[Any]) -> Weights:
    """Return the weights that a column holds for the training examples.

    Raises:
        InputError: a value is no number.
    """
    numbers = []
    for row, value in enumerate(values):
        number = None if isinstance(value, bool) else as_number(value)
        if number is None:
            raise InputError(
                f"weights column {name!r} must hold a number for each training example, train row "
                f"{row} holds {value!r}; fill it or name another column"
            )
        numbers.append(number)
    return np.array(numbers, np.float64)


def of_file(given: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Return the weights in a file: a NumPy array (.npy), or a text of one number a line.

    A text may have a heading line. Pickled objects are never loaded.

    Raises:
        InputError: the file is not there, or holds something else.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(
            f"weights {given} must be a file of numbers or a column, there is no such file; check "
            "the path after --weights"
        )
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot read the weights {path}: {error}; write them with numpy.save, or as one "
            "number a line"
        ) from error
    return of_lines(path, text.splitlines())


def of_lines(path: Path, lines: list[str]) -> Weights:
    """Return the numbers of a text file's lines, see `of_file`."""
    while lines and not lines[-1].strip():
        lines.pop()
    headed = bool(lines) and as_number(lines[0]) is None
    numbers = []
    for place, line in enumerate(lines[headed:], 1 + headed):
        number = as_number(line)
        if number is None:
            raise InputError(
                f"line {place} of the weights {path} must hold one number, it holds "
                f"{line.strip()!r}; correct it"
            )
        numbers.append(number)
    return np.array(numbers, np.float64)


def as_number(value: Any) -> float | None:
    """Return a value, or the text of one, as a number; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
