"""Hundreds of malformed inputs, given to the command line one after the other.

    python tests/malformed.py FOLDER

Each is a name and a function that writes what is wrong into a folder of its own and returns the
command. One process runs them all and prints what became of each as a line of JSON: what is wrong
with how it was refused ("" if nothing is), its seconds, and the bytes of memory that are resident
then beyond those of the import.
"""

import contextlib
import gzip
import importlib
import io
import json
import os
import resource
import shutil
import socket
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Case = Callable[[Path], list[str]]
OPTIONS = {
    "model": "mlp", "width": "8", "depth": "1", "steps": "1", "unroll": "2", "window": "1",
    "real-batch": "4", "lengths": "2", "validation-nets": "1", "compile": "off", "device": "cpu",
    "threads": "1", "precision": "float32",
}  # fmt: skip
TINY = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
CASES: dict[str, Case] = {}
"""What is wrong -> what writes it and returns the command."""


# data


def distill(data: object, out: Path, *more: str) -> list[str]:
    """The command that distills data."""
    return ["distill", "--data", str(data), *TINY, "--out", str(out / "run"), *more]


def data(what: str, name: str, write: Callable[[Path], object], *more: str) -> None:
    """Add a file of data."""

    def case(folder: Path) -> list[str]:
        path = folder / name
        (path if name.endswith("/.") else path.parent).mkdir(parents=True, exist_ok=True)
        write(path)
        return distill(folder / Path(name).parts[0], folder, *more)

    CASES[f"{Path(name).suffix or 'folder'}: {what}"] = case


def holding(content: bytes | str) -> Callable[[Path], object]:
    """Write bytes."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def arrays(**named: Any) -> Callable[[Path], object]:
    """Write an npz of arrays; pickles are in it where NumPy needs them."""
    return lambda path: np.savez(path, **named)


def picture(side: int = 8) -> bytes:
    """A PNG."""
    written = io.BytesIO()
    Image.fromarray(np.full((side, side), 7, np.uint8)).save(written, "PNG")
    return written.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """A PNG whose header tells another size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


IMAGES, LABELS = np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 2
FLOATS = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
GOOD = {"images": IMAGES, "labels": LABELS}
for what, content in {
    "empty": b"",
    "zeros": bytes(1000),
    "text": "no arrays",
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
    "the beginning of a zip": b"PK\x03\x04" + bytes(200),
    "a PNG": picture(),
}.items():
    data(what, "x.npz", holding(content))
for what, named in {
    "no images": {"labels": LABELS},
    "no labels": {"images": IMAGES},
    "other names": {"a": IMAGES, "b": LABELS},
    "fewer labels": {"images": IMAGES, "labels": LABELS[:3]},
    "labels of two axes": {"images": IMAGES, "labels": np.eye(20)},
    "half labels": {"images": IMAGES, "labels": LABELS / 2},
    "labels with NaN": {"images": IMAGES, "labels": np.full(20, np.nan)},
    "one class": {"images": IMAGES, "labels": np.zeros(20, int)},
    "no examples": {"images": IMAGES[:0], "labels": LABELS[:0]},
    "objects": {"images": np.array([object] * 20), "labels": LABELS},
    "labels of objects": {"images": IMAGES, "labels": np.array([object] * 20)},
    "complex images": {"images": FLOATS * 1j, "labels": LABELS},
    "text as images": {"images": np.array(["a"] * 20), "labels": LABELS},
    "dates as images": {"images": np.zeros(20, "datetime64[s]"), "labels": LABELS},
    "images of one axis": {"images": np.zeros(20), "labels": LABELS},
    "images of five axes": {"images": np.zeros((20, 1, 2, 2, 2)), "labels": LABELS},
    "images without a pixel": {"images": np.zeros((20, 1, 0, 8)), "labels": LABELS},
    "NaN": {"images": np.where(FLOATS > 2, np.nan, FLOATS), "labels": LABELS},
    "infinity": {"images": np.where(FLOATS > 2, np.inf, FLOATS), "labels": LABELS},
    "one number for images": {"images": np.float32(1), "labels": LABELS},
    "labels of very many classes": {"images": IMAGES, "labels": np.arange(20) * 10**12},
    "a class for each image": {"images": IMAGES, "labels": np.arange(20)},
    "a test split of other shapes": {
        "x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :, :4], "y_test": LABELS,
    },
    "a test label that train lacks": {
        "x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS + 1,
    },
    "two arrays of images": {**GOOD, "x": IMAGES},
}.items():  # fmt: skip
    data(what, "x.npz", arrays(**named))


def npy(header: str, content: bytes = b"") -> bytes:
    """A .npy with a header of one's own."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def zip_of(path: Path, members: dict[str, bytes], deflated: bool = False) -> None:
    """Write a zip."""
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
for what, header in {
    "a header of 10^15 numbers": SHAPE % "10**15,".replace("10**15", str(10**15)),
    "a negative size": SHAPE % "-5, 3",
    "a header that is code": "__import__('os').abort()",
    "a deep header": "(" * 4000,
    "an unknown type": SHAPE.replace("<f4", "evil") % "3,",
    "a type of objects": SHAPE.replace("<f4", "|O") % "3,",
    "fewer bytes than its header says": SHAPE % "20, 1, 8, 8",
}.items():
    members = {"images.npy": npy(header, bytes(64)), "labels.npy": npy(SHAPE % "3,", bytes(12))}
    data(what, "x.npz", partial(zip_of, members=members))
data("a bomb", "x.npz", partial(zip_of, members={
    "images.npy": npy(SHAPE % "20, 1, 1000, 1000", bytes(80_000_000)),
    "labels.npy": npy(SHAPE % "3,", bytes(12)),
}, deflated=True))  # fmt: skip

for what, text in {
    "empty": "",
    "one line": "a,b,label",
    "zeros": "\0" * 500,
    "no column that could be the label": "a,b\n1,2\n3,4\n",
    "one class": "a,label\n" + "1,0\n" * 20,
    "cells that are no numbers": "a,label\n" + "x,0\ny,1\n" * 20,
    "holes": "a,b,label\n" + "1,,0\n2,3,1\n" * 20,
    "NaN": "a,label\n" + "nan,0\n2,1\n" * 20,
    "infinity": "a,label\n" + "1e999,0\n2,1\n" * 20,
    "lines of other lengths": "a,b,label\n" + "1,2,0\n1\n" * 20,
    "a column twice": "a,a,label\n" + "1,2,0\n2,3,1\n" * 20,
    "an open quote": 'a,label\n"1,0\n2,1\n' * 20,
    "labels that are missing": "a,label\n" + "1,\n2,1\n" * 20,
    "paths that are not there": "image,label\n" + "no.png,0\nnone.png,1\n" * 20,
    "paths out of the folder": "image,label\n" + "../../etc/passwd,0\n/etc/passwd,1\n" * 20,
    "a line of a million columns": ",".join(map(str, range(1_000_000))) + "\n1,2\n",
    "one example": "a,label\n1,0\n",
    "two examples": "a,label\n1,0\n2,1\n",
}.items():
    data(what, "x.csv", holding(text))
data("bytes", "x.csv", holding(bytes(range(256)) * 20))
data("UTF-16", "x.csv", holding(("a,label\n" + "1,0\n2,1\n" * 20).encode("utf-16-be")))
data("a label column that is not there", "x.csv", holding("a,label\n1,0\n2,1\n" * 9),
     "--label-column", "evil")  # fmt: skip
data("a label for each line", "x.csv", holding(
    "a,label\n" + "".join(f"{number},{number}\n" for number in range(50_000))
))  # fmt: skip


def table(columns: dict[str, Any], metadata: object = None) -> Callable[[Path], object]:
    """Write a parquet file, with the hub's metadata if given."""
    made = pa.table(columns)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        made = made.replace_schema_metadata({"huggingface": text})
    return lambda path: pq.write_table(made, path)


PNGS = pa.array([picture()] * 20, pa.binary())
for what, content in {
    "empty": b"",
    "text": "no table",
    "its marks alone": b"PAR1PAR1",
    "a footer of 4 GB": b"PAR1" + b"\xff" * 4 + b"PAR1",
    "a footer of zeros": b"PAR1" + bytes(64) + struct.pack("<I", 64) + b"PAR1",
}.items():
    data(what, "x.parquet", holding(content))
HUB = {"image": PNGS, "label": pa.array(LABELS)}


def classes(names: object) -> dict[str, Any]:
    """The hub's metadata with class names."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return {"info": {"features": features}}


for what, columns, metadata in [
    ("no rows", {"image": PNGS[:0], "label": pa.array(LABELS[:0])}, None),
    ("no labels", {"image": PNGS}, None),
    ("labels alone", {"label": pa.array(LABELS)}, None),
    ("images that are none", {**HUB, "image": pa.array([b"no"] * 20, pa.binary())}, None),
    ("images that are missing", {**HUB, "image": pa.array([None] * 20, pa.binary())}, None),
    ("labels that are missing", {**HUB, "label": pa.array([None] * 20, pa.int64())}, None),
    ("labels that are lists", {**HUB, "label": pa.array([[1]] * 20)}, None),
    ("labels that are halves", {**HUB, "label": pa.array(LABELS / 2 + 0.25)}, None),
    ("class names that are a number", HUB, classes(5)),
    ("class names that are lists", HUB, classes([[1], [2]])),
    ("class names of none", HUB, classes([])),
    ("class names that are equal", HUB, classes(["a", "a"])),
    ("class names that are missing", HUB, classes([None, {}])),
    ("fewer class names", HUB, classes(["a"])),
    # A file with metadata that say nothing is read by its columns.
    ("metadata that are deep, and one class", {**HUB, "label": pa.array([0] * 20)}, "[" * 50_000),
    ("metadata that are a list, and one class", {**HUB, "label": pa.array([0] * 20)}, [1]),
]:
    data(what, "x.parquet", table(columns, metadata))


def idx(kind: int, sizes: tuple[int, ...], content: bytes = b"") -> bytes:
    """An IDX file."""
    head = struct.pack(">BBBB", 0, 0, kind, len(sizes))
    return head + b"".join(struct.pack(">I", size) for size in sizes) + content


PIXELS, DIGITS = idx(8, (20, 8, 8), bytes(1280)), idx(8, (20,), bytes([0, 1] * 10))
for what, images, labels in [
    ("empty", b"", DIGITS),
    ("another magic number", b"\1\2\3\4" + PIXELS[4:], DIGITS),
    ("an unknown type", idx(7, (20, 8, 8), bytes(1280)), DIGITS),
    ("very many images", idx(8, (2**32 - 1, 2**16, 2**16)), DIGITS),
    ("images that are cut off", PIXELS[:-5], DIGITS),
    ("images that go on", PIXELS + b"\0", DIGITS),
    ("a header that is cut off", PIXELS[:9], DIGITS),
    ("255 axes", idx(8, (1,) * 255, b"\0"), DIGITS),
    ("fewer labels", PIXELS, idx(8, (19,), bytes(19))),
    ("no images", idx(8, (0, 8, 8)), idx(8, (0,))),
    ("labels of halves", PIXELS, idx(13, (20,), struct.pack(">20f", *[0.5, 1.5] * 10))),
    ("one class", PIXELS, idx(8, (20,), bytes(20))),
]:

    def written(path: Path, images: bytes = images, labels: bytes = labels) -> None:
        (path / "train-images-idx3-ubyte").write_bytes(images)
        (path / "train-labels-idx1-ubyte").write_bytes(labels)

    data(f"IDX, {what}", "mnist/.", written)
data("packed, cut off", "mnist/train-images-idx3-ubyte.gz", holding(gzip.compress(PIXELS)[:-9]))
data("packed, no gzip", "mnist/train-images-idx3-ubyte.gz", holding(b"\x1f\x8bno"))

for what, content in {
    "empty": b"",
    "text": "no archive",
    "nothing in it": b"PK\x05\x06" + bytes(18),
    "cut off": b"PK\x03\x04" + bytes(50),
    "very many files by its word": b"PK\x05\x06" + b"\xff" * 18,
}.items():
    data(what, "x.zip", holding(content))
for what, members in {
    "text only": {"a/readme.txt": b"x", "b/readme.txt": b"x"},
    "names that lead out": {f"../../{kind}/{n}.png": picture() for kind in "ab" for n in range(9)},
    "absolute names": {f"/tmp/{kind}/{number}.png": picture() for kind in "ab" for number in "12"},
    "one class": {f"a/{number}.png": picture() for number in range(9)},
    "images of no bytes": {f"{kind}/{number}.png": b"" for kind in "ab" for number in range(9)},
    "a pickle": {"data.pkl": b"cos\nabort\n(tR."},
    "an archive in it": {"x.zip": b"PK\x05\x06" + bytes(18)},
    "a bomb": {f"{kind}/{n}.png": bytes(60_000_000) for kind in "ab" for n in range(2)},
}.items():
    data(what, "x.zip", partial(zip_of, members=members, deflated=True))


def tar(path: Path, kind: bytes, mode: str = "w", name: str = "a/1.png", size: int = 0) -> None:
    """Write a tar of one special file."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        one = tarfile.TarInfo(name)
        one.type, one.linkname, one.size = kind, "/etc/passwd", size
        archive.addfile(one, io.BytesIO(bytes(size)))


for what, kind in {
    "a link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a device": tarfile.CHRTYPE,
    "a named pipe": tarfile.FIFOTYPE,
    "an empty file": tarfile.REGTYPE,
}.items():
    data(what, "x.tar", partial(tar, kind=kind))
for end in ("gz", "bz2", "xz"):
    data(f"text, {end}", f"x.tar.{end}", holding("no archive"))
    data(
        f"zeros that were packed, {end}", f"x.tar.{end}",
        partial(tar, kind=tarfile.REGTYPE, mode=f"w:{end}", size=40_000_000),
    )  # fmt: skip
data("empty", "x.tar", holding(b""))
data("zeros", "x.tar", holding(bytes(10_240)))


def pictures(path: Path, content: bytes, kinds: str = "ab", end: str = "png") -> None:
    """Write class folders of one file each, many times."""
    for kind in kinds:
        (path / kind).mkdir(parents=True)
        for number in range(9):
            (path / kind / f"{number}.{end}").write_bytes(content)


for what, content in {
    "images of no bytes": b"",
    "images of text": b"no image",
    "images that are cut off": picture()[:40],
    "images that say 100,000 x 100,000": png_that_says(100_000, 100_000),
    "images that say 2^31 pixels": png_that_says(2**31 - 1, 1),
    "images that say no pixel": png_that_says(0, 0),
    "images whose size is a lie": png_that_says(5_000, 5_000),
}.items():
    data(what, "images/.", partial(pictures, content=content))
data("one class", "images/.", partial(pictures, content=picture(), kinds="a"))
data("nothing in it", "images/.", lambda path: None)
data("text only", "images/.", partial(pictures, content=b"x", end="txt"))
data("SVG", "images/.", partial(pictures, content=b"<svg/>", end="svg"))


def linked(path: Path) -> None:
    """Class folders that are links to themselves."""
    for kind in "ab":
        (path / kind).symlink_to(path / kind)


data("links to themselves", "images/.", linked)
data("links to a folder above", "images/.", lambda path: (path / "a").symlink_to(path))

for what, text in {
    "empty": "",
    "deep": "[" * 100_000,
    "endless numbers": '{"file_name": "a.png", "label": ' + "9" * 6000 + "}",
    "names that are not there": '{"file_name": "no.png", "label": 0}',
    "names that lead out": '{"file_name": "../../../etc/passwd", "label": 0}',
    "names that are numbers": '{"file_name": 5, "label": 0}',
    "labels that are lists": '{"file_name": "a.png", "label": [0]}',
    "lines that are lists": "[1, 2]",
    "half a line": '{"file_name": "a.png", "la',
    "NaN": '{"file_name": "a.png", "label": NaN}',
}.items():

    def listed(path: Path, text: str = text) -> None:
        (path / "a.png").write_bytes(picture())
        (path / "metadata.jsonl").write_text(f"{text}\n" * 3)

    data(f"metadata.jsonl, {what}", "images/.", listed)


def shard(path: Path, **files: bytes) -> None:
    """Write a WebDataset shard of ten samples."""
    with tarfile.open(path / "train-000000.tar", "w") as archive:
        for number in range(10):
            for end, content in files.items():
                one = tarfile.TarInfo(f"{number:06d}.{end}")
                one.size = len(content)
                archive.addfile(one, io.BytesIO(content))


for what, files in {
    "no labels": {"png": picture()},
    "no images": {"cls": b"1"},
    "labels that are text of two lines": {"png": picture(), "cls": b"a\nb"},
    "JSON that is deep": {"png": picture(), "json": b"[" * 100_000},
    "JSON without a label": {"png": picture(), "json": b"{}"},
    "images that are none": {"png": b"x", "cls": b"1"},
    "a pickle as label": {"png": picture(), "pyd": b"cos\nabort\n(tR."},
}.items():
    data(f"shard, {what}", "shards/.", partial(shard, **files))


def special(make: Callable[[Path], object]) -> Case:
    """What is neither file nor folder."""

    def case(folder: Path) -> list[str]:
        make(folder / "it")
        return distill(folder / "it", folder)

    return case


def bound(path: Path) -> None:
    """A socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


CASES |= {
    "data: a named pipe": special(os.mkfifo),
    "data: a socket": special(bound),
    "data: a link to nothing": special(lambda path: path.symlink_to("/no/such")),
    "data: a link to itself": special(lambda path: path.symlink_to(path)),
    "data: not there": special(lambda path: None),
    "data: a file of no kind": special(holding("x")),
    "data: a device": lambda folder: distill("/dev/zero", folder),
    "data: a long name": lambda folder: distill("x" * 5000, folder),
    "data: no name": lambda folder: distill("", folder),
    "data: an unknown source": lambda folder: distill("evil:x", folder),
    "data: a source without a name": lambda folder: distill("sklearn:", folder),
    "data: a set of no such name": lambda folder: distill("sklearn:evil", folder),
    "data: a module that is not there": lambda folder: distill("evil.no:make", folder),
    "data: a function that is not there": lambda folder: distill("os.path:evil", folder),
    "data: what is no function": lambda folder: distill("os.path:sep", folder),
    "data: a function that ends Python": lambda folder: distill("sys:exit", folder),
}  # fmt: skip

for what, text in {
    "empty": "",
    "text": "heavy\n" * 3,
    "negative": "-1\n" * 1800,
    "fewer": "1\n" * 7,
    "all zero": "0\n" * 1800,
    "NaN": "nan\n" * 1800,
}.items():

    def weighted(folder: Path, text: str = text) -> list[str]:
        (folder / "weights.txt").write_text(text)
        return distill("digits", folder, "--weights", str(folder / "weights.txt"))

    CASES[f"weights: {what}"] = weighted


# configuration


def config(text: str | bytes) -> Case:
    """The command with a configuration file."""

    def case(folder: Path) -> list[str]:
        holding(text)(folder / "c.toml")
        return ["distill", "--config", str(folder / "c.toml"), "--out", str(folder / "run")]

    return case


for what, text in {
    "half": "[data",
    "bytes": b"\xff\xfe\0\0",
    "deep": "x = " + "[" * 50_000,
    "a number without end": "[run]\nseed = " + "9" * 5_001,
    "an unknown section": "[evil]\nx = 1",
    "an unknown name": "[run]\nevil = 1",
    "a section that is a number": "run = 3",
    "a section that is a list": "[[run]]\nseed = 1",
    "a name twice": "[run]\nseed = 1\nseed = 2",
    "a date": "[run]\nseed = 2020-01-01",
    "a table as a number": "[run]\nseed = {a = 1}",
    "NUL in a folder": '[data]\ncache_dir = "a\\u0000b"',
    "a part of a stranger": '[model]\nmodel = "os:abort"',
    "a preset in it": 'preset = "digits-ipc1"',
    "true as a number": "[run]\nseed = true",
    "NaN": "[outer]\nouter_lr = nan",
    "infinity": "[outer]\nouter_lr = inf",
    "a list of lists": "[inner]\naugment = [[1]]",
    "zeros": "\0" * 300,
}.items():
    CASES[f"config: {what}"] = config(text)
CASES["config: a folder"] = lambda folder: ["distill", "--config", str(folder)]
CASES["config: not there"] = lambda folder: ["distill", "--config", str(folder / "no.toml")]
CASES["config: a device"] = lambda folder: ["distill", "--config", "/dev/null/x"]


# options


def option(*words: str) -> Case:
    """A command line by itself."""
    return lambda folder: [*words, "--out", str(folder / "run")]


FREE = ("data", "weights", "cache_dir", "init", "device", "time_budget", "model", "lengths")
"""Options whose texts are checked by what they name."""


def options() -> None:
    """Add wrong values for every option of a run with an MLP."""
    from potstill.cli.options import flag_of
    from potstill.config.config import options_of_run

    for one in options_of_run({"model": "mlp"}):
        flag, last = flag_of(one.name), tuple(TINY)
        if flag.startswith("--[no-]") or isinstance(one.default, bool):
            continue
        for value in ("evil ", "\0", "-1", "nan", "9" * 30):
            free = one.name in FREE and value != "\0"
            long = isinstance(one.default, float | str) or one.name.endswith("seed")
            if free or (value == "9" * 30 and long):
                continue
            CASES[f"{flag} {value[:8]!r}"] = option("distill", *last, f"{flag}={value}")


GIVEN: dict[str, tuple[str, ...]] = {
    "no command": (),
    "an unknown command": ("evil",),
    "an unknown flag": ("distill", "--evil", "1"),
    "a flag without its value": ("distill", "--steps"),
    "a flag that is cut off": ("distill", "--ste", "3"),
    "a word too many": ("distill", "evil"),
    "an unknown preset": ("distill", "--preset", "evil"),
    "no preset": ("distill", "--preset", ""),
    "a window longer than the unroll": ("distill", "--unroll", "3", "--window", "9"),
    "more images than there are": ("distill", "--ipc", "99999", "--init", "real"),
    "an image size for digits": ("distill", "--image-size", "99999999"),
    "resume of nothing": ("distill", "--resume", "no-such-run"),
    "resume of a file": ("distill", "--resume", __file__),
    "evaluate nothing": ("evaluate", "no-such-run"),
    "evaluate a file of Python": ("evaluate", __file__),
    "evaluate a folder": ("evaluate", str(Path(__file__).parent)),
    "evaluate without a set": ("evaluate",),
    "export nothing": ("export", "no-such-run"),
    "report of nothing": ("report", "no-such-run"),
    "report of a file": ("report", __file__),
    "diagnose nothing": ("diagnose", "no-such-run"),
    "finish nothing": ("finish", "no-such-run"),
    "an unknown study": ("study", "evil"),
    "a study of no seed": ("study", "windows", "--seeds", "0"),
    "a study of half a network": ("study", "windows", "--nets", "0.5"),
    "a study of other data": ("study", "windows", "--data", "evil:x"),
    "list of something": ("list", "evil"),
}
SETS: dict[str, bytes] = {
    "empty": b"",
    "text": b"no set",
    "a header of 99 MB": struct.pack("<Q", 99_000_000) + bytes(100),
    "a header of 2^62": struct.pack("<Q", 2**62) + bytes(100),
    "a deep header": struct.pack("<Q", 90_000) + b"[" * 90_000,
    "a header of nothing": struct.pack("<Q", 2) + b"{}",
    "another file of safetensors": struct.pack("<Q", 60)
    + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      '
    + bytes(4),
    "offsets that are a lie": struct.pack("<Q", 64)
    + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,4000000000]}}'.ljust(64)
    + bytes(4),
    "a pickle": b"cos\nabort\n(tR.",
}


def rest() -> None:
    """Add the command lines of the other commands."""
    for what, words in GIVEN.items():
        CASES[f"given: {what}"] = lambda folder, words=words: list(words)  # type: ignore[misc]
    for what, content in SETS.items():

        def case(folder: Path, content: bytes = content) -> list[str]:
            (folder / "distilled.safetensors").write_bytes(content)
            return ["evaluate", str(folder)]

        CASES[f"set: {what}"] = case


def damaged(what: str, change: Callable[[Path], object], *words: str) -> None:
    """Add a finished run of our own, which something was done to."""

    def case(folder: Path) -> list[str]:
        shutil.copytree(folder.parent / "good", folder / "run")
        change(folder / "run")
        return [word.format(run=folder / "run", folder=folder) for word in words]

    CASES[f"run: {what}"] = case


def to_file(name: str, content: bytes | str) -> Callable[[Path], object]:
    """Put other content into a file of the run."""
    return lambda run: holding(content)(run / name)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace a text in a file of the run."""

    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text, (name, old)
        (run / name).write_text(text.replace(old, new))

    return change


def flipped(name: str, place: int) -> Callable[[Path], object]:
    """Flip a bit in the first file of that name."""

    def change(run: Path) -> None:
        path = sorted(run.glob(name))[0]
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return change


def unfinished(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Take the set away, too."""

    def both(run: Path) -> None:
        (run / SET).unlink(missing_ok=True)
        change(run)

    return both


def each_checkpoint(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Do something to every checkpoint."""
    return lambda run: [change(path) for path in (run / "checkpoints").iterdir()]


SET = "distilled.safetensors"
DATA = ("--data", "digits")
RESUME = ("distill", "--resume", "{run}")
EVALUATE = ("evaluate", "{run}", "--nets", "1")
for place in (3, 60, 200, 900, -5, -500):
    damaged(f"a bit of the set flipped at {place}", flipped(SET, place), *EVALUATE)
for end, words in {
    "npz": ("export", "{run}", "--format", "npz"),
    "png": ("export", "{run}", "--format", "png"),
    "report": ("report", "{run}", "--out", "{folder}/no/such/page.html"),
}.items():
    damaged(f"a half set, {end}", to_file(SET, b"\0" * 999), *words[:4])
for what, change, words in [
    ("no configuration", lambda run: (run / "config.toml").unlink(), RESUME),
    ("an empty configuration", to_file("config.toml", ""), RESUME),
    ("half a configuration", to_file("config.toml", "[da"), RESUME),
    ("another width", unfinished(replaced("config.toml", "width = 8", "width = 9")), RESUME),
    ("another seed", unfinished(replaced("config.toml", "\nseed = 0", "\nseed = 1")), RESUME),
    ("a stranger's model", unfinished(
        replaced("config.toml", 'model = "mlp"', 'model = "os:abort"')), RESUME),
    ("a stranger's method", unfinished(
        replaced("config.toml", 'method = "rat-bptt"', 'method = "os:abort"')), RESUME),
    ("other data", lambda run: None, (*RESUME, "--data", "sklearn:wine")),
    ("fewer steps", unfinished(lambda run: None), (*RESUME, "--steps", "1")),
    ("another option", lambda run: None, (*RESUME, "--ipc", "2")),
    ("no checkpoint is whole", unfinished(each_checkpoint(
        lambda path: path.write_bytes(path.read_bytes()[:-9]))), RESUME),
    ("no checkpoint has a byte", unfinished(each_checkpoint(
        lambda path: path.write_bytes(b""))), RESUME),
    ("a checkpoint of a set", unfinished(each_checkpoint(
        lambda path: shutil.copy(path.parents[3] / "set", path))), RESUME),
    ("out is a run", lambda run: None, ("distill", *DATA, *TINY, "--out", "{run}")),
    ("out is a file", to_file("x", "x"), ("distill", *DATA, *TINY, "--out", "{run}/x")),
    ("out is in a file", to_file("x", "x"), ("distill", *DATA, *TINY, "--out", "{run}/x/y")),
    ("out is another's folder", lambda run: (run / "config.toml").unlink(),
     ("distill", *DATA, *TINY, "--out", "{run}", "--overwrite")),
    ("export to no format", lambda run: None, ("export", "{run}", "--out", "{folder}/x.evil")),
    ("export of an unknown format", lambda run: None, ("export", "{run}", "--format", "evil")),
    ("export of features as a picture", lambda run: None, ("export", "{run}", "--format", "csv")),
    ("export of more than it holds", lambda run: None, ("export", "{run}", "--ipc", "5")),
    ("evaluate more than it holds", lambda run: None, (*EVALUATE, "--ipc", "5")),
    ("evaluate on other data", lambda run: None, (*EVALUATE, "--data", "sklearn:wine")),
    ("evaluate no network", lambda run: None, ("evaluate", "{run}", "--nets", "0")),
    ("evaluate by an unknown protocol", lambda run: None, (*EVALUATE, "--protocol", "evil")),
    ("evaluate an unknown model", lambda run: None, (*EVALUATE, "--models", "mlp,evil")),
    ("evaluate no step", lambda run: None, (*EVALUATE, "--steps", "0")),
    ("evaluate at a rate of NaN", lambda run: None, (*EVALUATE, "--lr", "nan")),
    ("evaluate beside an unknown baseline", lambda run: None, (*EVALUATE, "--baselines", "evil")),
    ("evaluate on no such device", lambda run: None, (*EVALUATE, "--device", "evil")),
    ("report of a run twice", lambda run: (run / "config.toml").unlink(), ("report", "{run}")),
    ("report to a folder", lambda run: None, ("report", "{run}", "--out", "{folder}")),
    ("report into nothing", lambda run: None, ("report", "{run}", "--out", "{folder}/no/x.html")),
    ("diagnose no sample", lambda run: None,
     ("diagnose", "{run}", "--samples", "0", "--sources", "0")),
    ("diagnose with other data", lambda run: None, ("diagnose", "{run}", "--data", "sklearn:wine")),
    ("init from a set of another size", lambda run: None,
     ("distill", *DATA, *TINY, "--out", "{folder}/x", "--init", "{run}", "--ipc", "3")),
    ("init from a broken set", to_file(SET, b"no"),
     ("distill", *DATA, *TINY, "--out", "{folder}/x", "--init", "{run}")),
    ("the lock is a folder", lambda run: [(run / ".lock").unlink(missing_ok=True),
                                          (run / ".lock").mkdir()], RESUME),
    ("the checkpoints are a file", unfinished(lambda run: [
        shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_bytes(b"")]), RESUME),
]:  # fmt: skip
    damaged(what, change, *words)
options()
rest()


# running

LONGEST, BYTES = 2_000, 200_000_000


def wrong_with(code: object, failed: str, told: str, taken: int) -> str:
    """Say what is wrong with how an input was refused.

    Args:
        code: of the exit.
        failed: the exception that came through, or "".
        told: standard error.
        taken: bytes of memory.
    """
    lines = told.strip().splitlines()
    errors = [line for line in lines if line.startswith("potstill: error: ")]
    if failed or code != 2:
        return f"exit code {code}, {failed or lines[-3:]}"
    if len(errors) != 1 or lines[-1:] != errors:
        return f"not one sentence at the end: {lines[-3:]}"
    if not errors[0].isprintable() or len(errors[0]) > LONGEST:
        return f"no sentence to read: {errors[0]!r}"
    return f"{taken:,} bytes of memory" if taken > BYTES else ""


def resident(what: str) -> int:
    """Bytes of memory that this process has (VmRSS) or had (VmHWM) at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run every case."""
    root, only = Path(sys.argv[1]), sys.argv[2:]
    from potstill.cli.parser import main as command

    for module in ("potstill.cli.commands", "sklearn.datasets", "matplotlib.pyplot"):
        importlib.import_module(module)
    imported = resident("VmRSS")
    (root / "first").mkdir()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        whole = distill("digits", root / "first", "--checkpoint-every", "1", "--steps", "2")
        assert command(whole) == 0
    (root / "first" / "run").rename(root / "good")
    shutil.copy(root / "good" / SET, root / "set")
    for number, (what, case) in enumerate(CASES.items()):
        if only and what not in only:
            continue
        folder = root / str(number)
        folder.mkdir()
        words = case(folder)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        told, failed = io.StringIO(), ""
        began = time.perf_counter()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            try:
                code: object = command(words)
            except SystemExit as error:  # argparse
                code = error.code
            except BaseException as error:
                code, failed = 1, repr(error)[:300]
        seconds = time.perf_counter() - began
        wrong = wrong_with(code, failed, told.getvalue(), resident("VmHWM") - before)
        total = resident("VmRSS") - imported
        record = {"what": what, "wrong": wrong, "seconds": seconds, "total": total}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
