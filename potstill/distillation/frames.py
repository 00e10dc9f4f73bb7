"""How a set looked in the course of its run: the first image of each class, a picture a frame.

Frames are native pixels side by side, `frames/00000100.png` after 100 outer steps: small enough to
be kept of every run, and for the eye only.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from potstill.data.preprocessing import Preprocess
from potstill.distilled.blocks import Block
from potstill.distilled.picture import to_image
from potstill.files import make_folder, write

FRAMES = "frames"
MOST_CLASSES, LARGEST_SIDE = 10, 128
NAME = re.compile(r"(\d{8})\.png")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins."""
MOST, MOST_BYTES = 60, 1_000_000
"""Frames that are read, and the bytes of one: a folder may be a stranger's."""


def due(step: int, every: int) -> bool:
    """Return whether a frame is kept after a step that was validated, or before the first.

    Images change most in the beginning: frames are kept after 0, 1, 2, 3, 4, 6, 8, 12, 16, ...
    times `every` steps, some two dozen in the longest runs.
    """
    number, rest = divmod(step, every)
    while number > 4 and number % 2 == 0:
        number //= 2
    return rest == 0 and number <= 4


def keep(run: Path, step: int, blocks: Sequence[Block], fitted: Preprocess) -> None:
    """Write the frame after a step, if there is one.

    Args:
        run: the run's folder.
        step: outer steps done.
        blocks: of the set.
        fitted: what prepared the real images.
    Raises:
        InputError: no room on the disk, or no permission.
    """
    picture = frame(blocks, fitted)
    if picture:
        make_folder(run / FRAMES, f"go on with --resume {run}")
        write(run / FRAMES / f"{step:08d}.png", picture)


def frame(blocks: Sequence[Block], fitted: Preprocess) -> bytes:
    """Return the PNG of the first image of each class of the first block.

    Nothing if the set has no images, or large ones.
    """
    block = blocks[0]
    if block.images.ndim != 4 or max(block.images.shape[2:]) > LARGEST_SIDE:
        return b""
    labels = block.labels.tolist()
    first = [labels.index(label) for label in sorted(set(labels))[:MOST_CLASSES]]
    pixels = fitted.pictures(block.images[first].detach().cpu())
    buffer = io.BytesIO()
    to_image(torch.cat(list(pixels), dim=-1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def frames(run: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the frames of a run: outer steps done, and a PNG; what is none is left out."""
    if not (run / FRAMES).is_dir():
        return
    for path in sorted((run / FRAMES).glob("*.png"))[:MOST]:
        found = NAME.fullmatch(path.name)
        if found and path.is_file() and path.stat().st_size <= MOST_BYTES:
            content = path.read_bytes()
            if content.startswith(SIGNATURE):
                yield int(found[1]), content


def forget_after(run: Path, step: int) -> None:
    """Remove the frames of later steps."""
    for path in (run / FRAMES).glob("*.png"):
        found = NAME.fullmatch(path.name)
        if found and int(found[1]) > step:
            path.unlink(missing_ok=True)
