"""Real data behind one interface, in memory or memory-mapped.

A source (sources.py) gives raw `Arrays`; preparation.py cuts them into train, validation and test
splits and preprocesses them.
"""

import hashlib
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from potstill.errors import InputError
from potstill.workers import in_order

Transform = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
"""Shape of one example: (C, H, W) of an image, (d,) of a vector, which is a row of a table."""
KINDS = ("image", "vector")
NOUNS = {"image": "image", "vector": "row"}
"""What an example is called in sentences."""
CHUNK, CHUNK_VALUES = 1024, 2**24


def kind_of(shape: Sequence[int]) -> str:
    """Return the kind of data, "image" or "vector", of examples of this shape."""
    return "vector" if len(shape) == 1 else "image"


def require_kind(kind: str, name: str, part: Any, way_out: str) -> None:
    """Raise an InputError unless a part takes data of a kind.

    Args:
        kind: kind of the data.
        name: name of the part, for the message, as in "model convnet".
        part: its attribute `kinds` names the kinds it takes; without it, it takes all.
        way_out: what the user can do, for the message.
    """
    taken = getattr(part, "kinds", KINDS)
    if kind not in taken:
        words = " and ".join(f"{one}s" for one in taken)
        raise InputError(f"{name} takes {words}, the data are {kind}s; {way_out}")


@dataclass(frozen=True)
class Arrays:
    """Labelled examples as a source gives them.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float32; may be a memory map. Of vectors (N, d),
            float32.
        labels: (N,) int64 classes.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def floats(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return the images at `indices` as float32 on the CPU; bytes are scaled to [0, 1].

        Of a memory map it reads only these rows.
        """
        order = np.argsort(indices, kind="stable")
        rows = np.empty((len(indices), *self.images.shape[1:]), self.images.dtype)
        rows[order] = self.images[indices[order]]  # sorted: a memory map is read from front to back
        release(self.images)
        images = torch.from_numpy(rows)
        return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def release(images: npt.NDArray[Any]) -> None:
    """Give back the pages of a memory map that were read.

    They would count as this process's memory until the system needs it; the system's cache of files
    keeps them.
    """
    mapped = getattr(images, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Dataset:
    """The labelled examples that a source reads.

    Args:
        train: the training images.
        test: the test images; None where the source has none.
        class_names: name of class 0, 1, ...
        fingerprint: a hash of the content, the same in any folder.
        notes: sentences that a user should see: what was converted, padded, resized.
        mapped: whether the arrays are memory maps, to be preprocessed batch by batch.
        weights: (N,) float64, with which training images are drawn; None: all alike.
        feature_names: of vectors, name of each feature; empty: they have none.
        validation: the images for every choice; None: a share of train is held out for it.
        origins: "train", "validation" or "test" -> where it comes from, in words.
        left_out: phrases that say what the source holds and is not used.
        bit_depth: bits that hold the values of 16-bit images; None: there are none.
        disk_bytes: what the files that it was read from take; None: not known.
    """

    train: Arrays
    test: Arrays | None
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    mapped: bool = False
    weights: npt.NDArray[np.float64] | None = None
    feature_names: tuple[str, ...] = ()
    validation: Arrays | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    bit_depth: int | None = None
    disk_bytes: int | None = None

    @property
    def splits(self) -> dict[str, Arrays]:
        """The splits that there are, by name."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: arrays for name, arrays in every.items() if arrays is not None}

    @property
    def shape(self) -> Shape:
        """Shape of an example."""
        return tuple(self.train.images.shape[1:])

    @property
    def kind(self) -> str:
        """ "image" or "vector"."""
        return kind_of(self.shape)

    @property
    def identity(self) -> str:
        """A hash of the content and the weights: all that decides a run's result."""
        if self.weights is None:
            return self.fingerprint
        return hashlib.sha256(self.fingerprint.encode() + self.weights.tobytes()).hexdigest()


class Split(Protocol):
    """Preprocessed labelled images: what the outer loss, the validation and the evaluation read."""

    @property
    def labels(self) -> Tensor:
        """Classes (N,), int64, on the CPU."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (images (n, C, H, W) or vectors (n, d), labels (n,)) at these indices."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split as one tensor on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        device = self.images.device
        return self.images[indices.to(device)], self.labels[indices].to(device)


@dataclass(frozen=True)
class Part:
    """Some examples of a split, as a split.

    Args:
        whole: the split.
        rows: (n,) indices in it, on the CPU.
    """

    whole: Split
    rows: Tensor

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.take(self.rows[indices])


@dataclass(frozen=True)
class MappedSplit:
    """A split that stays on disk; a batch is read, scaled and preprocessed when it is asked for.

    Args:
        arrays: the memory-mapped images.
        indices: indices in `arrays` that belong to this split.
        transform: the preprocessing, float images in, float images out.
        device: the device of batches.
    """

    arrays: Arrays
    indices: npt.NDArray[np.int64]
    transform: Transform
    device: torch.device

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.arrays.labels[self.indices])

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.indices[indices.numpy()]
        images = self.transform(self.arrays.floats(rows).to(self.device))
        return images, torch.from_numpy(self.arrays.labels[rows]).to(self.device)


def make_split(
    arrays: Arrays,
    indices: npt.NDArray[np.int64],
    transform: Transform,
    device: torch.device,
    *,
    mapped: bool,
) -> Split:
    """Make a split of the rows `indices` of `arrays`.

    A mapped one stays on disk; another is preprocessed once and kept on the device.

    Args:
        arrays: the source's images and labels.
        indices: (n,) indices in `arrays`.
        transform: the preprocessing, float images in, float images out.
        device: the device of batches.
        mapped: whether the split stays on disk.
    """
    if mapped:
        return MappedSplit(arrays, indices, transform, device)
    tasks = (
        partial(lambda rows: transform(arrays.floats(rows).to(device)), rows)
        for rows in chunks(indices, arrays)
    )
    images = list(in_order(tasks, device))
    empty = torch.empty(0, *arrays.images.shape[1:], device=device)
    return TensorSplit(
        torch.cat(images) if images else empty, torch.from_numpy(arrays.labels[indices])
    )


def chunk_size(shape: Sequence[int]) -> int:
    """Return how many images (C, H, W) are held at a time.

    At most CHUNK, and at most CHUNK_VALUES pixel values (64 MiB as float32).
    """
    return max(1, min(CHUNK, CHUNK_VALUES // math.prod(shape)))


def chunks(indices: npt.NDArray[np.int64], arrays: Arrays) -> list[npt.NDArray[np.int64]]:
    """Cut `indices` into pieces of `chunk_size` images of `arrays`."""
    size = chunk_size(arrays.images.shape[1:])
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the whole split in order, `size` examples at a time."""
    for indices in torch.arange(len(split)).split(size):
        yield split.take(indices)


def sample(split: Split, count: int, rng: torch.Generator) -> Tensor:
    """Draw indices of `count` examples without replacement.

    If there are fewer, it returns all, in random order.
    """
    return torch.randperm(len(split), generator=rng)[:count]


def sample_per_class(labels: Tensor, classes: int, count: int, rng: torch.Generator) -> Tensor:
    """Draw indices of `count` random examples of each class, class by class.

    Each class must have that many.

    Args:
        labels: (N,) classes.
        classes: number of classes.
        count: examples of each class.
        rng: the generator of the draws.
    """
    by_class = torch.argsort(labels, stable=True)
    each = torch.bincount(labels, minlength=classes).tolist()
    return torch.cat(
        [
            members[torch.randperm(len(members), generator=rng)[:count]]
            for members in by_class.split(each)[:classes]
        ]
    )


def hold_out(
    labels: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return indices kept and indices held out, both ascending: the same share of each class.

    At least one example of a class is held out and at least one is kept.

    A class with a single example stays whole. (scikit-learn's stratified split refuses such a class
    and may leave a small one out of the held-out part.)
    """
    rng = np.random.default_rng(seed)
    held = []
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]
    for ascending in np.split(np.argsort(labels, kind="stable"), ends):
        members = rng.permutation(ascending)
        held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    held_out = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out
