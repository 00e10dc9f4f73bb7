"""Networks that train on a small set at the same time on one device, each by a program.

Source: the same programs as an unroll's (engine/programs.py), without a way back.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from potstill.data import augmentation
from potstill.devices import sent
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.cuts import Cut
from potstill.engine.drawn import Drawn
from potstill.engine.flat import FlatModel, autocast, couples_batch, cut_of
from potstill.engine.losses import Batch, InMicroBatches, cross_entropy
from potstill.engine.moves import calls
from potstill.engine.programs import Programs, Runner
from potstill.engine.unroll import InnerProblem, Leaves
from potstill.evaluation.training import Predict, SetBatches
from potstill.seeds import draws_random

AT_ONCE = 16
"""Networks that train at the same time."""


def can_be_programs(module: nn.Module, batches: object, recipe: Recipe) -> bool:
    """Return whether training a network is the same work at every step.

    Args:
        module: a network on its device.
        batches: that it trains on.
        recipe: how.
    """
    alike = recipe.constant_rate and not recipe.cutmix and not recipe.batch_size
    if not isinstance(batches, SetBatches) or not alike:
        return False
    inputs = batches.images[:2]

    def call() -> None:
        with torch.no_grad():
            module(inputs)

    return not couples_batch(module) and not draws_random(call, inputs.device)


class TrainedByProgram:
    """A network that trains on a small set by programs.

    Args:
        module: the network, on its device; trained in place.
        batches: what it trains on.
        recipe: optimizer, learning rate and precision.
        longest: steps in all.
        compiled: the derivatives of such networks; None: by autograd.
        runner: how its programs are run.
    """

    def __init__(
        self, module: nn.Module, batches: SetBatches, recipe: Recipe, longest: int,
        compiled: CompiledNetwork | None, runner: Runner,
    ):  # fmt: skip
        self.module, self.recipe, self.runner = module, recipe, runner
        self.model = FlatModel(module, recipe.precision)
        device, images, targets = self.model.theta.device, batches.images, batches.targets
        steps = [batches.draw() for _ in range(longest)]
        rows, draws = zip(*steps, strict=True)
        drawn = Drawn.empty(longest, len(rows[0]), recipe.augment, device)
        drawn.put(torch.stack(rows), list(draws), [0] * longest)
        counter = torch.zeros((), dtype=torch.int64, device=device)

        def batch(leaves: Leaves, step: int) -> Batch:
            chosen, draw, _ = drawn.at(counter, step)
            inputs = augmentation.apply(images.index_select(0, chosen), draw)
            return Batch(inputs, targets.index_select(0, chosen))

        loss = compiled.of(self.model) if compiled else cross_entropy(self.model)
        cut: Cut = compiled.cut if compiled else cut_of(module, tuple(images.shape[1:]), device)
        parts = InMicroBatches(loss, cut.size(len(rows[0])), filled=compiled is not None)
        problem = InnerProblem(
            parts, batch, recipe.optimizer, counter, lambda step: drawn.operations[step]
        )
        start = recipe.optimizer.init(self.model.theta)
        hyper = {"lr": sent(torch.tensor(recipe.lr), device)}
        self.programs = Programs(problem, None, {}, hyper, start, 0, None, runner, calls(compiled))

    def train(self, first: int, last: int) -> Iterator[None]:
        """Take the steps from `first` up to `last`, program by program."""
        self.runner.begin()
        yield from self.programs.train(first, last)
        self.runner.end()

    def predict(self) -> Predict:
        """Return what the network answers now."""
        named = dict(self.module.named_parameters())
        values = self.model.parameters(self.programs.state[0])
        with torch.no_grad():
            for name, value in zip(self.model.names, values, strict=True):
                named[name].copy_(value)
        self.module.eval()

        def answer(inputs: Tensor) -> Tensor:
            with autocast(self.recipe.precision, inputs.device):
                outputs: Tensor = self.module(inputs)
            return outputs.float()

        return answer


def courses(
    networks: Sequence[tuple[nn.Module, SetBatches]],
    recipe: Recipe,
    stops: Sequence[int],
    compiled: CompiledNetwork | None,
    make_runner: Callable[[], Runner],
) -> Iterator[list[Predict]]:
    """Train networks side by side; yield what each answers after each of the ascending stops.

    Args:
        networks: each with its batches.
        recipe: how they are trained.
        stops: numbers of steps.
        compiled: their derivatives, if they are compiled.
        make_runner: makes what runs a network's programs.
    """
    trained = [
        TrainedByProgram(module, batches, recipe, stops[-1], compiled, make_runner())
        for module, batches in networks
    ]
    done = 0
    for stop in stops:
        for _ in itertools.zip_longest(*(one.train(done, stop) for one in trained)):
            pass  # they take turns at being told what is next
        done = stop
        yield [one.predict() for one in trained]
