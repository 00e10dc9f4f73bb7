"""How hard real examples are, and real batches that are drawn by hardness.

Two scores: **forgetting events** of networks that train on all real data (Toneva et al. 2019,
arXiv:1812.05159; appendix E.1 of Feng et al. 2024), and the cheap **adaptive score**: how many
networks trained on the distilled set misclassify an example (appendix E.2).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill import files
from potstill.config.options import option
from potstill.data.sampling import RealSampler, Weighted, plain_sampler
from potstill.data.splits import Split
from potstill.distilled.recipes import Recipe
from potstill.errors import InputError
from potstill.evaluation.scoring import Progress
from potstill.evaluation.training import (
    Predict,
    evaluation_batches,
    split_batches,
    steps_of,
    train_network,
)
from potstill.models import fresh
from potstill.seeds import derive
from potstill.workers import all_threads_at_once, in_order

KIND = "forgetting events"
MORE, NEVER = 1000.0, 1001.0
"""Strata beyond the last edge, see `Forgetting.strata`."""


@dataclass(frozen=True)
class ByHardness:
    """Real batches with more of the images that networks trained on the synthetic set disagree on.

    Source: appendix E.2 and figure 17 of Feng et al. 2024: the score of an image is how many of the
        networks misclassify it. As the prose says, images of middling score weigh most; the printed
        formula, threshold + |score - m|, favours both extremes instead.
    """

    hardness_threshold: float = option(
        1.0, "least weight of a real image", low=0, open_low=True, source="paper E.2: 1 and 4"
    )
    hardness_nets: int = option(8, "networks that score the real images", low=1, high=255)
    hardness_every: int = option(
        50, "outer steps between scorings", low=1, source="paper E.2: 50 epochs"
    )
    hardness_from: int = option(
        0, "outer step of the first scoring", low=0, source="figure 17: 25,000"
    )

    def due(self, step: int) -> bool:
        """Return whether the images are to be scored before this outer step."""
        since = step - self.hardness_from
        return since >= 0 and since % self.hardness_every == 0

    def refresh(
        self, trained: Callable[[int], Predict], split: Split, seed: int, progress: Progress | None
    ) -> dict[str, Tensor]:
        """Score the real images by fresh networks; see `adaptive_scores`.

        Args:
            trained: seed -> what a fresh network answers that trained on the set as it is now.
            split: the real images.
            seed: of starts and batches.
            progress: called after each network.
        """
        nets = self.hardness_nets
        scores = adaptive_scores(trained, split, networks=nets, seed=seed, progress=progress)
        return {"scores": scores}

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        """Return a sampler by hardness; before the first scoring, by the user's weights, if any."""
        if "scores" not in state:
            return plain_sampler(weights)
        scores = state["scores"].cpu()
        if scores.dim() != 1 or not bool(((scores >= 0) & (scores <= self.hardness_nets)).all()):
            raise InputError(
                f"the scores in a checkpoint must be a number in 0..{self.hardness_nets} for each "
                "example, got others; the checkpoint is damaged: remove it"
            )
        own = hardness_weights(scores, self.hardness_threshold, self.hardness_nets)
        return Weighted(own if weights is None else own * weights)

    def words(self) -> str:
        """Describe the sampler for a report."""
        since = f" from step {self.hardness_from:,} on" if self.hardness_from else ""
        return (
            f"most of middling hardness, least weight {self.hardness_threshold:g}; scored by "
            f"{self.hardness_nets} networks every {self.hardness_every:,} steps{since}"
        )


def hardness_weights(scores: Tensor, threshold: float, networks: int) -> Tensor:
    """Return each example's weight in a real batch, by how many networks misclassify it.

    Args:
        scores: (N,) in 0 .. networks.
        threshold: the least weight.
        networks: how many networks, 2 m.
    Returns:
        (N,) threshold + m - |score - m|: the easiest and the hardest count least.
    """
    middle = networks / 2
    return threshold + middle - (scores.double() - middle).abs()


@torch.no_grad()
def predictions(predict: Predict, split: Split) -> Tensor:
    """Return the class (N,) that a network gives each example, on the CPU."""
    return torch.cat([predict(images).argmax(1).cpu() for images, _ in evaluation_batches(split)])


def adaptive_scores(
    trained: Callable[[int], Predict],
    split: Split,
    *,
    networks: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Count the fresh networks, trained on the distilled set, that misclassify each real example.

    Args:
        trained: seed -> what a fresh network answers that trained on the set as it is now.
        split: the real examples.
        networks: how many (the paper takes 8).
        seed: of starts and batches.
        progress: called after each network.
    Returns:
        (N,) uint8.
    """
    wrong = torch.zeros(len(split), dtype=torch.uint8)

    def missed(network: int) -> Tensor:
        predict = trained(derive(seed, "network", network))
        return (predictions(predict, split) != split.labels).to(torch.uint8)

    tasks = (partial(missed, network) for network in range(networks))
    for network, found in enumerate(in_order(tasks)):
        wrong += found
        if progress:
            progress("scoring real images", network + 1, networks)
    return wrong


@dataclass(frozen=True)
class Forgetting:
    """Forgetting events of every train example.

    Args:
        events: (N,) how often an example was right at the end of an epoch and wrong at the end of
            the next; mean over starts.
        learned: (N,) the share of starts in which it was ever right. 0 means never learned: the
            example has no events, and is not easy.
    """

    events: Tensor
    learned: Tensor

    def strata(self, edges: Sequence[float]) -> dict[float, Tensor]:
        """Return stratum -> indices of its examples; empty strata are left out.

        Args:
            edges: ascending numbers of events, from 0.
        Returns:
            For each edge, the examples with more events than the edge before it and at most its own
                number; `MORE`: the examples with more events than the last edge; `NEVER`: the
                examples that more than half of the starts never learned, which are in no other
                stratum.
        """
        names = torch.tensor([*edges, MORE], dtype=torch.float64)
        number = names[torch.bucketize(self.events, names[:-1])]
        number[self.learned < 0.5] = NEVER
        return {
            stratum: torch.nonzero(number == stratum)[:, 0] for stratum in number.unique().tolist()
        }


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
        folder: keeps each start's result, so that an interrupted count goes on and a finished
            one is not repeated.
        content: what the split holds, for the folder: a hash of the data, and how it was cut and
            preprocessed.
        progress: called after each epoch.
    Raises:
        InputError: a folder without content, where results of other data might be found.
    """
    if folder and not content:
        raise InputError(
            "content must tell the data, as a hash does, where a folder keeps results; got nothing"
        )
    # How a small set is trained on does not matter.
    taught = replace(recipe, steps=0, batch_per_class=0, classes_per_batch=0)
    identity = files.canonical([content, repr(taught), epochs, seed])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    counted = []
    for start in range(starts):
        path = folder / f"forgetting-{digest}-{start}.safetensors" if folder else None
        if path and path.is_file():
            tensors = files.load_tensors(path, KIND)[0]
            counted.append((tensors["events"], tensors["learned"]))
            continue

        def report(done: int, before: int = start * epochs) -> None:
            if progress:
                progress("epochs on the real data", before + done, starts * epochs)

        own = derive(seed, "forgetting", start)
        network = fresh(factory, own, device)
        with all_threads_at_once():
            events, learned = one_start(split, recipe, classes, network, epochs, own, report)
        counted.append((events, learned))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"events": events, "learned": learned}
            files.save_tensors(path, tensors, KIND, {"epochs": epochs})
    events, learned = map(torch.stack, zip(*counted, strict=True))
    return Forgetting(events.double().mean(0), learned.double().mean(0))


def one_start(
    split: Split,
    recipe: Recipe,
    classes: int,
    network: nn.Module,
    epochs: int,
    seed: int,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Train one network, and look at every example after each epoch.

    Args:
        split: the real training data.
        recipe: how the network is trained.
        classes: number of classes.
        network: trained in place.
        epochs: passes over the split.
        seed: of the batches.
        report: called with the number of epochs after each.
    Returns:
        (n,) int32 forgetting events of each example, and (n,) whether it was ever right.
    """
    events = torch.zeros(len(split), dtype=torch.int32)
    learned, before = torch.zeros(2, len(split), dtype=torch.bool)
    batches = split_batches(split, recipe, classes, seed)
    stops = [steps_of(split, done + 1) for done in range(epochs)]
    trained = train_network(network, batches, recipe, stops, seed)
    for done, predict in enumerate(trained, start=1):
        right = predictions(predict, split) == split.labels
        events += before & ~right
        learned |= right
        before = right
        report(done)
    return events, learned
