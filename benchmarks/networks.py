"""Do the paper's networks distill within 8 GB? One outer step on CIFAR-10 each: window 20, 100
synthetic images a step.

    python benchmarks/networks.py --data parquet:PATH

The figure is the peak of the whole process, the data included.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from curves import RESULTS, provenance

from potstill.distillation.run_folder import RunFolder
from potstill.models import fresh, resolve

SETTINGS = {
    "convnet": {},
    "convnet-wide": {},
    "vgg11": {},
    "alexnet": {},
    "resnet18": {},
    "resnet18 --tape sqrt": {"tape": "sqrt"},
    "resnet18 --norm batch --tape sqrt": {"norm": "batch", "tape": "sqrt", "real-batch": "100"},
    "resnet18 --compile on --precision bfloat16": {"compile": "on", "precision": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="parquet:PATH of CIFAR-10")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the runs (default: runs)"
    )
    known = parser.parse_args()
    found = {}
    for name, options in SETTINGS.items():
        out, model = known.work / f"network-{name.replace(' ', '')}", name.split()[0]
        words = {
            "data": known.data,
            "model": model,
            "ipc": "10",
            "unroll": "22",
            "window": "20",
            "steps": "1",
            "real-batch": "500",
            "lengths": "1",
            "validation-nets": "1",
            "compile": "off",
            **options,
        }
        flags = [word for option, value in words.items() for word in (f"--{option}", value)]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "potstill.cli.parser",
                "distill",
                *flags,
                "--out",
                str(out),
                "--overwrite",
                "--quiet",
            ],
            check=True,
        )
        record = RunFolder(out).records()[0]
        network = fresh(resolve(model, (3, 32, 32), 10), 0, torch.device("cpu"))
        found[name] = {
            "peak_memory_mb": record.memory_mb, "seconds": record.seconds,
            "parameters": sum(p.numel() for p in network.parameters()),
        }  # fmt: skip
        print(name, found[name], flush=True)
    result = {"window": 20, "synthetic": 100, "runs": found, **provenance()}
    (RESULTS / "networks.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
