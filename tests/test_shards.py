"""WebDataset: shards of samples, their labels and splits."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_archives import load, pack, photos, png
from test_layouts import shades

from potstill.config.sections import DataConfig
from potstill.errors import InputError

Files = dict[str, bytes]


class Harm:
    """A pickle of it would fail the test if it was loaded."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def samples(labels: list[Any], first: int = 0, kind: str = "cls") -> Files:
    """A sample of each label, of shades first, first + 1, ..."""
    files: Files = {}
    for shade, label in enumerate(labels, first):
        key = f"{shade:06}"
        told = str(label) if kind == "cls" else json.dumps(label)
        files |= {f"{key}.png": png(shade), f"{key}.{kind}": told.encode()}
    return files


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_shards_are_split_by_their_names_and_read_in_their_order(end, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    pack(root / f"train-000001.{end}", samples([1, 0], 10))
    pack(root / f"train-000000.{end}", samples([0, 10, 1, 9], 0))
    pack(root / f"val-000000.{end}", samples([1], 20))
    pack(root / f"test-000000.{end}", samples([9, 10], 30))
    config = DataConfig(data=str(root))
    assert config.source == ("webdataset", str(root))
    dataset = load(root, tmp_path)
    # Numbers are in their order: 10 comes after 9.
    assert dataset.class_names == ("0", "1", "9", "10")
    assert shades(dataset.train) == [0, 1, 2, 3, 10, 11]
    assert dataset.train.labels.tolist() == [0, 3, 1, 2, 1, 0]
    assert dataset.validation is not None
    assert dataset.test is not None
    assert (shades(dataset.validation), dataset.validation.labels.tolist()) == ([20], [1])
    assert (shades(dataset.test), dataset.test.labels.tolist()) == ([30, 31], [2, 3])
    assert dataset.origins == {
        "train": f"train-000000.{end}, train-000001.{end}",
        "validation": f"val-000000.{end}",
        "test": f"test-000000.{end}",
    }
    assert dataset.left_out == ()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train/0.tar", "test/0.tar"), {"train", "test"}),
        (("cifar10-train-0.tar", "cifar10-test-0.tar"), {"train", "test"}),
        (("a-0.tar", "a-1.tar"), {"train"}),
        (("train-0.tar", "extra-0.tar"), {"train"}),
    ],
)
def test_a_shard_may_tell_its_split_by_a_word_or_a_folder(names, splits, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pack(tmp_path / "set" / name, samples(["cat", "dog"], 10 * number))
    dataset = load(tmp_path / "set", tmp_path)
    assert set(dataset.splits) == splits
    assert dataset.class_names == ("cat", "dog")
    if "extra-0.tar" in names:
        assert dataset.left_out == ("extra-0.tar, of no split that is known by its name",)


def test_a_label_means_its_name_in_every_shard(tmp_path):
    (tmp_path / "set").mkdir()
    pack(tmp_path / "set" / "train-0.tar", samples(["dog", "cat"]))
    pack(tmp_path / "set" / "test-0.tar", samples(["cat", "dog"], 10))
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is not None
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0], [0, 1])
    pack(tmp_path / "set" / "test-0.tar", samples(["cat", "eel"], 10))
    with pytest.raises(InputError, match=r"must occur in train \(2 classes\), test row 1 .*'eel'"):
        load(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([{"label": "cat"}, {"label": "dog"}], {}),
        ([{"cls": 0, "caption": "a"}, {"cls": 1, "caption": "b"}], {}),
        ([{"kind": "cat", "label": 0}, {"kind": "dog", "label": 0}], {"label_column": "kind"}),
    ],
)
def test_json_may_hold_the_label(labels, options, tmp_path):
    dataset = load(pack(tmp_path / "a.tar", samples(labels, 0, "json")), tmp_path, **options)
    assert dataset.train.labels.tolist() == [0, 1]
    assert dataset.class_names in (("cat", "dog"), ("0", "1"))


def test_one_shard_by_its_path_is_read_and_class_folders_are_not_samples(tmp_path):
    path = pack(tmp_path / "train-0.tar", samples(["cat", "dog", "cat"]))
    assert DataConfig(data=str(path)).source[0] == "archive"
    dataset = load(path, tmp_path)
    assert (shades(dataset.train), dataset.train.labels.tolist()) == ([0, 1, 2], [0, 1, 0])
    again = load(Path(f"webdataset:{path}"), tmp_path)
    assert again.fingerprint == dataset.fingerprint
    boxes = {name.replace("png", "json"): b'{"label": "x"}' for name in photos()}
    assert load(pack(tmp_path / "b.tar", photos() | boxes), tmp_path).class_names == ("cat", "dog")


def test_pickles_are_never_loaded_and_what_is_not_used_is_counted(tmp_path):
    harm = pickle.dumps(Harm())
    files = samples(["cat", "dog"])
    for end in ("pyd", "pth", "embedding.pickle"):
        files[f"000000.{end}"] = harm
    files |= {"000001.npy": b"x", "7.png": png(7), "8.cls": b"cat", ".hidden.cls": b"x"}
    dataset = load(pack(tmp_path / "train.tar", files), tmp_path)
    assert shades(dataset.train) == [0, 1]
    assert sorted(dataset.left_out) == [
        "1 .embedding.pickle members (pickles, which are never loaded)",
        "1 .npy members",
        "1 .pth members (pickles, which are never loaded)",
        "1 .pyd members (pickles, which are never loaded)",
        "1 images without a label",
        "1 labels without an image",
    ]
    for end in ("pyd", "pkl"):
        harmful = {f"{key}.{end}": harm for key in "01"} | {"0.png": png(0), "1.png": png(1)}
        with pytest.raises(InputError, match=r"found none among \.p"):
            load(Path(f"webdataset:{pack(tmp_path / 'train.tar', harmful)}"), tmp_path)


def test_test_shards_without_labels_are_left_out(tmp_path):
    (tmp_path / "set").mkdir()
    pack(tmp_path / "set" / "train-0.tar", samples(["cat", "dog"]))
    pack(tmp_path / "set" / "test-0.tar", {"7.png": png(7)})
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is None
    assert dataset.left_out == (
        "shards of test, which hold no labelled image", "1 images without a label"
    )  # fmt: skip


def test_of_several_images_one_is_named(tmp_path):
    files = samples(["cat", "dog"])
    files |= {f"{key:06}.seg.png": png(200 + key) for key in range(2)}
    path = pack(tmp_path / "train.tar", files)
    with pytest.raises(InputError, match=r"must have one image, it has png, seg.png; say which by"):
        load(path, tmp_path)
    dataset = load(path, tmp_path, image_column="seg.png")
    assert shades(dataset.train) == [200, 201]
    assert dataset.left_out == ("2 .png members",)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"0.cls": b""}, r"0.cls must hold a value, it is empty; fill or remove it"),
        ({"0.cls": b"\xff\xfe\xfa"}, r"0.cls must hold a text, it holds other bytes"),
        ({"0.json": b"[1"}, r"0.json must hold JSON: .*; repair it"),
        ({"0.json": b"[" * 10**5}, r"0.json must hold JSON: .*; repair it"),
        ({"0.json": b"[1]"}, r"0.json must hold a JSON object, it holds a list; repair it"),
        ({"0.json": b'{"label": [1]}'}, r"must hold a class, a whole number or a text, .*\[1\]"),
        ({"0.json": b'{"label": true, "x": 1}'}, r"must hold a class|at least 2 classes"),
        ({"0.txt": b"a cat"}, r"must hold images with labels, as .* found none among .png, .txt"),
        ({"0.cls": b"cat"}, r"must have at least 2 classes, found 1: cat"),
    ],
)
def test_broken_samples_are_told(files, sentence, tmp_path):
    pack(tmp_path / "train-0.tar", {"0.png": png(0), **files})
    with pytest.raises(InputError, match=sentence):
        load(Path(f"webdataset:{tmp_path / 'train-0.tar'}"), tmp_path)


def test_shards_that_are_missing_are_told(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"must hold shards, such as train-000000.tar, found none"):
        load(Path(f"webdataset:{tmp_path / 'set'}"), tmp_path)
    pack(tmp_path / "set" / "test-0.tar", samples(["cat", "dog"]))
    with pytest.raises(InputError, match=r"a shard or folder named train\.\.\., found test-0.tar"):
        load(tmp_path / "set", tmp_path)


def test_an_archive_beside_class_folders_is_none_of_the_data(tmp_path):
    for name, content in photos().items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    pack(tmp_path / "set" / "backup.tar", photos())
    assert DataConfig(data=str(tmp_path / "set")).source[0] == "folder"
    assert len(load(tmp_path / "set", tmp_path).train.labels) == 6


def test_samples_that_a_writer_of_shards_wrote_are_read(tmp_path):
    """Owner, times and padding as common writers have them; images as JPEG; labels with an end."""
    rng, images = np.random.default_rng(0), []
    with tarfile.open(tmp_path / "train-000000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            written = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(written, "JPEG")
            images.append(np.asarray(Image.open(written)).transpose(2, 0, 1))
            for end, content in (("jpg", written.getvalue()), ("cls", f"{number % 2}\n".encode())):
                info = tarfile.TarInfo(f"./some long {'name' * 30}/sample{number}.{end}")
                info.size, info.mtime, info.uname = len(content), 1.5, "bigdata"
                tar.addfile(info, io.BytesIO(content))
    dataset = load(tmp_path / "train-000000.tar", tmp_path)
    assert np.array_equal(dataset.train.images, np.stack(images))
    assert dataset.train.labels.tolist() == [0, 1, 0, 1]
