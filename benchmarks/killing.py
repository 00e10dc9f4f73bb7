"""Kill runs, replacements of runs, studies and ranks, and see that nothing is lost.

A killed run is resumed until it is finished, and its set is compared byte by byte with that of an
undisturbed run. Half of the kills come by the clock, the others in the middle of a write: before or
after the file is on disk, and before or after it takes its name.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SET = "distilled.safetensors"
COMMON = {
    "model": "mlp",
    "width": "16",
    "depth": "1",
    "unroll": "5",
    "window": "3",
    "real-batch": "60",
    "lengths": "5,10",
    "validation-nets": "2",
    "validate-every": "5",
    "checkpoint-every": "3",
    "threads": "1",
    "device": "cpu",
    "compile": "off",
    "precision": "float32",
}
KINDS = {
    "plain": {"steps": "60"},
    "learned labels": {"steps": "60", "learn-labels": "", "ipc": "2", "augment": "flip,rotate"},
    "boosted": {"steps": "20", "ipc": "3", "boost-blocks": "3", "boost-beta": "0.1"},
    "basis, sgd": {
        "steps": "60",
        "param": "basis",
        "ipc": "2",
        "factor": "2",
        "outer-optimizer": "sgd",
        "outer-lr": "0.1",
    },
    "dm": {"steps": "60", "method": "dm"},
    "tensors in its state": {"steps": "60", "method": "foreign.means:Means"},
}
"""Kind of run -> its own options."""
WITHOUT = {
    "dm": ("unroll", "window", "real-batch"),
    "foreign.means:Means": ("unroll", "window", "real-batch"),
}
"""Method -> the common options that have no effect on it."""
KILLER = """
import os, pathlib, signal, sys
which, stage = int(sys.argv[1]), sys.argv[2]
count = 0
def die(now):
    global count
    count += now
    if now and count == which:
        os.kill(os.getpid(), signal.SIGKILL)
def around(function, before, after):
    def called(*arguments, **options):
        die(before)
        result = function(*arguments, **options)
        die(after)
        return result
    return called
os.fsync = around(os.fsync, stage == "before the disk", stage == "after the disk")
pathlib.Path.replace = around(
    pathlib.Path.replace, stage == "before the name", stage == "after the name"
)
from potstill.cli.parser import main
sys.exit(main(sys.argv[3:]))
"""
STAGES = ("before the disk", "after the disk", "before the name", "after the name")


def environment() -> dict[str, str]:
    """The variables of a child: one thread, and our stranger's package."""
    paths = [str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "POTSTILL_TRUST": "foreign",
    }


def command(*words: object) -> list[str]:
    """A command of potstill."""
    return [sys.executable, "-m", "potstill", *map(str, words)]


def run(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    known = {"capture_output": True, "text": True, "check": False, "env": environment()}
    return subprocess.run(words, **{**known, **options})  # type: ignore[call-overload, no-any-return]


def options_of(kind: str) -> list[str]:
    """The options of a kind of run, as a command line takes them."""
    own = KINDS[kind]
    without = WITHOUT.get(own.get("method", ""), ())
    known = {name: value for name, value in {**COMMON, **own}.items() if name not in without}
    return [word for name, value in known.items() for word in (f"--{name}", value) if word]


def killed_by_the_clock(words: list[str], seconds: float, out: Path | None = None) -> bool:
    """Start a command and kill it after a time; whether it had not ended by then.

    With a run's folder the time begins with its first checkpoint: most of a short run's seconds go
    into imports, and a kill there shows nothing.
    """
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        while out and process.poll() is None and not list(out.glob("checkpoints/step-*")):
            time.sleep(0.005)
        try:
            process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            return True


def killed_in_a_write(arguments: list[str], which: int, stage: str) -> bool:
    """Run a command that kills itself at a write; whether it did."""
    script = [sys.executable, "-c", KILLER, str(which), stage, *arguments]
    return run(script).returncode == -signal.SIGKILL


def kills(kind: str, times: int, seed: int, work: Path) -> Iterator[str]:
    """Kill runs of a kind and resume them; yield what was lost in each, or "" for nothing."""
    dice, options = random.Random(f"{seed} {kind}"), options_of(kind)
    whole = work / "whole"
    done = run(command("distill", "--out", whole, *options))
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr[-2000:]}")
    taken = (whole / SET).stat().st_mtime - (whole / "config.toml").stat().st_mtime
    expected = (whole / SET).read_bytes()
    for number in range(times):
        out = work / f"run-{number}"
        begin = ["distill", "--out", str(out), *options, "--quiet"]
        where = ""
        if number % 2:
            which, stage = dice.randint(1, 40), dice.choice(STAGES)
            killed_in_a_write(begin, which, stage)
            where = f"write {which}, {stage}"
        else:
            seconds = dice.uniform(0, taken)
            killed_by_the_clock(command(*begin), seconds, out)
            while (out / SET).is_file():  # it was over before
                shutil.rmtree(out)
                seconds /= 2
                killed_by_the_clock(command(*begin), seconds, out)
            where = f"{seconds:.2f} s after the first checkpoint"
        lost = finished(out, begin, expected)
        yield f"{where}: {lost}" if lost else ""
        shutil.rmtree(out, ignore_errors=True)


def finished(out: Path, begin: list[str], expected: bytes) -> str:
    """Bring a killed run to its end as a user would; what was lost, or ""."""
    for _ in range(3):
        if (out / SET).is_file():
            break
        there = (out / "config.toml").is_file()
        words = ["distill", "--resume", str(out), "--quiet"] if there else begin
        done = run(command(*words))
        if done.returncode:
            return done.stderr[-300:]
    if not (out / SET).is_file():
        return "no set"
    return "" if (out / SET).read_bytes() == expected else "other bytes"


def overwritten(times: int, seed: int, work: Path) -> Iterator[str]:
    """Kill runs that replace a finished one: either set must be there whole."""
    dice, options = random.Random(f"{seed} overwrite"), options_of("plain")
    for name, more in (("old", ()), ("new", ("--seed", "7"))):
        done = run(command("distill", "--out", work / name, *options, *more))
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
    old, new = ((work / name / SET).read_bytes() for name in ("old", "new"))
    for number in range(times):
        out = work / f"run-{number}"
        shutil.copytree(work / "old", out)
        begin = ["distill", "--out", str(out), *options, "--seed", "7", "--overwrite", "--quiet"]
        which, stage = dice.randint(1, 30), dice.choice(STAGES)
        killed_in_a_write(begin, which, stage)
        kept = [path.read_bytes() for path in (out / SET, out / ".replaced" / SET) if path.exists()]
        lost = "" if old in kept or new in kept else "both sets are gone"
        lost = lost or finished_over(out, begin, new)
        yield f"write {which}, {stage}: {lost}" if lost else ""
        shutil.rmtree(out, ignore_errors=True)


def finished_over(out: Path, begin: list[str], new: bytes) -> str:
    """Replace the run after all."""
    if (out / SET).is_file() and (out / SET).read_bytes() == new:
        return ""
    done = run(command(*begin))
    if done.returncode:
        return done.stderr[-300:]
    return "" if (out / SET).read_bytes() == new else "other bytes"


def studies(times: int, seed: int, work: Path) -> Iterator[str]:
    """Kill a study and start it again: its table must be that of an undisturbed one."""
    dice = random.Random(f"{seed} study")
    words = ["study", "inner-optimizer", "--steps", "4", "--seeds", "1", "--nets", "1"]
    words += ["--jobs", "1"]
    began = time.monotonic()
    done = run(command(*words, "--out", work / "whole"))
    taken = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    expected = table_of(work / "whole")
    for number in range(times):
        out = work / f"study-{number}"
        killed_by_the_clock(command(*words, "--out", out), dice.uniform(1, taken))
        done = run(command(*words, "--out", out))
        lost = done.stderr[-300:] if done.returncode else ""
        yield lost or ("" if table_of(out) == expected else "another table")
        shutil.rmtree(out, ignore_errors=True)


def table_of(folder: Path) -> str:
    """The figures of a study, one line each."""
    (table,) = folder.glob("*/results.csv")
    return table.read_text()


def ranks(times: int, seed: int, work: Path) -> Iterator[str]:
    """Kill one of two ranks: the run must end, and then go on to the bytes of one process."""
    dice = random.Random(f"{seed} ranks")
    options = [*options_of("plain"), "--trajectories", "2"]
    began = time.monotonic()
    done = run(command("distill", "--out", work / "whole", *options))
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    taken = time.monotonic() - began
    expected = (work / "whole" / SET).read_bytes()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for number in range(times):
        out = work / f"run-{number}"
        begin = ["distill", "--out", str(out), *options, "--quiet"]
        words = [*torchrun, "2", "-m", "potstill", *begin]
        with subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        ) as process:
            time.sleep(dice.uniform(2, taken + 4))
            listed = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
            )
            for child in listed.stdout.split()[:1]:
                os.kill(int(child), signal.SIGKILL)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                yield "the other rank did not end"
                continue
        yield finished(out, begin, expected)
        shutil.rmtree(out, ignore_errors=True)
