"""A study as a page: in Markdown, and as one HTML page that needs no other file."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

import potstill
from potstill.reports.plots import Drawing, inline_svg
from potstill.reports.templates import environment
from potstill.studies.claims import Claim, Finding, Reading, Throughout, Verdict
from potstill.studies.results import Grid, Table, grids

MARK = "potstill study"
"""In the page's <meta name="generator">."""
SORTING = (Path(__file__).parent / "sorting.js").read_text(encoding="utf-8")
"""The one script of the page, which its content policy knows by its hash."""
VERDICTS: dict[Verdict, str] = {
    "holds": "as the paper says, in all {} seeds",
    "against": "against what the paper says, in all {} seeds",
    "undecided": "undecided, the {} seeds disagree",
    "one seed": "one seed decides nothing",
}


@dataclass(frozen=True)
class Told:
    """The content of a study's page.

    Args:
        title: the study's.
        about: what was run.
        claims: each once, with everything that was measured on it.
        drawings: figures, in the order in which they are shown.
        tables: one for each quantity.
        footnote: what the figures are means over, and what they were measured with.
        caution: what is to be known before them; may be empty.
    """

    title: str
    about: str
    claims: Sequence[Claim]
    drawings: Sequence[Drawing]
    tables: Sequence[Table]
    footnote: str
    caution: str = ""

    def markdown(self) -> str:
        """Write the study as a page of Markdown that shows the figures beside it."""
        caution = [f"**{self.caution}**", ""] * bool(self.caution)
        first, rest = in_order(grids(self.tables))
        lines = [f"# {self.title}", "", *caution, self.about]
        for grid in first:
            lines += rows_of(grid)
        lines.append("")
        for claim in self.claims:
            source = f"{claim.source}: " if claim.source else ""
            lines += [f"- {source}{claim.words}. {sentence(finding)}" for finding in claim.findings]
        for drawing in self.drawings:
            file = f"{drawing.name}.{'svg' if drawing.plot else 'png'}"
            lines += ["", f"![{drawing.caption}]({file})", "", f"*{drawing.caption}*"]
        for grid in rest:
            lines += rows_of(grid)
        return "\n".join([*lines, "", self.footnote, ""])


def in_order(tables: Sequence[Grid]) -> tuple[list[Grid], list[Grid]]:
    """Return the tables that tell all at once, which come first, and those of one quantity."""
    return [one for one in tables if not one.corner], [one for one in tables if one.corner]


def rows_of(grid: Grid) -> list[str]:
    """Return a table as lines of Markdown, after an empty one."""
    corner = f"{grid.name}, by {grid.corner}" if grid.corner else grid.name
    heads = corner, *grid.heads
    lines = ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way, cells in grid.rows:
        lines.append(f"| {' | '.join((way, *(words for words, _ in cells)))} |")
    return lines


def study_page(told: Told, folder: Path) -> str:
    """Write the study as an HTML page.

    Args:
        told: the study.
        folder: where the pictures lie that are drawn already.
    """
    first, rest = in_order(grids(told.tables))
    measured = [claim for claim in told.claims if claim.findings]
    numbered = enumerate(told.drawings)
    return (
        environment()
        .get_template("studies/study.html.jinja")
        .render(
            title=told.title,
            about=text(told.about),
            caution=text(told.caution),
            claims=[(claim, list(map(marked, claim.findings))) for claim in measured],
            drawings=[
                (each, picture(each, f"figure{number}", folder)) for number, each in numbered
            ],
            together=first,
            tables=rest,
            footnote=text(told.footnote),
            sorting=Markup(SORTING),
            sorting_hash=base64.b64encode(hashlib.sha256(SORTING.encode()).digest()).decode(),
            generator=f"{MARK} {potstill.__version__}",
            version=potstill.__version__,
        )
    )


def parts(finding: Finding) -> tuple[str, str, str]:
    """Return the texts of a finding: what was measured, the verdict or "", and what follows."""
    figures = [f"{reading.name}: {reading.words}" for reading in finding.readings]
    if finding.difference:
        figures.append(f"{finding.difference.name} {finding.difference.words}")
    if finding.conclusion:
        figures.append(finding.conclusion)
    where = f"{finding.where}, " if finding.where else ""
    what = f"{finding.what} " if finding.what else ""
    judged = VERDICTS[finding.verdict].format(finding.seeds) if finding.verdict else ""
    measured = f"{where}{what}{'; '.join(figures)}{': ' if judged else ''}"
    return measured, judged, " ".join([".", *map(in_addition, finding.further)])


def in_addition(more: Reading | Throughout) -> str:
    """Return a sentence for what belongs to a finding."""
    if isinstance(more, Reading):
        return f"{more.name}: {more.words}."
    relation = "above" if more.above else "below"
    counted = f"{more.agreed} of {more.positions} places"
    return f"{more.first} is {relation} {more.second} in all seeds at {counted}."


def sentence(finding: Finding) -> str:
    """Tell a finding in plain words."""
    return "".join(parts(finding))


def marked(finding: Finding) -> Markup:
    """Tell a finding for the HTML page, where its verdict stands out."""
    measured, judged, rest = parts(finding)
    strong = Markup("<strong>{}</strong>").format(judged) if judged else ""
    return text(measured) + strong + text(rest)


def text(words: str) -> Markup:
    """Format words for the HTML page: `names` as code, and no line break within a number."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words)))
    return Markup(re.sub(r"(?<=[\d±]) (?=[\d±%])", "\N{NO-BREAK SPACE}", html))


def picture(drawing: Drawing, name: str, folder: Path) -> Markup:
    """Return a drawing as an element of the page.

    Args:
        drawing: its plot, or the name of its picture.
        name: unique in the page.
        folder: where the picture lies.
    """
    if drawing.plot:
        alternative = f"{drawing.caption.rstrip('.')}. The tables have its numbers."
        return inline_svg(drawing.plot, name, alternative)
    data = base64.b64encode((folder / f"{drawing.name}.png").read_bytes()).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, drawing.caption)
