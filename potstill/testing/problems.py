"""The small problem that contract checks run a method on."""

import torch
from torch import Tensor

from potstill.data.splits import Shape, TensorSplit
from potstill.distilled.recipes import Recipe
from potstill.engine.cuts import Cut
from potstill.engine.when_to_compile import NetworkFamily
from potstill.methods.base import Examples, Problem, Real, Sizes
from potstill.models import resolve
from potstill.seeds import generator

CPU = torch.device("cpu")
SHAPE, CLASSES, PER_CLASS, REAL = (1, 8, 8), 3, 2, 90
SIZES = Sizes(SHAPE, CLASSES, (PER_CLASS,), (CLASSES * PER_CLASS,), Cut(100), 30, 30, 30)
"""Of the small problem."""
FAR = 0.6
"""Scale of the centres of the small problem's classes, in multiples of the noise around them."""


def small_problem(
    seed: int = 0, shape: Shape = SHAPE, labels: Tensor | None = None, model: str = "mlp"
) -> Problem:
    """Make a problem that takes seconds.

    Three classes of noisy images, each around its own centre, and a small network.

    Args:
        seed: of all that is drawn.
        shape: of an example.
        labels: (n,) the classes of the distilled examples; None: two of each class.
        model: "mlp" or, for methods that need convolutions, "convnet".
    """
    rng = generator(seed, "small problem")
    centres = torch.randn(CLASSES, *shape, generator=rng) * FAR
    classes = torch.arange(REAL) % CLASSES
    images = centres[classes] + torch.randn(REAL, *shape, generator=rng)
    own = torch.arange(CLASSES).repeat_interleave(PER_CLASS) if labels is None else labels
    recipe = Recipe(model, width=16, lr=0.01, batch_per_class=PER_CLASS, classes_per_batch=CLASSES)
    factory = resolve(model, shape, CLASSES, width=16, depth=1)
    networks = NetworkFamily(factory, shape, CLASSES, CPU, "float32")
    real = Real(TensorSplit(images, classes), CLASSES, 30, (), 30)
    return Problem(real, networks, own, recipe, seed, CPU, 100, "small problem")


def small_examples(problem: Problem, learn_targets: bool = False, frozen: int = 0) -> Examples:
    """Make examples for a small problem: noise, and one-hot targets.

    Args:
        problem: says how many, their shape and their classes.
        learn_targets: whether the targets are learned, too.
        frozen: so many of the first examples do not move.
    """
    shape = problem.networks.shape
    images = torch.randn(len(problem.labels), *shape, generator=generator(0, "examples"))
    targets = torch.eye(problem.real.classes)[problem.labels]
    return Examples(images, targets, problem.labels, frozen, learn_targets)
