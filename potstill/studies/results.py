"""The measurements of a study: tidy rows, and their figures and differences in words."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from potstill.evaluation.records import Row
from potstill.records.metrics import Figure

SHOWN_POSITIONS = 6


@dataclass(frozen=True)
class Quantity:
    """A quantity that a study measures.

    Args:
        name: with its unit if it has one.
        x_name: name of the x value, for the x axis.
        percent: whether it is a fraction that reads in per cent.
        log: whether it spans orders of magnitude.
        where: an x value in words, as a format.
        names: names of x values that are not shown as numbers.
        together: whether it is a column beside others, in one table at each x value.
        derived: function of all that was measured -> its measurements; None: it is measured itself.
    """

    name: str
    x_name: str
    percent: bool = False
    log: bool = False
    where: str = "At {:g}"
    names: Mapping[float, str] = dataclasses.field(default_factory=dict)
    together: bool = False
    derived: "Callable[[Results], list[Measurement]] | None" = None

    def name_of(self, at: float) -> str:
        """Return the name of an x value, for the head of a column."""
        return self.names.get(at, f"{at:g}")


ACCURACY = "test accuracy"
ACCURACY_BY_SIZE = Quantity(ACCURACY, "images per class", percent=True, where="At {:g} a class")


@dataclass(frozen=True)
class Measurement:
    """One line of a study's table: a way of making a training set, at one x value, with one seed.

    Args:
        quantity: the name of what was measured.
        way: what is compared.
        at: the x value, such as images per class.
        seed: pairs the ways: the same seed, the same draws wherever they can be the same.
        mean: over networks or other draws; the value itself of a single one.
        std: sample standard deviation over them; None of one.
        n: number of networks or draws.
        detail: how it was measured, in words.
    """

    quantity: str
    way: str
    at: float
    seed: int
    mean: float
    std: float | None
    n: int
    detail: str

    @classmethod
    def of(cls, way: str, row: Row, seed: int, at: float | None = None) -> "Measurement":
        """Return the test accuracy of an evaluated row.

        Args:
            way: what is compared.
            row: of the evaluation.
            seed: of the run.
            at: the x value; None: the row's number of images per class.
        """
        figure = row.accuracy
        position, detail = (
            row.ipc if at is None else at,
            f"{row.steps} steps; {row.protocol}; {row.stored_bytes or 0:,} bytes",
        )
        return cls(ACCURACY, way, position, seed, figure.mean, figure.std, figure.n, detail)

    @classmethod
    def of_text(cls, row: Mapping[str, str]) -> "Measurement":
        """Read a line of the table, whose values are text."""
        return cls(
            row["quantity"],
            row["way"],
            float(row["at"]),
            int(row["seed"]),
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
            int(row["n"]),
            row["detail"],
        )


@dataclass(frozen=True)
class Difference:
    """A paired difference between two ways, over the seeds.

    Args:
        values: first minus second, for each seed.
        percent: whether they are fractions and read in percentage points.
    """

    values: tuple[float, ...]
    percent: bool = True

    def __str__(self) -> str:
        return in_words(self.values, "+", " points", self.percent)


@dataclass(frozen=True)
class Table:
    """All measurements of one quantity."""

    rows: tuple[Measurement, ...]
    quantity: Quantity

    def ways(self) -> list[str]:
        """Return the ways in the order of appearance."""
        return list(dict.fromkeys(row.way for row in self.rows))

    def positions(self, way: str) -> list[float]:
        """Return the x values at which a way was measured, ascending."""
        return sorted({row.at for row in self.rows if row.way == way})

    def shown_positions(self) -> list[float]:
        """Return some of the x values, evenly spread: the columns of a printed table."""
        positions = sorted({row.at for row in self.rows})
        chosen = (
            torch.linspace(0, len(positions) - 1, min(len(positions), SHOWN_POSITIONS))
            .round()
            .int()
            .tolist()
        )
        return [positions[index] for index in chosen]

    def cell(self, way: str, at: float) -> dict[int, float]:
        """Return seed -> mean."""
        return {row.seed: row.mean for row in self.rows if (row.way, row.at) == (way, at)}

    def words(self, way: str, at: float) -> str:
        """Write mean and deviation over seeds; empty where it was not measured."""
        values = list(self.cell(way, at).values())
        return in_words(values, "", " %", self.quantity.percent) if values else ""

    def spread(self, way: str, at: float) -> tuple[float, float]:
        """Return mean and deviation over seeds; NaN for the deviation of one."""
        figure = Figure.of(torch.tensor(list(self.cell(way, at).values()), dtype=torch.float64))
        return figure.mean, float("nan") if figure.std is None else figure.std

    def difference(self, first: tuple[str, float], second: tuple[str, float]) -> Difference:
        """Return first minus second, by seed."""
        one, other = self.cell(*first), self.cell(*second)
        return Difference(
            tuple(one[seed] - other[seed] for seed in one if seed in other), self.quantity.percent
        )

    def ratio(self, first: tuple[str, float], second: tuple[str, float]) -> tuple[float, ...]:
        """Return first over second, by seed."""
        one, other = self.cell(*first), self.cell(*second)
        return tuple(one[seed] / other[seed] for seed in one if seed in other)


@dataclass(frozen=True)
class Grid:
    """A printed table.

    Args:
        name: of what is in it.
        corner: what rows are by; empty: columns have names enough.
        heads: of the columns.
        rows: (name, (words, value to sort by or None) for each column).
        places: number of x values that were measured; 0: all that are shown.
    """

    name: str
    corner: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, float | None], ...]], ...]
    places: int = 0

    @classmethod
    def of(cls, table: Table) -> "Grid":
        """Return the table of one quantity, a column for each x value that is shown."""
        shown, quantity = table.shown_positions(), table.quantity
        return cls(
            quantity.name,
            quantity.x_name,
            tuple(map(quantity.name_of, shown)),
            tuple((way, tuple(sortable(table, way, at) for at in shown)) for way in table.ways()),
            len({row.at for row in table.rows}),
        )

    @classmethod
    def together(cls, tables: Sequence[Table]) -> "Iterator[Grid]":
        """Yield a table for each x value, a column for each quantity that was measured there."""
        for at in sorted({row.at for table in tables for row in table.rows}):
            there = [table for table in tables if any(row.at == at for row in table.rows)]
            ways = dict.fromkeys(way for table in there for way in table.ways())
            shown = [way for way in ways if any(table.cell(way, at) for table in there)]
            yield cls(
                there[0].quantity.where.format(at),
                "",
                tuple(table.quantity.name for table in there),
                tuple((way, tuple(sortable(table, way, at) for table in there)) for way in shown),
            )


def sortable(table: Table, way: str, at: float) -> tuple[str, float | None]:
    """Return the words of a cell, and what they are sorted by; None: it is empty."""
    words = table.words(way, at)
    return words, table.spread(way, at)[0] if words else None


def grids(tables: Sequence[Table]) -> list[Grid]:
    """Return the printed tables of a study: what stands together first."""
    beside = [table for table in tables if table.quantity.together]
    alone = [Grid.of(table) for table in tables if not table.quantity.together]
    return [*Grid.together(beside), *alone]


@dataclass(frozen=True)
class Results:
    """A study's rows, and its quantities in the order in which they are told."""

    rows: tuple[Measurement, ...]
    quantities: tuple[Quantity, ...]

    def completed(self) -> "Results":
        """Return the results with what follows from them."""
        more = [row for each in self.quantities if each.derived for row in each.derived(self)]
        return dataclasses.replace(self, rows=(*self.rows, *more))

    def __getitem__(self, quantity: Quantity) -> Table:
        return Table(tuple(row for row in self.rows if row.quantity == quantity.name), quantity)

    @property
    def tables(self) -> list[Table]:
        """A table for each quantity that was measured."""
        return [table for table in map(self.__getitem__, self.quantities) if table.rows]

    @property
    def has_accuracies(self) -> bool:
        """Whether networks were tested."""
        return any(row.quantity == ACCURACY for row in self.rows)

    @classmethod
    def of_csv(cls, text: str, quantities: tuple[Quantity, ...]) -> "Results":
        """Read what `csv` wrote."""
        return cls(tuple(map(Measurement.of_text, csv.DictReader(io.StringIO(text)))), quantities)

    def csv(self) -> str:
        """Write one line a measurement."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Measurement))
        writer.writerows(dataclasses.astuple(row) for row in self.rows)
        return buffer.getvalue()


def in_words(values: Sequence[float], sign: str, unit: str, percent: bool) -> str:
    """Write mean ± sample deviation over seeds.

    Args:
        values: one for each seed.
        sign: format of the sign, such as "+".
        unit: of fractions.
        percent: values are fractions, written as hundredths with the unit; else three digits.
    """
    figure = Figure.of(torch.tensor(values, dtype=torch.float64))
    # Counted, and the same in all seeds.
    if not percent and len(set(values)) == 1 and float(values[0]).is_integer():
        return f"{values[0]:{sign},.0f}"
    if percent:
        spread = "" if figure.std is None else f" ± {100 * figure.std:.1f}"
        return f"{100 * figure.mean:{sign}.1f}{spread}{unit}"
    return f"{figure.mean:{sign}.3g}" + ("" if figure.std is None else f" ± {figure.std:.2g}")
