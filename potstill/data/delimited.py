"""Texts of lines with values between commas, semicolons, tabs or bars, as columns of text."""

import codecs
import csv
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Literal, cast

from potstill.data.places import Place
from potstill.errors import InputError, first_line, let_memory_pass

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = ",;\t|"
MOST_COLUMNS = 100_000
LONGEST_LINE = 2**26
"""Bytes, with the line break."""
Row = dict[str, str]


def rows_of(file: Place) -> list[Row]:
    """Return the rows of a CSV file by column; there must be some."""
    return cast("list[Row]", table_of(file).to_pylist())


def table_of(file: Place) -> "pa.Table":
    """Return a CSV file as columns of text, whatever separates them; there must be rows.

    Raises:
        InputError: it is no such text, or its lines have not as many values as the heading.
    """
    import pyarrow as pa  # here: only data in tables need it

    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = content.decode()
        names, between = heading_of(file, text)
        if not re.search(r"[\r\n][^\r\n]", text):
            raise InputError(f"{file} must hold rows below its heading line, it has none")
        # Quotes are few, and what is quoted wrongly must not pass: pyarrow's reader lets it.
        if '"' in text:
            return quoted(file, text, names, between)
        return plain(file, content, names, between)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        let_memory_pass(error)
        long = "straddling" in str(error)
        what = f"a line has more than {LONGEST_LINE:,} bytes" if long else first_line(error)
        raise InputError(
            f"cannot read {file} as CSV: {what}; give a heading line, and values between commas"
        ) from error


def heading_of(file: Place, text: str) -> tuple[list[str], str]:
    """Return the names of the columns and what is between them; check both."""
    if "\0" in text:
        raise InputError(f"{file} must be a text in UTF-8, it holds NUL characters; save it so")
    lines = io.StringIO(text, newline="")
    first = next(lines, "")
    if not first.strip():
        raise InputError(f"{file} must begin with its heading line, it begins with an empty one")
    between = max(SEPARATORS, key=first.count)
    lines.seek(0)
    names = next(csv.reader(lines, delimiter=between, strict=True))
    if len(names) > MOST_COLUMNS:
        raise InputError(
            f"{file} must have at most {MOST_COLUMNS:,} columns, it has {len(names):,}; give "
            "arrays (.npz)"
        )
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"the columns of {file} must have different names, {twice!r} comes twice")
    return names, between


def plain(file: Place, content: bytes, names: list[str], between: str) -> "pa.Table":
    """Read a text without quotes."""
    import pyarrow as pa
    import pyarrow.csv as reader

    unequal: list[reader.InvalidRow] = []

    def skipped(row: reader.InvalidRow) -> Literal["skip"]:
        unequal.append(row)
        return "skip"

    table = reader.read_csv(
        io.BytesIO(content),
        reader.ReadOptions(
            use_threads=False,  # else the numbers of bad rows are not known
            block_size=min(max(len(content), 2**16), LONGEST_LINE),
        ),
        reader.ParseOptions(delimiter=between, quote_char=False, invalid_row_handler=skipped),
        reader.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    if unequal:
        raise unequal_line(file, unequal[0].number or 0)
    return table


def quoted(file: Place, text: str, names: list[str], between: str) -> "pa.Table":
    """Read a text with quotes, line by line."""
    import pyarrow as pa

    lines = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    rows: list[list[str]] = []
    for row in lines:
        if row and len(row) != len(names):
            raise unequal_line(file, lines.line_num)
        rows += [row] * bool(row)
    columns = zip(*rows[1:], strict=True)
    if len(rows) < 2:
        raise InputError(f"{file} must hold rows below its heading line, it has none")
    return pa.table(
        {name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)}
    )


def unequal_line(file: Place, number: int) -> InputError:
    """Return the error for a line of another length than the heading."""
    return InputError(
        f"line {number} of {file} must have as many values as the heading; correct it"
    )
