"""How large the file of a set is, and a set without what takes most of it."""

import pytest
import torch
from rich.filesize import decimal
from test_cli import photos, told
from test_runs import flags

import potstill
from potstill.cli.parser import main
from potstill.distilled import artefact
from potstill.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("sizes") / "run"
    assert main(["distill", "--out", str(out), *flags(preprocess="zca"), "--quiet"]) == 0
    return out


def test_a_set_is_exported_without_its_preprocessing_and_says_what_is_missing(
    run, tmp_path, capsys
):
    small = tmp_path / "small.safetensors"
    assert main(["export", str(run), "--without-preprocessing", "--out", str(small)]) == 0
    output = capsys.readouterr().out
    assert "can be trained on, but real examples cannot be prepared" in output
    distilled, whole = potstill.load(small), potstill.load(run)
    assert torch.equal(distilled.images, whole.images)
    matrix = whole.fitted.state()["matrix"]
    assert run.joinpath(artefact.ARTEFACT).stat().st_size - small.stat().st_size > matrix.nbytes
    potstill.train(distilled, steps=2)
    for use in (lambda: distilled.preprocess(torch.rand(2, 8, 8)), lambda: distilled.pixels):
        with pytest.raises(InputError, match="exported without its preprocessing"):
            use()
    # Of the data that it was distilled from it is fitted again.
    rows = [potstill.evaluate(path, nets=2, device="cpu")[0] for path in (run, small)]
    assert rows[0].accuracy == rows[1].accuracy
    other = torch.rand(60, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="these are other data"):
        potstill.evaluate(distilled, test_images=other, test_labels=torch.arange(60) % 10)
    again = tmp_path / "again.safetensors"
    potstill.save(distilled, again)
    assert again.read_bytes() == small.read_bytes()
    words = ["export", str(run), "--without-preprocessing", "--format", "npz"]
    assert "which never holds the preprocessing; leave it out" in told(capsys, *words)


def test_the_size_of_the_file_is_told_in_parts_that_add_up(run, tmp_path, capsys):
    parts = artefact.parts_of_file(potstill.load(run), run / artefact.ARTEFACT)
    assert sum(parts.values()) == (run / artefact.ARTEFACT).stat().st_size
    distilled = potstill.load(run)
    assert parts["the set"] == distilled.stored_bytes
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    folder = tmp_path / "photos"
    photos(folder, [(8, 8)])
    (folder / "notes.txt").write_text("0123456789")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    words = [
        "distill",
        "--data",
        f"folder:{folder}",
        "--out",
        str(tmp_path / "run"),
        *flags(steps=2, ipc=1, classes_per_batch=2),
    ]
    assert main(words) == 0
    output, made = capsys.readouterr().out, tmp_path / "run"
    assert (
        f"file:          {artefact.file_words(potstill.load(made), made / artefact.ARTEFACT)}"
        in output
    )
    assert f"real data:     {decimal(size)} on disk" in output
    assert potstill.load(tmp_path / "run").metadata.data.disk_bytes == size
    assert main(["report", str(tmp_path / "run")]) == 0
    assert decimal(size) in (tmp_path / "run" / "report.html").read_text()
