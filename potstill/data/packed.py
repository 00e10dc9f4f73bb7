"""Archives by their path alone: what kind of data one holds."""

from pathlib import Path, PurePosixPath

from potstill.config.sections import IDX_NAME, KINDS_OF_FILES, DataConfig, is_archive
from potstill.data import idx, shards
from potstill.data.archives import opened
from potstill.data.assembly import existing
from potstill.data.folders import read_layout
from potstill.data.layouts import listed, unwrapped
from potstill.data.metadata_files import METADATA
from potstill.data.places import Member
from potstill.data.splits import Dataset
from potstill.data.walking import LeftOut, every_file, is_image, subfolders
from potstill.errors import InputError


def read_archive(path: str, config: DataConfig) -> Dataset:
    """Read a zip or tar: samples of WebDataset, MNIST's files, or a layout of folders.

    Raises:
        InputError: it holds tables or other archives and no images in folders.
    """
    given, left_out = existing(path, "archive"), LeftOut()
    if given.is_dir():
        raise InputError(f"archive {path} is a folder; give a zip or tar, or --data folder:{path}")
    root = opened(given, left_out)
    if shards.holds_samples(root, config):
        return shards.read_samples({"train": [root]}, config, left_out)
    if config.image_column != "auto":
        raise InputError(
            f"image_column has no effect with {given.name}, which holds no samples of WebDataset; "
            "leave --image-column out"
        )
    if any(IDX_NAME.fullmatch(PurePosixPath(name).name) for name in root.tree.files):
        return idx.read_set(root, left_out)
    require_folders(given, root)
    return read_layout(root, config, left_out)


def require_folders(path: Path, root: Member) -> None:
    """Raise an InputError if an archive holds data of other kinds, and no folders of images."""
    files = list(every_file(root, LeftOut()))
    others = [
        file.inner
        for file in files
        if isinstance(file, Member)
        and file.name not in METADATA
        and (file.suffix.lower() in KINDS_OF_FILES or is_archive(file.name))
    ]
    if not others:
        return
    images = any(is_image(file, LeftOut()) for file in files)
    folders = subfolders(unwrapped(root, METADATA))
    described = any(file.name in METADATA for file in files)
    if not images or (len(folders) < 2 and not described):
        raise InputError(
            f"archive {path} must hold folders of images, it holds {listed(others, 3)}, which is "
            "read from a file of its own only; unpack it and give that with --data"
        )
