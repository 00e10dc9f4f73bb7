"""Boost-DD: a set made block by block, so that its first blocks are a good set of their size.

The distiller is called anew for each block, on the union of the earlier blocks and a fresh one, with the learning rate of
the earlier ones multiplied by beta. It wraps any method from outside: a method sees images and targets, and whether some
examples before them are frozen, and knows nothing of blocks.

Source: Algorithm 2 and section 5 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. Its line 3 gives the reduced rate to the
first "(j-1) b" examples; there are j b old ones. beta multiplies the learning rate after Adam, the labels' too: a factor on
the gradient would cancel in Adam. When beta is 0, earlier blocks are no variables at all.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.config import Config
from potstill.devices import synchronize
from potstill.distilled import Block, joined
from potstill.inner import with_grad
from potstill.methods.base import Estimate, Method, MethodState, Problem
from potstill.outer import OuterState, Rule
from potstill.parameterisations.base import Parameterisation
from potstill.registry import METHODS
from potstill.seeds import derive
from potstill.store import with_prefix


@dataclass(frozen=True)
class Stage:
    """One call of the distiller.

    Args:
        config: of the run, without "auto".
        blocks: the earlier blocks as they are at its start, and the fresh one last.
    """

    config: Config
    blocks: tuple[Block, ...]

    @property
    def number(self) -> int:
        """Which one; the first is 0."""
        return len(self.blocks) - 1

    @property
    def first_moving(self) -> int:
        """The first block that moves; those before it are frozen."""
        return self.number if self.config.distilled.boost_beta == 0 else 0

    @property
    def learned(self) -> dict[str, Tensor]:
        """The leaves of the blocks that move, by the block's number and the leaf's name, as in "1.images"."""
        return named(self.blocks, self.first_moving)

    @property
    def earlier(self) -> dict[str, Tensor]:
        """The leaves of the blocks that are frozen."""
        return named(self.blocks[: self.first_moving])

    @property
    def rules(self) -> dict[str, Rule]:
        """How the outer optimiser treats each of `learned`.

        Only what images are made of is clipped: the labels' gradient has another scale (released code; paper D.4 does not
        say). Weights of classes stay non-negative (paper D.1).
        """
        outer, rules = self.config.outer, {}
        for name in self.learned:
            number, _, kind = name.partition(".")
            factor = 1.0 if int(number) == self.number else self.config.distilled.boost_beta
            if kind == "targets":
                rules[name] = Rule(factor * float(outer.label_lr), least=0.0)
            else:
                speed = self.blocks[int(number)].parameterisation.speeds[kind]
                rules[name] = Rule(factor * speed * float(outer.outer_lr), clipped=True)
        return rules

    def with_leaves(self, leaves: Mapping[str, Tensor]) -> tuple[Block, ...]:
        """The blocks with these values of what is learned."""
        return with_leaves(self.blocks, leaves)

    def method(self, problem: Problem) -> "OnBlocks":
        """The run's method on this stage; `problem` is the run's, and takes the examples, seed and batches of the stage."""
        inner, per_class = self.config.inner, sum(block.parameterisation.per_class for block in self.blocks)
        frozen, moving = self.blocks[: self.first_moving], self.blocks[self.first_moving :]
        seed, micro = self.config.run.seed, stage_micro_batch(self.config, per_class, compiled=problem.compiled is not None)
        config = dataclasses.replace(
            self.config,
            inner=dataclasses.replace(inner, synthetic_micro_batch=micro),
            run=dataclasses.replace(self.config.run, seed=derive(seed, "block", self.number) if self.number else seed),
        )
        own = dataclasses.replace(
            problem,
            config=config,
            labels=torch.cat([block.labels for block in self.blocks]),
            fixed={} if config.distilled.learn_labels else {"targets": joined([block.targets for block in moving])},
            frozen=examples(frozen) if frozen else {},
        )
        return OnBlocks(METHODS[config.outer.method](own), moving, self.first_moving, own.device)

    def begin(self, method: Method) -> OuterState:
        """The outer loop's state before its first step: fresh moments, a fresh clip average (Algorithm 2 calls the distiller)."""
        return OuterState.start(self.learned, method.init(), self.number, self.earlier)


class OnBlocks:
    """A method as the outer loop calls it: with the leaves of blocks in place of images and targets."""

    def __init__(self, method: Method, blocks: tuple[Block, ...], first: int, device: torch.device):
        self.inner, self.blocks, self.first, self.device = method, blocks, first, device

    def init(self) -> MethodState:
        return self.inner.init()

    def finish(self, state: MethodState) -> dict[str, Any]:
        return self.inner.finish(state)

    def learned(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The examples that are made of leaves which ask for a gradient: images and, unless they are fixed, targets."""
        made = examples(with_leaves(self.blocks, wanted, self.first))
        return {name: tensor for name, tensor in made.items() if tensor.requires_grad}

    def estimate(self, leaves: Mapping[str, Tensor], state: MethodState, outer_step: int) -> Estimate:
        began = self.now()
        wanted = with_grad(leaves)
        learned = self.learned(wanted)
        decoded = self.now()
        estimate = self.inner.estimate({name: tensor.detach() for name, tensor in learned.items()}, state, outer_step)
        estimated = self.now()
        cotangents = [estimate.grads[name] for name in learned]
        grads = torch.autograd.grad(list(learned.values()), list(wanted.values()), cotangents)
        seconds = decoded - began + self.now() - estimated
        info = {**estimate.info, "decode_seconds": round(seconds, 6)}
        return dataclasses.replace(estimate, grads=dict(zip(wanted, grads, strict=True)), info=info)

    def now(self) -> float:
        """The time when the device is done."""
        synchronize(self.device)
        return time.perf_counter()


def stage_micro_batch(config: Config, per_class: int, *, compiled: bool) -> int:
    """How many synthetic examples at once in a stage of a run that holds `per_class` examples of each class.

    A compiled run takes the run's own number or its half, quarter, ...: the last micro-batch is filled up to it, and a shape
    for each stage would be a compilation for each.
    """
    batch = min(per_class, int(config.inner.batch_per_class)) * int(config.inner.classes_per_batch)
    most = int(config.inner.synthetic_micro_batch)
    if not compiled:
        return min(batch, most)
    while (half := -(-most // 2)) >= batch and half < most:
        most = half
    return most


def stage_sizes(config: Config, parameterisation: Parameterisation) -> list[int]:
    """Examples of each class of the set in each stage of a run."""
    return [parameterisation.per_class * (number + 1) for number in range(config.distilled.boost_blocks)]


def named(blocks: tuple[Block, ...], first: int = 0) -> dict[str, Tensor]:
    """The leaves of the blocks from `first` on, by the block's number and the leaf's name."""
    return {
        f"{number}.{name}": leaf for number, block in enumerate(blocks) if number >= first for name, leaf in block.leaves.items()
    }


def made_blocks(leaves: Mapping[str, Tensor], parameterisation: Parameterisation) -> tuple[Block, ...]:
    """Blocks from leaves that are named as `named` does, all of one parameterisation."""
    count = len({name.partition(".")[0] for name in leaves})
    return tuple(Block(with_prefix(leaves, f"{number}."), parameterisation) for number in range(count))


def with_leaves(blocks: tuple[Block, ...], leaves: Mapping[str, Tensor], first: int = 0) -> tuple[Block, ...]:
    """The blocks, numbered from `first`, with other values of the leaves that are named as `named` does."""
    return tuple(
        dataclasses.replace(block, leaves={**block.leaves, **with_prefix(leaves, f"{number}.")})
        for number, block in enumerate(blocks, start=first)
    )


def examples(blocks: tuple[Block, ...]) -> dict[str, Tensor]:
    """Images and targets of several blocks, one block after the other."""
    return {
        "images": joined([block.images for block in blocks]),
        "targets": joined([block.targets for block in blocks]),
    }
