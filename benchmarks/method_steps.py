"""One outer step of a matching method, by potstill and by eager.py, on the same random data."""

from collections.abc import Mapping
from typing import Any, Literal

import eager
import torch
from eager import ClassBatch, Found, Functional, Student
from method_work import (
    BY_EXPERT,
    CLASSES,
    CPU,
    FACTOR,
    STUDENT_LR,
    Data,
    MadeUp,
    Part,
    Work,
    sizes_of,
)
from torch import Tensor, nn

from potstill.cache import Cache
from potstill.data import augmentation
from potstill.data.splits import TensorSplit
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.optimizers import SGD
from potstill.engine.when_to_compile import NetworkFamily, compiled_networks
from potstill.methods.base import Examples, Method, Problem, Real
from potstill.methods.base import Work as MethodWork
from potstill.models import fresh
from potstill.parameterisations.base import Budget
from potstill.parameterisations.formation import MultiFormation
from potstill.progress import ignore
from potstill.registry import METHODS
from potstill.seeds import generator

PUBLISHED_EPOCHS = 50
"""I of DC and DSA at ten images per class: epochs on the set between two image steps."""
IDC_SHOWN = 2000
"""Real images on which IDC's network trains between two image steps."""


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
        chosen = [(op,) for op in eager.IDC_SHARED] if part.method == "idc" else [part.operations]
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


def method_options(work: Work, part: Part) -> Any:
    """Return the options of potstill's method with which it does a part's work.

    Options that are not named here keep their defaults, which are the published values.
    """
    given: dict[str, Any] = {"real_per_class": work.per_class}
    if part.method == "idc":
        given = {"real_per_class": work.idc_per_class}
    if part.method in BY_EXPERT:
        given = {"student_steps": part.students, "student_lr": STUDENT_LR, "max_start": 1}
    options = METHODS[part.method].Options(**given)
    return options.resolved(sizes_of(work, part)) if hasattr(options, "resolved") else options


def compiles(work: Work, part: Part) -> MethodWork:
    """Return what potstill's method compiles for a part."""
    made: type[Method] = METHODS[part.method]
    return made.work(method_options(work, part), sizes_of(work, part))


def prepare_for(name: str, method: Method) -> None:
    """Give a method what it prepares for its problem. To adapt for a method with another need.

    Args:
        name: of the method.
        method: not yet prepared.
    """
    if name in BY_EXPERT:
        student: Any = method
        network = fresh(method.problem.networks.factory, 0, CPU)
        student.experts = MadeUp.of(network, student.to_prepare())
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
        self.problem = self.make_problem(compilation)
        self.method = METHODS[part.method](self.problem, method_options(work, part))
        prepare_for(part.method, self.method)
        self.state, learnables = self.method.start()
        self.learned = {name: one.value.to(work.dtype) for name, one in learnables.items()}
        self.number = 0
        self.formation = MultiFormation(Budget(work.shape, CLASSES, part.ipc), FACTOR)

    def make_problem(self, compilation: Compilation) -> Problem:
        """Make the problem, its networks compiled as asked for."""
        work, part = self.work, self.part
        sizes = sizes_of(work, part)
        operations = METHODS[part.method].needs.augment if part.augment else ()
        networks = NetworkFamily(work.factory, work.shape, CLASSES, CPU, "float32")
        networks = networks.with_compiled(self.compile(networks, compilation))
        recipe = Recipe(
            width=work.width,
            optimizer=SGD(0.0),
            lr=STUDENT_LR,
            batch_per_class=part.per_class,
            classes_per_batch=CLASSES,
            augment=operations,
        )
        train = TensorSplit(self.data.real, self.data.real_labels)
        most = sizes.cut.of_stage(sizes.batch, sizes.batch, compiled=compilation != "none")
        real = Real(train, CLASSES, sizes.real_batch, operations, sizes.real_micro_batch)
        labels = torch.arange(CLASSES).repeat_interleave(part.per_class)
        return Problem(real, networks, labels, recipe, 0, CPU, most, "random", cut=sizes.cut)

    def compile(self, networks: NetworkFamily, compilation: Compilation) -> CompiledNetwork | None:
        """Compile what the method uses, if it is asked for."""
        if compilation == "none":
            return None
        if compilation == "traced":
            return CompiledNetwork(networks.model(0), backend="eager")
        wanted = compiles(self.work, self.part)
        return compiled_networks(
            networks,
            wanted.gradient_batches,
            wanted.product_batches,
            [],
            ignore,
            ignore,
            wanted.pulled_batches,
            wanted.feature_batches,
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
