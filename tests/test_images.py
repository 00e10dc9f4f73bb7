"""Image folders: which files count, what becomes of every mode, size and orientation, and what is
said of bad ones.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from potstill.config.sections import DataConfig
from potstill.data.sources import read
from potstill.data.splits import Dataset
from potstill.errors import InputError

Picture = Image.Image | np.ndarray[Any, Any]
COLOUR = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3) * 3
GREY = COLOUR[:, :, 0]


def write(root: Path, pictures: dict[str, Picture], **options: Any) -> None:
    """Save pictures under `root`, each at its path."""
    for place, picture in pictures.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
            path, **options
        )


def load(root: Path, tmp_path: Path, **options: Any) -> Dataset:
    return read(DataConfig(data=f"folder:{root}", cache_dir=str(tmp_path / "cache"), **options))


def decoded(
    tmp_path: Path, picture: Picture, suffix: str = "png", **options: Any
) -> np.ndarray[Any, Any]:
    """The first picture of a set whose other one is grey, (C, H, W)."""
    size = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    write(tmp_path, {f"set/a/0.{suffix}": picture}, **options)
    write(tmp_path, {"set/b/0.png": Image.new("L", size)})
    return load(tmp_path / "set", tmp_path).train.images[0]


# Which files belong to which class of which split


def test_class_folders_alone_are_the_train_split_in_the_order_of_their_names(tmp_path):
    write(
        tmp_path,
        {
            "set/dog/0.png": COLOUR,
            "set/cat/1.png": COLOUR + 1,
            "set/cat/0.png": COLOUR + 2,
            "set/ant/0.png": COLOUR + 3,
        },
    )
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.test is None
    assert dataset.train.labels.tolist() == [0, 1, 1, 2]
    expected = np.stack([COLOUR + 3, COLOUR + 2, COLOUR + 1, COLOUR]).transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.train.images, expected)
    assert dataset.notes == ()


@pytest.mark.parametrize("test_name", ["test", "validation", "valid", "val"])
def test_train_and_test_folders_are_the_two_splits(test_name, tmp_path):
    train = {
        "train/cat/0.png": COLOUR,
        "train/dog/0.png": COLOUR + 1,
        "train/dog/1.png": COLOUR + 2,
    }
    write(
        tmp_path / "set",
        {**train, f"{test_name}/dog/7.png": COLOUR + 9, f"{test_name}/cat/7.png": COLOUR + 8},
    )
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is not None
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    assert np.array_equal(
        dataset.test.images, np.stack([COLOUR + 8, COLOUR + 9]).transpose(0, 3, 1, 2)
    )


def test_test_comes_before_validation_and_neither_is_needed(tmp_path):
    write(tmp_path / "set", {"train/a/0.png": COLOUR, "train/b/0.png": COLOUR})
    assert load(tmp_path / "set", tmp_path).test is None
    write(
        tmp_path / "set",
        {
            f"{split}/{name}/0.png": COLOUR + len(split)
            for split in ("test", "validation")
            for name in "ab"
        },
    )
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is not None
    assert np.array_equal(dataset.test.images[0], (COLOUR + len("test")).transpose(2, 0, 1))


def test_images_in_sub_folders_belong_to_their_class_folder(tmp_path):
    write(tmp_path / "set", {"a/x/deep/0.png": COLOUR, "a/y/0.png": COLOUR, "b/0.png": COLOUR})
    assert load(tmp_path / "set", tmp_path).train.labels.tolist() == [0, 0, 1]


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    root = tmp_path / "set"
    write(root, {"a/0.PNG": COLOUR, "b/0.png": COLOUR})
    write(
        root,
        {
            "a/.hidden.png": GREY[:2],
            "a/.ipynb_checkpoints/0.png": GREY[:2],
            ".cache/c/0.png": GREY[:2],
        },
    )
    for name in ("notes.txt", "boxes.csv", "Thumbs.db", "manual.pdf", "no_suffix"):
        (root / "a" / name).write_text("no image")
    (root / "a" / "folder.png").mkdir()
    (root / "README.md").write_text("no image")
    dataset = load(root, tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.train.labels.tolist() == [0, 1]


# Modes


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    write(
        tmp_path,
        {
            "grey/a/0.png": GREY,
            "grey/b/0.png": GREY + 1,
            "mixed/a/0.png": GREY,
            "mixed/b/0.png": COLOUR,
        },
    )
    assert np.array_equal(
        load(tmp_path / "grey", tmp_path).train.images, np.stack([GREY, GREY + 1])[:, None]
    )
    mixed = load(tmp_path / "mixed", tmp_path).train.images
    assert np.array_equal(mixed, np.stack([np.stack([GREY] * 3), COLOUR.transpose(2, 0, 1)]))


def test_the_test_split_counts_for_grey_or_colour(tmp_path):
    write(
        tmp_path / "set",
        {
            "train/a/0.png": GREY,
            "train/b/0.png": GREY,
            "test/a/0.png": GREY,
            "test/b/0.png": COLOUR,
        },
    )
    assert load(tmp_path / "set", tmp_path).train.images.shape == (2, 3, 5, 5)


def test_palette_images_get_the_colours_of_their_palette(tmp_path):
    palette = np.array([[255, 0, 0], [0, 128, 7], [9, 9, 200]], np.uint8)
    indices = np.array([[0, 1], [2, 0]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.flatten().tolist())
    picture.putpalette(palette.tobytes())
    assert np.array_equal(decoded(tmp_path, picture), palette[indices].transpose(2, 0, 1))


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert decoded(tmp_path, picture, transparency=1)[:, 0].T.tolist() == [
        [10, 20, 30],
        [255, 255, 255],
    ]


def test_transparent_pixels_are_laid_over_white(tmp_path):
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    found = decoded(tmp_path, pixels)[:, 0].T
    assert found[:2].tolist() == [[255, 255, 255], [200, 100, 0]]
    np.testing.assert_allclose(found[2], 0.2 * np.array([200, 100, 0]) + 0.8 * 255, atol=1)


def test_grey_with_transparency_stays_grey_over_white(tmp_path):
    found = decoded(tmp_path, np.array([[[80, 0], [80, 255], [80, 153]]], np.uint8))
    assert found.shape == (1, 1, 3)
    np.testing.assert_allclose(found[0, 0], [255, 80, 0.6 * 80 + 0.4 * 255], atol=1)


def test_black_and_white_images_become_0_and_255(tmp_path):
    found = decoded(tmp_path, Image.fromarray(np.array([[True, False, True]])))
    assert found.tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_to_8_bits(suffix, tmp_path):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    assert decoded(tmp_path, values, suffix).tolist() == [[[0, 1, 1, 0x12, 0xFF]]]


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    found = decoded(tmp_path, Image.frombytes("CMYK", (4, 1), inks.tobytes()), "tiff")
    assert found[:, 0].T.tolist() == [[255, 255, 255], [255, 0, 0], [0, 255, 255], [0, 0, 0]]


def test_converted_modes_are_counted_in_a_note(tmp_path):
    write(
        tmp_path / "set",
        {"a/0.png": np.zeros((2, 2, 4), np.uint8), "a/1.png": np.zeros((2, 2, 4), np.uint8)},
    )
    write(tmp_path / "set", {"b/0.png": np.zeros((2, 2), np.uint16), "b/1.png": GREY[:2, :2]})
    assert load(tmp_path / "set", tmp_path).notes == (
        "images of mode I;16 (1), RGBA (2) were converted to RGB",
        "16-bit images hold values up to 0: taken as 8 bits and scaled to 0..255; --bit-depth says "
        "otherwise",
    )


def test_floating_point_pixels_are_refused(tmp_path):
    write(tmp_path / "set", {"a/0.tiff": np.ones((2, 2), np.float32), "b/0.png": GREY[:2, :2]})
    with pytest.raises(
        InputError,
        match=r"cannot read the image .*a/0\.tiff: .*floating-point.*; repair or remove it",
    ):
        load(tmp_path / "set", tmp_path)


# Orientation and size


def test_every_exif_orientation_is_turned_upright(tmp_path):
    upright = COLOUR[:3]
    transposed = upright.transpose(1, 0, 2)
    stored = {  # what a camera stores so that the orientation's turn gives `upright`
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: transposed, 6: transposed[::-1], 7: transposed[::-1, ::-1], 8: transposed[:, ::-1],
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        write(
            tmp_path / "set",
            {f"{'ab'[orientation % 2]}/{orientation}.png": np.ascontiguousarray(pixels)},
            exif=exif,
        )
    found = load(tmp_path / "set", tmp_path).train.images
    assert np.array_equal(found, np.broadcast_to(upright.transpose(2, 0, 1), (8, 3, 3, 5)))


def test_several_sizes_without_an_image_size_are_refused(tmp_path):
    write(tmp_path / "set", {"a/0.png": COLOUR, "a/1.png": COLOUR[:3], "b/0.png": COLOUR[:3]})
    message = (
        r"images have 2 sizes, such as 5 x 5 \(.*a/0\.png\) and 5 x 3 \(.*a/1\.png\); give "
        r"--image-size to resize and crop"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set", tmp_path)


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    rng = np.random.default_rng(0)
    wide, high, fitting = (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((20, 44), (36, 24), (12, 12))
    )
    write(tmp_path / "set", {"a/0.png": wide, "a/1.png": high, "b/0.png": fitting})
    dataset = load(tmp_path / "set", tmp_path, image_size=12)
    boxes = {0: (wide, (12, 0, 32, 20)), 1: (high, (0, 6, 24, 30))}
    for row, (pixels, box) in boxes.items():
        expected = Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(dataset.train.images[row], np.asarray(expected).transpose(2, 0, 1))
    assert np.array_equal(dataset.train.images[2], fitting.transpose(2, 0, 1))
    assert dataset.notes == ("images of 3 sizes were resized and centre-cropped to 12 x 12",)


def test_image_size_that_all_images_have_already_changes_nothing(tmp_path):
    write(tmp_path / "set", {"a/0.png": COLOUR, "b/0.png": COLOUR + 1})
    dataset = load(tmp_path / "set", tmp_path, image_size=5)
    assert np.array_equal(
        dataset.train.images, np.stack([COLOUR, COLOUR + 1]).transpose(0, 3, 1, 2)
    )
    assert dataset.notes == ()


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_images_of_28_pixels_are_padded_with_zeros_to_32(storage, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 256, (2, 28, 28), dtype=np.uint8)
    write(tmp_path / "set", {"a/0.png": pixels[0], "b/0.png": pixels[1]})
    dataset = load(tmp_path / "set", tmp_path, storage=storage)
    assert dataset.train.images.shape == (2, 1, 32, 32)
    assert np.array_equal(dataset.train.images[:, 0, 2:30, 2:30], pixels)
    assert dataset.train.images.sum() == pixels.sum()
    assert dataset.notes == ("28 x 28 images were padded with zeros to 32 x 32",)


def test_only_squares_of_28_pixels_are_padded(tmp_path):
    write(tmp_path / "set", {f"{name}/0.png": np.ones((28, 30), np.uint8) for name in "ab"})
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.train.images.shape == (2, 1, 28, 30)
    assert dataset.notes == ()


# Bad folders and bad files


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"folder .*/nowhere does not exist; give the path with --data folder:PATH"
    ):
        load(tmp_path / "nowhere", tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"folder .*/file is a file; give the folder that holds the class folders"
    ):
        load(tmp_path / "file", tmp_path)


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_without_class_folders_is_refused(inside, tmp_path):
    (tmp_path / "set" / inside).mkdir(parents=True)
    write(tmp_path / "set", {f"{inside}/0.png": COLOUR})
    with pytest.raises(
        InputError,
        match=rf"folder .*set/?{inside} must hold one sub-folder of images for each class, found "
        "none",
    ):
        load(tmp_path / "set", tmp_path)


def test_a_class_without_images_is_named(tmp_path):
    write(tmp_path / "set", {"a/0.png": COLOUR})
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "b" / "notes.txt").write_text("no image")
    with pytest.raises(
        InputError,
        match=r"class folder .*set/b holds no images, only 1 \.txt files; add some or remove the "
        "class",
    ):
        load(tmp_path / "set", tmp_path)


def test_a_test_class_that_train_lacks_is_named_beside_those_of_train(tmp_path):
    write(tmp_path / "set", {f"train/{name}/0.png": COLOUR for name in ("cat", "dog")})
    # A hidden folder, which sorts first, once kept the stranger from being seen.
    write(
        tmp_path / "set",
        {f"test/{name}/0.png": COLOUR for name in (".hidden", "cat", "dog", "dogs")},
    )
    message = (
        r"class folder .*test/dogs has no counterpart in train, which has cat, dog; both splits "
        r"need the same class"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set", tmp_path)


def test_a_train_class_that_test_lacks_is_named(tmp_path):
    write(
        tmp_path / "set", {"train/a/0.png": COLOUR, "train/b/0.png": COLOUR, "test/a/0.png": COLOUR}
    )
    with pytest.raises(
        InputError, match=r"class folder .*test/b holds no images; add some or remove the class"
    ):
        load(tmp_path / "set", tmp_path)


def test_one_class_alone_is_refused(tmp_path):
    write(tmp_path / "set", {"cat/0.png": COLOUR, "cat/1.png": COLOUR})
    with pytest.raises(
        InputError, match="the data must have at least 2 classes, found 1: cat; add another"
    ):
        load(tmp_path / "set", tmp_path)


def test_a_text_file_named_png_is_named(tmp_path):
    write(tmp_path / "set", {"a/0.png": COLOUR, "b/0.png": COLOUR})
    (tmp_path / "set" / "b" / "1.png").write_text("no image")
    message = (
        r"cannot read the image .*b/1\.png: no image format that Pillow knows; repair or remove it"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set", tmp_path)


# Of a PNG that is no square, the EXIF data are read before the pixels.
@pytest.mark.parametrize("size", [(40, 40), (40, 30)])
@pytest.mark.parametrize("suffix", ["jpeg", "png", "bmp", "gif", "tiff"])
def test_a_truncated_image_is_named(suffix, size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write(tmp_path / "set", {f"a/0.{suffix}": pixels, f"b/0.{suffix}": pixels})
    broken = tmp_path / "set" / "b" / f"0.{suffix}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(
        InputError, match=rf"cannot read the image .*b/0\.{suffix}: .*; repair or remove it"
    ):
        load(tmp_path / "set", tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow may warn of what it repairs itself
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "SGI", "DDS"])
def test_any_broken_image_ends_in_a_sentence_that_names_it(form, tmp_path):
    rng = np.random.default_rng(0)
    written = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(written, form)
    root, suffix, refusals = tmp_path / "set", form.lower(), []
    write(root, {f"a/0.{suffix}": Image.open(written)})
    (root / "b").mkdir()
    for _ in range(60):
        content = np.frombuffer(written.getvalue(), np.uint8).copy()
        content[rng.integers(0, min(len(content), 120), 3)] = rng.integers(0, 256, 3)
        (root / "b" / f"0.{suffix}").write_bytes(content.tobytes())
        try:
            load(root, tmp_path)
        except InputError as error:
            refusals.append(str(error))
    assert refusals
    assert [text for text in refusals if f"b/0.{suffix}" not in text] == []


def test_an_image_that_would_fill_the_memory_is_named(tmp_path, monkeypatch):
    write(tmp_path / "set", {"a/0.png": COLOUR, "b/0.png": COLOUR})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)
    with pytest.raises(
        InputError, match=r"cannot read the image .*a/0\.png: .*exceeds limit of 24 pixels"
    ):
        load(tmp_path / "set", tmp_path)


def test_a_test_folder_without_class_folders_is_left_out_and_said(tmp_path):
    # Tiny ImageNet's layout: test/images and val/images hold pictures without class folders.
    write(
        tmp_path, {f"set/train/{name}/{index}.png": COLOUR for name in "ab" for index in range(3)}
    )
    write(tmp_path, {"set/test/images/0.png": COLOUR, "set/val/images/0.png": COLOUR})
    dataset = load(tmp_path / "set", tmp_path)
    assert dataset.test is None
    assert dataset.left_out == (
        "folder val/, which holds no class folder of train",
        "folder test/, which holds no class folder of train",
    )
    write(tmp_path, {"set/valid/a/0.png": COLOUR, "set/valid/b/0.png": COLOUR})
    assert load(tmp_path / "set", tmp_path).test is not None


@pytest.mark.parametrize("damage", ["train.npy", "form.json", "cut", "empty form"])
def test_a_damaged_conversion_is_made_again(damage, tmp_path):
    write(
        tmp_path, {f"set/{name}/{index}.png": COLOUR + index for name in "ab" for index in range(3)}
    )
    first = np.array(load(tmp_path / "set", tmp_path, storage="mapped").train.images)
    (folder,) = [path.parent for path in tmp_path.rglob("form.json")]
    if damage == "cut":
        (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:100])
    elif damage == "empty form":
        (folder / "form.json").write_text("")
    else:
        (folder / damage).unlink()
    again = load(tmp_path / "set", tmp_path, storage="mapped")
    assert np.array_equal(again.train.images, first)
