"""The file of a distilled set, and what its data set gives."""

import json
import os
import resource
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from twins import pixels

from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.data.arrays import from_arrays
from potstill.data.preparation import prepare
from potstill.data.splits import TensorSplit
from potstill.distilled.artefact import load, save
from potstill.distilled.batches import BatchPlan
from potstill.distilled.blocks import Block, initial_blocks
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.files import load_tensors, save_tensors, write
from potstill.records.metadata import ChosenAccuracy, SetMetadata
from potstill.registry import PREPROCESSING
from potstill.seeds import generator


def make_set(kind: str = "zca", *, blocks: int = 1, learned: bool = False) -> DistilledSet:
    """Three classes of 1 x 4 x 4 images, one image a class and block."""
    rng = generator(0, kind)
    real = torch.rand(40, 1, 4, 4, generator=rng)
    made = []
    for _ in range(blocks):
        targets = torch.rand(3, 3, generator=rng) if learned else None
        made.append(Block.of_pixels(torch.randn(3, 1, 4, 4, generator=rng), 3, targets))
    recipe = Recipe(
        "mlp",
        width=8,
        depth=1,
        batch_per_class=1,
        classes_per_batch=3,
        augment=("flip", "rotate"),
        steps=40,
    )
    accuracy = ChosenAccuracy(0.5, None, 1, "validation", "fresh networks", 96)
    metadata = SetMetadata("rat-bptt", {"run": {"seed": 3}}, accuracy=accuracy)
    fitted = PREPROCESSING[kind].fit(lambda: [real])
    return DistilledSet(
        tuple(made), ("a", "b", "ü"), fitted, recipe, learned_labels=learned, metadata=metadata
    )


@pytest.mark.parametrize("kind", ["none", "normalize", "zca"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_set_survives_its_file(kind, learned, tmp_path):
    first, path = make_set(kind, blocks=2, learned=learned), tmp_path / "set.safetensors"
    save(first, path)
    again = load(path)
    for name in ("images", "targets", "labels", "pixels"):
        assert torch.equal(getattr(again, name), getattr(first, name)), name
    assert (again.recipe, again.class_names, again.meta) == (
        first.recipe,
        first.class_names,
        first.meta,
    )
    assert (again.learned_labels, again.ipc, again.shape, len(again)) == (learned, 2, (1, 4, 4), 6)
    real = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8, generator=generator(1))
    assert torch.equal(again.preprocess(real), first.preprocess(real))
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_metadata_is_one_canonical_key_without_time_host_or_path(tmp_path):
    save(make_set(), tmp_path / "set.safetensors")
    with safe_open(tmp_path / "set.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"potstill"}
    text = metadata["potstill"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text


def test_the_zca_matrix_is_stored_once_as_a_triangle(tmp_path):
    save(make_set("zca"), tmp_path / "set.safetensors")
    tensors, _ = load_tensors(tmp_path / "set.safetensors", "distilled set")
    assert tensors["preprocess.matrix"].shape == (16 * 17 // 2,)


def test_items_are_what_cross_entropy_takes():
    hard, soft = make_set(), make_set(learned=True)
    image, label = hard[1]
    assert torch.equal(image, hard.images[1])
    assert label == 1
    assert torch.equal(soft[1][1], soft.targets[1])
    images, labels = next(iter(torch.utils.data.DataLoader(hard, batch_size=3)))
    torch.nn.functional.cross_entropy(images.flatten(1)[:, :3], labels)


def test_a_prefix_is_the_blocks_it_was(tmp_path):
    whole = make_set(blocks=3)
    save(whole, tmp_path / "set.safetensors")
    part = load(tmp_path / "set.safetensors", ipc=2)
    assert part.ipc == 2
    assert torch.equal(part.images, whole.images[:6])
    with pytest.raises(InputError, match=r"ipc must be one that the set holds, 1, 2, 3, got 5"):
        load(tmp_path / "set.safetensors", ipc=5)


def test_preprocess_takes_bytes_floats_one_image_and_pads_mnist():
    distilled = make_set("normalize")
    real = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8, generator=generator(1))
    expected = distilled.fitted(real.float() / 255)
    assert torch.equal(distilled.preprocess(real), expected)
    assert torch.equal(distilled.preprocess(real / 255), expected)
    assert torch.equal(distilled.preprocess(real[0]), expected[:1])
    assert torch.equal(distilled.preprocess(real.to(torch.int64)), expected)
    # Grey images without a channel axis.
    assert torch.equal(distilled.preprocess(real[:, 0]), expected)
    with pytest.raises(
        InputError,
        match=r"real images must be whole numbers 0\.\.255 or floats, got true and false",
    ):
        distilled.preprocess(real > 3)
    assert torch.equal(distilled.preprocess(real.numpy()), expected)
    with pytest.raises(
        InputError, match=r"real images must have shape \(N, 1, 4, 4\), got \(5, 3, 4, 4\)"
    ):
        distilled.preprocess(torch.zeros(5, 3, 4, 4))
    block = Block.of_pixels(torch.zeros(3, 1, 32, 32), 3)
    wide = DistilledSet(
        (block,),
        ("a", "b", "c"),
        PREPROCESSING["none"].fit(lambda: [torch.rand(4, 1, 32, 32)]),
        Recipe(),
    )
    padded = wide.preprocess(torch.ones(1, 1, 28, 28))
    assert padded.shape == (1, 1, 32, 32)
    assert padded.sum() == padded[:, :, 2:30, 2:30].sum() == 28 * 28


# What a user may find on disk instead of a distilled set.
def spoil(path, how):
    data = path.read_bytes()
    header = struct.unpack("<Q", data[:8])[0]
    if how == "truncated":
        path.write_bytes(data[:-5])
    if how == "flipped bit":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    if how == "flipped metadata":
        path.write_bytes(data.replace(b"rat-bptt", b"rot-bptt"))
    if how == "text":
        path.write_text("hello")
    if how == "empty":
        path.write_bytes(b"")
    if how == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    if how == "newer":
        body = data[8 : 8 + header].replace(b'format_version\\":2', b'format_version\\":9')
        path.write_bytes(data[:8] + body + data[8 + header :])
    if how == "missing":
        path.unlink()
    if how == "no version":
        body = data[8 : 8 + header].replace(b'format_version\\":2', b'format_version\\":[')
        path.write_bytes(data[:8] + body + data[8 + header :])
    if how == "checkpoint":
        save_tensors(path, {"x": torch.zeros(1)}, "checkpoint", {})


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("truncated", r"damaged or no safetensors file: .*; take another copy"),
        ("flipped bit", r"is damaged: its checksum does not fit"),
        ("flipped metadata", r"is damaged: its checksum does not fit"),
        ("text", r"damaged or no safetensors file"),
        ("empty", r"damaged or no safetensors file"),
        ("foreign", r"potstill did not write it"),
        ("newer", r"has format version 9, this potstill reads up to 2; upgrade potstill"),
        ("no version", r"damaged or no safetensors file"),
        ("missing", r"there is no file .*set.safetensors; check the path"),
        ("checkpoint", r"must hold a distilled set, it holds a checkpoint"),
    ],
)
def test_a_file_that_is_no_good_is_told_in_a_sentence(how, sentence, tmp_path):
    path = tmp_path / "set.safetensors"
    save(make_set(), path)
    spoil(path, how)
    with pytest.raises(InputError, match=sentence):
        load(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "set.safetensors"
    path.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    script = (
        "import resource, signal, sys; from pathlib import Path; from potstill.files import "
        "write; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {limit})); write(Path(sys.argv[1]), "
        "b'x' * 5000)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert "InputError: cannot write" in result.stderr
    assert "what was there is unchanged" in result.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_into_no_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing/x: No such file or directory"):
        write(tmp_path / "missing" / "x", "text")
    with pytest.raises(InputError, match=r"cannot write .*: it must name a file"):
        write(tmp_path, "text")


def test_the_gaussian_start_has_norm_1_and_follows_from_the_seed():
    train = TensorSplit(torch.zeros(30, 1, 4, 4), torch.arange(3).repeat(10))
    two = [pixels(2, 3, (1, 4, 4))]
    block = initial_blocks("gaussian", two, train, 5, torch.device("cpu"))[0]
    torch.testing.assert_close(block.images.flatten(1).norm(dim=1), torch.ones(6))
    assert block.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(block.targets, torch.eye(3)[block.labels])
    assert torch.equal(
        block.images, initial_blocks("gaussian", two, train, 5, torch.device("cpu"))[0].images
    )
    assert not torch.equal(
        block.images, initial_blocks("gaussian", two, train, 6, torch.device("cpu"))[0].images
    )


def test_the_real_start_holds_distinct_preprocessed_train_images_of_the_right_class():
    images = torch.rand(60, 1, 4, 4, generator=generator(0))
    real = prepare(
        from_arrays(images, torch.arange(3).repeat(20)),
        DataConfig(),
        torch.device("cpu"),
        configuration(preprocess="normalize").preprocessing,
    )
    block = initial_blocks("real", [pixels(4, 3, real.shape)], real.train, 0, torch.device("cpu"))[
        0
    ]
    rows = [
        int((real.train.images == image).all(3).all(2).all(1).nonzero()) for image in block.images
    ]
    assert len(set(rows)) == 12
    assert torch.equal(real.train.labels[rows], block.labels)


def test_more_images_than_a_class_has_are_refused():
    train = TensorSplit(torch.zeros(12, 1, 4, 4), torch.tensor([0] * 5 + [1] * 3 + [2] * 4))
    with pytest.raises(InputError, match=r"ipc must be at most .* 3 in class '1', got 4"):
        initial_blocks("gaussian", [pixels(4, 3, (1, 4, 4))], train, 0, torch.device("cpu"))[0]


def test_a_batch_holds_as_many_of_each_class_as_planned_without_repeats():
    labels, rng = torch.arange(5).repeat_interleave(4), generator(0)
    for _ in range(20):
        rows = BatchPlan(labels, 5, 3, 5).draw(rng)
        assert labels[rows].bincount().tolist() == [3] * 5
        assert len(set(rows.tolist())) == 15
    some = torch.stack(
        [labels[BatchPlan(labels, 5, 2, 3).draw(rng)].bincount(minlength=5) for _ in range(200)]
    )
    assert set(some.flatten().tolist()) == {0, 2}
    assert ((some > 0).sum(1) == 3).all()
    assert ((some > 0).sum(0) > 80).all()  # each class in about 120 of 200
