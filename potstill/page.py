"""A study as it is told: in Markdown, and as one HTML page that needs nothing beside it."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import potstill
from potstill.figures import Drawing, inline_svg
from potstill.results import Table

MARK = "potstill study"
"""In the page's <meta name="generator">."""
CLAIM = re.compile(r"(Paper \([^)]*\)|Not in the paper(?:'s words)?): (.+?)\. (.+)", re.DOTALL)
"""Where in the paper, what it says, and what was measured."""
VERDICT = re.compile(r": ([^:;.]*(?:the paper says|undecided|decides nothing)[^:;.]*)\.")
"""The end of a sentence that says whether a claim held; `results.verdict` words it."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and all that was measured on it.

    Args:
        source: where the paper says it; empty with `words` for sentences of another form.
        words: what it says.
        found: what was measured, a sentence each.
    """

    source: str
    words: str
    found: list[Markup]


@dataclass(frozen=True)
class Told:
    """A study as it is told.

    Args:
        title: the study's.
        about: what was run.
        claims: sentences; of the form "Paper (where): what it says. What was measured: verdict." or another.
        drawings: figures, in the order in which they are shown.
        tables: one a quantity.
        footnote: what the figures are means over, and what they were measured with.
    """

    title: str
    about: str
    claims: Sequence[str]
    drawings: Sequence[Drawing]
    tables: Sequence[Table]
    footnote: str

    def markdown(self) -> str:
        """The study in a page of Markdown that shows the figures beside it."""
        lines = [f"# {self.title}", "", self.about, "", *(f"- {claim}" for claim in self.claims)]
        for drawing in self.drawings:
            lines += ["", f"![{drawing.caption}]({drawing.name}.{'svg' if drawing.plot else 'png'})", "", f"*{drawing.caption}*"]
        for table in self.tables:
            places = table.shown_places()
            lines += [
                "",
                f"| {table.quantity.name}, by {table.quantity.place} | {' | '.join(map(table.quantity.name_of, places))} |",
            ]
            lines += ["|---" * (1 + len(places)) + "|"]
            lines += [f"| {way} | {' | '.join(table.words(way, at) for at in places)} |" for way in table.ways()]
        return "\n".join([*lines, "", self.footnote, ""])


def study_page(told: Told, folder: Path) -> str:
    """The HTML page's text; `folder` is where the pictures lie that are drawn already."""
    return (
        environment()
        .get_template("study.html.jinja")
        .render(
            title=told.title,
            about=text(told.about),
            claims=by_claim(told.claims),
            drawings=[(drawing, picture(drawing, f"figure{place}", folder)) for place, drawing in enumerate(told.drawings)],
            tables=told.tables,
            footnote=text(told.footnote),
            generator=f"{MARK} {potstill.__version__}",
            version=potstill.__version__,
        )
    )


def environment() -> jinja2.Environment:
    """Templates of this package: all text is escaped, and what is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("potstill", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def by_claim(sentences: Sequence[str]) -> list[Claim]:
    """The sentences under the claims that they begin with, each claim once; first those of another form, then as they appear."""
    claims: dict[tuple[str, str], list[Markup]] = {}
    for sentence in sentences:
        parts = CLAIM.fullmatch(sentence)
        source, words, found = parts.groups() if parts else ("", "", sentence)
        claims.setdefault((source, words), []).append(text(found))
    # Without a heading of their own, sentences that came later would look as if they belonged to the claim before them.
    return sorted((Claim(*claim, found) for claim, found in claims.items()), key=lambda claim: claim.words != "")


def text(words: str) -> Markup:
    """Words for the page: `names` are set as code, a verdict at the end stands out, and no line ends within a number."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words)))
    html = re.sub(r"(?<=[\d±]) (?=[\d±%])", "\N{NO-BREAK SPACE}", html)
    return Markup(VERDICT.sub(r": <strong>\1</strong>.", html))


def picture(drawing: Drawing, name: str, folder: Path) -> Markup:
    """A drawing as an element of the page.

    Args:
        drawing: its plot, or the name of its picture.
        name: unique in the page.
        folder: where the picture lies.
    """
    if drawing.plot:
        return inline_svg(drawing.plot, name, f"{drawing.caption.rstrip('.')}. The tables have its numbers.")
    data = base64.b64encode((folder / f"{drawing.name}.png").read_bytes()).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, drawing.caption)
