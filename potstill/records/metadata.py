"""The metadata in the file of a distilled set, beside what is needed to train on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.records.metrics import Figure


@dataclass(frozen=True)
class DataRecord:
    """The real data that a set was distilled from.

    Args:
        fingerprint: a hash of the source's content.
        train: how many images were distilled.
        validation: how many were held out for every choice.
        test: how many were held out for tests only.
        identity: a hash of the content and of the weights of images in real batches; None: all had
            the same weight.
        features: of vectors, the name of each feature.
        values: the least and the greatest value of train examples; bytes are scaled to [0, 1].
        origins: split -> where it comes from, in words.
        left_out: phrases that say what the source held and was not used.
        marks: of some train examples, see `potstill.data.marks`.
        disk_bytes: what the files of the source take, all splits together; None: not known.
    """

    fingerprint: str
    train: int
    validation: int
    test: int
    identity: str | None = None
    features: tuple[str, ...] = ()
    values: tuple[float, float] | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    marks: str = ""
    disk_bytes: int | None = None

    @property
    def whole_identity(self) -> str:
        """A hash of the data's content and, if there are some, weights."""
        return self.identity or self.fingerprint


@dataclass(frozen=True)
class ChosenAccuracy(Figure):
    """The accuracy on the split that chose the set and its training length.

    Args:
        split: its name.
        protocol: how networks were trained and what was chosen, in words.
        stored_bytes: of the set.
    """

    split: str
    protocol: str
    stored_bytes: int


@dataclass(frozen=True)
class BudgetRecord:
    """What is known of the first blocks of a nested set.

    Args:
        ipc: images per class.
        steps: training steps chosen for them.
        lr: learning rate that networks train with.
        accuracy: with both.
    """

    ipc: int
    steps: int
    lr: float
    accuracy: ChosenAccuracy


@dataclass(frozen=True)
class SetMetadata:
    """How a set was made and how accurate networks trained on it are.

    Args:
        method: its name in the registry.
        config: the run's configuration: section -> option -> value; it holds no path.
        seed: of the run.
        versions: library -> version.
        data: the real data.
        outer_step: the outer step after which the set was kept, the best on validation data; of a
            nested set in the last block.
        accuracy: on validation data.
        budgets: of a nested set, for each prefix of its blocks.
        learned: what the method learned beside the set, as plain data.
        features: of vectors whose data are not recorded, the name of each feature.
    """

    method: str | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    data: DataRecord | None = None
    outer_step: int | None = None
    accuracy: ChosenAccuracy | None = None
    budgets: tuple[BudgetRecord, ...] = ()
    learned: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = ()

    def option(self, name: str) -> Any:
        """Return the value of a run's option; None if it is not recorded."""
        return next((table[name] for table in self.config.values() if name in table), None)
