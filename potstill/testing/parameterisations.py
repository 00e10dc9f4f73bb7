"""The contract of a parameterisation, see `potstill.parameterisations.base`."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from potstill.config.options import options_class
from potstill.engine.unroll import with_grad
from potstill.parameterisations.base import Budget, Parameterisation
from potstill.registry import PARAMETERISATIONS, trust_given
from potstill.seeds import generator
from potstill.testing.contracts import Part, check_options, same
from potstill.testing.problems import CLASSES

BUDGET = Budget((3, 8, 8), CLASSES, 10)


def check_parameterisation(parameterisation: str | type, options: Any = None) -> None:
    """Check that a parameterisation keeps to the contract of `potstill.parameterisations.base`.

    Args:
        parameterisation: its registered name, "package.module:Name", or the class.
        options: an instance of its Options; None: their defaults.
    Raises:
        ContractError: it breaks a rule.
    """
    trust_given([parameterisation])
    if isinstance(parameterisation, str):
        name, made = parameterisation, PARAMETERISATIONS[parameterisation]
    else:
        name, made = PARAMETERISATIONS.name_of(parameterisation), parameterisation
    part, kind = Part(name), cast(Any, made)
    check_options(part, made)
    one = kind.fitting(BUDGET, options if options is not None else options_class(made)())
    part.must(
        f"store at most the budget's {BUDGET.floats:,} numbers",
        one.floats <= BUDGET.floats,
        f"it stores {one.floats:,}",
        protects="that accuracies at the same bytes compare",
    )
    check_starts(part, one)
    part.must(
        "have a speed above 0 for each leaf",
        set(one.speeds) == set(one.shapes) and all(speed > 0 for speed in one.speeds.values()),
        f"got {one.speeds}",
        protects="that every leaf moves",
    )
    plain = one.plain()
    part.must_be_plain("have fields of plain data", plain, protects="that a set's file can be read")
    fields = {of: value for of, value in plain.items() if of not in ("kind", "ipc")}
    again = kind(BUDGET, **fields)
    part.must(
        "come back from plain()",
        again == one,
        f"got {again}",
        protects="that a set's file can be read",
    )


def check_starts(part: Part, one: Parameterisation) -> None:
    """Check both ways to start: from noise, which the generator alone decides, and from images."""
    noise = one.noise(generator(0))
    count = CLASSES * one.real_per_class
    real = torch.randn(count, *BUDGET.shape, generator=generator(1))
    check_leaves(part, one, "noise", noise)
    check_leaves(part, one, "from_real", one.from_real(real, generator(0)))
    part.must(
        "draw its noise from the generator that it is given",
        same(noise, one.noise(generator(0))),
        "two starts differ",
        protects="that a seed gives one set",
    )


def check_leaves(
    part: Part, one: Parameterisation, start: str, leaves: Mapping[str, Tensor]
) -> None:
    """Check the leaves that a parameterisation starts from.

    Args:
        part: names the parameterisation.
        one: an instance that fits the budget.
        start: the name of its method that made the leaves.
        leaves: by name.
    """
    shapes = {of: tuple(leaf.shape) for of, leaf in leaves.items()}
    part.must(
        f"make leaves of its shapes from {start}",
        shapes == one.shapes,
        f"got {shapes} for {one.shapes}",
        protects="checkpoints and the outer optimiser",
    )
    wanted = (CLASSES * one.per_class, *BUDGET.shape)
    images = one.decode(leaves)
    part.must(
        f"decode to {wanted} finite numbers",
        tuple(images.shape) == wanted and bool(images.isfinite().all()),
        f"got {tuple(images.shape)} from {start}",
        protects="that each example has the class of its index",
    )
    asked = with_grad(leaves)
    loss = one.decode(asked).square().sum()
    grads = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
    missing = [of for of, grad in zip(asked, grads, strict=True) if grad is None]
    part.must(
        "decode differentiably in every leaf",
        not missing,
        f"{', '.join(missing)} gets no gradient",
        protects="that all that is stored is learned",
    )
