"""Options: how a part of a run declares what a user may set, and how values are read and checked.

A part (a method, a parameterisation, an optimizer, ...) has a frozen dataclass of `option` fields
beside its code. An option's name is one flag (`--inner-lr`), one keyword in Python (`inner_lr=`)
and one key of a TOML file.
"""

import dataclasses
import types
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from potstill.errors import InputError, near_miss

Auto = Literal["auto"]
LARGEST = 2**63 - 1
"""The largest whole number that torch can count with."""
A = TypeVar("A")
"""Auto in options from a user; Never in options of a run, where every "auto" is resolved."""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    also: str = "",
    source: str = "",
) -> Any:
    """Declare an option: its default, help text and the interval of its numbers.

    The interval is [low, high], or (low, high] with `open_low`.

    Args:
        default: value of the option unless another is given.
        help: one line for help texts.
        low: least allowed number; None: no bound.
        high: greatest allowed number; None: no bound.
        open_low: whether `low` itself is not allowed.
        also: a second name of the option.
        source: where a paper says so; shown only if it is asked for.
    """
    known = {
        "help": help,
        "low": low,
        "high": high,
        "open_low": open_low,
        "also": also,
        "source": source,
    }
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Nothing:
    """The options of a part that has none."""


def options_class(part: Any) -> type:
    """Return the dataclass of a part's options.

    It is the part's `Options`, the part itself if that is a dataclass, or `Nothing`.
    """
    own = getattr(part, "Options", None)
    if own is not None:
        if not (isinstance(own, type) and dataclasses.is_dataclass(own)):
            name = getattr(part, "__name__", str(part))
            raise InputError(
                f"Options of {name} must be a dataclass of option(...) fields, got {own!r}"
            )
        return own
    return part if isinstance(part, type) and dataclasses.is_dataclass(part) else Nothing


def declared(options: type) -> Iterator[tuple["Field[Any]", Any]]:
    """Yield (field, type) of every option of a dataclass; skip its other fields."""
    if dataclasses.is_dataclass(options):
        hints = get_type_hints(options)
        for item in dataclasses.fields(options):
            if "help" in item.metadata:
                yield item, hints[item.name]


def may_be_auto(hint: Any) -> bool:
    """Return whether the word "auto" is allowed for an option of this type."""
    return hint in (A, Auto) or any(part in (A, Auto) or part == "auto" for part in get_args(hint))


def convert(name: str, value: Any, hint: Any, words: Sequence[str] = ()) -> Any:
    """Read `value` (from TOML, Python, or the text of a flag) as the type `hint`.

    Args:
        name: the option's, for messages.
        value: what was given.
        hint: the type.
        words: further values that the option allows, for the message.
    Raises:
        InputError: the value is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = [word for part in arguments for word in words_of(part)]
        if value in words:
            return value
        rest = [part for part in arguments if not words_of(part)]
        if not rest:
            choices = tuple(sorted(words, key=lambda word: word != "auto"))
            return convert(name, value, Literal[choices])
        return convert(name, value, rest[0], words)
    if origin is Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            near = near_miss(str(value), arguments)
            raise InputError(f"{name} must be one of {known}; got {value!r}{near}")
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise InputError(f"{name} must be a list, got {value!r}")
        return tuple(
            convert(name, part, arguments[0]) for part in parts if part not in ("", "none")
        )
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        if "\0" in value:
            raise InputError(f"{name} must be a text without NUL characters, got {value!r:.99}")
        return value.strip()
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float or number == int(number):
                return number if hint is float else int(value)
        except (TypeError, ValueError, OverflowError):
            pass
    kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[hint]
    raise InputError(f"{name} must be {' or '.join((kind, *words))}, got {value!r}")


def words_of(hint: Any) -> tuple[str, ...]:
    """List the words that one member of a union of types allows."""
    return ("auto",) if hint is A else get_args(hint) if get_origin(hint) is Literal else ()


def checked(name: str, item: "Field[Any]", value: Any) -> Any:
    """Return `value` if its numbers lie in the option's interval; raise an InputError if not."""
    low, high, open_low = (item.metadata[key] for key in ("low", "high", "open_low"))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if high is None and isinstance(number, int) and number > LARGEST:
            high = LARGEST
        above = low is None or (number > low if open_low else number >= low)
        if not (above and (high is None or number <= high) and abs(number) < float("inf")):
            least = "" if low is None else f"above {low}" if open_low else f"at least {low}"
            most = "" if high in (None, float("inf")) else f"at most {high}"
            rule = " and ".join(filter(None, (least, most))) or "finite"
            raise InputError(f"{name} must be {rule}, got {number}")
    return value
