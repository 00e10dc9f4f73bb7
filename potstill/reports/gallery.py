"""The images of a set for an HTML page, by class and block.

Each has its alternative text and, if labels were learned, its label.
"""

import base64
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.distilled.picture import to_image
from potstill.distilled.sets import DistilledSet

MOST_VALUES, MOST_PICTURES = 4_000_000, 2_000
"""What a page holds, in bytes of pixels and in pictures: 1,000 images of 3 x 32 x 32 and more."""
LARGEST_PX = 128
BAR_HEIGHT = 10.0


@dataclass(frozen=True)
class Bars:
    """Learned weights of an image as a strip of bars, one for each class, relative to the greatest.

    Negative ones, which targets of regressions have, hang from a line through the middle.

    Args:
        own: SVG path of the bar of the image's own class.
        others: SVG path of the other bars.
        classes: the strip's width in its own units; its height is `BAR_HEIGHT`.
        words: the greatest weights, by class.
        signed: whether some are negative.
    """

    own: str
    others: str
    classes: int
    words: str
    signed: bool


@dataclass(frozen=True)
class Frame:
    """The first image of each class at some point of a run.

    Args:
        words: when, in short.
        alternative: when, for the alternative text.
        uri: the picture, as a data URI.
    """

    words: str
    alternative: str
    uri: str


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with its alternative text; bars if its label was learned."""

    uri: str
    alternative: str
    bars: Bars | None


@dataclass(frozen=True)
class Gallery:
    """The images of a set.

    Args:
        blocks: headings, one for each block.
        rows: class name -> for each block, its pictures.
        size: (width, height) of a picture on the page, in CSS pixels.
        enlarged: whether the size is a whole multiple of the image's own pixels.
        left_out: a sentence, if some images are left out.
    """

    blocks: list[str]
    rows: list[tuple[str, list[list[Picture]]]]
    size: tuple[int, int]
    enlarged: bool
    left_out: str

    @property
    def signed(self) -> bool:
        """Whether a learned label that is shown has negative weights."""
        pictures = (one for _, cells in self.rows for cell in cells for one in cell)
        return any(one.bars.signed for one in pictures if one.bars)


@dataclass(frozen=True)
class StoredPictures:
    """The stored tensors of a set as pictures, if its images are decoded from them.

    Args:
        words: what is stored, and in how many bytes.
        blocks: (heading, its pictures) of each block.
    """

    words: str
    blocks: list[tuple[str, list[Picture]]]


def gallery(
    distilled: DistilledSet,
    most_classes: int | None = None,
    most_images: int | None = None,
    side: int | None = None,
) -> Gallery:
    """Return the images of a set, class by class.

    Args:
        distilled: the set.
        most_classes: at most so many classes; None: what a page can hold.
        most_images: at most so many images of a class in each block; None: what a page can hold.
        side: about how large a picture is, in CSS pixels; None: the larger the fewer there are.
    """
    classes, largest = (
        len(distilled.class_names),
        max(len(block.labels) for block in distilled.blocks),
    )
    most = room(distilled)
    rows = min(classes, most_classes or classes, most)
    each = min(largest // classes, most_images or largest, max(1, most // rows))
    indices = range(len(distilled.blocks))
    size, enlarged = shown_size(distilled, side)
    return Gallery(
        [f"block {index + 1}" for index in indices],
        [
            (
                distilled.class_names[label],
                [cell(distilled, index, label, each) for index in indices],
            )
            for label in range(rows)
        ],
        size,
        enlarged,
        left_out(distilled, rows, each),
    )


def room(distilled: DistilledSet) -> int:
    """Return how many pictures of a block a page can hold."""
    return max(
        1,
        min(MOST_VALUES // torch.Size(distilled.shape).numel(), MOST_PICTURES)
        // len(distilled.blocks),
    )


def stored_pictures(distilled: DistilledSet) -> StoredPictures | None:
    """Return pictures of the stored tensors; None if the images themselves are stored."""
    groups, nested, most = [], len(distilled.blocks) > 1, room(distilled)
    for number, block in enumerate(distilled.blocks, start=1):
        stored = block.parameterisation.stored(block.leaves)
        if stored is None:
            return None
        count = len(stored.images) // stored.tiles**2
        pictures = tiled(
            distilled.fitted.pictures(stored.images[: most * stored.tiles**2]), stored.tiles
        )
        heading = f"{stored.title} (block {number})" if nested else stored.title
        heading += f": the first {most:,} of {count:,}" if count > most else ""
        shown = [
            Picture(data_uri(one), f"{stored.title}, {index}", None)
            for index, one in enumerate(pictures, start=1)
        ]
        groups.append((heading, shown))
    return StoredPictures(f"{distilled.stored}, 4 for each number.", groups)


def tiled(pictures: Tensor, side: int) -> Tensor:
    """Tile pictures (m side^2, C, H, W), reduced, into side x side grids (m, C, H, W)."""
    small = torch.nn.functional.avg_pool2d(pictures, side)
    channels, height, width = small.shape[1:]
    laid = small.reshape(-1, side, side, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return laid.reshape(-1, channels, side * height, side * width)


def cell(distilled: DistilledSet, index: int, label: int, each: int) -> list[Picture]:
    """Return the first pictures of a class in a block.

    Args:
        distilled: the set.
        place: index of the block.
        label: the class.
        each: at most so many pictures.
    """
    block, name = distilled.blocks[index], distilled.class_names[label]
    members = torch.nonzero(block.labels == label)[:, 0]
    end = f"of {len(members)}" + (f" in block {index + 1}" if len(distilled.blocks) > 1 else "")
    made = []
    for number, pixels in enumerate(distilled.fitted.pictures(block.images[members[:each]])):
        weights = block.targets[members[number]]
        bars = (
            label_bars(weights, label, distilled.class_names) if distilled.learned_labels else None
        )
        made.append(Picture(data_uri(pixels), f"class {name}, image {number + 1} {end}", bars))
    return made


def data_uri(pixels: Tensor) -> str:
    """Encode pixels (C, H, W) in [0, 1] as the data URI of a PNG of that size."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG", optimize=True)
    return png_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    """Return the data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def label_bars(weights: Tensor, label: int, names: tuple[str, ...]) -> Bars:
    """Draw the strip of an image's learned weights (K,)."""
    signed = bool((weights < 0).any())
    room = BAR_HEIGHT / 2 if signed else BAR_HEIGHT
    heights = (room * weights / weights.abs().max().clamp_min(1e-12)).tolist()
    thick = max(0.8, len(heights) / 40)  # of the own class: seen among hundreds, too
    own = bar(label + 0.4 - thick / 2, room, heights[label], thick)
    others = "".join(
        bar(index, room, height, 0.8)
        for index, height in enumerate(heights)
        if abs(height) >= 0.3 and index != label
    )
    top = [index for index in weights.argsort(descending=True).tolist()[:4] if weights[index] > 0]
    words = ", ".join(f"{names[index]} {float(weights[index]):.2f}" for index in top)
    return Bars(own, others, len(heights), f"learned weights: {words or 'none above 0'}", signed)


def bar(left: float, zero: float, height: float, thick: float) -> str:
    """Return the SVG path of a bar that stands on the height `zero`, or hangs from it."""
    return f"M{left:g} {zero:g}v{-height:.1f}h{thick:g}v{height:.1f}z"


def shown_size(distilled: DistilledSet, aim: int | None) -> tuple[tuple[int, int], bool]:
    """Return (width, height) in CSS pixels, and whether each pixel is enlarged to a square.

    Smoothing would blur such squares.
    """
    height, width = distilled.shape[1:]
    side = max(height, width)
    aim = aim or (96 if len(distilled) <= 20 else 64 if distilled.per_class <= 10 else 48)
    if side > LARGEST_PX:
        return (round(width * LARGEST_PX / side), round(height * LARGEST_PX / side)), False
    zoom = max(1, round(aim / side))
    return (width * zoom, height * zoom), True


def left_out(distilled: DistilledSet, classes: int, each: int) -> str:
    """Say which classes and images are not shown."""
    most = max(int(torch.bincount(block.labels).max()) for block in distilled.blocks)
    parts = (
        [f"the first {classes:,} of {len(distilled.class_names):,} classes"]
        if classes < len(distilled.class_names)
        else []
    )
    if each < most:
        where = " in each block" if len(distilled.blocks) > 1 else ""
        parts.append(f"the first {each:,} of {most:,} images of each class{where}")
    return f"Shown: {' and '.join(parts)}." if parts else ""
