"""Studies: points are done once by however many processes, a study goes on where it was cut off,
and what is told is true.
"""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from test_evaluation import blobs, set_of
from test_runs import QUICK

from potstill.cli import studying
from potstill.cli.parser import main
from potstill.config.config import DataConfig, changed, configuration
from potstill.data.sources import read
from potstill.distillation import run_folder
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.progress import Listener
from potstill.registry import STUDIES
from potstill.reports.plots import Drawing, Series, line_figure
from potstill.studies import boosting, levers
from potstill.studies.boosting import Boosting, Subsets, first_images, only
from potstill.studies.claims import Claim, Finding, Reading, compared, reading, verdict
from potstill.studies.pictures import Pictures, nearest, within
from potstill.studies.results import ACCURACY_BY_SIZE, Measurement, Quantity, Results, Table
from potstill.studies.runner import Length, locked, run_study, work
from potstill.studies.time_left import TimeLeft, kind_of
from potstill.studies.workplace import Point, Subject, Workplace, run_name

TINY = {name: value for name, value in {**QUICK, "steps": 4}.items() if name != "threads"}


class Question:
    """A small study: does the second seed do better?"""

    title = "A question"
    quantities = (ACCURACY_BY_SIZE,)

    def about(self, preset, data, steps=None):
        return "Two runs."

    def points(self, preset, data, seeds, steps=None):
        def measure(subject: Subject) -> list[Measurement]:
            return [
                Measurement.of(
                    "set", subject.bench.of_set("set", subject.distilled, (5,)), subject.seed
                )
            ]

        options = {**TINY, "steps": steps or TINY["steps"]}
        return [Point(f"seed{seed}", {**options, "seed": seed}, measure) for seed in seeds]

    def figures(self, results, workplace, points):
        table = results[ACCURACY_BY_SIZE]
        plot = line_figure([Series("set", [2], [table.spread("set", 2)[0]])], "images per class")
        return [Drawing("drawn", "One line", plot)]

    def claims(self, results):
        reached = reading(results[ACCURACY_BY_SIZE], "set", 2, "the sets reach")
        return [Claim("Paper (nowhere)", "sets are good", [Finding((reached,), "At 2 a class")])]


def workplace_in(folder, **more) -> Workplace:
    return Workplace(
        folder / "question", folder / "runs", read(DataConfig()), nets=2, threads=1, **more
    )


def test_a_study_writes_its_table_figures_and_summary_and_does_nothing_twice(tmp_path):
    study, workplace = Question(), workplace_in(tmp_path)
    points = study.points("small", None, (0, 1))
    run_study(study, points, workplace, study.about("small", None))
    with (workplace.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["way"], row["at"], row["seed"], row["n"]) for row in rows] == [
        ("set", "2", "0", "2"),
        ("set", "2", "1", "2"),
    ]
    told = (workplace.folder / "summary.md").read_text()
    mean = sum(float(row["mean"]) for row in rows) / 2
    measured = f"At 2 a class, the sets reach: {100 * mean:.1f} ± "
    assert f"- Paper (nowhere): sets are good. {measured}" in told
    (claim,) = json.loads((workplace.folder / "claims.json").read_text())
    (finding,) = claim.pop("findings")
    assert claim == {"source": "Paper (nowhere)", "words": "sets are good"}
    assert finding["readings"][0]["values"] == [float(row["mean"]) for row in rows]
    assert (finding["difference"], finding["verdict"]) == (None, None)
    assert "![One line](drawn.svg)\n\n*One line*" in told
    assert all(
        (workplace.folder / f"drawn.{suffix}").stat().st_size > 1000 for suffix in ("svg", "png")
    )
    assert "over 2 distilling seeds; accuracies are means over 2 networks for each seed" in told
    assert (
        f"| test accuracy, by images per class | 2 |\n|---|---|\n| set | {100 * mean:.1f} ± "
        in told
    )
    results = [*workplace.folder.glob("points/*.json"), *workplace.runs.rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in results}
    assert len(before) >= 4
    said: list[str] = []
    run_study(study, points, workplace_in(tmp_path, listener=Listener(say=said.append)), "")
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_study_that_was_cut_off_goes_on_to_the_same_result(tmp_path):
    points = Question().points("small", None, (0,))

    def die(record, steps):
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(points, workplace_in(tmp_path / "one", listener=Listener(step=die)))
    (run,) = (path for path in (tmp_path / "one/runs").iterdir() if path.is_dir())
    assert not run_folder.RunFolder(run).finished
    for folder in ("one", "two"):
        assert work(points, workplace_in(tmp_path / folder)) == 0
    one, two = (
        json.loads(workplace_in(tmp_path / folder).file(points[0]).read_text())
        for folder in ("one", "two")
    )
    assert one == two


def test_a_point_or_run_that_another_has_is_left_to_it(tmp_path):
    workplace, points = workplace_in(tmp_path), Question().points("small", None, (0,))
    target = workplace.file(points[0])
    for folder, name in (
        (target.parent, target.stem),
        (workplace.runs, workplace.run_name(points[0])),
    ):
        with locked(folder, name):
            assert work(points, workplace) == 1
        assert not target.exists()
    assert work(points, workplace) == 0
    assert target.exists()


def test_a_study_tells_which_run_is_at_work_and_how_long_all_take_once_that_is_known(tmp_path):
    heard: list[tuple[int, int, str]] = []
    steps: list[int] = []
    listener = Listener(
        run=lambda *place: heard.append(place), step=lambda record, of: steps.append(record.step)
    )
    assert (
        work(Question().points("small", None, (0, 1)), workplace_in(tmp_path, listener=listener))
        == 0
    )
    assert steps == [1, 2, 3, 4] * 2  # the run's own progress too
    assert [(number, of) for number, of, _ in heard] == sorted((n, of) for n, of, _ in heard)
    assert {(number, of) for number, of, _ in heard} == {(1, 2), (2, 2)}
    first = [words for number, _, words in heard if number == 1]
    assert first[:2] == ["", ""]  # before and at the first outer step nothing was timed
    assert first[2].startswith("at least ")
    assert all(words.startswith("about ") for number, _, words in heard if number == 2)


def test_the_time_left_is_that_of_like_runs_and_shared_by_the_processes():
    now = [0.0]
    left = TimeLeft(jobs=2, clock=lambda: now[0])
    small, large = {"ipc": 1}, {"ipc": 9}
    later = [({**large, "seed": 0}, False), ({**small, "seed": 1}, False)]
    left.begin({**small, "seed": 0})
    assert left.words(later) == ""
    now[0] += 5
    left.step(1, 11)
    assert left.words(later) == ""  # the first step warms up
    now[0] += 2
    left.step(2, 11)
    # 9 steps of 2 s, and half of two runs of 11 such steps; how long measuring takes is not known.
    assert left.words(later) == "at least 40 s left"
    now[0] += 23
    left.made()
    now[0] += 10
    left.measured()
    left.begin({**large, "seed": 0})
    # Like none that was timed: 30 + 10 s, the mean of all, and half of the next beside it.
    assert left.words(later[1:]) == "about 1 min 0 s left"
    now[0] += 90
    left.made()
    left.measured()
    left.begin({**small, "seed": 1})
    assert left.words([]) == "about 40 s left"  # what the first of its kind took
    left.begin({**large, "seed": 1}, made=True)
    assert left.words([({**small, "seed": 2}, True)]) == "about 5 s left"  # only measured


def test_the_time_left_of_runs_that_are_planned_by_time_is_what_they_may_still_take():
    now = [0.0]
    left = TimeLeft(clock=lambda: now[0])
    timed = {"time_budget": "2m", "steps": 50_000}
    left.begin({**timed, "seed": 0})
    now[0] += 10
    left.step(1, 50_000)
    now[0] += 20
    left.step(2, 50_000)
    assert left.words([({**timed, "seed": 1}, False)]) == "at least 3 min 30 s left"
    now[0] += 100  # the last step took longer than was planned
    assert left.words([]) == "at least 0 s left"


def test_a_run_that_was_cut_off_is_not_taken_for_a_whole_one():
    now = [0.0]
    left = TimeLeft(clock=lambda: now[0])
    left.begin({"seed": 0}, whole=False)
    left.step(99, 100)
    now[0] += 1
    left.step(100, 100)
    left.made()
    left.measured()
    assert left.making == {}
    assert left.measuring == {kind_of({"seed": 1}): [0.0]}


def test_a_shortened_study_says_so_and_is_not_continued_at_another_length(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(boosting, "scale_of", lambda preset, data, method: SMALLEST)
    idle = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(studying, "helper_command", lambda *_: idle)
    command = ["study", "pictures", "--seeds", "1", "--nets", "1", "--out", str(tmp_path)]
    assert main([*command, "--steps", "5", "--jobs", "9"]) == 0
    output = capsys.readouterr()
    caution = "Not the study's own length: 5 outer steps in place of 2 (`--steps`)."
    assert f"**{caution}" in output.out
    assert "--jobs 9: the study has 3 runs, one for a process" in output.err
    folder = tmp_path / "pictures-small-digits"
    assert json.loads((folder / "study.json").read_text()) == {"steps": 5, "preset": 2}
    assert "outer steps in place of 2" in (folder / "report.html").read_text()
    for words, got in ((["--steps", "6"], 6), ([], 2)):
        assert main([*command, *words]) == 2
        assert (
            f"{folder} holds this study with 5 outer steps a run, got {got}; give --steps 5, or "
            "another folder with --out" in capsys.readouterr().err
        )
    assert main([*command, "--steps", "5"]) == 0  # goes on: nothing is left to do
    assert caution in capsys.readouterr().out
    assert main([*command, "--steps", "3"]) == 2
    assert "argument --steps: must be a whole number of at least 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_can_be_shortened(name):
    study = STUDIES[name]()
    whole, short = (study.points("small", None, (0,), steps) for steps in (None, 7))
    assert [point.name for point in short] == [point.name for point in whole]
    taking = [point for point in short if "steps" in point.options]  # coresets take none
    assert {point.config.outer.steps for point in taking} == {7}
    assert "7 outer steps" in study.about("small", None, 7)
    assert study.about("small", None, 7) != study.about("small", None)
    assert Length.of(study, "small", None, None).caution == ""
    own = whole[0].options.get("steps")
    place = "the time" if own is None else f"{own:,}"
    assert f"7 outer steps in place of {place}" in Length.of(study, "small", None, 7).caution


SHARED = """
import sys
from pathlib import Path
from test_studies import Question, workplace_in
from potstill.studies.runner import work
folder = Path(sys.argv[1])
points = Question().points("small", None, range(4))
def noted(point):
    def measure(subject):
        with (folder / "log").open("a") as file:
            file.write(point.name + "\\n")
        return point.measure(subject)
    return type(point)(point.name, point.options, measure)
while work(map(noted, points), workplace_in(folder)):
    pass
"""


def test_two_processes_share_a_study_and_do_no_point_twice(tmp_path):
    command = [sys.executable, "-c", SHARED, str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd="tests", stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert sorted((tmp_path / "log").read_text().split()) == ["seed0", "seed1", "seed2", "seed3"]


def test_other_options_data_or_networks_are_another_result(tmp_path):
    workplace, (point,) = workplace_in(tmp_path), Question().points("small", None, (0,))
    other = dataclasses.replace(point, options={**point.options, "inner_lr": 0.01})
    more = dataclasses.replace(workplace, nets=3)
    assert len({workplace.file(point), workplace.file(other), more.file(point)}) == 3
    config = configuration(point.options)
    assert run_name(config, "a") != run_name(config, "b")
    elsewhere = changed(config, cache_dir="/elsewhere", threads=7)
    assert run_name(config, "a") == run_name(elsewhere, "a")  # where and on what is no other run


def test_a_damaged_point_says_which_file_to_remove(tmp_path):
    study, workplace = Question(), workplace_in(tmp_path)
    points = study.points("small", None, (0,))
    work(points, workplace)
    workplace.file(points[0]).write_text('{"measurements": [{"way": 3}]}')
    with pytest.raises(
        InputError,
        match=r"seed0-.*json is damaged .*; remove it, and the study measures that point again",
    ):
        run_study(study, points, workplace, "")


def table(**cells: list[float]) -> Table:
    """way -> one value a seed, all at 2."""
    rows = [Measurement("test accuracy", way, 2, seed, mean, 0.01, 5, "")
            for way, means in cells.items() for seed, mean in enumerate(means)]  # fmt: skip
    return Table(tuple(rows), ACCURACY_BY_SIZE)


def test_differences_are_paired_by_seed_and_judged_only_where_all_agree():
    known = table(a=[0.5, 0.6, 0.7], b=[0.4, 0.4, 0.6], c=[0.6, 0.5, 0.8])
    found = known.difference(("a", 2), ("b", 2))
    assert found.values == pytest.approx((0.1, 0.2, 0.1))
    assert str(found) == "+13.3 ± 5.8 points"
    assert verdict(found.values, 1) == "holds"
    assert verdict(found.values, -1) == "against"
    assert verdict(known.difference(("a", 2), ("c", 2)).values, 1) == "undecided"
    assert verdict((0.0, -0.1), 1) == "undecided"  # a tie is not against it
    assert verdict((0.1,), 1) == "one seed"
    assert verdict(found.values, 0) is None
    plain = Table(known.rows, Quantity("cosine", "images per class"))
    assert plain.words("a", 2) == "0.6 ± 0.1"
    assert str(plain.difference(("b", 2), ("a", 2))) == "-0.133 ± 0.058"
    assert plain.ratio(("a", 2), ("b", 2)) == pytest.approx((1.25, 1.5, 0.7 / 0.6))
    finding = compared(known, ("a", 2), ("b", 2), 1)
    assert finding == Finding(
        (
            Reading("a", "60.0 ± 10.0 %", (0.5, 0.6, 0.7)),
            Reading("b", "46.7 ± 11.5 %", (0.4, 0.4, 0.6)),
        ),
        "At 2 a class",
        difference=Reading("difference", "+13.3 ± 5.8 points", found.values),
        verdict="holds",
    )
    assert finding.seeds == 3


def two_blocks(real) -> DistilledSet:
    first, second = set_of(real), set_of(blobs(600, 3))
    return DistilledSet(
        (*first.blocks, *second.blocks), first.class_names, first.fitted, first.recipe
    )


def test_likeness_has_its_closed_form():
    real = blobs(600)
    distilled = two_blocks(real)
    cosines = [
        float(
            torch.cosine_similarity(
                distilled.images[place].flatten(), distilled.images[place + 3].flatten(), dim=0
            )
        )
        for place in range(3)
    ]
    assert within(distilled) == pytest.approx(sum(cosines) / 3, abs=1e-6)
    # Its images are real ones.
    assert nearest(set_of(real), real.train) == pytest.approx(1, abs=1e-6)
    assert nearest(distilled, real.train) < 0.999


def test_parts_of_a_set():
    distilled = two_blocks(blobs(600))
    assert torch.equal(only(distilled, [1]).images, distilled.blocks[1].images)
    assert torch.equal(first_images(distilled, 1).images, distilled.blocks[0].images)
    assert first_images(distilled, 2).ipc == 2
    assert torch.equal(first_images(distilled, 2).labels, torch.tensor([0, 0, 1, 1, 2, 2]))


SMALLEST = boosting.Scale(  # in place of the small one: two blocks
    2,
    1,
    (1, 2),
    2,
    {
        **TINY,
        "data": "digits",
        "preprocess": "none",
        "unroll": 2,
        "window": 1,
        "learn_labels": False,
    },
    "T = 2, M = 1",
)


@pytest.mark.parametrize("kind", [Subsets, Boosting, Pictures])
def test_the_studies_of_section_5_run_from_end_to_end(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(boosting, "scale_of", lambda preset, data, method: SMALLEST)
    study, workplace = kind(), workplace_in(tmp_path)
    points = study.points("small", None, (0, 1))
    assert len({point.name for point in points}) == len(points)
    run_study(study, points, workplace, study.about("small", None))
    told = (workplace.folder / "summary.md").read_text()
    shown = [line.split("(")[1].rstrip(")") for line in told.splitlines() if line.startswith("![")]
    assert shown
    assert all((workplace.folder / name).stat().st_size > 1000 for name in shown)
    assert told.count("Paper (") >= 3
    assert "nan" not in told


def test_the_command_shares_the_work_with_its_helpers_and_prints_the_summary(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(boosting, "scale_of", lambda preset, data, method: SMALLEST)
    command = [
        "study",
        "pictures",
        "--seeds",
        "1",
        "--nets",
        "1",
        "--out",
        str(tmp_path),
        "--jobs",
        "1",
    ]
    assert main(command) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "pictures-small-digits"
    assert told == f"{(folder / 'summary.md').read_text()}\nwritten: {folder}\n"
    before = (folder / "results.csv").read_bytes()
    assert main([*command, "--helper"]) == 0  # nothing is left to do for one
    assert capsys.readouterr().out == ""
    assert (folder / "results.csv").read_bytes() == before


def test_every_registered_study_has_its_presets(capsys):
    for name in STUDIES:
        study = STUDIES[name]()
        small = study.points("small", None, range(3))
        paper = study.points("paper", "parquet:cifar10", range(1))
        assert len(small) % 3 == 0
        assert all(configuration(point.options).distilled.ipc <= 50 for point in paper)
        assert "outer steps" in study.about("small", None)
        assert main(["study", name, "--preset", "paper"]) == 2
        assert "data must be given for the preset paper" in capsys.readouterr().err
    assert main(["study", "bosting"]) == 2
    assert "unknown study 'bosting' (did you mean 'boosting'?)" in capsys.readouterr().err


def test_levers_change_one_thing_of_the_plain_run():
    scale = levers.scale_of("small", None)
    plain = scale.run(levers.PLAIN, 1)
    assert plain["time_budget"] == "20s"
    for name in levers.LEVERS:
        options = scale.run(name, 1)
        changed_ones = {key for key in options if options[key] != plain.get(key)}
        assert bool(changed_ones) == (name != levers.PLAIN), name
        configuration(options)  # every option is one, of the right type
        assert options["time_budget"] == "20s"
    assert scale.run("half the window", 0)["window"] == plain["window"] // 2
    assert scale.run("3 times, then cosine", 0)["outer_lr"] == pytest.approx(3 * plain["outer_lr"])


def test_the_study_of_levers_tells_each_beside_the_plain_run(tmp_path, monkeypatch):
    few = {name: levers.LEVERS[name] for name in (levers.PLAIN, "pool of 10 networks", "AdaBelief")}
    monkeypatch.setattr(levers, "LEVERS", few)
    study = levers.Levers()
    points = study.points("small", None, [0], 2)
    tiny = {"unroll": 6, "window": 3, "width": 4, "real_batch": 20, "lengths": (5,)}
    points = [dataclasses.replace(one, options={**one.options, **tiny}) for one in points]
    place = Workplace(tmp_path / "s", tmp_path / "r", read(DataConfig()), 2, "cpu", 1)
    assert work(points, place) == 0
    rows = [
        Measurement(**row)
        for point in points
        for row in json.loads(place.file(point).read_text())["measurements"]
    ]
    results = Results(tuple(rows), study.quantities)
    claims = study.claims(results)
    assert len(claims) == 2
    assert set(results[levers.ACCURACY_AFTER].ways()) == {*few, levers.RANDOM}
    assert all(results[levers.STEPS].cell(way, 0.0) == {0: 2} for way in few)
