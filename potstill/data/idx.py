"""MNIST's file format, IDX: arrays of numbers behind a magic number and their sizes."""

import dataclasses
import gzip
import io
import math
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from potstill.config.sections import IDX_NAME, DataConfig
from potstill.data.archives import require_reasonable
from potstill.data.arrays import from_arrays
from potstill.data.assembly import existing
from potstill.data.layouts import listed, origin, split_of
from potstill.data.npz import with_validation
from potstill.data.places import Place, way
from potstill.data.splits import Dataset
from potstill.data.walking import LeftOut, every_file
from potstill.errors import InputError, first_line, let_memory_pass

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Code of a type in the magic number -> NumPy's name of it."""
MOST_DIMENSIONS = 4
T10K = "t10k"
"""MNIST's name of its test split."""


class Named(NamedTuple):
    """What the name of an IDX file says.

    Args:
        set: what the data set is called; "" for MNIST's own names.
        split: "train", "validation" or "test".
        part: "images" or "labels".
    """

    set: str
    split: str
    part: str


def named(file: Place) -> Named | None:
    """Return what a file's name says; None if it is no name of an IDX file."""
    found = IDX_NAME.fullmatch(file.name)
    if found is None:
        return None
    word = found["split"].lower()
    split = "test" if word == T10K else split_of(word)
    return Named(found["set"].rstrip("-_. "), split or "train", found["part"].lower())


def read_idx(path: str, config: DataConfig) -> Dataset:
    """Read a folder of IDX files, or the set that one of them belongs to."""
    given = existing(path, "idx")
    own = None if given.is_dir() else named(given)
    if own is None and not given.is_dir():
        raise InputError(
            f"{given} must be called as train-images-idx3-ubyte or t10k-labels-idx1-ubyte is "
            "(perhaps with .gz), so that its split is known; rename it, or give a folder of such "
            "files"
        )
    return read_set(given if own is None else given.parent, LeftOut(), own and own.set)


def read_set(folder: Place, left_out: LeftOut, wanted: str | None = None) -> Dataset:
    """Read the IDX files of a folder.

    Args:
        folder: on disk, or in an archive.
        left_out: counts other files.
        wanted: name of the set; None: there must be one only.
    Raises:
        InputError: several sets, a part that is missing, a broken file, counts that differ.
    """
    files = files_of_set(folder, left_out, wanted)
    splits: dict[str, dict[str, Place]] = {}
    for (_, split, part), file in files.items():
        splits.setdefault(split, {})[part] = file
    if "train" not in splits:
        raise InputError(
            f"{folder} must hold train-images-idx3-ubyte and train-labels-idx1-ubyte, found "
            f"{listed([file.name for file in files.values()]) or 'none'}; add what is missing"
        )
    arrays = {split: pair(folder, split, parts) for split, parts in splits.items()}
    shape = arrays["train"][0].shape[1:]
    for split, (images, _) in arrays.items():
        if images.shape[1:] != shape:
            raise InputError(
                f"images of {splits[split]['images']} must be {as_size(shape)} as those of "
                f"{splits['train']['images']}, they are {as_size(images.shape[1:])}"
            )
    return dataclasses.replace(
        dataset_of_arrays(arrays),
        origins=origins_of(folder, splits),
        left_out=left_out.words,
    )


def files_of_set(folder: Place, left_out: LeftOut, wanted: str | None) -> dict[Named, Place]:
    """Return the IDX files of one set, each part once.

    Of copies the one in fewer folders counts, then the one that is not packed. Of a set that a file
    names, the other files lie beside that one; what else lies there has nothing to do with it.
    """
    files = (
        every_file(folder, left_out)
        if wanted is None
        else (file for file in folder.iterdir() if named(file) and file.is_file())
    )
    found = [
        (len(way(file, folder).split("/")), file.name.lower().endswith(".gz"), str(file), file)
        for file in files
    ]
    known: dict[Named, Place] = {}
    for _, _, _, file in sorted(found, key=lambda one: one[:3]):
        name = named(file)
        if name is None:
            left_out.count("files of other names")
        elif wanted is not None and name.set != wanted:
            left_out.count("files of other sets")
        elif name in known:
            left_out.count("further copies")
        else:
            known[name] = file
    sets = sorted({name.set for name in known})
    if len(sets) > 1:
        raise InputError(
            f"{folder} must hold one set, it holds {listed(sets)}; give one of its files, as in "
            f"{next(iter(known.values())).name}"
        )
    return known


def pair(folder: Place, split: str, parts: dict[str, Place]) -> tuple[Any, Any]:
    """Return the images and labels of a split, as many of the one as of the other."""
    for part in ("images", "labels"):
        if part not in parts:
            other = next(iter(parts.values()))
            raise InputError(
                f"{folder} must hold the {part} of {split} beside {other.name}, found none; add "
                f"them, or remove {other.name}"
            )
    images, labels = (idx_array(parts[part]) for part in ("images", "labels"))
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{parts['labels']} must hold a whole number for each image, got shape "
            f"{labels.shape} of type {labels.dtype}; write the classes alone"
        )
    if images.ndim < 2:
        raise InputError(f"{parts['images']} must hold images, got shape {images.shape}")
    if len(images) != len(labels):
        raise InputError(
            f"{parts['images'].name} and {parts['labels'].name} must hold as many images as "
            f"labels, they hold {len(images):,} and {len(labels):,}; one of them is of other data"
        )
    if not len(images):
        raise InputError(f"{parts['images']} must hold images, it holds none")
    return images, labels


def idx_array(file: Place) -> npt.NDArray[Any]:
    """Return the array that an IDX file holds, packed by gzip or not.

    Raises:
        InputError: another magic number, or another length than the sizes in it tell.
    """
    try:
        with file.open("rb") as stored:
            size = stored.seek(0, io.SEEK_END)
            stored.seek(0)
            packed = stored.read(2) == b"\x1f\x8b"
            stored.seek(0)
            with closing(gzip.open(stored) if packed else stored) as stream:
                return array_in(stream, file, size, packed=packed)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # gzip raises errors of several kinds
        let_memory_pass(error)
        raise InputError(f"cannot read {file}: {first_line(error)}; get it anew") from error


def array_in(stream: Any, file: Place, stored: int, *, packed: bool) -> npt.NDArray[Any]:
    """Read the array in a stream, see `idx_array`.

    Args:
        stream: the content, unpacked.
        file: for messages.
        stored: bytes of the file.
        packed: whether it is packed by gzip.
    """
    magic = stream.read(4)
    dimensions = magic[3] if len(magic) == 4 else 0
    if magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= dimensions <= MOST_DIMENSIONS:
        raise InputError(
            f"{file} must begin with the magic number of an IDX file, as 00 00 08 03, it begins "
            f"with {magic.hex(' ') or 'nothing'}; it is another format, or damaged"
        )
    heading = stream.read(4 * dimensions)
    if len(heading) < 4 * dimensions:
        raise InputError(f"{file} must hold {dimensions} sizes, it ends before; get it anew")
    shape = tuple(map(int, np.frombuffer(heading, ">u4")))
    dtype = np.dtype(TYPES[magic[2]])
    length = math.prod(shape) * dtype.itemsize
    if packed:
        require_reasonable(file, length, stored)
    found = stored - 4 - len(heading)
    if packed or found == length:
        content = stream.read(length + 1)
        found = len(content)
    if found != length:
        more = "more" if found > length else f"{found:,}"
        raise InputError(
            f"{file} must hold {length:,} bytes for its sizes {as_size(shape)}, it holds {more}; "
            "it is damaged or cut short, get it anew"
        )
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def as_size(shape: tuple[int, ...]) -> str:
    """Write a shape as a size: 28 x 28."""
    return " x ".join(map(str, shape))


def dataset_of_arrays(arrays: dict[str, tuple[Any, Any]]) -> Dataset:
    """Make a data set of the splits that are there; without test, validation is the test split.

    Classes are the numbers that occur in train: EMNIST's letters begin with 1.

    Args:
        arrays: split -> (images, labels).
    """
    classes = np.unique(arrays["train"][1])
    for split, (_, labels) in arrays.items():
        strange = labels[~np.isin(labels, classes)]
        if len(strange):
            raise InputError(
                f"{split} labels must occur in train ({len(classes)} classes), got {strange[0]}; "
                "one of the files is of other data"
            )
    parts = {
        split: (images, np.searchsorted(classes, labels))
        for split, (images, labels) in arrays.items()
    }
    names = [str(number) for number in classes]
    tested = parts.get("test", parts.get("validation", (None, None)))
    whole = from_arrays(*parts["train"], tested[0], tested[1], class_names=names)
    both = {"test", "validation"} <= parts.keys()
    return with_validation(whole, *parts["validation"]) if both else whole


def origins_of(folder: Place, splits: dict[str, dict[str, Place]]) -> dict[str, str]:
    """Return split -> its file of images, where each split is used."""
    words = {split: origin(folder, way(parts["images"], folder)) for split, parts in splits.items()}
    if "validation" in words and "test" not in words:
        words["test"] = f"{words.pop('validation')}, there being no test split"
    return words
