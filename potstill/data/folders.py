"""Image folders as a data set, and the step from any listing of image files to arrays."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from potstill.config.sections import DataConfig
from potstill.data.decoding import (
    MAPPED_ABOVE_BYTES,
    Form,
    Listing,
    cache_folder,
    content_hash,
    conversion_folder,
    convert,
    decode_in_memory,
    open_cached,
    scan,
)
from potstill.data.layouts import by_use, listed, split_folders, unwrapped
from potstill.data.splits import Arrays, Dataset
from potstill.data.walking import LeftOut, image_files, is_image, subfolders
from potstill.registry import InputError

TINY_LIST = "val_annotations.txt"
CUB_FILES, CUB_SPLIT = "images.txt", "train_test_split.txt"


def read_folder(path: str, config: DataConfig) -> Dataset:
    """Read class folders of images, in folders of the splits or not.

    Two well-known sets are read as they are distributed: Tiny-ImageNet, whose val/ lists its
    classes in a file, and CUB-200-2011, which lists its splits in a file.
    """
    root, left_out = unwrapped(existing(path, "folder"), CUB_SPLIT), LeftOut()
    lists: list[Path] = []
    if (root / CUB_SPLIT).is_file():
        names, splits = cub(root)
        lists, origins = [root / CUB_SPLIT], dict.fromkeys(splits, CUB_SPLIT)
    else:
        folders = class_folders(root, left_out)
        names = subfolders(folders["train"])
        splits = {
            split: [
                (label, file.relative_to(root).as_posix())
                for label, file in files_of(folder, names, left_out)
            ]
            for split, folder in folders.items()
        }
        lists = [
            folder / TINY_LIST for folder in folders.values() if not has_classes(folder, names)
        ]
        origins = {split: f"{folder.name}/" for split, folder in folders.items()}
        if folders == {"train": root}:
            origins = {"train": ""}
    listings = {}
    for split, files in splits.items():
        labels = np.array([label for label, _ in files], np.int64)
        listings[split] = Listing(labels, partial(named, root, files))

    def tracked() -> Iterator[tuple[str, Path]]:
        for files in splits.values():
            yield from ((file, root / file) for _, file in files)
        yield from ((path.relative_to(root).as_posix(), path) for path in lists)

    return assemble(
        Sources(listings, tuple(map(readable, names)), origins, left_out.words),
        lambda: content_hash(tracked, cache_folder(config.cache_dir)),
        config,
    )


def class_folders(root: Path, left_out: LeftOut) -> dict[str, Path]:
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


def one_of(split: str, folders: list[Path], root: Path) -> Path:
    """Return the only folder of a split; raise an InputError if there are several."""
    if len(folders) > 1:
        names = " and ".join(one.name for one in folders)
        raise InputError(
            f"{root} must hold one {split} split, it has {names}; remove or rename one"
        )
    return folders[0]


def holds_split(folder: Path, names: list[str]) -> bool:
    """Return whether a folder holds images whose classes are known."""
    return has_classes(folder, names) or (folder / TINY_LIST).is_file()


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
    try:
        str(given.resolve()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the path {path!a} must be of letters that can be written in UTF-8; rename the folder"
        ) from error
    if kind == "folder" and not given.is_dir():
        raise InputError(f"{kind} {path} is a file; give the folder that holds the class folders")
    return given


def has_classes(folder: Path, names: list[str]) -> bool:
    """Return whether a folder holds class folders."""
    return any((folder / name).is_dir() for name in names)


def files_of(folder: Path, names: list[str], left_out: LeftOut) -> Iterator[tuple[int, Path]]:
    """Return (class, file) of every image of a split.

    A list in the folder counts only if the images were not sorted into class folders.
    """
    if has_classes(folder, names):
        return class_files(folder, names, left_out)
    return tiny_validation(folder, names)


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


def class_files(folder: Path, names: list[str], left_out: LeftOut) -> Iterator[tuple[int, Path]]:
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


@dataclass(frozen=True)
class Sources:
    """What a source found, before decoding.

    Args:
        listings: split -> its images; "train" is there.
        names: name of each class.
        origins: split -> where it comes from, in words; empty: it is all that there is.
        left_out: what is not used, in phrases.
    """

    listings: dict[str, Listing]
    names: tuple[str, ...]
    origins: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def used(self) -> "Sources":
        """Return the splits by their use: see `by_use`."""
        uses = by_use(self.origins)
        listings = {use: self.listings[split] for use, (split, _) in uses.items()}
        return replace(self, listings=listings, origins={use: at for use, (_, at) in uses.items()})


def assemble(sources: Sources, fingerprint: Callable[[], str], config: DataConfig) -> Dataset:
    """Decode listings into memory or into the mapped cache.

    `config.storage` decides; "auto" decides by size.

    Args:
        sources: the images before decoding.
        fingerprint: computes a hash of the content.
        config: storage, cache folder, image size and bit depth.
    """
    sources = sources.used()
    content, listings = fingerprint(), sources.listings
    count = sum(len(listing.labels) for listing in listings.values())
    cache = cache_folder(config.cache_dir)
    folder = conversion_folder(cache, content, config.image_size, config.bit_depth)

    def is_mapped(shape: tuple[int, ...]) -> bool:
        large = 4 * count * math.prod(shape) > MAPPED_ABOVE_BYTES
        return config.storage == "mapped" or (config.storage == "auto" and large)

    def dataset(arrays: dict[str, Arrays], form: Form, *, mapped: bool) -> Dataset:
        return Dataset(
            arrays["train"],
            arrays.get("test"),
            sources.names,
            content,
            form.notes,
            mapped=mapped,
            validation=arrays.get("validation"),
            origins=sources.origins,
            left_out=sources.left_out,
            bit_depth=form.bit_depth,
        )

    known = open_cached(folder, listings)
    # The headers of a million files need not be read again.
    if known and is_mapped(known[1].shape):
        return dataset(*known, mapped=True)
    form = scan(list(listings.values()), config.image_size, config.bit_depth)
    if is_mapped(form.shape):
        return dataset(convert(folder, listings, form), form, mapped=True)
    arrays = {name: decode_in_memory(one, form) for name, one in listings.items()}
    return dataset(arrays, form, mapped=False)
