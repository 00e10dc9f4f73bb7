"""The studies that the docs show: their pages are what today's code makes of their tables."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from potstill import files
from potstill.studies.claims import as_data
from potstill.studies.results import Measurement, Quantity, Results

ROOT = Path(__file__).parent.parent
FOLDERS = sorted((ROOT / "docs" / "studies").iterdir())
made = runpy.run_path(str(ROOT / "benchmarks" / "studies_again.py"))
again, study_of = made["again"], made["study_of"]


def results_of(folder: Path) -> Results:
    study = study_of(folder.name.rsplit("-", 2)[0])
    return Results.of_csv((folder / "results.csv").read_text(encoding="utf-8"), study.quantities)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_is_made_from_the_table(folder):
    assert again(folder) == (folder / "summary.md").read_text(encoding="utf-8")


def test_another_number_in_the_table_is_another_page(tmp_path):
    source = FOLDERS[0]
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    table = (folder / "results.csv").read_text(encoding="utf-8")
    first = table.splitlines()[1].split(",")
    mean = next(cell for cell in first if cell.startswith("0."))
    (folder / "results.csv").write_text(table.replace(mean, "0.123", 1), encoding="utf-8")
    assert again(folder) != (folder / "summary.md").read_text(encoding="utf-8")


def test_a_table_survives_its_file():
    rows = (
        Measurement("accuracy", 'a "way", at that size', 0.5, 3, 0.1 + 0.2, 1e-17, 5, "x; y"),
        Measurement("bytes", "pixels", 2, 0, 5120.0, None, 1, ""),
    )
    known = Results(rows, (Quantity("bytes", "budget"),))
    assert Results.of_csv(known.csv(), known.quantities) == known


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_claim_is_told_once_and_can_be_written_as_data(folder):
    study = study_of(folder.name.rsplit("-", 2)[0])
    claims = study.claims(results_of(folder))
    assert len({(claim.source, claim.words) for claim in claims}) == len(claims)
    told = ("Paper (", "Not in the paper")  # the second of a study of our own
    assert any(claim.source.startswith(told) and claim.findings for claim in claims)
    known = {"holds", "against", "undecided", "one seed", None}
    for claim in json.loads(files.canonical(as_data(claims))):
        for finding in claim["findings"]:
            assert finding["verdict"] in known
            assert all(reading["words"] for reading in finding["readings"])
            if finding["difference"] and finding["verdict"]:
                values = finding["difference"]["values"]
                agreed = all(value > 0 for value in values) or all(value < 0 for value in values)
                assert agreed == (finding["verdict"] in ("holds", "against"))
