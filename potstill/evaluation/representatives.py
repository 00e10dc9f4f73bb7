"""Real batches of representatives: the examples nearest to the centres of clusters.

Source: Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching", ICCV 2023,
    arXiv:2302.14416: k-means of each class in the features of the network at hand, as many clusters
    as a batch has examples, anew every ten steps. Here the features are those of a network that
    trained on the set as it is, so that every method can draw its batches so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.config.options import option
from potstill.data.sampling import ClassWise, RealSampler, Weighted, plain_sampler
from potstill.data.splits import Part, Split
from potstill.errors import InputError
from potstill.evaluation.scoring import Progress
from potstill.evaluation.training import TrainedNetwork, evaluation_batches
from potstill.seeds import derive


@dataclass(frozen=True)
class ByClusters:
    """Real batches of the examples nearest to the centres of clusters of their class."""

    clusters: int = option(
        128, "clusters of each class, of which a batch takes some or all", low=1, source="DREAM"
    )
    cluster_every: int = option(100, "outer steps between clusterings", low=1)

    def due(self, step: int) -> bool:
        """Return whether the examples are to be clustered before this outer step."""
        return step % self.cluster_every == 0

    def refresh(
        self,
        trained: Callable[[int], TrainedNetwork],
        split: Split,
        seed: int,
        progress: Progress | None,
    ) -> dict[str, Tensor]:
        """Cluster the real examples by a fresh network; see `representatives`.

        Args:
            trained: seed -> a fresh network that trained on the set as it is now.
            split: the real examples.
            seed: of the network and the clusters.
            progress: called after each class.
        Returns:
            "chosen" (N,), 1 for a representative and 0 for others.
        """
        network = trained(derive(seed, "network"))
        chosen = torch.zeros(len(split), dtype=torch.uint8)
        members = ClassWise(split).members
        for label, rows in members.items():
            parts = evaluation_batches(Part(split, rows))
            with torch.no_grad():
                values = torch.cat([network.features(part).cpu() for part, _ in parts])
            chosen[rows[representatives(values, self.clusters, derive(seed, "k-means", label))]] = 1
            if progress:
                progress("clustering the real examples", label + 1, len(members))
        return {"chosen": chosen}

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        """Return a sampler of representatives; before the first clustering, by the user's weights.

        `weights` (N,) are the user's.
        """
        if "chosen" not in state:
            return plain_sampler(weights)
        chosen = state["chosen"].cpu()
        if chosen.dim() != 1 or not bool((chosen <= 1).all()) or not bool(chosen.any()):
            raise InputError(
                "the representatives in a checkpoint must be marked by 1 and others by 0, got "
                "others; the checkpoint is damaged: remove it"
            )
        own = chosen.double()
        return Weighted(own if weights is None else own * weights)

    def words(self) -> str:
        """Describe the sampler for a report."""
        return (
            f"nearest to the centres of {self.clusters:,} clusters of each class, by a network "
            f"trained on the set, every {self.cluster_every:,} steps"
        )


def representatives(values: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the indices (k,), ascending, of the examples nearest to the centres of k-means.

    Each is the nearest one to some centre; two centres may share one, so k may be below `clusters`.

    Args:
        values: (N, F), on the CPU.
        clusters: how many; with as many examples or fewer, all are returned.
        seed: of the first centres.
    """
    # Here: importing it takes half a second.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(values) <= clusters:
        return torch.arange(len(values))
    rows = values.numpy()
    with threadpool_limits(1):  # more add up in the order in which they come
        known = KMeans(clusters, n_init=1, random_state=seed % 2**32).fit(rows)
    centres = torch.from_numpy(known.cluster_centers_)
    nearest: Tensor = torch.cdist(centres, values).argmin(1).unique()
    return nearest
