"""Weights of a user's own for the real images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_archives import load, pack, photos, png, unpack
from test_runs import QUICK, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.data.arrays import from_arrays, with_weights
from potstill.data.preparation import prepare
from potstill.data.sampling import Weighted
from potstill.distillation.outer import Carried
from potstill.distillation.run_folder import RunFolder
from potstill.distillation.setup import Setup
from potstill.errors import InputError
from potstill.evaluation.hardness import hardness_weights
from potstill.progress import SILENT
from potstill.seeds import generator

COUNT = 90
WEIGHTS = np.arange(COUNT) % 4
"""A quarter of them 0."""


def arrays():
    """Images whose every pixel is their weight, and their classes."""
    images = torch.as_tensor(WEIGHTS, dtype=torch.float32).reshape(COUNT, 1, 1).expand(COUNT, 8, 8)
    return images.contiguous(), torch.arange(COUNT) % 3


def setup(**options) -> Setup:
    config = configuration(
        {
            **QUICK,
            "ipc": 1,
            "classes_per_batch": 2,
            "data": "arrays",
            "preprocess": "none",
            "device": "cpu",
            **options,
        }
    )
    return Setup.of(config, with_weights(from_arrays(*arrays()), WEIGHTS), None, SILENT)


def test_each_weight_stays_with_its_image_and_decides_how_often_it_is_drawn():
    real = setup().problem(setup().stage(None), Carried()).real
    sampler, train = real.sampler, real.train
    rng, draws = generator(0), 4000
    images = torch.cat([train.take(sampler.draw(train, 1, rng))[0] for _ in range(draws)])
    drawn = torch.bincount(images[:, 0, 0, 0].int(), minlength=4) / draws
    expected = torch.bincount(train.images[:, 0, 0, 0].int(), minlength=4) * torch.arange(4)
    assert drawn[0] == 0
    assert (drawn - expected / expected.sum()).abs().max() < 4 * 0.5 / draws**0.5


def test_a_hardness_sampler_multiplies_them():
    known = setup(real_sampler="hardness", hardness_nets=2)
    count = len(known.real.train)
    scores = torch.arange(count).remainder(3).to(torch.uint8)
    sampler = known.problem(known.stage(None), Carried(sampler={"scores": scores})).real.sampler
    assert isinstance(sampler, Weighted)
    assert torch.equal(sampler.weights, known.real.weights * hardness_weights(scores, 1, 2))
    assert torch.equal(known.real.weights, known.real.train.images[:, 0, 0, 0].double())


def test_a_run_with_weights_is_another_run_and_resumes_with_the_same_ones_only(tmp_path):
    weights = torch.rand(1797, generator=generator(3))
    whole = potstill.distill(**QUICK, weights=weights)
    assert not torch.equal(whole.images, potstill.distill(**QUICK).images)
    assert "identity" in whole.meta["data"]
    interrupted_run(tmp_path / "cut", 5, weights=weights)
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "cut.html")]) == 0
    page = (tmp_path / "cut.html").read_text()
    assert "by weights of their own" in page
    assert "--resume" not in page  # no command has the weights
    shutil.copytree(tmp_path / "cut", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints")  # as if it was killed before the first
    with pytest.raises(
        InputError, match="was started with other data or weights; give it those again"
    ):
        potstill.resume(tmp_path / "early")
    for others in (None, weights.flip(0)):
        with pytest.raises(
            InputError, match="was started with other data or weights; give it those again"
        ):
            potstill.resume(tmp_path / "cut", weights=others)
    assert torch.equal(potstill.resume(tmp_path / "cut", weights=weights).images, whole.images)
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "cut.html")]) == 0
    page = (tmp_path / "cut.html").read_text()
    assert "by weights of their own" in page
    assert "Make it again" not in page  # no command has the weights


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            np.ones(4),
            r"weights must be a number for each of the 90 training images .*, got shape \(4,\) of "
            r"type float64",
        ),
        (
            ["1"] * COUNT,
            r"weights must be a number for each of the 90 training images .*, got shape \(90,\) of "
            r"type <U1",
        ),
        (-WEIGHTS, "weights must be finite and at least 0, and not all 0, got -3 to 0"),
        (
            np.full(COUNT, np.nan),
            "weights must be finite and at least 0, and not all 0, got nan to nan",
        ),
        (np.zeros(COUNT), "weights must be finite and at least 0, and not all 0, got 0 to 0"),
    ],
)
def test_what_is_no_weights_is_refused(weights, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.distill(*arrays(), ipc=1, weights=weights)


def test_weights_that_only_held_out_images_have_are_refused():
    numbered = torch.arange(COUNT, dtype=torch.float32).reshape(COUNT, 1, 1).expand(COUNT, 8, 8)
    dataset, config = from_arrays(numbered, arrays()[1]), configuration(preprocess="none")
    real = prepare(dataset, config.data, torch.device("cpu"), config.preprocessing)
    only = np.eye(COUNT)[int(real.validation.images[0, 0, 0, 0])]
    with pytest.raises(
        InputError,
        match="weights must be above 0 for some image that is not held out, all of those have 0",
    ):
        prepare(with_weights(dataset, only), config.data, torch.device("cpu"), config.preprocessing)


def test_diagnosing_takes_no_more_samples_than_have_a_weight(tmp_path):
    weights = np.zeros(1797)
    weights[:40] = 1
    potstill.distill(**QUICK, weights=weights, out=tmp_path / "run")
    with pytest.raises(
        InputError, match=r"samples x size must be at most the \d\d train images, got 100 x 1"
    ):
        potstill.diagnose(tmp_path / "run", weights=weights)
    (start, *_) = potstill.diagnose(tmp_path / "run", weights=weights, samples=10)
    assert start.real[0].n == 10


# By a column or a file


SIX = [0, 1.5, 2, 3, 0.25, 7]
FLAGS = [
    *("--model", "mlp", "--width", "8", "--steps", "4", "--unroll", "4", "--window", "2"),
    *("--lengths", "5", "--validation-nets", "1", "--compile", "off", "--threads", "1"),
    *("--preprocess", "none", "--real-batch", "2", "--validate-every", "4"),
]


def rows(values: list[Any]) -> list[dict[str, Any]]:
    """Six images of two classes, the weight of each, and one for tests, whose does not count."""
    train = [
        {"file_name": f"{index}.png", "label": "ab"[index % 2], "w": value, "split": "train"}
        for index, value in enumerate(values)
    ]
    return [*train, {"file_name": "9.png", "label": "a", "w": values[1], "split": "test"}]


def written(kind: str, root: Path, values: list[Any]) -> Path:
    """The data of `rows`, in one of the formats that have columns."""
    known = rows(values)
    images = {row["file_name"]: png(index) for index, row in enumerate(known)}
    lines = [",".join(known[0]), *(",".join(map(str, row.values())) for row in known)]
    metadata = {
        "metadata.csv": "\n".join(lines).encode(),
        "metadata.jsonl": "\n".join(map(json.dumps, known)).encode(),
    }
    if kind in metadata:
        return unpack(root, images | {kind: metadata[kind]})
    if kind == "zip":
        root.mkdir()
        return pack(root / "set.zip", images | {"metadata.csv": metadata["metadata.csv"]})
    if kind == "csv":
        return unpack(root, images | {"list.csv": metadata["metadata.csv"]}) / "list.csv"
    root.mkdir()
    for split in ("train", "test"):
        some = [row for row in known if row["split"] == split]
        if kind == "parquet":
            table = {
                "image": [images[row["file_name"]] for row in some],
                "label": [row["label"] for row in some],
                "w": [row["w"] for row in some],
            }
            pq.write_table(pa.table(table), root / f"{split}.parquet")
        else:
            files = {row["file_name"]: images[row["file_name"]] for row in some}
            files |= {f"{row['file_name'][0]}.json": json.dumps(row).encode() for row in some}
            pack(root / f"{split}-0.tar", files)
    return root


TABLES = ["metadata.csv", "metadata.jsonl", "zip", "csv", "parquet", "webdataset"]


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_of_the_train_split_holds_the_weights(kind, tmp_path):
    dataset = load(written(kind, tmp_path / "set", SIX), tmp_path, weights="w")
    assert dataset.weights is not None
    assert dataset.weights.tolist() == SIX
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    other = load(tmp_path / "set" / {"zip": "set.zip", "csv": "list.csv"}.get(kind, ""), tmp_path)
    assert other.weights is None
    assert other.fingerprint == dataset.fingerprint
    assert other.identity != dataset.identity


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    ("values", "column", "sentence"),
    [
        (["x"] * 6, "w", r"weights column 'w' must hold a number .* train row 0 holds 'x'; fill"),
        ([1, 1, -1, 1, 1, 1], "w", r"weights w must be finite and at least 0, .*, got -1 to 1"),
        ([0] * 6, "w", r"weights w must be finite and at least 0, and not all 0, got 0 to 0"),
        ([float("nan")] * 6, "w", r"weights w must be finite and at least 0, .* got nan to nan"),
        (SIX, "label", r"weights column 'label' must hold a number .* holds 'a'"),
        (SIX, "weight", r"no column 'weight'.* for --weights; give one of|row 0 holds None"),
    ],
)
def test_a_column_that_holds_no_weights_is_told(kind, values, column, sentence, tmp_path):
    place = written(kind, tmp_path / "set", values)
    with pytest.raises(InputError, match=sentence):
        load(place, tmp_path, weights=column)


def test_a_column_of_weights_is_none_of_the_features(tmp_path):
    lines = ["length,width,w,kind", *(f"{i},{i % 7},{i % 4},{'ab'[i % 2]}" for i in range(30))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    dataset = load(path, tmp_path, weights="w")
    assert dataset.feature_names == ("length", "width")
    assert dataset.weights is not None
    assert dataset.weights.tolist() == [i % 4 for i in range(30)]
    out = tmp_path / "run"
    assert main(["distill", "--data", str(path), "--weights", "w", *FLAGS, "--out", str(out)]) == 0
    assert potstill.load(out).feature_names == ("length", "width")
    assert main(["evaluate", str(out), "--nets", "1"]) == 0


@pytest.mark.parametrize("name", ["w.npy", "w.txt", "w.csv"])
def test_a_file_holds_the_weights_in_the_order_of_the_train_split(name, tmp_path):
    path = pack(tmp_path / "photos.zip", photos(("train", "test")))
    if name == "w.npy":
        np.save(tmp_path / name, np.array(SIX))
    else:
        heading = "weight\r\n" if name == "w.csv" else ""
        (tmp_path / name).write_text(heading + "\n".join(map(str, SIX)) + "\n\n")
    dataset = load(path, tmp_path, weights=str(tmp_path / name))
    assert dataset.weights is not None
    assert dataset.weights.tolist() == SIX


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.txt", "1\n2\n3", r"weights .*w.txt must be a number for each of the 6 training images"),
        ("w.txt", "1\n2\nx\n4\n5\n6", r"line 3 of the weights .* must hold one number, .* 'x'; c"),
        ("w.txt", "1\n\n2\n3\n4\n5\n6", r"line 2 of the weights .* must hold one number, .* ''"),
        ("w.csv", "0,1\n1,2", r"line 2 of the weights .* must hold one number, it holds '1,2'"),
        ("w.txt", "1\n1\n1\n1\n1\n-1", r"w.txt must be finite and at least 0, .*, got -1 to 1"),
        ("w.txt", "0\n" * 6, r"w.txt must be finite and at least 0, and not all 0, got 0 to 0"),
        ("w.txt", "inf\n" * 6, r"w.txt must be finite and at least 0, .*, got inf to inf"),
        ("w.txt", "", r"must be a number for each of the 6 training images .* got shape \(0,\)"),
        ("w.npy", "x", r"cannot read the weights .*w.npy: .*; write them with numpy.save"),
        ("w.npy", np.ones((6, 1)), r"must be a number for each of the 6 .* got shape \(6, 1\)"),
        ("w.npy", np.array([{}] * 6, object), r"cannot read the weights .*: .*pickle"),
        ("w.npy", None, r"weights .*w.npy must be a file of numbers or a column, there is no such"),
        ("w", None, r"weights must be a file \(.npy, .csv or .txt\) where data have no columns"),
    ],
)
def test_a_file_that_holds_no_weights_is_told(name, content, sentence, tmp_path, capsys):
    path = pack(tmp_path / "photos.zip", photos(("train", "test")))
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        np.save(tmp_path / name, content, allow_pickle=True)
    given = name if name == "w" else str(tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        load(path, tmp_path, weights=given)
    assert main(["distill", "--data", str(path), "--weights", given]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_by_weights_of_a_file_is_recorded_resumed_and_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pack(tmp_path / "photos.zip", photos(("train", "test")))
    weights = tmp_path / "mine.txt"
    weights.write_text("0\n" + "\n".join(map(str, [2, 1, 3, 1, 5])))
    cache = ["--cache-dir", str(tmp_path / "cache")]
    given = ["--data", str(path), "--weights", weights.name, *FLAGS, *cache, "--ipc", "1"]
    out, long = tmp_path / "run", tmp_path / "long"
    assert main(["distill", *given, "--out", str(out)]) == 0
    assert RunFolder(out).config().data.weights == str(weights)
    meta = potstill.load(out).meta
    assert (meta["config"]["data"]["weights"], "identity" in meta["data"]) == ("mine.txt", True)
    assert main(["distill", *given, "--steps", "8", "--out", str(long)]) == 0
    weights.rename(tmp_path / "moved.txt")
    assert main(["evaluate", str(out), "--nets", "1"]) == 0
    assert main(["distill", "--resume", str(out), "--steps", "8"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    moved = ["--weights", str(tmp_path / "moved.txt")]
    assert main(["distill", "--resume", str(out), "--steps", "8", *moved]) == 0
    assert torch.equal(potstill.load(out).images, potstill.load(long).images)
    (tmp_path / "moved.txt").write_text("1\n" * 6)
    shutil.rmtree(long / "checkpoints")
    capsys.readouterr()
    assert main(["distill", "--resume", str(out), "--steps", "9", *moved]) == 2
    assert "was started with other data or weights; give it those again" in capsys.readouterr().err
    assert main(["diagnose", str(out), "--samples", "2", *moved]) == 2
    (tmp_path / "moved.txt").write_text("0\n2\n1\n3\n1\n5")
    assert main(["diagnose", str(out), "--samples", "2", *moved]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "by weights of their own (moved.txt)" in page
    assert "Make it again" in page


def test_a_name_of_weights_may_be_given_in_python(tmp_path):
    weights = torch.rand(1797, generator=generator(3)).double()
    np.save(tmp_path / "w.npy", weights.numpy())
    by_file = potstill.distill(**QUICK, weights=tmp_path / "w.npy")
    by_array = potstill.distill(**QUICK, weights=weights)
    assert torch.equal(by_file.images, by_array.images)
    images, labels = arrays()
    np.save(tmp_path / "few.npy", WEIGHTS)
    given = {**QUICK, "data": "arrays", "classes_per_batch": 2, "preprocess": "none"}
    by_file = potstill.distill(images, labels, **given, weights=str(tmp_path / "few.npy"))
    by_array = potstill.distill(images, labels, **given, weights=WEIGHTS)
    assert torch.equal(by_file.images, by_array.images)
    potstill.distill(**QUICK, weights=tmp_path / "w.npy", out=tmp_path / "run")
    assert RunFolder(tmp_path / "run").config().data.weights == str(tmp_path / "w.npy")
    (start, *_) = potstill.diagnose(tmp_path / "run", samples=4)
    assert start.real[0].n == 4
    with pytest.raises(InputError, match="was started with other data or weights"):
        potstill.diagnose(tmp_path / "run", samples=4, weights=weights.flip(0))
    with pytest.raises(InputError, match="where data have no columns, got 'w' with data arrays"):
        potstill.distill(images, labels, ipc=1, weights="w")
