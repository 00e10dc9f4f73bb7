"""MNIST's files: what is read from them, and what is said of files that do not fit."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_archives import load, pack

from potstill.config.sections import DataConfig
from potstill.data import archives
from potstill.errors import InputError

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array: Any, dtype: str = "u1") -> bytes:
    """An IDX file, written from its description: 0, 0, type, dimensions, sizes, values."""
    array = np.asarray(array).astype(dtype)
    head = bytes([0, 0, CODES[dtype], array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images(count: int, seed: int = 0, side: int = 28) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def mnist(names: str = "{}-{}-idx{}-ubyte", train: int = 12, test: int = 6) -> dict[str, bytes]:
    files = {}
    for split, count in (("train", train), ("t10k", test)):
        files[names.format(split, "images", 3)] = idx(images(count, seed=count))
        files[names.format(split, "labels", 1)] = idx(np.arange(count) % 3)
    return {
        name: gzip.compress(content) if name.endswith(".gz") else content
        for name, content in files.items()
    }


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "names",
    [
        "{}-{}-idx{}-ubyte",
        "{}-{}-idx{}-ubyte.gz",
        "{}-{}.idx{}-ubyte",
        "{}.{}-idx{}-ubyte.gz",
        "MNIST/raw/{}-{}-idx{}-ubyte",
        "emnist-digits-{}-{}-idx{}-ubyte.gz",
    ],
)
def test_mnists_files_are_read_by_their_names(names, tmp_path):
    root = write(tmp_path / "set", mnist(names))
    if "raw" not in names:
        assert DataConfig(data=str(root)).source[0] == "idx"
    (tmp_path / "set" / "readme.txt").write_text("x")
    dataset = load(Path(f"idx:{root}"), tmp_path)
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.test is not None
    for arrays, count in ((dataset.train, 12), (dataset.test, 6)):
        assert np.array_equal(arrays.images[:, 0, 2:30, 2:30], images(count, seed=count))
        assert arrays.labels.tolist() == [index % 3 for index in range(count)]
    assert dataset.train.images.dtype == np.uint8
    assert dataset.origins == {
        split: names.format(name, "images", 3) for split, name in (("train", "train"),
                                                                   ("test", "t10k"))
    }  # fmt: skip
    assert dataset.left_out == ("1 files of other names",)
    one = load(root / names.format("t10k", "labels", 1), tmp_path)
    assert one.fingerprint == dataset.fingerprint
    assert one.left_out == ()


def test_mnists_files_are_read_out_of_an_archive(tmp_path):
    files = mnist("archive/{0}-{1}-idx{2}-ubyte/{0}-{1}-idx{2}-ubyte")
    dataset = load(pack(tmp_path / "archive.zip", files), tmp_path)
    assert np.array_equal(dataset.train.images[:, 0, 2:30, 2:30], images(12, seed=12))
    assert dataset.origins["test"].startswith("archive.zip/archive/t10k-images")
    whole = load(write(tmp_path / "set", mnist()), tmp_path)
    assert dataset.fingerprint == whole.fingerprint


def test_copies_count_once_and_plain_ones_before_packed_ones(tmp_path):
    root = write(tmp_path / "set", mnist() | mnist("copy/{}-{}.idx{}-ubyte", 30))
    write(root, mnist("{}-{}-idx{}-ubyte.gz", 30))
    dataset = load(root, tmp_path)
    assert len(dataset.train.labels) == 12
    assert dataset.left_out == ("8 further copies",)


def test_folders_may_have_the_names_of_files(tmp_path):
    root = write(tmp_path / "set", mnist("{}-{}.idx{}-ubyte"))
    write(root, mnist("{0}-{1}-idx{2}-ubyte/{0}-{1}-idx{2}-ubyte"))
    one, whole = (load(path, tmp_path) for path in (root / "train-labels.idx1-ubyte", root))
    assert one.fingerprint == whole.fingerprint
    assert (one.left_out, whole.left_out) == ((), ("4 further copies",))


def test_of_several_sets_one_is_named_by_a_file(tmp_path):
    root = write(tmp_path / "set", mnist("emnist-letters-{}-{}-idx{}-ubyte.gz"))
    write(root, mnist("emnist-digits-{}-{}-idx{}-ubyte.gz", 30))
    with pytest.raises(
        InputError, match=r"must hold one set, it holds emnist-digits, emnist-letters; give one of"
    ):
        load(root, tmp_path)
    dataset = load(root / "emnist-digits-train-images-idx3-ubyte.gz", tmp_path)
    assert len(dataset.train.labels) == 30
    assert dataset.left_out == ("4 files of other sets",)


def test_labels_that_begin_with_1_are_their_numbers(tmp_path):
    files = mnist()
    files["train-labels-idx1-ubyte"] = idx(1 + np.arange(12) % 3)
    files["t10k-labels-idx1-ubyte"] = idx([3, 2, 1, 1, 2, 3])
    dataset = load(write(tmp_path / "set", files), tmp_path)
    assert dataset.class_names == ("1", "2", "3")
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [2, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("dtype", list(CODES))
def test_every_type_of_number_is_read(dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 100, (6, 5, 7))
    files = {
        "train-images-idx3-x": idx(values, dtype),
        "train-labels-idx1-x": idx([0, 1] * 3, "u1"),
    }
    dataset = load(write(tmp_path / "set", files), tmp_path)
    assert np.array_equal(dataset.train.images[:, 0], values)


def test_validation_files_are_known(tmp_path):
    files = mnist() | {
        name.replace("t10k", "val"): content
        for name, content in mnist(test=9).items()
        if "t10k" in name
    }
    dataset = load(write(tmp_path / "set", files), tmp_path)
    assert {name: len(one.labels) for name, one in dataset.splits.items()} == {
        "train": 12, "validation": 9, "test": 6,
    }  # fmt: skip
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / "set" / f"t10k-{name}-ubyte").unlink()
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.origins["test"] == "val-images-idx3-ubyte, there being no test split"
    assert dataset.test is not None
    assert len(dataset.test.labels) == 9


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (IMAGES, b"", r"must begin with the magic number .* it begins with nothing"),
        (IMAGES, b"\x89PNG\r\n", r"as 00 00 08 03, it begins with 89 50 4e 47; it is another"),
        (IMAGES, b"\0\0\x07\x03" + bytes(12), r"must begin with the magic number .* 00 00 07 03"),
        (IMAGES, b"\0\0\x08\x00" + bytes(12), r"must begin with the magic number .* 00 00 08 00"),
        (IMAGES, b"\0\0\x08\x03\0\0", r"must hold 3 sizes, it ends before; get it anew"),
        (IMAGES, idx(images(12))[:-5], r"9,408 bytes for its sizes 12 x 28 x 28, it holds 9,403"),
        (IMAGES, idx(images(12)) + b"x", r"for its sizes 12 x 28 x 28, it holds (more|9,409); it"),
        (IMAGES, idx(images(11)), r"as many images as labels, they hold 11 and 12; one of them"),
        (IMAGES, idx(images(12, side=20)), r"must be 20 x 20 as those of .*, they are 28 x 28"),
        (IMAGES, idx(images(0)), r"they hold 0 and 12"),
        (LABELS, idx([0, 1] * 5), r"as many images as labels, they hold 12 and 10; one of them is"),
        (LABELS, idx(np.zeros((12, 8))), r"a whole number for each image, got shape \(12, 8\)"),
        (LABELS, idx(np.zeros(12), ">f4"), r"a whole number for each image, .* of type float32"),
        (LABELS, idx([0, 1] * 6), r"test labels must occur in train \(2 classes\), got 2"),
        (IMAGES, idx(np.arange(12)), r"must hold images, got shape \(12,\)"),
    ],
)
def test_files_that_do_not_fit_are_told(name, content, sentence, packed, tmp_path):
    end = ".gz" if packed else ""
    files = mnist(f"{{}}-{{}}-idx{{}}-ubyte{end}")
    files[name + end] = gzip.compress(content) if packed else content
    with pytest.raises(InputError, match=sentence):
        load(write(tmp_path / "set", files), tmp_path)


@pytest.mark.parametrize("missing", [IMAGES, LABELS])
def test_a_part_that_is_missing_is_told(missing, tmp_path):
    files = mnist()
    del files[missing]
    part = missing.split("-")[1]
    with pytest.raises(InputError, match=rf"must hold the {part} of train beside train-.*, found"):
        load(write(tmp_path / "set", files), tmp_path)
    (tmp_path / "set" / (LABELS if missing == IMAGES else IMAGES)).unlink()
    with pytest.raises(InputError, match=r"must hold train-images-idx3-ubyte and .*, found t10k-"):
        load(tmp_path / "set", tmp_path)


def test_a_split_without_images_is_told(tmp_path):
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte must hold images, it holds none"):
        load(write(tmp_path / "set", mnist(test=0)), tmp_path)


def test_a_packed_file_that_is_damaged_or_a_bomb_is_told(tmp_path, monkeypatch):
    root = write(tmp_path / "set", mnist("{}-{}-idx{}-ubyte.gz"))
    path = root / f"{IMAGES}.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40] + b"xxxx" + whole[44:], b"\x1f\x8bx"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*train-images.*; get it anew"):
            load(root, tmp_path)
    monkeypatch.setattr(archives, "REASONABLE_BYTES", 10**5)
    path.write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**20, 2**10, 2**10)))
    with pytest.raises(InputError, match=r"at most 100 times its own .* it declares 1,099,511,627"):
        load(root, tmp_path)


def test_another_name_is_told_the_right_ones(tmp_path):
    (tmp_path / "numbers").write_bytes(idx(images(12)))
    with pytest.raises(InputError, match="must be called as train-images-idx3-ubyte or t10k"):
        load(Path(f"idx:{tmp_path / 'numbers'}"), tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"must hold train-images-idx3-ubyte and .* found none"):
        load(Path(f"idx:{tmp_path / 'none'}"), tmp_path)
