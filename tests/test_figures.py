"""Figures: the same bytes each time, as they are drawn from any label, and at home in a page."""

import re

import numpy as np
import pytest

from potstill.records.metrics import StepRecord
from potstill.reports.charts import MOST_POINTS, bin_size, binned, bins, log_charts
from potstill.reports.plots import COLOURS, Series, inline_svg, line_figure, save
from potstill.reports.run_summary import Log

ODD = ["_under", "$x$ & <b>", "猫", "#0072b2 0.12345"]


def odd_figure():
    return line_figure(
        [
            Series(label, [1, 2, 5], [0.1 * place, 0.2, 0.3], [0.01] * 3)
            for place, label in enumerate(ODD)
        ],
        "images per class",
    )


def test_files_are_the_same_bytes_each_time(tmp_path):
    for name in ("one", "two"):
        save(odd_figure(), tmp_path / name)
    for suffix in ("png", "svg"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (
            tmp_path / f"two.{suffix}"
        ).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()


def test_labels_are_drawn_as_they_are():
    svg = inline_svg(odd_figure(), "x", "alternative")
    for label in ODD:
        assert (
            f">{label.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}</text>"
            in svg
        )


def test_an_inline_figure_takes_the_colours_of_its_page():
    svg = inline_svg(odd_figure(), "x", "an <alternative>")
    drawn = re.sub(r">[^<]*<", "><", svg)  # without texts
    assert not re.search("#[0-9a-f]{6}", drawn)
    assert "var(--series-0)" in drawn
    assert 'aria-label="an &lt;alternative&gt;"' in drawn
    assert "<style" not in drawn
    assert "http" not in drawn


def test_ids_of_two_figures_do_not_collide():
    first, second = (
        set(re.findall(r' id="([^"]*)"', inline_svg(odd_figure(), name, ""))) for name in ("a", "b")
    )
    assert first
    assert not first & second
    svg = inline_svg(odd_figure(), "a", "")
    assert set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg)) == first


def log_of(steps: int, blocks: int = 1) -> Log:
    """A log whose loss is the step, and whose every tenth step is clipped at ten times the norm."""
    each = steps // blocks
    return Log.of(
        [
            StepRecord(
                step,
                float(step),
                1.0 if step % 10 else 10.0,
                clipped=step % 10 == 0,
                skipped=False,
                seconds=0.1,
                memory_mb=5.0,
                block=1 + (step - 1) // each,
            )
            for step in range(1, steps + 1)
        ]
    )


@pytest.mark.parametrize("steps", [7, 100, 101, 1_000, 50_000])
def test_long_curves_become_medians_of_bins(steps):
    log, size = log_of(steps), bin_size(steps)
    found = binned("loss", log.step, log.values["loss"], bins(log.block.tolist(), size), size)
    assert len(found.x) <= MOST_POINTS
    np.testing.assert_allclose(found.mean, found.x)  # the median of consecutive steps is their mean
    if size > 1:
        # Quartiles of n consecutive numbers lie (n - 1) / 4 from their median.
        np.testing.assert_allclose(np.array(found.spread)[:, 0], (size - 1) / 4)


def test_no_bin_spans_two_blocks():
    log = log_of(1_200, blocks=3)
    assert log.block_starts == {1.0: "block 1", 401.0: "2", 801.0: "3"}
    groups = bins(log.block.tolist(), 7)
    assert sorted(place for group in groups for place in group) == list(range(1_200))
    assert all(len(set(log.block[group])) == 1 for group in groups)


def test_curves_of_a_long_run_stay_small_and_count_what_was_clipped():
    charts = {chart.title: chart for chart in log_charts({"run": log_of(50_000)}, "r")}
    assert sum(len(chart.svg) for chart in charts.values()) < 200_000
    assert "5,000 of 50,000 steps were clipped" in charts["Meta-gradient norm"].caption
    assert "median of 500 steps" in charts["Outer loss"].caption
    assert "run: 250 at step 250" in charts["Outer loss"].svg  # the alternative text


def test_what_is_not_finite_leaves_a_gap():
    records = [
        StepRecord(
            step, None if step == 2 else 1.0, None if step == 2 else 0.5, False, step == 2, 0.1, 5.0
        )
        for step in (1, 2, 3)
    ]
    charts = {chart.title: chart for chart in log_charts({"run": Log.of(records)}, "r")}
    assert "Validation accuracy" not in charts  # which was not measured
    assert (
        "1 were skipped, because their meta-gradient was not finite"
        in charts["Meta-gradient norm"].caption
    )


def test_a_run_keeps_its_colour_over_all_compared_curves():
    without = Log.of([StepRecord(1, None, 1.0, False, True, 0.1, 5.0)])
    charts = {
        chart.title: chart
        for chart in log_charts({"a": log_of(3), "b": without, "c": log_of(3)}, "r")
    }
    assert all("var(--series-2)" in chart.svg for chart in charts.values())
    assert "var(--series-1)" not in charts["Outer loss"].svg
    assert "var(--series-1)" in charts["Seconds per outer step"].svg
    assert len(COLOURS) == len(set(COLOURS))
