"""What data take on disk."""

import os
from pathlib import Path


def bytes_on_disk(place: str) -> int | None:
    """Return the size of a file, or of all files in a folder; None: there is nothing there.

    Linked folders count, each once, as they are read. Files that cannot be looked at do not count.
    """
    top = Path(place)
    if not place or not top.exists():
        return None
    if top.is_file():
        return top.stat().st_size
    total, seen = 0, set[Path]()
    for folder, folders, files in os.walk(top, followlinks=True):
        here = Path(folder).resolve()
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        for name in files:
            try:
                total += (here / name).stat().st_size
            except OSError:
                continue
    return total
