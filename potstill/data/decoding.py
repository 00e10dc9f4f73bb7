"""Image files to arrays of one shape, in memory or in a memory-mapped cache.

A first pass reads the headers, a second one decodes.
"""

import hashlib
import io
import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
from PIL import Image, ImageOps, UnidentifiedImageError

from potstill.data.places import Place, stamp
from potstill.data.splits import Arrays, chunk_size
from potstill.errors import InputError, let_memory_pass
from potstill.records.plain import Unreadable, dump, parse

PADDED_SIDE, UNPADDED_SIDE = 32, 28
PADDED_NOTE = "28 x 28 images were padded with zeros to 32 x 32"
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
MAPPED_ABOVE_BYTES = 4 * 10**9
FORMAT, FORM = "potstill-mapped-2", "form.json"


@dataclass(frozen=True)
class Listing:
    """The images of one split, before decoding.

    Args:
        labels: (N,) int64.
        files: gives, each time it is called, (name for messages, path or encoded bytes) of every
            image, in order.
    """

    labels: npt.NDArray[np.int64]
    files: Callable[[], Iterator[tuple[str, Path | bytes]]]


@dataclass(frozen=True)
class Form:
    """What all images of a data set become.

    Args:
        shape: (C, H, W).
        image_size: side to resize to, in pixels; 0: as they are.
        bit_depth: bits that hold the values of 16-bit grey images; None: there are none.
        notes: sentences that a user should see, on what was changed.
    """

    shape: tuple[int, int, int]
    image_size: int = 0
    bit_depth: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def grey(self) -> bool:
        """Whether there is one channel."""
        return self.shape[0] == 1


@dataclass
class Headers:
    """What a pass over the headers found."""

    grey: bool = True
    converted: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], str] = field(default_factory=dict)
    deepest: int = -1
    """The greatest value of 16-bit grey images; -1: there are none."""
    deep_colour: int = 0
    """Number of images with 16 bits in a colour."""

    def see(self, name: str, image: Image.Image) -> None:
        self.grey = self.grey and image.mode in GREY_MODES
        if image.mode.startswith("I"):  # the header does not tell how many bits are used
            self.deepest = max(self.deepest, int(np.asarray(image).max()))
        elif any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
            self.deep_colour += 1
        if image.mode not in ("L", "RGB"):
            self.converted[image.mode] = self.converted.get(image.mode, 0) + 1
        # EXIF orientations 5 to 8 turn the picture by a quarter. A square one is not asked: a PNG
        # would be decoded for it.
        turned = image.width != image.height and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        self.sizes.setdefault(image.size[::-1] if turned else image.size, name)


@contextmanager
def refusing_bombs() -> Iterator[None]:
    """Make Pillow refuse images of absurdly many pixels inside the block, in all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def reading(name: str, source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image and read its header.

    Any error with it inside the block becomes an InputError that names it.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except (InputError, MemoryError):
        raise
    # A broken file makes Pillow raise ValueError, SyntaxError, RuntimeError, ...: no closed list.
    except Exception as error:
        let_memory_pass(error)
        reason = (
            "no image format that Pillow knows"
            if isinstance(error, UnidentifiedImageError)
            else error
        )
        raise InputError(f"cannot read the image {name}: {reason}; repair or remove it") from error


def scan(listings: list[Listing], image_size: int = 0, bit_depth: int | str = "auto") -> Form:
    """Read every header; return the form that all images get.

    Args:
        listings: the images of every split.
        image_size: side to resize to, in pixels; 0: as they are.
        bit_depth: bits that hold the values of 16-bit grey images; "auto": as few of 8, 10, ... 16
            as hold all of them.
    Raises:
        InputError: an unreadable image, or several sizes and no `image_size`.
    """
    layout = Headers()
    with refusing_bombs():
        for listing in listings:
            for name, source in listing.files():
                with reading(name, source) as image:
                    layout.see(name, image)
    if image_size:
        width = height = image_size
    elif len(layout.sizes) > 1:
        (first, first_name), (second, second_name), *_ = layout.sizes.items()
        raise InputError(
            f"images have {len(layout.sizes)} sizes, such as {first[0]} x {first[1]} "
            f"({first_name}) and {second[0]} x {second[1]} ({second_name}); give --image-size to "
            "resize and crop them all to one"
        )
    else:
        ((width, height),) = layout.sizes
    notes = []
    if image_size and set(layout.sizes) != {(width, height)}:
        count = len(layout.sizes)
        notes.append(
            f"images of {count} size{'s'[: count > 1]} were resized and centre-cropped to "
            f"{image_size} x {image_size}"
        )
    if layout.converted:
        modes = ", ".join(f"{mode} ({count})" for mode, count in sorted(layout.converted.items()))
        notes.append(f"images of mode {modes} were converted to {'grey' if layout.grey else 'RGB'}")
    if layout.deep_colour:
        notes.append(
            f"of {layout.deep_colour:,} images with 16 bits in a colour the upper 8 are kept"
        )
    bits = None
    if layout.deepest >= 0:
        bits = int(bit_depth) if bit_depth != "auto" else depth_of(layout.deepest)
        notes.append(
            f"16-bit images hold values up to {layout.deepest:,}: taken as {bits} bits and scaled "
            "to 0..255; --bit-depth says otherwise"
        )
    if height == width == UNPADDED_SIDE:
        height = width = PADDED_SIDE
        notes.append(PADDED_NOTE)
    return Form((1 if layout.grey else 3, height, width), image_size, bits, tuple(notes))


def depth_of(greatest: int) -> int:
    """Return the least of 8, 10, ... 16 bits that hold a value."""
    return max(8, min(16, greatest.bit_length() + greatest.bit_length() % 2))


def decode(image: Image.Image, form: Form) -> npt.NDArray[np.uint8]:
    """Decode one image to uint8 (C, H, W): upright, grey or RGB, resized if asked for.

    Transparent pixels become white. 16-bit grey is scaled by the form's bit depth.

    Raises:
        ValueError: floating-point pixels.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers of no known range, they must be whole numbers"
        )
    if upright.mode.startswith("I"):
        most = 2 ** (form.bit_depth or 16) - 1
        values = np.asarray(upright).clip(0, most).astype(np.float64)
        upright = Image.fromarray((values * (255 / most)).round().astype(np.uint8))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    upright = upright.convert("L" if form.grey else "RGB")
    side = form.image_size
    if side and upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(upright)
    return pixels[None] if form.grey else pixels.transpose(2, 0, 1)


def decoded(listing: Listing, form: Form) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the images of the listing, (n, C, H, W) at a time, decoded on all cores.

    Pillow works outside Python's lock, so threads suffice.

    Images of another size than the form's are padded; with one channel they become grey.
    """

    def pixels_of(item: tuple[str, Path | bytes]) -> npt.NDArray[np.uint8]:
        with reading(*item) as image:
            pixels = decode(image, form)
        return pixels if pixels.shape == form.shape else pad(pixels)

    files = listing.files()
    with refusing_bombs(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Not all at once: their encoded bytes would lie in memory.
        while some := list(itertools.islice(files, chunk_size(form.shape))):
            yield np.stack(list(pool.map(pixels_of, some)))


def pad(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pad images of 28 x 28, (..., 28, 28), to 32 x 32 with zeros; return others unchanged."""
    if pixels.shape[-2:] != (UNPADDED_SIDE, UNPADDED_SIDE):
        return pixels
    margin = (PADDED_SIDE - UNPADDED_SIDE) // 2
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + [(margin, margin)] * 2)


def decode_in_memory(listing: Listing, form: Form) -> Arrays:
    """Decode all images of the listing into one array."""
    images, done = np.empty((len(listing.labels), *form.shape), np.uint8), 0
    for some in decoded(listing, form):
        images[done : done + len(some)] = some
        done += len(some)
    return Arrays(images, listing.labels)


def conversion_folder(
    cache_dir: Path, fingerprint: str, image_size: int, bit_depth: int | str
) -> Path:
    """Return the folder of memory-mapped images, named by a hash of what decides them."""
    key = f"{FORMAT}/{fingerprint}/{image_size}/{bit_depth}"
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]


def open_cached(
    folder: Path, listings: dict[str, Listing]
) -> tuple[dict[str, Arrays], Form] | None:
    """Open the images of every split that an earlier conversion wrote.

    Returns:
        (split name -> memory-mapped images, their form); None if it is incomplete.
    """
    try:
        form = parse(Form, json.loads((folder / FORM).read_text()))
        images = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in listings}
    except (OSError, ValueError, Unreadable):
        return None
    if any(len(images[split]) != len(listing.labels) for split, listing in listings.items()):
        return None
    return {
        split: Arrays(images[split], listing.labels) for split, listing in listings.items()
    }, form


def convert(folder: Path, listings: dict[str, Listing], form: Form) -> dict[str, Arrays]:
    """Decode every listing into files in `folder`, and memory-map them.

    The folder is written whole or not at all.

    Args:
        folder: the folder of the arrays.
        listings: split name -> images before decoding.
        form: what all images become; kept beside the arrays.
    """
    count = sum(len(listing.labels) for listing in listings.values())
    require_room(folder.parent, count * math.prod(form.shape))
    building = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with cache_errors(folder.parent):
            building.mkdir(parents=True)
        for split, listing in listings.items():
            write_decoded(building / f"{split}.npy", listing, form)
        with cache_errors(folder.parent):
            (building / FORM).write_text(json.dumps(dump(form)))
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    opened = open_cached(folder, listings)
    if opened is None:
        raise InputError(
            f"cache folder {folder} cannot be read back; give another with --cache-dir"
        )
    return opened[0]


def write_decoded(path: Path, listing: Listing, form: Form) -> None:
    """Write the images of the listing as a NumPy file, from front to back.

    It writes a plain file because pages written through a memory map count as used memory.

    Args:
        path: the file, in a folder of the cache.
        listing: the images, not yet decoded.
        form: what all images become.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(listing.labels), *form.shape)}
    with ExitStack() as closing:
        with cache_errors(path.parent.parent):
            file = closing.enter_context(path.open("wb"))
            np.lib.format.write_array_header_1_0(file, header)
        for some in decoded(listing, form):
            with cache_errors(path.parent.parent):
                file.write(some.tobytes())
        with cache_errors(path.parent.parent):
            file.flush()
            # Or a loss of power could leave zeros behind a whole folder's name.
            os.fsync(file.fileno())


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    """Turn an OSError of the cache's files inside the block into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the cache folder {cache_dir}: {error}; give another with --cache-dir"
        ) from error


def require_room(cache_dir: Path, size: int) -> None:
    """Raise an InputError unless `size` bytes fit into `cache_dir`, before hours are spent."""
    with cache_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
    if free < size:
        raise InputError(
            f"cache folder {cache_dir} must have room for {size:,} bytes of memory-mapped images, "
            f"{free:,} are free; give another with --cache-dir"
        )


def cache_folder(given: str) -> Path:
    """Return the folder for memory-mapped data: the given one, or the user's cache folder."""
    return Path(given) if given else platformdirs.user_cache_path("potstill")


@contextmanager
def file_errors(path: Place) -> Iterator[None]:
    """Turn an OSError of a data file inside the block into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; put it back or make it readable"
        ) from error


def content_hash(files: Callable[[], Iterator[tuple[str, Place]]], cache_dir: Path) -> str:
    """Return a hash over the names and bytes of files, the same in any folder or archive.

    `files` gives (name, path) of each file, every time it is called.

    The hash is remembered by the files' sizes and times of change, so that a large data set is read
    for it only once.
    """
    stamps, total = hashlib.sha256(), hashlib.sha256()
    for name, path in files():
        with file_errors(path):
            stamps.update(json.dumps([name, *stamp(path)]).encode())
    memo = cache_dir / "hashes" / stamps.hexdigest()[:32]
    try:
        return memo.read_text()
    except OSError:
        pass
    for name, path in files():
        with file_errors(path), path.open("rb") as file:
            total.update(os.fsencode(f"{name}/{hashlib.file_digest(file, 'sha256').hexdigest()}\n"))
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(total.hexdigest())
        temporary.replace(memo)
    except OSError:
        pass  # a read-only home costs time, not the run
    return total.hexdigest()
