"""The cards of the ready-made sets for docs/zoo.md; tables.py writes them."""

import potstill


def table() -> str:
    """All sets in a table."""
    lines = [
        "| `zoo:` | set | examples | bytes | test accuracy, % | random real, % | |\n"
        "|---|---|---|---|---|---|---|\n"
    ]
    for one in potstill.zoo():
        figures = [str(one.accuracy[name]).replace(" %", "") for name in ("distilled", "random")]
        lines.append(
            f"| `{one.name}` | {one.about} | {one.examples} | {one.size:,} | "
            f"{' | '.join(figures)} | [card](#{one.name}) |\n"
        )
    return "".join(lines)


def cards() -> str:
    """What is known of each."""
    parts = []
    for one in potstill.zoo():
        rows = "".join(f"| {term} | {shown(term, value)} |\n" for term, value in one.card)
        parts.append(f"### {one.name}\n\n| `zoo:{one.name}` | |\n|---|---|\n{rows}")
    return "\n".join(parts)


def shown(term: str, value: str) -> str:
    """Return a value as Markdown."""
    return f"`{value}`" if term in ("made by", "sha256") else value
