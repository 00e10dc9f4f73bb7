"""Image folders with metadata.csv or metadata.jsonl: labels, splits and weights from columns."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_archives import load, pack, photos, png, unpack
from test_layouts import shades

from potstill.errors import InputError

Rows = list[dict[str, Any]]


def listed(end: str, rows: Rows) -> bytes:
    """Metadata of one format."""
    if end == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return "\n".join(lines).encode()


def described(
    end: str, folder: str, labels: list[Any], first: int = 0, **columns: Any
) -> dict[str, bytes]:
    """Images of shades first, first + 1, ... in a folder, with metadata beside them."""
    start = f"{folder}/" if folder else ""
    rows = [
        {"file_name": f"{shade}.png", "label": label, **{k: v[shade] for k, v in columns.items()}}
        for shade, label in enumerate(labels, first)
    ]
    files = {f"{start}{shade}.png": png(shade) for shade in range(first, first + len(labels))}
    return files | {f"{start}metadata.{end}": listed(end, rows)}


@pytest.mark.parametrize("end", ["csv", "jsonl"])
@pytest.mark.parametrize("packed", ["", "zip", "tar.gz"])
def test_split_folders_have_metadata_of_their_own(end, packed, tmp_path):
    files = described(end, "train", ["dog", "cat", "dog"])
    files |= described(end, "test", ["cat", "dog"], 10)
    place = pack(tmp_path / f"set.{packed}", files) if packed else unpack(tmp_path / "set", files)
    dataset = load(place, tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert (shades(dataset.train), dataset.train.labels.tolist()) == ([0, 1, 2], [1, 0, 1])
    assert dataset.test is not None
    assert (shades(dataset.test), dataset.test.labels.tolist()) == ([10, 11], [0, 1])
    start = f"set.{packed}/" if packed else ""
    assert dataset.origins == {
        "train": f"{start}train/metadata.{end}", "test": f"{start}test/metadata.{end}"
    }  # fmt: skip
    assert dataset.left_out == ()


@pytest.mark.parametrize("end", ["csv", "jsonl"])
@pytest.mark.parametrize("top", ["", "photos", "a/photos"])
def test_metadata_at_the_root_list_every_image(end, top, tmp_path):
    files = described(end, top, ["dog", "cat", "dog"])
    dataset = load(unpack(tmp_path / "set", files), tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert (shades(dataset.train), dataset.train.labels.tolist()) == ([0, 1, 2], [1, 0, 1])
    assert dataset.test is None
    assert dataset.origins == {"train": f"metadata.{end}"}


def test_metadata_at_the_root_may_tell_splits_by_folders_or_a_column(tmp_path):
    names = ["train/0.png", "train/1.png", "Test/2.png", "val/3.png", "4.png"]
    rows = [{"file_name": name, "label": "ab"[index % 2]} for index, name in enumerate(names)]
    files = {name: png(index) for index, name in enumerate(names)}
    by_folder = load(
        unpack(tmp_path / "one", files | {"metadata.csv": listed("csv", rows)}), tmp_path
    )
    for row, split in zip(rows, ("train", "train", "testing", "validation", "Train"), strict=True):
        row["split"] = split
    by_column = load(
        unpack(tmp_path / "two", files | {"metadata.csv": listed("csv", rows)}), tmp_path
    )
    for dataset, train in ((by_folder, [0, 1]), (by_column, [0, 1, 4])):
        assert {name: shades(arrays) for name, arrays in dataset.splits.items()} == {
            "train": train, "test": [2], "validation": [3],
        }  # fmt: skip
        assert dataset.origins["validation"] == "metadata.csv, validation"
    assert by_folder.left_out == ("1 listed images that lie in no split folder",)
    assert by_folder.fingerprint != by_column.fingerprint
    rows[1]["split"] = "2"
    unpack(tmp_path / "two", {"metadata.csv": listed("csv", rows)})
    with pytest.raises(InputError, match=r"column 'split' of .* line 3 of .* holds '2'; correct"):
        load(tmp_path / "two", tmp_path)


def test_numbers_are_classes_in_their_order_and_mean_the_same_in_both_formats(tmp_path):
    files = described("csv", "train", [10, 9, 1]) | described("jsonl", "test", [1, 10], 5)
    dataset = load(unpack(tmp_path / "set", files), tmp_path)
    assert dataset.class_names == ("1", "9", "10")
    assert dataset.test is not None
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([2, 1, 0], [0, 2])


def test_another_column_may_hold_the_label(tmp_path):
    files = described("csv", "", [0, 0, 1], kind=["cat", "dog", "eel"])
    unpack(tmp_path / "set", files)
    dataset = load(tmp_path / "set", tmp_path, label_column="kind")
    assert dataset.class_names == ("cat", "dog", "eel")
    with pytest.raises(InputError, match=r"no column 'kin' \(did you mean 'kind'\?\); give --l"):
        load(tmp_path / "set", tmp_path, label_column="kin")
    with pytest.raises(InputError, match="label_column has no effect with class folders"):
        load(unpack(tmp_path / "plain", photos()), tmp_path, label_column="kind")


def test_what_metadata_do_not_list_is_counted(tmp_path):
    files = described("csv", "train", ["cat", "dog"]) | {"train/9.png": png(9), "train/a.md": b"x"}
    files |= {"test/cat/1.png": png(1)}
    dataset = load(unpack(tmp_path / "set", files), tmp_path)
    assert shades(dataset.train) == [0, 1]
    assert sorted(dataset.left_out) == [
        "1 .md files",
        "2 images that the metadata do not list",
        "folder test/, which has no metadata with labels",
    ]


def test_metadata_without_labels_leave_class_folders_as_they_are(tmp_path):
    for name, heading, reason in (
        ("metadata.csv", "file_name,text", "of labels"),
        ("metadata.jsonl", '{"image": "a", "label": 1}', "file_name"),
    ):
        content = heading if name.endswith("jsonl") else f"{heading}\ncat/0.png,a cat"
        files = photos(("train", "test")) | {name: content.encode()}
        dataset = load(unpack(tmp_path / name, files), tmp_path)
        assert shades(dataset.train) == [0, 1, 2, 100, 101, 102]
        assert dataset.left_out == (f"{name}, which has no column {reason}",)
    files = photos(("train", "test")) | {"test/metadata.csv": b"file_name,label\ncat/0.png,cat"}
    dataset = load(unpack(tmp_path / "test_only", files), tmp_path)
    assert "test/metadata.csv, there being none for train" in dataset.left_out
    assert dataset.test is not None
    assert len(dataset.test.labels) == 6


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metadata.csv", "file_name,label\n9.png,a", r"line 2 of .* lists '9.png', which is not t"),
        (
            "metadata.csv",
            "file_name,label\n../0.png,a",
            r"line 2 of .* must have the path .*'\.\.",
        ),
        (
            "metadata.csv",
            "file_name,label\n/0.png,a",
            r"must have the path of an image in .*'/0",
        ),
        ("metadata.csv", "file_name,label\n0.png", r"must have as many values as the heading"),
        ("metadata.csv", "file_name,label", r"must hold rows below its heading line, it has none"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "label": 1}\n{x',
            r"line 2 of .* must hold JS",
        ),
        ("metadata.jsonl", "[1]", r"line 1 of .* must hold a JSON object, found '\[1\]'; correct"),
        ("metadata.jsonl", "\n", r"must hold a row for each image, it is empty"),
        ("metadata.jsonl", '{"file_name": 3, "label": 1}', r"must have the path of an image .* 3;"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": [1]}', r"must hold a class, a whole n"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": null}', r"must hold a class, a whole"),
    ],
)
@pytest.mark.parametrize("end", ["", "zip"])
def test_broken_metadata_are_told(name, content, sentence, end, tmp_path):
    files = {"0.png": png(0), "1.png": png(1), name: content.encode()}
    place = pack(tmp_path / "set.zip", files) if end else unpack(tmp_path / "set", files)
    with pytest.raises(InputError, match=sentence):
        load(place, tmp_path)


def test_metadata_twice_or_of_test_images_only_are_told(tmp_path):
    files = described("csv", "", ["cat", "dog"]) | described("jsonl", "", ["cat", "dog"])
    with pytest.raises(InputError, match=r"must hold one of metadata.csv and metadata.jsonl, it"):
        load(unpack(tmp_path / "both", files), tmp_path)
    rows = [{"file_name": "0.png", "label": "a", "split": "test"}]
    files = {"0.png": png(0), "metadata.csv": listed("csv", rows)}
    with pytest.raises(InputError, match=r"must list training images, it lists test only"):
        load(unpack(tmp_path / "test", files), tmp_path)
    files = described("csv", "val", ["a", "b"]) | described("csv", "valid", ["a", "b"])
    files |= described("csv", "train", ["a", "b"])
    with pytest.raises(InputError, match=r"one folder of each split, it has train and val and"):
        load(unpack(tmp_path / "twice", files), tmp_path)
    files = described("csv", "", ["a", "b"]) | described("csv", "train", ["a", "b"], 5)
    dataset = load(unpack(tmp_path / "nested", files), tmp_path)
    assert "train/metadata.csv, there being metadata.csv" in dataset.left_out


def test_the_labels_are_a_part_of_what_the_data_are(tmp_path):
    known = set()
    for name, labels in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        folder = unpack(tmp_path / name, described("csv", "", labels))
        known |= {load(folder, tmp_path).fingerprint}
        known |= {load(Path(f"folder:{folder}"), tmp_path).fingerprint}
        packed = pack(tmp_path / f"{name}.tar", described("csv", "", labels))
        known |= {load(packed, tmp_path).fingerprint}
    assert len(known) == 2
