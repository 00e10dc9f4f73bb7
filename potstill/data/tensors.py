"""Images and labels in files of tensors, as research code leaves them; no code in them is run."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from potstill.errors import InputError, let_memory_pass, near_miss

IMAGES = ("images", "image", "data", "x", "image_syn", "images_syn", "syn_images", "x_syn", "imgs")
LABELS = ("labels", "label", "targets", "y", "label_syn", "labels_syn", "soft_labels", "y_syn")
"""Names that images and labels have in such files."""
SUFFIXES = (".pt", ".pth", ".npz", ".npy", ".safetensors")
PAIR = 2


def read_tensors(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read the images, and the labels if they are there, of a file of tensors.

    It may hold a tensor; two of them; a dictionary of them under names that are in use; or, as the
    code of DC and DM writes it, a list of such pairs under "data", of which the last is taken.

    Args:
        path: ends in .pt or .pth (only tensors and plain data are read of it), .npz, .npy or
            .safetensors.
    Returns:
        Images or rows, and labels or None; as they are in the file.
    Raises:
        InputError: no such file, another format, pickled code, or nothing that looks like images.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file of tensors in it")
    if not path.is_file():
        raise InputError(f"{path} does not exist{near_miss(path.name, siblings(path))}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} must end in one of {', '.join(SUFFIXES)}; convert it")
    try:
        held = content(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled objects, which would run code when they are read, and potstill "
            "never does that; save its tensors alone, as torch.save((images, labels), FILE)"
        ) from error
    except Exception as error:  # each reader has its own for what it cannot read
        let_memory_pass(error)
        raise InputError(
            f"cannot read {path}, it is damaged or no {path.suffix} file; take another copy"
        ) from error
    found = pair(held)
    if found is None:
        raise InputError(
            f"{path} must hold a tensor of images, images and labels, or a dictionary of them by "
            f"names such as images and labels; it holds {told(held)}"
        )
    return found


def siblings(path: Path) -> list[str]:
    """List the names of the files beside a path."""
    return [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []


def content(path: Path) -> Any:
    """Return what a file holds."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return load_file(path)
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pickle that torch did not write
        return torch.load(path, map_location="cpu", weights_only=True)


def pair(held: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return the images and labels in what a file holds; None: they are not to be found."""
    one = tensor(held)
    if one is not None:
        return one, None
    if isinstance(held, Mapping):
        names = {str(name).lower(): value for name, value in held.items()}
        images = next((names[name] for name in IMAGES if name in names), None)
        labels = next((names[name] for name in LABELS if name in names), None)
        if tensor(images) is None:
            return pair(images) if isinstance(images, list | tuple) else None
        return pair([images] if labels is None else [images, labels])
    if not isinstance(held, list | tuple) or not held:
        return None
    parts = [tensor(part) for part in held[:PAIR]]
    if len(held) == PAIR and None not in parts:
        images, labels = parts
        return (images, labels) if images is not None else None
    return pair(held[-1])


def tensor(value: Any) -> Tensor | None:
    """Return a tensor or an array as a tensor that needs no gradient; else None."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value)
    return value.detach() if isinstance(value, Tensor) else None


def told(held: Any) -> str:
    """Say in short what a file holds."""
    if isinstance(held, Mapping):
        return f"a dictionary of {', '.join(map(str, list(held)[:8])) or 'nothing'}"
    return f"a {type(held).__name__}"
