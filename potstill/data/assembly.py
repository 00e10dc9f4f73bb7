"""From listings of images to arrays: the step that every source of image files ends with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.config.sections import DataConfig
from potstill.data.decoding import (
    MAPPED_ABOVE_BYTES,
    Form,
    Listing,
    cache_folder,
    conversion_folder,
    convert,
    decode_in_memory,
    open_cached,
    scan,
)
from potstill.data.layouts import by_use
from potstill.data.splits import Arrays, Dataset
from potstill.errors import InputError


def existing(path: str, kind: str) -> Path:
    """Return `path` as a Path; raise an InputError if it does not exist."""
    given = Path(path).expanduser()
    if not given.exists():
        raise InputError(f"{kind} {path} does not exist; give the path with --data {kind}:PATH")
    if not (given.is_file() or given.is_dir()):  # a named pipe would be waited for
        raise InputError(f"{kind} {path} must be a file or a folder, it is neither")
    try:
        str(given.resolve()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the path {path!a} must be of letters that can be written in UTF-8; rename the folder"
        ) from error
    return given


@dataclass(frozen=True)
class Sources:
    """What a source found, before decoding.

    Args:
        listings: split -> its images; "train" is there.
        names: name of each class.
        origins: split -> where it comes from, in words; empty: it is all that there is.
        left_out: what is not used, in phrases.
    """

    listings: dict[str, Listing]
    names: tuple[str, ...]
    origins: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def used(self) -> "Sources":
        """Return the splits by their use: see `by_use`."""
        uses = by_use(self.origins)
        listings = {use: self.listings[split] for use, (split, _) in uses.items()}
        return replace(self, listings=listings, origins={use: at for use, (_, at) in uses.items()})


def assemble(sources: Sources, fingerprint: Callable[[], str], config: DataConfig) -> Dataset:
    """Decode listings into memory or into the mapped cache.

    `config.storage` decides; "auto" decides by size.

    Args:
        sources: the images before decoding.
        fingerprint: computes a hash of the content.
        config: storage, cache folder, image size and bit depth.
    """
    sources = sources.used()
    content, listings = fingerprint(), sources.listings
    count = sum(len(listing.labels) for listing in listings.values())
    cache = cache_folder(config.cache_dir)
    folder = conversion_folder(cache, content, config.image_size, config.bit_depth)

    def is_mapped(shape: tuple[int, ...]) -> bool:
        large = 4 * count * math.prod(shape) > MAPPED_ABOVE_BYTES
        return config.storage == "mapped" or (config.storage == "auto" and large)

    def dataset(arrays: dict[str, Arrays], form: Form, *, mapped: bool) -> Dataset:
        return Dataset(
            arrays["train"],
            arrays.get("test"),
            sources.names,
            content,
            form.notes,
            mapped=mapped,
            validation=arrays.get("validation"),
            origins=sources.origins,
            left_out=sources.left_out,
            bit_depth=form.bit_depth,
        )

    known = open_cached(folder, listings)
    # The headers of a million files need not be read again.
    if known and is_mapped(known[1].shape):
        return dataset(*known, mapped=True)
    form = scan(list(listings.values()), config.image_size, config.bit_depth)
    if is_mapped(form.shape):
        return dataset(convert(folder, listings, form), form, mapped=True)
    arrays = {name: decode_in_memory(one, form) for name, one in listings.items()}
    return dataset(arrays, form, mapped=False)
