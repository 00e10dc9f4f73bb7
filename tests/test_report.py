"""The report: what the page says, that it needs nothing beside it, and what it says of damaged
runs.
"""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_runs import QUICK, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.distillation import checkpoints, run_folder
from potstill.distilled import artefact
from potstill.distilled.blocks import Block
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.records import (
    DIAGNOSIS,
    EVALUATION,
    DataSource,
    EvaluationRecord,
    Row,
)
from potstill.records.metrics import Figure
from potstill.reports.gallery import gallery
from potstill.reports.report import tables, write_report
from potstill.reports.run_summary import Measured


class Page(HTMLParser):
    """A page's elements, texts and tables.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = "tr" if tag in ("td", "th") else ""

    def handle_data(self, data):
        if self.inside != "style":
            self.texts.append(data)
        if self.inside in ("td", "th", "a", "code", "wbr") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)


def report(out: Path, *paths: Path) -> Page:
    write_report(paths, out)
    return Page(out)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with the runs "evaluated", "boosted", "odd" (odd names, not evaluated) and "going"
    (interrupted).
    """
    folder = tmp_path_factory.mktemp("runs")
    potstill.distill(**QUICK, out=folder / "evaluated")
    potstill.distill(
        **{**QUICK, "learn_labels": False, "steps": 6}, boost_blocks=2, out=folder / "boosted"
    )
    for name in ("evaluated", "boosted"):
        words = ["--all-budgets"] if name == "boosted" else []
        assert (
            main(
                [
                    "evaluate",
                    str(folder / name),
                    "--nets",
                    "2",
                    "--baseline",
                    "random",
                    "--threads",
                    "1",
                    *words,
                ]
            )
            == 0
        )
    rng = np.random.default_rng(0)
    for index in range(24):
        path = folder / "pictures" / ["<script>alert(1)", "b & 'c'"][index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = {"data": f"folder:{folder / 'pictures'}", "cache_dir": str(folder)}
    potstill.distill(
        **{**QUICK, **data, "ipc": 1, "classes_per_batch": "auto"}, out=folder / "odd <b>run"
    )
    interrupted_run(folder / "going", after=6)
    return folder


ALL = ["evaluated", "boosted", "odd <b>run", "going"]


def test_every_page_is_whole_and_needs_nothing_beside_it(places, tmp_path):
    for number, names in enumerate([*([name] for name in ALL), ALL]):
        page = report(tmp_path / f"{number}.html", *(places / name for name in names))
        assert all(
            image["alt"] and image["src"].startswith("data:image/png;base64,")
            for image in page.all("img")
        )
        titled = [svg for svg in page.all("svg") if svg["class"] == "bars"]
        assert all(
            svg["role"] == "img" and (svg in titled or svg["aria-label"]) for svg in page.all("svg")
        )
        assert len(page.all("title")) == len(titled) + 1
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [
            value
            for _, attributes in page.elements
            for name, value in attributes.items()
            if name.endswith("href")
        ]
        assert all(
            (value.startswith("#") and value[1:] in ids) or value == "data:," for value in links
        )
        assert not re.search(r"https?://|@import|url\((?!#)", page.source)
        assert not page.all("script")
        headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_a_page_tells_what_was_distilled_and_what_it_is_worth(places, tmp_path):
    page = report(tmp_path / "report.html", places / "evaluated")
    (entry,) = json.loads((places / "evaluated" / EVALUATION).read_text())["evaluations"]
    assert "images of digits became 20" in page.text
    assert len([one for one in page.all("img") if one["alt"].startswith("class ")]) == 20
    for row in entry["rows"]:
        figure = (
            f"{100 * row['accuracy']['mean']:.1f} ± {100 * row['accuracy']['std']:.1f} %".replace(
                " ", "\N{NO-BREAK SPACE}"
            )
        )
        # 20 images of 64 numbers; with 20 labels of 10.
        stored = {"distilled": "5,920", "random": "5,120"}[row["name"]]
        assert page.row(row["name"])[:6] == [row["name"], "20", "2", stored, figure, "2"]
    assert "On 359 test images; " + entry["hardware"] in page.text
    assert "which neither they nor the distillation ever saw" in page.text
    assert "mean ± standard deviation over n networks, not over distilling runs" in page.text
    assert "Classes10: 0, 1, 2, 3, 4, 5, ..." in page.text
    assert "(10)" not in page.text
    for title in (
        "Outer loss",
        "Validation accuracy",
        "Meta-gradient norm",
        "Seconds per outer step",
        "Memory in MB",
    ):
        assert title in page.text
    assert "3 to 5 at random, the last 3 differentiated" in page.text
    again = "potstill distill --config evaluated/config.toml --out evaluated-again"
    assert again in page.text
    assert "To be given beside the folder evaluated." in page.text


def test_learned_labels_are_told_by_class(places, tmp_path):
    page = report(tmp_path / "report.html", places / "evaluated")
    weights = artefact.load(places / "evaluated").targets[0]
    best = int(weights.argmax())
    assert f"learned weights: {best} {float(weights[best]):.2f}, " in page.text
    assert len([svg for svg in page.all("svg") if svg["class"] == "bars"]) == 20


def test_a_boosted_set_shows_its_blocks_and_budgets(places, tmp_path):
    page = report(tmp_path / "report.html", places / "boosted")
    assert ["", "block 1", "block 2"] in page.rows
    assert "class 3, image 1 of 1 in block 2" in [image["alt"] for image in page.all("img")]
    assert "Accuracy by images per class" in page.text
    assert [row[2] for row in page.rows if row and row[0] == "distilled"] == ["1", "2"]
    assert "Outer steps12 of 12" in page.text


def test_an_unfinished_run_says_so_and_how_to_go_on(places, tmp_path):
    page = report(tmp_path / "report.html", places / "going")
    assert "Stopped: 6 of 12 steps." in page.text
    assert "potstill distill --resume going" in page.text
    assert "As of the newest checkpoint." in page.text
    assert len([one for one in page.all("img") if one["alt"].startswith("class ")]) == 20
    bare = tmp_path / "going"
    shutil.copytree(places / "going", bare)
    shutil.rmtree(bare / checkpoints.CHECKPOINTS)
    (bare / run_folder.METRICS).unlink()
    page = report(tmp_path / "report.html", bare)
    assert "Stopped: 0 of 12 steps." in page.text
    assert "the first checkpoint comes after 4 outer steps" in page.text
    assert "No outer step has been logged yet." in page.text


def test_names_from_outside_are_text(places, tmp_path):
    page = report(tmp_path / "report.html", places / "odd <b>run", places / "going")
    assert "&lt;script&gt;alert(1)" in page.source
    assert "<script" not in page.source
    assert "<b>run" not in page.source
    assert any(
        image["alt"].startswith("class <script>alert(1), image 1") for image in page.all("img")
    )
    assert "potstill evaluate 'odd <b>run'" in page.text


def test_runs_are_compared_by_what_differs(places, tmp_path):
    page = report(
        tmp_path / "report.html", places / "evaluated", places / "boosted", places / "going"
    )
    assert page.row("Outer steps") == ["Outer steps", "12 of 12", "12 of 12", "6 of 12"]
    assert page.row("boost_blocks") == ["boost_blocks", "1", "2", "1"]
    assert page.row("learn_labels") == ["learn_labels", "true", "false", "true"]
    names = [row[0] for row in page.rows if row]
    assert "unroll" not in names
    accuracy = artefact.load(places / "evaluated").meta["accuracy"]
    figure = Figure(accuracy["mean"], accuracy["std"], accuracy["n"])
    assert page.row("Validation accuracy")[1].replace("\N{NO-BREAK SPACE}", " ") == str(figure)
    missing = "not measured, unfinished: potstill distill --resume going"
    assert page.row("Test accuracy")[3] == missing
    odd = report(tmp_path / "odd.html", places / "evaluated", places / "odd <b>run")
    measure = "not measured: potstill evaluate 'odd <b>run' --nets 10"
    assert odd.row("Test accuracy")[2] == measure
    assert odd.row("Test accuracy, random real images")[2] == f"{measure} --baseline random"


def test_options_that_follow_from_others_stand_apart_and_may_be_missing_in_a_run(tmp_path):
    shared = {**QUICK, "steps": 2}
    potstill.distill(**shared, out=tmp_path / "plain")
    potstill.distill(**{**shared, "window": 4}, method="fixed", out=tmp_path / "fixed")
    for names in (("plain", "fixed"), ("fixed", "plain")):
        page = report(tmp_path / "report.html", *(tmp_path / name for name in names))
        values = {"method": {"plain": "rat-bptt", "fixed": "fixed"},
                  "window": {"plain": "3", "fixed": "4"},
                  "burn_in": {"plain": "–", "fixed": "1"}}  # fmt: skip
        for option, known in values.items():
            assert page.row(option) == [option, *(known[name] for name in names)]
        (folded,) = re.findall(
            r"(?s)<details><summary>1 more that follow.*?</details>", page.source
        )
        assert "burn_" in folded
        assert ">method<" not in folded


def test_what_is_passed_on_holds_no_path_of_the_machine(places, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(places / "pictures", tmp_path / "photos")
    options = {**QUICK, "ipc": 1, "classes_per_batch": "auto", "steps": 2}
    run = tmp_path / "run"
    potstill.distill(**options, data=str(data), cache_dir=str(tmp_path / "kept"), out=run)
    assert main(["evaluate", str(run), "--nets", "1", "--baseline", "random"]) == 0
    assert main(["diagnose", str(run), "--samples", "2"]) == 0
    shared = [run / name for name in (EVALUATION, DIAGNOSIS, artefact.ARTEFACT, run_folder.PICTURE)]
    for suffix in ("npz", "parquet", "png", "images"):
        form = ["--format", "folder"] if suffix == "images" else []
        out = tmp_path / f"export.{suffix}"
        assert main(["export", str(run), "--no-check", "--out", str(out), *form]) == 0
        shared += [file for file in out.rglob("*") if file.is_file()] if out.is_dir() else [out]
    (run / run_folder.METRICS).write_text("{")  # a note on the page names the file
    for name, paths in {"one": [run], "two": [run, places / "going"]}.items():
        shared.append(tmp_path / f"{name}.html")
        write_report(paths, shared[-1])
    for file in shared:
        assert str(tmp_path).encode() not in file.read_bytes(), file
        assert str(places).encode() not in file.read_bytes(), file
    page = Page(tmp_path / "one.html")
    assert "Sourcefolder photos" in page.text
    assert 'data = "folder:photos"' in page.text
    assert 'cache_dir = "kept"' in page.text
    assert str(data) in (run / checkpoints.CONFIG).read_text()  # resuming needs it
    monkeypatch.chdir(tmp_path)
    write_report([run], tmp_path / "here.html")
    assert "potstill evaluate run --nets" in Page(tmp_path / "here.html").text


def test_runs_of_one_name_are_told_apart(places, tmp_path):
    shutil.copytree(places / "going", tmp_path / "going")
    page = report(tmp_path / "report.html", places / "going", tmp_path / "going")
    assert [f"{places.name}/going", f"{tmp_path.name}/going"] == [
        link for link in page.rows[0] if link
    ]


def test_equal_runs_give_equal_pages(places, tmp_path):
    first, second = (report(tmp_path / f"{name}.html", places / "boosted") for name in "ab")
    assert first.source == second.source


@pytest.fixture
def copy(places, tmp_path) -> Path:
    """A copy of the evaluated run, to damage."""
    return Path(shutil.copytree(places / "evaluated", tmp_path / "copy"))


def test_a_damaged_set_is_named_and_the_rest_is_shown(copy, tmp_path):
    (copy / artefact.ARTEFACT).write_bytes((copy / artefact.ARTEFACT).read_bytes()[:-5])
    (note,) = write_report([copy], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert note.startswith("The set cannot be shown: ")
    assert "distilled.safetensors is damaged" in note
    assert note.replace(str(copy), "copy") in page.text
    assert "Outer loss" in page.text


@pytest.mark.parametrize("damage", ["garbage", '{"step": 5, "lo', '{"step": 5}', "[5]", "\x00\xff"])
def test_a_damaged_line_of_the_log_is_missing_in_the_curves_and_told(copy, tmp_path, damage):
    lines = (copy / run_folder.METRICS).read_text().splitlines()
    (copy / run_folder.METRICS).write_text("\n".join([*lines[:4], damage, *lines[5:]]))
    (note,) = write_report([copy], tmp_path / "report.html")
    path = copy / run_folder.METRICS
    assert note == f"The curves lack 1 of 12 steps: {path} is damaged."


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"evaluations": [{"rows": [{"name": "distilled"}]}]}']
)
def test_damaged_evaluations_are_named(copy, tmp_path, content):
    (copy / EVALUATION).write_text(content)
    (note,) = write_report([copy], tmp_path / "report.html")
    assert "cannot be shown" in note
    assert note.endswith(f"{copy / EVALUATION} is damaged; measure again with `potstill evaluate`.")
    assert note.replace(str(copy), "copy") in Page(tmp_path / "report.html").text


def test_only_what_chose_nothing_on_test_data_is_in_the_headline(copy, tmp_path):
    kept = json.loads((copy / EVALUATION).read_text())
    kept["evaluations"][0]["standard"] = False
    (copy / EVALUATION).write_text(json.dumps(kept))
    page = report(tmp_path / "report.html", copy)
    assert "so this is no test result" in page.text
    assert "distilled" in [row[0] for row in page.rows]


def test_bad_arguments_get_one_clear_sentence(places, copy, tmp_path):
    out, run = tmp_path / "report.html", places / "going"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a report needs at least one run's folder, got none"):
        write_report([], out)
    with pytest.raises(
        InputError, match=r"each run must be given once, got .* twice; leave one out"
    ):
        write_report([run, run.parent / "x" / ".." / "going"], out)
    with pytest.raises(
        InputError,
        match=r"empty holds no run of potstill \(it has no config.toml\); check the path",
    ):
        write_report([tmp_path / "empty"], out)
    with pytest.raises(InputError, match=r"holds no run of potstill"):
        write_report([tmp_path / "missing"], out)
    with pytest.raises(
        InputError, match=r"out must name a file, got the folder .*; give .*empty/report.html"
    ):
        write_report([run], tmp_path / "empty")
    with pytest.raises(
        InputError, match=r"the folder of out does not exist, got .*no/report.html; make .*no first"
    ):
        write_report([run], tmp_path / "no" / "report.html")
    assert not out.exists()
    for text, message in (
        ("[data", "is not valid TOML"),
        ("[data]\nx = 1", "unknown key 'x'"),
        ("[data]", 'still holds "auto"'),
    ):
        (copy / checkpoints.CONFIG).write_text(text)
        with pytest.raises(InputError, match=message):
            write_report([copy], out)


def test_only_an_earlier_report_is_overwritten(places, tmp_path):
    mine, ours = tmp_path / "mine.html", tmp_path / "ours.html"
    mine.write_text("<p>keep")
    with pytest.raises(
        InputError,
        match=r"mine.html exists and is no report of potstill; choose another file with --out",
    ):
        write_report([places / "going"], mine)
    assert mine.read_text() == "<p>keep"
    report(ours, places / "going")
    report(ours, places / "boosted")
    assert "Unfinished" not in Page(ours).text


def test_a_page_of_many_images_stays_of_a_bearable_size(places):
    small = artefact.load(places / "evaluated")
    images = small.images[:1].expand(10_000, -1, -1, -1)
    block = Block.of_pixels(images, 100)
    many = DistilledSet((block, block), tuple(map(str, range(100))), small.fitted, small.recipe)
    found = gallery(many)
    assert found.left_out == "Shown: the first 10 of 100 images of each class in each block."
    assert sum(len(cell) for _, cells in found.rows for cell in cells) == 2_000
    assert found.rows[99][0] == "99"
    assert (
        gallery(many, 3, 2).left_out
        == "Shown: the first 3 of 100 classes and the first 2 of 100 images of each class in each "
        "block."
    )


def test_a_line_that_was_measured_twice_is_shown_once():
    def measured(*names: str) -> Measured:
        rows = tuple(
            Row(name, "convnet", 10, 1, 300, Figure(0.5, 0.1, 3), "fixed steps", 40, 0.1)
            for name in names
        )
        record = EvaluationRecord(
            rows, "test", 100, "image", 10, DataSource("x"), {}, True, "a machine", {"torch": "2"}
        )
        return Measured(record, same_data=True)

    ((rows, _),) = tables([measured("distilled"), measured("distilled", "random", "full")])
    assert [row.name for row in rows] == ["distilled", "random", "full"]
