"""Training a network by a recipe: the batches, the plain loop, and its compiled twin."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data import augmentation
from potstill.data.mixing import cutmix
from potstill.data.splits import Split, batches
from potstill.distilled.batches import BatchPlan
from potstill.distilled.recipes import Recipe
from potstill.engine.compiled_losses import CompiledNetwork
from potstill.engine.flat import FlatModel, autocast
from potstill.engine.losses import Batch, InMicroBatches, filled_up
from potstill.errors import InputError
from potstill.seeds import derive, draws_random, generator, global_seed

TEST_BATCH, TEST_VALUES = 512, 512 * 3072
FULL_BATCH = 256
Batches = Callable[[int], tuple[Tensor, Tensor]]
"""step -> (inputs, targets) of that training step."""
Predict = Callable[[Tensor], Tensor]
"""inputs -> logits."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that is trained, called on inputs for its logits.

    Args:
        module: the network, in evaluation mode.
        predict: what it answers.
    """

    module: nn.Module
    predict: Predict

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.predict(inputs)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer reads, (B, F), or the logits if the network does not tell."""
        features = getattr(self.module, "features", self.predict)
        values: Tensor = features(inputs)
        return values.flatten(1).float()


class SetBatches:
    """The batches of a small set, drawn and augmented as the recipe says.

    The same set, recipe and seed give the same batches, one after the other.

    Args:
        images: (n, C, H, W) or (n, d), as a network reads them.
        targets: (n, K).
        labels: (n,) classes.
        recipe: how batches are drawn and augmented.
        seed: of both.
    """

    def __init__(self, images: Tensor, targets: Tensor, labels: Tensor, recipe: Recipe, seed: int):
        if recipe.mirrored_copies:
            if images.dim() != 4:
                raise InputError(
                    "mirrored copies are of images, the set holds rows; take the protocol "
                    "rcig-digits, or another"
                )
            images = torch.cat([images, images.flip(-1)])
            targets, labels = targets.repeat(2, 1), labels.repeat(2)
        self.images, self.targets, self.recipe = images, targets, recipe
        self.rng = generator(seed, "batches")
        if recipe.batch_size is None:
            plan = BatchPlan(
                labels, targets.shape[1], recipe.batch_per_class, recipe.classes_per_batch
            )
            self.indices = by_class(plan, self.rng)
        else:
            self.indices = shuffled(len(labels), recipe.batch_size, self.rng)

    def draw(self) -> tuple[Tensor, augmentation.Draw]:
        """Draw the rows (B,) of the next batch, on the CPU, and how they are augmented."""
        rows = next(self.indices)
        return rows, augmentation.draw(self.recipe.augment, len(rows), self.rng)

    def __call__(self, _: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of the next batch."""
        rows, drawn = self.draw()
        rows = rows.to(self.images.device)
        augmented = augmentation.apply(self.images[rows], drawn)
        return cutmix(augmented, self.targets[rows], self.recipe.cutmix, self.rng)


set_batches = SetBatches


def split_batches(split: Split, recipe: Recipe, classes: int, seed: int) -> Batches:
    """Return shuffled batches of a real split, epoch after epoch; equal seeds, equal batches.

    Args:
        split: the real data.
        recipe: the size of batches and their augmentation.
        classes: number of classes, for one-hot targets.
        seed: of order and augmentation.
    """
    rng = generator(seed, "batches")
    indices = shuffled(len(split), FULL_BATCH, rng)

    def batch(_: int) -> tuple[Tensor, Tensor]:
        images, labels = split.take(next(indices))
        augmented = augmentation.apply(images, augmentation.draw(recipe.augment, len(labels), rng))
        return cutmix(augmented, F.one_hot(labels, classes).float(), recipe.cutmix, rng)

    return batch


def by_class(plan: BatchPlan, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of a plan's batches without end."""
    while True:
        yield plan.draw(rng)


def shuffled(count: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of `size` indices below `count` without end, each epoch in a new order."""
    while True:
        batches = list(torch.randperm(count, generator=rng).split(size))
        # Batch norm cannot normalise a single example.
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        yield from batches


def batches_an_epoch(count: int, size: int) -> int:
    """Return how many batches of `shuffled` make an epoch."""
    return max(1, -(-(count - 1) // size))  # a single example over goes with the batch before it


def steps_of(split: Split, epochs: int) -> int:
    """Return how many batches of `split_batches` make so many passes over a split."""
    return epochs * batches_an_epoch(len(split), FULL_BATCH)


def train_network(
    module: nn.Module,
    batch: Batches,
    recipe: Recipe,
    stops: Sequence[int],
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Iterator[Predict]:
    """Train a network by a recipe and yield what it answers at each stop.

    The optimizer is torch's, with the recipe's settings.

    Args:
        module: the network, trained in place.
        batch: gives a batch for each step.
        recipe: optimizer, learning rate and precision.
        stops: ascending numbers of steps at which to pause.
        seed: of the network's own draws, such as dropout.
        loss: (outputs, targets) -> what is lowered.
    """
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer, after_step = recipe.optimizer.in_torch(parameters, recipe.lr)
    device = parameters[0].device

    def predict(inputs: Tensor) -> Tensor:
        with autocast(recipe.precision, device):
            outputs: Tensor = module(inputs)
        return outputs.float()

    first, like = batch(0), copy.deepcopy(module)  # batch norm would count a call of the network
    # Seeding the global generators keeps other networks from training at the same time.
    draws = draws_random(lambda: like(first[0][:2]), device)
    done = 0
    for stop in stops:
        with global_seed(derive(seed, "dropout", done), device) if draws else nullcontext():
            for step in range(done, stop):
                inputs, targets = batch(step) if step else first
                if not recipe.constant_rate:
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.rate_at(step)
                optimizer.zero_grad()
                loss(predict(inputs), targets).backward()
                optimizer.step()
                after_step()
        done = stop
        module.eval()
        yield predict
        module.train()


def train_compiled(
    compiled: CompiledNetwork,
    module: nn.Module,
    batch: Batches,
    recipe: Recipe,
    stops: Sequence[int],
) -> Iterator[Predict]:
    """Train as `train_network` does, by compiled derivatives and potstill's own optimizer.

    Args:
        compiled: the derivatives, of a network that is the same in training and evaluation.
        module: the network to start from.
        batch: gives a batch for each step.
        recipe: optimizer and learning rate.
        stops: ascending numbers of steps at which to pause.
    """
    model = FlatModel(module, recipe.precision)
    network, most = compiled.of(model), compiled.cut.most
    optimizer = recipe.optimizer
    state, hyper = (
        optimizer.init(model.theta),
        {"lr": torch.tensor(recipe.lr, device=model.theta.device)},
    )

    def predict(inputs: Tensor) -> Tensor:
        missing = -len(inputs) % most  # always as many at once, so that it is compiled once
        filled = filled_up(inputs, missing)
        return torch.cat([network.logits(state[0], part) for part in filled.split(most)])[
            : len(inputs)
        ]

    done = 0
    for stop in stops:
        for step in range(done, stop):
            inputs, targets = batch(step)
            loss = InMicroBatches(network, compiled.cut.size(len(inputs)), filled=True)
            grad = loss.gradient(state[0], Batch(inputs, targets), step)[1]
            if not recipe.constant_rate:
                hyper["lr"].fill_(recipe.rate_at(step))
            state = optimizer.step(state, grad, hyper, step)
        done = stop
        yield predict


def evaluation_batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split in order, in batches that fit the memory.

    Activations of a batch stay as small as for 512 images of 3 x 32 x 32.
    """
    values = split.take(torch.zeros(1, dtype=torch.int64))[0].numel() if len(split) else 1
    yield from batches(split, max(1, min(TEST_BATCH, TEST_VALUES // values)))


@torch.no_grad()
def accuracy(predict: Predict, split: Split) -> float:
    """Return the fraction of a split that a network classifies correctly."""
    right = sum(
        int((predict(images).argmax(1) == labels).sum())
        for images, labels in evaluation_batches(split)
    )
    return right / len(split)
