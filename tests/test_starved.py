"""Full disks, no inodes, no network, no temporary folder, a clock that jumps, one core: a run ends
well, or says what it lacks and goes on later to the same bytes.
"""

import os
import subprocess
import sys

import pytest

from potstill.distillation.run_folder import RunFolder

GIVEN = {
    "model": "mlp", "width": "8", "depth": "1", "steps": "6", "unroll": "3", "window": "2",
    "real-batch": "20", "lengths": "3", "validation-nets": "1", "validate-every": "3",
    "checkpoint-every": "2", "compile": "off", "device": "cpu", "precision": "float32",
}  # fmt: skip
OPTIONS = [word for name, value in GIVEN.items() for word in (f"--{name}", value)]
SET = "distilled.safetensors"
COMMANDS = """
import sys
from potstill.cli.parser import main
for command in " ".join(sys.argv[1:]).split(" + "):
    assert main(command.split()) == 0, command
"""


def potstill(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    command = [sys.executable, "-m", "potstill", *map(str, words)]
    known = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(command, **{**known, **options})


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """The set of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = potstill("distill", *OPTIONS, "--threads", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    return (out / SET).read_bytes()


def test_nothing_is_fetched_from_a_network(expected, tmp_path):
    """Not while it is imported, nor by any command on data that are at hand."""
    watched = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(77)
sys.addaudithook(watch)
"""
    out = tmp_path / "run"
    commands = [
        f"distill {' '.join(OPTIONS)} --threads 1 --out {out}",
        f"evaluate {out} --nets 1 --baselines random",
        f"export {out} --format npz",
        f"report {out}",
        f"diagnose {out} --samples 2",
        "list",
    ]
    command = [sys.executable, "-c", watched + COMMANDS, " + ".join(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / SET).read_bytes() == expected


def test_a_clock_that_jumps_changes_nothing(expected, tmp_path):
    jumping = """
import itertools, time
jumps = itertools.cycle([0.0, 4e9, -1.5e9, 86400.0])
true = time.time
time.time = lambda: true() + next(jumps)
"""
    out = tmp_path / "run"
    commands = f"distill {' '.join(OPTIONS)} --threads 1 --out {out}"
    command = [sys.executable, "-c", jumping + COMMANDS, commands]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / SET).read_bytes() == expected
    for moment in (-(10**10), 10**14):  # before 1970, and after the last year that Python counts
        try:
            os.utime(out / "config.toml", (moment, moment))
        except OSError:
            continue
        done = potstill("report", out)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_seeds_give_equal_bytes_for_a_number_of_threads(threads, expected, tmp_path):
    sets = []
    for name in ("one", "two"):
        done = potstill("distill", *OPTIONS, "--threads", threads, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        sets.append((tmp_path / name / SET).read_bytes())
    assert sets[0] == sets[1]
    assert threads > 1 or sets[0] == expected


def test_one_core_is_enough(expected, tmp_path):
    done = potstill(
        "distill", *OPTIONS, "--threads", 1, "--out", tmp_path / "run",
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / SET).read_bytes() == expected


@pytest.mark.parametrize("folder", ["", "no/such"])
def test_neither_a_temporary_folder_nor_a_home_is_needed(folder, expected, tmp_path):
    nowhere = str(tmp_path / folder) if folder else "/proc"
    variables = dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), nowhere)
    done = potstill(
        "distill", *OPTIONS, "--threads", 1, "--out", tmp_path / "run", env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / SET).read_bytes() == expected


def mounts() -> bool:
    """Whether this user may mount file systems of their own."""
    try:
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.mark.skipif(not mounts(), reason="mounting a small file system needs root on Linux")
@pytest.mark.parametrize(
    "limit",
    [*(f"size={pages * 4}k" for pages in (1, 2, 4, 6, 9)), *(f"nr_inodes={n}" for n in (3, 4, 6))],
)
def test_a_file_system_that_is_full_is_told_and_with_room_the_run_goes_on(
    limit, expected, tmp_path
):
    script = f"""
mount -t tmpfs -o {limit} tmpfs {tmp_path}
{sys.executable} -m potstill distill {" ".join(OPTIONS)} --threads 1 --out {tmp_path}/run
echo "code $?"
mount -o remount,size=9m,nr_inodes=999 {tmp_path}
if test -e {tmp_path}/run/config.toml
then {sys.executable} -m potstill distill --resume {tmp_path}/run >&2
else {sys.executable} -m potstill distill {" ".join(OPTIONS)} --threads 1 --out {tmp_path}/run >&2
fi
echo "code $?"
sha256sum {tmp_path}/run/{SET}
find {tmp_path}/run -name '*.tmp'
"""
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "code 2" in lines, "it was not full"
    assert "No space left on device" in done.stderr
    assert lines.count("code 0") == 1, done.stderr[-2000:]
    whole = tmp_path.parent / "whole.safetensors"
    whole.write_bytes(expected)
    known = subprocess.run(["sha256sum", whole], capture_output=True, text=True, check=True)
    assert lines[-1].split()[0] == known.stdout.split()[0], "the same bytes, and nothing is left"


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_a_file_system_without_locks_is_locked_by_a_file(error, tmp_path):
    script = f"""
import errno, fcntl, os, sys
from pathlib import Path
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError
def flock(handle, operation):
    raise OSError(errno.{error}, "not supported")
fcntl.flock = flock
folder = RunFolder(Path(sys.argv[1]))
with folder.locked():
    try:
        with folder.locked():
            sys.exit("two at once")
    except InputError as error:
        print(error)
with folder.locked():
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"another process works on the run in {tmp_path}" in done.stdout
    assert done.stderr == ""
    assert not RunFolder(tmp_path).is_run
