"""Boost-DD: a set made block by block, so that its first blocks are a good set of their size.

The distiller is called anew for each block, on the union of the earlier blocks and a fresh one,
with the learning rate of the earlier ones multiplied by beta. It wraps any method: a method sees
examples, and how many of them are frozen, and knows nothing of blocks.

Source: Algorithm 2 and section 5 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. Its line 3 gives
    the reduced rate to the first "(j-1) b" examples; there are j b old ones. beta multiplies the
    learning rate after Adam, the labels' too: a factor on the gradient would cancel in Adam. When
    beta is 0, earlier blocks are not variables at all.
"""

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data.layouts import listed
from potstill.devices import synchronize
from potstill.distillation.leaf_rules import Rule
from potstill.distilled.blocks import Block, joined
from potstill.engine.unroll import with_grad
from potstill.errors import InputError
from potstill.files import with_prefix
from potstill.methods.base import Estimate, Examples, Learnable, Method, State
from potstill.parameterisations.base import Parameterisation

LEARNED = "method."
"""Prefix, among the leaves, of the names of a method's learnables."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of a run.

    Args:
        images: for the leaves that decode to images.
        labels: for learned labels.
        beta: factor on both in earlier blocks.
        bounds: least and greatest values of pixels, (C, 1, 1); None: they have none.
        by_scale: whether the parameterisation's `speeds` hold. They are for an optimizer whose
            steps do not depend on a gradient's scale; in those of others it is contained already.
        signed: whether learned labels may be any numbers, not weights of classes.
        still: (n,) examples that stay as they are, of a set of one block; None: none.
    """

    images: float
    labels: float
    beta: float = 0.0
    bounds: tuple[Tensor, Tensor] | None = None
    by_scale: bool = True
    signed: bool = False
    still: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """One call of the distiller.

    Args:
        blocks: the earlier blocks as they are at its start, and the fresh one last.
        rates: the learning rates of the run.
    """

    blocks: tuple[Block, ...]
    rates: Rates

    @property
    def number(self) -> int:
        """The index of the stage, from 0."""
        return len(self.blocks) - 1

    @property
    def first_moving(self) -> int:
        """The index of the first block that is learned; earlier blocks are frozen."""
        return self.number if self.rates.beta == 0 else 0

    @property
    def learned(self) -> dict[str, Tensor]:
        """The leaves of the blocks that are learned, named by block and leaf, as in "1.images"."""
        return named(self.blocks, self.first_moving)

    @property
    def earlier(self) -> dict[str, Tensor]:
        """The leaves of the frozen blocks."""
        return named(self.blocks[: self.first_moving])

    def rules(self, learnables: Mapping[str, Learnable]) -> dict[str, Rule]:
        """Return how the outer optimiser treats each leaf, and each learnable of the method.

        Only the leaves that decode to images are clipped: the labels' gradient has another scale
        (released code; paper D.4 does not say). Weights of classes stay non-negative (paper D.1).
        """
        rules = {}
        for name in self.learned:
            number, _, kind = name.partition(".")
            factor = 1.0 if int(number) == self.number else self.rates.beta
            if kind == "targets":
                least = None if self.rates.signed else 0.0
                rules[name] = Rule(factor * self.rates.labels, least=least, still=self.rates.still)
            else:
                part = self.blocks[int(number)].parameterisation
                bounds = self.rates.bounds if kind in part.pixels else None
                speed = part.speeds[kind] if self.rates.by_scale else 1.0
                rate = factor * speed * self.rates.images
                rules[name] = Rule(rate, clipped=True, bounds=bounds, still=self.rates.still)
        for name, one in learnables.items():
            rules[LEARNED + name] = Rule(one.lr, least=one.least)
        return rules

    def with_leaves(self, leaves: Mapping[str, Tensor]) -> tuple[Block, ...]:
        """Return the blocks with these values of the learned leaves."""
        return with_leaves(self.blocks, leaves)

    @property
    def labels(self) -> Tensor:
        """The class of each example, (n,); examples of frozen blocks come first."""
        return torch.cat([block.labels for block in self.blocks])

    def on_blocks(self, method: Method, device: torch.device) -> "OnBlocks":
        """Wrap a method that was made for this stage's examples, for the outer loop."""
        frozen, moving = self.blocks[: self.first_moving], self.blocks[self.first_moving :]
        return OnBlocks(method, frozen, moving, device)


class OnBlocks:
    """A method as the outer loop calls it: with leaves of blocks in place of examples.

    Args:
        method: estimates the gradient at examples.
        frozen: blocks that stay as they are.
        moving: blocks that are learned.
        device: of all tensors.
    """

    def __init__(
        self,
        method: Method,
        frozen: tuple[Block, ...],
        moving: tuple[Block, ...],
        device: torch.device,
    ):
        self.method, self.frozen, self.moving, self.device = method, frozen, moving, device
        self.remedy = method.remedy
        self.still = examples(frozen) if frozen else {}

    def require_known(self, what: str, names: Collection[str], known: Collection[str]) -> None:
        """Raise an InputError if a method names what it was not given: it would move nothing."""
        if strange := sorted({*names} - {*known}):
            raise InputError(
                f"method {type(self.method).__name__} must name {what} of "
                f"{listed(known)}, got {listed(strange)}; see docs/methods.md"
            )

    def split(self, leaves: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split the leaves into those of blocks and the method's learnables."""
        learned = with_prefix(leaves, LEARNED)
        return {
            name: leaf for name, leaf in leaves.items() if not name.startswith(LEARNED)
        }, learned

    def examples(self, leaves: Mapping[str, Tensor]) -> tuple[Examples, dict[str, Tensor]]:
        """Decode the leaves of blocks to the method's examples.

        Returns:
            All examples, without a graph, and those of the moving blocks with theirs: "images" and,
            if they are learned, "targets".
        """
        blocks = with_leaves(self.moving, leaves, len(self.frozen))
        made = examples(blocks)
        labels = torch.cat([block.labels for block in (*self.frozen, *blocks)])
        whole = {
            name: joined([*([self.still[name]] if self.still else []), tensor.detach()])
            for name, tensor in made.items()
        }
        learn = any(name.endswith(".targets") for name in leaves)
        count = len(self.still["images"]) if self.still else 0
        moving = {name: tensor for name, tensor in made.items() if name == "images" or learn}
        return Examples(whole["images"], whole["targets"], labels, count, learn), moving

    def estimate(self, leaves: Mapping[str, Tensor], state: State, step: int) -> Estimate:
        """Estimate the gradient in the leaves, through the decoding."""
        began = self.now()
        of_blocks, learned = self.split(leaves)
        wanted = with_grad(of_blocks)
        given, moving = self.examples(wanted)
        decoded = self.now()
        estimate = self.method.estimate(given, learned, state, step)
        estimated = self.now()
        parts = ("images", "targets")
        self.require_known("gradients", estimate.grads, (*parts, *learned))
        self.require_known("values", estimate.values, parts)
        reached = [name for name in moving if name in estimate.grads]
        grads = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        if reached:
            of_leaves = torch.autograd.grad(
                [moving[name] for name in reached],
                list(wanted.values()),
                [estimate.grads[name][given.frozen :] for name in reached],
                allow_unused=True,
                materialize_grads=True,
            )
            grads |= dict(zip(wanted, of_leaves, strict=True))
        grads |= {
            LEARNED + name: estimate.grads[name] for name in learned if name in estimate.grads
        }
        values = {
            f"{number}.{name}": part
            for name, tensor in estimate.values.items()
            for number, part in self.parts(name, tensor[given.frozen :])
        }
        info = dict(estimate.info)
        if self.device.type != "cuda":  # where it would wait for all that was launched
            seconds = decoded - began + self.now() - estimated
            info["decode_seconds"] = round(seconds, 6)
        return dataclasses.replace(estimate, grads=grads, info=info, values=values)

    def parts(self, name: str, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each moving block, and its part of values of all moving examples.

        Args:
            name: "images", of which each is stored, or "targets", which some share.
            values: (n, ...).
        """
        sizes = [len(block.labels) for block in self.moving]
        pairs = zip(self.moving, values.split(sizes), strict=True)
        for number, (block, part) in enumerate(pairs, start=len(self.frozen)):
            yield number, part[:: block.parameterisation.sharing] if name == "targets" else part

    def now(self) -> float:
        """Return the time in seconds, once a device that may be waited for is done."""
        if self.device.type != "cuda":
            synchronize(self.device)
        return time.perf_counter()


def stage_sizes(parameterisation: Parameterisation, blocks: int) -> tuple[int, ...]:
    """Return the examples of each class of the set in each stage of a run."""
    return tuple(parameterisation.per_class * (number + 1) for number in range(blocks))


def named(blocks: tuple[Block, ...], first: int = 0) -> dict[str, Tensor]:
    """Name the leaves of the blocks from `first` on by block number and leaf."""
    return {
        f"{number}.{name}": leaf
        for number, block in enumerate(blocks)
        if number >= first
        for name, leaf in block.leaves.items()
    }


def made_blocks(
    leaves: Mapping[str, Tensor], parameterisation: Parameterisation
) -> tuple[Block, ...]:
    """Make blocks, all of one parameterisation, from leaves that are named as in `named`."""
    numbers = {name.partition(".")[0] for name in leaves if not name.startswith(LEARNED)}
    return tuple(
        Block(with_prefix(leaves, f"{number}."), parameterisation) for number in range(len(numbers))
    )


def with_leaves(
    blocks: tuple[Block, ...], leaves: Mapping[str, Tensor], first: int = 0
) -> tuple[Block, ...]:
    """Return the blocks, numbered from `first`, with new values of leaves named as in `named`."""
    return tuple(
        dataclasses.replace(block, leaves={**block.leaves, **with_prefix(leaves, f"{number}.")})
        for number, block in enumerate(blocks, start=first)
    )


def examples(blocks: tuple[Block, ...]) -> dict[str, Tensor]:
    """Join images and targets of several blocks, one block after the other."""
    return {
        "images": joined([block.images for block in blocks]),
        "targets": joined([block.targets for block in blocks]),
    }
