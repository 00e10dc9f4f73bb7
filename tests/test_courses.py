"""The studies of the random truncated window: what runs share, what is measured and told."""

import math
import statistics

import pytest
import torch
from test_runs import QUICK

from potstill.config.config import changed, configuration
from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.diagnosis.over_a_run import Noise
from potstill.diagnosis.variance import SOURCES
from potstill.distillation.boosting import Stage
from potstill.distillation.outer import Carried
from potstill.distillation.setup import Setup
from potstill.methods.base import Examples
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import UnrolledMethod
from potstill.progress import SILENT
from potstill.registry import STUDIES
from potstill.studies import over_time, windows
from potstill.studies.claims import Finding, Reading, Throughout, compared
from potstill.studies.over_time import COURSE, Setting, later, setting_of, throughout
from potstill.studies.page import sentence
from potstill.studies.results import Measurement, Results, Table
from potstill.studies.runner import run_study
from potstill.studies.stability import NOISE, NORM, Stability, change, decrease, dominant
from potstill.studies.windows import (
    BEFORE,
    SECONDS,
    Stabilising,
    UnrollLength,
    Windows,
    WindowSize,
    cost,
    moves,
)
from potstill.studies.workplace import Workplace, read_point, run_name

NAMES = ("stability", "windows", "unroll", "window-size", "stabilising", "inner-optimizer")
OPTIONS = {
    **{
        name: value
        for name, value in QUICK.items()
        if name not in ("threads", "steps", "learn_labels", "classes_per_batch")
    },
    "data": "digits",
    "preprocess": "none",
    "unroll": 6,
    "window": 2,
    "lengths": (3, 6),
}
SMALLEST = Setting(OPTIONS, 10, 2, Noise(6, signs=2, unrolls=2), 2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all studies work in."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", NAMES)
def test_every_study_runs_from_end_to_end(monkeypatch, shared, name):
    monkeypatch.setattr(over_time, "setting_of", lambda preset, data: SMALLEST)
    study = STUDIES[name]()
    workplace = Workplace(shared / name, shared / "runs", read(DataConfig()), nets=2, threads=1)
    points = study.points("small", None, (0, 1))
    assert len({workplace.file(point) for point in points}) == len(points)
    run_study(study, points, workplace, study.about("small", None))
    told = (workplace.folder / "summary.md").read_text()
    assert told.count("Paper (") >= 1
    assert "nan" not in told
    shown = [line.split("(")[-1].rstrip(")") for line in told.splitlines() if line.startswith("![")]
    assert shown
    assert all((workplace.folder / picture).stat().st_size > 1000 for picture in shown)
    page = (workplace.folder / "report.html").read_text()
    assert all(
        f'aria-label="{quantity.name} by outer step' in page.replace("&#39;", "'")
        for quantity in study.quantities
    )
    table = Results(
        tuple(row for point in points for row in read_point(workplace.file(point))),
        study.quantities,
    )
    for measured in table.tables:
        for way in measured.ways():
            assert all(set(measured.cell(way, at)) == {0, 1} for at in measured.positions(way)), (
                measured.quantity.name,
                way,
            )
    if COURSE in study.quantities:
        assert table[COURSE].positions(table[COURSE].ways()[0]) == [2, 4, 6, 8, 10]


def test_runs_that_two_studies_need_are_made_once():
    dataset = read(DataConfig())

    def names(study) -> set[str]:
        return {
            run_name(point.config, dataset.fingerprint)
            for point in study().points("small", None, (0, 1, 2))
        }

    assert len(names(Stability) & names(Windows)) == 12  # the four methods
    assert len(names(Windows) & names(Stabilising)) == 9
    assert len(names(UnrollLength) & names(Windows)) == 3
    assert len(names(UnrollLength) & names(WindowSize)) == 3


def methods_of(study, seed: int) -> dict[str, tuple[Stage, UnrolledMethod]]:
    """way -> the stage and the method of its run at the start."""
    found, dataset = {}, read(DataConfig())
    for point in study.points("small", None, (seed,)):
        setup = Setup.of(changed(point.config, threads=1), dataset, None, SILENT)
        stage = setup.stage(None)
        found[point.name] = stage, setup.make_method(stage, Carried())
    return found


def test_runs_of_one_seed_share_images_starts_and_real_batches(monkeypatch):
    monkeypatch.setattr(over_time, "setting_of", lambda preset, data: SMALLEST)
    both = [methods_of(Windows(), seed) for seed in (0, 1)]
    for outer_step in (0, 7):
        starts, batches = [], []
        for stage, method in both[0].values():
            images, replay = stage.learned["0.images"], Replay(outer_step)
            examples = Examples(images, torch.eye(10), stage.labels)
            starts.append(method.trajectory(examples, {}, replay, 0, 0).unrolled.final[0])
            batches.append(
                torch.cat([part.positions for part, _ in method.real_parts(replay, whole=False)])
            )
        assert all(torch.equal(one, starts[0]) for one in starts)
        assert all(torch.equal(one, batches[0]) for one in batches)
    (first, method), (other, second) = both[0]["bptt-seed0"], both[1]["bptt-seed1"]
    assert all(
        torch.equal(stage.learned["0.images"], first.learned["0.images"])
        for stage, _ in both[0].values()
    )
    assert not torch.equal(first.learned["0.images"], other.learned["0.images"])
    assert not torch.equal(
        next(iter(method.real_parts(Replay(0), whole=False)))[0].positions,
        next(iter(second.real_parts(Replay(0), whole=False)))[0].positions,
    )


def table(quantity, **ways: list[list[float]]) -> Table:
    """way -> for each seed the values at 1, 2, ..."""
    rows = [
        Measurement(quantity.name, way.replace("_", "-"), at, seed, value, None, 1, "")
        for way, seeds in ways.items()
        for seed, values in enumerate(seeds)
        for at, value in enumerate(values, start=1)
    ]
    return Table(tuple(rows), quantity)


def test_places_where_all_seeds_agree_are_counted():
    known = table(
        COURSE, a=[[0.5, 0.6, 0.7], [0.5, 0.7, 0.6]], b=[[0.4, 0.6, 0.8], [0.4, 0.6, 0.5]]
    )
    assert throughout(known, "a", "b", 1) == Throughout("a", "b", True, 1, 3)
    assert throughout(known, "b", "a", -1) == Throughout("b", "a", False, 1, 3)
    assert throughout(known, "a", "b", -1) == Throughout("a", "b", False, 0, 3)


def test_the_level_of_a_course_is_the_mean_of_its_second_half():
    known = later(table(COURSE, a=[[0.1, 0.2, 0.6, 0.8], [0.0, 0.0, 0.5, 0.5]]))
    assert known.cell("a", 4) == {0: pytest.approx(0.7), 1: 0.5}
    finding = compared(known, ("a", 4), ("a", 4), 0)
    assert finding.where == "Mean over the second half of 4 outer steps"
    assert finding.readings[0].words == "60.0 ± 14.1 %"
    assert finding.verdict is None


def test_the_change_of_a_norm_does_not_depend_on_its_scale_or_trend():
    assert change([math.exp(-0.1 * step) for step in range(20)]) == pytest.approx(0)
    jumps = [1.0, 2.0, 1.0, 2.0, 1.0]
    assert change(jumps) == pytest.approx(statistics.stdev([math.log(2), -math.log(2)] * 2))
    assert change([50 * value for value in jumps]) == pytest.approx(change(jumps))


def test_a_decrease_is_told_by_the_quarters():
    falling = table(
        NORM,
        rat_bptt=[
            [4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0],
            [2.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0],
        ],
    )
    finding = decrease(falling, "rat-bptt", stable=True)
    change = Reading("rat-bptt, last quarter over first", "0.25, 0.50 by seed", (0.25, 0.5))
    assert finding == Finding((change,), verdict="holds")
    assert finding.seeds == 2
    assert decrease(falling, "rat-bptt", stable=False).verdict is None


def noise_table(**sources: list[list[float]]) -> Table:
    return table(NOISE, **{f"rat-bptt, {SOURCES[name]}": seeds for name, seeds in sources.items()})


def test_the_greatest_source_is_named_only_if_the_seeds_agree():
    agreed = noise_table(
        real=[[0.1], [0.1]], start=[[0.6], [0.4]], window=[[0.1], [0.1]], all=[[0.7], [0.5]]
    )
    (finding,) = dominant(agreed, "rat-bptt")
    assert sentence(finding) == (
        "After 1 outer steps, of the squared length of rat-bptt's meta-gradient varies with a new "
        "real batch: 10.0 ± 0.0 %; a new start: 50.0 ± 14.1 %; a new window: 10.0 ± 0.0 %; all "
        "new: 60.0 ± 14.1 %; the start gives the most in all seeds."
    )
    assert finding.readings[1].values == (0.6, 0.4)
    split = noise_table(
        real=[[0.1], [0.1]], start=[[0.6], [0.1]], window=[[0.1], [0.4]], all=[[0.7], [0.5]]
    )
    (finding,) = dominant(split, "rat-bptt")
    assert finding.conclusion == "the seeds disagree on which gives the most"


def test_a_moving_window_is_told_seed_by_seed():
    before = table(BEFORE, forward=[[0.0, 0.0, 20.0], [0.0, 40.0, 40.0]])
    name = "Steps before its window (and for how many outer steps), seed by seed"
    assert moves(before, "forward") == Reading(name, "0 (2), 20 (1); 0 (1), 40 (2)")


def test_a_cost_is_a_ratio_for_each_seed():
    seconds = table(SECONDS, bptt=[[3.0], [1.0]], rat_bptt=[[1.0], [2.0]])
    (finding,) = cost(seconds, "bptt").findings
    ratio = Reading("An outer step of bptt over one of rat-bptt", "3.00, 0.50 by seed", (3.0, 0.5))
    assert finding == Finding((ratio,))


def test_the_settings_are_the_papers():
    paper = setting_of("paper", "parquet:cifar10")
    assert (
        paper.unroll,
        paper.window,
        paper.options["ipc"],
        paper.noise.samples,
        paper.noise.signs,
    ) == (120, 40, 10, 100, 0)
    first = {
        (point.options["steps"], point.options["checkpoint_every"])
        for point in Stability().points("paper", "x", (0,))
    }
    assert first == {(500, 25)}  # figure 3 shows the first 500 steps
    lengths = [way["unroll"] for way in UnrollLength().ways(paper).values()]
    assert lengths == [80, 120, 200, 300]
    assert [(way["unroll"], way["window"]) for way in WindowSize().ways(paper).values()] == [
        (200, 40),
        (200, 60),
        (200, 100),
    ]
    growing = configuration(paper.run(Stabilising().ways(paper)["growing"], 0))
    sampler = growing.method.options.with_steps(growing.outer.steps)
    assert (sampler.grow_from, sampler.unroll, sampler.grow_over) == (10, 180, paper.steps)
    (adam, sgd) = (
        configuration(point.options)
        for point in windows.InnerOptimizers().points("paper", "parquet:x", (0,))
    )
    assert (adam.inner_optimizer.name, sgd.inner_optimizer.name) == ("adam", "sgd")
    rule = sgd.inner_optimizer.options
    assert (sgd.inner.inner_lr, rule.decay, rule.milestones) == (0.01, 0.2, (120, 200))
    assert (sgd.method.options.unroll, sgd.method.options.window) == (250, 80)
    assert {method for way in Windows().ways(paper).values() for method in way.values()} >= {
        "forward",
        "backward",
        "early",
    }
    assert over_time.METHODS == ("rat-bptt", "bptt", "t-bptt", "r-bptt")
