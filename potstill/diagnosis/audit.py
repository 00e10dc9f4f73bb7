"""What a set tells of the single real examples that it was distilled from. Numbers, no guarantees.

**Membership inference** (Yeom et al. 2018, arXiv:1709.01604; the measure of Carlini et al. 2022,
arXiv:2112.03570): whoever has a network guesses, from its loss on an example, whether that was
among the training data. The attack is tried on networks that trained on the set; on others that
trained on all training data, which shows what a network gives away that was not distilled; and on
networks that never saw any of them, directly or distilled, where it can only guess: what it finds
there is how the test split differs from the training split.

**Nearest neighbours**: how near a synthetic example is to its nearest training example, beside how
near test examples are to theirs. Distances are between examples of mean 0 and norm 1, since
distilled images have arbitrary brightness and contrast.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from potstill.data.preparation import RealData
from potstill.data.splits import Split, batches, sample_per_class
from potstill.devices import hardware, own_torch_state, pick_device, versions
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet
from potstill.errors import InputError
from potstill.evaluation.records import DataSource
from potstill.evaluation.scoring import factory_for
from potstill.evaluation.training import (
    set_batches,
    split_batches,
    steps_of,
    train_network,
)
from potstill.models import fresh
from potstill.progress import ignore
from potstill.records.metrics import Figure
from potstill.registry import LEARNERS
from potstill.seeds import derive, generator
from potstill.workers import all_threads_at_once

FEW = 0.01
"""Share of examples that were no members which an attack may take for some."""
AT_ONCE = 1000
SMALLEST = 1e-8
PAIR = 2


@dataclass(frozen=True)
class AuditOptions:
    """How much is tried.

    Args:
        nets: networks for each attack.
        epochs: for which networks train on all training data.
        seed: of the networks.
    """

    nets: int = 5
    epochs: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Attack:
    """Membership inference by the loss.

    Args:
        trained_on: what the networks trained on.
        auc: area under the attack's curve, 0.5 for a guess.
        hits: share of members that it finds when it takes 1 % of non-members for some.
    """

    trained_on: str
    auc: Figure
    hits: Figure


@dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training example.

    Args:
        synthetic: the least, and the median, of the set's examples.
        real: the least, and the median, of test examples.
        nearer: of how many of the set's examples it is less than of 99 % of test examples.
        count: examples of the set.
    """

    synthetic: tuple[float, float]
    real: tuple[float, float]
    nearer: int
    count: int


@dataclass(frozen=True)
class AuditRecord:
    """An entry of audit.json.

    Args:
        settings: how much was tried.
        data: on which data.
        members: training examples.
        others: test examples.
        noun: what an example is called.
        attacks: on networks by what they trained on.
        neighbours: distances.
        hardware: the machine, in words.
        versions: library -> version.
    """

    KEY: ClassVar[str] = "audits"
    settings: AuditOptions
    data: DataSource
    members: int
    others: int
    noun: str
    attacks: tuple[Attack, ...]
    neighbours: Neighbours
    hardware: str
    versions: Any

    @property
    def whole(self) -> bool:
        """Whether it holds all that a reader takes from it; a file may be forged."""
        near = self.neighbours
        return bool(self.attacks) and len(near.synthetic) == len(near.real) == PAIR


@own_torch_state()
def audit(
    distilled: DistilledSet,
    real: RealData,
    options: AuditOptions,
    *,
    device: str = "auto",
    progress: Callable[[str, int, int], None] = ignore,
) -> AuditRecord:
    """Measure what a set tells of its training examples.

    Args:
        distilled: the set.
        real: the data that it was distilled from, preprocessed as the set.
        options: how much is tried.
        device: where to train.
        progress: called with (name, done, total) as networks finish.
    Raises:
        InputError: the set is for a learner that trains no networks by cross-entropy, or the data
            have no training split.
    """
    recipe = distilled.recipe
    if not LEARNERS[recipe.learner].trains or LEARNERS[recipe.learner].signed:
        raise InputError(
            f"an audit trains networks by cross-entropy, this set is for the learner "
            f"{recipe.learner}; distill by another method"
        )
    if not len(real.train):
        raise InputError(
            "an audit needs the data that the set was distilled from, with a train split; give "
            "them with --data"
        )
    on = pick_device(device)
    known = Ways(distilled, real, options, on)
    attacks = []
    for name, way in known.all():
        curves = []
        for number in range(options.nets):
            losses = [losses_of(way(number), split) for split in (real.train, real.test)]
            curves.append(attacked(*losses))
            progress(name, number + 1, options.nets)
        auc, hits = (torch.tensor(values) for values in zip(*curves, strict=True))
        attacks.append(Attack(name, Figure.of(auc), Figure.of(hits)))
    return AuditRecord(
        options,
        DataSource(real.fingerprint),
        len(real.train),
        len(real.test),
        distilled.noun,
        tuple(attacks),
        neighbours(distilled.images.to(on), real.train, real.test),
        hardware(on),
        versions(),
    )


@dataclass(frozen=True)
class Ways:
    """The networks that are attacked.

    Args:
        distilled: the set.
        real: the data.
        options: how much is tried.
        device: where to train.
    """

    distilled: DistilledSet
    real: RealData
    options: AuditOptions
    device: torch.device

    def all(self) -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
        """Yield (what networks train on, number -> such a network)."""
        noun = f"{self.distilled.noun}s"
        yield "the set", self.on_set
        yield f"as many held-out {noun}", self.on_held_out
        yield f"all training {noun}", self.on_all

    def trained(self, number: int, batch: Any, recipe: Recipe, steps: int) -> nn.Module:
        """Return a network that took so many steps on batches."""
        own = derive(self.options.seed, "audit", number)
        module = fresh(factory_for(self.distilled, None), own, self.device)
        with all_threads_at_once():
            for _ in train_network(module, batch, recipe, (steps,), own):
                pass
        return module.eval()

    def on_set(self, number: int) -> nn.Module:
        """Train on the set, by its recipe."""
        one, recipe = self.distilled, self.distilled.recipe
        images, targets, labels = (
            part.to(self.device) for part in (one.images, one.targets, one.labels)
        )
        own = derive(self.options.seed, "audit", number)
        batch = set_batches(images, targets, labels, recipe, own)
        return self.trained(number, batch, recipe, recipe.steps)

    def on_held_out(self, number: int) -> nn.Module:
        """Train likewise on validation examples, as many of each class as the set has or there are.

        They are neither members nor among those that the attack is to tell from them.
        """
        recipe, held = self.distilled.recipe, self.real.validation
        classes = len(self.real.class_names)
        least = int(torch.bincount(held.labels, minlength=classes).min())
        rng = generator(self.options.seed, "audit", number)
        rows = sample_per_class(held.labels, classes, min(self.distilled.per_class, least), rng)
        images, labels = held.take(rows)
        targets = F.one_hot(labels, classes).float()
        batch = set_batches(
            images, targets, labels, recipe, derive(self.options.seed, "audit", number)
        )
        return self.trained(number, batch, recipe, recipe.steps)

    def on_all(self, number: int) -> nn.Module:
        """Train on all training examples."""
        recipe, train = self.distilled.recipe, self.real.train
        own = derive(self.options.seed, "audit", number)
        batch = split_batches(train, recipe, len(self.real.class_names), own)
        return self.trained(number, batch, recipe, steps_of(train, self.options.epochs))


@torch.no_grad()
def losses_of(network: nn.Module, split: Split) -> Tensor:
    """Return a network's loss on every example of a split, (N,)."""
    parts = [
        F.cross_entropy(network(images), labels, reduction="none")
        for images, labels in batches(split, AT_ONCE)
    ]
    return torch.cat(parts).cpu()


def attacked(members: Tensor, others: Tensor) -> tuple[float, float]:
    """Return the area under an attack's curve, and its hits at few false alarms.

    Args:
        members: (N,) losses of examples that were among the training data.
        others: (M,) losses of examples that were not.
    """
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    scores = -torch.cat([members, others]).nan_to_num(posinf=1e30)
    alarms, hits, _ = roc_curve(truth.numpy(), scores.numpy(), drop_intermediate=False)
    area = torch.trapezoid(torch.from_numpy(hits), torch.from_numpy(alarms))
    return float(area), float(hits[alarms <= FEW].max())


def neighbours(images: Tensor, train: Split, test: Split) -> Neighbours:
    """Return how near examples are to their nearest training example.

    Args:
        images: (n, ...) of the set.
        train: the training examples.
        test: examples that are none.
    """
    own = nearest(images, train)
    real = torch.cat([nearest(part, train) for part, _ in batches(test, AT_ONCE)])
    bound = torch.quantile(real.double(), FEW)
    return Neighbours(
        (float(own.min()), float(own.median())),
        (float(real.min()), float(real.median())),
        int((own < bound).sum()),
        len(own),
    )


def nearest(images: Tensor, split: Split) -> Tensor:
    """Return the distance of each image to the nearest one of a split, (n,), on the CPU."""
    ours, least = standard(images), torch.full((len(images),), torch.inf)
    for part, _ in batches(split, AT_ONCE):
        products = ours @ standard(part).T
        least = least.minimum((2 - 2 * products.amax(1)).clamp_min(0).sqrt().cpu())
    return least


def standard(images: Tensor) -> Tensor:
    """Return images (n, d) of mean 0 and norm 1."""
    flat = images.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return F.normalize(centred, eps=SMALLEST)
