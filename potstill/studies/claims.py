"""The outcome of a study, as data: claims, what was measured on each, and whether it held."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from potstill.studies.results import Difference, Table

Verdict = Literal["holds", "against", "undecided", "one seed"]
Cell = tuple[str, float]
"""A way and its x value."""


@dataclass(frozen=True)
class Reading:
    """A measured figure under its name.

    Args:
        name: what was measured, or which way.
        words: the figure, rounded, as text.
        values: one for each seed, fractions where `words` are per cent; empty where a seed has no
            single number.
    """

    name: str
    words: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Throughout:
    """Where in a course one way is above or below another in all seeds.

    Args:
        first: a way.
        second: the way that it is compared with.
        above: whether above was counted, or below.
        agreed: number of measured steps where it is so in all seeds.
        places: number of steps at which both were measured.
    """

    first: str
    second: str
    above: bool
    agreed: int
    positions: int


@dataclass(frozen=True)
class Finding:
    """The measurement of a claim at one place.

    Args:
        readings: the figures; of a comparison the first and the second.
        where: the size or the step that they belong to, such as "At 2 a class".
        what: the quantity, where the names of the readings do not say it.
        difference: first minus second, paired by seed.
        verdict: whether the claim holds; None leaves it to the reader, where the claim is of size
            or the paper makes none.
        conclusion: what the readings show where there can be no verdict.
        further: readings that belong to it and are told after it.
    """

    readings: tuple[Reading, ...]
    where: str = ""
    what: str = ""
    difference: Reading | None = None
    verdict: Verdict | None = None
    conclusion: str = ""
    further: tuple[Reading | Throughout, ...] = ()

    @property
    def seeds(self) -> int:
        """Number of seeds that the verdict rests on."""
        return len((self.difference or self.readings[0]).values)

    def also(self, *further: Reading | Throughout) -> "Finding":
        """Return the finding with more to tell after it."""
        return dataclasses.replace(self, further=(*self.further, *further))


@dataclass(frozen=True)
class Claim:
    """A claim, and everything that was measured on it.

    Args:
        source: where the paper makes it, or that it does not; empty for a plain account.
        words: what is claimed, or what the account is of.
        findings: the measurements, in the order in which they are told.
    """

    source: str
    words: str
    findings: Sequence[Finding]


def verdict(values: Sequence[float], expected: int) -> Verdict | None:
    """Judge paired differences: decided only where all seeds agree, so that a tie decides nothing.

    Args:
        values: a difference for each seed.
        expected: the sign that the paper claims, +1 or -1; 0 for a claim of size, which is not
            judged.
    """
    if not expected:
        return None
    if len(values) < 2:
        return "one seed"
    if all(value * expected > 0 for value in values):
        return "holds"
    return "against" if all(value * expected < 0 for value in values) else "undecided"


def compared(table: Table, first: Cell, second: Cell, expected: int) -> Finding:
    """Compare two cells of a table, seed by seed.

    Args:
        table: of one quantity.
        first: what the claim is of.
        second: what it is compared with.
        expected: as for `verdict`, of first minus second.
    """
    where, other = table.quantity.where, reading(table, *second)
    if second[1] != first[1]:
        there = where.format(second[1])
        other = dataclasses.replace(other, name=f"{other.name}, {there[:1].lower()}{there[1:]}")
    difference = table.difference(first, second)
    return judged(reading(table, *first), other, difference, expected, where.format(first[1]))


def judged(
    first: Reading,
    second: Reading,
    difference: Difference,
    expected: int,
    where: str,
) -> Finding:
    """Judge two readings by their paired difference.

    Args:
        first: what the claim is of.
        second: what it is compared with.
        difference: first minus second, by seed.
        expected: as for `verdict`.
        where: the size or step that they belong to, in words.
    """
    return Finding(
        (first, second),
        where,
        difference=Reading("difference", str(difference), difference.values),
        verdict=verdict(difference.values, expected),
    )


def ratios(name: str, values: Sequence[float], expected: int = 0) -> Finding:
    """Judge a ratio for each seed: `expected` is +1 if the paper says above 1, -1 if below."""
    words = ", ".join(f"{value:.2f}" for value in values)
    return Finding(
        (Reading(name, f"{words} by seed", tuple(values)),),
        verdict=verdict([value - 1 for value in values], expected),
    )


def reading(table: Table, way: str, at: float, name: str = "") -> Reading:
    """Read a cell of a table, under the way's name or another.

    Args:
        table: of one quantity.
        way: what was measured.
        at: the x value.
        name: another name; empty: the way's.
    """
    return Reading(name or way, table.words(way, at), tuple(table.cell(way, at).values()))


def as_data(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return claims as plain data, for JSON."""
    return [dataclasses.asdict(claim) for claim in claims]
