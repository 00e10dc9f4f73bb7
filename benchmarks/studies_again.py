"""Make docs/studies/*/summary.md again from results.csv; with --check, say which are not up to
date.

Figures, and the footnote with the hardware that a table cannot tell, are those of the stored page.
"""

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

from potstill.registry import STUDIES
from potstill.reports.plots import Drawing
from potstill.studies.page import Told
from potstill.studies.results import Results
from potstill.studies.runner import SUMMARY, TABLE, Study

STORED = Path(__file__).parent.parent / "docs" / "studies"
DRAWING = re.compile(r"\n!\[(.*)\]\((.*)\.(svg|png)\)\n\n\*.*\*\n")
"""A picture with its caption under it."""


def study_of(name: str) -> Study:
    """Return the study of a name, NAME or NAME-METHOD."""
    if name in STUDIES:
        study: Study = STUDIES[name]()
    else:
        name, _, method = name.partition("-")
        study = STUDIES[name](method)
    return study


def again(folder: Path) -> str:
    """Return the summary of the study in a folder, which is named NAME-PRESET-DATA."""
    name, preset, data = folder.name.rsplit("-", 2)
    study = study_of(name)
    stored = (folder / SUMMARY).read_text(encoding="utf-8")
    results = Results.of_csv((folder / TABLE).read_text(encoding="utf-8"), study.quantities)
    footnote = stored.rstrip("\n").rpartition("\n")[2]
    about, claims = study.about(preset, data), study.claims(results)
    drawings = [
        Drawing(name, caption, Figure() if kind == "svg" else None)
        for caption, name, kind in DRAWING.findall(stored)
    ]
    return Told(study.title, about, claims, drawings, results.tables, footnote).markdown()


def main(check: bool) -> int:
    """Write every summary that is not up to date, or name it."""
    stale = 0  # pages
    for folder in sorted(STORED.iterdir()):
        told, stored = again(folder), folder / SUMMARY
        if told != stored.read_text(encoding="utf-8"):
            stale += 1
            print(f"{stored}: {'not up to date' if check else 'written'}", file=sys.stderr)
            if not check:
                stored.write_text(told, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
