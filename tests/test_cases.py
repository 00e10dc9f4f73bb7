"""Data and networks as people have them: kinds of faults that users of other tools reported."""

import io
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import potstill
from potstill.cli.parser import main
from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays
from potstill.data.sources import dataset_of, read
from potstill.data.splits import Dataset
from potstill.distillation.run_folder import RunFolder
from potstill.distilled.picture import drawable_names, font_for
from potstill.errors import InputError, near_miss
from potstill.evaluation.records import worse_than_random
from potstill.records.metrics import Figure

QUICK: dict[str, Any] = {
    "steps": 2,
    "unroll": 4,
    "window": 2,
    "real_batch": 16,
    "compile": "off",
    "lengths": (5,),
    "validation_nets": 1,
    "threads": 1,
}
SMALL: dict[str, Any] = {**QUICK, "model": "mlp", "width": 16, "depth": 1}


def picture(kind: int, side: int = 8, bright: int = 1) -> np.ndarray[Any, Any]:
    """A grey image whose bright half tells its class, times a factor."""
    image = np.random.default_rng(kind).integers(0, 120, (side, side))
    image[side // 2 :] += 130 * (kind == 0)
    image[:, side // 2 :] += 130 * (kind == 1)
    return image * bright


def save(path: Path, image: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.astype(np.uint8 if image.max() < 256 else np.uint16)).save(path)


def folders(root: Path, splits: tuple[str, ...] = ("",), count: int = 12) -> Path:
    """Class folders cat and dog of PNGs, under each of the splits."""
    for split in splits:
        for kind, name in enumerate(("cat", "dog")):
            for index in range(count):
                save(root / split / name / f"{index:03}.png", picture(kind))
    return root


def folder(root: Path, tmp_path: Path, **options: Any) -> Dataset:
    return read(DataConfig(data=f"folder:{root}", cache_dir=str(tmp_path / "cache"), **options))


# Splits and classes


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("Train", "Test"), {"train": 24, "test": 8}),
        (("training", "testing"), {"train": 24, "test": 8}),
        (("TRAIN", "Val", "TEST"), {"train": 24, "validation": 8, "test": 8}),
        (("train", "dev", "eval"), {"train": 24, "validation": 8, "test": 8}),
        (("train", "valid"), {"train": 24, "test": 8}),
    ],
)
def test_split_folders_are_known_by_their_usual_names_in_any_case(names, sizes, tmp_path):
    folders(tmp_path / "set", names[:1])
    folders(tmp_path / "set", names[1:], 4)
    dataset = folder(tmp_path / "set", tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert {name: len(arrays.labels) for name, arrays in dataset.splits.items()} == sizes
    assert dataset.origins["train"] == f"{names[0]}/"
    assert dataset.left_out == ()


def test_an_archive_may_wrap_the_data_in_other_folders(tmp_path):
    folders(tmp_path / "set" / "mnist" / "images", ("training", "testing"))
    (tmp_path / "set" / "__MACOSX" / "cat").mkdir(parents=True)
    assert folder(tmp_path / "set", tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("names", [("Trainset", "Testset"), ("fold1", "fold2", "fold3")])
def test_folders_that_look_like_splits_are_not_taken_for_classes(names, tmp_path):
    folders(tmp_path / "set", names)
    with pytest.raises(
        InputError,
        match=rf"the folders {', '.join(sorted(names))} in .*set look like splits, not classes: "
        r"all hold the folders cat, dog; rename them to train, val and test",
    ):
        folder(tmp_path / "set", tmp_path)


def test_two_folders_of_one_split_are_refused_by_name(tmp_path):
    folders(tmp_path / "set", ("train", "val", "validation"))
    with pytest.raises(InputError, match="one validation split, it has val and validation; remove"):
        folder(tmp_path / "set", tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for kind, name in enumerate(("bus", "car", "train")):
        for index in range(4):
            save(tmp_path / "set" / name / f"{index}.png", picture(kind))
    dataset = folder(tmp_path / "set", tmp_path)
    assert dataset.class_names == ("bus", "car", "train")
    assert len(dataset.train.labels) == 12


def test_validation_images_of_ones_own_are_those_that_choose(tmp_path):
    folders(tmp_path / "set", ("train", "val", "test"), 6)
    said: list[str] = []
    out = tmp_path / "run"
    potstill.distill(
        data=f"folder:{tmp_path / 'set'}", cache_dir=str(tmp_path / "c"), **SMALL, out=out,
        listener=potstill_listener(said),
    )  # fmt: skip
    assert said[0] == (
        "2 classes (cat, dog), images of 1 x 8 x 8 with values 0 to 249: 12 train (train/), 12 "
        "validation (val/), 12 test (test/)"
    )
    data = potstill.load(out).metadata.data
    assert data is not None
    assert (data.train, data.validation, data.test) == (12, 12, 12)
    assert data.origins == {"train": "train/", "validation": "val/", "test": "test/"}


def potstill_listener(said: list[str]) -> Any:
    from potstill.progress import Listener

    return Listener(say=said.append)


# Data as people have them, by their path alone


def test_a_path_alone_tells_what_it_is(tmp_path, capsys):
    folders(tmp_path / "photos")
    table(tmp_path / "shards" / "data" / "train-0.parquet", ["cat", "dog"])
    images, labels = digits()
    np.savez(tmp_path / "keras.npz", x_train=images[:99], y_train=labels[:99, None])
    lines = ["a,b,kind", *(f"{i},{i % 7},{'xy'[i % 2]}" for i in range(30))]
    (tmp_path / "numbers.csv").write_text("\n".join(lines))
    for name, kind, shape in (
        ("photos", "folder", (1, 8, 8)),
        ("shards", "parquet", (1, 8, 8)),
        ("keras.npz", "npz", (1, 8, 8)),
        ("numbers.csv", "csv", (2,)),
    ):
        config = DataConfig(data=str(tmp_path / name), cache_dir=str(tmp_path / "c"))
        assert config.source == (kind, str(tmp_path / name))
        assert read(config).shape == shape
    out = tmp_path / "run"
    flags = ["--model", "mlp", "--steps", "2", "--lengths", "3", "--cache-dir", str(tmp_path / "c")]
    assert main(["distill", "--data", str(tmp_path / "photos"), *flags, "--out", str(out)]) == 0
    assert RunFolder(out).config().data.data == f"folder:{tmp_path / 'photos'}"
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert main(["distill", "--data", str(tmp_path / "x.zip")]) == 2
    assert "must be a whole zip or tar: download or pack it again" in capsys.readouterr().err


def test_arrays_in_a_file_have_the_splits_that_their_names_tell(tmp_path):
    images, labels = digits()
    names = {"train": slice(0, 900), "val": slice(900, 1200), "test": slice(1200, None)}
    arrays = {f"{name}_images": images[rows] for name, rows in names.items()}
    arrays |= {f"{name}_labels": labels[rows, None] for name, rows in names.items()}
    np.savez(tmp_path / "medical.npz", **arrays, extra=np.zeros(3))
    dataset = read(DataConfig(data=f"npz:{tmp_path / 'medical.npz'}"))
    sizes = {name: len(part.labels) for name, part in dataset.splits.items()}
    assert sizes == {"train": 900, "validation": 300, "test": 597}
    assert dataset.left_out == ("array extra of shape (3,)",)
    np.savez(tmp_path / "bad.npz", pictures=images)
    with pytest.raises(InputError, match=r"must hold x_train and y_train.*got pictures; rename"):
        read(DataConfig(data=f"npz:{tmp_path / 'bad.npz'}"))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), y=labels[:1])
    with pytest.raises(InputError, match=r"as arrays: .*pickle"):
        read(DataConfig(data=f"npz:{tmp_path / 'objects.npz'}"))


def test_a_csv_lists_images_with_labels_and_splits(tmp_path):
    lines = ["file_name;label;split"]
    for index in range(40):
        kind, split = index % 2, ("train", "valid", "test", "Train")[index // 2 % 4]
        save(tmp_path / "images" / f"{index}.png", picture(kind))
        lines.append(f"images/{index}.png;{('cat', 'dog')[kind]};{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    dataset = read(DataConfig(data=str(tmp_path / "labels.csv"), cache_dir=str(tmp_path / "c")))
    assert dataset.class_names == ("cat", "dog")
    sizes = {name: len(part.labels) for name, part in dataset.splits.items()}
    assert sizes == {"train": 20, "validation": 10, "test": 10}
    assert dataset.origins["validation"] == "labels.csv, split validation"
    for arrays in dataset.splits.values():
        assert all(
            np.array_equal(image[0], picture(label))
            for image, label in zip(arrays.images, arrays.labels, strict=True)
        )
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(InputError, match=r"lists 'images/3\.png', which is not there; paths begin"):
        read(DataConfig(data=str(tmp_path / "labels.csv"), cache_dir=str(tmp_path / "c")))
    (tmp_path / "gap.csv").write_text("a,b,kind\n1,2,x\n3,,y\n")
    with pytest.raises(InputError, match=r"column 'b' of .* must hold numbers, line 3 holds ''"):
        read(DataConfig(data=str(tmp_path / "gap.csv")))
    (tmp_path / "twice.csv").write_text("a,a,kind\n1,2,x\n3,4,y\n")
    with pytest.raises(InputError, match="must have different names, 'a' comes twice"):
        read(DataConfig(data=str(tmp_path / "twice.csv")))
    (tmp_path / "short.csv").write_text("a,b,kind\n1,2,x\n3,y\n")
    with pytest.raises(InputError, match=r"line 3 of .* must have as many values as the heading"):
        read(DataConfig(data=str(tmp_path / "short.csv")))


# What is left out


def test_what_is_not_read_is_counted_with_the_reason(tmp_path):
    root = folders(tmp_path / "set")
    for index in range(5):
        (root / "cat" / f"IMG_{index}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    for index in range(3):
        (root / "dog" / f"{index:03}.png").rename(root / "dog" / f"{index:03}")
    (root / "dog" / "notes").write_text("no image")
    (root / "cat" / "a.txt").write_text("no image")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    save(root / "loose.png", picture(0))
    dataset = folder(root, tmp_path)
    assert dataset.train.labels.tolist() == [0] * 12 + [1] * 12, "without extension, yet images"
    assert sorted(dataset.left_out) == [
        "1 .txt files",
        "1 broken links",
        "1 files without an extension that hold no image",
        "1 images that lie in no class folder of set/",
        "5 .HEIC files (pip install pillow-heif to read them)",
    ]


def test_linked_folders_are_entered_and_no_loop_is_endless(tmp_path):
    folders(tmp_path / "elsewhere")
    root = folders(tmp_path / "set", count=3)
    for name in ("cat", "dog"):
        (root / name / "one").symlink_to(tmp_path / "elsewhere" / name)
        (root / name / "two").symlink_to(root / name)
    dataset = folder(root, tmp_path)
    assert np.bincount(dataset.train.labels).tolist() == [15, 15]
    assert dataset.left_out == ("2 linked folders that lead back to where they lie",)


def table(path: Path, names: list[str], count: int = 40, labels: list[Any] | None = None) -> None:
    """A parquet file of cats and dogs, numbered by `names`."""
    rows, numbers = [], []
    for index in range(count):
        buffer, name = io.BytesIO(), ("cat", "dog")[index % 2]
        Image.fromarray(picture(index % 2).astype(np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
        numbers.append(names.index(name))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})} if labels is None else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.table({"image": rows, "label": numbers if labels is None else labels})
    pq.write_table(content.replace_schema_metadata(meta), path)


def parquet(root: Path, tmp_path: Path) -> Dataset:
    return read(DataConfig(data=f"parquet:{root}", cache_dir=str(tmp_path / "cache")))


def test_a_label_means_its_name_in_every_parquet_file(tmp_path):
    table(tmp_path / "set" / "train-00000-of-00002.parquet", ["cat", "dog"])
    table(tmp_path / "set" / "train-00001-of-00002.parquet", ["dog", "cat"])
    table(tmp_path / "set" / "test.parquet", ["dog", "cat"])
    dataset = parquet(tmp_path / "set", tmp_path)
    assert dataset.class_names == ("cat", "dog")
    for arrays in dataset.splits.values():
        upper = arrays.images[:, 0, -4:].mean((1, 2)) - arrays.images[:, 0, :4].mean((1, 2))
        assert ((upper > 60) == (arrays.labels == 0)).all()


def test_parquet_files_of_other_classes_are_refused_by_name(tmp_path):
    table(tmp_path / "set" / "train.parquet", ["cat", "dog"])
    table(tmp_path / "set" / "test.parquet", ["cat", "dog", "eel"])
    with pytest.raises(
        InputError,
        match=r"same classes in column 'label', .*test.parquet has the classes cat, dog, eel and "
        r".*train.parquet has the classes cat, dog; write them anew",
    ):
        parquet(tmp_path / "set", tmp_path)


def test_parquet_files_of_unknown_splits_are_told(tmp_path):
    for name in ("train", "dev", "extra"):
        table(tmp_path / "set" / f"{name}.parquet", ["cat", "dog"])
    dataset = parquet(tmp_path / "set", tmp_path)
    assert set(dataset.splits) == {"train", "test"}
    assert dataset.origins["test"] == "dev.parquet, there being no test split"
    assert dataset.left_out == ("extra.parquet, of no split that is known by its name",)


@pytest.mark.parametrize(
    "names", [("trainset", "testset"), ("training1", "test"), ("train", "values")]
)
def test_parquet_files_are_known_by_how_their_names_begin(names, tmp_path):
    for name in names:
        table(tmp_path / "set" / f"{name}.parquet", ["cat", "dog"])
    splits = set(parquet(tmp_path / "set", tmp_path).splits)
    assert splits == ({"train"} if "values" in names else {"train", "test"})


def test_whole_numbers_that_pandas_wrote_as_floats_are_labels(tmp_path):
    table(tmp_path / "set.parquet", ["cat", "dog"], labels=[float(i % 2) for i in range(40)])
    assert parquet(tmp_path / "set.parquet", tmp_path).class_names == ("0", "1")
    table(tmp_path / "bad.parquet", ["cat", "dog"], labels=[0.5 * (i % 2) for i in range(40)])
    with pytest.raises(InputError, match="must hold a class, a whole number or a text"):
        parquet(tmp_path / "bad.parquet", tmp_path)


# The range of values


@pytest.mark.parametrize(("bright", "bits"), [(1, 8), (16, 12), (64, 14), (256, 16)])
def test_16_bit_images_keep_their_brightness_whatever_bits_they_use(bright, bits, tmp_path):
    for kind, name in enumerate(("cat", "dog")):
        for index in range(4):
            image = picture(kind, bright=bright).astype(np.uint16)
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "set" / name / f"{index}.png")
    dataset = folder(tmp_path / "set", tmp_path)
    assert dataset.bit_depth == bits
    expected = picture(0, bright=bright) * 255 / (2**bits - 1)
    assert np.abs(dataset.train.images[0, 0] - expected).max() <= 0.5
    said: list[str] = []
    out = tmp_path / "run"
    options = {"data": f"folder:{tmp_path / 'set'}", "cache_dir": str(tmp_path / "c")}
    potstill.distill(**options, **SMALL, out=out, listener=potstill_listener(said))
    assert any(f"taken as {bits} bits" in sentence for sentence in said)
    assert potstill.load(out).meta["config"]["data"]["bit_depth"] == bits


def test_16_bit_images_beside_others_are_as_bright(tmp_path):
    for index in range(4):
        save(tmp_path / "set" / "cat" / f"{index}.png", picture(0))
        (tmp_path / "set" / "dog").mkdir(parents=True, exist_ok=True)
        deep = Image.fromarray(picture(1).astype(np.uint16))
        deep.save(tmp_path / "set" / "dog" / f"{index}.png")
    dataset = folder(tmp_path / "set", tmp_path)
    assert np.array_equal(dataset.train.images[-1, 0], picture(1))
    assert folder(tmp_path / "set", tmp_path, bit_depth=16).train.images[-1].max() == 1


def digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images * 15).astype(np.uint8), bunch.target


@pytest.fixture(scope="module")
def distilled() -> potstill.DistilledSet:
    images, labels = digits()
    return potstill.distill(images, labels, **SMALL, preprocess="normalize")


@pytest.mark.parametrize(
    ("factor", "word"), [(1 / 15, "less"), (1.0, ""), (255 / 240, ""), (1 / 240.0, "")]
)
def test_data_on_another_scale_than_the_sets_are_told(distilled, factor, word):
    images, labels = digits()
    other = images * factor
    other = other.round().astype(np.uint8) if factor in (1.0, 1 / 15) else other.astype(np.float32)
    if factor == 255 / 240:  # floats of 0 to 255
        word = "more"
    (row,) = potstill.evaluate(distilled, other, labels, nets=1)
    scale = [caution for caution in row.cautions if "reach" in caution]
    assert bool(scale) == bool(word)
    assert all(f"values of these images reach {word} than" in caution for caution in scale)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distilled.preprocess(other[:50])
    assert bool(caught) == bool(word)


# What is tested on


def test_all_of_a_test_set_that_is_given_is_tested_on(distilled):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 250, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 10
    for given in ((images, labels), ()):
        named = {} if given else {"test_images": images, "test_labels": labels}
        (row,) = potstill.evaluate(distilled, *given, **named, nets=1)
        assert (row.tested, row.cautions) == (60, ())
    with pytest.raises(InputError, match="baseline random trains on real images, all that are giv"):
        potstill.evaluate(distilled, images, labels, nets=1, baselines=("random",))
    with pytest.raises(InputError, match="are chosen on validation images, all that are given are"):
        potstill.evaluate(distilled, images, labels, nets=1, models=("convnet",))


def test_what_was_held_out_is_tested_on_where_the_data_are_the_sets_own(distilled):
    (row,) = potstill.evaluate(distilled, *digits(), nets=1)
    assert (row.tested, row.cautions) == (359, ())


def test_tests_on_images_that_were_distilled_from_are_told_in_the_row(distilled, tmp_path, capsys):
    images, labels = digits()
    order = np.random.default_rng(0).permutation(len(images))
    (row,) = potstill.evaluate(distilled, images[order], labels[order], nets=1)
    (caution,) = row.cautions
    assert row.tested == 1797
    assert caution.startswith("about 1,295 of these 1,797 images are images that the set was dist")
    # A tenth of what was distilled from, among others, as floats.
    mixed = np.concatenate([images[:100] / 255, np.random.default_rng(1).random((200, 8, 8))])
    (row,) = potstill.evaluate(distilled, mixed, np.arange(300) % 10, nets=1)
    assert "of these 300 images are images that" in row.cautions[0]
    # As on the command line.
    root = tmp_path / "digits"
    for index in range(200):
        save(root / str(labels[index]) / f"{index}.png", images[index])
    potstill.save(distilled, tmp_path / "d.safetensors")
    command = [
        "evaluate",
        str(tmp_path / "d.safetensors"),
        "--nets",
        "1",
        "--data",
        f"folder:{root}",
    ]
    assert main([*command, "--cache-dir", str(tmp_path)]) == 0
    assert "of these 200 images are images that the set was distilled" in capsys.readouterr().err


def test_classes_in_another_order_are_mapped_by_their_names(distilled):
    images, labels = digits()
    names = [str(number) for number in range(10)]
    turned = from_arrays(images, 9 - labels, class_names=names[::-1])
    from potstill.evaluation.fitting import in_order

    ordered = in_order(turned, tuple(names))
    assert ordered.class_names == tuple(names)
    assert np.array_equal(ordered.train.labels, labels)
    with pytest.raises(InputError, match=r"got 10, without 9 and with nine; give data of the same"):
        in_order(from_arrays(images, labels, class_names=[*names[:9], "nine"]), tuple(names))


# What Python takes


class Pairs(torch.utils.data.Dataset):
    """A data set of (image, label), as torchvision's are."""

    classes = ("even", "odd")

    def __init__(self, images: Any, labels: Any, as_picture: bool = False):
        self.images, self.labels, self.as_picture = images, labels, as_picture

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        shown = Image.fromarray(image) if self.as_picture else torch.from_numpy(image)[None]
        return shown, int(self.labels[index])


def test_data_sets_of_other_libraries_are_read_as_arrays_are():
    datasets = pytest.importorskip("datasets")
    images, labels = digits()
    images, labels = images[:200], labels[:200] % 2
    expected = from_arrays(images, labels, class_names=["even", "odd"])
    pairs = Pairs(images, labels)
    rows = {"img": [Image.fromarray(one) for one in images], "label": labels.tolist()}
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    for given in (
        pairs,
        Pairs(images, labels, as_picture=True),
        torch.utils.data.DataLoader(pairs, batch_size=7, shuffle=True),
        datasets.Dataset.from_dict(rows, features=features),
    ):
        dataset = dataset_of(DataConfig(), given, None, None, None, None)
        assert dataset.fingerprint == expected.fingerprint
        assert dataset.class_names == ("even", "odd")
    distilled = potstill.distill(pairs, **SMALL)
    (row,) = potstill.evaluate(distilled, pairs, nets=1)
    assert row.tested == 40, "a fifth was held out of them"
    with pytest.raises(InputError, match="items of list_iterator must be pairs of an example"):
        potstill.distill(iter([1, 2]), **SMALL)
    mixed = Pairs([images[0], images[0][:4]], [0, 1])
    with pytest.raises(InputError, match=r"must have one shape, got 2, such as \(1, 4, 8\) and"):
        potstill.distill(mixed, **SMALL)


def test_channels_may_come_last_and_labels_may_be_names():
    images, labels = digits()
    colour = np.stack([images, images // 2, images // 3], -1)
    expected = from_arrays(colour.transpose(0, 3, 1, 2), labels)
    assert from_arrays(colour, labels).fingerprint == expected.fingerprint
    named = np.array(["dog" if label % 2 else "cat" for label in labels])
    dataset = from_arrays(images, named, images[:50], named[:50].astype(object))
    assert dataset.class_names == ("cat", "dog")
    assert np.array_equal(dataset.train.labels, labels % 2)
    assert np.array_equal(dataset.splits["test"].labels, labels[:50] % 2)
    other = from_arrays(images, named, class_names=["dog", "cat"])
    assert np.array_equal(other.train.labels, 1 - labels % 2)
    distilled = potstill.distill(images, named, **SMALL)
    (row,) = potstill.evaluate(distilled, images[::-1][:30], named[::-1][:30], nets=1)
    assert row.tested == 30


def test_a_path_may_stand_in_place_of_arrays(tmp_path):
    root = folders(tmp_path / "set")
    for path in (f"folder:{root}", "digits"):
        assert potstill.distill(path, **SMALL, cache_dir=str(tmp_path / "c")).class_names
    with pytest.raises(InputError, match="data is given twice, as 'digits' and as 'sklearn:wine'"):
        potstill.distill("digits", data="sklearn:wine", **SMALL)


# Networks


class Attention(nn.Module):
    """Attention without dropout: its fast paths have no second derivative."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, num_classes)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, inputs):
        return self.head(self.layer(self.embed(inputs[:, 0])).mean(1))


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(num_classes)
    )


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(16, 10))


class Listed(nn.Module):
    """Reads its parameters from a list of its own."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, num_classes)
        self.own = list(self.first.parameters())

    def forward(self, inputs):
        return self.second((inputs.flatten(1) @ self.own[0].T + self.own[1]).relu())


@pytest.mark.parametrize("model", [Attention, lazy])
def test_attention_and_lazy_layers_simply_work(model):
    distilled = potstill.distill(data="digits", model=model, **QUICK)
    assert potstill.train(distilled, model, steps=2)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (
            lambda: flat(nn.utils.weight_norm(nn.Linear(64, 16))),
            {},
            "must be one that can be copied, copying it fails",
        ),
        (
            lambda: flat(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 16))),
            {},
            r"must give the same output every time, calling it changes its buffers 1\.param",
        ),
        (Listed, {}, r"must use its parameters by their names, .*first\.weight, first\.bias"),
        (
            lambda: flat(nn.Linear(64, 16), nn.BatchNorm1d(16)),
            {"classes_per_batch": 1},
            r"fails on inputs of shape \(1, 1, 8, 8\): ValueError: Expected more than 1 value.*"
            r"raise --classes-per-batch",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_is_unfit_is_told_why_in_one_sentence(model, options, sentence):
    with pytest.raises(InputError, match=sentence):
        potstill.distill(data="digits", model=model, **QUICK, **options)


class Sized(nn.Module):
    def __init__(self, num_classes: int, values: int):
        super().__init__()
        self.layer = nn.Linear(values, num_classes)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1))


def test_a_partial_is_a_network_that_must_be_given_again():
    distilled = potstill.distill(data="digits", model=partial(Sized, values=64), **QUICK)
    with pytest.raises(InputError, match=r"<partial of Sized>, which cannot be imported; give it"):
        potstill.train(distilled)
    assert potstill.train(distilled, partial(Sized, values=64), steps=1).layer.in_features == 64


# torch's global state


@pytest.mark.parametrize("state", ["float64", "no_grad", "inference"])
def test_torchs_global_state_does_not_matter_and_is_left_as_it_was(state):
    expected = potstill.distill(data="digits", **SMALL)
    if state == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        if state == "float64":
            found = potstill.distill(data="digits", **SMALL)
            assert torch.get_default_dtype() == torch.float64
        else:
            with torch.no_grad() if state == "no_grad" else torch.inference_mode():
                found = potstill.distill(data="digits", **SMALL)
                assert len(potstill.evaluate(found, nets=1)) == 1
                assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.images, expected.images)


def test_an_import_that_changes_torchs_default_type_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(
        "import torch\nfrom torch import nn\ntorch.set_default_dtype(torch.float64)\n\n\n"
        "def net(in_features, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        distilled = potstill.distill(data="digits", model="greedy:net", **QUICK)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert distilled.images.dtype == torch.float32


# Text


def test_names_that_are_no_utf_8_and_names_without_glyphs(tmp_path, capsys):
    for name in (b"caf\xe9", b"th\xe9"):
        for index in range(6):
            path = Path(str(tmp_path / "set")) / __import__("os").fsdecode(name) / f"{index}.png"
            save(path, picture(name == b"th\xe9"))
    out = tmp_path / "run"
    options = {"data": f"folder:{tmp_path / 'set'}", "cache_dir": str(tmp_path / "c")}
    distilled = potstill.distill(**options, **SMALL, out=out)
    assert distilled.class_names == ("café", "thé")
    assert main(["report", str(out)]) == 0
    assert "café" in (out / "report.html").read_text(encoding="utf-8")
    assert RunFolder(out).finished
    font = font_for(["cat"])
    names = drawable_names(["cat", "\U00013000", "what?"], font)
    assert names[0] == "cat"
    assert names[1] in ("class 1", "\U00013000")
    assert names[2] == "what?"


# Suggestions


@pytest.mark.parametrize(
    ("given", "known", "hint"),
    [
        ("--lr", ["--outer-lr", "--norm"], " (here it is --outer-lr for the set, --inner-lr for n"),
        ("--epochs", ["--steps", "--preprocess"], " (here it is --steps)"),
        ("arch", ["model", "param"], " (here it is --model)"),
        ("haba", ["basis", "factorised"], " (here it is factorised)"),
        ("--time-limit", ["--image-column", "--outer-lr"], ""),
        ("--outer_lr", ["--outer-lr"], " (did you mean '--outer-lr'?)"),
        ("rat-bpt", ["rat-bptt", "bptt"], " (did you mean 'rat-bptt'?)"),
    ],
)
def test_a_suggestion_is_what_other_tools_call_it_or_near_or_none(given, known, hint):
    assert near_miss(given, known).startswith(hint)
    assert bool(near_miss(given, known)) == bool(hint)


def test_what_others_call_it_is_told_on_the_command_line_and_in_python(capsys):
    assert main(["distill", "--lr", "0.1"]) == 2
    assert "unknown argument '--lr' (here it is --outer-lr for the set" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"unknown option 'epochs' \(here it is --steps\)"):
        potstill.distill(data="digits", epochs=3)
    with pytest.raises(InputError, match=r"'linba' \(here it is basis\)"):
        potstill.distill(data="digits", param="linba")


def test_a_class_is_named_where_it_has_too_few_images(tmp_path):
    root = folders(tmp_path / "set")
    for index in range(3):
        save(root / "rare" / f"{index}.png", picture(2))
    with pytest.raises(InputError, match="1 in class 'rare', got 5"):
        potstill.distill(
            data=f"folder:{root}", cache_dir=str(tmp_path / "c"), ipc=5, init="real", **SMALL
        )


def test_a_set_that_is_worse_than_real_images_says_so_with_the_likeliest_reason():
    bad, good = Figure(0.19, 0.02, 3), Figure(0.6, 0.02, 3)
    assert worse_than_random(good, bad, 6, 10, "image") == ""
    assert "it took 6 outer steps, and most sets need some hundreds; go on with" in (
        worse_than_random(bad, good, 6, 10, "image")
    )
    chance = Figure(0.11, 0.02, 3)
    assert "guessing: a learning rate may be too high" in worse_than_random(
        chance, good, 600, 10, "row"
    )
    assert "distil for longer" in worse_than_random(bad, good, 600, 10, "image")
    images, labels = digits()
    said: list[str] = []
    noise = potstill.distill(images, labels, **SMALL)
    potstill.evaluate(
        noise, images, labels, nets=2, baselines=("random",), listener=potstill_listener(said)
    )
    assert any("the set is worse than as many real images: it took 2 outer" in one for one in said)


def test_an_export_to_a_name_of_no_format_is_refused(distilled, tmp_path, capsys):
    potstill.save(distilled, tmp_path / "d.safetensors")
    for name in ("x.zip", "x.pt"):
        command = ["export", str(tmp_path / "d.safetensors"), "--no-check"]
        assert main([*command, "--out", str(tmp_path / name)]) == 2
        assert (
            "out must end in .png, .csv, .parquet, .npz, .safetensors, or name a folder of images, "
            f"got '{name}'" in capsys.readouterr().err
        )
        assert not (tmp_path / name).exists()


def test_progress_is_shown_in_a_terminal_and_off_if_asked(monkeypatch, capsys):
    images, labels = digits()
    potstill.distill(images, labels, **SMALL)
    assert capsys.readouterr().err == "", "no terminal"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    potstill.distill(images, labels, **SMALL)
    assert "10 classes (0, 1, 2, 3, 4, 5, ...)" in capsys.readouterr().err
    potstill.distill(images, labels, **SMALL, progress=False)
    assert capsys.readouterr().err == ""
    said: list[str] = []
    potstill.distill(images, labels, **SMALL, listener=potstill.Listener(say=said.append))
    assert said[0].startswith("10 classes")
    assert capsys.readouterr().err == ""
