"""Vectors of a set for an HTML page.

A table of the rows by class, and the range of each feature beside the range of the real data.
"""

from dataclasses import dataclass

import torch

from potstill.distilled.sets import DistilledSet
from potstill.reports.gallery import label_bars

MOST_FEATURES, MOST_ROWS, MOST_RANGES = 16, 200, 40
"""What a page shows: columns of the table, its rows, and ranges; the file holds all."""
NARROWEST = 1.5
"""Least width of a bar, in hundredths of the axis: a single value must be seen."""


@dataclass(frozen=True)
class Row:
    """A distilled row: its class and block in words, its values, its learned label.

    Values are text, in the data's units.
    """

    title: str
    block: str
    values: list[str]
    label: str


@dataclass(frozen=True)
class RowTable:
    """The rows of a set.

    Args:
        features: names of the columns.
        rows: class by class, block by block.
        nested: whether there are several blocks.
        left_out: a sentence, if some rows or columns are left out.
    """

    features: list[str]
    rows: list[Row]
    nested: bool
    left_out: str


@dataclass(frozen=True)
class FeatureRange:
    """The values of a feature, in the data's units, and their positions on an axis from 0 to 100.

    Args:
        name: of the feature.
        real: (least, mean, greatest) over the real training rows, as text.
        distilled: (least, greatest) over the distilled rows, as text.
        real_bar: (start, width) of the real range on the axis.
        mean: position of the real mean on the axis.
        distilled_bar: (start, width) of the distilled range on the axis.
    """

    name: str
    real: tuple[str, str, str]
    distilled: tuple[str, str]
    real_bar: tuple[float, float]
    mean: float
    distilled_bar: tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """The features of a set with their ranges, and a sentence if some are left out."""

    features: list[FeatureRange]
    left_out: str


def row_table(
    distilled: DistilledSet, most_features: int = MOST_FEATURES, most_rows: int = MOST_ROWS
) -> RowTable:
    """Make the table of a set of vectors.

    Args:
        distilled: the set.
        most_features: at most so many columns.
        most_rows: at most about so many rows, as many of each class.
    """
    names, classes = distilled.feature_names, distilled.class_names
    each = max(1, most_rows // len(classes))
    numbers = torch.cat(
        [
            torch.full((len(block.labels),), index + 1)
            for index, block in enumerate(distilled.blocks)
        ]
    )
    rows = []
    for label, name in enumerate(classes):
        for index in torch.nonzero(distilled.labels == label)[:each, 0].tolist():
            words = (
                label_bars(distilled.targets[index], label, classes).words
                if distilled.learned_labels
                else ""
            )
            values = [number(value) for value in distilled.rows[index, :most_features].tolist()]
            rows.append(
                Row(name, str(int(numbers[index])), values, words.removeprefix("learned weights: "))
            )
    parts = (
        [f"the first {most_features:,} of {len(names):,} features"]
        if most_features < len(names)
        else []
    )
    if each < distilled.per_class:
        parts.append(f"the first {each:,} of {distilled.per_class:,} rows of each class")
    left_out = f"Shown: {' and '.join(parts)}; the CSV file has all." if parts else ""
    return RowTable(list(names[:most_features]), rows, len(distilled.blocks) > 1, left_out)


def feature_ranges(distilled: DistilledSet, most: int = MOST_RANGES) -> Ranges | None:
    """Return the ranges of the first `most` features, or None.

    None: the set's preprocessing does not know the ranges of the real data.
    """
    known = distilled.fitted.tensors.get("ranges")
    if known is None:
        return None
    made = torch.stack((distilled.rows.amin(0), distilled.rows.amax(0)))
    features = []
    for name, real, own in zip(
        distilled.feature_names[:most], known.T.tolist(), made.T.tolist(), strict=False
    ):
        start, end = min(real[0], own[0]), max(real[2], own[1])
        scale = 100 / (end - start) if end > start else 0.0
        features.append(
            FeatureRange(
                name,
                (number(real[0]), number(real[1]), number(real[2])),
                (number(own[0]), number(own[1])),
                bar(real[0] - start, real[2] - real[0], scale),
                scale * (real[1] - start) if scale else 50.0,
                bar(own[0] - start, own[1] - own[0], scale),
            )
        )
    total = len(distilled.feature_names)
    return Ranges(
        features, f"Shown: the first {most:,} of {total:,} features." if most < total else ""
    )


def bar(start: float, width: float, scale: float) -> tuple[float, float]:
    """Return (start, width) in hundredths of the axis, wide enough to be seen and within it."""
    wide = max(NARROWEST, scale * width)
    return max(0.0, min(scale * start, 100 - wide)), wide


def number(value: float) -> str:
    """Write a value with four digits, in full where it is no longer than that."""
    text = f"{value:.4g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text
