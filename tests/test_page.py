"""A study's page: that it tells all claims, figures and numbers, needs nothing beside it, and fits
a phone.
"""

import base64
import itertools
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from test_report import Page

from potstill.reports.plots import Drawing, Series, dot_figure, line_figure
from potstill.studies.claims import Claim, Finding, Reading, Throughout, verdict
from potstill.studies.page import MARK, Told, study_page
from potstill.studies.results import Measurement, Quantity, Table

ODD = "</p><b>bold & \"double\" 'single' $x$ 猫 `a<b`"
BY_SIZE = Quantity("test accuracy", "images per class", percent=True)
VARIANCE = Quantity("variance", "outer step")
ALONE = Reading("alone", "50.0 %", (0.5,))
PREFIX = Reading("strong, prefix", "60.0 ± 14.1 %", (0.5, 0.7))
COSTS = Claim(
    "Paper (figure 7)",
    "strong boosting costs little",
    [
        Finding((PREFIX, ALONE), "At 1 a class", difference=Reading("difference", "+0.5 points")),
        Finding((PREFIX, ALONE), "At 3 a class", difference=Reading("difference", "-0.5 points")),
    ],
)
OVERTAKES = Claim(
    "Paper (section 4.1)",
    "weak boosting overtakes",
    [
        Finding(
            (Reading("weak: x", "0.753 ± 0.055"), Reading("alone: y", "0.7")),
            "At 2 a class",
            difference=Reading("difference", "+0.05", (0.04, 0.05, 0.06)),
            verdict="holds",
            further=(Throughout("weak", "alone", True, 3, 10), Reading("Where it was", "0 (2)")),
        )
    ],
)
BYTES = Claim("", "Bytes stored", [Finding((Reading("pixels", "2,560"), Reading("basis", "80")))])
CLAIMS = [COSTS, OVERTAKES, BYTES, Claim("Paper (figure 8)", "what nothing was measured on", [])]
TOLD = [
    "At 1 a class, strong, prefix: 60.0 ± 14.1 %; alone: 50.0 %; difference +0.5 points.",
    "At 3 a class, strong, prefix: 60.0 ± 14.1 %; alone: 50.0 %; difference -0.5 points.",
    "At 2 a class, weak: x: 0.753 ± 0.055; alone: y: 0.7; difference +0.05: as the paper says, in "
    "all 3 seeds. weak is above alone in all seeds at 3 of 10 places. Where it was: 0 (2).",
    "pixels: 2,560; basis: 80.",
]
VOID = {"meta", "link", "img", "br", "wbr"}


class Nesting(HTMLParser):
    """Raises an AssertionError if an element is not closed where it must be."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag


def table(quantity: Quantity, values: dict[tuple[str, float], list[float]]) -> Table:
    """A table of (way, place) -> a value for each seed."""
    rows = [
        Measurement(quantity.name, way, at, seed, value, None, 1, "")
        for (way, at), of in values.items()
        for seed, value in enumerate(of)
    ]
    return Table(tuple(rows), quantity)


class StudyPage(Page):
    """A page whose rows end with their table: what follows is no cell."""

    def handle_endtag(self, tag):
        super().handle_endtag(tag)
        if tag == "table":
            self.rows.append([])


TABLES = [
    table(BY_SIZE, {("strong", 1): [0.5, 0.7], ("strong", 2): [0.8, 0.8], (ODD, 2): [0.25]}),
    table(
        VARIANCE,
        {("a way with a rather long name", step): [1.0, 3.0] for step in range(50, 1001, 50)},
    ),
]


def plot(label: str = "one"):
    series = [Series(label, [1, 2], [0.1, 0.2], [0.1, 0.1]), Series("two", [1, 2], [0.2, 0.4])]
    return line_figure(
        series, "images per class", "test accuracy", error_bars=True, size=(560, 330)
    )


@pytest.fixture
def drawings(tmp_path) -> list[Drawing]:
    return drawn(tmp_path)


def drawn(folder: Path) -> list[Drawing]:
    """Two plots that are alike, one of another kind, and a picture in the folder."""
    Image.new("RGB", (498, 60), "red").save(folder / "set.png")
    dots = dot_figure([(ODD, 0.5, 0.1), ("two", 0.6, 0.1)], "test accuracy", percent=True)
    return [
        Drawing("first", "The first.", plot()),
        Drawing("second", "The second", plot()),
        Drawing("third", ODD, dots),
        Drawing("set", "The whole set", None),
    ]


def page(
    folder: Path,
    title="A study",
    about="What was run.",
    claims=(),
    drawings=(),
    tables=(),
    footnote="Over 3 seeds.",
) -> StudyPage:
    out = folder / "page.html"
    out.write_text(
        study_page(Told(title, about, claims, drawings, tables, footnote), folder), encoding="utf-8"
    )
    return StudyPage(out)


def test_a_page_is_whole_and_needs_nothing_beside_it(tmp_path, drawings):
    found = page(tmp_path, claims=CLAIMS, drawings=drawings, tables=TABLES)
    Nesting(found.source)
    assert not found.all("script")
    assert not re.search(r"https?://|@import|url\((?!#)", found.source)
    links = [
        value
        for _, values in found.elements
        for name, value in values.items()
        if name.endswith("href") or name == "src"
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert f'<meta name="generator" content="{MARK} ' in found.source[:1000]
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert all(values["scope"] in ("row", "col", "colgroup") for values in found.all("th"))


def test_an_element_that_is_not_closed_is_noticed():
    for wrong in ("<p><b></p></b>", "<ul><li></ul>", "<p>", "</p>"):
        with pytest.raises(AssertionError):
            Nesting(wrong)


def test_each_claim_is_told_once_with_all_that_was_measured_on_it(tmp_path):
    found = page(tmp_path, claims=CLAIMS)
    costs = f"Paper (figure 7): strong boosting costs little {TOLD[0]}{TOLD[1]}"
    overtakes = f"Paper (section 4.1): weak boosting overtakes {TOLD[2]}"
    assert f"{costs} {overtakes} Bytes stored {TOLD[3]}" in found.text
    assert len(found.all("h3")) == 3
    assert len(found.all("li")) == 4
    assert "60.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}14.1\N{NO-BREAK SPACE}%;" in found.source


def test_markdown_tells_the_same_claims():
    lines = Told("A study", "What was run.", CLAIMS, (), (), "").markdown().splitlines()
    assert lines[4:8] == [
        f"- Paper (figure 7): strong boosting costs little. {TOLD[0]}",
        f"- Paper (figure 7): strong boosting costs little. {TOLD[1]}",
        f"- Paper (section 4.1): weak boosting overtakes. {TOLD[2]}",
        f"- Bytes stored. {TOLD[3]}",
    ]
    assert not "".join(lines[8:])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1.0, 2.0), "as the paper says, in all 2 seeds"),
        ((-1.0, -2.0), "against what the paper says, in all 2 seeds"),
        ((1.0, -2.0), "undecided, the 2 seeds disagree"),
        ((1.0,), "one seed decides nothing"),
    ],
)
def test_a_verdict_stands_out(tmp_path, values, words):
    judged = Finding(
        (Reading("one", "2"),),
        difference=Reading("difference", "-1", values),
        verdict=verdict(values, 1),
    )
    found = page(tmp_path, claims=[Claim("Paper (figure 1)", "a claim", [judged])])
    assert f"<li>one: 2; difference -1: <strong>{words}</strong>.</li>" in found.source


def test_what_is_no_verdict_does_not_stand_out(tmp_path):
    # Not even where the words of a finding say what those of a verdict do.
    alike = Finding((Reading("one", "as the paper says, in all 3 seeds"),))
    claims = [COSTS, BYTES, Claim("", "an account", [alike])]
    assert "<strong>" not in page(tmp_path, claims=claims).source


def test_tables_hold_every_number(tmp_path):
    found = page(tmp_path, tables=TABLES)
    # The sample deviation of 0.5 and 0.7 is 0.2 / sqrt(2), that of 1 and 3 is sqrt(2).
    assert found.rows[:4] == [
        ["", "images per class"],
        ["1", "2"],
        ["strong", "60.0 ± 14.1 %", "80.0 ± 0.0 %"],
        [ODD, "", "25.0 %"],
    ]
    assert found.rows[4:6] == [[], ["", "outer step"]]
    assert [found.rows[6][0], found.rows[6][-1]] == ["50", "1000"]
    assert found.rows[7:] == [["a way with a rather long name", *["2 ± 1.4"] * 6], []]
    assert "6 of the 20 places that were measured." in found.text
    assert found.text.count(" places that were measured") == 1
    assert all(len(row) == len(found.rows[1]) + 1 for row in found.rows[2:4])
    assert [region["aria-label"] for region in found.all("div")] == [
        "test accuracy by images per class",
        "variance by outer step",
    ]


def test_figures_are_inline_and_their_ids_do_not_collide(tmp_path, drawings):
    found = page(tmp_path, drawings=drawings)
    charts = re.findall(r"<svg.*?</svg>", found.source, re.DOTALL)
    own = [re.findall(r' id="([^"]*)"', chart) for chart in charts]
    assert len(charts) == 3
    assert all(own)
    assert len({name for names in own for name in names}) == sum(map(len, own))
    for chart, names in zip(charts, own, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart)) == set(names)
    assert len(found.all("figcaption")) == 4
    alternatives = [svg["aria-label"] for svg in found.all("svg")]
    assert alternatives == [
        f"{words}. The tables have its numbers." for words in ("The first", "The second", ODD)
    ]
    assert "test accuracy" in found.texts
    assert found.texts.count("two") == 3


def test_a_picture_is_embedded(tmp_path, drawings):
    (image,) = page(tmp_path, drawings=drawings).all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "set.png").read_bytes()
    assert image["alt"] == "The whole set"


def test_any_text_is_shown_as_it_is(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "set.png")
    quantity = Quantity(ODD, ODD)
    odd_finding = Finding(
        (Reading(ODD, ODD),), ODD, ODD, conclusion=ODD, further=(Reading(ODD, ODD),)
    )
    claim = Claim(ODD, ODD, [odd_finding])
    odd = table(quantity, {(ODD, 1): [1.0]})
    found = page(
        tmp_path, ODD, ODD, [claim], [Drawing("a", ODD, plot(ODD)), Drawing("set", ODD)], [odd], ODD
    )
    Nesting(found.source)
    assert not found.all("b")
    assert found.all("img")[0]["alt"] == ODD
    assert [region["aria-label"] for region in found.all("div") if "role" in region] == [
        f"{ODD} by {ODD}"
    ]
    assert found.rows == [["", ODD], ["1"], [ODD, "1"], []]
    as_code = ODD.replace("`", "")  # about, footnote, and seven in the finding
    assert found.text.count(as_code) == 9
    assert found.source.count("<code>a&lt;b</code>") == 9
    # Both titles, the claim and its source, two captions, the legend, and the table's heading,
    # place and way.
    assert found.text.count(ODD) == 10


def test_what_a_study_lacks_has_no_heading(tmp_path, drawings):
    parts = {"claims": CLAIMS, "drawings": drawings, "tables": TABLES}
    for left_out in parts:
        found = page(tmp_path, **{name: part for name, part in parts.items() if name != left_out})
        assert len(found.all("h2")) == 2
    assert not page(tmp_path).all("h2")


def test_equal_studies_give_equal_pages(tmp_path):
    first, second = (
        page(tmp_path, claims=CLAIMS, drawings=drawn(tmp_path), tables=TABLES).source
        for _ in range(2)
    )
    assert first == second


def test_a_page_fits_any_width(tmp_path, drawings):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip("needs Chromium")
    page(
        tmp_path,
        "A study of supercalifragilisticexpialidocious distillation",
        "",
        CLAIMS,
        drawings,
        TABLES,
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in itertools.product((390, 800, 1280), ("light", "dark")):
            shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            said: list[str] = []
            shown.on("console", lambda message, said=said: said.append(message.text))
            shown.on("pageerror", lambda error, said=said: said.append(str(error)))
            shown.goto((tmp_path / "page.html").as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            # Every figure lies in the page, at most two plots side by side, and its text has the
            # page's colour.
            boxes = [figure.bounding_box() for figure in shown.query_selector_all("figure")]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
            assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1280)
            assert boxes[1]["y"] < boxes[2]["y"]
            assert shown.evaluate(
                """[...document.querySelectorAll("svg.chart text")].every(
                    text => getComputedStyle(text).fill
                        === getComputedStyle(document.body).color)"""
            )
            assert shown.evaluate("[...document.images].every(image => image.naturalWidth === 498)")
            # What is too wide for a phone can be reached by scrolling its own box.
            boxed = (
                "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth > "
                "box.clientWidth)"
            )
            assert shown.evaluate(boxed)[1] == (width == 390)
            assert not said
            shown.close()
        browser.close()
