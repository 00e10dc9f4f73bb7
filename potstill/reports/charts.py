"""The curves of a report: what runs logged, and accuracy against images per class."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from potstill.methods.base import Method
from potstill.records.metrics import Figure
from potstill.reports.plots import Marks, Series, inline_svg, line_figure
from potstill.reports.run_summary import Log, Measured, Numbers

MOST_POINTS = 100
"""Longer curves are drawn as medians of bins: more points than this show noise, not the course, at
a phone's width.
"""
LEAST_BIN = 5
"""Steps; a median and quartiles of fewer say little."""
CURVES = (
    (
        "loss",
        "Outer loss",
        "{loss}",
        "as it is",
    ),
    (
        "grad_norm",
        "Meta-gradient norm",
        "How strongly the outer loss asks the synthetic {noun}s to change, on a logarithmic scale.",
        "log",
    ),
    ("seconds", "Seconds per outer step", "Without validation.", "from 0"),
    (
        "memory_mb",
        "Memory in MB",
        "The most that the process (on CUDA: its tensors) had used by each step.",
        "from 0",
    ),
)
"""(name in the log, title, caption, axis label)."""
MOST_OF_USUAL = 3
"""An axis from 0 ends at most at this times the 90th percentile: the first steps, which warm up,
would dwarf the others.
"""


@dataclass(frozen=True)
class Chart:
    """A figure of the page with its title and the words below it."""

    title: str
    caption: str
    svg: Markup


def log_charts(
    logs: Mapping[str, Log],
    prefix: str,
    noun: str = "image",
    loss_words: str = Method.loss_words,
) -> list[Chart]:
    """Draw the curves of a run, or of several overlaid; quantities that no run logged are left out.

    Args:
        logs: a run's name -> what it logged.
        prefix: of the ids in the figures, unique in the page.
        noun: what an example is called.
        loss_words: what the loss is, of `Method.loss_words`.
    """
    loss = loss_words.format(noun=noun)
    charts = [
        logged_chart(
            logs, key, title, caption.format(noun=noun, loss=loss), axis, f"{prefix}-{key}"
        )
        for key, title, caption, axis in CURVES
    ]
    charts.insert(1, validation_chart(logs, f"{prefix}-validation", noun))
    return [chart for chart in charts if chart]


def logged_chart(
    logs: Mapping[str, Log], key: str, title: str, caption: str, axis: str, prefix: str
) -> Chart | None:
    """Draw one quantity that was logged at every step.

    A single run also shows the spread within bins, its blocks, and clipped and skipped steps.

    Args:
        logs: a run's name -> what it logged.
        key: name of the quantity in the log.
        title: of the chart.
        caption: the words below it.
        axis: label of the y axis.
        prefix: of the ids in the figure, unique in the page.
    """
    looks = {
        name: look
        for look, (name, log) in enumerate(logs.items())
        if np.nan_to_num(log.values[key]).any()
    }
    if not looks:
        return None
    sizes = [bin_size(len(logs[name].step)) for name in looks]
    series = [logged(name, logs[name], key, look) for name, look in looks.items()]
    words, marks, limits = [caption], [], None
    if max(sizes) > 1:
        size = (
            f"{sizes[0]:,} steps; the band holds their middle half"
            if len(looks) == 1
            else "several steps"
        )
        words.append(f"Each point is the median of {size}.")
    if len(looks) > 1:
        series = [dataclasses.replace(one, spread=None) for one in series]
    elif key == "grad_norm":
        (log,) = (logs[name] for name in looks)
        marks = clip_marks(log)
        words.append(clip_words(log))
        series = [dataclasses.replace(series[0], label="median" if sizes[0] > 1 else "norm")]
    if axis == "from 0":
        limits, beyond = limits_from_zero(series)
        words += [f"Single points go up to {beyond:.3g}, beyond the axis."] if beyond else []
    figure = line_figure(
        series,
        "outer step",
        log_y=axis == "log",
        y_limits=limits,
        marks=marks,
        boundaries=boundaries(logs),
    )
    return Chart(
        title,
        " ".join(words),
        inline_svg(figure, prefix, f"{title} over outer steps. {course(series)}"),
    )


def logged(label: str, log: Log, key: str, look: int) -> Series:
    """Return the line of a logged quantity.

    Args:
        label: for the legend.
        log: of the run.
        key: name of the quantity in the log.
        look: index of colour, dash and marker.
    """
    size = bin_size(len(log.step))
    return dataclasses.replace(
        binned(label, log.step, log.values[key], bins(log.block.tolist(), size), size), look=look
    )


def boundaries(logs: Mapping[str, Log]) -> dict[float, str]:
    """Return where blocks begin, in the curves of a single run: step -> label."""
    return next(iter(logs.values())).block_starts if len(logs) == 1 else {}


def limits_from_zero(series: Sequence[Series]) -> tuple[tuple[float, float], float | None]:
    """Return the limits of an axis from 0, and the greatest value if it lies beyond them."""
    values = np.concatenate([np.asarray(one.mean) for one in series])
    greatest, usual = float(np.nanmax(values)), float(np.nanquantile(values, 0.9))
    top = min(1.1 * greatest, MOST_OF_USUAL * usual or greatest)
    return (0, top), (greatest if greatest > top else None)


def validation_chart(logs: Mapping[str, Log], prefix: str, noun: str) -> Chart | None:
    """Draw the accuracy on validation data, where it was measured."""
    shown = {name: log for name, log in logs.items() if log.validations}
    if not shown:
        return None
    series = [
        validated(name, log, look)
        for look, (name, log) in enumerate(logs.items())
        if log.validations
    ]
    counts = {figure.n for log in shown.values() for _, figure in log.validations}
    networks = " or ".join(f"{count:,}" for count in sorted(counts))
    words = (
        f"Accuracy on held-out validation {noun}s of {networks} fresh "
        f"network{'s' * (counts != {1})} trained on the set"
    )
    sizes = {bin_size(len(log.validations)) for log in shown.values()}
    if sizes != {1}:
        words += (
            ". Each point is the median of "
            f"{f'{max(sizes)} validations' if len(logs) == 1 else 'several validations'}"
        )
        words += "; the band holds their middle half."
    else:
        words += "; the band is one standard deviation." if counts != {1} else "."
    figure = line_figure(series, "outer step", percent=True, boundaries=boundaries(logs))
    alternative = f"Validation accuracy over outer steps. {course(series, percent=True)}"
    return Chart("Validation accuracy", words, inline_svg(figure, prefix, alternative))


def validated(label: str, log: Log, look: int) -> Series:
    """Return the line of validations with their standard deviations.

    Many validations are shown as medians and quartiles, as other quantities are.
    """
    steps = np.array([step for step, _ in log.validations], float)
    means = np.array([figure.mean for _, figure in log.validations])
    size = bin_size(len(steps))
    if size == 1:
        return Series(
            label,
            steps.tolist(),
            means.tolist(),
            deviations([figure for _, figure in log.validations]),
            look,
        )
    block_of = dict(zip(log.step.tolist(), log.block.tolist(), strict=True))
    result = binned(
        label, steps, means, bins([block_of[step] for step in steps.tolist()], size), size
    )
    return dataclasses.replace(result, look=look)


def budget_chart(measured: Sequence[Measured], prefix: str, noun: str = "image") -> Chart | None:
    """Draw test accuracy against examples per class; None unless measured at several budgets."""
    names = {"distilled": "distilled", "random": f"random real {noun}s"}
    result: dict[str, dict[int, Figure]] = {name: {} for name in names}
    for row in (
        row for one in measured if one.standard for row in one.record.rows if row.name in names
    ):
        result[row.name][row.ipc] = row.accuracy
    series = [
        Series(
            names[name],
            sorted(at),
            [at[ipc].mean for ipc in sorted(at)],
            deviations([at[ipc] for ipc in sorted(at)]),
        )
        for name, at in result.items()
        if at
    ]
    if len(result["distilled"]) < 2:
        return None
    budgets = sorted(result["distilled"])
    figure = line_figure(
        series,
        f"{noun}s per class",
        percent=True,
        error_bars=True,
        log_x=budgets[-1] >= 10 * budgets[0],
    )
    words = (
        "Each prefix of the set is a set of its own: its first block, its first two, and so on. "
        "Bars are one standard deviation."
    )
    alternative = (
        f"Test accuracy against {noun}s per class. {course(series, percent=True, unit='per class')}"
    )
    return Chart(f"Accuracy by {noun}s per class", words, inline_svg(figure, prefix, alternative))


def bin_size(steps: int) -> int:
    """Return the steps in a bin, so that a curve keeps at most `MOST_POINTS` points.

    There may be one more point for each block.
    """
    return 1 if steps <= MOST_POINTS else max(LEAST_BIN, -(-steps // MOST_POINTS))


def bins(block: Sequence[float], size: int) -> list[NDArray[np.intp]]:
    """Return the indices in each bin; no bin spans two blocks.

    A bin has `size` indices, or fewer at the end of a block.
    """
    edges = [index for index in range(1, len(block)) if block[index] != block[index - 1]]
    parts = np.split(np.arange(len(block)), edges)
    return [chunk for part in parts for chunk in np.split(part, range(size, len(part), size))]


def binned(
    label: str, x: Numbers, values: Numbers, groups: Sequence[NDArray[np.intp]], size: int
) -> Series:
    """Return the line of the medians of bins, with the distances to the quartiles.

    Args:
        label: for the legend.
        x: (n,) the x values.
        values: (n,) the y values.
        groups: the indices in each bin.
        size: indices in a bin; at 1, the values themselves are shown.
    """
    centres, quartiles = [], []
    for indices in groups:
        finite = values[indices][np.isfinite(values[indices])]
        centres.append(float(x[indices].mean()))
        quartiles.append(
            np.quantile(finite, (0.25, 0.5, 0.75)) if len(finite) else np.full(3, np.nan)
        )
    low, middle, high = np.array(quartiles).T
    return Series(
        label,
        centres,
        middle.tolist(),
        None if size == 1 else [(middle - low).tolist(), (high - middle).tolist()],
    )


def clip_marks(log: Log) -> list[Marks]:
    """Return marks at the foot: the strongest clipped step and one skipped step of each bin."""
    norm, size = log.values["grad_norm"], bin_size(len(log.step))
    foot = float(np.nanmin(norm))
    clipped, skipped = [], []
    for indices in bins(log.block.tolist(), size):
        those = [index for index in indices if log.clipped[index] and np.isfinite(norm[index])]
        clipped += sorted(those, key=lambda index: norm[index])[-1:]
        skipped += [index for index in indices if log.skipped[index]][:1]
    marks = [
        Marks("clipped", log.step[clipped].tolist(), norm[clipped].tolist()),
        Marks("skipped", log.step[skipped].tolist(), [foot] * len(skipped), "x"),
    ]
    return [one for one in marks if one.x]


def clip_words(log: Log) -> str:
    """Say how many steps were clipped or skipped, and what that means."""
    clipped, skipped, size = int(log.clipped.sum()), int(log.skipped.sum()), bin_size(len(log.step))
    words = (
        f"{clipped:,} of {len(log.step):,} steps were clipped: shortened to a multiple of the "
        "running average"
    )
    words += "; of those near each other the strongest is marked." if clipped and size > 1 else "."
    return words + (
        f" {skipped:,} were skipped, because their meta-gradient was not finite." if skipped else ""
    )


def deviations(figures: Sequence[Figure]) -> list[float]:
    """Return the standard deviations; NaN for single networks."""
    return [float("nan") if figure.std is None else figure.std for figure in figures]


def course(series: Sequence[Series], *, percent: bool = False, unit: str = "") -> str:
    """Say the first and last value of each line."""
    sentences = []
    for one in series:
        known = [(x, mean) for x, mean in zip(one.x, one.mean, strict=True) if not np.isnan(mean)]
        ends = [
            f"{f'{100 * mean:.1f} %' if percent else f'{mean:.3g}'} at "
            f"{f'{x:,.0f} {unit}' if unit else f'step {x:,.0f}'}"
            for x, mean in (known[0], known[-1])
        ]
        sentences.append(f"{one.label}: {', '.join(ends)}.")
    return " ".join(sentences)
