"""Well-known data sets in the layouts in which they are distributed."""

import numpy as np
import pytest
from PIL import Image

from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.errors import InputError


def picture(path, shade: int) -> None:
    """A grey picture, known by its shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (shade, shade, shade)).save(path)


def shades(arrays) -> list[int]:
    return arrays.images[:, 0, 0, 0].tolist()


def config_of(root, tmp_path, **options) -> DataConfig:
    return DataConfig(data=f"folder:{root}", cache_dir=str(tmp_path / "cache"), **options)


@pytest.fixture
def tiny(tmp_path):
    """Tiny-ImageNet in small: images in a folder of their own under each class, boxes beside them,
    a flat val/ with a list.
    """
    root = tmp_path / "tiny-imagenet-200"
    for label, name in enumerate(("n01443537", "n01629819")):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.png\t0\t0\t5\t5\n")
        for index in range(3):
            picture(root / "train" / name / "images" / f"{name}_{index}.png", 100 * label + index)
    rows = [
        ("val_0.png", "n01629819", 200),
        ("val_1.png", "n01443537", 50),
        ("val_2.png", "n01629819", 201),
    ]
    for file, _, shade in rows:
        picture(root / "val" / "images" / file, shade)
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"{file}\t{label}\t0\t0\t5\t5\n" for file, label, _ in rows)
    )
    picture(root / "test" / "images" / "test_0.png", 255)  # its classes are not public
    return root


def test_tiny_imagenet_tests_on_its_validation_images(tiny, tmp_path):
    dataset = read(config_of(tiny, tmp_path))
    assert dataset.class_names == ("n01443537", "n01629819")
    assert (shades(dataset.train), dataset.train.labels.tolist()) == (
        [0, 1, 2, 100, 101, 102],
        [0, 0, 0, 1, 1, 1],
    )
    assert (shades(dataset.test), dataset.test.labels.tolist()) == ([50, 200, 201], [0, 1, 1])
    # Not used, and that is said.
    told = ("folder test/, which holds no class folder of train", "2 .txt files")
    assert dataset.left_out == told
    assert dataset.origins["test"] == "val/, there being no test split"


def test_other_classes_in_its_list_are_other_data(tiny, tmp_path):
    before = read(config_of(tiny, tmp_path))
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(
        annotations.read_text().replace("val_2.png\tn01629819", "val_2.png\tn01443537")
    )
    after = read(config_of(tiny, tmp_path))
    assert after.test.labels.tolist() == [0, 0, 1]
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "line",
    [
        "val_3.png\tn00000000",
        "../val_3.png\tn01443537",
        "/val_3.png\tn01443537",
        "\tn01443537",
        "val_3.png",
    ],
)
def test_a_bad_line_in_its_list_is_named(tiny, tmp_path, line):
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + f"\n{line}\n")
    message = (
        r"line 5 of .*val_annotations.txt must hold a file and a class of train/ between "
        r"tabs, found .*; correct it"
    )
    with pytest.raises(InputError, match=message):
        read(config_of(tiny, tmp_path))


def test_its_list_may_have_other_ends_of_lines_and_must_not_be_empty(tiny, tmp_path):
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert shades(read(config_of(tiny, tmp_path)).test) == [50, 200, 201]
    annotations.write_text("\n")
    with pytest.raises(InputError, match=r"val_annotations.txt must list images, it is empty"):
        read(config_of(tiny, tmp_path))


def test_validation_images_that_were_sorted_into_class_folders_need_no_list(tiny, tmp_path):
    for file, name in (
        ("val_0.png", "n01629819"),
        ("val_1.png", "n01443537"),
        ("val_2.png", "n01629819"),
    ):
        (tiny / "val" / name).mkdir(exist_ok=True)
        (tiny / "val" / "images" / file).rename(tiny / "val" / name / file)
    (tiny / "val" / "images").rmdir()
    assert shades(read(config_of(tiny, tmp_path)).test) == [50, 200, 201]  # the list is still there


def test_an_image_that_its_list_names_and_that_is_not_there_is_named(tiny, tmp_path):
    (tiny / "val" / "images" / "val_1.png").unlink()
    with pytest.raises(
        InputError,
        match=r"cannot read .*val_1.png: No such file or directory; put it back or make it "
        r"readable",
    ):
        read(config_of(tiny, tmp_path))


@pytest.fixture
def birds(tmp_path):
    """CUB-200-2011 in small."""
    root = tmp_path / "CUB_200_2011"
    files = [
        (f"00{label + 1}.Bird_{label}/Bird_{index}.png", 100 * label + index)
        for label in range(2)
        for index in range(4)
    ]
    for file, shade in files:
        picture(root / "images" / file, shade)
    (root / "images.txt").write_text(
        "".join(f"{number + 1} {file}\n" for number, (file, _) in enumerate(files))
    )
    (root / "train_test_split.txt").write_text(
        "".join(f"{number + 1} {int(number % 4 < 3)}\n" for number in range(8))
    )
    return root


def test_cub_is_split_as_its_list_says(birds, tmp_path):
    dataset = read(config_of(birds, tmp_path))
    assert dataset.class_names == ("001.Bird_0", "002.Bird_1")
    assert (shades(dataset.train), dataset.train.labels.tolist()) == (
        [0, 1, 2, 100, 101, 102],
        [0, 0, 0, 1, 1, 1],
    )
    assert (shades(dataset.test), dataset.test.labels.tolist()) == ([3, 103], [0, 1])
    mapped = read(config_of(birds, tmp_path, storage="mapped"))
    assert np.array_equal(mapped.train.images, dataset.train.images)
    split = birds / "train_test_split.txt"
    split.write_text(split.read_text().replace("8 0", "8 1"))  # the files come in the same order
    assert read(config_of(birds, tmp_path)).fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (
            "1 1\n2 0\n",
            r"images.txt and .*train_test_split.txt must list the same images, found 8 and 2",
        ),
        (
            "".join(f"{number + 1} 1\n" for number in range(8)),
            r"must hold training images \(1\) and test images \(0\), found one",
        ),
        (
            "1\n",
            r"line 1 of .*train_test_split.txt must hold another number than before and 0 or 1, "
            r"found '1'",
        ),
        (
            "1 1\n\n1 0\n",
            r"line 3 of .*train_test_split.txt must hold another number than before and 0 or 1, "
            r"found '1 0'",
        ),
        ("1 2\n", r"line 1 of .* must hold another number than before and 0 or 1, found '1 2'"),
    ],
)
def test_lists_of_cub_that_do_not_fit_are_refused(birds, tmp_path, split, sentence):
    (birds / "train_test_split.txt").write_text(split)
    with pytest.raises(InputError, match=sentence):
        read(config_of(birds, tmp_path))


def test_lists_of_cub_may_have_spaces_and_their_files_lie_inside(birds, tmp_path):
    files = birds / "images.txt"
    files.write_text(files.read_text().replace("\n", " \r\n").replace("1 001", "1\t001"))
    assert shades(read(config_of(birds, tmp_path)).test) == [3, 103]
    for file in ("Bird.png", "../Bird.png", "/Bird.png", "a/b/Bird.png"):
        (birds / "images.txt").write_text(f"1 {file}\n")
        with pytest.raises(
            InputError,
            match=r"line 1 of .*images.txt must hold .* and a file, as in class/image.jpg, found",
        ):
            read(config_of(birds, tmp_path))
