"""Archives, zip and tar, as places of data: they are listed and read, and never unpacked to disk.

A name in an archive never names a file on disk, so that no name can lead anywhere. What cannot be
meant well is left out or refused all the same, with a word.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from potstill.data.places import Member, Place, Stored, Tree
from potstill.data.walking import LeftOut
from potstill.errors import InputError, first_line, let_memory_pass

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
"""First bytes of a compressed file -> what opens it."""
ZIPPED = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
"""First bytes of a zip."""
REASONABLE_BYTES, REASONABLE_RATIO = 10**9, 100
"""So much may be in any file; more only if it is compressed to a hundredth at most."""
IN_MEMORY = 4 * 10**9
"""Bytes of files that a compressed tar may hold: it has no order to read from but its own."""
AT_ONCE, HEADER_AT_ONCE = 2**30, 2**24
"""Bytes of a file, and of a header with its names, that are read at a time."""
DEEPEST = 64
"""Folders above a file."""
BLOCK = 512
"""Bytes of a block of a tar file, one of zeros ends it."""


def opened(path: Path, left_out: LeftOut) -> Member:
    """Return the whole of an archive.

    Args:
        path: the archive: a zip, or a tar that may be compressed.
        left_out: counts what is not read: links, special files, names that lead out of it.
    Raises:
        InputError: it is damaged, cut short or encrypted, or declares sizes beyond reason.
    """
    with archive_errors(path):
        with path.open("rb") as file:
            first = file.read(4)
        listed = zip_files if first in ZIPPED else tar_files
        files, folders = listed(path, left_out)
    if not files:
        raise InputError(f"archive {path} must hold files, found none; check what was packed")
    tree = Tree(path, files, folders)
    left_out.count("files that have the name of a folder", len(files) - len(tree.files))
    return Member((), tree)


@contextmanager
def archive_errors(path: Path, name: str = "") -> Iterator[None]:
    """Turn any error with an archive, or with a file in it, into an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged one makes the libraries raise anything: no closed list
        let_memory_pass(error)
        inner = f"/{name}" if name else ""
        raise InputError(
            f"cannot read {path}{inner}: {first_line(error)}; it must be a whole zip or tar: "
            "download or pack it again"
        ) from error


def require_reasonable(path: Place, declared: int, stored: int) -> None:
    """Raise an InputError if a file declares that it holds absurdly more than it takes on disk.

    Args:
        path: the file.
        declared: bytes that it says it holds.
        stored: bytes that it takes.
    """
    if declared > max(REASONABLE_BYTES, REASONABLE_RATIO * stored):
        raise InputError(
            f"{path} must hold at most {REASONABLE_RATIO} times its own {stored:,} bytes, it "
            f"declares {declared:,}; if you trust it, unpack it and give the folder"
        )


def safe_name(name: str, left_out: LeftOut) -> str | None:
    """Return the name of a file in an archive, cleaned; None, counted, if it leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or re.match("[A-Za-z]:/", name) or ".." in parts or "\0" in name:
        left_out.count("files whose names lead out of the archive")
        return None
    if len(parts) > DEEPEST:
        left_out.count(f"files in more than {DEEPEST} folders one in another")
        return None
    return "/".join(parts) or None


def zip_files(path: Path, left_out: LeftOut) -> tuple[dict[str, Stored], list[str]]:
    """Return the files of a zip by name, and its folders."""
    archive = zipfile.ZipFile(path)  # stays open: the files are read from it
    files: dict[str, Stored] = {}
    folders: list[str] = []
    declared = sum(info.file_size for info in archive.infolist())
    require_reasonable(path, declared, path.stat().st_size)
    for info in archive.infolist():
        name = safe_name(name_in_zip(info), left_out)
        if name is None:
            continue
        if info.is_dir():
            folders.append(name)
        elif stat.S_ISLNK(info.external_attr >> 16):
            left_out.count("links in the archive, which are not followed")
        elif info.flag_bits & 1:
            raise InputError(
                f"{path} must not be encrypted, {name} in it is; unpack it and give the folder"
            )
        else:
            files[name] = Stored(info.file_size, partial(read_from_zip, archive, info, path))
    return files, folders


def name_in_zip(info: zipfile.ZipInfo) -> str:
    """Return the name of a file in a zip.

    Old writers do not say that names are UTF-8 where they are, and part folders by backslashes.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def read_from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    """Return the content of a file in a zip."""
    with archive_errors(path, info.filename):
        require_small(path, info.filename, info.file_size)
        return archive.read(info)


def require_small(path: Path, name: str, size: int, most: int = AT_ONCE) -> None:
    """Raise an InputError if a file in an archive is too large to be read at once."""
    if not 0 <= size <= most:
        raise InputError(
            f"{path}/{name} must take at most {most:,} bytes, it declares {size:,}; repair or "
            "remove it"
        )


class Bounded:
    """A stream that refuses to read absurdly much at a time, as headers of a tar can ask for.

    Args:
        stream: what is read.
        path: its file, for the message.
    """

    def __init__(self, stream: IO[bytes], path: Path):
        self.stream, self.path = stream, path

    def read(self, size: int = -1) -> bytes:
        require_small(self.path, "a header", size, HEADER_AT_ONCE)
        return self.stream.read(size)

    def seek(self, offset: int) -> int:
        return self.stream.seek(offset)

    def tell(self) -> int:
        return self.stream.tell()


def tar_files(path: Path, left_out: LeftOut) -> tuple[dict[str, Stored], list[str]]:
    """Return the files of a tar by name, and its folders.

    Those of a compressed one are read at once, because it can be read in its own order only.
    """
    with path.open("rb") as file:
        first = file.read(6)
    opener = next((one for magic, one in COMPRESSED.items() if first.startswith(magic)), None)
    stored = path.stat().st_size
    files: dict[str, Stored] = {}
    folders: list[str] = []
    with opener(path) if opener else path.open("rb") as stream:
        bounded: Any = Bounded(stream, path)
        archive = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115 stream is closed
        for member in archive:
            # The offset is where the next one begins: so much is unpacked to come there.
            require_forward(path, member, archive.offset)
            if opener:
                require_reasonable(path, archive.offset, stored)
                require_room_in_memory(path, archive.offset)
            name = safe_name(member.name, left_out)
            if name is None:
                continue
            if member.isdir():
                folders.append(name)
            elif member.issym() or member.islnk():
                left_out.count("links in the archive, which are not followed")
            elif not member.isreg() or member.issparse():
                left_out.count("special files")
            elif opener:
                files[name] = held(stream, path, member)
            else:
                files[name] = Stored(member.size, partial(read_from_tar, path, member))
        require_end(bounded, archive.offset, path, left_out)
    return files, folders


def require_forward(path: Path, member: tarfile.TarInfo, end: int) -> None:
    """Raise an InputError if a file of a tar ends before it begins, which the library goes round.

    Args:
        path: the tar.
        member: the file.
        end: where it ends in the tar.
    """
    if member.size < 0 or end < member.offset_data:
        raise InputError(
            f"{path} must hold all of {member.name}, {member.size:,} bytes, it is damaged; "
            "download or pack it again"
        )


def require_room_in_memory(path: Path, declared: int) -> None:
    """Raise an InputError if a compressed tar holds more than is kept in memory."""
    if declared > IN_MEMORY:
        raise InputError(
            f"{path} must hold at most {IN_MEMORY:,} bytes, as a compressed tar is read into "
            f"memory, it declares {declared:,} and more; unpack it, or pack it as .zip or .tar"
        )


def held(stream: Any, path: Path, member: tarfile.TarInfo) -> Stored:
    """Read a file of a compressed tar, which is kept in memory."""
    require_small(path, member.name, member.size)
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    require_length(path, member, content)
    return Stored(member.size, lambda: content)


def read_from_tar(path: Path, member: tarfile.TarInfo) -> bytes:
    """Return the content of a file in a tar that is not compressed."""
    with archive_errors(path, member.name):
        require_small(path, member.name, member.size)
        with path.open("rb") as file:
            file.seek(member.offset_data)
            content = file.read(member.size)
        require_length(path, member, content)
        return content


def require_length(path: Path, member: tarfile.TarInfo, content: bytes) -> None:
    """Raise an InputError if a file of a tar is shorter than it says."""
    if len(content) < member.size:
        raise EOFError(f"{path} ends within {member.name}")


def require_end(stream: Any, offset: int, path: Path, left_out: LeftOut) -> None:
    """Raise an InputError unless a tar ends as one does, with blocks of zeros.

    The library takes one that was cut short, or is damaged, for one that ends there.

    Args:
        stream: the tar, not compressed.
        offset: where its last file ends.
        path: of the tar.
        left_out: told of what follows the end, which other tools do not read either.
    """
    stream.seek(offset)
    end = stream.read(BLOCK)
    if len(end) < BLOCK or any(end):
        raise InputError(
            f"{path} must end with blocks of zeros, as a tar does, it is damaged or cut short at "
            f"byte {offset:,}; download or pack it again"
        )
    if any(stream.read(2**20)):
        left_out.tell("what follows the end of the archive, as if two were one file")
