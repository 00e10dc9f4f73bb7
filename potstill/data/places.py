"""Places of data: folders and files on disk, or in an archive, which is never unpacked."""

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias


@dataclass(frozen=True)
class Stored:
    """A file in an archive.

    Args:
        size: in bytes, as the archive declares it.
        read: returns its content.
    """

    size: int
    read: Callable[[], bytes]


class Tree:
    """The files of an archive, and the folders that they lie in.

    Args:
        path: of the archive.
        files: name within the archive, as in "photos/cat/1.png" -> file. (A folder may have the
            name of a file: that file is no part of the tree.)
        folders: names of folders, which may be empty.
    """

    def __init__(self, path: Path, files: Mapping[str, Stored], folders: Iterable[str] = ()):
        self.path = path
        self.folders: dict[str, set[str]] = {"": set()}
        for name in (*files, *folders):
            inner = name
            while inner:
                above, _, last = inner.rpartition("/")
                known = above in self.folders
                self.folders.setdefault(above, set()).add(last)
                inner = "" if known else above
        for name in folders:
            self.folders.setdefault(name, set())
        self.files = {name: file for name, file in files.items() if name not in self.folders}


@dataclass(frozen=True, order=True)
class Member:
    """A folder or file in an archive, with the methods of `pathlib.Path` that data are read by.

    Members sort as paths do.

    Args:
        parts: names of the folders above it and its own; () is the whole archive.
        tree: the archive.
    """

    parts: tuple[str, ...]
    tree: Tree = field(compare=False, repr=False)

    @property
    def inner(self) -> str:
        """Its name within the archive."""
        return "/".join(self.parts)

    @property
    def name(self) -> str:
        """Its last name; the archive's, if it is the whole."""
        return self.parts[-1] if self.parts else self.tree.path.name

    @property
    def suffix(self) -> str:
        """The extension of its name."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Member":
        """The folder that it lies in."""
        return Member(self.parts[:-1], self.tree)

    @property
    def top(self) -> Path:
        """The archive on disk."""
        return self.tree.path

    def __truediv__(self, name: str) -> "Member":
        return Member((*self.parts, *name.split("/")), self.tree)

    def __str__(self) -> str:
        return "/".join((str(self.tree.path), *self.parts))

    def relative_to(self, other: "Member") -> PurePosixPath:
        """Return the way to it from a folder that it lies in."""
        return PurePosixPath(self.inner).relative_to(other.inner)

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.inner in self.tree.folders

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.inner in self.tree.files

    def iterdir(self) -> Iterator["Member"]:
        """Yield what lies in the folder."""
        return (self / name for name in self.tree.folders[self.inner])

    def walk_files(self) -> Iterator["Member"]:
        """Yield every file in the folder and the folders in it."""
        for one in self.iterdir():
            if one.is_dir():
                yield from one.walk_files()
            else:
                yield one

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        if not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return self.tree.files[self.inner].read()

    def read_text(self, encoding: str) -> str:
        """Return the content of the file as a text, with "\\n" at the end of lines."""
        return io.TextIOWrapper(self.open("rb"), encoding).read()

    def open(self, mode: str) -> io.BytesIO:
        """Open the file; `mode` must be "rb"."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())


Place: TypeAlias = Path | Member


def way(place: Place, root: Place) -> str:
    """Return the way from a folder to what lies in it, with "/" between names."""
    # Both are on disk or both in an archive, which types do not tell.
    return place.relative_to(root).as_posix()  # type: ignore[arg-type]


def stamp(place: Place) -> tuple[int, ...]:
    """Return numbers that change whenever the content of a file, or of its archive, does.

    The time of the last status change cannot be set back by hand.
    """
    if isinstance(place, Member) and not place.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    known = (place.top if isinstance(place, Member) else place).stat()
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino, known.st_dev


def content(place: Place) -> Path | bytes:
    """Return what an image is decoded from: its file, or its bytes if it lies in an archive."""
    return place.read_bytes() if isinstance(place, Member) else place
