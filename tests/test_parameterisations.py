"""Parameterisations: what they store, what it decodes to, and that every one goes with every
method.
"""

import dataclasses
import json
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from test_runs import QUICK, interrupted_run
from test_unrolled import problem
from torch import Tensor
from twins import CPU

import potstill
from potstill import files
from potstill.cache import Cache
from potstill.cli.parser import main
from potstill.config.options import declared
from potstill.data.splits import TensorSplit
from potstill.distillation.boosting import OnBlocks, Rates, Stage, examples, with_leaves
from potstill.distilled import artefact
from potstill.distilled.blocks import Block, initial_blocks
from potstill.distilled.picture import caption, grid
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError
from potstill.parameterisations.base import (
    Budget,
    Parameterisation,
    downsampled,
    from_plain,
    upsampled,
)
from potstill.registry import METHODS, PARAMETERISATIONS
from potstill.reports.gallery import tiled
from potstill.seeds import generator

SHAPES = {"grey": (1, 8, 8), "colour": (3, 8, 12)}
OTHERS = [name for name in PARAMETERISATIONS if name != "pixels"]


def fitting(
    name: str, shape=(3, 8, 12), classes=3, ipc=2, *, learn_labels=False, **options
) -> Parameterisation:
    part = PARAMETERISATIONS[name]
    known = {item.name for item, _ in declared(part.Options)}
    options = {key: value for key, value in {"hallucinators": 2, **options}.items() if key in known}
    return part.fitting(Budget(shape, classes, ipc, learn_labels), part.Options(**options))


def double(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.double() for name, leaf in leaves.items()}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", list(PARAMETERISATIONS))
def test_it_stores_what_it_says_and_no_more_than_the_budget(name, shape, learned):
    one = fitting(name, shape, ipc=3, learn_labels=learned)
    train = TensorSplit(torch.randn(60, *shape, generator=generator(1)), torch.arange(60) % 3)
    (block,) = initial_blocks("gaussian", [one], train, 0, CPU)
    assert {
        name: tuple(leaf.shape) for name, leaf in block.leaves.items() if name != "targets"
    } == one.shapes
    assert ("targets" in block.leaves) == learned
    assert (
        sum(leaf.numel() for leaf in block.leaves.values())
        == one.floats
        <= 3 * 3 * (math.prod(shape) + 3 * learned)
    )
    assert block.stored_bytes == 4 * one.floats
    assert block.images.shape == (3 * one.per_class, *shape)
    assert block.labels.tolist() == sorted(block.labels.tolist())
    assert block.labels.bincount().tolist() == [one.per_class] * 3
    assert torch.equal(block.targets, F.one_hot(block.labels, 3).float())
    assert from_plain(json.loads(json.dumps(one.plain())), shape, 3, learned) == one


def test_the_bytes_by_arithmetic():
    # CIFAR-10 at one image a class, by hand. 10 x 3,072 = 30,720 numbers.
    shape = (3, 32, 32)
    assert (
        fitting("pixels", shape, 10, 1).floats
        == fitting("multi-formation", shape, 10, 1).floats
        == 30_720
    )
    assert fitting("multi-formation", shape, 10, 1).per_class == 4
    basis = fitting("basis", shape, 10, 1)  # (1 x 3,072 x 10 - 16 x 768) / (10 x 16) = 115.2
    assert (basis.per_class, basis.floats) == (115, 16 * 768 + 1150 * 16)
    assert 30_720 - basis.floats < 10 * 16
    # The authors' example, 16 bases at half the resolution.
    assert fitting("basis", shape, 10, 10).per_class == 1843
    factorised = fitting("factorised", shape, 10, 1, hallucinators=5)
    # Two convolutions of 3 x 3 x 3 x 3, a scale and a shift of 3 x 16 x 16.
    networks = 5 * (2 * 27 * 3 + 2 * 768)
    assert factorised.floats == networks + 2 * 10 * 768
    assert factorised.per_class == 2 * 5
    assert 30_720 - factorised.floats < 10 * 768
    # Learned labels are 10 numbers each: of pixels and stored images one, of a basis one, of a
    # combination one.
    soft = [
        fitting(name, shape, 10, 1, learn_labels=True, hallucinators=5)
        for name in PARAMETERISATIONS
    ]
    assert [one.floats for one in soft] == [
        30_820,
        30_820,
        16 * 768 + 10 * 71 * (16 + 10),
        networks + 20 * (768 + 10),
    ]


@pytest.mark.parametrize("name", list(PARAMETERISATIONS))
def test_noise_has_about_norm_1_and_follows_from_the_seed(name):
    one = fitting(name, (3, 16, 16), ipc=4)
    first, same, other = (one.noise(generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(leaf, same[key]) for key, leaf in first.items())
    assert any(not torch.equal(leaf, other[key]) for key, leaf in first.items())
    images = one.decode(first)
    norms = images.flatten(1).norm(dim=1)
    assert 0.7 < norms.mean() < 1.3
    # No two alike: they would stay alike.
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_interpolation_is_torchs_bilinear_and_its_inverse_a_least_squares_fit():
    rng = generator(0)
    small = torch.randn(2, 3, 4, 6, generator=rng, dtype=torch.float64)
    expected = F.interpolate(small, size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(small, 8, 12), expected)
    torch.testing.assert_close(downsampled(expected, 4, 6), small)
    images = torch.randn(2, 3, 8, 12, generator=rng, dtype=torch.float64)
    matrix = (
        F.interpolate(
            torch.eye(24, dtype=torch.float64).view(24, 1, 4, 6), size=(8, 12), mode="bilinear"
        )
        .flatten(1)
        .T
    )
    solved = torch.linalg.lstsq(matrix, images.flatten(2).reshape(6, -1).T).solution.T.reshape(
        2, 3, 4, 6
    )
    torch.testing.assert_close(downsampled(images, 4, 6), solved)


@pytest.mark.parametrize("name", list(PARAMETERISATIONS))
def test_images_in_its_range_survive_a_round_trip(name):
    """What it can store, it stores: images decoded from noise are found again from the images
    alone.
    """
    one = fitting(name, ipc=2)
    leaves = double(one.noise(generator(3)))
    # Hallucinators begin as identities with a shift: only what they agree on is in the range.
    if name == "factorised":
        leaves["shifts"].zero_()
    images = one.decode(leaves)
    chosen = images.view(3, one.per_class, *images.shape[1:])[
        :, :: one.per_class // one.real_per_class
    ].flatten(0, 1)
    again = one.from_real(chosen, generator(4))
    if name == "factorised":
        again["shifts"].zero_()
    torch.testing.assert_close(one.decode(again), images, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["multi-formation", "basis"])
def test_real_images_are_fitted_by_least_squares(name):
    one = fitting(name, (1, 8, 8), 3, 2)
    real = torch.randn(3 * one.real_per_class, 1, 8, 8, generator=generator(5), dtype=torch.float64)
    leaves = one.from_real(real, generator(6))
    wanted = {key: leaf.double().requires_grad_() for key, leaf in leaves.items()}
    error = (one.decode(wanted) - real).square().sum()
    for grad in torch.autograd.grad(error, list(wanted.values())):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)
    # Eckart and Young: no other bases do better; singular values tell the rank of what is left.
    if name == "basis":
        upsampling = F.interpolate(
            torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4), size=(8, 8), mode="bilinear"
        ).flatten(1)
        inside = real.flatten(1) @ torch.linalg.pinv(upsampling) @ upsampling
        values = torch.linalg.svdvals(inside)
        least = values[one.bases :].square().sum() + (real.flatten(1) - inside).square().sum()
        torch.testing.assert_close(error.detach(), least, rtol=1e-6, atol=0)


def test_more_bases_than_images_are_noise_that_can_still_learn():
    one = fitting("basis", (1, 8, 8), 2, 3, bases=12)
    assert one.per_class == 8
    leaves = one.from_real(torch.ones(16, 1, 8, 8), generator(0))  # all alike: rank 1
    torch.testing.assert_close(one.decode(leaves), torch.ones(16, 1, 8, 8))
    assert not leaves["coefficients"][:, 1:].any()
    assert (leaves["bases"][1:].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", list(PARAMETERISATIONS))
def test_decoding_is_differentiated_right(name, learned):
    one = fitting(name, (2, 4, 4), 2, 2, learn_labels=learned, hallucinators=1)
    train = TensorSplit(torch.randn(20, 2, 4, 4, generator=generator(1)), torch.arange(20) % 2)
    (block,) = initial_blocks("gaussian", [one], train, 0, CPU)
    leaves = double(block.leaves)

    def decoded(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        made = Block(dict(zip(leaves, tensors, strict=True)), one)
        return (made.images, made.targets) if learned else (made.images,)

    assert torch.autograd.gradcheck(
        decoded, tuple(leaf.requires_grad_() for leaf in leaves.values())
    )


def stage(
    name: str, blocks: int = 1, *, method: str = "bptt", learn_labels: bool = False, **options
) -> tuple[Stage, OnBlocks]:
    """The last stage of a run on three classes of 1 x 8 x 8 images in float64, and its method."""
    task = problem()
    train = TensorSplit(task.real.train.take(torch.arange(60))[0].double(), task.real.train.labels)
    factory = task.networks.factory
    networks = dataclasses.replace(task.networks, factory=lambda: factory().double())
    seen = 2 if method == "haba" else 1
    one = fitting(name, (1, 8, 8), 3, 1 + seen, learn_labels=learn_labels, hallucinators=seen)
    made = initial_blocks("gaussian", [one] * blocks, train, 0, CPU)
    found = Stage(tuple(Block(double(block.leaves), one) for block in made), Rates(0.05, 0.02))
    recipe = Recipe(batch_per_class=2, classes_per_batch=3, augment=("rotate",))
    real = dataclasses.replace(task.real, train=train)
    task = dataclasses.replace(
        task, real=real, networks=networks, labels=found.labels, recipe=recipe, sharing=one.sharing
    )
    known = {item.name for item, _ in declared(METHODS[method].Options)}
    small = {"unroll": 6, "window": 3, "network_steps": 1, "network_epochs": 0, "experts": 1}
    small |= {"expert_batch": 20, "max_start": 1, "expert_epochs": 1, "student_steps": 3, **options}
    options = {key: value for key, value in small.items() if key in known}
    made = METHODS[method](task, METHODS[method].Options(**options))
    made.prepare(Cache(None))
    return found, found.on_blocks(made, CPU)


PAIRS = [
    (name, method)
    for name in OTHERS
    for method in METHODS
    if not METHODS[method].needs.pixels and (method, name) != ("haba", "basis")
]
"""All but what is refused: a choice of real images, and hallucinators where there are none."""


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_the_meta_gradient_of_stored_numbers_is_how_the_loss_changes(name, learned):
    """The whole way, unroll and decoding, against a difference of the outer loss in float64."""
    one, method = stage(name, learn_labels=learned, unroll=3)
    state = method.method.start()[0]
    found = method.estimate(one.learned, state, 0)
    rng = generator(7)
    for key, leaf in one.learned.items():
        along = torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype)
        along *= 1e-5 * leaf.norm() / along.norm()
        up, down = (
            method.estimate({**one.learned, key: leaf + sign * along}, state, 0).loss
            for sign in (1, -1)
        )
        expected = float((found.grads[key] * along).sum())
        assert (up - down) / 2 == pytest.approx(expected, rel=1e-4, abs=1e-13), key


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_one_goes_with_every_method(name, method):
    """What is stored moves, and by the gradient that the method has at the images, pulled back."""
    free = METHODS[method].needs.targets != "classes"
    one, wrapped = stage(name, 2, method=method, learn_labels=free)
    state = wrapped.method.start()[0]
    found = wrapped.estimate(one.learned, state, 0)
    wanted = {key: leaf.clone().requires_grad_() for key, leaf in one.learned.items()}
    made = examples(with_leaves(one.blocks[one.first_moving :], wanted, one.first_moving))
    whole, moving = wrapped.examples(one.learned)
    assert set(moving) == ({"images", "targets"} if free else {"images"})
    plain = wrapped.method.estimate(whole, {}, state, 0)
    expected = torch.autograd.grad(
        [made[key] for key in plain.grads],
        list(wanted.values()),
        [plain.grads[key][whole.frozen :] for key in plain.grads],
        allow_unused=True,
        materialize_grads=True,
    )
    for key, grad in zip(wanted, expected, strict=True):
        torch.testing.assert_close(found.grads[key], grad)
        assert grad.any(), key


def test_every_leaf_moves_by_the_same_share_of_its_scale():
    rates = Rates(0.01, 0.01)
    for name in PARAMETERISATIONS:
        one = fitting(name, (3, 16, 16), ipc=8)
        train = TensorSplit(torch.zeros(60, 3, 16, 16), torch.arange(60) % 3)
        (block,) = initial_blocks("gaussian", [one], train, 0, CPU)
        rules = Stage((block,), rates).rules({})
        shares = {
            key.partition(".")[2]: rule.lr
            / float(block.leaves[key.partition(".")[2]].square().mean().sqrt())
            for key, rule in rules.items()
        }
        shares.pop("shifts", None)  # they begin small on purpose
        assert all(share == pytest.approx(0.01 * 768**0.5, rel=0.5) for share in shares.values()), (
            name,
            shares,
        )
        assert all(rule.clipped for rule in rules.values())


SMALL = {**QUICK, "ipc": 2, "learn_labels": False}


def small(name: str) -> dict[str, object]:
    """Options of a small run with a parameterisation."""
    return {**SMALL, "param": name} | ({"hallucinators": 2} if name == "factorised" else {})


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_is_saved_loaded_resumed_exported_and_evaluated(name, tmp_path, capsys):
    options = {**small(name), "learn_labels": name == "basis"}
    whole = potstill.distill(**options, out=tmp_path / "whole")
    assert (
        whole.meta["accuracy"]["stored_bytes"]
        == whole.stored_bytes
        <= 2 * 10 * (64 + 10 * (name == "basis")) * 4
    )
    assert (whole.ipc, len(whole)) == (2, 10 * whole.per_class)
    assert whole.per_class > 2
    again = potstill.load(tmp_path / "whole")
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.targets, whole.targets)
    tensors, _ = files.load_tensors(tmp_path / "whole" / artefact.ARTEFACT, "distilled set")
    kept = sum(tensor.numel() * 4 for key, tensor in tensors.items() if key.startswith("blocks."))
    assert kept == whole.stored_bytes  # nothing beside it: no labels, no images
    interrupted_run(tmp_path / "cut", 7, **options)
    potstill.resume(tmp_path / "cut")
    assert (tmp_path / "cut" / artefact.ARTEFACT).read_bytes() == (
        tmp_path / "whole" / artefact.ARTEFACT
    ).read_bytes()
    assert main(["evaluate", str(tmp_path / "whole"), "--nets", "1", "--baseline", "random"]) == 0
    distilled, random = json.loads((tmp_path / "whole/evaluation.json").read_text())["evaluations"][
        0
    ]["rows"]
    assert (distilled["images"], distilled["ipc"], distilled["stored_bytes"]) == (
        len(whole),
        2,
        whole.stored_bytes,
    )
    assert (random["images"], random["ipc"], random["stored_bytes"]) == (20, 2, 20 * 64 * 4)
    assert f"{whole.stored_bytes:,}" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "whole"), "--format", "npz"]) == 0
    with numpy.load(tmp_path / "whole" / "distilled.npz") as arrays:
        assert torch.equal(torch.from_numpy(arrays["images"]), whole.images)
    assert main(["export", str(tmp_path / "whole"), "--no-check"]) == 0


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("name", OTHERS)
def test_it_can_be_boosted(name, beta, tmp_path):
    options = {
        **small(name),
        "ipc": 4,
        "boost_blocks": 2,
        "boost_beta": beta,
        "steps": 3,
        "init": "real",
    }
    two = potstill.distill(**options, out=tmp_path / "run")
    one = potstill.distill(**{**options, "ipc": 2, "boost_blocks": 1})
    assert two.budgets == (2, 4)
    first = potstill.load(tmp_path / "run", ipc=2)
    assert (first.ipc, first.per_class, first.stored_bytes) == (2, one.per_class, one.stored_bytes)
    assert torch.equal(first.images, two.images[: len(one)])
    moved = {
        key: not torch.equal(leaf, one.blocks[0].leaves[key])
        for key, leaf in first.blocks[0].leaves.items()
    }
    assert set(moved.values()) == {beta > 0}
    assert all(
        not torch.equal(leaf, two.blocks[0].leaves[key])
        for key, leaf in two.blocks[1].leaves.items()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param": "bases"}, r"unknown parameterisation 'bases' \(did you mean 'basis'\?\); known: "
                             r"basis, factorised, multi-"),
        (
            {"param": "basis", "ipc": 1, "factor": 1, "bases": 16},
            r"ipc must be at least 2 in each block for 16 bases of 1 x 8 x 8 and one image of each "
            r"class \(1,184 "
            r"numbers\), got 1 "
            r"\(640 numbers\); raise --ipc, or lower --bases or raise --factor",
        ),
        (
            {"param": "factorised", "ipc": 1, "hallucinators": 40},
            r"ipc must be at least 4 in each block for 40 hallucinators and one basis of 1 x 4 x 4 "
            r"for each class",
        ),
        ({"param": "multi-formation", "factor": 3}, r"factor must divide .*, 8 x 8, got 3; give "
                                                    r"--factor one of 1, 2, 4, 8"),
        ({"param": "basis", "factor": 5}, r"factor must divide the images' height and width, 8 x "
                                          r"8, got 5"),
        ({"param": "multi-formation", "ipc": 400}, r"ipc must be at most the smallest class's "
                                                   r"number .* got 400"),
        ({"param": "basis", "bases": 0}, "bases must be at least 1, got 0"),
        ({"param": "factorised", "hallucinators": 0}, "hallucinators must be at least 1, got 0"),
        ({"ipc": 2, "batch_per_class": 3}, r"batch_per_class must be at most the 2 images of each "
                                           r"class, got 3; leave it at auto"),
        ({"param": "multi-formation", "batch_per_class": 9}, r"batch_per_class must be at most the "
                                                             r"8 images of each class, got 9"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        potstill.distill(**{**SMALL, "init": "real", **options})


def test_a_grid_shows_the_first_of_many_and_says_so(tmp_path):
    made = potstill.distill(**{**SMALL, "param": "basis", "bases": 1, "steps": 1})
    assert made.per_class == 126  # (1,280 - 16) / 10
    assert (
        "126 a class, rat-bptt; the first 20 of each are shown; stored: 1 basis of 1 x 4 x 4"
        in caption(made)
    )
    assert grid(made).width < 25 * 102


def test_a_budget_counts_labels_only_if_they_are_learned():
    assert Budget((3, 32, 32), 100, 10).floats == 10 * 100 * 3072
    assert Budget((3, 32, 32), 100, 10, learn_labels=True).floats == 10 * 100 * (3072 + 100)


@pytest.mark.parametrize("name", OTHERS)
def test_the_report_shows_what_is_stored_and_what_it_decodes_to(name, tmp_path):
    options = {**small(name), "steps": 3, "preprocess": "normalize"}
    made = potstill.distill(**options, out=tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--nets", "1", "--baseline", "random"]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"became {len(made):,}, stored in the room of 20" in page
    assert "What is stored" in page
    assert "What it decodes to" in page
    assert made.stored in page
    assert f'<td class="number">{made.stored_bytes:,}</td>' in page
    shown = {
        "basis": 8,
        "multi-formation": 20,
        "factorised": len(made.blocks[0].leaves.get("bases", ())),
    }[name]
    frames = page.count('alt="The first image of each class: ')
    assert frames >= 2
    assert page.count("data:image/png") == shown + len(made) + frames
    assert "On 2 real images of each class, picked at random" in page
    potstill.distill(**{**SMALL, "steps": 3, "preprocess": "normalize"}, out=tmp_path / "plain")
    assert main(["report", str(tmp_path / "plain"), "--out", str(tmp_path / "page.html")]) == 0
    assert "What is stored" not in (tmp_path / "page.html").read_text()


def test_an_unfinished_run_shows_what_is_stored(tmp_path):
    interrupted_run(tmp_path / "cut", 9, **{**SMALL, "param": "basis"})
    assert main(["report", str(tmp_path / "cut"), "--out", str(tmp_path / "page.html")]) == 0
    assert (
        "8 bases of 1 x 4 x 4, and 8 coefficients for each of 140 images"
        in (tmp_path / "page.html").read_text()
    )


def test_the_parts_of_a_stored_image_lie_where_they_are_stored():
    sheets = torch.arange(2 * 4 * 4, dtype=torch.float32).view(2, 1, 4, 4) / 32
    one = fitting("multi-formation", (1, 4, 4), 2, 1)
    parts = one.decode({"images": sheets})
    assert torch.equal(one.parts(sheets)[:2], sheets[0, :, :2].unfold(2, 2, 2).permute(2, 0, 1, 3))
    # Bilinear enlargement and averaging draw a part together, but leave it where it is and its mean
    # as it was.
    laid = tiled(parts, 2)
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
        corner = (slice(None), slice(None), slice(row, row + 2), slice(column, column + 2))
        torch.testing.assert_close(laid[corner].mean((2, 3)), sheets[corner].mean((2, 3)))


def test_a_factor_must_divide_both_sides():
    assert fitting("multi-formation", (3, 8, 12), factor=4).per_class == 32
    with pytest.raises(
        InputError, match="height and width, 8 x 12, got 8; give --factor one of 1, 2, 4"
    ):
        fitting("multi-formation", (3, 8, 12), factor=8)


def test_hallucinators_differ_however_large_real_images_are():
    one = fitting("factorised", (1, 8, 8), ipc=4)
    real = 50 * torch.randn(3 * one.real_per_class, 1, 8, 8, generator=generator(5))
    images = one.decode(one.from_real(real, generator(6))).view(-1, 2, 64)
    distances = (images[:, 0] - images[:, 1]).norm(dim=1) / images[:, 0].norm(dim=1)
    assert 0.3 < distances.mean() < 1.5


def test_more_images_than_there_are_real_ones_begin_with_some_of_them_again():
    one = fitting("multi-formation", (1, 8, 8), 3, 4)
    # 10 of each class, 16 wanted.
    train = TensorSplit(torch.randn(30, 1, 8, 8, generator=generator(5)), torch.arange(30) % 3)
    (block,) = initial_blocks("real", [one], train, 0, CPU)
    images = block.images.view(3, 16, -1)
    assert torch.equal(images[:, 10:], images[:, :6])
    assert len(torch.unique(images.flatten(0, 1), dim=0)) == 30
