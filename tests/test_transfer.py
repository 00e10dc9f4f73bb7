"""The study of other architectures."""

import pytest
from test_runs import QUICK

from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.studies import transfer
from potstill.studies.results import ACCURACY_BY_SIZE, Results
from potstill.studies.runner import run_study
from potstill.studies.transfer import DIRECT, MODELS, Scale, Transfer, carried, direct
from potstill.studies.workplace import Workplace, read_point


def test_the_study_runs_from_end_to_end(monkeypatch, tmp_path):
    left = ("threads", "classes_per_batch", "learn_labels", "depth", "width", "model")
    small = {name: value for name, value in QUICK.items() if name not in left}
    small |= {
        "data": "digits",
        "preprocess": "none",
        "init": "real",
        "ipc": 1,
        "steps": 2,
        "unroll": 2,
        "window": 1,
        "lengths": (2, 4),
    }
    monkeypatch.setattr(
        transfer, "scale_of", lambda preset, data: Scale(small, dict.fromkeys(MODELS, 8))
    )
    study, workplace = (
        Transfer(),
        Workplace(tmp_path / "study", tmp_path / "runs", read(DataConfig()), nets=1, threads=1),
    )
    points = study.points("small", None, (0, 1))
    run_study(study, points, workplace, study.about("small", None))
    table = Results(
        tuple(row for point in points for row in read_point(workplace.file(point))),
        study.quantities,
    )[ACCURACY_BY_SIZE]
    assert set(table.ways()) == {carried(model) for model in MODELS} | {
        direct(model) for model in DIRECT
    }
    assert all(set(table.cell(way, 1)) == {0, 1} for way in table.ways())
    chosen = {
        row.way for row in table.rows if "learning rate chosen on validation data" in row.detail
    }
    assert chosen == {carried(model) for model in MODELS[1:]}  # a set's own network keeps its own
    summary = (workplace.folder / "summary.md").read_text()
    assert summary.count("Paper (") == 6
    assert (workplace.folder / "transfer.png").stat().st_size > 1000


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_sets_are_distilled_for_the_networks_that_the_paper_names(preset):
    points = Transfer().points(preset, None if preset == "small" else "parquet:cifar10", (0,))
    names = [*(["vgg11"] if preset == "small" else []), "alexnet", "resnet18", "convnet"]
    assert [point.config.model.name for point in points] == names
    deep = {getattr(point.config.model.options, "network_init", "") for point in points[:-1]}
    assert deep == {"identity" if preset == "small" else "pytorch"}
