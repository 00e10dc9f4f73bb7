"""Where labelled images come from: the embedded digits, image folders, parquet files, the Hugging Face hub, arrays."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from potstill.config import DataConfig
from potstill.data import Arrays, Dataset
from potstill.images import (
    MAPPED_ABOVE_BYTES,
    Listing,
    cache_folder,
    cached_arrays,
    content_hash,
    decode_in_memory,
    pad,
    scan,
)
from potstill.registry import SOURCES, InputError, near_miss

TEST_NAMES = ("test", "validation", "valid", "val")


def read(config: DataConfig) -> Dataset:
    """Read what `config.data` names.

    Raises:
        InputError: it does not exist, is empty, or cannot be read; the sentence says which file and what to do.
    """
    kind, _, rest = config.data.partition(":")
    if kind == "arrays":
        raise InputError("data is 'arrays': this set was distilled from arrays in Python; give the data again with --data")
    if (kind == "digits") == bool(rest):
        raise InputError(f"data must be digits, folder:PATH, parquet:PATH or hf:NAME, got {config.data!r}")
    dataset: Dataset = SOURCES[kind](rest, config)
    return checked(dataset)


def checked(dataset: Dataset) -> Dataset:
    """`dataset` again, if it can be distilled: at least two classes, finite pixels."""
    if len(dataset.class_names) < 2:
        raise InputError(f"the data must have at least 2 classes, found {len(dataset.class_names)}: {dataset.class_names}")
    for arrays in (dataset.train, dataset.test):
        if arrays is not None and arrays.images.dtype != np.uint8 and not np.isfinite(arrays.images).all():
            bad = int(np.flatnonzero(~np.isfinite(arrays.images).all(axis=(1, 2, 3)))[0])
            raise InputError(f"pixels must be finite numbers, image {bad} holds NaN or infinity; repair or remove it")
    return dataset


def read_digits(_: str, config: DataConfig) -> Dataset:
    """scikit-learn's 1,797 grey digits of 8 x 8 pixels with values 0 to 16."""
    from sklearn.datasets import load_digits  # here: it takes a second to import and only this source needs it

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset(Arrays(images, bunch.target.astype(np.int64)), None, names, array_hash(images, bunch.target))


def array_hash(*arrays: npt.NDArray[Any]) -> str:
    """A hash over the types, shapes and values of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def from_arrays(
    images: Any, labels: Any, test_images: Any = None, test_labels: Any = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """Arrays or tensors as a data set.

    Args:
        images: (N, H, W) or (N, C, H, W) with C 1 or 3; integers 0..255, or floats, which are taken as they are.
        labels: (N,) whole numbers 0 .. K-1.
        test_images: the same for test data; None holds 20 % of `images` out.
        test_labels: classes of `test_images`.
        class_names: name of each class; None takes the numbers.
    Raises:
        InputError: shapes that do not fit, labels out of range, pixels that are no numbers.
    """
    if (test_images is None) != (test_labels is None):
        raise InputError("test_images and test_labels must be given together, got only one of them")
    train = as_arrays("images", images, "labels", labels)
    test = None if test_images is None else as_arrays("test_images", test_images, "test_labels", test_labels)
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(f"test_images must have the shape of images, {train.images.shape[1:]}, got {test.images.shape[1:]}")
    count = len(class_names) if class_names is not None else int(train.labels.max()) + 1
    for name, arrays in (("labels", train), ("test_labels", test)):
        if arrays is not None and arrays.labels.max() >= count:
            raise InputError(f"{name} must lie in 0..{count - 1} ({count} classes), got {arrays.labels.max()}")
    names = tuple(map(str, class_names if class_names is not None else range(count)))
    parts = [part for arrays in (train, test) if arrays for part in (arrays.images, arrays.labels)]
    return checked(Dataset(train, test, names, array_hash(*parts)))


def as_arrays(images_name: str, images: Any, labels_name: str, labels: Any) -> Arrays:
    """Check and normalise one split that a user gave in Python."""
    pixels, classes = (
        part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in (images, labels)
    )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.size:
        hint = "; move the channels to the front" if pixels.ndim == 4 and pixels.shape[-1] in (1, 3) else ""
        raise InputError(f"{images_name} must have shape (N, H, W) or (N, C, H, W) with C 1 or 3, got {pixels.shape}{hint}")
    if classes.shape != (len(pixels),):
        raise InputError(f"{labels_name} must have shape ({len(pixels)},) like {images_name}, got {classes.shape}")
    if classes.dtype.kind not in "iu":
        raise InputError(f"{labels_name} must be whole numbers 0 .. K-1, got values of type {classes.dtype}")
    if classes.min() < 0:
        raise InputError(f"{labels_name} must be at least 0, got {classes.min()}")
    if pixels.dtype.kind in "iu":
        if pixels.min() < 0 or pixels.max() > 255:
            raise InputError(f"whole-number {images_name} must lie in 0..255, got {pixels.min()} to {pixels.max()}; scale them")
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    else:
        raise InputError(f"{images_name} must be numbers, got values of type {pixels.dtype}")
    return Arrays(pad(pixels), classes.astype(np.int64))


def read_folder(path: str, config: DataConfig) -> Dataset:
    """Class sub-folders of images, under train/ and test/ (or validation/) where those exist."""
    root = existing(path, "folder")
    roots = split_folders(root)
    names = sorted(entry.name for entry in roots["train"].iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"folder {roots['train']} must hold one sub-folder of images for each class, found none")
    splits = {split: list(class_files(folder, names)) for split, folder in roots.items()}
    listings = {}
    for split, files in splits.items():
        labels = np.array([label for label, _ in files], np.int64)
        listings[split] = Listing(labels, lambda files=files: iter([(str(path), path) for _, path in files]))  # type: ignore[misc]
    tracked = [(str(path.relative_to(root)), path) for files in splits.values() for _, path in files]
    return assemble(listings, tuple(names), lambda: content_hash(tracked, cache_folder(config.cache_dir)), config)


def existing(path: str, kind: str) -> Path:
    """`path`, if it is there and can be read."""
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{kind} {path} does not exist; check the path after '{kind}:'")
    if kind == "folder" and not found.is_dir():
        raise InputError(f"{kind} {path} is a file; give the folder that holds the class folders")
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits: train and test where `root` has train/, else `root` as train."""
    if not (root / "train").is_dir():
        return {"train": root}
    found = {"train": root / "train"}
    for name in TEST_NAMES:
        if (root / name).is_dir():
            return {**found, "test": root / name}
    return found


def class_files(folder: Path, names: list[str]) -> Iterator[tuple[int, Path]]:
    """(class, file) of every image, classes and files in the order of their names."""
    strangers = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name not in names]
    if strangers and not strangers[0].startswith("."):
        raise InputError(
            f"class folder {folder / strangers[0]} has no counterpart in train/{near_miss(strangers[0], names)}; "
            "both splits need the same class folders"
        )
    known = Image.registered_extensions()
    for label, name in enumerate(names):
        inside = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
        files = [file for file in inside if file.suffix.lower() in known and not file.name.startswith(".")]
        if not files:
            raise InputError(f"class folder {folder / name} holds no images; add some or remove the class")
        yield from ((label, file) for file in files)


def assemble(
    listings: dict[str, Listing], names: tuple[str, ...], fingerprint: Callable[[], str], config: DataConfig
) -> Dataset:
    """Decode listings into memory or the mapped cache, as `config.storage` says or their size asks for."""
    content = fingerprint()
    count = sum(len(listing.labels) for listing in listings.values())
    found = None
    if config.storage != "mapped":
        found = scan(list(listings.values()), config.image_size)
    layout, shape, notes = found or (None, None, [])
    if layout and shape and (config.storage == "memory" or 4 * count * int(np.prod(shape)) <= MAPPED_ABOVE_BYTES):
        arrays = {name: decode_in_memory(listing, layout, shape, config.image_size) for name, listing in listings.items()}
        return Dataset(arrays["train"], arrays.get("test"), names, content, tuple(notes))
    arrays, notes = cached_arrays(listings, content, cache_folder(config.cache_dir), config.image_size, found)
    return Dataset(arrays["train"], arrays.get("test"), names, content, tuple(notes), mapped=True)


def read_parquet(path: str, config: DataConfig) -> Dataset:
    """Parquet files in the Hugging Face layout: a folder with train and test files, or one file."""
    import pyarrow.parquet as pq  # here: only this source needs it

    files = parquet_files(existing(path, "parquet"))
    tables = {split: [open_parquet(pq, file) for file in paths] for split, paths in files.items()}
    schema = tables["train"][0].schema_arrow
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    image, label = choose_columns(list(schema.names), features, config)

    def columns(split: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
        for table, file in zip(tables[split], files[split], strict=True):
            missing = set(wanted) - set(table.schema_arrow.names)
            if missing:
                raise InputError(f"{file} has no column {missing.pop()!r}; every file needs the same columns")
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                yield from batch.to_pylist()

    def listing(split: str) -> tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]:
        labels = [row[label] for row in columns(split, [label])]
        return labels, lambda: encoded(columns(split, [image]), image, f"{split} row")

    names = features.get(label, {}).get("names")
    root = Path(path).expanduser()
    tracked = [
        (str(file.relative_to(root) if root.is_dir() else split), file) for split, paths in files.items() for file in paths
    ]
    listings = {split: listing(split) for split in files}
    return from_table(listings, names, label, lambda: content_hash(tracked, cache_folder(config.cache_dir)), config)


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Split name -> files. In a folder, a file belongs to the split whose name its own starts with."""
    if path.is_file():
        return {"train": [path]}
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if not found:
        raise InputError(f"parquet folder {path} holds no *.parquet file")
    splits = {name: [file for file in found if file.name.lower().startswith(name)] for name in ("train", *TEST_NAMES)}
    if not splits["train"]:
        if any(splits.values()):
            raise InputError(f"parquet folder {path} has no file whose name starts with train, found {found[0].name}")
        return {"train": found}
    test = next((splits[name] for name in TEST_NAMES if splits[name]), [])
    return {"train": splits["train"], "test": test} if test else {"train": splits["train"]}


def open_parquet(pq: Any, file: Path) -> Any:
    """An open parquet file; an InputError if it is none."""
    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"cannot read {file} as parquet: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def choose_columns(names: list[str], features: dict[str, Any], config: DataConfig) -> tuple[str, str]:
    """The image and the label column: those given, else by Hugging Face type, else by usual names."""
    usual = {"image": ("image", "img", "images"), "label": ("label", "labels", "fine_label", "class", "target")}
    types = {"image": "Image", "label": "ClassLabel"}
    chosen = []
    for kind, given in (("image", config.image_column), ("label", config.label_column)):
        typed = [name for name in names if isinstance(features.get(name), dict) and features[name].get("_type") == types[kind]]
        candidates = [given] if given != "auto" else [*typed[:1], *usual[kind]]
        found = next((name for name in candidates if name in names), None)
        if found is None:
            wrong = f"has no column {given!r}{near_miss(given, names)}" if given != "auto" else f"has no {kind} column that is known by name"
            raise InputError(f"the data {wrong}; give --{kind}-column, one of: {', '.join(names)}")
        chosen.append(found)
    return chosen[0], chosen[1]


def encoded(rows: Iterator[dict[str, Any]], column: str, place: str) -> Iterator[tuple[str, Path | bytes]]:
    """(name, encoded bytes or path) of an image column: {bytes, path} structures or plain bytes."""
    for index, row in enumerate(rows):
        value = row[column]
        name = f"{place} {index}"
        if isinstance(value, dict):
            name = f"{name} ({value['path']})" if value.get("path") else name
            value = value["bytes"] if value.get("bytes") is not None else Path(value.get("path") or "")
        if not isinstance(value, bytes | Path):
            raise InputError(f"column {column!r} must hold encoded images, {place} {index} holds {type(value).__name__}")
        yield name, value


def from_table(
    splits: dict[str, tuple[list[Any], Callable[[], Iterator[tuple[str, Path | bytes]]]]],
    names: list[str] | None,
    column: str,
    fingerprint: Callable[[], str],
    config: DataConfig,
) -> Dataset:
    """A data set from label values and image readers by split; label values become 0 .. K-1."""
    for split, (values, _) in splits.items():
        if not values:
            raise InputError(f"the {split} split holds no rows")
        bad = next((value for value in values if not isinstance(value, int | str) or value == -1), None)
        if bad is not None:
            raise InputError(f"column {column!r} must hold a class for each image, the {split} split holds {bad!r}")
    if names is None:
        values = splits["train"][0]
        known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        places = {value: place for place, value in enumerate(known)}
        names = [str(value) for value in known]
    else:
        places = {place: place for place in range(len(names))}
    listings = {}
    for split, (values, files) in splits.items():
        strange = next((value for value in values if value not in places), None)
        if strange is not None:
            reach = f"lie in 0..{len(names) - 1}" if places.keys() == set(range(len(names))) else "occur in train"
            raise InputError(f"labels in column {column!r} must {reach} ({len(names)} classes), the {split} split holds {strange!r}")
        listings[split] = Listing(np.array([places[value] for value in values], np.int64), files)
    return assemble(listings, tuple(map(str, names)), fingerprint, config)


def read_hub(name: str, config: DataConfig) -> Dataset:
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load."""
    try:
        import datasets  # here: an optional extra
    except ImportError as error:
        raise InputError("data hf:NAME needs the package datasets; run: pip install 'potstill[hf]'") from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise InputError(f"cannot load hf:{name}: {first_line(error)}") from error
    if "train" not in loaded:
        raise InputError(f"hf:{name} has no train split, found: {', '.join(loaded)}")
    test = next((split for split in TEST_NAMES if split in loaded), None)
    chosen = {"train": loaded["train"], **({"test": loaded[test]} if test else {})}
    features = loaded["train"].features
    described = {column: {"_type": type(feature).__name__} for column, feature in features.items()}
    image, label = choose_columns(list(features), described, config)
    raw = {split: part.cast_column(image, datasets.Image(decode=False)) for split, part in chosen.items()}

    def files(split: str) -> Iterator[tuple[str, Path | bytes]]:
        return encoded(iter(raw[split].select_columns([image])), image, f"{split} row")

    def fingerprint() -> str:
        total = hashlib.sha256()
        for split in raw:
            for _, source in files(split):
                total.update(hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).digest())
        return total.hexdigest()

    splits = {split: (list(part[label]), lambda split=split: files(split)) for split, part in raw.items()}
    return from_table(splits, getattr(features[label], "names", None), label, fingerprint, config)
