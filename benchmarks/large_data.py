"""What a data set of ImageNet's size costs: reading a folder of it for the first time and again,
real batches, an outer step.

    python benchmarks/large_data.py --images parquet:PATH

The folder has 1,281,167 images of 64 pixels in 1,000 classes to train on and 50,000 to test on:
hard links to the images that are given, as often as needed, each of which is read and decoded on
its own. It takes about 16 GB under --work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import RESULTS, provenance

from potstill.config.config import configuration
from potstill.config.sections import DataConfig
from potstill.data.preparation import prepare
from potstill.data.sampling import UNIFORM, Weighted
from potstill.data.sources import read
from potstill.data.splits import MappedSplit
from potstill.distillation.run_folder import RunFolder
from potstill.seeds import generator

CLASSES, TRAIN, TEST, SIZE, BATCH, DRAWS = 1000, 1_281_167, 50_000, 64, 1500, 9
RUN = {
    "preset": "imagenet-ipc1",
    "steps": 3,
    "unroll": 12,
    "window": 4,
    "lengths": 2,
    "validation": 0.001,
    "validation-nets": 1,
    "compile": "off",
    "validate-every": 10,
    "checkpoint-every": 10,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", help="parquet:PATH of images to fill the folder with")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/large"),
        help="folder for all of it (default: runs/large)",
    )
    parser.add_argument(
        "--only",
        default="first,again,batches,cold,run",
        help="parts to measure; the others stay (default: all)",
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    known = parser.parse_args()
    folder, cache = known.work / "images", known.work / "cache"
    config = DataConfig(data=f"folder:{folder}", image_size=SIZE, cache_dir=str(cache))
    if known.part:
        print(json.dumps(PARTS[known.part](config)))
        return
    wanted = known.only.split(",")
    if not (folder / "val").exists():
        if not known.images:
            raise SystemExit("give --images to make the folder")
        fill(folder, known.images.removeprefix("parquet:"))
    if "first" in wanted and cache.exists():
        raise SystemExit(f"{cache} holds a conversion; remove it")
    target = RESULTS / "large_data.json"
    found = json.loads(target.read_text()) if target.exists() else {}
    for name, part in (
        ("first", reading),
        ("again", reading),
        ("batches", batches),
        ("cold", cold),
    ):
        if name not in wanted:
            continue
        if name == "cold":
            drop_from_cache(cache)
        command = [sys.executable, __file__, "--work", str(known.work), "--part", part.__name__]
        printed, memory = watched(command)
        found[name] = {**json.loads(printed), "own_memory_mb": memory}
        print(name, found[name], flush=True)
    if "run" in wanted:
        found["run"] = run(known.work, config)
        print("run", found["run"], flush=True)
    sizes = {"train": TRAIN, "test": TEST, "classes": CLASSES, "pixels": SIZE}
    target.write_text(json.dumps({**found, **sizes, **provenance()}, indent=2) + "\n")


def fill(folder: Path, images: str) -> None:
    """Make the folder."""
    import pyarrow.parquet as pq

    pool = folder.parent / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(Path(images) / "train.parquet", columns=["image"]).to_pylist()
    files = [pool / f"{place}.jpeg" for place in range(len(rows))]
    for file, row in zip(files, rows, strict=True):
        file.write_bytes(row["image"]["bytes"])
    done = 0
    for split, count in (("train", TRAIN), ("val", TEST)):
        for label in range(CLASSES):
            place = folder / split / f"class{label:04}"
            place.mkdir(parents=True)
            for number in range(count // CLASSES + (label < count % CLASSES)):
                os.link(files[done % len(files)], place / f"{number}.jpeg")
                done += 1


def watched(command: list[str]) -> tuple[str, float]:
    """What a command prints, and the most memory of its own that it was seen to use, in MB.

    Pages of memory-mapped files are not its own: the system takes them back when it needs them.
    """
    most = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(
                [
                    most,
                    *(
                        int(line.split()[1])
                        for line in status.splitlines()
                        if line.startswith("RssAnon")
                    ),
                ]
            )
            time.sleep(0.1)
        if process.returncode or process.stdout is None:
            raise SystemExit(process.returncode)
        return process.stdout.read(), round(most * 1024 / 1e6)


def reading(config: DataConfig) -> dict[str, Any]:
    """Read the folder: convert it, or find the conversion again."""
    began = time.perf_counter()
    dataset = read(config)
    seconds = time.perf_counter() - began
    if not dataset.mapped or dataset.train.images.shape != (TRAIN, 3, SIZE, SIZE):
        raise SystemExit(f"not what was made: {dataset.train.images.shape}")
    return {"seconds": round(seconds, 1)}


def batches(config: DataConfig) -> dict[str, Any]:
    """Fit the preprocessing, and draw and read real batches that lie in the system's cache."""
    dataset = read(config)
    began = time.perf_counter()
    real = prepare(
        dataset, config, torch.device("cpu"), configuration(preprocess="normalize").preprocessing
    )
    found: dict[str, Any] = {"preprocessing_seconds": round(time.perf_counter() - began, 1)}
    rng = generator(0)
    weighted = Weighted(torch.rand(len(real.train), generator=rng, dtype=torch.float64))
    for name, sampler in (("uniform", UNIFORM), ("weighted", weighted)):
        found[f"{name}_draw_seconds"] = median(
            lambda sampler=sampler: sampler.draw(real.train, BATCH, rng)
        )
    rows = [UNIFORM.draw(real.train, BATCH, rng) for _ in range(DRAWS)]
    for one in rows:
        real.train.take(one)
    again = iter(rows)
    found["warm_seconds"] = median(lambda: real.train.take(next(again)))
    return {**found, "bytes": int(np.prod(dataset.train.images.shape))}


def drop_from_cache(cache: Path) -> None:
    """Have the system forget the converted images; no process has them open."""
    for file in cache.glob("*/*.npy"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(config: DataConfig) -> dict[str, Any]:
    """Read real batches that the system's cache does not hold."""
    arrays, rng = read(config).train, generator(0)
    split = MappedSplit(
        arrays, np.arange(len(arrays.labels)), lambda images: images, torch.device("cpu")
    )
    return {"seconds": median(lambda: split.take(UNIFORM.draw(split, BATCH, rng)))}


PARTS = {part.__name__: part for part in (reading, batches, cold)}


def median(work: Any) -> float:
    """Seconds that something takes."""
    seconds = []
    for _ in range(DRAWS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds), 4)


def run(work: Path, config: DataConfig) -> dict[str, Any]:
    """Some outer steps of the preset, with a short unroll."""
    words = {"data": config.data, "cache-dir": config.cache_dir, "out": str(work / "run"), **RUN}
    flags = [str(word) for option, value in words.items() for word in (f"--{option}", value)]
    _, memory = watched(
        [sys.executable, "-m", "potstill.cli.parser", "distill", *flags, "--overwrite", "--quiet"]
    )
    records = RunFolder(work / "run").records()
    seconds = statistics.median(record.seconds for record in records[1:])
    return {"own_memory_mb": memory, "seconds": seconds, "options": RUN}


if __name__ == "__main__":
    main()
