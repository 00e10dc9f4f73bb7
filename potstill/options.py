"""Options: how a part of a run declares what a user may set, and how a value is read from text, TOML and Python.

A part (a method, a parameterisation, an optimizer, ...) has a frozen dataclass of `option` fields beside its code. An option's name
is one flag (`--inner-lr`), one keyword in Python (`inner_lr=`) and one key of a TOML file.
"""

import types
from collections.abc import Sequence
from dataclasses import Field, field
from typing import Any, Literal, Union, get_args, get_origin

from potstill.registry import InputError, near_miss

Auto = Literal["auto"]


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, open_low: bool = False, also: str = ""
) -> Any:
    """A field with its help text and the interval its numbers lie in: [low, high], or (low, high] with `open_low`.

    `also` is a second name by which it can be given.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "open_low": open_low, "also": also})


def convert(name: str, value: Any, hint: Any, words: Sequence[str] = ()) -> Any:
    """`value` (from TOML, Python, or the text of a flag) as the type `hint`; an InputError if it is none.

    `words` may stand in its place, and are told in the message.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = [word for part in arguments if get_origin(part) is Literal for word in get_args(part)]
        if value in words:
            return value
        return convert(name, value, next(part for part in arguments if get_origin(part) is not Literal), words)
    if origin is Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise InputError(f"{name} must be one of {known}; got {value!r}{near_miss(str(value), arguments)}")
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise InputError(f"{name} must be a list, got {value!r}")
        return tuple(convert(name, part, arguments[0]) for part in parts if part not in ("", "none"))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
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


def checked(item: "Field[Any]", value: Any) -> Any:
    """`value` again, if its numbers lie in the field's interval; an InputError if not."""
    low, high, open_low = (item.metadata[key] for key in ("low", "high", "open_low"))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        above = low is None or (number > low if open_low else number >= low)
        if not (above and (high is None or number <= high) and abs(number) < float("inf")):
            least = "" if low is None else f"above {low}" if open_low else f"at least {low}"
            most = "" if high is None else f"at most {high}"
            raise InputError(f"{item.name} must be {' and '.join(filter(None, (least, most))) or 'finite'}, got {number}")
    return value
