"""The report in a browser, where there is one: every picture is drawn, nothing scrolls sideways,
print is dark on white.
"""

import shutil
from pathlib import Path

import pytest
from test_report import ALL, places  # noqa: F401 (a fixture)

from potstill.reports.report import write_report
from potstill.studies.methods import COMMON, STEPS
from potstill.studies.page import Told, study_page
from potstill.studies.results import Measurement, Results

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def pages(places, tmp_path_factory) -> dict[str, Path]:  # noqa: F811
    """A page for each run, and one that compares them."""
    folder = tmp_path_factory.mktemp("pages")
    wanted = {**{str(place): [name] for place, name in enumerate(ALL)}, "all": ALL}
    for name, members in wanted.items():
        write_report([places / member for member in members], folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in wanted}


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_study_s_table_sorts_by_the_column_that_is_clicked(browser, tmp_path):
    rows = [
        Measurement(quantity.name, way, 1, 0, value, None, 1, "")
        for way, value, steps in (("dm", 0.6, 9), ("kip", 0.7, 1), ("dc", 0.5, 12))
        for quantity, value in ((COMMON, value), (STEPS, steps))
    ] + [Measurement(STEPS.name, "random", 1, 0, 5, None, 1, "")]
    tables = Results(tuple(rows), (COMMON, STEPS)).tables
    path = tmp_path / "study.html"
    told = Told("A study", "About.", (), (), tables, "Note.")
    path.write_text(study_page(told, tmp_path), encoding="utf-8")
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    names = "[...document.querySelectorAll('tbody th')].map(cell => cell.textContent)"
    assert page.evaluate(names) == ["dm", "kip", "dc", "random"]
    accuracy, steps = page.query_selector_all("th button")
    accuracy.click()
    assert page.evaluate(names) == ["kip", "dm", "dc", "random"]  # empty cells last
    accuracy.click()
    assert page.evaluate(names) == ["dc", "dm", "kip", "random"]
    steps.press("Enter")
    assert page.evaluate(names) == ["dc", "dm", "random", "kip"]
    sorted_by = "[...document.querySelectorAll('[aria-sort]')].map(one => one.textContent)"
    assert page.evaluate(sorted_by) == ["outer steps"]
    assert said == []
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_drawn_whole_at_any_width(browser, pages, width, scheme):
    for path in pages.values():
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))  # noqa: B023
        page.on("pageerror", lambda error: said.append(str(error)))  # noqa: B023
        page.on(
            "request",
            lambda request: (
                said.append(request.url)  # noqa: B023
                if request.url[:5] not in ("file:", "data:")
                else None
            ),
        )
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate(
            "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        ), path
        # A figure's text is of one colour with the page's, at its own size or larger, and inside
        # the figure.
        assert page.evaluate(
            """[...document.querySelectorAll("svg.chart text")].every(text => {
                const inner = text.getBoundingClientRect();
                const outer = text.closest("svg").getBoundingClientRect();
                return getComputedStyle(text).fill === getComputedStyle(document.body).color
                    && inner.left >= outer.left - 2 && inner.right <= outer.right + 2;
            })"""
        ), path
        assert not said
        page.close()


def test_print_is_dark_on_white(browser, pages):
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["0"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.pdf()[:5] == b"%PDF-"
    page.close()


def test_tables_are_read_as_they_are_written(browser, pages):
    page = browser.new_page()
    page.goto(pages["all"].as_uri())
    cells = page.evaluate(
        """[...document.querySelectorAll("table.table")[0].rows]
            .map(row => [...row.cells].map(cell => cell.innerText))"""
    )
    assert cells[0][1:] == ALL
    assert cells[1] == ["Outer steps", "12 of 12", "12 of 12", "12 of 12", "6 of 12"]
    page.close()
