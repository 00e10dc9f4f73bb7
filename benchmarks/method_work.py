"""What methods.py times: sizes, parts, and their random data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.engine.cuts import Cut
from potstill.engine.flat import cut_of
from potstill.evaluation.protocols import DSA
from potstill.methods.base import Sizes
from potstill.models import resolve
from potstill.seeds import generator

CLASSES, FACTOR, STUDENT_LR = 10, 2, 0.01
CPU = torch.device("cpu")
BY_CLASS, BY_EXPERT = ("dm", "dc", "dsa", "idc"), ("mtt", "tesla")
NAMES = (*BY_CLASS, *BY_EXPERT)


@dataclass(frozen=True)
class Work:
    """The sizes of the work.

    Args:
        width: of the ConvNet.
        side: of an image, in pixels.
        ipcs: images per class that the set stores.
        real: real images.
        per_class: real images of each class in a step of DM, DC and DSA.
        idc_per_class: the same of IDC.
        students: steps of a student of MTT and TESLA.
        micro: examples that potstill takes at once; 0: what suits the network.
        dtype: of all numbers.
    """

    width: int = 128
    side: int = 32
    ipcs: tuple[int, ...] = (1, 10)
    real: int = 5000
    per_class: int = 256
    idc_per_class: int = 64
    students: tuple[int, ...] = (20, 30)
    micro: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image."""
        return 3, self.side, self.side

    def factory(self) -> nn.Module:
        """Make a fresh network."""
        return resolve("convnet", self.shape, CLASSES, width=self.width)().to(self.dtype)


@dataclass(frozen=True)
class Part:
    """What is timed: an outer step of a method.

    Args:
        method: its name.
        ipc: images per class that the set stores.
        students: N, steps of the student, of a method that has one.
        trained: whether the network trains before the images' gradient is taken, as it does between
            two steps that share a network; else the network is fresh.
        augment: whether the method augments as it does by default; else not at all.
    """

    method: str
    ipc: int
    students: int = 0
    trained: bool = False
    augment: bool = True

    @property
    def name(self) -> str:
        """Names the part in results."""
        student = f", N {self.students}" if self.students else ""
        return f"{self.method}, ipc {self.ipc}{student}{', training first' * self.trained}"

    @property
    def per_class(self) -> int:
        """Images of each class that a network sees."""
        return self.ipc * (FACTOR**2 if self.method == "idc" else 1)

    @property
    def operations(self) -> tuple[str, ...]:
        """Operations of the augmentation, one for each batch."""
        return DSA if self.augment and self.method in ("dm", "dsa", *BY_EXPERT) else ()


def parts(work: Work, only: tuple[str, ...]) -> list[Part]:
    """Return all parts of some methods."""
    found = []
    for method in only:
        for ipc in work.ipcs:
            if method in BY_EXPERT:
                found += [Part(method, ipc, students) for students in work.students]
                continue
            found.append(Part(method, ipc))
            # At one image per class, DC and DSA take a fresh network for every step.
            if method == "idc" or (method in ("dc", "dsa") and ipc > 1):
                found.append(Part(method, ipc, trained=True))
    return found


@dataclass(frozen=True)
class Data:
    """Random data of a part, the same in every process.

    Args:
        real: (N, C, H, W) real images.
        real_labels: (N,) their classes.
        images: (n, C, H, W) stored distilled images, class by class.
        labels: (n,) their classes.
    """

    real: Tensor
    real_labels: Tensor
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, work: Work, part: Part) -> "Data":
        """Draw them."""
        rng = generator(0, "data")
        real = torch.randn(work.real, *work.shape, generator=rng).to(work.dtype)
        images = torch.randn(CLASSES * part.ipc, *work.shape, generator=rng).to(work.dtype)
        labels = torch.arange(CLASSES).repeat_interleave(part.ipc)
        return cls(real, torch.arange(work.real) % CLASSES, images, labels)


@dataclass(frozen=True)
class MadeUp:
    """One expert that was never trained: where its parameters lie does not change a step's time.

    Args:
        start: (P,) its parameters at first.
        later: (P,) those after any number of epochs.
    """

    start: Tensor
    later: Tensor
    count: int = 1
    made: Any = None

    @classmethod
    def of(cls, network: nn.Module, made: Any = None) -> "MadeUp":
        """Make one that starts at a network's parameters and moves a little.

        `made` says how experts are trained, for whoever asks.
        """
        start = nn.utils.parameters_to_vector(network.parameters()).detach()
        noise = torch.randn(len(start), generator=generator(0, "expert"))
        return cls(start, start + 0.01 * noise.to(start.dtype), made=made)

    def at(self, index: int, epochs: Sequence[int], device: torch.device) -> list[Tensor]:
        """Return the parameters (P,) after each of some epochs, as the methods ask for them."""
        return [self.later if epoch else self.start for epoch in epochs]


def sizes_of(work: Work, part: Part) -> Sizes:
    """Return the sizes of a run that does such steps."""
    cut = Cut(work.micro) if work.micro else cut_of(work.factory(), work.shape, CPU)
    whole, real_batch = CLASSES * part.per_class, min(500, work.real)
    return Sizes(
        work.shape, CLASSES, (part.per_class,), (whole,), cut, real_batch, cut.size(real_batch),
        steps=100,
    )  # fmt: skip
