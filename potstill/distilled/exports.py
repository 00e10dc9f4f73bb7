"""A distilled set in other programs' formats, with a sentence on what each format loses."""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.data.splits import require_kind
from potstill.distilled.artefact import save
from potstill.distilled.picture import to_bytes, to_image, write_grid
from potstill.distilled.sets import DistilledSet, require_set
from potstill.errors import InputError
from potstill.files import make_folder, place, write
from potstill.registry import EXPORTS

WINDOWS_DEVICES = r"con|prn|aux|nul|com\d|lpt\d"
EXACT = "exact, the arrays that a network trains on"
OWN_UNITS = (
    "each feature in the data's own units, to the last bit of float32; give them to "
    "distilled.preprocess to train on them"
)
LOSSY = "to be looked at, not trained on: 8-bit pixels of a typical brightness and contrast"


def export_png(distilled: DistilledSet, path: Path) -> None:
    """Write one annotated picture of the images."""
    write_grid(distilled, path)


def export_folder(distilled: DistilledSet, path: Path) -> None:
    """Write each image as a PNG file, in a folder for each class."""
    if path.exists():
        raise InputError(f"{path} exists; choose another place with --out, or remove it")
    names = folder_names(distilled.class_names)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=".potstill-"))
    try:
        building.chmod(0o755)
        for index, (pixels, label) in enumerate(
            zip(distilled.pixels, distilled.labels.tolist(), strict=True)
        ):
            folder = building / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_image(pixels).save(folder / f"{index:05d}.png")
        building.rename(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another place with --out"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Return a different folder name for each class.

    Characters that file systems reserve are replaced, and equal names are numbered.
    """
    plain = [re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", name).strip(". ")[:200] for name in class_names]
    taken = Counter(name.casefold() for name in plain)
    usable = [
        name
        and taken[name.casefold()] == 1
        and not re.fullmatch(WINDOWS_DEVICES, name, re.IGNORECASE)
        for name in plain
    ]
    return [
        name if good else f"{name or 'class'}-{label}"
        for label, (name, good) in enumerate(zip(plain, usable, strict=True))
    ]


def export_parquet(distilled: DistilledSet, path: Path) -> None:
    """Write Hugging Face's layout, with pictures and exact arrays.

    The columns are label (ClassLabel); input and target, exact, as lists of float32; and images as
    PNG bytes, or vectors as lists in the data's own units.
    """
    import pyarrow as pa  # here: only this format needs it
    import pyarrow.parquet as pq

    shown: Any
    first_type: Any
    numbers = [{"dtype": "float32", "_type": "Value"}]  # read by datasets 3 as by later ones
    if distilled.kind == "image":
        first, first_type = "image", {"_type": "Image"}
        pictures = [
            {"bytes": png(pixels), "path": f"{index:05d}.png"}
            for index, pixels in enumerate(distilled.pixels)
        ]
        shown = pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        first, first_type = "row", numbers
        shown = pa.array(list(distilled.rows.numpy()), pa.list_(pa.float32()))
    features = {
        first: first_type,
        "label": {"names": list(distilled.class_names), "_type": "ClassLabel"},
        "input": numbers,
        "target": numbers,
    }
    table = pa.table(
        {
            first: shown,
            "label": pa.array(distilled.labels.numpy()),
            "input": pa.array(list(distilled.images.flatten(1).numpy()), pa.list_(pa.float32())),
            "target": pa.array(list(distilled.targets.numpy()), pa.list_(pa.float32())),
        }
    )
    described = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "potstill": json.dumps(
            {
                "input_shape": distilled.shape,
                "preprocess": distilled.fitted.name,
                "recipe": distilled.recipe.plain(),
                **({"features": distilled.feature_names} if distilled.kind == "vector" else {}),
            }
        ),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(described), buffer)
    write(path, buffer.getvalue())


def png(pixels: Tensor) -> bytes:
    """Encode pixels (C, H, W) in [0, 1] as PNG bytes."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def export_npz(distilled: DistilledSet, path: Path) -> None:
    """Write plain arrays.

    images, targets and labels are exact; class_names; pixels (bytes), or rows and feature_names of
    vectors.
    """
    buffer = io.BytesIO()
    own: dict[str, Any]
    if distilled.kind == "vector":
        own = {"rows": distilled.rows.numpy(), "feature_names": np.array(distilled.feature_names)}
    else:
        own = {"pixels": to_bytes(distilled.pixels).numpy()}
    np.savez(
        buffer,
        images=distilled.images.numpy(),
        targets=distilled.targets.numpy(),
        labels=distilled.labels.numpy(),
        class_names=np.array(distilled.class_names),
        **own,
    )
    write(path, buffer.getvalue())


def export_csv(distilled: DistilledSet, path: Path) -> None:
    """Write a line for each vector: class, features in the data's own units, learned weights."""
    text, label = io.StringIO(), "label"
    while label in distilled.feature_names:
        label += "_"
    weights = (
        [f"weight of {name}" for name in distilled.class_names] if distilled.learned_labels else []
    )
    table = csv.writer(text, lineterminator="\n")
    table.writerow([label, *distilled.feature_names, *weights])
    rows, targets = distilled.rows.numpy(), distilled.targets.numpy()
    for row, target, index in zip(rows, targets, distilled.labels.tolist(), strict=True):
        # str of a float32 is its shortest text that reads back as the same number
        table.writerow(
            [distilled.class_names[index], *map(str, row), *(map(str, target) if weights else ())]
        )
    write(path, text.getvalue())


def export_tensors(distilled: DistilledSet, path: Path) -> None:
    """Write a folder with images.pt and labels.pt: classes (n,) or, if learned, weights (n, K)."""
    labels = distilled.targets if distilled.learned_labels else distilled.labels
    for name, tensor in (("images", distilled.images), ("labels", labels)):
        buffer = io.BytesIO()
        torch.save(tensor.clone(), buffer)
        path.mkdir(exist_ok=True)
        write(path / f"{name}.pt", buffer.getvalue())


def export_set(distilled: DistilledSet, path: Path) -> None:
    """Write the file that `potstill.load` reads, of these blocks only."""
    save(distilled, path)


@dataclass(frozen=True)
class Format:
    """One export format, a row of `registry.EXPORTS`.

    Args:
        write: writes a set to a path.
        default_name: the name of the file or folder, beside the set.
        told: kind of data -> what a user must know of the export; other kinds cannot be written.
        exact: whether it holds the arrays that a network trains on.
    """

    write: Callable[[DistilledSet, Path], None]
    default_name: str
    told: Mapping[str, str]
    exact: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of data that the format can hold."""
        return tuple(self.told)


DEFAULTS = {"image": "png", "vector": "csv"}
PNG = Format(export_png, "distilled.png", {"image": LOSSY}, exact=False)
FOLDER = Format(export_folder, "images", {"image": LOSSY}, exact=False)
CSV = Format(export_csv, "distilled.csv", {"vector": OWN_UNITS}, exact=True)
PARQUET = Format(
    export_parquet,
    "distilled.parquet",
    {
        "image": f"column image is {LOSSY}; columns input and target are {EXACT}",
        "vector": f"column row holds {OWN_UNITS}; columns input and target are {EXACT}",
    },
    exact=True,
)
NPZ = Format(
    export_npz,
    "distilled.npz",
    {
        "image": f"array pixels is {LOSSY}; images, targets and labels are {EXACT}",
        "vector": f"array rows holds {OWN_UNITS}; images, targets and labels are {EXACT}",
    },
    exact=True,
)
TENSORS = Format(export_tensors, "tensors", dict.fromkeys(("image", "vector"), EXACT), exact=True)
WHOLE = "exact, all that potstill.load reads"
SAFETENSORS = Format(
    export_set, "exported.safetensors", {"image": WHOLE, "vector": WHOLE}, exact=True
)


def export(
    distilled: DistilledSet, format: str, path: str | os.PathLike[str], *, overwrite: bool = False
) -> str:
    """Write a set in a format of `potstill list`.

    Args:
        distilled: the set.
        format: its name.
        path: the file or folder to write.
        overwrite: whether to replace what is at `path`.
    Returns:
        A sentence on what the file loses.
    Raises:
        InputError: an unknown format, one that cannot hold such data, a path that cannot be
            written, or one that exists and is not to be overwritten.
    """
    require_set(distilled)
    chosen: Format = EXPORTS[format]
    require_kind(
        distilled.kind,
        f"format {format}",
        chosen,
        f"use --format {DEFAULTS[distilled.kind]}, parquet or npz",
    )
    target = place("path", path)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another place with --out, or remove it")
    make_folder(target.parent, "choose another place with --out")
    chosen.write(distilled, target)
    return chosen.told[distilled.kind]


def write_default(distilled: DistilledSet, folder: Path, *, missing: bool = False) -> None:
    """Write a set into a run's folder in the format that shows it best.

    Args:
        distilled: the set.
        folder: of the run.
        missing: only if there is no such file; otherwise an earlier one is replaced.
    """
    name = DEFAULTS[distilled.kind]
    path = folder / EXPORTS[name].default_name
    if not (missing and path.exists()):
        export(distilled, name, path, overwrite=True)


def exported_images(distilled: DistilledSet) -> Tensor:
    """Return the exported 8-bit pictures as a network would read them.

    They are preprocessed as real images are.
    """
    return distilled.preprocess(to_bytes(distilled.pixels))
