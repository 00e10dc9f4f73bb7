"""Image folders as a data set, on disk or in an archive."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from potstill.config.sections import DataConfig, is_archive
from potstill.data.archives import opened
from potstill.data.assembly import Sources, assemble, existing
from potstill.data.decoding import Listing, cache_folder, content_hash
from potstill.data.layouts import inside, listed, origin, split_folders, unwrapped
from potstill.data.metadata_files import METADATA, metadata_of, read_described
from potstill.data.places import Place, content, way
from potstill.data.splits import Dataset
from potstill.data.walking import LeftOut, image_files, is_image, subfolders
from potstill.errors import InputError

TINY_LIST = "val_annotations.txt"
CUB_FILES, CUB_SPLIT = "images.txt", "train_test_split.txt"


def read_folder(path: str, config: DataConfig) -> Dataset:
    """Read class folders of images, in folders of the splits or not, or in an archive.

    Labels may be in a metadata.csv or metadata.jsonl instead, as in Hugging Face's image folders.
    Two well-known sets are read as they are distributed: Tiny-ImageNet, whose val/ lists its
    classes in a file, and CUB-200-2011, which lists its splits in a file.
    """
    given, left_out = existing(path, "folder"), LeftOut()
    if given.is_dir():
        return read_layout(given, config, left_out)
    if not is_archive(given.name):
        raise InputError(f"folder {path} is a file; give the folder that holds the class folders")
    return read_layout(opened(given, left_out), config, left_out)


def read_layout(place: Place, config: DataConfig, left_out: LeftOut) -> Dataset:
    """Read the images of a folder, see `read_folder`.

    Args:
        place: the folder, or a whole archive.
        config: options of the data.
        left_out: what is known already not to be used; it is added to.
    """
    root = unwrapped(place, (CUB_SPLIT, *METADATA))
    described = metadata_of(root, config, left_out)
    if described:
        return read_described(root, described, config, left_out)
    if config.label_column != "auto":
        raise InputError(
            f"label_column has no effect with class folders, {root} has no metadata.csv with "
            "file_name and labels; leave --label-column out"
        )
    layout = listed_by_cub(root) if (root / CUB_SPLIT).is_file() else by_folders(root, left_out)
    listings = {}
    for split, files in layout.splits.items():
        labels = np.array([label for label, _ in files], np.int64)
        listings[split] = Listing(labels, partial(named, root, files))

    def tracked() -> Iterator[tuple[str, Place]]:
        for files in layout.splits.values():
            yield from ((file, root / file) for _, file in files)
        yield from ((way(path, root), path) for path in layout.lists)

    origins = {split: origin(root, words) for split, words in layout.origins.items()}
    return assemble(
        Sources(listings, tuple(map(readable, layout.names)), origins, left_out.words),
        lambda: content_hash(tracked, cache_folder(config.cache_dir)),
        config,
    )


@dataclass(frozen=True)
class Layout:
    """How a folder sorts its images.

    Args:
        names: name of each class.
        splits: split -> (class, way to the file) of each image.
        origins: split -> where it comes from, in words; empty: it is all that there is.
        lists: files that say which image is where.
    """

    names: list[str]
    splits: dict[str, list[tuple[int, str]]]
    origins: dict[str, str]
    lists: tuple[Place, ...] = ()


def by_folders(root: Place, left_out: LeftOut) -> Layout:
    """Return the layout of class folders, in folders of the splits or not."""
    folders = class_folders(root, left_out)
    names = subfolders(folders["train"])
    splits = {
        split: [(label, way(file, root)) for label, file in files_of(folder, names, left_out)]
        for split, folder in folders.items()
    }
    lists = [folder / TINY_LIST for folder in folders.values() if not has_classes(folder, names)]
    whole = folders == {"train": root}
    origins = {split: "" if whole else f"{folder.name}/" for split, folder in folders.items()}
    return Layout(names, splits, origins, tuple(lists))


def listed_by_cub(root: Place) -> Layout:
    """Return the layout that the lists of CUB-200-2011 tell."""
    names, splits = cub(root)
    return Layout(names, splits, dict.fromkeys(splits, CUB_SPLIT), (root / CUB_SPLIT,))


def class_folders(root: Place, left_out: LeftOut) -> dict[str, Place]:
    """Return split -> the folder that holds its class folders; one named train if there are none.

    Raises:
        InputError: no class folder, or two folders of one split.
    """
    known = split_folders(root)
    train = one_of("train", known["train"], root) if known else root
    names = subfolders(train)
    if not names:
        raise InputError(
            f"folder {train} must hold one sub-folder of images for each class, found none"
        )
    loose = sum(is_image(file, LeftOut()) for file in train.iterdir() if file.is_file())
    if loose:
        left_out.count(f"images that lie in no class folder of {train.name}/", loose)
    if not known:
        return {"train": root}
    splits = {"train": train}
    for split in ("validation", "test"):
        folders = known.get(split, [])
        holding = [folder for folder in folders if holds_split(folder, names)]
        if holding:
            splits[split] = one_of(split, holding, root)
        for folder in folders:
            if folder not in holding:
                left_out.tell(f"folder {folder.name}/, which holds no class folder of train")
    for name in subfolders(root):
        if not any(root / name in folders for folders in known.values()):
            left_out.tell(f"folder {name}/, which is no split")
    return splits


def one_of(split: str, folders: list[Place], root: Place) -> Place:
    """Return the only folder of a split; raise an InputError if there are several."""
    if len(folders) > 1:
        names = " and ".join(one.name for one in folders)
        raise InputError(
            f"{root} must hold one {split} split, it has {names}; remove or rename one"
        )
    return folders[0]


def holds_split(folder: Place, names: list[str]) -> bool:
    """Return whether a folder holds images whose classes are known."""
    return has_classes(folder, names) or (folder / TINY_LIST).is_file()


def named(root: Place, files: list[tuple[int, str]]) -> Iterator[tuple[str, Path | bytes]]:
    """Yield (name for messages, path, or bytes from an archive) of each file.

    A million files are held as texts, which take a fifth of the memory of paths.
    """
    yield from ((str(root / file), content(root / file)) for _, file in files)


def has_classes(folder: Place, names: list[str]) -> bool:
    """Return whether a folder holds class folders."""
    return any((folder / name).is_dir() for name in names)


def files_of(folder: Place, names: list[str], left_out: LeftOut) -> Iterator[tuple[int, Place]]:
    """Return (class, file) of every image of a split.

    A list in the folder counts only if the images were not sorted into class folders.
    """
    if has_classes(folder, names):
        return class_files(folder, names, left_out)
    return tiny_validation(folder, names)


def tiny_validation(folder: Place, names: list[str]) -> Iterator[tuple[int, Place]]:
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


def cub(root: Place) -> tuple[list[str], dict[str, list[tuple[int, str]]]]:
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


def numbered(path: Place, fits: Callable[[str], bool], what: str) -> dict[str, str]:
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


def lines(path: Place) -> Iterator[tuple[str, str]]:
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


def class_files(folder: Place, names: list[str], left_out: LeftOut) -> Iterator[tuple[int, Place]]:
    """Yield (class, file) of every image, classes and files in the order of their names."""
    strangers = [name for name in subfolders(folder) if name not in names]
    if strangers:
        raise InputError(
            f"class folder {folder / strangers[0]} has no counterpart in train, which has "
            f"{listed(names)}; both splits need the same class folders"
        )
    for label, name in enumerate(names):
        here = LeftOut()
        files = image_files(folder / name, here) if (folder / name).is_dir() else []
        if not files:
            held = f", only {', '.join(here.words)}" if here.words else ""
            raise InputError(
                f"class folder {folder / name} holds no images{held}; add some or remove the class"
            )
        left_out.counts.update(here.counts)
        yield from ((label, file) for file in files)


def readable(name: str) -> str:
    """Return the name of a folder as a text that can be written.

    Names from old archives are no UTF-8: they are read as Western European.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("cp1252", "replace")
    return name
