"""Held-out splits, samples, and in-memory against memory-mapped data."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.data import assembly, decoding
from potstill.data.preparation import RealData, prepare
from potstill.data.sources import read
from potstill.data.splits import (
    CHUNK,
    CHUNK_VALUES,
    Arrays,
    MappedSplit,
    TensorSplit,
    batches,
    chunks,
    hold_out,
    make_split,
    sample,
    sample_per_class,
)
from potstill.errors import InputError
from potstill.seeds import generator

CPU = torch.device("cpu")


def noise(count: int, seed: int = 0) -> np.ndarray:
    """(count, 8, 8, 3) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def write_folder(root: Path, per_class: int = 12) -> np.ndarray:
    """Two classes of PNGs under train/ and 3 each under test/; gives the train pixels (N, C, H, W)
    in their order.
    """
    pixels = noise(2 * per_class + 6)
    places = [("train", name, index) for name in ("cat", "dog") for index in range(per_class)]
    places += [("test", name, index) for name in ("cat", "dog") for index in range(3)]
    for image, (split, name, index) in zip(pixels, places, strict=True):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / split / name / f"{index:03}.png")
    return pixels[: 2 * per_class].transpose(0, 3, 1, 2)


def folder_config(root: Path, cache: Path, **options: object) -> DataConfig:
    return DataConfig(data=f"folder:{root}", cache_dir=str(cache), **options)  # type: ignore[arg-type]


def load(config: DataConfig, preprocess: str = "normalize") -> RealData:
    chosen = configuration(preprocess=preprocess).preprocessing
    return prepare(read(config), config, CPU, chosen)


def conversions(cache: Path) -> list[Path]:
    """The folders of memory-mapped data in a cache."""
    return sorted(entry for entry in cache.iterdir() if entry.name != "hashes")


# Positions


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.1, [0, 1, 1, 1, 10, 25]), (0.5, [0, 1, 2, 5, 51, 124]), (0.001, [0, 1, 1, 1, 1, 1])],
)
def test_hold_out_takes_the_same_share_of_every_class_at_least_one_and_never_all(share, expected):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [1, 2, 3, 10, 102, 248]))
    kept, held = hold_out(labels, share, seed=0)
    assert np.bincount(labels[held], minlength=6).tolist() == expected
    assert np.bincount(labels[kept]).min() >= 1


def test_hold_out_splits_all_positions_in_two_ascending_parts():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    kept, held = hold_out(labels, 0.3, seed=7)
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    assert sorted([*kept, *held]) == list(range(400))


def test_hold_out_repeats_for_a_seed_and_changes_with_it():
    labels = np.repeat([0, 1], 50)
    (first, again), other = (
        (hold_out(labels, 0.2, seed=1)[1] for _ in range(2)),
        hold_out(labels, 0.2, seed=2)[1],
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_hold_out_holds_every_example_out_about_equally_often():
    counts = np.zeros(20)
    for seed in range(1000):
        counts[hold_out(np.repeat([0, 1], 10), 0.2, seed)[1]] += 1
    assert (np.abs(counts - 200) < 5 * math.sqrt(1000 * 0.2 * 0.8)).all()


def test_sample_draws_without_replacement_and_at_most_all():
    split = TensorSplit(torch.zeros(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64))
    for count, expected in ((5, 5), (20, 20), (50, 20)):
        picked = sample(split, count, generator(0))
        assert len(picked) == len(set(picked.tolist())) == expected
        assert set(picked.tolist()) <= set(range(20))
    assert sample(split, 50, generator(0)).tolist() != list(range(20))


def test_sample_reaches_every_example_about_equally_often():
    split, rng = (
        TensorSplit(torch.zeros(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64)),
        generator(0),
    )
    counts = (
        torch.stack([sample(split, 5, rng) for _ in range(800)]).flatten().bincount(minlength=20)
    )
    assert ((counts - 200).abs() < 5 * math.sqrt(800 * 0.25 * 0.75)).all()


def test_sample_per_class_gives_distinct_examples_of_each_class_in_the_order_of_classes():
    labels = torch.randint(0, 4, (200,), generator=generator(0))
    picked = sample_per_class(labels, 4, 6, generator(1))
    assert labels[picked].tolist() == [label for label in range(4) for _ in range(6)]
    assert len(set(picked.tolist())) == 24
    assert not torch.equal(picked, sample_per_class(labels, 4, 6, generator(2)))


# Splits


def test_bytes_become_floats_from_0_to_1_and_floats_stay_as_they_are():
    values = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    floats = np.array([-2.5, 0, 300], np.float32).reshape(3, 1, 1, 1)
    labels = np.zeros(3, np.int64)
    order = np.array([2, 0, 1, 2])
    assert Arrays(values, labels).floats(order).flatten().tolist() == pytest.approx([1, 0, 0.2, 1])
    assert Arrays(floats, labels).floats(order).flatten().tolist() == [300, -2.5, 0, 300]


def test_a_split_in_memory_is_preprocessed_in_chunks_that_join_in_order():
    count = 2 * CHUNK + 5
    arrays = Arrays(
        np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1), np.arange(count) % 3
    )
    rows = np.arange(count)[::-1].copy()
    split = make_split(arrays, rows, lambda images: images * 2, CPU, mapped=False)
    taken, labels = split.take(torch.arange(count))
    assert taken.flatten().tolist() == [2.0 * row for row in rows]
    assert labels.tolist() == [row % 3 for row in rows]


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 64, 64), 1024), ((3, 224, 224), 111), ((3, 4096, 4096), 1)]
)
def test_chunks_of_large_images_are_smaller_in_number_but_not_in_memory(shape, expected):
    assert (CHUNK, CHUNK_VALUES) == (1024, 2**24)
    # One image seen 3,000 times: a view, so that the test itself needs no memory.
    arrays = Arrays(
        np.broadcast_to(np.zeros((), np.uint8), (3000, *shape)), np.zeros(3000, np.int64)
    )
    found = chunks(np.arange(3000), arrays)
    assert np.concatenate(found).tolist() == list(range(3000))
    assert {len(rows) for rows in found[:-1]} == {expected}


def test_batches_cover_a_split_once_in_order():
    split = TensorSplit(torch.arange(7.0).view(7, 1, 1, 1), torch.arange(7))
    found = list(batches(split, 3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(7))
    assert torch.cat([images for images, _ in found]).flatten().tolist() == list(range(7))


@pytest.mark.parametrize("kind", ["none", "normalize", "zca"])
def test_mapped_and_in_memory_splits_give_the_same_batches(kind, tmp_path):
    write_folder(tmp_path / "source")
    loaded = {
        storage: load(folder_config(tmp_path / "source", tmp_path / "cache", storage=storage), kind)
        for storage in ("memory", "mapped")
    }
    for name in ("train", "validation", "test"):
        memory, mapped = (getattr(loaded[storage], name) for storage in ("memory", "mapped"))
        assert isinstance(memory, TensorSplit)
        assert isinstance(mapped, MappedSplit)
        assert isinstance(mapped.arrays.images, np.memmap)
        assert len(memory) == len(mapped) > 0
        assert torch.equal(memory.labels, mapped.labels)
        order = torch.randint(0, len(memory), (9,), generator=generator(0))
        for (expected, expected_labels), (found, labels) in [
            (memory.take(order), mapped.take(order)),
            *zip(batches(memory, 4), batches(mapped, 4), strict=True),
        ]:
            torch.testing.assert_close(found, expected)
            assert torch.equal(labels, expected_labels)
    assert loaded["memory"].fingerprint == loaded["mapped"].fingerprint
    assert loaded["memory"].notes == loaded["mapped"].notes


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_a_split_holds_the_pixels_of_the_files(storage, tmp_path):
    pixels = write_folder(tmp_path / "source")
    dataset = read(folder_config(tmp_path / "source", tmp_path / "cache", storage=storage))
    order = torch.tensor([20, 3, 3, 11])
    taken, labels = make_split(
        dataset.train, np.arange(24), lambda images: images, CPU, mapped=dataset.mapped
    ).take(order)
    np.testing.assert_allclose(taken.numpy(), pixels[order] / 255, rtol=1e-6)
    assert labels.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_more_images_than_are_held_at_a_time_keep_their_order(storage, tmp_path, monkeypatch):
    pixels = write_folder(tmp_path / "source")
    monkeypatch.setattr("potstill.data.splits.CHUNK", 5)
    dataset = read(folder_config(tmp_path / "source", tmp_path / "cache", storage=storage))
    assert np.array_equal(dataset.train.images, pixels)


def test_a_conversion_is_found_without_reading_a_header(tmp_path, monkeypatch):
    write_folder(tmp_path / "source")
    monkeypatch.setattr(assembly, "MAPPED_ABOVE_BYTES", 1)
    config = folder_config(tmp_path / "source", tmp_path / "cache")
    first = read(config)

    def never(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(assembly, "scan", never)
    assert np.array_equal(read(config).train.images, first.train.images)
    # Small data are read into memory, whatever lies in the cache.
    monkeypatch.setattr(assembly, "MAPPED_ABOVE_BYTES", 10**9)
    with pytest.raises(AssertionError):
        read(config)


def test_auto_storage_maps_what_exceeds_the_limit_as_float_pixels(tmp_path, monkeypatch):
    write_folder(tmp_path / "source")
    size = 30 * 3 * 8 * 8 * 4
    for limit, mapped in ((size, False), (size - 1, True)):
        monkeypatch.setattr(assembly, "MAPPED_ABOVE_BYTES", limit)
        assert read(folder_config(tmp_path / "source", tmp_path / "cache")).mapped == mapped


# The cache of mapped data


def test_a_second_mapped_read_reuses_the_conversion(tmp_path):
    write_folder(tmp_path / "source")
    config = folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped")
    first = load(config)
    stats = {
        file: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in (tmp_path / "cache").rglob("*")
    }
    second = load(config)
    assert {
        file: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in (tmp_path / "cache").rglob("*")
    } == stats
    assert torch.equal(first.train.take(torch.arange(4))[0], second.train.take(torch.arange(4))[0])


def test_a_mapped_conversion_is_found_by_content_when_the_folder_moves(tmp_path):
    write_folder(tmp_path / "source")
    first = read(folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped"))
    (converted,) = conversions(tmp_path / "cache")
    stat = converted.stat()
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    second = read(folder_config(tmp_path / "elsewhere", tmp_path / "cache", storage="mapped"))
    assert conversions(tmp_path / "cache") == [converted]
    assert (converted.stat().st_ino, converted.stat().st_mtime_ns) == (
        stat.st_ino,
        stat.st_mtime_ns,
    )
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.train.images, first.train.images)


def test_one_changed_pixel_makes_a_new_conversion(tmp_path):
    pixels = write_folder(tmp_path / "source")
    config = folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped")
    first = read(config)
    changed = pixels[0].transpose(1, 2, 0).copy()
    changed[4, 5, 1] ^= 255
    Image.fromarray(changed).save(tmp_path / "source" / "train" / "cat" / "000.png")
    second = read(config)
    assert len(conversions(tmp_path / "cache")) == 2
    assert first.fingerprint != second.fingerprint
    assert np.argwhere(first.train.images != second.train.images).tolist() == [[0, 1, 4, 5]]


def test_another_image_size_makes_a_new_conversion(tmp_path):
    write_folder(tmp_path / "source")
    for size, expected in ((0, 8), (6, 6), (0, 8)):
        dataset = read(
            folder_config(
                tmp_path / "source", tmp_path / "cache", storage="mapped", image_size=size
            )
        )
        assert dataset.train.images.shape == (24, 3, expected, expected)
    assert len(conversions(tmp_path / "cache")) == 2


def test_a_failed_conversion_leaves_nothing_and_succeeds_after_the_repair(tmp_path):
    write_folder(tmp_path / "source")
    broken = tmp_path / "source" / "test" / "dog" / "002.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-80])
    config = folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped")
    with pytest.raises(
        InputError,
        match=r"cannot read the image .*test/dog/002\.png: .*truncated.*; repair or remove it",
    ):
        read(config)
    assert conversions(tmp_path / "cache") == []
    broken.write_bytes(whole)
    assert len(read(config).train.labels) == 24


def test_the_fingerprint_sees_a_file_that_changes_its_class(tmp_path):
    for place, image in zip(("cat/1.png", "cat/2.png", "dog/3.png"), noise(3), strict=True):
        (tmp_path / "source" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "source" / place)
    config = folder_config(tmp_path / "source", tmp_path / "cache")
    before = read(config)
    (tmp_path / "source" / "cat" / "2.png").rename(tmp_path / "source" / "dog" / "2.png")
    after = read(config)
    assert np.array_equal(before.train.images, after.train.images)
    assert before.fingerprint != after.fingerprint


def test_the_remembered_fingerprint_is_the_computed_one(tmp_path):
    write_folder(tmp_path / "source")
    config = folder_config(tmp_path / "source", tmp_path / "cache")
    computed, remembered = read(config).fingerprint, read(config).fingerprint
    elsewhere = read(folder_config(tmp_path / "source", tmp_path / "other")).fingerprint
    assert computed == remembered == elsewhere


def test_a_file_name_that_is_no_utf8_has_a_fingerprint(tmp_path):
    write_folder(tmp_path / "source")
    odd = os.fsencode(tmp_path / "source" / "train" / "cat") + b"/caf\xe9.png"
    shutil.copy(tmp_path / "source" / "train" / "cat" / "000.png", odd)
    assert len(read(folder_config(tmp_path / "source", tmp_path / "cache")).train.labels) == 25


def test_a_full_disk_is_told_before_the_conversion(tmp_path, monkeypatch):
    write_folder(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: usage._replace(free=5759))
    message = (
        r"cache folder .*cache must have room for 5,760 bytes of .*, 5,759 are free; give "
        r"another with --cache-dir"
    )
    with pytest.raises(InputError, match=message):
        read(folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped"))
    assert conversions(tmp_path / "cache") == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    write_folder(tmp_path / "source")
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(
        InputError,
        match=r"cannot write the cache folder .*cache: .*; give another with --cache-dir",
    ):
        read(folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped"))


def test_a_disk_that_fills_up_during_the_conversion_is_told_and_leaves_nothing(
    tmp_path, monkeypatch
):
    write_folder(tmp_path / "source")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding.np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(
        InputError,
        match=r"cannot write the cache folder .*: .*No space left on device; give another with "
        r"--cache",
    ):
        read(folder_config(tmp_path / "source", tmp_path / "cache", storage="mapped"))
    assert conversions(tmp_path / "cache") == []


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="tells the pages of mapped files on Linux only"
)
def test_reading_mapped_images_does_not_fill_the_process(tmp_path):
    rows, size = 64, 2**20
    np.save(tmp_path / "images.npy", np.zeros((rows, 1, 1, size), np.uint8))
    arrays = Arrays(np.load(tmp_path / "images.npy", mmap_mode="r"), np.zeros(rows, np.int64))

    def mapped() -> int:
        (line,) = [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("RssFile")
        ]
        return int(line.split()[1]) * 1024

    before = mapped()
    for row in range(rows):
        arrays.floats(np.array([row]))
    assert mapped() - before < rows * size / 8
