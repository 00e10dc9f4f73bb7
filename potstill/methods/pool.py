"""Partly trained networks that wait between outer steps, each for a window of its own.

RaT-BPTT trains a fresh network at every outer step, most of the time only to reach the window. A
network of the pool goes on from where an earlier outer step left it: it was trained on the set as
that was then, is at most a lifetime old, and then another one starts in its place. A fresh one
first takes a random part of a window, so that windows begin everywhere.

Source: the third wish of Feng, Vedantam & Kempe 2024, D.7, as in FRePo (Zhou et al. 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from potstill.engine.optimizers import State as Moments
from potstill.methods.one_unroll import Replay, Start, Unroll

PLACES, OF_PLACE = "pool", "pool of {place}.{moment}"
"""Names in a method's state: what is known of each place, and the tensors of a network there."""


@dataclass(frozen=True)
class Pool:
    """What a pool does with a method's state, which it never changes.

    Args:
        size: networks that wait.
        window: inner steps of an outer step.
        lifetime: most inner steps of a network.
    """

    size: int
    window: int
    lifetime: int

    def empty(self) -> dict[str, Any]:
        """Return the part of the state before the first outer step: nobody waits."""
        return {PLACES: [[] for _ in range(self.size)]}

    def drawn(
        self, state: Mapping[str, Any], replays: Sequence[Replay], rng: torch.Generator
    ) -> list[Unroll]:
        """Draw a place for each trajectory of an outer step.

        Args:
            state: the method's.
            replays: numbers of the trajectories, at most `size`.
            rng: of the outer step.
        Returns:
            The trajectories.
        """
        places = torch.randperm(self.size, generator=rng)[: len(replays)].tolist()
        found = []
        for place, replay in zip(places, replays, strict=True):
            # Drawn for those that wait, too: what others draw does not depend on them.
            burn_in = int(torch.randint(self.latest, (), generator=rng))
            if known := state[PLACES][place]:
                age, step, trajectory = known
                start = Start(Replay(step, trajectory), age, self.moments(state, place))
                found.append(Unroll(replay, start, 0, self.window, place))
            else:
                found.append(Unroll(replay, Start(replay), burn_in, self.window, place))
        return found

    @property
    def latest(self) -> int:
        """How many numbers of steps the first window of a network may begin at, from 0."""
        return min(self.window, self.lifetime - self.window + 1)

    def moments(self, state: Mapping[str, Any], place: int) -> Moments:
        """Return the tensors of the network at a place."""
        prefix = OF_PLACE.format(place=place, moment="")
        names = sorted(name for name in state if name.startswith(prefix))
        return tuple(state[name] for name in names)

    def after(self, state: Mapping[str, Any], unroll: Unroll, final: Moments) -> dict[str, Any]:
        """Return the state with a network put back, or its place empty if it is too old.

        Args:
            state: the method's.
            unroll: the trajectory that it took.
            final: the inner optimiser's state after it.
        """
        born, age = unroll.start.born, unroll.start.first + unroll.burn_in + unroll.window
        kept = self.without(state, unroll.place)
        if age + self.window <= self.lifetime:
            kept[PLACES][unroll.place] = [age, born.step, born.trajectory]
            for index, moment in enumerate(final):
                kept[OF_PLACE.format(place=unroll.place, moment=index)] = moment
        return kept

    def without(self, state: Mapping[str, Any], place: int) -> dict[str, Any]:
        """Return the state with nobody at a place: the next one there is fresh."""
        prefix = OF_PLACE.format(place=place, moment="")
        kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
        kept[PLACES] = [[] if at == place else one for at, one in enumerate(state[PLACES])]
        return kept
