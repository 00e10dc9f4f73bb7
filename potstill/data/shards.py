"""WebDataset: tar files whose members of one name are a sample, as 0001.jpg and 0001.cls are."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.config.sections import DataConfig, is_shard
from potstill.data.archives import opened
from potstill.data.assembly import existing
from potstill.data.collections import LABEL_COLUMNS
from potstill.data.decoding import cache_folder, content_hash
from potstill.data.layouts import by_split, listed, split_of, split_of_file
from potstill.data.places import Member
from potstill.data.splits import Dataset
from potstill.data.tables import alike, from_table
from potstill.data.walking import LeftOut, extensions, files_on_disk, hidden
from potstill.data.weights import Weights, of_column, weight_column
from potstill.errors import InputError

CLASS, JSON = "cls", "json"
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt")
"""Extensions of members that could run code if they were loaded."""
LOOKED_AT = 100
"""So many samples with an image are looked at to see whether an archive holds labelled ones."""


@dataclass(frozen=True)
class Sample:
    """The members of an archive that share a name up to its first dot.

    Args:
        key: that name, with the archive's.
        members: extension, in small letters -> member.
    """

    key: str
    members: dict[str, Member]

    @property
    def is_flat(self) -> bool:
        """Whether it lies in no folder of its archive."""
        return all(len(member.parts) == 1 for member in self.members.values())

    def image(self, wanted: str) -> Member | None:
        """Return its image; None if it has none.

        Args:
            wanted: its extension; "auto": there must be one image only.
        """
        if wanted != "auto":
            return self.members.get(wanted.lower())
        known = [end for end in self.members if f".{end.rpartition('.')[2]}" in extensions()]
        if len(known) > 1:
            raise InputError(
                f"sample {self.key} must have one image, it has {', '.join(known)}; say which by "
                f"--image-column, as in --image-column {known[0]}"
            )
        return self.members[known[0]] if known else None

    def label(self, wanted: str) -> Any:
        """Return its label, a number or a text; None if it has none.

        Args:
            wanted: the extension of its member or the field of its JSON; "auto": by usual names.
        """
        if wanted != "auto":
            return self.value(wanted)
        if CLASS in self.members:
            return self.value(CLASS)
        fields = self.fields()
        return next((fields[name] for name in (*LABEL_COLUMNS, CLASS) if name in fields), None)

    def value(self, name: str) -> Any:
        """Return a member, as a text, or a field of its JSON; None if it has neither."""
        if name.lower() not in self.members:
            return self.fields().get(name)
        member = self.members[name.lower()]
        try:
            text = member.read_bytes().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{member} must hold a text, it holds other bytes") from error
        if not text:
            raise InputError(f"{member} must hold a value, it is empty; fill or remove it")
        return text

    def fields(self) -> dict[str, Any]:
        """Return the fields of its JSON; none if it has none."""
        if JSON not in self.members:
            return {}
        member = self.members[JSON]
        try:
            known = json.loads(member.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{member} must hold JSON: {error}; repair it") from error
        if not isinstance(known, dict):
            raise InputError(
                f"{member} must hold a JSON object, it holds a {type(known).__name__}; repair it"
            )
        return known


def samples_of(root: Member) -> list[Sample]:
    """Return the samples of an archive, in its order."""
    groups: dict[str, dict[str, Member]] = {}
    for inner in root.tree.files:
        member = root / inner
        stem, _, extension = member.name.partition(".")
        if not any(map(hidden, member.parts)):
            key = "/".join((root.name, *member.parts[:-1], stem))
            groups.setdefault(key, {})[extension.lower()] = member
    return [Sample(key, members) for key, members in groups.items()]


def holds_samples(root: Member, config: DataConfig) -> bool:
    """Return whether an archive holds images with labels beside them.

    JSON beside images in folders may be about anything: there the folders are the classes.
    """
    with_image = (
        one
        for one in samples_of(root)
        if any(f".{end.rpartition('.')[2]}" in extensions() for end in one.members)
    )
    with_label = (one for one in with_image if {CLASS, JSON} & one.members.keys())
    return any(
        CLASS in one.members or (one.is_flat and one.label(config.label_column) is not None)
        for one in islice(with_label, LOOKED_AT)
    )


def read_shards(path: str, config: DataConfig) -> Dataset:
    """Read a shard, or a folder of shards by split."""
    given, left_out = existing(path, "webdataset"), LeftOut()
    shards = {
        split: [opened(file, left_out) for file in files]
        for split, files in shard_files(given, left_out).items()
    }
    return read_samples(shards, config, left_out)


def shard_files(path: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """Return split -> shards, by a word in a shard's own name, else by its folder's name."""
    if path.is_file():
        return {"train": [path]}
    files = sorted(file for file in files_on_disk(path, left_out) if is_shard(file.name))
    if not files:
        raise InputError(
            f"webdataset folder {path} must hold shards, such as train-000000.tar, found none; "
            "check the path after 'webdataset:'"
        )
    return by_split(files, path, split_of_shard, left_out, "webdataset", "shard")


def split_of_shard(file: Path, root: Path) -> str | None:
    """Return the split that a shard's name tells, as in cifar10-train-000000.tar, or a folder's."""
    *folders, own = file.relative_to(root).parts
    words = [split_of(word) for word in re.split(r"[-_.]", own)]
    told = [split_of_file(own), *words, *map(split_of, reversed(folders))]
    return next((split for split in told if split), None)


def read_samples(shards: dict[str, list[Member]], config: DataConfig, left_out: LeftOut) -> Dataset:
    """Read the labelled images of shards.

    Args:
        shards: split -> whole archives.
        config: options of the data.
        left_out: counts members that are not used, and images without a label.
    Raises:
        InputError: no labelled image; a sample with several images.
    """
    kept: dict[str, list[tuple[Member, Any]]] = {}
    weights: list[Any] = []
    column = weight_column(config)
    for split, roots in shards.items():
        kept[split] = []
        for sample in (sample for root in roots for sample in samples_of(root)):
            image, label = sample.image(config.image_column), sample.label(config.label_column)
            count_members(sample, image, column, config, left_out)
            if image is not None and label is not None:
                kept[split].append((image, label))
                if column and split == "train":
                    weights.append(sample.value(column))
            elif image is not None or label is not None:
                left_out.count(
                    f"{'labels' if image is None else 'images'} without "
                    f"{'an image' if image is None else 'a label'}"
                )
        if not kept[split] and split == "train":
            raise InputError(no_samples(roots))
        if not kept[split]:
            left_out.tell(f"shards of {split}, which hold no labelled image")
    kept = {split: some for split, some in kept.items() if some}
    return dataset_of_samples(shards, kept, weights_of(column, weights), config, left_out)


def no_samples(roots: list[Member]) -> str:
    """Return the sentence on training shards without a labelled image."""
    ends = sorted({f".{end}" for one in samples_of(roots[0]) for end in one.members if end})
    return (
        f"{roots[0]} must hold images with labels, as 0001.jpg with 0001.cls or 0001.json, found "
        f"none among {listed(ends) or 'its files'}; name the label by --label-column, or check "
        "what was packed"
    )


def weights_of(column: str, values: list[Any]) -> Weights | None:
    """Return the weights that samples hold; None if none are named."""
    return of_column(column, values) if column else None


def count_members(
    sample: Sample, image: Member | None, column: str, config: DataConfig, left_out: LeftOut
) -> None:
    """Count the members of a sample that are not used.

    Args:
        sample: the sample.
        image: its image.
        column: of weights.
        config: names of its label.
        left_out: counts them.
    """
    used = {CLASS, JSON, column.lower(), config.label_column.lower(), "__key__"}
    for end, member in sample.members.items():
        if member is image or end in used:
            continue
        pickled = end.rpartition(".")[2] in PICKLES
        what = f".{end} members" if end else "members without an extension"
        left_out.count(f"{what} (pickles, which are never loaded)" if pickled else what)


def dataset_of_samples(
    shards: dict[str, list[Member]],
    kept: dict[str, list[tuple[Member, Any]]],
    weights: Weights | None,
    config: DataConfig,
    left_out: LeftOut,
) -> Dataset:
    """Make a data set of labelled images in shards.

    Args:
        shards: split -> whole archives.
        kept: split -> (image, label) of each sample that is used.
        weights: of training images; None: all alike.
        config: options of the data.
        left_out: what is not used.
    """

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        yield from ((str(image), image.read_bytes()) for image, _ in kept[split])

    def fingerprint() -> str:
        def tracked() -> Iterator[tuple[str, Path]]:
            for split, roots in shards.items():
                yield from ((f"{split}/{number}", root.top) for number, root in enumerate(roots))

        known = content_hash(tracked, cache_folder(config.cache_dir))
        chosen = [known, config.image_column, config.label_column]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()

    labels = alike({split: [label for _, label in some] for split, some in kept.items()})
    readers = {split: (labels[split], partial(files, split)) for split in kept}
    origins = {split: listed([root.name for root in shards[split]], 2) for split in kept}
    column = CLASS if config.label_column == "auto" else config.label_column
    return from_table(readers, None, column, fingerprint, config, origins, left_out.words, weights)
