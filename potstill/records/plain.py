"""Plain data (what JSON holds) from frozen dataclasses and back, strict about names and types.

A class whose plain form is not a table of its fields defines the methods `to_plain` and
`from_plain` (a class method).
"""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST_SHOWN = 80
"""Characters of a value that a message shows."""


class Unreadable(ValueError):
    """Plain data that do not fit a record: a field is missing, unknown, or of a wrong type."""


def dump(value: Any) -> Any:
    """Return `value` as plain data; a field that has its default is left out."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if dataclasses.is_dataclass(value):
        return dump_fields(value)
    if isinstance(value, Mapping):
        return {name: dump(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [dump(part) for part in value]
    return value


def dump_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain data, without those that have their default."""
    values = {
        item.name: (getattr(record, item.name), default_of(item))
        for item in dataclasses.fields(record)
    }
    return {name: dump(value) for name, (value, default) in values.items() if value != default}


def default_of(item: "dataclasses.Field[Any]") -> Any:
    """Return a field's default; `MISSING` if it has none."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def parse(hint: Any, value: Any, where: str = "record") -> Any:
    """Return plain data as a value of the type `hint`; the inverse of `dump`.

    Args:
        hint: a dataclass, bool, int, float, str, None, a union, `tuple[X, ...]`, `Mapping[str, X]`
            or Any. A float is finite, and may be written as a whole number.
        value: plain data, as read from JSON.
        where: the name of `value`, for the message.
    Raises:
        Unreadable: `value` is not of the type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for part in arguments:
            try:
                return parse(part, value, where)
            except Unreadable:
                continue
    elif origin is tuple and isinstance(value, list):
        return tuple(
            parse(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(value)
        )
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {
            parse(str, name): parse(arguments[1], part, f"{where}.{name}")
            for name, part in value.items()
        }
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        own = getattr(hint, "from_plain", None)
        return parse_fields(hint, value, where) if own is None else own(value)
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint in (bool, int, str, types.NoneType) and type(value) is hint:
        return value
    shown = repr(value)
    shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}..."
    raise Unreadable(f"{where} must be {getattr(hint, '__name__', hint)}, got {shown}")


def parse_fields(kind: Any, value: Mapping[str, Any], where: str = "record") -> Any:
    """Return a dataclass from a table of its fields; those with a default may be missing."""
    hints, required = fields_of(kind)
    for name in value:
        if name not in hints:
            raise Unreadable(f"{where} has an unknown field {name!r}")
    for name in required:
        if name not in value:
            raise Unreadable(f"{where} lacks the field {name!r}")
    return kind(
        **{name: parse(hints[name], part, f"{where}.{name}") for name, part in value.items()}
    )


@functools.cache
def fields_of(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (field name -> type, the names without a default) of a dataclass."""
    hints, items = get_type_hints(kind), dataclasses.fields(kind)
    required = tuple(item.name for item in items if default_of(item) is dataclasses.MISSING)
    return {item.name: hints[item.name] for item in items}, required
