"""The parts of a run: the option that names each, and the options of each."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.config.options import Nothing, declared, may_be_auto, options_class
from potstill.errors import InputError
from potstill.registry import (
    METHODS,
    MODELS,
    OPTIMIZERS,
    PARAMETERISATIONS,
    PREPROCESSING,
    REAL_SAMPLERS,
    Registry,
)


@dataclass(frozen=True)
class Slot:
    """A choice of one part of a kind.

    Args:
        table: name of its table in the TOML file, and of its field of `Config`.
        choice: the option that names the part.
        default: name of the part unless another is named.
        registry: the registered parts; a user's own is named as "package.module:name".
        help: help text of the choice.
        prefix: prefix of its options' names; it separates the two optimizers' options.
        automatic: the part whose options "auto" has, where the data may decide the choice.
    """

    table: str
    choice: str
    default: str
    registry: Registry
    help: str
    prefix: str = ""
    automatic: str = ""

    def options_of(self, chosen: "Chosen") -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
        """Yield (option name, field, type) of every option of a chosen part."""
        for item, hint in declared(type(chosen.options)):
            yield self.prefix + item.name, item, hint

    def options(self, name: str) -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
        """Yield (option name, field, type) of every option of the part with this name."""
        for item, hint in declared(options_class(self.registry[name])):
            yield self.prefix + item.name, item, hint

    def owners(self, option: str) -> list[str]:
        """List the registered parts that have this option."""
        return [
            part for part in self.registry if option in {name for name, *_ in self.options(part)}
        ]


@dataclass(frozen=True)
class Chosen:
    """A part of a run: its name, and its options as an instance of its `Options`."""

    name: str
    options: Any

    def filled_from(self, part: Any) -> "Chosen":
        """Replace each "auto" by the attribute of the same name of the built part."""
        autos = {
            item.name: getattr(part, item.name)
            for item, _ in declared(type(self.options))
            if getattr(self.options, item.name) == "auto" and hasattr(part, item.name)
        }
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **autos))

    def resolved(self, sizes: Any) -> "Chosen":
        """Replace every "auto" by the part's own value for a run of these sizes.

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
    Slot(
        "preprocessing",
        "preprocess",
        "auto",
        PREPROCESSING,
        "done to values first; auto: zca for colour images up to 3,072 values, else normalize",
        automatic="zca",
    ),
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
    Slot(
        "method",
        "method",
        "rat-bptt",
        METHODS,
        "distillation method; auto, as a flag: the best as measured (docs)",
    ),
    Slot("outer_optimizer", "outer_optimizer", "adam", OPTIMIZERS, "what moves the set", "outer_"),
    Slot(
        "real_sampler", "real_sampler", "uniform", REAL_SAMPLERS, "which real images make a batch"
    ),
)
(method_slot,) = (slot for slot in SLOTS if slot.choice == "method")


def check_names(given: Mapping[str, Any]) -> None:
    """Raise an InputError if a part that is given is none; this imports no part."""
    for slot in SLOTS:
        name = given.get(slot.choice, "auto" if slot.automatic else slot.default)
        if not isinstance(name, str):
            raise InputError(f"{slot.choice} must be the name of a part, got {name!r}")
        if not (name == "auto" and slot.automatic):
            slot.registry.check(name.strip())


def chosen_names(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the part's name for each slot: as given, as the method asks, or the default.

    Raises:
        InputError: an unknown part; the nearest right name is told.
    """
    check_names(given)
    defaults = method_defaults(given)
    wanted = {slot.choice: defaults.get(slot.choice, slot.default) for slot in SLOTS}
    names = {choice: given.get(choice, name).strip() for choice, name in wanted.items()}
    check_names(names)
    return names


def method_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options for which the chosen method has defaults of its own."""
    method = method_slot.registry[given.get("method", method_slot.default)]
    defaults: Mapping[str, Any] = getattr(method, "defaults", {})
    return defaults


def unused(given: Mapping[str, Any]) -> tuple[str, ...]:
    """List the options of the sections that have no effect with the chosen method."""
    needs = getattr(method_slot.registry[given.get("method", method_slot.default)], "needs", None)
    if needs is None:
        return ()
    hard = ("learn_labels", "label_lr") if needs.targets == "classes" else ()
    return (*needs.unused, *hard)


def own_class(slot: Slot, name: str) -> type:
    """Return the dataclass of a part's options.

    A user's own model has none: it need not even be importable, if it was given in Python.
    """
    if name == "auto" and slot.automatic:
        name = slot.automatic
    foreign_model = slot.choice == "model" and ":" in name
    return Nothing if foreign_model else options_class(slot.registry[name])


def owners_of(option: str) -> tuple[Slot, list[str]] | None:
    """Return the slot and the registered parts that have this option; None if none has it."""
    for slot in SLOTS:
        parts = slot.owners(option)
        if parts:
            return slot, parts
    return None
