"""Image folders as a data set, and the step from any listing of image files to arrays."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from potstill.config.sections import DataConfig
from potstill.data.decoding import (
    MAPPED_ABOVE_BYTES,
    Listing,
    cache_folder,
    content_hash,
    conversion_folder,
    convert,
    decode_in_memory,
    open_cached,
    scan,
)
from potstill.data.splits import Arrays, Dataset
from potstill.registry import InputError, near_miss

TINY_LIST = "val_annotations.txt"
CUB_FILES, CUB_SPLIT = "images.txt", "train_test_split.txt"
TEST_NAMES = ("test", "validation", "valid", "val")


def read_folder(path: str, config: DataConfig) -> Dataset:
    """Read class sub-folders of images, with or without train/ and test/ folders.

    The test folder may also be called validation/.

    Two well-known sets are read as they are distributed: Tiny-ImageNet, whose val/ lists its
    classes in a file, and CUB-200-2011, which lists its splits in a file.
    """
    root = existing(path, "folder")
    notes: list[str] = []
    if (root / CUB_SPLIT).is_file():
        (names, splits), lists = cub(root), [root / CUB_SPLIT]
    else:
        train = root / "train" if (root / "train").is_dir() else root
        names = sorted(
            entry.name
            for entry in train.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not names:
            raise InputError(
                f"folder {train} must hold one sub-folder of images for each class, found none"
            )
        roots, notes = split_folders(root, names) if train != root else ({"train": root}, [])
        splits = {
            split: [
                (label, file.relative_to(root).as_posix())
                for label, file in files_of(folder, names)
            ]
            for split, folder in roots.items()
        }
        lists = [folder / TINY_LIST for folder in roots.values() if not has_classes(folder, names)]
    listings = {}
    for split, files in splits.items():
        labels = np.array([label for label, _ in files], np.int64)
        listings[split] = Listing(labels, partial(named, root, files))

    def tracked() -> Iterator[tuple[str, Path]]:
        for files in splits.values():
            yield from ((file, root / file) for _, file in files)
        yield from ((path.relative_to(root).as_posix(), path) for path in lists)

    return assemble(
        listings,
        tuple(names),
        lambda: content_hash(tracked, cache_folder(config.cache_dir)),
        config,
        notes,
    )


def named(root: Path, files: list[tuple[int, str]]) -> Iterator[tuple[str, Path]]:
    """Yield (name for messages, path) of each file.

    A million files are held as texts, which take a fifth of the memory of paths.
    """
    yield from ((str(root / file), root / file) for _, file in files)


def existing(path: str, kind: str) -> Path:
    """Return `path` as a Path; raise an InputError if it does not exist."""
    given = Path(path).expanduser()
    if not given.exists():
        raise InputError(f"{kind} {path} does not exist; give the path with --data {kind}:PATH")
    if kind == "folder" and not given.is_dir():
        raise InputError(f"{kind} {path} is a file; give the folder that holds the class folders")
    return given


def split_folders(root: Path, names: list[str]) -> tuple[dict[str, Path], list[str]]:
    """Return split name -> folder, and notes on folders that are not used.

    The test split is the first of test/, validation/, ... that holds its images.
    """
    notes: list[str] = []
    for name in TEST_NAMES:
        folder = root / name
        if has_classes(folder, names) or (folder / TINY_LIST).is_file():
            return {"train": root / "train", "test": folder}, notes
        if folder.is_dir():
            notes.append(f"{folder} holds none of the class folders of train/ and is not used")
    return {"train": root / "train"}, notes


def has_classes(folder: Path, names: list[str]) -> bool:
    """Return whether a folder holds class folders."""
    return any((folder / name).is_dir() for name in names)


def files_of(folder: Path, names: list[str]) -> Iterator[tuple[int, Path]]:
    """Return (class, file) of every image of a split.

    A list in the folder counts only if the images were not sorted into class folders.
    """
    return (
        class_files(folder, names) if has_classes(folder, names) else tiny_validation(folder, names)
    )


def tiny_validation(folder: Path, names: list[str]) -> Iterator[tuple[int, Path]]:
    """Yield (class, file) of Tiny-ImageNet's validation images.

    The list holds name, class and box, between tabs.
    """
    index_of, entries = {name: index for index, name in enumerate(names)}, []
    for line_name, line in lines(folder / TINY_LIST):
        file, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in index_of or "/" in file or not inside(file):
            raise InputError(
                f"{line_name} must hold a file and a class of train/ between tabs, found {line!r}; "
                "correct it"
            )
        entries.append((index_of[label], folder / "images" / file))
    yield from sorted(entries)


def cub(root: Path) -> tuple[list[str], dict[str, list[tuple[int, str]]]]:
    """Return class names, and (class, file) of train and test, as CUB-200-2011 lists them.

    Each line of its lists has the number of an image, then its file, as in class/image.jpg, or
    whether it is a training image.
    """
    files = numbered(
        root / CUB_FILES,
        lambda word: word.count("/") == 1 and inside(word),
        "a file, as in class/image.jpg",
    )
    training = numbered(root / CUB_SPLIT, lambda word: word in ("0", "1"), "0 or 1")
    if files.keys() != training.keys():
        raise InputError(
            f"{root / CUB_FILES} and {root / CUB_SPLIT} must list the same images, found "
            f"{len(files)} and {len(training)}"
        )
    names = sorted({file.partition("/")[0] for file in files.values()})
    index_of = {name: index for index, name in enumerate(names)}
    splits: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    for file, number in sorted((file, number) for number, file in files.items()):
        entry = index_of[file.partition("/")[0]], f"images/{file}"
        splits["train" if training[number] == "1" else "test"].append(entry)
    if not all(splits.values()):
        raise InputError(
            f"{root / CUB_SPLIT} must hold training images (1) and test images (0), found one kind "
            "only"
        )
    return names, splits


def numbered(path: Path, fits: Callable[[str], bool], what: str) -> dict[str, str]:
    """Read a list of (number of an image, word) into a dictionary.

    Args:
        path: the list.
        fits: whether a word has the expected form.
        what: the expected form, for the message.
    """
    entries: dict[str, str] = {}
    for line_name, line in lines(path):
        number, *rest = line.split(maxsplit=1)
        if not rest or number in entries or not fits(rest[0]):
            raise InputError(
                f"{line_name} must hold another number than before and {what}, found {line!r}; "
                "correct it"
            )
        entries[number] = rest[0]
    return entries


def inside(name: str) -> bool:
    """Return whether a relative path from a list stays in the folder."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (position for messages, line) of each line that is not empty; at least one must be."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not text.strip():
        raise InputError(f"{path} must list images, it is empty; put it back as it was distributed")
    for number, line in enumerate(text.splitlines()):
        if line.strip():
            yield f"line {number + 1} of {path}", line.strip()


def class_files(folder: Path, names: list[str]) -> Iterator[tuple[int, Path]]:
    """Yield (class, file) of every image, classes and files in the order of their names."""
    inside = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    strangers = [name for name in inside if name not in names]
    if strangers:
        raise InputError(
            f"class folder {folder / strangers[0]} has no counterpart in "
            f"train/{near_miss(strangers[0], names)}; both splits need the same class folders"
        )
    known = {
        extension for extension, form in Image.registered_extensions().items() if form in Image.OPEN
    }
    for label, name in enumerate(names):
        entries = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
        files = [
            file
            for file in entries
            if file.suffix.lower() in known and file.is_file() and not hidden(file, folder)
        ]
        if not files:
            raise InputError(
                f"class folder {folder / name} holds no images; add some or remove the class"
            )
        yield from ((label, file) for file in files)


def hidden(file: Path, folder: Path) -> bool:
    """Return whether the file, or a folder between it and `folder`, starts with a dot."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def assemble(
    listings: dict[str, Listing],
    names: tuple[str, ...],
    fingerprint: Callable[[], str],
    config: DataConfig,
    notes: Sequence[str] = (),
) -> Dataset:
    """Decode listings into memory or into the mapped cache.

    `config.storage` decides; "auto" decides by size.

    Args:
        listings: split name -> images before decoding; "train" is there.
        names: name of each class.
        fingerprint: computes a hash of the content.
        config: storage, cache folder and image size.
        notes: sentences that a user should see.
    """
    content = fingerprint()
    count = sum(len(listing.labels) for listing in listings.values())
    folder = conversion_folder(cache_folder(config.cache_dir), content, config.image_size)

    def is_mapped(shape: tuple[int, ...]) -> bool:
        large = 4 * count * math.prod(shape) > MAPPED_ABOVE_BYTES
        return config.storage == "mapped" or (config.storage == "auto" and large)

    def dataset(arrays: dict[str, Arrays], seen: list[str], *, mapped: bool) -> Dataset:
        return Dataset(
            arrays["train"], arrays.get("test"), names, content, (*notes, *seen), mapped=mapped
        )

    known = open_cached(folder, listings)
    # The headers of a million files need not be read again.
    if known and is_mapped(known[0]["train"].images.shape[1:]):
        return dataset(*known, mapped=True)
    shape, seen = scan(list(listings.values()), config.image_size)
    if is_mapped(shape):
        return dataset(convert(folder, listings, config.image_size, shape, seen), seen, mapped=True)
    return dataset(
        {name: decode_in_memory(one, shape, config.image_size) for name, one in listings.items()},
        seen,
        mapped=False,
    )
