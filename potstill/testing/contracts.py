"""A part under test, and the error that names the rule it breaks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.config.options import declared, options_class
from potstill.files import canonical


class ContractError(AssertionError):
    """A part breaks a rule that potstill relies on."""


@dataclass(frozen=True)
class Part:
    """A part under test.

    Args:
        name: that messages call it by.
    """

    name: str

    def must(self, rule: str, holds: bool, instead: str, *, protects: str) -> None:
        """Raise a ContractError unless a rule holds.

        Args:
            rule: in words that follow "must".
            holds: whether it holds.
            instead: what was found if it does not.
            protects: what the rule protects.
        """
        if not holds:
            raise ContractError(f"{self.name} must {rule}, {instead}; this protects {protects}")

    def must_be_plain(self, rule: str, plain: Any, *, protects: str) -> None:
        """Raise a ContractError unless a value can be written as JSON; see `must`."""
        try:
            canonical(plain)
        except (TypeError, ValueError) as error:
            self.must(rule, False, str(error), protects=protects)


def check_options(part: Part, made: Any) -> None:
    """Check a part's Options: a frozen dataclass of options with help texts."""
    options = options_class(made)
    params = getattr(options, "__dataclass_params__", None)
    part.must(
        "have a frozen dataclass of options",
        params is not None and params.frozen,
        f"got {options.__name__}",
        protects="a run's identity, which options are part of",
    )
    known = [item for item, _ in declared(options)]
    part.must(
        "declare every field of Options with potstill.config.options.option",
        len(known) == len(dataclasses.fields(options)) or "Options" not in vars(made),
        "some are plain fields",
        protects="that each is a flag, a keyword and a key of a file",
    )
    for item in known:
        part.must(
            f"say what its option {item.name} is",
            bool(item.metadata["help"].strip()),
            "the help text is empty",
            protects="whoever reads --help",
        )


def same(one: Any, other: Any) -> bool:
    """Return whether plain data and tensors are equal, bit for bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.shape == other.shape
            and bool(torch.isclose(one, other, 0, 0, True).all())
        )
    if isinstance(one, Mapping):
        return set(one) == set(other) and all(
            same(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return bool(one == other)
