"""How folders and files name the splits of a data set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from potstill.data.places import Member, Place
from potstill.data.walking import LeftOut, is_image, subfolders
from potstill.errors import InputError

SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
"""Split -> what its folder or file may be called, in any case."""
LOOK_LIKE_SPLITS = ("train", "test", "val", "dev", "fold", "split", "part", "set")
SHORT = 3
"""Letters of a split's name that must stand alone."""
FEW, ARCHIVE_DEPTH = 4, 3
"""Splits are so few; and so many folders are looked into that hold nothing but one folder, as those
of archives do.
"""


def split_of(name: str) -> str | None:
    """Return the split that a folder of this name holds; None if it is no split's name."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_of_file(stem: str) -> str | None:
    """Return the split that a file's name begins with, as in train-00000-of-00002."""
    word = stem.lower()
    for split, names in SPLIT_NAMES.items():
        for name in sorted(names, key=len, reverse=True):
            rest = word[len(name) :]
            whole = not rest[:1].isalpha() or rest.startswith("set")
            # A short name may begin another word: values.parquet, devices.parquet.
            if word.startswith(name) and (whole or len(name) > SHORT):
                return split
    return None


def unwrapped(root: Place, marks: Sequence[str]) -> Place:
    """Return the folder that holds the data, where an archive wrapped it into others.

    Args:
        root: the folder that was given.
        marks: names of files that tell that a folder holds the data.
    """

    def is_marked(folder: Place) -> bool:
        return any((folder / mark).is_file() for mark in marks)

    for _ in range(ARCHIVE_DEPTH):
        inner = [] if is_marked(root) else subfolders(root)
        if len(inner) != 1 or split_of(inner[0]):
            return root
        if not (subfolders(root / inner[0]) or is_marked(root / inner[0])):
            return root
        root = root / inner[0]
    return root


def split_folders(root: Place) -> dict[str, list[Place]]:
    """Return split -> the folders of its names that a folder holds; {} if it holds class folders.

    A folder with a split's name is a split if it holds folders. (One with images is a class, unless
    all folders beside it have splits' names, too.)

    Raises:
        InputError: the folders look like splits of other names.
    """
    inner = subfolders(root)
    only_splits = all(map(split_of, inner))
    splits: dict[str, list[Place]] = {}
    for name in inner:
        split = split_of(name)
        if split and (only_splits or subfolders(root / name)):
            splits.setdefault(split, []).append(root / name)
    if "train" in splits:
        return splits
    refuse_other_splits(root, inner)
    return {}


def refuse_other_splits(root: Place, names: Sequence[str]) -> None:
    """Raise an InputError if the folders in a folder look like splits and not like classes.

    They do if all hold folders of the same names, at least two, and no images beside them; unless
    they are many and no name tells of a split.
    """
    inside = [set(subfolders(root / name)) for name in names]
    if len(inside) < 2 or len(inside[0]) < 2 or any(one != inside[0] for one in inside):
        return
    if any(holds_images(root / name) for name in names):
        return
    told = any(part in name.lower() for name in names for part in LOOK_LIKE_SPLITS)
    if len(names) > FEW and not told:
        return
    some = ", ".join(sorted(inside[0])[:3])
    raise InputError(
        f"the folders {', '.join(names[:3])} in {root} look like splits, not classes: all hold the "
        f"folders {some}; rename them to train, val and test, or give one of them as the data"
    )


def by_use(splits: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return use -> (split, where it comes from in words), for the splits that a source has.

    The validation split is the one for validation. Without a test split it is what networks are
    tested on, and images for validation are held out of train: a figure on images that chose
    nothing is worth more.

    Args:
        splits: split -> its name in the source, as in {"train": "Train/", "validation": "val/"}.
    """
    uses = {"train": ("train", splits["train"])}
    if "test" in splits:
        uses["test"] = ("test", splits["test"])
        if "validation" in splits:
            uses["validation"] = ("validation", splits["validation"])
    elif "validation" in splits:
        uses["test"] = ("validation", f"{splits['validation']}, there being no test split")
    return uses


def holds_images(folder: Place) -> bool:
    """Return whether image files lie in a folder itself."""
    return any(is_image(file, LeftOut()) for file in folder.iterdir() if file.is_file())


def inside(name: str) -> bool:
    """Return whether a relative path from a list stays in the folder."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def origin(root: Place, words: str) -> str:
    """Say where a split comes from; of data in an archive, the archive's name is a part of it.

    Args:
        root: the folder that holds the data.
        words: where in it, as in "train/"; empty: it is all that there is.
    """
    if not isinstance(root, Member):
        return words
    return f"{root.top.name}/{words}" if words else root.top.name


def by_split(
    files: Sequence[Path],
    root: Path,
    split_of_one: Callable[[Path, Path], str | None],
    left_out: LeftOut,
    kind: str,
    what: str,
) -> dict[str, list[Path]]:
    """Return split -> files; where no name tells one, all are training files.

    Args:
        files: of the data set.
        root: the folder that holds them.
        split_of_one: (file, root) -> its split; None: its name tells none.
        left_out: takes the files of no known split.
        kind: of data, for the message.
        what: one of the files, for the message.
    Raises:
        InputError: there are splits, and none is train.
    """
    splits: dict[str, list[Path]] = {}
    strangers = []
    for file in files:
        split = split_of_one(file, root)
        if split:
            splits.setdefault(split, []).append(file)
        else:
            strangers.append(file.relative_to(root).as_posix())
    if not splits:
        return {"train": list(files)}
    if "train" not in splits:
        raise InputError(
            f"{kind} folder {root} must have a {what} or folder named train..., found "
            f"{files[0].relative_to(root)} and the like; rename the training {what}s"
        )
    if strangers:
        left_out.tell(f"{listed(strangers, 3)}, of no split that is known by its name")
    return splits


def listed(names: Iterable[str], most: int = 6, *, counted: bool = True) -> str:
    """Write the first few names and, where it is not said beside them, how many there are."""
    known = list(names)
    count = f" ({len(known):,})" * counted
    return ", ".join(known[:most]) + (f", ...{count}" if len(known) > most else "")
