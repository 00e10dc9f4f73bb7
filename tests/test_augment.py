"""Augmentation against SciPy's affine transform, slices, closed forms and what ramps reveal of the
drawn parameters.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from potstill.data import augmentation, warps
from potstill.errors import InputError
from potstill.imports import trust
from potstill.registry import AUGMENTATIONS
from potstill.seeds import generator

OPERATIONS = tuple(AUGMENTATIONS)
WARPS = ("crop", "rotate", "scale")
SHAPES = [(3, 12, 12), (1, 9, 16)]


def noise(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(count, *shape, generator=generator(1), dtype=torch.float64)


def warped(images: Tensor, matrices: np.ndarray) -> np.ndarray:
    """SciPy's twin: the pixel at x from the centre is read at matrix @ x, x = (row, column); zeros
    lie outside.
    """
    out = np.empty(images.shape)
    centre = (np.array(images.shape[2:]) - 1) / 2
    for index, matrix in enumerate(matrices):
        for channel, plane in enumerate(images[index].numpy()):
            out[index, channel] = ndimage.affine_transform(
                plane, matrix, centre - matrix @ centre, order=1, mode="grid-constant"
            )
    return out


def affine_maps(operation: str, count: int) -> np.ndarray:
    """(count, 2, 2): where each draw reads the pixel at x = (row, column) from the centre, seen on
    two ramps.
    """
    side = 33
    ramp = torch.arange(side, dtype=torch.float64) - side // 2
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    drawn = augmentation.draw((operation,), count, generator(2))
    seen = augmentation.apply(
        torch.stack((rows, columns)).expand(count, 2, side, side), drawn
    ).numpy()
    middle = side // 2
    # Bilinear interpolation is exact on a ramp; 4 pixels from the centre no draw reads from
    # outside.
    return np.stack(
        [(seen[:, :, middle + 4, middle] / 4), (seen[:, :, middle, middle + 4] / 4)], axis=2
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others(shape):
    images = noise(400, shape)
    found = augmentation.apply(images, augmentation.draw(("flip",), 400, generator(0))).numpy()
    mirrored = (found == images.numpy()[..., ::-1]).all((1, 2, 3))
    kept = (found == images.numpy()).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.sum() - 200) < 5 * math.sqrt(100)  # five standard deviations of a fair coin


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate_equals_the_affine_transform_of_scipy(shape):
    images, drawn = noise(6, shape), augmentation.draw(("rotate",), 6, generator(0))
    angles = np.radians(-15 + 30 * drawn.values[:, 0].double().numpy())
    matrices = np.array([[[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] for a in angles])
    # 1e-6: the draws are float32.
    np.testing.assert_allclose(
        augmentation.apply(images, drawn).numpy(), warped(images, matrices), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_equals_the_affine_transform_of_scipy(shape):
    images, drawn = noise(6, shape), augmentation.draw(("scale",), 6, generator(0))
    columns, rows = (1 / 1.2 + drawn.values[:, :2].double().numpy() * (1.2 - 1 / 1.2)).T
    matrices = np.array([np.diag(factors) for factors in zip(rows, columns, strict=True)])
    np.testing.assert_allclose(
        augmentation.apply(images, drawn).numpy(), warped(images, matrices), rtol=0, atol=1e-6
    )


def test_rotations_are_rotations_and_fill_15_degrees_to_either_side():
    maps = affine_maps("rotate", 600)
    np.testing.assert_allclose(
        maps @ maps.transpose(0, 2, 1), np.broadcast_to(np.eye(2), maps.shape), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(maps), 1, atol=1e-6)
    angles = np.degrees(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert -15 <= angles.min() < -14.7
    assert 14.7 < angles.max() <= 15
    assert abs(angles.mean()) < 5 * (30 / math.sqrt(12)) / math.sqrt(600)


def test_scales_lie_between_their_limits_and_differ_between_the_axes():
    maps = affine_maps("scale", 600)
    np.testing.assert_allclose(maps[:, [0, 1], [1, 0]], 0, atol=1e-6)
    factors = maps[:, [0, 1], [0, 1]]
    assert ((factors >= 1 / 1.2 - 1e-6) & (factors <= 1.2 + 1e-6)).all()
    assert (factors.min(0) < 0.84).all()
    assert (factors.max(0) > 1.19).all()
    assert abs(np.corrcoef(factors.T)[0, 1]) < 5 / math.sqrt(600)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_crop_shifts_by_every_whole_number_of_pixels_up_to_an_eighth(height, width):
    count, down, right = 600, height // 8, width // 8
    images = noise(count, (2, height, width))
    found = augmentation.apply(images, augmentation.draw(("crop",), count, generator(0))).numpy()
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (down, down), (right, right)])
    shifts = []
    for y in range(2 * down + 1):
        for x in range(2 * right + 1):
            window = padded[:, :, y : y + height, x : x + width]
            shifts.append(np.abs(found - window).max((1, 2, 3)) < 1e-12)
    assert (np.sum(shifts, axis=0) == 1).all(), "every image is one of the shifts"
    share = 1 / len(shifts)
    assert (np.abs(np.sum(shifts, axis=1) - count * share) < 5 * math.sqrt(count * share)).all(), (
        "all shifts are as likely"
    )


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (7, 7)])
def test_cutout_zeroes_one_rectangle_of_half_the_sides_and_nothing_else(height, width):
    count = 500
    images = noise(count, (3, height, width))
    assert (images != 0).all()
    found = augmentation.apply(images, augmentation.draw(("cutout",), count, generator(0)))
    holes = (found == 0).all(1)
    torch.testing.assert_close(found, images.where(~holes[:, None], 0), rtol=0, atol=0)
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :]), "a hole is a rectangle"
    for taken, side in ((rows, height), (columns, width)):
        starts, sizes = taken.int().argmax(1), taken.sum(1)
        assert torch.equal(
            taken,
            (torch.arange(side) >= starts[:, None])
            & (torch.arange(side) < (starts + sizes)[:, None]),
        )
        inside = ~taken[:, 0] & ~taken[:, -1]
        assert (sizes[inside] == round(side / 2)).all(), "whole where it does not touch the border"
        assert sizes.min() >= side // 4
        assert sizes.max() == round(side / 2)
    assert holes.any(0).all(), "every pixel is hit by some hole"


@pytest.mark.parametrize("shape", SHAPES)
def test_color_has_its_closed_form(shape):
    images, drawn = noise(50, shape), augmentation.draw(("color",), 50, generator(0))
    values = drawn.values.double().numpy()[:, :3, None, None, None]
    expected = images.numpy() + values[:, 0] - 0.5
    if shape[0] == 3:
        grey = expected.mean(1, keepdims=True)
        expected = grey + (expected - grey) * values[:, 1] * 2
    mean = expected.mean((1, 2, 3), keepdims=True)
    expected = mean + (expected - mean) * (values[:, 2] + 0.5)
    np.testing.assert_allclose(
        augmentation.apply(images, drawn).numpy(), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("operation", ["rotate", "scale", "color", "crop", "cutout"])
def test_every_image_of_a_batch_has_parameters_of_its_own(operation):
    image = noise(1, (3, 32, 32))
    found = augmentation.apply(
        image.expand(8, 3, 32, 32), augmentation.draw((operation,), 8, generator(0))
    )
    assert len({augmented.numpy().tobytes() for augmented in found}) == 8


def test_one_operation_acts_on_a_batch_and_each_is_chosen_about_equally_often():
    rng = generator(0)
    chosen = [augmentation.draw(("flip", "rotate", "color"), 2, rng).operation for _ in range(3000)]
    counts = [chosen.count(name) for name in ("flip", "rotate", "color")]
    assert sum(counts) == 3000
    assert all(abs(count - 1000) < 5 * math.sqrt(3000 * 2 / 9) for count in counts)


def test_the_same_generator_seed_replays_every_draw():
    first, second = (
        [augmentation.draw(OPERATIONS, 5, rng) for _ in range(20)]
        for rng in (generator(3), generator(3))
    )
    assert [draw.operation for draw in first] == [draw.operation for draw in second]
    assert all(
        torch.equal(one.values, other.values) for one, other in zip(first, second, strict=True)
    )
    other = [augmentation.draw(OPERATIONS, 5, generator(4)) for _ in range(20)]
    assert any(
        not torch.equal(one.values, another.values)
        for one, another in zip(first, other, strict=True)
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_draw_cut_into_micro_batches_gives_the_rows_of_the_whole(operation):
    images, drawn = noise(9, (3, 8, 10)), augmentation.draw((operation,), 9, generator(0))
    rows = torch.tensor([7, 0, 3, 3])
    torch.testing.assert_close(
        augmentation.apply(images[rows], drawn.rows(rows)),
        augmentation.apply(images, drawn)[rows],
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_differentiable_in_the_images(operation):
    images, drawn = (
        noise(2, (2, 5, 6)).requires_grad_(),
        augmentation.draw((operation,), 2, generator(0)),
    )
    assert torch.autograd.gradcheck(lambda images: augmentation.apply(images, drawn), (images,))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shape_and_type_of_the_images_are_kept(operation):
    images = noise(4, (3, 8, 10)).float()
    found = augmentation.apply(images, augmentation.draw((operation,), 4, generator(0)))
    assert (found.shape, found.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize("operation", WARPS)
def test_what_comes_from_outside_an_image_is_zero(operation):
    # On an image of ones, zeros outside can only lower values, and those at the border are lowered
    # for most draws.
    found = augmentation.apply(
        torch.ones(50, 1, 16, 16, dtype=torch.float64),
        augmentation.draw((operation,), 50, generator(0)),
    )
    assert found.min() < 0.5
    assert found.min() >= 0
    torch.testing.assert_close(
        found[:, :, 6:10, 6:10], torch.ones(50, 1, 4, 4, dtype=torch.float64)
    )


def test_no_operations_are_the_identity_and_use_no_randomness():
    rng, images = generator(0), noise(3, (3, 8, 8))
    before = rng.get_state()
    drawn = augmentation.draw((), 3, rng)
    assert torch.equal(augmentation.apply(images, drawn), images)
    assert torch.equal(augmentation.apply(images[:2], drawn.rows(torch.tensor([0, 1]))), images[:2])
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_shared_draw_changes_the_same_image_alike_in_batches_of_any_size(operation):
    images = noise(7, (3, 8, 10))
    changed = False
    for seed in range(8):
        drawn = augmentation.shared_draw((operation,), generator(seed))
        whole, few = augmentation.apply(images, drawn), augmentation.apply(images[2:4], drawn)
        torch.testing.assert_close(few, whole[2:4], rtol=0, atol=1e-12)
        # Every image of a batch is changed alike.
        twin = augmentation.apply(images[:1].expand(7, -1, -1, -1), drawn)
        torch.testing.assert_close(twin, twin[:1].expand(7, -1, -1, -1), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            augmentation.apply(images[5:], drawn.rows(torch.tensor([5, 6]))),
            whole[5:],
            rtol=0,
            atol=1e-12,
        )
        changed |= not torch.equal(whole, images)
    assert changed


def test_a_shared_draw_replays_and_differs_from_draw_to_draw():
    first, second = (
        [augmentation.shared_draw(OPERATIONS, rng) for _ in range(20)]
        for rng in (generator(3), generator(3))
    )
    assert [(draw.operation, draw.values.tolist()) for draw in first] == [
        (draw.operation, draw.values.tolist()) for draw in second
    ]
    assert len({draw.operation for draw in first}) > 1
    assert len({tuple(draw.values.flatten().tolist()) for draw in first}) == 20


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_shared_draw_is_differentiable_in_the_images(operation):
    images, drawn = (
        noise(2, (2, 5, 6)).requires_grad_(),
        augmentation.shared_draw((operation,), generator(0)),
    )
    assert torch.autograd.gradcheck(lambda images: augmentation.apply(images, drawn), (images,))


def test_an_operation_of_a_users_own_is_applied_with_its_values(tmp_path, monkeypatch):
    (tmp_path / "shades.py").write_text(
        "def dim(images, values):\n    return images * values[:, :1, None, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trust("shades")
    images, drawn = noise(3, (1, 4, 4)), augmentation.draw(("shades:dim",), 3, generator(0))
    expected = images * drawn.values[:, 0].double().view(3, 1, 1, 1)
    torch.testing.assert_close(augmentation.apply(images, drawn), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"has no 'dimm' \(did you mean 'dim'\?\)"):
        augmentation.apply(images, augmentation.draw(("shades:dimm",), 3, generator(0)))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 12)])
@pytest.mark.parametrize("name", ["rotate", "scale", "crop"])
def test_the_repeatable_derivative_of_a_warp_is_that_of_torch(name, shape, monkeypatch):
    """On CUDA it takes the place of torch's own, which adds in another order every time."""
    seen = []
    monkeypatch.setattr(augmentation, "warp", lambda images, of: seen.append(of) or images)
    values = torch.rand(5, 4, generator=generator(3), dtype=torch.float64)
    values = torch.cat((values, torch.zeros(1, 4), torch.full((1, 4), 0.999)))  # the extremes
    AUGMENTATIONS[name](noise(7, shape), values)
    matrices = seen[0].double()
    grid = torch.nn.functional.affine_grid(matrices, [7, *shape], align_corners=False)
    found = []
    for how in (
        lambda images: warps.sampled(images, grid),
        lambda images: warps.Sampled.apply(images, grid, matrices),
    ):
        images = noise(7, shape).requires_grad_()
        cotangent = noise(7, shape).flip(0).requires_grad_()
        read = how(images)
        (of_images,) = torch.autograd.grad(read, images, cotangent, create_graph=True)
        found.append((read, of_images))
    for one, other in zip(*found, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # It is linear: its own derivative is the warp. (Torch's has none in older versions.)
    (of_cotangent,) = torch.autograd.grad(of_images, cotangent, noise(7, shape).flip(1))
    expected = warps.sampled(noise(7, shape).flip(1), grid)
    torch.testing.assert_close(of_cotangent, expected, rtol=1e-12, atol=1e-12)
