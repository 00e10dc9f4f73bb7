"""CSV files: pyarrow's fast reader and the csv module's agree, and what is torn is told."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.data.delimited import rows_of, table_of
from potstill.errors import InputError

CELLS = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\x1c\x1d\x1e\x85"),
    max_size=6,
)
UNQUOTED = CELLS.map(lambda cell: "".join(one for one in cell if one not in '",;\t|\r\n'))


def written(rows: list[list[str]], between: str, end: str) -> str:
    """Return rows as the csv module writes them."""
    text = io.StringIO()
    # Before Python 3.13 it left a line break bare that was not the writer's own.
    broken = any(mark in cell for row in rows for cell in row for mark in "\r\n")
    quoting = csv.QUOTE_ALL if broken else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=between, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(CELLS | UNQUOTED, min_size=2, max_size=2), min_size=1, max_size=5),
    between=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_what_the_csv_module_writes_is_read_back(tmp_path, rows, between, end, bom):
    file = tmp_path / "x.csv"
    text = written([["a", "b"], *rows], between, end)
    file.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    assert [list(row.values()) for row in rows_of(file)] == rows


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from('ab,"\n\r ;1'), max_size=30))
def test_any_text_is_read_as_the_csv_module_reads_it_or_refused(tmp_path, text):
    file = tmp_path / "x.csv"
    file.write_bytes(text.encode())
    try:
        rows = [list(row.values()) for row in rows_of(file)]
    except InputError:
        return
    between = max(",;\t|", key=next(io.StringIO(text, newline="")).count)
    read = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    expected = [row for row in list(read)[1:] if row]
    assert rows == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('a,b,c\n1,x,ok\n2,y,"open\n3,x,z\n', "as CSV: unexpected end of data"),
        ('a,b,c\n1,"x"z,1\n', "as CSV: ',' expected after '\"'"),
        ("\na,b\n1,2\n", "must begin with its heading line, it begins with an empty one"),
        ("a,b\n1,2\n1\n", "line 3 of .* must have as many values as the heading"),
        ('a,b\n"1",2\n"1"\n', "line 3 of .* must have as many values as the heading"),
        ("a,b\n", "must hold rows below its heading line, it has none"),
        ('"a",b\n\n', "must hold rows below its heading line, it has none"),
        ("", "must begin with its heading line"),
        ("a,a\n1,2\n", "must have different names, 'a' comes twice"),
        ("a,b\n1,\0\n", "must be a text in UTF-8, it holds NUL characters"),
    ],
)
def test_what_is_torn_is_told(text, sentence, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=sentence) as refused:
        table_of(tmp_path / "x.csv")
    assert "give a heading line" not in str(refused.value) or "as CSV" in str(refused.value)


def test_a_heading_may_hold_line_breaks_and_cells_what_looks_missing(tmp_path):
    (tmp_path / "x.csv").write_text('a,"Size\n(cm)",label\nNA,,null\n007,1e5, x\n')
    assert rows_of(tmp_path / "x.csv") == [
        {"a": "NA", "Size\n(cm)": "", "label": "null"},
        {"a": "007", "Size\n(cm)": "1e5", "label": " x"},
    ]


def test_a_line_that_is_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.data.delimited.LONGEST_LINE", 70_000)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n" + "3" * 200_000 + ",4\n")
    with pytest.raises(InputError, match="a line has more than 70,000 bytes"):
        table_of(tmp_path / "x.csv")
