"""Line plots in one style: as files on white, and as SVG that takes a page's colours."""

import io
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from potstill.files import write

INK, FAINT, PAPER = "#2b2b30", "#d8d8dd", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a60")
"""Okabe and Ito's, told apart by colour-blind readers too, without the yellow and the black."""
VARIABLES = {INK: "ink", FAINT: "line", PAPER: "paper"} | {
    colour: f"series-{place}" for place, colour in enumerate(COLOURS)
}
"""Colour in a file -> the page's CSS variable in its place."""
DASHES, MARKERS = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))), "os^DvPX"
WIDTH, HEIGHT, LEGEND_ROW = 352, 210, 17
"""CSS pixels: as wide as a phone's column, so that the text is read at its own size there."""
FEW, MANY_DECADES = 40, 500
"""Points that still have a marker each; the ratio over which a log axis names powers of 10 only."""
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "potstill",
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Series:
    """A line: means with their spread.

    Args:
        label: for the legend; any text.
        x: (n,) ascending.
        mean: (n,); NaN where nothing was measured.
        spread: (n,) the standard deviation, or (2, n) the distances below and above; NaN where
            there is none.
        look: index of colour, dash and marker, which a line keeps over several figures; None: its
            index in the figure.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    spread: Sequence[float] | Sequence[Sequence[float]] | None = None
    look: int | None = None


@dataclass(frozen=True)
class Marks:
    """Points that stand out, such as clipped steps."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    marker: str = "v"


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption, as a study shows it.

    Args:
        name: of its files in the study's folder, without a suffix.
        caption: what it shows.
        plot: the figure; None for a picture that is in the folder, as PNG.
    """

    name: str
    caption: str
    plot: Figure | None = None


def line_figure(
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = False,
    error_bars: bool = False,
    y_limits: tuple[float, float] | None = None,
    marks: Sequence[Marks] = (),
    boundaries: Mapping[float, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Figure:
    """Draw lines over one pair of axes, told apart by colour, marker and dash.

    Several lines have a legend.

    Args:
        series: the lines, in the legend's order.
        x_label: below the axis.
        y_label: above the axis, in reading direction.
        log_x: x on a log scale, with ticks at the measured places.
        log_y: y on a log scale.
        percent: y are fractions and read as percentages.
        error_bars: show the spread as bars at the points instead of as a band.
        y_limits: where the y axis begins and ends; None: where the lines do.
        marks: points that stand out.
        boundaries: x -> a short word for what begins there, above a dotted vertical line.
        size: (width, height) in CSS pixels without the legend, which is put on top.
    """
    named: list[Series | Marks] = [*series, *marks] if len(series) + len(marks) > 1 else []
    columns = max(1, size[0] // (50 + 6 * max((len(one.label) for one in named), default=1)))
    legend = LEGEND_ROW * -(-len(named) // columns)
    with styled():
        figure = Figure(figsize=(size[0] / 72, (size[1] + legend) / 72))
        axes = figure.subplots()
        handles = [
            draw(axes, one, place if one.look is None else one.look, error_bars)
            for place, one in enumerate(series)
        ]
        handles += [
            axes.plot(one.x, one.y, ls="", marker=one.marker, color=COLOURS[1])[0] for one in marks
        ]
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_title(y_label, loc="left", parse_math=False)
        scale(axes, series, log_x, log_y, percent)
        if y_limits:
            axes.set_ylim(*y_limits)
        for x, word in (boundaries or {}).items():
            axes.axvline(x, color=INK, lw=0.8, ls=":")
            axes.text(x, 1.01, word, size=9, transform=axes.get_xaxis_transform(), parse_math=False)
        if named:
            # The labels are set afterwards: as arguments, those that begin with "_" would be left
            # out.
            shown = figure.legend(
                handles, ["x"] * len(named), loc="outside upper left", ncols=columns, frameon=False
            )
            for text, one in zip(shown.get_texts(), named, strict=True):
                text.set_parse_math(False)
                text.set_text(one.label)
    return figure


def dot_figure(
    rows: Sequence[tuple[str, float, float]],
    x_label: str,
    *,
    percent: bool = False,
    width: int = 560,
) -> Figure:
    """Draw a dot with its spread for each row, the first on top.

    Args:
        rows: (label, mean, standard deviation or NaN).
        x_label: below the axis.
        percent: values are fractions and read as percentages.
        width: in CSS pixels.
    """
    with styled():
        figure = Figure(figsize=(width / 72, (60 + 26 * len(rows)) / 72))
        axes = figure.subplots()
        for place, (_, mean, deviation) in enumerate(rows):
            axes.errorbar(
                mean,
                -place,
                xerr=np.nan_to_num(deviation),
                fmt="o",
                color=COLOURS[0],
                capsize=3,
                elinewidth=1,
            )
        axes.set_yticks([-place for place in range(len(rows))])
        axes.set_yticklabels([label for label, _, _ in rows], parse_math=False)
        axes.set_xlabel(x_label, parse_math=False)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:.3g} %" if percent else f"{value:g}")
        )
    return figure


def strata_figure(
    series: Sequence[Series],
    counts: Sequence[float],
    names: Sequence[str],
    x_label: str,
    y_label: str,
    count_label: str,
) -> Figure:
    """Draw lines of fractions over ordered groups and, below, the share of each group.

    Args:
        series: the lines; x counts the groups from 0.
        counts: (n,) the share of each group, a fraction.
        names: (n,) of the groups.
        x_label: what tells the groups apart.
        y_label: of the lines.
        count_label: of the shares.
    """
    places = range(len(names))
    with styled():
        figure = line_figure(series, "", y_label, percent=True, error_bars=True, size=(560, 430))
        (above,) = figure.axes
        below = figure.add_subplot(sharex=above)
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 1))
        above.set_subplotspec(grid[0])
        below.set_subplotspec(grid[1])
        below.bar(places, counts, width=0.7, color=FAINT, edgecolor=INK, lw=0.6)
        below.set_title(count_label, loc="left", parse_math=False)
        below.set_xlabel(x_label, parse_math=False)
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        below.set_xticks(places, names, parse_math=False)
        above.tick_params(labelbottom=False)
    return figure


@contextmanager
def styled() -> Iterator[None]:
    """Apply potstill's style to what is drawn inside.

    A character that the font lacks is a box in a PNG file, without a warning.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        yield


def draw(axes: Axes, series: Series, look: int, error_bars: bool) -> Any:
    """Draw a line, and return the artist that represents it in the legend.

    Args:
        axes: where to draw.
        series: the line.
        look: index of colour, dash and marker.
        error_bars: show the spread as bars instead of as a band.
    """
    x, mean = np.asarray(series.x, float), np.asarray(series.mean, float)
    looks: dict[str, Any] = {
        "color": COLOURS[look % len(COLOURS)],
        "ls": DASHES[look % len(DASHES)],
    }
    looks |= {
        "marker": MARKERS[look % len(MARKERS)],
        "markevery": 1 if len(x) <= FEW else len(x) // 8,
    }
    if look == 0 and len(x) > FEW:  # a long line that is solid needs none
        looks["marker"] = ""
    if series.spread is None:
        return axes.plot(x, mean, **looks)[0]
    spread = np.asarray(series.spread, float)
    if error_bars:
        return axes.errorbar(x, mean, np.nan_to_num(spread), capsize=3, elinewidth=1, **looks)
    below, above = spread if spread.ndim == 2 else (spread, spread)
    axes.fill_between(x, mean - below, mean + above, color=looks["color"], alpha=0.2, lw=0)
    return axes.plot(x, mean, **looks)[0]


def scale(axes: Axes, series: Sequence[Series], log_x: bool, log_y: bool, percent: bool) -> None:
    """Set scales and ticks: plain numbers, at the measured x values if they are few.

    Args:
        axes: to set.
        series: the lines, with their x values.
        log_x: x on a log scale.
        log_y: y on a log scale.
        percent: y are fractions and read as percentages.
    """
    plain = FuncFormatter(lambda value, _: f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}")
    places = sorted({float(x) for one in series for x in one.x})
    if log_x:
        axes.set_xscale("log")
    few = len(places) <= 6
    axes.xaxis.set_major_locator(
        FixedLocator(places, nbins=8)
        if few or log_x
        else MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10])
    )
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high < MANY_DECADES * low else (1,))
        )
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.3g} %") if percent else plain
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PATH.png and PATH.svg, on white; equal figures give equal bytes.

    Raises:
        InputError: no space, no permission.
    """
    for suffix in ("png", "svg"):
        write(path.with_name(f"{path.name}.{suffix}"), rendered(figure, suffix))


def rendered(figure: Figure, format: str) -> bytes:
    """Return the bytes of the figure's file, without date and program."""
    buffer = io.BytesIO()
    nothing = ("Date", "Creator", "Format", "Type") if format == "svg" else ("Software",)
    with styled():
        figure.savefig(buffer, format=format, metadata=dict.fromkeys(nothing))
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, alternative: str) -> Markup:
    """Return a figure as an element of an HTML page.

    Args:
        figure: from `line_figure`.
        name: unique in the page; its ids begin with it.
        alternative: what a reader is told who does not see it.
    Returns:
        An <svg class="chart"> without size; its colours are the page's variables --ink, --line,
        --paper and --series-0 to -6.
    """
    svg = rendered(figure, "svg").decode()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box, "matplotlib writes a viewBox"
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    used = set(re.findall(r'(?:xlink:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r"<[^>]*>", lambda tag: adapted(tag[0], name, used), re.sub(r"\n\s*", "\n", svg))
    return Markup(
        f'<svg class="chart" role="img" aria-label="{escape(alternative)}" {box[0]}>{svg}'
    )


def adapted(tag: str, name: str, used: Collection[str]) -> str:
    """Adapt a tag of a figure's file to its page; text between tags stays as it is.

    Args:
        tag: from "<" to ">".
        name: what ids are to begin with.
        used: the ids that something refers to; the others go.
    """
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)  # the page's own font
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"font-family:[^;\"]*; ", "", tag))
    tag = re.sub(
        r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", tag
    )
    return re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", tag)
