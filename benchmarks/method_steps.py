"""One outer step of a matching method, by potstill and by eager.py, on the same random data: what
methods.py times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import eager
import torch
from eager import ClassBatch, Found, Functional, Student
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.data import augmentation
from potstill.data.splits import TensorSplit
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.losses import even, largest_micro_batch
from potstill.engine.optimizers import SGD
from potstill.engine.when_to_compile import NetworkFamily, compiled_networks, stage_micro_batch
from potstill.evaluation.protocols import DSA
from potstill.methods.base import Examples, Method, Problem, Real, Sizes
from potstill.models import fresh, resolve
from potstill.parameterisations.base import Budget
from potstill.parameterisations.formation import MultiFormation
from potstill.progress import ignore
from potstill.registry import METHODS
from potstill.seeds import generator

CLASSES, FACTOR, STUDENT_LR = 10, 2, 0.01
CPU = torch.device("cpu")
BY_CLASS, BY_EXPERT = ("dm", "dc", "dsa", "idc"), ("mtt", "tesla")
NAMES = (*BY_CLASS, *BY_EXPERT)
PUBLISHED_EPOCHS = 50
"""I of DC and DSA at ten images per class: epochs on the set between two image steps."""
IDC_SHOWN = 2000
"""Real images on which IDC's network trains between two image steps."""
Step = Callable[[], Found]
"""One outer step: (loss, gradients)."""


@dataclass(frozen=True)
class Work:
    """The sizes of the work.

    Args:
        width: of the ConvNet.
        side: of an image, in pixels.
        real: real images.
        per_class: real images of each class in a step of DM, DC and DSA.
        idc_per_class: the same of IDC.
        students: steps of a student of MTT and TESLA.
        micro: examples that potstill takes at once; 0: what suits the network.
        dtype: of all numbers.
    """

    width: int = 128
    side: int = 32
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
        for ipc in (1, 10):
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

    @classmethod
    def of(cls, network: nn.Module) -> "MadeUp":
        """Make one that starts at a network's parameters and moves a little."""
        start = nn.utils.parameters_to_vector(network.parameters()).detach()
        noise = torch.randn(len(start), generator=generator(0, "expert"))
        return cls(start, start + 0.01 * noise.to(start.dtype))

    def at(self, index: int, epoch: int, device: torch.device) -> Tensor:
        """Return the parameters (P,) after so many epochs, as the methods ask for them."""
        return self.later if epoch else self.start


class Rival:
    """The steps of eager.py on a part: every call draws anew."""

    def __init__(self, work: Work, part: Part):
        self.work, self.part, self.data = work, part, Data.of(work, part)
        self.rng, self.seed = generator(0, "rival"), 0
        self.by_class = {
            label: self.data.real[self.data.real_labels == label] for label in range(CLASSES)
        }
        if part.method in BY_EXPERT:
            self.expert = MadeUp.of(self.network())

    def network(self) -> nn.Module:
        """Make the next fresh network."""
        self.seed += 1
        return fresh(self.work.factory, self.seed, CPU)

    def __call__(self) -> Found:
        part, images = self.part, self.data.images
        if part.method in BY_EXPERT:
            student = self.student()
            step = eager.mtt if part.method == "mtt" else eager.tesla
            return step(student, images, torch.tensor(STUDENT_LR, dtype=self.work.dtype))
        network = self.network().train()
        if part.trained:
            self.train(network)
        batches = [self.batch(label) for label in range(CLASSES)]
        if part.method == "idc":
            return eager.idc(network, images, batches, FACTOR)
        return (eager.dm if part.method == "dm" else eager.dc)(network, images, batches)

    def batch(self, label: int) -> ClassBatch:
        """Draw what a step shows of a class."""
        part, work, own = self.part, self.work, self.by_class[label]
        count = work.idc_per_class if part.method == "idc" else work.per_class
        real = own[torch.randperm(len(own), generator=self.rng)[:count]]
        # One operation of several; IDC's are all taken, one after the other.
        chosen = [(op,) for op in eager.IDC_ALWAYS] if part.method == "idc" else [part.operations]
        drawn = tuple(augmentation.shared_draw(operations, self.rng) for operations in chosen)
        rows = torch.nonzero(self.data.labels == label)[:, 0]
        return ClassBatch(label, real, rows, drawn)

    def train(self, network: nn.Module) -> None:
        """Train a network as between two steps that share it."""
        data, part = self.data, self.part
        if part.method == "idc":
            rows = torch.randperm(len(data.real), generator=self.rng)[:IDC_SHOWN]
            eager.train_on_real(network, data.real[rows], data.real_labels[rows], self.rng)
        else:
            eager.train_on_set(
                network, data.images, data.labels, PUBLISHED_EPOCHS, part.operations, self.rng
            )

    def student(self) -> Student:
        """Draw the augmentation of a student's steps."""
        draws = [
            augmentation.draw(self.part.operations, len(self.data.labels), self.rng)
            for _ in range(self.part.students)
        ]
        network = Functional(self.network().train())
        return Student(network, self.expert.start, self.expert.later, self.data.labels, draws)


def method_options(work: Work, part: Part) -> dict[str, Any]:
    """Return the options of potstill's method with which it does a part's work.

    Options that are not named here keep their defaults, which are the published values.
    """
    if part.method in BY_EXPERT:
        return {"student_steps": part.students, "student_lr": STUDENT_LR, "max_start": 1}
    # To adapt where a method names its count of real images otherwise.
    return {"real_per_class": work.idc_per_class if part.method == "idc" else work.per_class}


def prepare_for(name: str, method: Method) -> None:
    """Give a method what it prepares for its problem. To adapt for a method with another need.

    Args:
        name: of the method.
        method: not yet prepared.
    """
    if name in BY_EXPERT:
        vars(method)["experts"] = MadeUp.of(fresh(method.problem.networks.factory, 0, CPU))
    else:
        method.prepare(Cache(None))


def lr_of(learned: Mapping[str, Tensor]) -> Tensor:
    """Return a student's learning rate, which its method learns by its logarithm."""
    return learned["log_student_lr"].exp()


Compilation = Literal["none", "compiled", "traced"]
"""How derivatives are taken: by autograd; compiled; by the graph that would be compiled, as it is.
"""


class Ours:
    """potstill's step on a part.

    Args:
        work: the sizes.
        part: what is done.
        compilation: how derivatives are taken.
    """

    def __init__(self, work: Work, part: Part, compilation: Compilation = "none"):
        self.work, self.part, self.data = work, part, Data.of(work, part)
        made: type[Method] = METHODS[part.method]
        most = work.micro or largest_micro_batch(work.factory(), work.shape, CPU)
        self.sizes = sizes_of(work, part, most)
        options = made.Options(**method_options(work, part))
        if hasattr(options, "resolved"):
            options = options.resolved(self.sizes)
        self.compiles = made.work(options, self.sizes)
        self.problem = self.make_problem(compilation)
        self.method = made(self.problem, options)
        prepare_for(part.method, self.method)
        self.state, learnables = self.method.start()
        self.learned = {name: one.value.to(work.dtype) for name, one in learnables.items()}
        self.number = 0
        self.formation = MultiFormation(Budget(work.shape, CLASSES, part.ipc), FACTOR)

    def make_problem(self, compilation: Compilation) -> Problem:
        """Make the problem, its networks compiled as asked for."""
        work, part, sizes = self.work, self.part, self.sizes
        networks = NetworkFamily(work.factory, work.shape, CLASSES, CPU, "float32")
        networks = networks.with_compiled(self.compile(networks, compilation))
        recipe = Recipe(
            width=work.width,
            optimizer=SGD(0.0),
            lr=STUDENT_LR,
            batch_per_class=part.per_class,
            classes_per_batch=CLASSES,
            augment=part.operations,
        )
        train = TensorSplit(self.data.real, self.data.real_labels)
        most = stage_micro_batch(
            sizes.batch, sizes.batch, sizes.micro_batch, compiled=compilation != "none"
        )
        real = Real(train, CLASSES, sizes.real_batch, part.operations, sizes.real_micro_batch)
        labels = torch.arange(CLASSES).repeat_interleave(part.per_class)
        return Problem(real, networks, labels, recipe, 0, CPU, most, "random")

    def compile(self, networks: NetworkFamily, compilation: Compilation) -> CompiledNetwork | None:
        """Compile what the method uses, if it is asked for."""
        if compilation == "none":
            return None
        if compilation == "traced":
            return CompiledNetwork(networks.model(0), backend="eager")
        wanted = self.compiles
        return compiled_networks(
            networks, wanted.gradient_batches, wanted.product_batches, [], ignore
        )

    def __call__(self) -> Found:
        """Take the part's step, on the network of the next number whose step it is."""
        if self.part.trained:
            return self.estimate(1)
        found = self.estimate(self.number)
        self.number += self.shared_by
        return found

    @property
    def shared_by(self) -> int:
        """How many outer steps share a network: the next fresh one comes so much later."""
        return int(getattr(self.method.options, "network_steps", 1))

    def begin(self) -> None:
        """Take the step before a part whose network trains first."""
        if self.part.trained:
            self.state = self.method.estimate(self.examples(), self.learned, self.state, 0).state

    def examples(self, images: Tensor | None = None) -> Examples:
        """Return the distilled set as the method sees it; None: the part's own images."""
        images = self.decoded(self.data.images) if images is None else images
        labels = self.problem.labels
        targets = torch.eye(CLASSES, dtype=self.work.dtype)[labels]
        return Examples(images, targets, labels)

    def decoded(self, stored: Tensor) -> Tensor:
        """Decode stored images."""
        if self.part.method != "idc":
            return stored
        return self.formation.decode({"images": stored})

    def estimate(self, step: int) -> Found:
        """Take the outer step of a number: the gradient in the stored images, and in learnables."""
        stored = self.data.images.detach().requires_grad_()
        images = self.decoded(stored)
        found = self.method.estimate(self.examples(images.detach()), self.learned, self.state, step)
        grads = dict(found.grads)
        if images is not stored:
            (grads["images"],) = torch.autograd.grad(images, stored, grads["images"])
        return found.loss, grads


def sizes_of(work: Work, part: Part, most: int) -> Sizes:
    """Return the sizes of a run that does such steps.

    Args:
        work: the sizes of the work.
        part: what is done.
        most: examples at once that suit the network.
    """
    each = part.per_class
    real_batch = min(500, work.real)
    return Sizes(
        work.shape, CLASSES, (each,), (CLASSES * each,), most, real_batch, even(real_batch, most),
        steps=100,
    )  # fmt: skip
