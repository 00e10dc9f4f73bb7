"""The parts that a run is put together from: which option names each, and which options are its
own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.config.options import Nothing, declared, may_be_auto, options_class
from potstill.registry import (
    METHODS,
    MODELS,
    OPTIMIZERS,
    PARAMETERISATIONS,
    REAL_SAMPLERS,
    InputError,
    Registry,
)


@dataclass(frozen=True)
class Slot:
    """A place for one part of a kind.

    Args:
        table: of the TOML file, and field of `Config`.
        choice: the option that names the part.
        default: the part that is there unless another is named.
        registry: the parts that are known; another is named as "package.module:name".
        help: of the choice.
        prefix: of its options' names; it tells the inner optimizer's from the outer one's.
        automatic: the part whose options "auto" has, where the choice may be left to the data.
    """

    table: str
    choice: str
    default: str
    registry: Registry
    help: str
    prefix: str = ""
    automatic: str = ""

    def options_of(self, chosen: "Chosen") -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
        """Yield (option's name, field, type) of a part as it was chosen."""
        for item, hint in declared(type(chosen.options)):
            yield self.prefix + item.name, item, hint

    def options(self, name: str) -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
        """Yield (option's name, field, type) of the part with this name."""
        for item, hint in declared(options_class(self.registry[name])):
            yield self.prefix + item.name, item, hint

    def owners(self, option: str) -> list[str]:
        """Name the registered parts that have an option."""
        return [
            part for part in self.registry if option in {name for name, *_ in self.options(part)}
        ]


@dataclass(frozen=True)
class Chosen:
    """A part of a run: its name, and its options as an instance of its `Options`."""

    name: str
    options: Any

    def filled_from(self, part: Any) -> "Chosen":
        """Replace each "auto" by the attribute of that name of the part that was made."""
        autos = {
            item.name: getattr(part, item.name)
            for item, _ in declared(type(self.options))
            if getattr(self.options, item.name) == "auto" and hasattr(part, item.name)
        }
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **autos))

    def resolved(self, sizes: Any) -> "Chosen":
        """Replace every "auto" by what the part says that it means for a run of these sizes.

        Raises:
            InputError: the part leaves one; its Options need a method `resolved(sizes)`.
        """
        options = (
            self.options.resolved(sizes) if hasattr(self.options, "resolved") else self.options
        )
        for item, hint in declared(type(options)):
            if may_be_auto(hint) and getattr(options, item.name) == "auto":
                raise InputError(
                    f"Options.resolved of {self.name} must replace every 'auto', it leaves "
                    f"{item.name}; let it return the options with a number there"
                )
        return dataclasses.replace(self, options=options)


SLOTS = (
    Slot("parameterisation", "param", "pixels", PARAMETERISATIONS, "how images are stored"),
    Slot(
        "model",
        "model",
        "auto",
        MODELS,
        "the network, or your own as package.module:factory; auto: by the data",
        automatic="convnet",
    ),
    Slot(
        "inner_optimizer", "inner_optimizer", "adam", OPTIMIZERS, "what trains on the set", "inner_"
    ),
    Slot("method", "method", "rat-bptt", METHODS, "distillation method"),
    Slot("outer_optimizer", "outer_optimizer", "adam", OPTIMIZERS, "what moves the set", "outer_"),
    Slot(
        "real_sampler", "real_sampler", "uniform", REAL_SAMPLERS, "which real images make a batch"
    ),
)
(method_slot,) = (slot for slot in SLOTS if slot.choice == "method")


def chosen_names(given: Mapping[str, Any]) -> dict[str, str]:
    """Name the part in each slot: as given, as the method wants it, or the slot's default.

    Raises:
        InputError: an unknown part; the nearest right name is told.
    """
    for slot in SLOTS:
        if not isinstance(given.get(slot.choice, ""), str):
            raise InputError(
                f"{slot.choice} must be the name of a part, got {given[slot.choice]!r}"
            )
    defaults = method_defaults(given)
    names = {}
    for slot in SLOTS:
        name = given.get(slot.choice, defaults.get(slot.choice, slot.default))
        if not (name == "auto" and slot.automatic):
            slot.registry.check(name.strip())
        names[slot.choice] = name.strip()
    return names


def method_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Look up what the chosen method wants in place of the house's defaults."""
    method = method_slot.registry[given.get("method", method_slot.default)]
    found: Mapping[str, Any] = getattr(method, "defaults", {})
    return found


def unused(given: Mapping[str, Any]) -> tuple[str, ...]:
    """List the house's options that have no effect on the chosen method."""
    needs = getattr(method_slot.registry[given.get("method", method_slot.default)], "needs", None)
    if needs is None:
        return ()
    hard = ("learn_labels", "label_lr") if needs.targets == "classes" else ()
    return (*needs.unused, *hard)


def own_class(slot: Slot, name: str) -> type:
    """Find the dataclass of a part's options.

    A user's own model has none: it need not even be importable, if it was given in Python.
    """
    if name == "auto" and slot.automatic:
        name = slot.automatic
    foreign_model = slot.choice == "model" and ":" in name
    return Nothing if foreign_model else options_class(slot.registry[name])


def owners_of(option: str) -> tuple[Slot, list[str]] | None:
    """Find the slot and the registered parts that an option belongs to; None if nobody has it."""
    for slot in SLOTS:
        parts = slot.owners(option)
        if parts:
            return slot, parts
    return None
