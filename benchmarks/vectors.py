"""Tables of numbers: distilled rows beside as many random real ones and a logistic regression on
all.

    python benchmarks/vectors.py

Each setting of SETTINGS is distilled from three seeds; the best on validation data is measured on
test data, once. A set that is there already (--work) is not made again.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import sklearn
import torch
from curves import RESULTS, provenance
from sklearn.linear_model import LogisticRegression

import potstill
from potstill.config.config import configuration
from potstill.data.preparation import prepare
from potstill.data.sources import read
from potstill.data.splits import Split
from potstill.distillation.run_folder import RunFolder
from potstill.distilled.sets import DistilledSet
from potstill.records.metrics import Figure

DATA = {"sklearn:wine": "wine", "sklearn:breast_cancer": "breast cancer"}
METHODS = ("rat-bptt",)
"""What distils; any other of `potstill list` takes its place beside it."""
IPC, SEEDS, NETS = (1, 5), 3, 5
COMMON = {
    "steps": 100,
    "validation": 0.2,
    "validate_every": 25,
    "threads": 1,
    "precision": "float32",
    "compile": "off",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "from noise": {},
    "from noise, inner_lr 0.01": {"inner_lr": 0.01, "lengths": (60, 200, 600)},
    "from real rows, inner_lr 0.01": {"init": "real", "inner_lr": 0.01, "lengths": (60, 200, 600)},
}


def made(work: Path, data: str, method: str, ipc: int, setting: str, seed: int) -> DistilledSet:
    """Distill, or load what was distilled before."""
    name = f"{data.partition(':')[2]}-{method}-ipc{ipc}-{list(SETTINGS).index(setting)}-seed{seed}"
    if not (work / name / "distilled.safetensors").exists():
        options = {
            **COMMON,
            **SETTINGS[setting],
            "data": data,
            "method": method,
            "ipc": ipc,
            "seed": seed,
        }
        potstill.distill(**options, out=work / name, overwrite=True)
    return potstill.load(work / name)


def pooled(figures: list[Figure]) -> dict[str, Any]:
    """Mean and sample deviation over the networks of several sets, as if they stood in one list."""
    count = sum(one.n for one in figures)
    mean = sum(one.n * one.mean for one in figures) / count
    squares = sum(
        (one.n - 1) * (one.std or 0) ** 2 + one.n * (one.mean - mean) ** 2 for one in figures
    )
    return {"mean": mean, "std": math.sqrt(squares / (count - 1)), "n": count}


def of_all_rows(data: str) -> dict[str, Any]:
    """Test accuracy of scikit-learn's logistic regression on every training row, standardised."""
    config = configuration(COMMON, data=data, preprocess="normalize")
    real = prepare(read(config.data), config.data, torch.device("cpu"), config.preprocessing)

    def arrays(split: Split) -> tuple[Any, Any]:
        return tuple(part.numpy() for part in split.take(torch.arange(len(split))))  # type: ignore[return-value]

    model = LogisticRegression(max_iter=1000).fit(*arrays(real.train))
    accuracy = float(model.score(*arrays(real.test)))
    counts = {name: getattr(real.record, name) for name in ("train", "validation", "test")}
    return {"accuracy": accuracy, **counts, "shape": real.shape, "classes": len(real.class_names)}


def measured(work: Path, data: str, method: str, ipc: int) -> dict[str, Any]:
    """Choose a setting on validation data, then measure it and random real rows on test data."""
    validation = {}
    for setting in SETTINGS:
        sets = [made(work, data, method, ipc, setting, seed) for seed in range(SEEDS)]
        validation[setting] = sum(one.meta["accuracy"]["mean"] for one in sets) / SEEDS
    best = max(validation, key=lambda setting: validation[setting])
    distilled, random = [], []
    for seed in range(SEEDS):
        one = made(work, data, method, ipc, best, seed)
        rows = potstill.evaluate(one, nets=NETS, baselines=("random",), seed=seed, compile="off")
        distilled.append(rows[0].accuracy)
        random.append(rows[1].accuracy)
    return {
        "data": DATA[data], "method": method, "ipc": ipc, "setting": best, "validation": validation,
        "distilled": pooled(distilled), "random": pooled(random),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/vectors"), help="folder for the runs"
    )
    known = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measured(known.work, data, method, ipc)
        for data in DATA
        for method in METHODS
        for ipc in IPC
    ]
    result = {
        "command": "python benchmarks/vectors.py",
        "protocol": f"{SEEDS} distilling seeds x {NETS} fresh networks; setting, outer step and "
        "training length chosen on validation rows; random: other rows for each network, the same "
        "recipe; test rows chose nothing",
        "settings": SETTINGS,
        "common": COMMON,
        "rows": rows,
        "all_rows": {name: of_all_rows(data) for data, name in DATA.items()},
        "seconds_distilling": round(
            sum(
                record.seconds
                for run in known.work.iterdir()
                for record in RunFolder(run).records()
            )
        ),
        **(origin := provenance()),
        "versions": {**origin["versions"], "scikit-learn": sklearn.__version__},
    }
    (RESULTS / "vectors.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
