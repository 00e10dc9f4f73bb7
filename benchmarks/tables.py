"""Write the tables of README.md and docs/ from benchmarks/results/*.json; with --check, say whether
they are up to date.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import data_tables
import engine_tables
import measured_methods
import method_tables
import run_tables
import speed_tables
import zoo_cards

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLACES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"methods": measured_methods.one_table, "results": run_tables.table},
    DOCS / "results.md": {
        "methods": lambda: measured_methods.one_table().replace("](docs/", "]("),
        "results": run_tables.table,
    },
    DOCS / "parameterisations.md": {"decoding": data_tables.decoding},
    DOCS / "data.md": {"vectors": data_tables.vectors, "large": data_tables.large},
    DOCS / "laboratory.md": {"variance": engine_tables.variance},
    DOCS / "comparing.md": dict(method_tables.made()),
    DOCS / "architectures.md": {"agreement": speed_tables.agreement},
    DOCS / "speed.md": {
        "measured": engine_tables.speed,
        "precision": engine_tables.precision,
        "precision by sampler": engine_tables.by_sampler,
        "sources": engine_tables.sources,
        "trajectories": engine_tables.trajectories,
        "networks": engine_tables.networks,
        "threads": engine_tables.threads,
        "gpu": speed_tables.gpu,
        "short runs": speed_tables.short_runs,
        "presets": speed_tables.presets,
    },
    DOCS / "zoo.md": {"zoo": zoo_cards.table, "cards": zoo_cards.cards},
}
"""Page -> name of a place in it -> what stands there."""
FILES: Mapping[Path, Callable[[], str]] = {
    measured_methods.TABLE: measured_methods.measured,
    DOCS / "results.csv": run_tables.as_csv,
}
"""Files that are made as a whole."""


def with_tables(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with its tables made anew."""
    for name, make in tables.items():
        begin, end = f"<!-- {name}: made by benchmarks/tables.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            sys.exit(f"no place for the table {name}: {begin} ... {end}")
        text = f"{before}{begin}\n{make()}{end}{after}"
    return text


def main() -> None:
    made = {path: with_tables(path.read_text(), tables) for path, tables in PLACES.items()}
    made |= {path: make() for path, make in FILES.items()}
    for path, text in made.items():
        if path.read_text() == text:
            continue
        if "--check" in sys.argv:
            sys.exit(f"{path.name} is out of date; run: python benchmarks/tables.py")
        path.write_text(text)


if __name__ == "__main__":
    main()
