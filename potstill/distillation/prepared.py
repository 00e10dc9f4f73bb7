"""What a run derived from its data, kept beside it until its set holds it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import files
from potstill.config.config import Resolved
from potstill.data.preparation import RealData, cut_of
from potstill.data.preprocessing import Preprocess
from potstill.distilled.artefact import FORGED
from potstill.distilled.reading import OF_FILES, Header, preprocessing_of, require
from potstill.errors import let_memory_pass
from potstill.parameterisations.base import Parameterisation, from_plain
from potstill.records.metadata import DataRecord
from potstill.records.plain import dump, parse_fields

KIND = "preparation"


@dataclass(frozen=True)
class Described:
    """What the file says beside the tensors of the preprocessing."""

    preprocess: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    cut: str
    data: DataRecord
    parameterisation: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What a run derived from its data.

    Args:
        described: names, shapes and the record of the data.
        fitted: the preprocessing.
    """

    described: Described
    fitted: Preprocess

    def parameterisation(self, learn_labels: bool) -> Parameterisation:
        """Return how each block is stored."""
        known = self.described
        return from_plain(
            known.parameterisation, known.input_shape, len(known.class_names), learn_labels
        )


def keep(path: Path, real: RealData, config: Resolved, one: Parameterisation) -> None:
    """Write what was derived from the data."""
    described = Described(
        real.preprocess.name,
        tuple(real.class_names),
        tuple(real.shape),
        cut_of(config, real.identity),
        real.record,
        one.plain(),
    )
    files.save_tensors(path, real.preprocess.state(), KIND, dump(described))


def kept(path: Path) -> Prepared | None:
    """Return what `keep` wrote; None if it is missing, damaged or forged: it can be made again."""
    try:
        tensors, meta = files.load_tensors(path, KIND)
        own = {name: value for name, value in meta.items() if name not in OF_FILES}
        known: Described = parse_fields(Described, own, KIND)
        shape = known.input_shape
        require(len(known.class_names) > 1, "class_names must name the classes")
        require(len(shape) in (1, 3) and min(shape) >= 1, "input_shape must be (C, H, W) or (d,)")
        header = Header(known.class_names, shape, known.preprocess, {}, False, ())
        made = Prepared(known, preprocessing_of(tensors, header))
        require(made.parameterisation(False).budget.ipc >= 1, "ipc must be at least 1")
        return made
    except FORGED as error:  # an InputError is a ValueError
        let_memory_pass(error)
        return None
