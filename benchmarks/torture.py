"""Kill it, starve it, run it for long: what was done, how often, and what was lost.

    make torture                                   # all of it, on two cores in under 25 minutes
    python benchmarks/torture.py --only kills --times 5

Each line of the table is one kind of run or fault. How runs are killed is in killing.py; a short
part of it and of the rest is in the tests.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from curves import provenance
from killing import (
    HERE,
    KINDS,
    command,
    environment,
    kills,
    options_of,
    overwritten,
    ranks,
    run,
    studies,
)
from rich.console import Console
from rich.table import Table

RESULTS = HERE / "results" / "torture.json"
SOON = 2.0
"""Seconds within which an input must be refused."""
SOAKED: list[str] = []
"""What the soak saw: memory, files, threads."""


@dataclass
class Line:
    """A line of the table."""

    what: str
    times: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, lost: str = "") -> None:
        """Count one trial; `lost` says what was lost in it."""
        self.times += 1
        if lost:
            self.lost += 1
            self.notes.append(lost)


def soak(seconds: float, work: Path) -> Iterator[str]:
    """Run tiny steps for long: memory, open files and threads must be flat from the quarter on."""
    words = [*options_of("plain"), "--steps", "10000000", "--validate-every", "50"]
    with subprocess.Popen(
        command("distill", "--out", work / "run", *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        seen = []
        began = time.monotonic()
        while time.monotonic() - began < seconds and process.poll() is None:
            time.sleep(min(5, seconds / 20))
            seen.append((time.monotonic() - began, *resources(process.pid)))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    late = [one for one in seen if one[0] > seconds / 4]
    minutes = (late[-1][0] - late[0][0]) / 60
    slope = (late[-1][1] - late[0][1]) / minutes
    told = f"{slope:+.0f} kB a minute, {late[-1][1]:,} kB, files {late[0][2]} to {late[-1][2]}, "
    told += f"threads {late[0][3]} to {late[-1][3]}"
    print(f"soak of {seconds:.0f} s: {told}", file=sys.stderr)
    SOAKED.append(told)
    bad = slope > 500 or late[-1][2] > late[0][2] + 2 or late[-1][3] != late[0][3]
    yield told if bad or process.returncode != 143 else ""


def resources(process: int) -> tuple[int, int, int]:
    """Resident kB, open files and threads of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    known = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return int(known["VmRSS"].split()[0]), files, int(known["Threads"])


def malformed(times: int, seed: int, work: Path) -> Iterator[str]:
    """Give every malformed input of the tests to one process."""
    done = run([sys.executable, str(HERE.parent / "tests" / "malformed.py"), str(work)])
    for one in map(json.loads, done.stdout.splitlines()):
        late = f"{one['seconds']:.1f} s" if one["seconds"] > SOON else ""
        wrong = one["wrong"] or late
        yield f"{one['what']}: {wrong}" if wrong else ""


def tests(what: str) -> Callable[[int, int, Path], Iterator[str]]:
    """The tests of a file, each a trial."""

    def trials(times: int, seed: int, work: Path) -> Iterator[str]:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{what}"]
        done = run(words, cwd=HERE.parent)
        counted = re.findall(r"(\d+) (passed|failed|error)", done.stdout)
        found = {word: int(number) for number, word in counted}
        yield from [""] * found.get("passed", 0)
        failed = found.get("failed", 0) + found.get("error", 0)
        yield from [f"see pytest tests/{what}"] * failed

    return trials


Part = Callable[[int, int, Path], Iterator[str]]


def parts(seconds: float) -> dict[str, tuple[Part, float]]:
    """Name -> (trials, share of the usual number of times)."""
    found: dict[str, tuple[Part, float]] = {}
    for kind in KINDS:
        found[f"kills: {kind}"] = (partial(kills, kind), 1.0)
    found["kills: --overwrite"] = (overwritten, 1.0)
    found["kills: a study"] = (studies, 0.5)
    found["kills: two ranks"] = (ranks, 0.5)
    found["soak"] = ((lambda times, seed, work: soak(seconds, work)), 1.0)
    found["malformed inputs, in one process"] = (malformed, 1.0)
    for what, file in {
        "forged sets": "test_forged.py",
        "forged checkpoints": "test_forged_checkpoints.py",
        "slips in Python": "test_slips.py",
        "strangers' code": "test_trust.py",
        "states after a kill, signals, memory": "test_replacing.py",
        "full disks, no network, clock, threads": "test_starved.py",
        "any bytes in any file (hypothesis)": "test_properties.py",
    }.items():
        found[what] = (tests(file), 1.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="kills of each kind")
    parser.add_argument("--seconds", type=float, default=480, help="of the soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parts whose name begins so")
    parser.add_argument("--jobs", type=int, default=2)
    known = parser.parse_args()
    chosen = {
        name: part for name, part in parts(known.seconds).items() if name.startswith(known.only)
    }
    began = time.monotonic()

    def trial(name: str) -> Line:
        part, share = chosen[name]
        line = Line(name)
        with tempfile.TemporaryDirectory() as folder:
            for lost in part(max(1, round(share * known.times)), known.seed, Path(folder)):
                line.count(lost)
        print(f"{name}: {line.times} times, {line.lost} lost", file=sys.stderr)
        return line

    with ThreadPoolExecutor(known.jobs) as pool:
        lines = list(pool.map(trial, chosen))
    table = Table(title=f"Torture: {time.monotonic() - began:.0f} s", title_justify="left")
    for column in ("what was done", "times", "lost", "what"):
        table.add_column(column, justify="right" if column in ("times", "lost") else "left")
    for line in lines:
        table.add_row(line.what, str(line.times), str(line.lost), "; ".join(line.notes)[:300])
    Console(width=140).print(table)
    if not known.only:
        rows = [vars(line) for line in lines]
        how = f"--times {known.times} --seconds {known.seconds:g} --seed {known.seed}"
        result = {
            "command": f"python benchmarks/torture.py {how}",
            "soak": SOAKED,
            "rows": rows,
            **provenance(),
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(any(line.lost for line in lines))


if __name__ == "__main__":
    main()
