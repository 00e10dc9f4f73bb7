"""Preprocessing against NumPy twins, its way back, its file form, and its splits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.config.slots import Chosen
from potstill.data import whitening
from potstill.data.arrays import from_arrays
from potstill.data.preparation import RealData, prepare
from potstill.data.preprocessing import Preprocess, auto_preprocessing, restored
from potstill.data.splits import Arrays, Dataset
from potstill.data.whitening import HALF_FROM
from potstill.errors import InputError
from potstill.registry import PREPROCESSING
from potstill.seeds import generator

CPU = torch.device("cpu")
KINDS = tuple(PREPROCESSING)
Array = np.ndarray[Any, Any]


def photos(count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 5, 4)) -> Tensor:
    """Images in [0, 1] whose neighbouring pixels are alike, so that their spectrum is not flat."""
    rough = torch.rand(count, *shape, generator=generator(seed))
    smooth = (rough + rough.roll(1, 2) + rough.roll(1, 3)) / 3
    return smooth * torch.linspace(0.2, 1, count).view(-1, 1, 1, 1)


def fitted(kind: str, images: Tensor, pieces: int = 1, **options: float) -> Preprocess:
    chosen: type[Preprocess] = PREPROCESSING[kind]
    return chosen.fit(lambda: images.tensor_split(pieces), chosen.Options(**options))


def unit_rows(images: Tensor) -> Array:
    """NumPy's twin: each image less its own mean, divided by its own norm."""
    flat = images.double().numpy().reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.sqrt((flat**2).sum(1, keepdims=True))


def zca_matrix(images: Tensor, regularization: float = 0.1) -> Array:
    """NumPy's twin of the whitening matrix: C = X'X / n, W = V diag(1 / sqrt(E + regularization
    mean(E))) V'.
    """
    rows = unit_rows(images)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    return vectors @ np.diag(1 / np.sqrt(values + regularization * values.mean())) @ vectors.T


# Against twins


def test_none_leaves_the_pixels():
    images = photos(20)
    assert torch.equal(fitted("none", images)(images), images)


def test_normalize_gives_every_channel_of_train_mean_0_and_deviation_1():
    images, other = photos(50), photos(7, seed=1)
    given = images.double().numpy()
    mean, std = given.mean((0, 2, 3), keepdims=True), given.std((0, 2, 3), keepdims=True)
    preprocess = fitted("normalize", images)
    # 1e-5 throughout: float32 against float64.
    np.testing.assert_allclose(preprocess(images).numpy(), (given - mean) / std, atol=1e-5)
    np.testing.assert_allclose(
        preprocess(other).numpy(), (other.double().numpy() - mean) / std, atol=1e-5
    )
    np.testing.assert_allclose(preprocess(images).double().mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(preprocess(images).double().square().mean((0, 2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("regularization", [0.1, 1e-3])
@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 6, 6)])
def test_zca_equals_its_formula_on_train_and_other_images(shape, regularization):
    images, other = photos(200, 0, shape), photos(9, 1, shape)
    preprocess, matrix = (
        fitted("zca", images, zca_regularization=regularization),
        zca_matrix(images, regularization),
    )
    for part in (images, other):
        expected = (unit_rows(part) @ matrix).reshape(part.shape)
        exact = 1e-5 if regularization < HALF_FROM else 5e-3
        np.testing.assert_allclose(preprocess(part).numpy(), expected, rtol=0, atol=exact)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_the_root_of_a_large_matrix_is_that_by_its_eigenvectors(condition):
    rng, side = generator(0), 150
    vectors = torch.linalg.qr(torch.randn(side, side, generator=rng, dtype=torch.float64))[0]
    values = 0.3 * torch.logspace(0, -8, side, dtype=torch.float64)
    added = 0.3 / condition
    exact = (vectors * (values + added).rsqrt()) @ vectors.T
    found = whitening.inverse_root((vectors * values) @ vectors.T, added).double()
    assert float((found - exact).abs().max()) < 1e-4 * float(exact.abs().max())
    assert torch.equal(found, found.T)
    rough = whitening.inverse_root((vectors * values) @ vectors.T, added, error=0.05).double()
    assert float((rough - exact).abs().max()) > 1e-4 * float(exact.abs().max())


@pytest.mark.parametrize("name", ["zca", "zca-mtt", "zca-frepo"])
def test_examples_of_many_numbers_are_whitened_alike(name, monkeypatch):
    images = photos(200, 0)
    small = fitted(name, images)
    monkeypatch.setattr(whitening, "LARGE", 50)
    monkeypatch.setattr(whitening, "BLOCK", 16)
    large = fitted(name, images)
    assert not torch.equal(large.tensors["matrix"], small.tensors["matrix"])  # another way
    torch.testing.assert_close(
        large.tensors["matrix"], small.tensors["matrix"], rtol=2e-3, atol=2e-3
    )
    assert torch.equal(large.tensors["matrix"], large.tensors["matrix"].T)
    again = type(large).from_state(large.state())  # half of it is stored, in half precision
    assert torch.equal(again.tensors["matrix"], large.tensors["matrix"])


def test_zca_with_hardly_any_regularization_whitens():
    # The second moments of train become the identity, but for the direction of constant images,
    # which each image's own mean removes.
    images = torch.rand(500, 1, 3, 3, generator=generator(0))
    rows = fitted("zca", images, zca_regularization=1e-6)(images).double().flatten(1)
    expected = torch.eye(9, dtype=torch.float64) - 1 / 9
    torch.testing.assert_close(rows.T @ rows / len(rows), expected, rtol=0, atol=1e-3)


def test_the_whitening_of_mtt_equals_its_formula():
    # Less the mean image, with a constant that is added to every eigenvalue: no image's own norm.
    images, other = photos(200, 0), photos(9, 1)
    rows = images.double().flatten(1).numpy()
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    matrix = vectors @ np.diag(1 / np.sqrt(values + 0.1)) @ vectors.T
    preprocess = fitted("zca-mtt", images)
    expected = ((other.double().flatten(1).numpy() - mean) @ matrix).reshape(other.shape)
    np.testing.assert_allclose(preprocess(other).numpy(), expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(preprocess.inverse(preprocess(other)), other, rtol=0, atol=1e-4)
    fine = fitted("zca-mtt", images, zca_constant=1e-6)(images).double().flatten(1)
    torch.testing.assert_close(fine.T @ fine / 200, torch.eye(60).double(), rtol=0, atol=2e-2)


def test_the_whitening_of_frepo_equals_its_formula():
    # Channels standardised, then less the mean image, with a share of the mean eigenvalue.
    images, other = photos(200, 0), photos(9, 1)
    channels = images.double().transpose(0, 1).flatten(1)
    mean, std = (each[:, None, None] for each in (channels.mean(1), channels.std(1, correction=0)))
    rows = ((images - mean) / std).flatten(1)
    less = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(less.T @ less / len(rows))
    matrix = (vectors / (values + 0.1 * values.mean()).sqrt()) @ vectors.T
    expected = ((((other - mean) / std).flatten(1) - rows.mean(0)) @ matrix).reshape(other.shape)
    preprocess = fitted("zca-frepo", images)
    torch.testing.assert_close(preprocess(other).double(), expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(preprocess.inverse(preprocess(other)), other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 32, 32), "zca"),
        ((2, 1, 1536), "zca"),
        ((3, 1, 1025), "normalize"),
        ((3, 64, 64), "normalize"),
        ((1, 28, 28), "normalize"),
        ((8,), "normalize"),
    ],
)
def test_auto_is_zca_of_colour_images_up_to_3072_values(shape, expected):
    assert auto_preprocessing(shape) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_in_pieces_equals_the_fit_to_the_whole(kind):
    images = photos(50)
    whole, pieces = fitted(kind, images).tensors, fitted(kind, images, pieces=7).tensors
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor)


# Constant images and channels


def test_zca_maps_constant_images_of_every_level_to_zero():
    # Once, the rounding of the mean was divided by its own norm: most levels became an image of
    # norm 1.
    preprocess = fitted("zca", torch.cat([photos(100), torch.full((3, 3, 5, 4), 0.3)]))
    levels = (torch.arange(256) / 255).view(-1, 1, 1, 1).expand(256, 3, 5, 4)
    torch.testing.assert_close(preprocess(levels), torch.zeros(256, 3, 5, 4))


def test_normalize_keeps_the_scale_of_a_constant_channel():
    images, other = photos(50), photos(9, seed=1)
    images[:, 1] = 0.9
    preprocess = fitted("normalize", images, pieces=3)
    assert (preprocess(images)[:, 1] == 0).all()
    torch.testing.assert_close(preprocess(other)[:, 1], other[:, 1] - 0.9)


def test_zca_of_constant_images_alone_is_refused():
    images = torch.linspace(0, 1, 10).view(-1, 1, 1, 1).expand(10, 3, 5, 4)
    with pytest.raises(
        InputError,
        match="preprocess zca needs train images that are not constant, found none; give "
        "--preprocess",
    ):
        fitted("zca", images)


def test_images_that_are_all_alike_cannot_be_normalized():
    with pytest.raises(
        InputError,
        match="preprocess normalize needs train images that differ in a channel, found all alike; "
        "give other images, or --preprocess none",
    ):
        fitted("normalize", torch.full((10, 3, 5, 4), 0.3))


@pytest.mark.parametrize("kind", ["none", "normalize"])
def test_constant_images_alone_stay_finite(kind):
    images = torch.linspace(0, 1, 10).view(-1, 1, 1, 1).expand(10, 3, 5, 4)
    preprocess = fitted(kind, images)
    assert preprocess(images).isfinite().all()
    assert preprocess.pictures(preprocess(images)).isfinite().all()


# The way back


def test_the_inverse_of_none_and_normalize_is_exact():
    images = photos(50)
    for kind in ("none", "normalize"):
        preprocess = fitted(kind, images)
        torch.testing.assert_close(
            preprocess.inverse(preprocess(images)), images, rtol=0, atol=1e-6
        )


def test_the_inverse_of_zca_ends_at_centred_images_of_norm_1():
    images = photos(200)
    preprocess = fitted("zca", images)
    found = preprocess.inverse(preprocess(images)).numpy().reshape(200, -1)
    np.testing.assert_allclose(found, unit_rows(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_have_the_mean_and_contrast_of_a_typical_train_image(kind):
    images = 0.5 + 0.1 * (photos(100) - 0.3)  # of so low a contrast that nothing is cut off
    given = images.double().numpy().reshape(100, -1)
    preprocess = fitted(kind, images)
    pictures = (
        preprocess.pictures(torch.randn(20, 3, 5, 4, generator=generator(2)) * 7)
        .double()
        .flatten(1)
        .numpy()
    )
    np.testing.assert_allclose(pictures.mean(1), given.mean(), atol=1e-5)
    np.testing.assert_allclose(pictures.std(1), given.std(1).mean(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_train_images_keep_their_pattern(kind):
    images = 0.5 + 0.1 * (photos(100) - 0.3)
    preprocess = fitted(kind, images)
    # Up to brightness and contrast, a picture is the image: both agree once centred and scaled to
    # norm 1.
    np.testing.assert_allclose(
        unit_rows(preprocess.pictures(preprocess(images))), unit_rows(images), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_cut_off_at_0_and_1(kind):
    images = (photos(100) > 0.4).float()
    noise = torch.randn(20, 3, 5, 4, generator=generator(2))
    pictures = fitted(kind, images).pictures(noise)
    assert (pictures.min(), pictures.max()) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_state_gives_the_preprocessing_back_to_the_bit(kind):
    images = photos(100)
    preprocess = fitted(kind, images)
    state = preprocess.state()
    again = restored(kind, state)
    assert again.tensors.keys() == preprocess.tensors.keys()
    assert all(
        torch.equal(again.tensors[name], tensor) for name, tensor in preprocess.tensors.items()
    )
    assert torch.equal(again(images), preprocess(images))
    assert torch.equal(again.pictures(images), preprocess.pictures(images))
    if kind == "zca":
        assert state["matrix"].shape == (60 * 61 // 2,), (
            "of the symmetric matrix, one triangle is kept"
        )
        assert state["matrix"].dtype == torch.float16
        fine = fitted(kind, images, zca_regularization=HALF_FROM / 2)
        assert fine.state()["matrix"].dtype == torch.float32
        assert torch.equal(restored(kind, fine.state()).tensors["matrix"], fine.tensors["matrix"])


# Splits and what is fitted to them


def choice(name: str) -> Chosen:
    return configuration(preprocess=name).preprocessing


def numbered(per_class: int = 40, classes: int = 3, test: bool = False) -> Dataset:
    """Random float images, the first pixel of each its own number."""
    count = per_class * classes
    images = photos(2 * count).numpy()
    images[:, 0, 0, 0] = np.arange(2 * count) / (2 * count)
    labels = np.arange(count) % classes
    given = (images[count:], labels) if test else ()
    return from_arrays(images[:count], labels, *given)


def numbers(loaded: RealData, name: str, count: int) -> list[int]:
    """Which images a split holds, read off their first pixels (of unpreprocessed data)."""
    split = getattr(loaded, name)
    first = split.take(torch.arange(len(split)))[0][:, 0, 0, 0]
    return (first * count).round().int().tolist()


def changed(arrays: Arrays, rows: list[int]) -> Arrays:
    images = arrays.images.copy()
    images[rows] = 1 - images[rows]
    return Arrays(images, arrays.labels)


@pytest.mark.parametrize("test", [False, True])
def test_train_validation_and_test_share_no_image_and_leave_none_out(test):
    loaded = prepare(numbered(test=test), DataConfig(), CPU, choice("none"))
    held = {name: numbers(loaded, name, 240) for name in ("train", "validation", "test")}
    assert sorted(number for part in held.values() for number in part) == list(
        range(240 if test else 120)
    )
    # Of 40 a class: 8 are held out as test (20 %) if there is none, then 10 % of the rest for
    # validation.
    for name, expected in {
        "train": 36 if test else 29,
        "validation": 4 if test else 3,
        "test": 40 if test else 8,
    }.items():
        assert getattr(loaded, name).labels.bincount().tolist() == [expected] * 3
        assert [number % 3 for number in held[name]] == getattr(loaded, name).labels.tolist()
    assert loaded.shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("test", "name"), [(False, "validation"), (False, "test"), (True, "validation")]
)
def test_the_split_seed_decides_what_is_held_out(test, name):
    first, again, other = (
        numbers(
            prepare(numbered(test=test), DataConfig(split_seed=seed), CPU, choice("none")),
            name,
            240,
        )
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_line_tells_what_was_read_and_where_each_split_comes_from():
    told = prepare(numbered(), DataConfig(), CPU, choice("zca")).words
    assert told.startswith("3 classes (0, 1, 2), images of 3 x 5 x 4 with values 0 to ")
    assert told.endswith(
        ": 87 train (the rest), 9 validation (10 % of train, by class), 24 test (20 % of all, by "
        "class)"
    )
    assert prepare(numbered(test=True), DataConfig(), CPU, choice("zca")).words.endswith(
        ": 108 train (the rest), 12 validation (10 % of train, by class), 120 test (given)"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test", [False, True])
def test_preprocessing_is_fitted_to_train_images_alone(test, kind):
    dataset = numbered(test=test)
    loaded = prepare(dataset, DataConfig(), CPU, choice("none"))
    held = {name: numbers(loaded, name, 240) for name in ("train", "validation", "test")}
    expected = prepare(dataset, DataConfig(), CPU, choice(kind)).preprocess.tensors

    def refitted(rows: list[int], test_rows: list[int]) -> dict[str, Tensor]:
        parts = {"train": changed(dataset.train, rows)}
        if dataset.test is not None:
            parts["test"] = changed(dataset.test, [row - 120 for row in test_rows])
        return prepare(
            replace(dataset, **parts), DataConfig(), CPU, choice(kind)
        ).preprocess.tensors

    others = held["validation"] + ([] if test else held["test"])
    untouched = refitted(others, held["test"] if test else [])
    assert all(torch.equal(untouched[name], tensor) for name, tensor in expected.items())
    touched = refitted(held["train"][:1], [])
    assert any(not torch.equal(touched[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_split_goes_through_the_fitted_preprocessing(kind):
    dataset = numbered(test=True)
    raw = prepare(dataset, DataConfig(), CPU, choice("none"))
    loaded = prepare(dataset, DataConfig(), CPU, choice(kind))
    for name in ("train", "validation", "test"):
        every = torch.arange(len(getattr(raw, name)))
        expected = loaded.preprocess(getattr(raw, name).take(every)[0])
        torch.testing.assert_close(getattr(loaded, name).take(every)[0], expected)


def test_a_preprocessing_that_is_given_is_used_and_not_fitted_again():
    elsewhere = fitted("normalize", photos(30, seed=5) * 0.1)
    loaded = prepare(numbered(), DataConfig(), CPU, elsewhere)
    raw = prepare(numbered(), DataConfig(), CPU, choice("none"))
    rows = torch.arange(10)
    torch.testing.assert_close(loaded.test.take(rows)[0], elsewhere(raw.test.take(rows)[0]))


def test_a_class_without_training_images_is_named():
    dataset = from_arrays(
        photos(40).numpy(), np.arange(40) % 2 * 2, class_names=["ant", "bee", "cat"]
    )
    with pytest.raises(
        InputError,
        match="every class must have training images, class 'bee' has none; add some or drop the "
        "class",
    ):
        prepare(dataset, DataConfig(), CPU, choice("zca"))


def test_a_class_with_one_image_trains_on_it():
    labels = np.array([0] * 20 + [1])
    loaded = prepare(from_arrays(photos(21).numpy(), labels), DataConfig(), CPU, choice("zca"))
    assert loaded.train.labels.bincount(minlength=2)[1] == 1
    assert (
        loaded.validation.labels.bincount(minlength=2)[1]
        == loaded.test.labels.bincount(minlength=2)[1]
        == 0
    )


@pytest.mark.parametrize(("per_class", "test"), [(2, False), (1, False), (1, True)])
def test_data_too_few_to_hold_any_out_are_refused(per_class, test):
    least, parts = (2, "validation data") if test else (3, "validation and test data")
    message = (
        rf"at least {least} training images, so that {parts} can be held out, found at most "
        rf"{per_class} in a class"
    )
    with pytest.raises(InputError, match=message):
        prepare(numbered(per_class, test=test), DataConfig(), CPU, choice("zca"))


def test_labels_that_are_almost_all_different_are_told():
    measured = from_arrays(photos(20).numpy(), np.arange(20))
    with pytest.raises(InputError, match="almost all different are no classes: sort them into"):
        prepare(measured, DataConfig(), CPU, choice("zca"))
