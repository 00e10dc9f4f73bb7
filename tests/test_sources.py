"""Digits, arrays, parquet and Hugging Face data: what is read, and what is said of data that cannot
be.
"""

import dataclasses
import gc
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_archives import pack, unpack

import potstill
from potstill.cli.parser import main
from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays
from potstill.data.sources import read
from potstill.data.splits import Dataset
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError
from potstill.testing import check_source

NAMES = ["cat", "dog", "eel"]


def pixels(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """(count, 3, 6, 6) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)


def png(image: np.ndarray[Any, Any]) -> bytes:
    """A (3, H, W) image as a PNG file."""
    written = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(written, "PNG")
    return written.getvalue()


def write(
    path: Path,
    images: list[Any],
    labels: list[Any],
    *,
    columns: tuple[str, str] = ("image", "label"),
    names: list[str] | None = None,
    plain: bool = False,
    **options: Any,
) -> None:
    """A parquet file of {bytes, path} structures as the hub has them, or of plain bytes; with
    `names`, the hub's metadata.
    """
    column: pa.Array = pa.array(images, pa.binary())
    if not plain:
        rows = [None if image is None else {"bytes": image, "path": None} for image in images]
        column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table(dict(zip(columns, (column, pa.array(labels)), strict=True)))
    if names is not None:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"names": names, "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def write_set(
    root: Path, places: tuple[str, str] = ("train.parquet", "test.parquet"), **options: Any
) -> None:
    """Six train and three test images of three classes."""
    write(root / places[0], [png(image) for image in pixels(6)], [0, 1, 2, 2, 1, 0], **options)
    write(root / places[1], [png(image) for image in pixels(3, seed=1)], [2, 1, 0], **options)


def load(path: Path, cache: Path, **options: Any) -> Dataset:
    return read(DataConfig(data=f"parquet:{path}", cache_dir=str(cache / "cache"), **options))


def assert_is_the_set(dataset: Dataset, names: tuple[str, ...]) -> None:
    assert dataset.class_names == names
    assert dataset.test is not None
    assert np.array_equal(dataset.train.images, pixels(6))
    assert dataset.train.labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert np.array_equal(dataset.test.images, pixels(3, seed=1))
    assert dataset.test.labels.tolist() == [2, 1, 0]


# Names of sources


@pytest.mark.parametrize("data", ["mnist", "folder:", "parquet", "digits:8", ""])
def test_a_source_without_its_path_is_told_the_forms(data):
    with pytest.raises(
        InputError,
        match="data must be a path, digits, sklearn:NAME, folder:PATH, parquet:PATH or hf:NAME, "
        rf"got '{data}'",
    ):
        read(DataConfig(data=data))


def test_an_unknown_source_is_told_the_nearest_one():
    with pytest.raises(
        InputError,
        match=r"unknown data source 'foldr' \(did you mean 'folder'\?\); known: archive, csv, dig",
    ):
        read(DataConfig(data="foldr:x"))


def test_a_function_of_ones_own_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom potstill.data.arrays import from_arrays\n\n\n"
        "def squares(rest, config):\n"
        "    rng = np.random.default_rng(int(rest or 0))\n"
        "    labels = np.arange(60) % 2\n"
        "    images = rng.random((60, 1, 6, 6), np.float32) + labels[:, None, None, None]\n"
        "    return from_arrays(images, labels)\n\n\n"
        "def nothing(rest, config):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    potstill.trust("mine", "theirs")
    one, other, again = (
        read(DataConfig(data=data)) for data in ("mine:squares", "mine:squares:7", "mine:squares")
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint
    check_source("mine:squares", "7")
    out = tmp_path / "run"
    flags = ["--ipc", "1", "--steps", "2", "--lengths", "3", "--width", "8", "--out", str(out)]
    assert main(["distill", "--data", "mine:squares:7", *flags]) == 0
    assert main(["evaluate", str(out), "--nets", "1"]) == 0
    assert RunFolder(out).config().data.data == "mine:squares:7"
    assert potstill.load(out).meta["config"]["data"]["data"] == "mine:squares"
    for data, sentence in (
        ("mine:nothing", r"data source mine:nothing must return a potstill.*Dataset, got int"),
        ("mine:square", r"module 'mine' has no 'square' \(did you mean 'squares'"),
        ("theirs:read", r"cannot import 'theirs' of 'theirs:read': ModuleNotFoundError"),
    ):
        with pytest.raises(InputError, match=sentence):
            read(DataConfig(data=data))


def test_arrays_cannot_be_read_again_by_name():
    with pytest.raises(
        InputError, match="the data were arrays given in Python; give them again there"
    ):
        read(DataConfig(data="arrays"))


def test_digits_are_scikit_learns_in_sixteenths():
    dataset = read(DataConfig())
    images = dataset.train.images
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), np.float32)
    assert dataset.class_names == tuple("0123456789")
    assert np.array_equal(np.unique(images), np.arange(17) / 16)
    # The counts that UCI gives for the test part of its "optical recognition of handwritten
    # digits".
    assert np.bincount(dataset.train.labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    assert dataset.test is None


# Arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_whole_numbers_become_bytes(dtype):
    dataset = from_arrays(pixels(4).astype(dtype), [0, 1, 0, 1])
    assert dataset.train.images.dtype == np.uint8
    assert np.array_equal(dataset.train.images, pixels(4))
    assert dataset.train.labels.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_are(dtype):
    images = np.random.default_rng(0).normal(0, 50, (4, 3, 5, 7)).astype(dtype)
    found = from_arrays(images, np.array([0, 1, 0, 1])).train.images
    assert np.array_equal(found, images.astype(np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_tensors_are_read_as_arrays_are(dtype):
    images = torch.from_numpy(pixels(4) // 2).to(dtype)  # below 128, where bfloat16 is exact
    labels = torch.tensor([0, 1, 1, 0])
    found = from_arrays(images, labels)
    twin = from_arrays(
        images.float().numpy() if dtype != torch.uint8 else images.numpy(), labels.numpy()
    )
    assert np.array_equal(found.train.images, twin.train.images)
    assert found.fingerprint == twin.fingerprint


def test_a_tensor_that_requires_grad_is_read():
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    assert np.array_equal(from_arrays(images, [0, 1]).train.images, images.detach().numpy())


def test_images_without_a_channel_axis_get_one():
    images = np.random.default_rng(0).random((4, 5, 7), dtype=np.float32)
    assert np.array_equal(from_arrays(images, [0, 1, 0, 1]).train.images, images[:, None])


def test_class_names_are_the_numbers_unless_given():
    assert from_arrays(pixels(3), [0, 2, 1]).class_names == ("0", "1", "2")
    assert from_arrays(pixels(3), [0, 2, 1], class_names=NAMES).class_names == tuple(NAMES)


def test_arrays_of_28_pixels_are_padded_with_zeros_to_32_in_both_splits():
    images = np.random.default_rng(0).integers(1, 256, (4, 28, 28), dtype=np.uint8)
    dataset = from_arrays(images[:2], [0, 1], images[2:], [0, 1])
    assert dataset.test is not None
    for found, given in ((dataset.train.images, images[:2]), (dataset.test.images, images[2:])):
        assert found.shape == (2, 1, 32, 32)
        assert np.array_equal(found[:, 0, 2:30, 2:30], given)
        assert found.sum() == given.sum()
    assert dataset.notes == ("28 x 28 images were padded with zeros to 32 x 32",)
    assert from_arrays(pixels(2), [0, 1]).notes == ()


def test_the_fingerprint_of_arrays_follows_every_pixel_and_label():
    images, labels = pixels(4), np.array([0, 1, 0, 1])
    changed = images.copy()
    changed[2, 1, 3, 3] ^= 1
    prints = [
        from_arrays(*given).fingerprint
        for given in [
            (images, labels),
            (changed, labels),
            (images, 1 - labels),
            (images[:2], labels[:2], images[2:], labels[2:]),
            (images[:2], labels[:2], changed[2:], labels[2:]),
        ]
    ]
    assert len(set(prints)) == 5
    assert from_arrays(images.copy(), labels.copy()).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"images": np.zeros(4)},
            r"images must have shape \(N, d\) of vectors, \(N, H, W\) or \(N, C, H, W\) with C 1 "
            r"or 3, or \(N, H, W, C\), got \(4,\)",
        ),
        (
            {"images": np.zeros((4, 6, 6, 4))},
            r"C 1 or 3, or \(N, H, W, C\), got \(4, 6, 6, 4\)$",
        ),
        ({"images": np.zeros((4, 2, 6, 6))}, r"\(N, H, W, C\), got \(4, 2, 6, 6\)$"),
        ({"images": np.zeros((0, 3, 6, 6))}, r"images must have shape .* got \(0, 3, 6, 6\)"),
        (
            {"images": [[[1, 2], [3]], [[1, 2], [3, 4]]]},
            r"images must be an array, got a list that is none: ",
        ),
        ({"images": np.zeros((4, 6, 6), bool)}, r"images must be numbers, got values of type bool"),
        (
            {"images": np.zeros((4, 6, 6), complex)},
            r"images must be numbers, got values of type complex128",
        ),
        (
            {"images": pixels(4).astype(int) - 1},
            r"whole-number images must lie in 0\.\.255, got -1 to 25\d; scale them",
        ),
        (
            {"images": pixels(4).astype(int) * 2},
            r"whole-number images must lie in 0\.\.255, got 0 to 5\d\d; scale them",
        ),
        (
            {"images": np.full((4, 6, 6), np.nan)},
            r"pixels must be finite numbers, train image 0 holds NaN or infinity",
        ),
        ({"labels": [0, 1, 0]}, r"labels must have shape \(4,\) like images, got \(3,\)"),
        (
            {"labels": np.eye(4, dtype=int)},
            r"labels must have shape \(4,\) like images, got \(4, 4\)",
        ),
        (
            {"labels": [0.0, 1.0, 0.0, 1.0]},
            r"labels must be whole numbers 0 \.\. K-1, got values of type float64",
        ),
        (
            {"labels": list("abac"), "class_names": ["a", "b"]},
            r"labels must be among the 2 classes of class_names, a, b; got 'c'",
        ),
        ({"labels": [0, 1, -1, 1]}, r"labels must be at least 0, got -1"),
        (
            {"labels": [0, 0, 0, 0]},
            r"the data must have at least 2 classes, found 1: 0; add another",
        ),
        (
            {"class_names": ["a"], "labels": [0, 0, 0, 0]},
            r"the data must have at least 2 classes, found 1: a; add another",
        ),
        (
            {"labels": [0, 1, 3, 1], "class_names": NAMES},
            r"labels must lie in 0\.\.2 \(the 3 classes of class_names\), got 3; correct the "
            r"labels or name every class",
        ),
        (
            {"test_images": pixels(2)},
            "test_images and test_labels must be given together, got only one of them",
        ),
        (
            {"test_labels": [0, 1]},
            "test_images and test_labels must be given together, got only one of them",
        ),
        (
            {"test_images": np.zeros((2, 3, 6, 7)), "test_labels": [0, 1]},
            r"test_images must have the shape of images, \(3, 6, 6\), got \(3, 6, 7\)",
        ),
        (
            {"test_images": pixels(2), "test_labels": [0]},
            r"test_labels must have shape \(2,\) like test_images, got \(1,\)",
        ),
        (
            {"test_images": np.ones((2, 3, 6, 6)), "test_labels": [0, 1]},
            r"images and test_images must both be whole numbers or both floats, got one of each; "
            r"scale them alike",
        ),
        (
            {"labels": [0, 1, 0, 10**9]},
            r"labels must be 0 \.\. K-1 with images of every class, got 1000000000 among 4 images",
        ),
        (
            {"class_names": ["a", "a"]},
            r"class_names must be a list of different names, one for each class, got \['a', 'a'\]",
        ),
        (
            {"class_names": "ab"},
            r"class_names must be a list of different names, one for each class, got 'ab'",
        ),
        (
            {"test_images": pixels(2), "test_labels": [0, 2]},
            r"test_labels must lie in 0\.\.1 \(the 2 classes of labels\), got 2; correct the "
            r"labels",
        ),
        (
            {
                "images": np.ones((4, 3, 6, 6)),
                "test_images": np.full((2, 3, 6, 6), np.inf),
                "test_labels": [0, 1],
            },
            r"pixels must be finite numbers, test image 0 holds NaN or infinity; repair or remove "
            r"it",
        ),
    ],
)
def test_arrays_that_break_a_rule_are_refused_by_it(given, message):
    with pytest.raises(InputError, match=message):
        from_arrays(**{"images": pixels(4), "labels": [0, 1, 0, 1], **given})


def test_the_first_image_with_nan_is_counted():
    images = np.zeros((5, 3, 6, 6), np.float32)
    images[[3, 4], 1, 2, 2] = np.nan
    with pytest.raises(InputError, match="train image 3 holds NaN"):
        from_arrays(images, [0, 1, 0, 1, 0])


# Parquet: what is read


def test_the_layout_of_the_hub_is_read(tmp_path):
    write_set(tmp_path / "set", names=NAMES)
    assert_is_the_set(load(tmp_path / "set", tmp_path), ("cat", "dog", "eel"))


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_both_kinds_of_storage_hold_the_same(storage, tmp_path):
    write_set(tmp_path / "set", names=NAMES)
    dataset = load(tmp_path / "set", tmp_path, storage=storage)
    assert_is_the_set(dataset, ("cat", "dog", "eel"))
    assert dataset.mapped == (storage == "mapped")


def test_without_metadata_whole_numbers_name_the_classes(tmp_path):
    write_set(tmp_path / "set")
    assert_is_the_set(load(tmp_path / "set", tmp_path), ("0", "1", "2"))


def test_plain_binary_columns_are_read(tmp_path):
    write_set(tmp_path / "set", plain=True)
    assert_is_the_set(load(tmp_path / "set", tmp_path), ("0", "1", "2"))


def test_labels_that_are_texts_or_have_gaps_are_numbered_in_their_order(tmp_path):
    for name, labels, expected in (
        ("texts", ["owl", "ant", "owl", "bee"], ("ant", "bee", "owl")),
        ("gaps", [30, 4, 30, 5], ("4", "5", "30")),
    ):
        write(tmp_path / f"{name}.parquet", [png(image) for image in pixels(4)], labels)
        dataset = load(tmp_path / f"{name}.parquet", tmp_path)
        assert dataset.class_names == expected
        assert dataset.train.labels.tolist() == [2, 0, 2, 1]


def test_one_file_is_the_train_split(tmp_path):
    write(
        tmp_path / "any.parquet",
        [png(image) for image in pixels(6)],
        [0, 1, 2, 2, 1, 0],
        names=NAMES,
    )
    dataset = load(tmp_path / "any.parquet", tmp_path)
    assert dataset.test is None
    assert np.array_equal(dataset.train.images, pixels(6))


def test_shards_join_in_the_order_of_their_names(tmp_path):
    images = [png(image) for image in pixels(6)]
    labels = [0, 1, 2, 2, 1, 0]
    for shard in (2, 0, 1):
        rows = slice(2 * shard, 2 * shard + 2)
        write(
            tmp_path / "set" / "data" / f"train-{shard:05}-of-00003.parquet",
            images[rows],
            labels[rows],
            names=NAMES,
        )
    write(
        tmp_path / "set" / "data" / "test-00000-of-00001.parquet",
        [png(i) for i in pixels(3, seed=1)],
        [2, 1, 0],
        names=NAMES,
    )
    assert_is_the_set(load(tmp_path / "set", tmp_path), ("cat", "dog", "eel"))


@pytest.mark.parametrize(
    "places",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        # As the hub converts other formats.
        (
            "default/train/0000.parquet",
            "default/test/0000.parquet",
        ),
        ("train.parquet", "validation.parquet"),
        ("Train.parquet", "val-0.parquet"),
    ],
)
def test_a_file_belongs_to_the_split_that_its_name_or_folder_says(places, tmp_path):
    write_set(tmp_path / "set", places, names=NAMES)
    write(tmp_path / "set" / ".cache" / "train.parquet", [b"hidden"], [7])
    assert_is_the_set(load(tmp_path / "set", tmp_path), ("cat", "dog", "eel"))


def test_files_without_names_of_splits_are_all_train(tmp_path):
    write_set(tmp_path / "set", ("0.parquet", "1.parquet"))
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is None
    assert np.array_equal(dataset.train.images, np.concatenate([pixels(6), pixels(3, seed=1)]))


def test_columns_are_found_by_their_types_or_as_they_are_named(tmp_path):
    write_set(tmp_path / "typed", columns=("picture", "animal"), names=NAMES)
    assert_is_the_set(load(tmp_path / "typed", tmp_path), ("cat", "dog", "eel"))
    write_set(tmp_path / "bare", columns=("picture", "animal"))
    dataset = load(tmp_path / "bare", tmp_path, image_column="picture", label_column="animal")
    assert_is_the_set(dataset, ("0", "1", "2"))


def test_other_columns_of_one_file_are_other_data_with_another_fingerprint(tmp_path):
    # The mapped cache once knew the file only, and gave the images of the column that was read
    # first.
    one, two = ([png(image) for image in pixels(4, seed)] for seed in (0, 1))
    table = {
        "one": pa.array(one),
        "two": pa.array(two),
        "coarse": pa.array([0, 1, 0, 1]),
        "fine": pa.array([0, 1, 2, 3]),
    }
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    prints = set()
    for image, seed in (("one", 0), ("two", 1)):
        for label, classes in (("coarse", 2), ("fine", 4)):
            dataset = load(
                tmp_path / "set.parquet",
                tmp_path,
                image_column=image,
                label_column=label,
                storage="mapped",
            )
            assert np.array_equal(dataset.train.images, pixels(4, seed))
            assert len(dataset.class_names) == classes
            prints.add(dataset.fingerprint)
    assert len(prints) == 4


def test_the_fingerprint_of_parquet_data_does_not_depend_on_where_they_lie(tmp_path):
    write_set(tmp_path / "set", names=NAMES)
    before = load(tmp_path / "set", tmp_path).fingerprint
    shutil.copytree(tmp_path / "set", tmp_path / "deeper" / "copy")
    assert load(tmp_path / "deeper" / "copy", tmp_path).fingerprint == before


def test_a_large_parquet_file_is_read_piece_by_piece(tmp_path):
    # pyarrow's own default reads all row groups ahead: a mapped set would come into memory whole.
    rng = np.random.default_rng(0)
    column = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", column), ("label", pa.int64())])
    groups, rows = 20, 100
    before = pa.total_allocated_bytes()
    with pq.ParquetWriter(tmp_path / "set.parquet", schema, compression="none") as writer:
        for _ in range(groups):
            images = [
                png(image) for image in rng.integers(0, 256, (rows, 3, 64, 64), dtype=np.uint8)
            ]
            writer.write_table(
                pa.table(
                    {
                        "image": pa.array(
                            [{"bytes": image, "path": None} for image in images], column
                        ),
                        "label": [row % 2 for row in range(rows)],
                    },
                    schema,
                )
            )
    size = (tmp_path / "set.parquet").stat().st_size
    load(tmp_path / "set.parquet", tmp_path, storage="mapped")
    assert pa.default_memory_pool().max_memory() - before < 0.6 * size


# Parquet: what is refused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("pictur", "auto"),
            r"no column 'pictur' \(did you mean 'picture'\?\); give --image-column, one of: "
            r"picture, animal",
        ),
        (
            ("picture", "anmal"),
            r"no column 'anmal' \(did you mean 'animal'\?\); give --label-column, one of: picture, "
            r"animal",
        ),
        (
            ("auto", "auto"),
            r"no image column with a usual name \(image, .*\); give --image-column, one of: "
            r"picture, animal",
        ),
        (
            ("picture", "auto"),
            r"no label column with a usual name \(label, .*\); give --label-column, one of: "
            r"picture, animal",
        ),
        (
            ("animal", "animal"),
            r"column 'animal' must hold encoded images \(.*\), train row 0 holds a int; .* "
            r"--image-column",
        ),
    ],
)
def test_columns_that_are_not_there_are_told_with_those_that_are(columns, message, tmp_path):
    write_set(tmp_path / "set", columns=("picture", "animal"))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set", tmp_path, image_column=columns[0], label_column=columns[1])


def test_a_file_without_the_columns_of_the_others_is_named(tmp_path):
    write_set(tmp_path / "set")
    write(tmp_path / "set" / "test.parquet", [png(pixels(1)[0])], [0], columns=("image", "kind"))
    with pytest.raises(
        InputError, match=r"test\.parquet has no column 'label'; every file needs the same columns"
    ):
        load(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, -1, 1],
            None,
            r"column 'label' must hold a class.* for each image, train row 2 holds -1; drop such "
            r"rows",
        ),
        (
            [0, 1, -1, 1],
            NAMES[:2],
            r"column 'label' must hold a class.* for each image, train row 2 holds -1; drop such "
            r"rows",
        ),
        (
            [0, None, 1, 1],
            None,
            r"column 'label' must hold a class.* for each image, train row 1 holds None; drop such "
            r"rows",
        ),
        (
            ["a", None, "b", "b"],
            None,
            r"column 'label' must hold a class.* for each image, train row 1 holds None",
        ),
        (
            [0.0, 0.5, 1.0, 1.0],
            None,
            r"column 'label' must hold a class, a whole number or a text, .* train row 0 holds "
            r"0\.0",
        ),
        (
            [0, 1, 2, 1],
            NAMES[:2],
            r"labels in column 'label' must lie in 0\.\.1 \(2 classes\), train row 2 holds 2; "
            r"correct",
        ),
        ([0, 0, 0, 0], None, r"the data must have at least 2 classes, found 1: 0"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, names, message, tmp_path):
    write(tmp_path / "set.parquet", [png(image) for image in pixels(4)], labels, names=names)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set.parquet", tmp_path)


def test_a_test_label_that_train_lacks_is_refused(tmp_path):
    images = [png(image) for image in pixels(2)]
    write(tmp_path / "set" / "train.parquet", images, ["ant", "bee"])
    write(tmp_path / "set" / "test.parquet", images, ["ant", "owl"])
    with pytest.raises(
        InputError,
        match=r"'label' must occur in train \(2 classes\), test row 1 holds 'owl'; correct or drop",
    ):
        load(tmp_path / "set", tmp_path)


def test_a_table_without_rows_is_refused(tmp_path):
    write_set(tmp_path / "set")
    write(tmp_path / "set" / "test.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(
        InputError,
        match="the test split must hold labelled images, it has no rows; add some or remove its "
        "files",
    ):
        load(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            None,
            r"column 'image' must hold encoded images .*, test row 1 holds nothing; repair or drop "
            r"the row",
        ),
        (
            b"no image",
            r"cannot read the image test row 1: no image format that Pillow knows; repair or "
            r"remove it",
        ),
        (png(pixels(1)[0])[:-60], r"cannot read the image test row 1: .*; repair or remove it"),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_an_image_that_cannot_be_read_is_named_by_its_row(plain, image, message, tmp_path):
    write_set(tmp_path / "set", plain=plain)
    write(tmp_path / "set" / "test.parquet", [png(pixels(1)[0]), image], [0, 1], plain=plain)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set", tmp_path)


def test_the_stored_name_of_an_image_goes_with_its_row(tmp_path):
    rows = [
        {"bytes": png(pixels(1)[0]), "path": "a.png"},
        {"bytes": b"no image", "path": "b.png"},
        {"bytes": None, "path": None},
    ]
    table = pa.table({"image": pa.array(rows), "label": [0, 1, 1]})
    pq.write_table(table.slice(0, 2), tmp_path / "set.parquet")
    with pytest.raises(InputError, match=r"cannot read the image train row 1 \(b\.png\)"):
        load(tmp_path / "set.parquet", tmp_path)
    pq.write_table(table.take([0, 2]), tmp_path / "set.parquet")
    with pytest.raises(InputError, match="train row 1 holds nothing"):
        load(tmp_path / "set.parquet", tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "set.parquet").write_text("image,label\n")
    with pytest.raises(
        InputError, match=r"cannot read .*set\.parquet as parquet: .*; repair or replace it"
    ):
        load(tmp_path / "set.parquet", tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path):
    write_set(tmp_path)
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"cannot read .*train\.parquet as parquet: .*; repair or replace it"
    ):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize("column", [0, 2])  # the images' bytes, the labels
def test_a_parquet_file_with_damaged_pages_is_named(column, tmp_path):
    write_set(tmp_path, compression="gzip")
    pages = pq.read_metadata(tmp_path / "train.parquet").row_group(0).column(column)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    middle = pages.data_page_offset + pages.total_compressed_size // 2
    content[middle - 4 : middle + 4] = bytes(8)
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(
        InputError, match=r"cannot read .*train\.parquet as parquet: .*; repair or replace it"
    ):
        load(tmp_path, tmp_path)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(
        InputError,
        match=r"parquet .*nowhere does not exist; give the path with --data parquet:PATH",
    ):
        load(tmp_path / "nowhere", tmp_path)


def test_a_folder_without_parquet_files_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("image,label\n")
    with pytest.raises(
        InputError, match=r"parquet folder .* must hold \*\.parquet files, found none"
    ):
        load(tmp_path, tmp_path)


def test_a_folder_with_test_files_alone_is_refused(tmp_path):
    write_set(tmp_path, ("validation.parquet", "test.parquet"))
    with pytest.raises(
        InputError,
        match=r"must have a file or folder named train\.\.\., found test\.parquet .*; rename",
    ):
        load(tmp_path, tmp_path)


# Hugging Face


@pytest.fixture
def hub_offline(tmp_path, monkeypatch):
    """`datasets` without network, with its cache in a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.usefixtures("hub_offline")
def test_a_local_folder_through_datasets_equals_the_parquet_source(tmp_path):
    write_set(tmp_path / "set", names=NAMES)
    dataset = read(DataConfig(data=f"hf:{tmp_path / 'set'}", cache_dir=str(tmp_path / "cache")))
    assert_is_the_set(dataset, ("cat", "dog", "eel"))
    mapped = read(
        DataConfig(
            data=f"hf:{tmp_path / 'set'}", cache_dir=str(tmp_path / "cache"), storage="mapped"
        )
    )
    assert mapped.mapped
    assert_is_the_set(mapped, ("cat", "dog", "eel"))
    assert mapped.fingerprint == dataset.fingerprint


@pytest.mark.usefixtures("hub_offline")
def test_a_column_of_hub_data_holds_the_weights(tmp_path):
    write_set(tmp_path / "set", names=NAMES)
    config = DataConfig(data=f"hf:{tmp_path / 'set'}", cache_dir=str(tmp_path / "cache"))
    weighted = read(dataclasses.replace(config, weights="label"))
    assert weighted.weights is not None
    assert weighted.weights.tolist() == [0, 1, 2, 2, 1, 0]
    with pytest.raises(InputError, match=r"no column 'labl' .* for --weights"):
        read(dataclasses.replace(config, weights="labl"))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("hub_offline")
@pytest.mark.filterwarnings("ignore:.*unclosed file.*")  # datasets leaves its metadata open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["metadata", "shards"])
def test_metadata_and_shards_are_read_as_the_package_datasets_reads_them(kind, tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        files, lines = {}, ["file_name,label"]
        for index, image in enumerate(pixels(count, count)):
            files[f"{index:03}.png"] = png(image)
            if kind == "shards":
                files[f"{index:03}.cls"] = str(index % 3).encode()
            lines.append(f"{index:03}.png,{index % 3}")
        (tmp_path / "set").mkdir(exist_ok=True)
        if kind == "shards":
            pack(tmp_path / "set" / f"{split}-00000.tar", files)
        else:
            unpack(tmp_path / "set" / split, files | {"metadata.csv": "\n".join(lines).encode()})
    config = DataConfig(data=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    own = read(config)
    label = "cls" if kind == "shards" else "label"
    theirs = read(dataclasses.replace(config, data=f"hf:{tmp_path / 'set'}", label_column=label))
    for split, arrays in own.splits.items():
        assert np.array_equal(arrays.images, theirs.splits[split].images)
        assert np.array_equal(arrays.labels, theirs.splits[split].labels)
        assert len(arrays.labels) == {"train": 6, "test": 3}[split]
    gc.collect()  # the package leaves files open, which would be told in some later test


@pytest.mark.usefixtures("hub_offline")
@pytest.mark.parametrize(
    ("train", "columns", "message"),
    [
        (
            "val.parquet",
            ("auto", "auto"),
            "must have a train split, found: validation; give other data",
        ),
        (
            "train.parquet",
            ("auto", "kind"),
            "no column 'kind'; give --label-column, one of: image, label",
        ),
        (
            "train.parquet",
            ("label", "label"),
            "column 'label' of hf:.* must hold encoded images, found ClassLabel",
        ),
    ],
)
def test_hub_data_that_cannot_be_used_say_why(train, columns, message, tmp_path):
    write(tmp_path / "set" / train, [png(image) for image in pixels(3)], [0, 1, 2], names=NAMES)
    with pytest.raises(InputError, match=message):
        read(
            DataConfig(
                data=f"hf:{tmp_path / 'set'}", image_column=columns[0], label_column=columns[1]
            )
        )


@pytest.mark.usefixtures("hub_offline")
def test_a_secret_test_split_gives_way_to_the_validation_split(tmp_path):
    for split, labels in (("train", [0, 1, 2]), ("test", [-1, -1, -1]), ("validation", [2, 0])):
        write(
            tmp_path / "set" / f"{split}.parquet",
            [png(image) for image in pixels(len(labels))],
            labels,
            names=NAMES,
        )
    dataset = read(DataConfig(data=f"hf:{tmp_path / 'set'}", cache_dir=str(tmp_path / "cache")))
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [2, 0]


@pytest.mark.usefixtures("hub_offline")
def test_hub_data_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot load hf:.*/nowhere: .*; check its name and the network"
    ):
        read(DataConfig(data=f"hf:{tmp_path / 'nowhere'}"))


def test_hub_data_without_the_package_datasets_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"hf:NAME needs the package datasets; run: pip install 'potstill\[hf\]'"
    ):
        read(DataConfig(data="hf:mnist"))
