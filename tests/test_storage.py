"""The study of parameterisations."""

from test_runs import QUICK

from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.registry import PARAMETERISATIONS
from potstill.studies import parameterisations
from potstill.studies.results import Results
from potstill.studies.runner import run_study
from potstill.studies.workplace import Workplace, read_point


def test_the_study_of_table_2_runs_from_end_to_end(monkeypatch, tmp_path):
    options = {
        name: value
        for name, value in QUICK.items()
        if name not in ("threads", "classes_per_batch", "ipc", "learn_labels")
    }
    small = {
        **options,
        "data": "digits",
        "preprocess": "none",
        "steps": 4,
        "validate_every": 2,
        "unroll": 2,
        "window": 1,
    }
    monkeypatch.setattr(
        parameterisations,
        "scale_of",
        lambda preset, data: parameterisations.Scale({1: small, 2: small}),
    )
    study, workplace = (
        parameterisations.Parameterisations(),
        Workplace(tmp_path / "study", tmp_path / "runs", read(DataConfig()), nets=2, threads=1),
    )
    points = study.points("small", None, (0, 1))
    run_study(study, points, workplace, study.about("small", None))
    table = Results(
        tuple(row for point in points for row in read_point(workplace.file(point))),
        study.quantities,
    )
    assert table[parameterisations.BYTES].cell("pixels", 2) == {0: 5120, 1: 5120}
    assert table[parameterisations.BYTES].cell("multi-formation", 2) == {0: 5120, 1: 5120}
    # 8 x 16 + 140 x 8 numbers.
    assert table[parameterisations.BYTES].cell("basis", 2) == {
        0: 4992,
        1: 4992,
    }
    # 5 x (2 x 9 + 2 x 16) + 60 x 16 numbers.
    assert table[parameterisations.BYTES].cell("factorised", 2) == {
        0: 4840,
        1: 4840,
    }
    assert table[parameterisations.DECODED].cell("basis", 1) == {0: 6, 1: 6}
    assert table[parameterisations.VALIDATION].positions("basis") == [2, 4]
    assert set(table[parameterisations.ACCURACY_BY_BUDGET].ways()) == {
        *PARAMETERISATIONS,
        "random real",
    }
    summary = (workplace.folder / "summary.md").read_text()
    assert summary.count("Paper (Table 2") == 6
    sizes = "pixels: 2,560; multi-formation: 2,560; basis: 2,432; factorised: 2,280."
    assert (
        f"- Bytes stored. At 1 a class, {sizes}\n- Bytes stored. At 2 a class, pixels: 5,120;"
        in summary
    )
    assert "nan" not in summary
    shown = [
        line.split("(")[-1].rstrip(")") for line in summary.splitlines() if line.startswith("![")
    ]
    assert len(shown) == 6
    assert all((workplace.folder / picture).stat().st_size > 1000 for picture in shown)
