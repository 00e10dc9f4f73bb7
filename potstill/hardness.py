"""How hard real examples are, and real batches that are drawn by it.

Two scores: **forgetting events** of networks that train on all real data (Toneva et al. 2019, arXiv:1812.05159; appendix E.1 of
Feng et al. 2024), and the cheap **adaptive score**, by how many networks trained on the distilled set an example divides
(appendix E.2).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill import store
from potstill.data import Split
from potstill.distilled import Recipe
from potstill.models import fresh
from potstill.registry import InputError
from potstill.scoring import Progress
from potstill.seeds import derive
from potstill.training import Batches, Predict, evaluation_batches, split_batches, steps_of, train_network

KIND = "forgetting events"
MORE, NEVER = 1000.0, 1001.0
"""Strata beyond the last edge, see `Forgetting.strata`."""


def hardness_weights(scores: Tensor, threshold: float, networks: int, reading: str) -> Tensor:
    """The weight of each example in a real batch, by how many of some networks it divides.

    Args:
        scores: (N,) in 0 .. networks.
        threshold: the least weight.
        networks: how many networks.
        reading: "middle": threshold + m - |score - m| with m = networks / 2: as the prose of appendix E.2 wants it, the easiest
            and the hardest count least. "extremes": threshold + |score - m|, as its formula is printed.
    """
    middle = networks / 2
    distance = (scores.double() - middle).abs()
    return threshold + (middle - distance if reading == "middle" else distance)


@torch.no_grad()
def predictions(predict: Predict, split: Split) -> Tensor:
    """(N,) the class that a network gives each example, on the CPU."""
    return torch.cat([predict(images).argmax(1).cpu() for images, _ in evaluation_batches(split)])


def disagreement(classes: Tensor, labels: Tensor, against: str) -> Tensor:
    """(N,) how many of k networks an example divides.

    Args:
        classes: (k, N) what they predict.
        labels: (N,) what is right.
        against: "label": of them, how many are wrong: 0 .. k, the range that appendix E.2 gives. "vote": how many differ from
            the most frequent prediction: disagreement in predictions, in the words of the same place.
    """
    if against == "label":
        return (classes != labels).sum(0)
    return (classes != classes.mode(0).values).sum(0)


def adaptive_scores(
    make: Callable[[int], Batches],
    recipe: Recipe,
    factory: Callable[[], nn.Module],
    split: Split,
    *,
    networks: int,
    against: str,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """(N,) uint8: how many fresh networks, trained on the distilled set as it is now, each real example divides.

    Args:
        make: seed of a network -> its batches of the distilled set.
        recipe: how they train, and for how long.
        factory: makes a fresh network.
        split: the real examples.
        networks: how many (the paper takes 8).
        against: see `disagreement`.
        seed: of starts and batches.
        device: where to train.
        progress: called after each network.
    """
    found = []
    for network in range(networks):
        own = derive(seed, "network", network)
        (predict,) = train_network(fresh(factory, own, device), make(own), recipe, (recipe.steps,), own)
        found.append(predictions(predict, split))
        if progress:
            progress("scoring real images", network + 1, networks)
    return disagreement(torch.stack(found), split.labels, against).to(torch.uint8)


@dataclass(frozen=True)
class Forgetting:
    """Forgetting events of every train example.

    Args:
        events: (N,) how often an example that was right at the end of an epoch was wrong at the end of the next; mean over starts.
        learned: (N,) the share of starts in which it ever was right. Of 0, it has no events and is not easy: never learned.
    """

    events: Tensor
    learned: Tensor

    def strata(self, edges: Sequence[float]) -> dict[float, Tensor]:
        """Stratum -> positions of its examples; empty ones are left out.

        Args:
            edges: ascending numbers of events, from 0.
        Returns:
            For each edge the examples with more events than at the edge before and at most so many; `MORE`: those with more
            than at the last; `NEVER`: those that more than half of the starts never learned, which are in no other.
        """
        names = torch.tensor([*edges, MORE], dtype=torch.float64)
        number = names[torch.bucketize(self.events, names[:-1])]
        number[self.learned < 0.5] = NEVER
        return {stratum: torch.nonzero(number == stratum)[:, 0] for stratum in number.unique().tolist()}


def forgetting(
    split: Split,
    recipe: Recipe,
    factory: Callable[[], nn.Module],
    classes: int,
    *,
    epochs: int,
    starts: int,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
    content: str = "",
    progress: Progress | None = None,
) -> Forgetting:
    """Train on all of a split from several starts and count forgetting events, epoch by epoch.

    Args:
        split: the real training data.
        recipe: how the network is trained, but for its number of steps.
        factory: makes a fresh network.
        classes: number of classes.
        epochs: passes over the split, after each of which every example is looked at.
        starts: how many networks (the paper takes 10).
        seed: of starts and batches.
        device: where to train.
        folder: keeps each start's result, so that what was cut off goes on, and what is known is not done again.
        content: what the split holds, for the folder: a hash of the data, and how it was cut and preprocessed.
        progress: called after each epoch.
    Raises:
        InputError: a folder without content, where results of other data might be found.
    """
    if folder and not content:
        raise InputError("content must tell the data, as a hash does, where a folder keeps results; got nothing")
    counted = [(torch.zeros(len(split), dtype=torch.int32), torch.zeros(len(split), dtype=torch.bool)) for _ in range(starts)]
    taught = replace(recipe, steps=0, batch_per_class=0, classes_per_batch=0)  # how a small set is trained on does not matter
    digest = hashlib.sha256(store.canonical([content, repr(taught), epochs, seed]).encode()).hexdigest()[:16]
    for start, (events, learned) in enumerate(counted):
        path = folder / f"forgetting-{digest}-{start}.safetensors" if folder else None
        if path and path.is_file():
            kept, _ = store.load_tensors(path, KIND)
            events += kept["events"]
            learned |= kept["learned"]
        else:
            own, before = derive(seed, "forgetting", start), torch.zeros(len(split), dtype=torch.bool)
            batch = split_batches(split, recipe, classes, own)
            stops = [steps_of(split, done + 1) for done in range(epochs)]
            for done, predict in enumerate(train_network(fresh(factory, own, device), batch, recipe, stops, own)):
                right = predictions(predict, split) == split.labels
                events += before & ~right
                learned |= right
                before = right
                if progress:
                    progress("epochs on the real data", start * epochs + done + 1, starts * epochs)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                store.save_tensors(path, {"events": events, "learned": learned}, KIND, {"epochs": epochs})
    return Forgetting(
        torch.stack([events for events, _ in counted]).double().mean(0),
        torch.stack([learned for _, learned in counted]).double().mean(0),
    )
