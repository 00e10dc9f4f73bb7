"""The study of hardness."""

import pytest
import torch
from test_runs import QUICK

from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.data.splits import Part, TensorSplit
from potstill.evaluation.hardness import MORE, NEVER, Forgetting
from potstill.studies import hardness as strata
from potstill.studies.hardness import (
    BY_EVENTS,
    COST,
    FULL,
    HOW_MANY,
    SHARES,
    STANDARD,
    Hardness,
    Scale,
    strata_claims,
    weighted,
)
from potstill.studies.page import sentence
from potstill.studies.results import ACCURACY_BY_SIZE, Measurement, Results, Table
from potstill.studies.runner import run_study
from potstill.studies.workplace import Workplace, read_point


def test_strata_hold_every_example_once_and_leave_out_empty_ones():
    events = torch.tensor([0, 0.1, 0.2, 0.3, 1.0, 1.1, 4.0, 0.0], dtype=torch.float64)
    learned = torch.tensor([1, 1, 1, 0.5, 1, 1, 0.4, 0.0], dtype=torch.float64)
    found = {
        at: rows.tolist()
        for at, rows in Forgetting(events, learned).strata((0, 0.2, 0.5, 0.9, 1)).items()
    }
    assert found == {0: [0], 0.2: [1, 2], 0.5: [3], 1: [4], MORE: [5], NEVER: [6, 7]}


def test_a_part_of_a_split_is_a_split():
    whole = TensorSplit(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    part = Part(whole, torch.tensor([5, 1, 3]))
    images, labels = part.take(torch.tensor([2, 0]))
    assert (len(part), part.labels.tolist(), labels.tolist()) == (3, [5, 1, 3], [3, 5])
    assert torch.equal(images, whole.images[[3, 5]])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(the study, its place, its points) on digits, run from end to end in small."""
    left = ("threads", "classes_per_batch", "learn_labels", "batch_per_class")
    small = {name: value for name, value in QUICK.items() if name not in left}
    small |= {
        "data": "digits",
        "preprocess": "none",
        "width": 8,
        "steps": 4,
        "unroll": 3,
        "window": 1,
        "lengths": (5, 10),
    }
    small |= {"validate_every": 2}
    root = tmp_path_factory.mktemp("strata")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            strata, "scale_of", lambda preset, data: Scale(small, (1, 2), (1.0,), (0, 1), 2, 2, 2)
        )
        hardness, workplace = (
            Hardness(),
            Workplace(root / "study", root / "runs", read(DataConfig()), nets=2, threads=1),
        )
        points = hardness.points("small", None, (0, 1))
        run_study(hardness, points, workplace, hardness.about("small", None))
    return hardness, workplace, points


def test_the_study_runs_from_end_to_end(study):
    hardness, workplace, points = study
    results = Results(
        tuple(row for point in points for row in read_point(workplace.file(point))),
        hardness.quantities,
    )
    way = weighted(1)
    accuracy, by_events, shares = results[ACCURACY_BY_SIZE], results[BY_EVENTS], results[HOW_MANY]
    assert (accuracy.positions(STANDARD), accuracy.positions(way)) == ([1, 2], [2])
    assert set(by_events.ways()) == {"1 a class", "2 a class", f"2 a class, {way}", FULL}
    assert all(by_events.positions(one) == shares.positions(SHARES) for one in by_events.ways())
    assert sum(shares.spread(SHARES, at)[0] for at in shares.positions(SHARES)) == pytest.approx(1)
    assert all(0 < share < 1 for share in results[COST].cell(way, 2).values())
    assert set(results[COST].cell(STANDARD, 2).values()) == {0}
    # The strata's accuracies, weighted by their shares, are that of the same networks on all train
    # images.
    subject = workplace.subject(next(point for point in points if point.name == "1-seed0"))
    bench, steps = subject.bench, subject.distilled.recipe.steps
    make, whole = bench.batches_of(subject.distilled), (bench.real.train,)
    scores = bench.scores(
        bench.recipe.lr, 2, bench.seed, make, lengths=(steps,), splits=whole, label=""
    )
    parts = [
        shares.cell(SHARES, at)[0] * by_events.cell("1 a class", at)[0]
        for at in shares.positions(SHARES)
    ]
    assert sum(parts) == pytest.approx(float(scores.mean()))
    # Once for all runs.
    assert len(list((workplace.folder / "forgetting").glob("*.safetensors"))) == 2
    for name in ("strata", "strata-sampler", "sampler"):
        assert (workplace.folder / f"{name}.png").stat().st_size > 1000
    summary = (workplace.folder / "summary.md").read_text()
    assert summary.count("Paper (figure 17)") == 1
    assert summary.count("Paper (figure 9)") >= 1
    assert "never learned" in summary


def test_the_sampler_starts_half_way(study):
    _, workplace, points = study
    runs = [
        workplace.runs / workplace.run_name(point)
        for point in points
        if point.name in ("2-seed0", "sampler1-seed0")
    ]
    logs = [
        [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"step":' in line]
        for run in runs
    ]
    assert ['"hardness_seconds"' in line for line in logs[0]] == [False] * 4
    assert ['"hardness_seconds"' in line for line in logs[1]] == [False, False, True, False]


def test_claims_compare_strata_by_seed():
    values = {"1 a class": (0.9, 0.5, 0.2), "5 a class": (0.91, 0.7, 0.25), FULL: (1.0, 0.95, 0.85)}
    table = Table(
        tuple(
            Measurement(BY_EVENTS.name, way, at, seed, value + seed / 1000, None, 1, "")
            for way, row in values.items()
            for at, value in zip((0, 1, MORE), row, strict=True)
            for seed in (0, 1)
        ),
        BY_EVENTS,
    )
    claims = strata_claims(table, ["1 a class", "5 a class"])
    assert [sentence(claim.findings[0]) for claim in claims] == [
        "From 1 a class to 5 a class, at most 1 events: +20.0 ± 0.0 points; at most 0 events: "
        "+1.0 ± 0.0 points; difference +19.0 ± 0.0 points: as the paper says, in all 2 seeds.",
        "From 1 a class to 5 a class, at most 1 events: +20.0 ± 0.0 points; the most events: +5.0 "
        "± 0.0 points; difference +15.0 ± 0.0 points: as the paper says, in all 2 seeds.",
        "From 5 a class to all real images, the most events: +60.0 ± 0.0 points; at most 0 events: "
        "+9.0 ± 0.0 points; difference +51.0 ± 0.0 points: as the paper says, in all 2 seeds.",
    ]
    assert claims[0].findings[0].readings[0].values == pytest.approx((0.2, 0.2))


def test_a_stratum_is_not_compared_with_itself():
    rows = [
        Measurement(BY_EVENTS.name, way, at, seed, 0.5, None, 1, "")
        for way in ("1 a class", "5 a class", FULL)
        for at in (0, NEVER)
        for seed in (0, 1)
    ]
    assert strata_claims(Table(tuple(rows), BY_EVENTS), ["1 a class", "5 a class"]) == []


def test_the_paper_preset_is_the_papers():
    points = Hardness().points("paper", "parquet:cifar10", (0,))
    configs = [point.config for point in points]
    assert [
        (one.distilled.ipc, getattr(one.real_sampler.options, "hardness_threshold", "off"))
        for one in configs
    ] == [
        (50, "off"),
        (10, "off"),
        (1, "off"),
        (50, 1.0),
        (50, 4.0),
    ]
    assert {one.real_sampler.options.hardness_from for one in configs[3:]} == {25_000}
