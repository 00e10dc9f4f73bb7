"""Sets that others have distilled, taken from their files, to be measured as ours are.

Images are taken as networks read them: the files of MTT, DM, DC and their kind hold values that are
preprocessed already, so that the run's `preprocess` must be what they were distilled with. Nothing
is learned; the training length is chosen on validation data, and `potstill evaluate` measures the
set under any protocol.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.options import option
from potstill.data.splits import Shape
from potstill.data.tensors import read_tensors
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Needs, State
from potstill.methods.coresets import UNUSED, Coreset

ROWS, IMAGES = 2, 4
"""Dimensions of a tensor of rows, and of images."""


@dataclass(frozen=True)
class ImportedOptions:
    """Options of an import."""

    set_images: str = option(
        "", "file of the images, as networks read them: .pt, .npz, .npy or .safetensors"
    )
    set_labels: str = option(
        "", "file of their labels; empty: in the same file, or else they stand class by class"
    )


class Imported(Coreset):
    """Examples from a file; nothing is learned."""

    Options: ClassVar[type] = ImportedOptions
    options: ImportedOptions
    needs: ClassVar[Needs] = Needs(
        pixels=True, unused=(*UNUSED, "weights", "real_sampler", "inner_width", "boost_blocks")
    )
    step_words: ClassVar[str] = "The one step takes the {noun}s from the file."
    loss_words: ClassVar[str] = "Nothing is learned; there is no loss."

    def check(self, cache: Cache) -> None:
        self.read()

    def prepare(self, cache: Cache) -> None:
        self.values = self.read()

    def read(self) -> dict[str, Tensor]:
        """Return the set's images and, if it stores labels, targets.

        Raises:
            InputError: the file cannot be read, or does not suit the data.
        """
        problem, path = self.problem, self.options.set_images
        if not path:
            raise InputError("method imported needs the file of a set; give it with --set-images")
        images, labels = read_tensors(Path(path).expanduser())
        if self.options.set_labels:
            labels = read_tensors(Path(self.options.set_labels).expanduser())[0]
        shape, classes = tuple(problem.networks.shape), problem.real.classes
        images = in_shape(images, shape, path)
        count = len(problem.labels)
        if len(images) != count:
            each, rest = divmod(len(images), classes)
            right = f"; give --ipc {each}" if each and not rest else "; take another file"
            raise InputError(
                f"set_images must hold {count} examples, {count // classes} of each of {classes} "
                f"classes, {path} holds {len(images)}{right}"
            )
        if labels is not None and len(labels) != count:
            raise InputError(
                f"set_labels must hold a label for each of the {count} examples, got {len(labels)}"
            )
        order, targets = by_class(labels, count, classes)
        if targets is not None and not problem.learn_labels:
            raise InputError(
                "the labels of this set are weights of the classes; give --learn-labels, too, so "
                "that the set can hold them"
            )
        if targets is None and problem.learn_labels:
            targets = problem.real.one_hot(problem.labels.cpu())[order.argsort()]
        values = {"images": images[order]}
        return values if targets is None else {**values, "targets": targets[order]}

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        values = {name: value.to(examples.images) for name, value in self.values.items()}
        return Estimate(0.0, {}, state, values=values)

    @classmethod
    def words(cls, options: ImportedOptions) -> list[tuple[str, str]]:
        return [("Taken from", Path(options.set_images).name)]


def in_shape(images: Tensor, shape: Shape, path: str) -> Tensor:
    """Return images (n, *shape) as float32, with the channels in front.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    if images.dim() == IMAGES and tuple(images.shape[1:]) == (*shape[1:], shape[0]):
        images = images.permute(0, 3, 1, 2)
    if tuple(images.shape[1:]) != shape:
        raise InputError(
            f"set_images must hold examples of shape {shape}, as the data have it, {path} holds "
            f"{tuple(images.shape[1:])}; see --image-size, or take the data that it was made from"
        )
    if not images.is_floating_point():
        raise InputError(
            f"set_images must hold values as networks read them, floats, {path} holds "
            f"{images.dtype}; read a folder of pictures with --data and --method random"
        )
    images = images.float().contiguous()
    if not images.isfinite().all():
        raise InputError(
            f"set_images must hold finite numbers, {path} holds NaN or infinity; take another file"
        )
    return images


def by_class(labels: Tensor | None, count: int, classes: int) -> tuple[Tensor, Tensor | None]:
    """Return the order in which examples stand class by class, and their weights of classes.

    Args:
        labels: (n,) classes, (n, K) weights, or None: the examples stand so already.
        count: n.
        classes: K.
    Returns:
        The order (n,), and the weights (n, K) in the order of the file, or None of hard labels.
    Raises:
        InputError: labels of another shape or range, or more of one class than of another.
    """
    if labels is None:
        return torch.arange(count), None
    if labels.dim() == ROWS and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() == ROWS:
        if labels.shape[1] != classes:
            raise InputError(
                f"set_labels must hold weights of the {classes} classes of the data, got "
                f"{labels.shape[1]}"
            )
        weights = labels.float()
        if not weights.isfinite().all() or bool((weights < 0).any()):
            raise InputError(
                "set_labels must be classes or weights of at least 0, got weights below 0 or that "
                "are not finite; logits are to go through a softmax first"
            )
        hard = weights.argmax(1)
        even = bool((hard.bincount(minlength=classes) == count // classes).all())
        one_hot = bool((weights == torch.eye(classes)[hard]).all())
        # Weights that lean to other classes than their own stand as they are in the file.
        order = hard.argsort(stable=True) if even else torch.arange(count)
        return order, None if one_hot and even else weights
    if labels.dim() != 1 or (labels.is_floating_point() and bool((labels != labels.round()).any())):
        raise InputError(
            "set_labels must be (n,) whole numbers of classes, or (n, K) weights, got shape "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    hard = labels.long()
    if int(hard.min()) < 0 or int(hard.max()) >= classes:
        raise InputError(
            f"set_labels must be classes 0 to {classes - 1}, got {int(hard.min())} to "
            f"{int(hard.max())}"
        )
    counts = hard.bincount(minlength=classes)
    if not bool((counts == count // classes).all()):
        raise InputError(
            f"a set has equally many examples of each class, this one has {int(counts.min())} to "
            f"{int(counts.max())}"
        )
    return hard.argsort(stable=True), None
