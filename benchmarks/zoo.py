"""Makes the ready-made sets: distils each, measures it, and puts it into potstill/distilled/ready/.

    python benchmarks/zoo.py digits-ipc1 wine-ipc1 --work DIR
    python benchmarks/zoo.py mnist-ipc1 --work DIR --data parquet:/data/mnist
    python benchmarks/zoo.py                          # lists the sets, and which are made

A run that was cut off goes on where it was when the same command is given again. The catalogue has
what the run's own record says: nothing in it is typed by hand but the words on the data.
"""

import argparse
import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curves import flag

import potstill
from potstill.cli.parser import main as command
from potstill.diagnosis.machine import processor
from potstill.distillation import checkpoints
from potstill.distilled.artefact import load, save, without_preprocessing
from potstill.distilled.zoo import CATALOGUE, ReadySet
from potstill.evaluation.records import EVALUATION, EvaluationRecord, read_records
from potstill.files import write
from potstill.records.plain import dump

READY = Path(potstill.__file__).parent / "distilled" / "ready"
NETS = 10
LARGE = 100_000
"""Bytes of what prepares real examples from which on the file is without it."""
OTHERS = "Networks that differ much from the one it was made for: measure first, with --models."
COPIES = (
    "Hiding the real data: no guarantee is given that nothing can be learned about them from it."
)


@dataclass(frozen=True)
class Source:
    """Real data: the option `data` if a package carries them, what they are, and their license."""

    data: str
    words: str
    license: str


DIGITS = Source(
    "digits",
    "digits of scikit-learn, from the UCI repository (Alpaydin & Kaynak), 8 x 8 grey",
    "CC BY 4.0",
)
MNIST = Source(
    "",
    "MNIST (LeCun, Cortes & Burges), 28 x 28 grey, padded to 32 x 32; hf:ylecun/mnist or idx:PATH",
    "CC BY-SA 3.0",
)
FASHION = Source(
    "",
    "Fashion-MNIST (Xiao, Rasul & Vollgraf), 28 x 28 grey, padded to 32 x 32; "
    "hf:zalando-datasets/fashion_mnist or idx:PATH",
    "MIT",
)
CIFAR10 = Source(
    "",
    "CIFAR-10 (Krizhevsky), 32 x 32 colour; hf:uoft-cs/cifar10",
    "none stated; cite Krizhevsky 2009",
)


def table_of(name: str, words: str) -> Source:
    """Return the source of a table of scikit-learn, from the UCI repository."""
    return Source(f"sklearn:{name}", f"{words}, from the UCI repository", "CC BY 4.0")


WINE = table_of("wine", "wine recognition, 13 features, 3 classes")
CANCER = table_of("breast_cancer", "breast cancer Wisconsin (diagnostic), 30 features, 2 classes")
IRIS = table_of("iris", "iris, 4 features, 3 classes")
REAL = {"init": "real"}
TABLE: dict[str, Any] = {"preset": "standard", "time_budget": "3m"}
NESTED: dict[str, Any] = {"ipc": 5, "boost_blocks": 5, **REAL}
IMAGES: dict[str, Any] = {"preset": "standard", "time_budget": "15m", **REAL}
SHORT: dict[str, Any] = {"lengths": "100,200,300"}
COLOUR: dict[str, Any] = {
    "preset": "long",
    "time_budget": "45m",
    "preprocess": "normalize",  # ZCA's matrix has 9.4 MB; without it a set cannot be shown or used
    **REAL,
}
SETS: dict[str, tuple[Source, dict[str, Any]]] = {
    "digits-ipc1": (DIGITS, {"preset": "standard", "ipc": 1, **REAL}),
    "digits-ipc10": (DIGITS, {"preset": "standard", "ipc": 10, "learn_labels": True, **REAL}),
    "digits-nested": (DIGITS, {"preset": "digits-ipc1", "steps": 100, **NESTED}),
    "iris-ipc1": (IRIS, {**TABLE, "ipc": 1}),
    "wine-ipc1": (WINE, {**TABLE, "ipc": 1}),
    "breast-cancer-ipc1": (CANCER, {**TABLE, "ipc": 1}),
    "mnist-ipc1": (MNIST, {**IMAGES, "ipc": 1}),
    "mnist-ipc10": (MNIST, {**IMAGES, **SHORT, "ipc": 10}),
    "fashion-mnist-ipc1": (FASHION, {**IMAGES, "ipc": 1}),
    "fashion-mnist-ipc10": (FASHION, {**IMAGES, **SHORT, "ipc": 10}),
    "cifar10-ipc1": (CIFAR10, {**COLOUR, "ipc": 1}),
    "cifar10-ipc10": (CIFAR10, {**COLOUR, "ipc": 10}),
}
"""Name -> the data, and the options of the run."""
ROUNDED = {"mnist-ipc10", "fashion-mnist-ipc10"}
"""Sets whose values are rounded to half precision, which halves what a wheel takes for them."""


def words_of(options: dict[str, Any], data: str) -> list[str]:
    """Return the arguments of `potstill distill`."""
    given = {"preset": options["preset"], "data": data, **options}
    return [word for name, value in given.items() for word in flag(name.replace("_", "-"), value)]


def about(source: Source, distilled: potstill.DistilledSet) -> str:
    """Say in a line what a set is."""
    data = source.words.partition(",")[0].partition(" (")[0]
    text = f"{data}, {distilled.per_class} a class, {distilled.metadata.method}"
    if len(distilled.blocks) > 1:
        text += f", nested in {len(distilled.blocks)} blocks"
    return text


def rounded(distilled: potstill.DistilledSet) -> potstill.DistilledSet:
    """Return a set whose images have the values of half precision, in single precision."""
    blocks = [
        replace(block, leaves={**block.leaves, "images": block.images.half().float()})
        for block in distilled.blocks
    ]
    return potstill.DistilledSet(
        tuple(blocks),
        distilled.class_names,
        distilled.fitted,
        distilled.recipe,
        learned_labels=distilled.learned_labels,
        metadata=distilled.metadata,
    )


def made(name: str, work: Path, data: str) -> ReadySet:
    """Distil, measure and keep a set; return its entry in the catalogue."""
    source, options = SETS[name]
    data = source.data or data
    if not data:
        raise SystemExit(f"{name} needs --data: {source.words}")
    out = work / name
    if not (out / "distilled.safetensors").exists():
        going = (out / checkpoints.CONFIG).exists()
        words = ["--resume", str(out)] if going else words_of(options, data)
        if command(["distill", *words, *([] if going else ["--out", str(out)])]):
            raise SystemExit(2)
    distilled = load(out)
    if sum(tensor.nbytes for tensor in distilled.fitted.state().values()) > LARGE:
        distilled = without_preprocessing(distilled)
    if name in ROUNDED:
        distilled = rounded(distilled)
    measured = work / f"{name}.safetensors"  # what is shipped is measured, not the run's own file
    save(distilled, measured)
    content = measured.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    evaluation = work / f"{name}.{EVALUATION}"
    of_file = work / f"{name}.sha256"  # of which the evaluation is
    same = of_file.exists() and of_file.read_text() == digest
    if not same:
        evaluation.unlink(missing_ok=True)
        of_file.write_text(digest)
    if not evaluation.exists() and command(
        ["evaluate", str(measured), "--data", data, "--nets", str(NETS), "--baseline", "random"]
    ):
        raise SystemExit(2)
    record = read_records(evaluation, EvaluationRecord)[0][-1]
    rows = {row.name: row for row in record.rows}
    own = rows["distilled"]
    seed = distilled.metadata.seed
    assert seed is not None
    write(READY / f"{name}.safetensors", content)
    shown = source.data or "DATA"
    return ReadySet(
        name,
        about(source, distilled),
        source.data,
        source.words,
        source.license,
        shlex.join(["potstill", "distill", *words_of(options, shown)]),
        seed,
        len(distilled),
        {key: rows[key].accuracy for key in ("distilled", "random")},
        own.protocol,
        own.tested,
        f"{record.hardware}, {processor().value}",
        distilled.metadata.versions,
        len(content),
        digest,
        (*own.cautions, OTHERS, COPIES),
    )


def main() -> None:
    """Make the sets that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--data", default="", help="of sets whose data no package carries")
    given = parser.parse_args()
    if not given.names:
        known = entries_now()
        for name in SETS:
            print(f"{name}: {'made' if name in known else 'missing'}")
    for name in given.names:
        entry = dump(made(name, given.work, given.data))
        known = {**entries_now(), name: entry}  # read again: another may have been made beside it
        ordered = [known[one] for one in SETS if one in known]
        write(READY / CATALOGUE, json.dumps({"sets": ordered}, indent=2) + "\n")


def entries_now() -> dict[str, Any]:
    """Return the catalogue's entries by name."""
    return {one["name"]: one for one in json.loads((READY / CATALOGUE).read_text())["sets"]}


if __name__ == "__main__":
    main()
