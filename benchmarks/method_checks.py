"""Do potstill's methods and eager.py give the same gradient? In float64, at small shapes and equal
draws.

    python benchmarks/methods.py --check

Both see all real images, so that no order of theirs matters, and draw an augmentation from the same
generators where they share one; where each student's image has its own, there is none. "traced" is
the graph that would be compiled, run as it is.
"""

import eager
import torch
from eager import ClassBatch, Found, Functional, Student
from method_steps import PUBLISHED_EPOCHS, Compilation, Ours, lr_of
from method_work import BY_EXPERT, CLASSES, FACTOR, Data, MadeUp, Part, Work
from torch import Tensor

from potstill.data import augmentation
from potstill.registry import METHODS
from potstill.seeds import generator

SMALL = Work(6, 8, (), 600, 60, 60, micro=7, dtype=torch.float64)
WORST = 1e-8
"""Largest relative difference that is rounding."""
EVERY = (
    Part("dm", 2, augment=False),
    Part("dm", 2),
    Part("dc", 2),
    Part("dc", 10, trained=True),
    Part("dsa", 2),
    Part("dsa", 10, trained=True, augment=False),
    Part("idc", 2, augment=False),
    Part("mtt", 2, 4, augment=False),
    Part("tesla", 2, 4, augment=False),
)


def twin(ours: Ours) -> Found:
    """Take the step of eager.py on all that potstill's step saw."""
    part, data, problem = ours.part, ours.data, ours.problem
    if part.method in BY_EXPERT:
        return students_twin(ours)
    # Step 1 of a part that trains first is on the network of step 0.
    step, network = int(part.trained), problem.network("start", 0).train()
    if part.trained:
        rng = generator(0, "order")
        eager.train_on_set(
            network, data.images, data.labels, PUBLISHED_EPOCHS, part.operations, rng
        )
    batches = []
    for label in range(CLASSES):
        drawn = augmentation.shared_draw(part.operations, problem.rng("augmentation", step, label))
        rows = torch.nonzero(data.labels == label)[:, 0]
        batches.append(ClassBatch(label, data.real[data.real_labels == label], rows, (drawn,)))
    if part.method == "idc":
        return eager.idc(network, data.images, batches, FACTOR)
    return (eager.dm if part.method == "dm" else eager.dc)(network, data.images, batches)


def students_twin(ours: Ours) -> Found:
    """Take a student's step of eager.py, from the expert that potstill's step had.

    The derivative is that in the logarithm of the learning rate.
    """
    student, images, lr = student_of(ours), ours.data.images, lr_of(ours.learned)
    step = eager.mtt if ours.part.method == "mtt" else eager.tesla
    loss, grads = step(student, images, lr)
    return loss, {"images": grads["images"], "log_student_lr": lr * grads["lr"]}


def student_of(ours: Ours) -> Student:
    """Return the student of a part whose images are not augmented."""
    data, draw = ours.data, augmentation.draw((), len(ours.data.labels), generator(0))
    network = Functional(ours.problem.network("start", 0).train())
    expert = vars(ours.method)["experts"]
    return Student(network, expert.start, expert.later, data.labels, [draw] * ours.part.students)


def detached(student: Student, images: Tensor, lr: Tensor) -> Found:
    """TESLA by its definition: MTT's graph, its parameters detached before each gradient."""
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    theta = student.start
    for drawn in student.draws:
        held = theta.detach().requires_grad_()
        batch = augmentation.apply(images, drawn)
        loss = student.network.loss(held, batch, student.labels)
        theta = theta - lr * torch.autograd.grad(loss, held, create_graph=True)[0]
    whole = (student.start - student.target).square().sum()
    distance = (theta - student.target).square().sum() / whole
    of_images, of_lr = torch.autograd.grad(distance, (images, lr))
    return float(distance.detach()), {"images": of_images, "lr": of_lr}


def apart(one: Found, other: Found) -> float:
    """Return the largest relative difference of two losses or gradients of the same name."""
    (loss, grads), (other_loss, expected) = one, other
    if grads.keys() != expected.keys():
        raise ValueError(f"the gradients must be of {sorted(expected)}, got {sorted(grads)}")
    found = [abs(loss - other_loss) / abs(other_loss)]
    found += [
        float((grads[name] - wanted).norm() / wanted.norm()) for name, wanted in expected.items()
    ]
    return max(found)


def check_tesla() -> float:
    """Return the difference of eager.py's two passes from TESLA's definition, augmented."""
    part = Part("tesla", 2, 4)
    data, rng = Data.of(SMALL, part), generator(0, "check")
    expert = MadeUp.of(SMALL.factory())
    draws = [augmentation.draw(part.operations, len(data.labels), rng) for _ in range(4)]
    network = Functional(SMALL.factory().train())
    student = Student(network, expert.start, expert.later, data.labels, draws)
    lr = torch.tensor(0.1, dtype=SMALL.dtype)
    return apart(eager.tesla(student, data.images, lr), detached(student, data.images, lr))


def check(only: tuple[str, ...]) -> bool:
    """Print the differences of some methods; return whether all are rounding."""
    worst = 0.0
    for part in EVERY:
        if part.method not in only:
            continue
        if part.method not in METHODS:
            print(f"{part.name}: not registered, skipped")
            continue
        found: dict[Compilation, float] = {}
        for how in ("none", "traced"):
            ours = Ours(SMALL, part, how)
            ours.begin()
            found[how] = apart(ours(), twin(ours))
        worst = max(worst, *found.values())
        shown = ", ".join(f"{how} {value:.1e}" for how, value in found.items())
        print(f"{part.name}{', augmented' * bool(part.operations)}: {shown}", flush=True)
    if "tesla" in only:
        value = check_tesla()
        worst = max(worst, value)
        print(f"tesla of eager.py and its definition: {value:.1e}")
    print(f"largest relative difference {worst:.1e}, allowed {WORST:.0e}")
    return worst < WORST
