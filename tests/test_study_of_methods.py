"""The study of methods: every method has a run, the scores are DD-Ranking's, and one table tells
all.
"""

import base64
import dataclasses
import hashlib
import json
import math
import mmap
import re
from pathlib import Path

import pytest
import torch
from test_page import page

from potstill.cli.parser import main
from potstill.config.config import DataConfig, configuration
from potstill.data.sources import read
from potstill.devices import forget_peak_memory, peak_memory_mb
from potstill.errors import InputError
from potstill.registry import METHODS
from potstill.studies import methods
from potstill.studies.methods import (
    ALL,
    AUGMENTATION_ROBUST,
    BARE,
    COMMON,
    LABEL_ROBUST,
    OWN,
    OWN_RANDOM,
    RANDOM,
    Methods,
    scale_of,
)
from potstill.studies.page import Told
from potstill.studies.published import CIFAR10, CIFAR10_CLASSES, MNIST, printed
from potstill.studies.results import Measurement, Quantity, Results, grids
from potstill.studies.runner import run_study
from potstill.studies.workplace import Workplace

E = math.e


def measured(quantity: Quantity, way: str, *means: float, at: float = 1) -> list[Measurement]:
    return [
        Measurement(quantity.name, way, at, seed, mean, None, 1, "")
        for seed, mean in enumerate(means)
    ]


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("ipc", [1, 10])
def test_every_method_has_a_run(method, ipc):
    options = scale_of("small", None).run(method, ipc, 5)
    config = configuration(options)
    assert config.method.name == method
    assert (config.run.seed, config.data.data) == (5, "digits")
    assert config.distilled.ipc == (2 if (method, ipc) == ("haba", 1) else ipc)
    assert config.preprocessing.name == "normalize"
    assert config.model.options.width == 32
    if "time_budget" not in METHODS[method].needs.unused:
        assert options["time_budget"] == "about 20s"
        shorter = scale_of("small", None, "5s").run(method, ipc, 5)
        assert shorter["time_budget"] == "about 5s"


def test_scores_are_those_of_dd_ranking():
    rows = (
        *measured(COMMON, RANDOM, 0.4, 0.5),
        *measured(COMMON, "dm", 0.6, 0.7),
        *measured(COMMON, ALL, 0.9),
        *measured(BARE, RANDOM, 0.3, 0.3),
        *measured(BARE, "dm", 0.5, 0.2),
        *measured(OWN, "dm", 0.65, 0.75),
        *measured(OWN_RANDOM, "dm", 0.45, 0.6),
    )
    results = Results(rows, Methods.quantities).completed()
    score = lambda gain: (math.exp(gain) - 1 / E) / (E - 1 / E)  # noqa: E731
    assert results[LABEL_ROBUST].cell("dm", 1) == pytest.approx(
        {0: score(0.5 * (0.65 - 0.45) - 0.5 * (0.9 - 0.6)), 1: score(0.5 * 0.15 - 0.5 * 0.2)}
    )
    assert results[AUGMENTATION_ROBUST].cell("dm", 1) == pytest.approx(
        {0: score(0.5 * 0.2 + 0.5 * 0.2), 1: score(0.5 * 0.2 - 0.5 * 0.1)}
    )
    assert score(0) == pytest.approx(0.2689, abs=1e-4)
    # Without what they follow from there are none.
    assert not Results(rows[:4], Methods.quantities).completed()[LABEL_ROBUST].rows


def test_quantities_that_stand_together_are_columns_of_one_table():
    rows = (
        *measured(COMMON, "dm", 0.6),
        *measured(COMMON, "kip", 0.7, at=10),
        *measured(methods.STEPS, "dm", 12),
        *measured(methods.STEPS, RANDOM, 1),
    )
    tables = Results(rows, Methods.quantities).tables
    first, second = grids(tables)
    assert (first.name, first.heads) == ("At 1 a class", ("test accuracy", "outer steps"))
    assert [(way, [words for words, _ in cells]) for way, cells in first.rows] == [
        ("dm", ["60.0 %", "12"]),
        (RANDOM, ["", "1"]),
    ]
    assert (second.name, second.heads) == ("At 10 a class", ("test accuracy",))
    assert [way for way, _ in second.rows] == ["kip"]
    told = Told("T", "About.", (), (), tables, "Note.").markdown()
    assert "| At 1 a class | test accuracy | outer steps |\n|---|---|---|\n| dm | 60.0 % |" in told


def test_the_page_sorts_by_a_script_that_its_policy_knows(tmp_path):
    rows = (*measured(COMMON, "dm", 0.6), *measured(COMMON, "kip", 0.7))
    found = page(tmp_path, tables=Results(rows, Methods.quantities).tables)
    (script,) = re.findall(r"<script>(.*?)</script>", found.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in found.source
    assert len(found.all("button")) == 1
    assert [cell["data-value"] for cell in found.all("td") if "data-value" in cell] == [
        "0.6", "0.7",
    ]  # fmt: skip


def test_published_figures_are_of_the_same_data_only():
    names = tuple(sorted(CIFAR10_CLASSES))
    digits = tuple(map(str, range(10)))
    assert printed("dsa", 10, "folder:x", (3, 32, 32), names) == 0.521
    assert printed("dsa", 1, "parquet:/data/mnist", (1, 28, 28), digits) == 0.887
    assert printed("dsa", 1, "hf:ylecun/mnist", (1, 32, 32), digits) == 0.887
    for other in ("hf:zalando/fashion_mnist", "idx:/kmnist", "npz:digits.npz"):
        assert printed("dsa", 1, other, (1, 28, 28), digits) is None
    assert printed("dsa", 1, "parquet:mnist", (1, 8, 8), digits) is None
    assert printed("dsa", 5, "folder:x", (3, 32, 32), names) is None
    assert printed("random", 1, "folder:x", (3, 32, 32), names) is None
    assert printed("dsa", 1, "folder:x", (3, 32, 32), digits) is None
    assert {*CIFAR10, *MNIST} <= set(METHODS)
    assert all(0 < one < ten < 1 for one, ten in (*CIFAR10.values(), *MNIST.values()))


def test_the_study_tells_methods_beside_random_images_and_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "printed", lambda method, *_: {"kip": 0.901}.get(method))
    study = Methods()
    chosen = ("random", "dm", "kip", "rat-bptt")
    few = [
        point
        for point in study.points("small", None, [0], 2)
        if point.options["method"] in chosen and point.options["ipc"] == 1
    ]
    tiny = {"width": 4, "real_batch": 20, "lengths": (5,), "unroll": 4, "window": 2}
    few = [
        dataclasses.replace(
            point,
            options={
                **point.options,
                **{name: tiny[name] for name in tiny if name in point.options},
            },
        )
        for point in few
    ]
    folder = tmp_path / "s"
    place = Workplace(folder, tmp_path / "r", read(DataConfig()), 2, "cpu", 1)
    run_study(study, few, place, study.about("small", None, 2))
    told = (folder / "summary.md").read_text(encoding="utf-8")
    (head,) = (line for line in told.splitlines() if line.startswith("| At 1 a class"))
    assert "label-robust score | augmentation-robust score | accuracy in print" in head
    rows = {line.split(" | ")[0] for line in told.splitlines() if line.startswith("| ")}
    assert {"| random", "| dm", "| kip", "| rat-bptt", f"| {RANDOM}", f"| {ALL}"} <= rows
    assert "in print: 90.1 %; the published setting has wider networks" in told
    claims = json.loads((folder / "claims.json").read_text())
    assert [claim["words"] for claim in claims][:2] == [
        "the best of all methods, beside the second",
        "what is below what is in print for it",
    ]
    results = Results.of_csv((folder / "results.csv").read_text(), study.quantities)
    assert results[COMMON].cell(ALL, 1)[0] > results[COMMON].cell(RANDOM, 1)[0]
    assert results[methods.STEPS].cell("dm", 1) == {0: 2}
    assert set(results[LABEL_ROBUST].ways()) == {*chosen}
    assert set(results[AUGMENTATION_ROBUST].ways()) == {*chosen}
    assert (folder / "kip-1-seed0.png").exists()
    # Kernel regression is how a set of KIP is measured by its own recipe.
    (own,) = (row for row in results[OWN].rows if row.way == "kip")
    assert "kernel ridge regression" in own.detail


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods", "--time-budget", "soon"], "time_budget must be a time such as 10m"),
        (["unroll", "--time-budget", "5m"], "it is for levers, methods: leave --time-budget out"),
        (["methods", "--time-budget", "5m", "--steps", "9"], "has no effect with --steps, got 5m"),
        (["methods", "--method", "dm"], "method has no effect on the study methods"),
        (["methods", "--preset", "paper"], "data must be given for the preset paper"),
    ],
)
def test_what_a_study_does_not_take_is_one_sentence(words, message, capsys):
    assert main(["study", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 2


def test_five_minutes_is_a_time_for_the_study():
    about = Methods("5m").about("small", None)
    assert "about 5 min 0 s for every run" in about
    with pytest.raises(InputError):
        Methods().about("paper", None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_a_peak_of_memory_can_be_forgotten():
    cpu = torch.device("cpu")
    with mmap.mmap(-1, 200_000_000) as large:  # which is given back, whatever malloc does
        large.write(b"x" * 200_000_000)
    before = peak_memory_mb(cpu)
    forget_peak_memory(cpu)
    assert peak_memory_mb(cpu) < before - 100
