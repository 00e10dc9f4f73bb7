"""Ready-made sets that come with potstill: "zoo:digits-ipc1".

`distilled/ready/` holds a file for each, as `artefact.save` writes it, and catalogue.json, which
says of each what it is worth and how it was made; `benchmarks/zoo.py` makes both. A set is copied
to the user's cache folder before it is used: what is measured of it is kept beside it there.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from potstill.errors import InputError, first_line, near_miss
from potstill.files import make_folder, write
from potstill.records.metrics import Figure
from potstill.records.plain import parse

ZOO = "zoo:"
"""How a ready-made set is named: this and its name."""
CATALOGUE = "catalogue.json"


class OtherFile(InputError):
    """The file of a ready-made set is missing, or not that of the catalogue."""


@dataclass(frozen=True)
class ReadySet:
    """A ready-made set: what it is, what it is worth, and how it was made.

    Args:
        name: after "zoo:".
        about: what it is, in a line.
        data: the option `data` if it comes with potstill or a package; "": it must be given.
        source: the real data, and where they are from.
        license: of the real data, which holds for what was made of them.
        command: that makes such a set.
        seed: of the run.
        examples: how many it holds.
        accuracy: what networks were trained on -> their accuracy on test data: "distilled", beside
            "random" real examples, as many.
        protocol: how the networks were trained.
        tested: number of test examples.
        hardware: on which it was made and measured.
        versions: library -> version.
        size: bytes of its file.
        sha256: of its file.
        cautions: what it is not good for.
    """

    name: str
    about: str
    data: str
    source: str
    license: str
    command: str
    seed: int
    examples: int
    accuracy: Mapping[str, Figure]
    protocol: str
    tested: int
    hardware: str
    versions: Mapping[str, str]
    size: int
    sha256: str
    cautions: tuple[str, ...]

    @property
    def card(self) -> list[tuple[str, str]]:
        """What is known of it, as (term, value)."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        rows = [
            ("set", self.about),
            ("real data", self.source),
            ("license", self.license),
            *((f"accuracy, {name}", str(figure)) for name, figure in self.accuracy.items()),
            ("protocol", f"{self.protocol}; on {self.tested:,} test examples"),
            ("made by", self.command),
            ("seed", str(self.seed)),
            ("hardware", f"{self.hardware}; {versions}"),
            ("size", f"{self.size:,} bytes"),
            ("sha256", self.sha256),
        ]
        return rows + [("not good for", caution) for caution in self.cautions]


def folder() -> Traversable:
    """Return where the files are."""
    return resources.files("potstill.distilled") / "ready"


@cache
def catalogue() -> tuple[ReadySet, ...]:
    """Return the ready-made sets, in the catalogue's order.

    Raises:
        InputError: it cannot be read.
    """
    path = folder() / CATALOGUE
    try:
        entries = json.loads(path.read_text("utf-8"))["sets"]
        return tuple(parse(ReadySet, entry, "catalogue") for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"the catalogue of ready-made sets, {path}, cannot be read "
            f"({first_line(error)}); install potstill anew"
        ) from error


def ready_set(name: str) -> ReadySet:
    """Return what is known of a ready-made set, named with or without "zoo:".

    Raises:
        InputError: there is none of that name.
    """
    own = name.removeprefix(ZOO)
    known = {one.name: one for one in catalogue()}
    if own not in known:
        raise InputError(
            f"there is no ready-made set {own!r}{near_miss(own, list(known))}; `potstill zoo` "
            "lists them"
        )
    return known[own]


def content(one: ReadySet) -> bytes:
    """Return the file of a ready-made set.

    Raises:
        InputError: it cannot be read.
        OtherFile: it is not the file that the catalogue tells of.
    """
    try:
        held = (folder() / f"{one.name}.safetensors").read_bytes()
    except OSError as error:
        raise OtherFile(
            f"the file of {ZOO}{one.name} cannot be read: {error.strerror}; install potstill anew"
        ) from error
    found = hashlib.sha256(held).hexdigest()
    if found != one.sha256:
        raise OtherFile(
            f"the file of {ZOO}{one.name} is not that of the catalogue: its sha256 is "
            f"{found[:12]}..., not {one.sha256[:12]}...; install potstill anew"
        )
    return held


def unpacked(name: str, cache_folder: Path, file: str) -> Path:
    """Return a copy of a ready-made set's file in the user's cache folder.

    Args:
        name: with or without "zoo:".
        cache_folder: for sets that are not files of the user's.
        file: the copy's name.
    Raises:
        InputError: no such set, another file than the catalogue says, or no room.
    """
    one = ready_set(name)
    held = content(one)
    target = cache_folder / f"zoo--{one.name}" / one.sha256[:12] / file
    if not target.is_file() or target.read_bytes() != held:
        make_folder(
            target.parent,
            "make room, or let the environment variable XDG_CACHE_HOME name a folder that can be "
            "written",
        )
        write(target, held)
    return target
