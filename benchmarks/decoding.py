"""Which share of an outer step each parameterisation spends on decoding and on the way back through
it.

    python benchmarks/decoding.py

Digits, and random images of CIFAR-10's size, since time does not depend on what they show.
Compiled, where it pays.
"""

import argparse
import json
import statistics

import torch
from curves import RESULTS, provenance

from potstill.config.config import changed, configuration
from potstill.data.arrays import from_arrays
from potstill.data.sources import read
from potstill.devices import own_torch_state
from potstill.distillation.outer import Carried, outer_step
from potstill.distillation.setup import Setup
from potstill.distillation.step_log import Reader
from potstill.progress import SILENT
from potstill.registry import PARAMETERISATIONS

SHARED = {"preprocess": "normalize", "unroll": 60, "window": 20, "real_batch": 200}
SETTINGS = {
    "digits, width 32": ("digits", {"width": 32, "compile": "off", "ipc": 1}),
    "3 x 32 x 32, width 32": ("colour", {"width": 32, "compile": "on", "ipc": 1}),
    "3 x 32 x 32, width 128": ("colour", {"width": 128, "compile": "on", "ipc": 1}),
    "3 x 32 x 32, width 128, budget 10": ("colour", {"width": 128, "compile": "on", "ipc": 10}),
}


@own_torch_state()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="outer steps after the first, which is not counted (default: 4)",
    )
    known = parser.parse_args()
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4000, 3, 32, 32, generator=rng), torch.arange(4000) % 10
    rows = []
    for setting, (data, options) in SETTINGS.items():
        config = configuration(SHARED, options)
        dataset = read(config.data) if data == "digits" else from_arrays(images, labels)
        for param in PARAMETERISATIONS:
            setup = Setup.of(changed(config, param=param), dataset, None, SILENT)
            stage = setup.stage(None)
            method = setup.make_method(stage, Carried())
            on_blocks, rules = stage.on_blocks(method, setup.device), stage.rules(method.start()[1])
            state, records = setup.begin(stage, method), []
            for _ in range(1 + known.steps):
                began = on_blocks.now()
                state, told = outer_step(on_blocks, setup.schedule, rules, state)
                record = Reader(on_blocks.remedy, setup.device).read(told)
                assert record.decode_seconds is not None  # every step on blocks tells it
                records.append(
                    {"seconds": on_blocks.now() - began, "decode_seconds": record.decode_seconds}
                )
            block = setup.blocks[0]
            row = {
                "setting": setting,
                "param": param,
                "images": len(block.labels),
                "bytes": block.stored_bytes,
                "share": statistics.median(
                    one["decode_seconds"] / one["seconds"] for one in records[1:]
                ),
                "seconds": statistics.median(one["seconds"] for one in records[1:]),
                "steps": known.steps,
            }
            print(row, flush=True)
            rows.append(row)
    result = {"rows": rows, "unroll": SHARED["unroll"], "window": SHARED["window"], **provenance()}
    (RESULTS / "decoding.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
