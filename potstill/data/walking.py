"""Walk through folders of image files, and count what is left out."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from potstill.data.places import Member, Place

MADE_BY_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that systems leave in archives and on disks; they hold no data."""
CAN_BE_ADDED = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
}
"""File extension -> package that lets Pillow read such images."""
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Modules that add image formats to Pillow, if they are installed -> what registers them."""
MOST_TOLD = 6


@dataclass
class LeftOut:
    """What a source found and does not use.

    Args:
        counts: what, in words -> how many.
        things: folders and files that are told by name.
    """

    counts: Counter[str] = field(default_factory=Counter)
    things: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """Count something that is not used."""
        if number:
            self.counts[what] += number

    def tell(self, thing: str) -> None:
        """Name something that is not used."""
        self.things.append(thing)

    @property
    def words(self) -> tuple[str, ...]:
        """Phrases, the most frequent first."""
        counted = [f"{number:,} {what}" for what, number in self.counts.most_common()]
        told = [*self.things, *counted]
        more = len(told) - MOST_TOLD
        return (*told[:MOST_TOLD], *([f"{more} more kinds of files"] if more > 0 else []))


@cache
def extensions() -> frozenset[str]:
    """Return the file extensions that Pillow reads, those of installed plugins among them."""
    for module, function in PLUGINS.items():
        try:
            plugin = import_module(module)
        except ImportError:
            continue
        if function:
            getattr(plugin, function)()
    known = Image.registered_extensions().items()
    return frozenset(extension for extension, form in known if form in Image.OPEN)


def hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems make."""
    return name.startswith(".") or name in MADE_BY_SYSTEMS


def subfolders(folder: Place) -> list[str]:
    """List the folders in a folder, linked ones too, by name; hidden ones are left out."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not hidden(entry.name)
    )


def image_files(folder: Place, left_out: LeftOut) -> list[Place]:
    """List the image files in a folder and the folders in it, in the order of their names.

    Linked folders are entered, once each on a way down. A file without an extension is an image if
    its first bytes say so. Hidden files are no data and are not counted.

    Args:
        folder: where to look.
        left_out: counts what is no image that can be read.
    """
    return sorted(file for file in every_file(folder, left_out) if is_image(file, left_out))


def every_file(folder: Place, left_out: LeftOut) -> Iterator[Place]:
    """Yield the files in a folder and the folders in it; those that are hidden are left out."""
    if isinstance(folder, Member):
        above = len(folder.parts)
        for file in folder.walk_files():
            if not any(map(hidden, file.parts[above:])):
                yield file
    else:
        yield from files_on_disk(folder, left_out)


def files_on_disk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the files in a folder on disk and the folders in it, see `every_file`."""
    waiting = [(folder, frozenset([identity(folder)]))]
    while waiting:
        here, above = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                path = here / entry.name
                if entry.is_dir():
                    own = identity(path)
                    if own in above:
                        left_out.count("linked folders that lead back to where they lie")
                    else:
                        waiting.append((path, above | {own}))
                elif entry.is_file():
                    yield path
                else:
                    left_out.count("broken links" if entry.is_symlink() else "special files")


def identity(folder: Path) -> tuple[int, int]:
    """Return numbers that tell a folder from every other one, whatever links lead to it."""
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def is_image(file: Place, left_out: LeftOut) -> bool:
    """Return whether a file is an image that can be read, by its extension; count it if not."""
    extension = file.suffix.lower()
    if extension in extensions():
        return True
    if not extension:
        if has_image_header(file):
            return True
        left_out.count("files without an extension that hold no image")
        return False
    package = CAN_BE_ADDED.get(extension)
    way = f" files (pip install {package} to read them)" if package else " files"
    left_out.count(f"{file.suffix}{way}")
    return False


def has_image_header(file: Place) -> bool:
    """Return whether a file begins as an image does."""
    try:
        with file.open("rb") as stream, Image.open(stream):
            return True
    except Exception:  # no closed list: see decoding.reading
        return False
