"""Times as people write them: 90s, 10m, 1h30m."""

import re

from potstill.errors import InputError

FORM = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
UNITS = (3600.0, 60.0, 1.0)


def seconds_of(name: str, text: str) -> float:
    """Return the seconds of a time such as 10m, 1h30m or 90s; 0 for an empty text.

    Args:
        name: of the option, for the message.
        text: the time.
    Raises:
        InputError: it is no time, or 0.
    """
    if not text.strip():
        return 0.0
    found = FORM.fullmatch(text.strip().lower().replace(" ", ""))
    parts = found.groups() if found else ()
    total = sum(float(part) * unit for part, unit in zip(parts, UNITS, strict=False) if part)
    if not total:
        raise InputError(f"{name} must be a time such as 10m, 1h30m or 90s, got {text!r}")
    return total


def in_words(seconds: float) -> str:
    """Write a number of seconds as a time."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
