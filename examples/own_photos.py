"""Your own photographs: a folder for each class becomes a few images, a page and a network.

python examples/own_photos.py photos          # photos/cat/*.jpg, photos/dog/*.jpg, ...
python examples/own_photos.py                 # coloured shapes are drawn in place of photos
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import potstill

SHAPES = ("circle", "square", "triangle")


def draw_shapes(folder, each=60, side=32):
    """Draw pictures of three kinds of shapes, in any colour, place and size."""
    rng = np.random.default_rng(0)
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture = Image.new("RGB", (side, side), tuple(rng.integers(0, 120, 3).tolist()))
            ink, size = tuple(rng.integers(130, 256, 3).tolist()), int(rng.integers(10, 20))
            x, y = (int(place) for place in rng.integers(2, side - size - 2, 2))
            box, pen = [x, y, x + size, y + size], ImageDraw.Draw(picture)
            if name == "circle":
                pen.ellipse(box, fill=ink)
            elif name == "square":
                pen.rectangle(box, fill=ink)
            else:
                pen.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], fill=ink)
            picture.save(folder / name / f"{number:03d}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--steps", type=int, default=100, help="outer steps")
    parser.add_argument("--nets", type=int, default=5)
    given = parser.parse_args()
    photos = given.folder
    if photos is None:
        photos = Path(tempfile.mkdtemp()) / "shapes"
        draw_shapes(photos)
    potstill.distill(
        data=str(photos), image_size=32, ipc=1, init="real", width=32, unroll=30, window=10,
        steps=given.steps, real_batch=60, lengths=(100, 300), validation_nets=2, out=given.out,
        overwrite=True, progress=False,
    )  # fmt: skip
    for row in potstill.evaluate(given.out, nets=given.nets, baselines=("random",), progress=False):
        print(f"{row.name:<10}{row.images} images: {row.accuracy}")
    print(f"look at {given.out / 'distilled.png'}")


if __name__ == "__main__":
    main()
