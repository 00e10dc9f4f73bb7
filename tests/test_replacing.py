"""A folder after a kill, a full disk, or a stranger's hand: some command always leads on, and
nothing of the old run is lost.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from test_runs import QUICK, bytes_of, command, flags, interrupted_run

import potstill
from potstill.cli.parser import main
from potstill.distillation import checkpoints, run_folder
from potstill.distillation.checkpoints import CHECKPOINTS, CONFIG
from potstill.distillation.replacing import REPLACED
from potstill.distillation.run_folder import WRITTEN, RunFolder
from potstill.errors import InputError, out_of_memory
from potstill.progress import Listener


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("old") / "run"
    potstill.distill(**QUICK, device="cpu", out=out)
    return out


@pytest.fixture
def run(old, tmp_path) -> Path:
    """A copy of it to be maltreated."""
    return Path(shutil.copytree(old, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("moved", range(1, 6))
def test_a_kill_while_the_old_run_is_moved_away_is_undone(moved, run):
    before = contents(run)
    there = [name for name in (CONFIG, *WRITTEN) if (run / name).exists()]
    assert len(there) >= 5
    (run / REPLACED).mkdir()
    for name in there[:moved]:  # as `set_aside` does, cut off
        (run / name).rename(run / REPLACED / name)
    assert main(["evaluate", str(run), "--nets", "1", "--threads", "1"]) == 0
    (run / "evaluation.json").unlink()
    assert contents(run) == before


def too_small() -> None:
    """As on a full disk: no file of more than 200 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


def test_overwriting_on_a_full_disk_leaves_the_old_run_as_it_was(run):
    before = contents(run)
    failed = subprocess.run(
        command("distill", "--out", run, "--overwrite", *flags(seed=9)),
        capture_output=True,
        text=True,
        preexec_fn=too_small,
        check=False,
    )
    assert failed.returncode == 2
    assert "cannot write" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert contents(run) == before
    assert main(["distill", "--out", str(run), "--overwrite", *flags(seed=9), "--quiet"]) == 0
    assert bytes_of(run) != before["distilled.safetensors"]


def test_a_new_run_that_fails_says_where_the_old_set_is(run):
    before = bytes_of(run)
    with pytest.raises(
        potstill.InputError, match=r"the set that was there before is in .*replaced"
    ):
        potstill.distill(**{**QUICK, "inner_lr": 1e30, "steps": 60}, out=run, overwrite=True)
    assert bytes_of(run / REPLACED) == before


@pytest.mark.parametrize("text", ["", "[model]\nmodel = 'mlp'\n"])
def test_a_folder_with_somebodys_config_is_no_run(text, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "checkpoints" / "model.pt").write_text("precious")
    before = contents(tmp_path)
    assert main(["distill", "--out", str(tmp_path), "--overwrite", *flags()]) == 2
    assert contents(tmp_path) == before


def test_what_a_kill_left_half_written_counts_as_nothing_and_is_swept(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / f".{CONFIG}.12345.tmp").write_text("half")
    assert main(["distill", "--out", str(out), *flags(), "--quiet"]) == 0
    assert not list(out.glob(".*.tmp"))


def test_a_run_resumes_without_its_checkpoints_folder_and_beside_foreign_files(old, tmp_path):
    interrupted_run(tmp_path / "run", after=6, device="cpu")
    checkpoints = tmp_path / "run" / CHECKPOINTS
    shutil.copytree(tmp_path / "run", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / CHECKPOINTS)
    newest = sorted(checkpoints.iterdir())[-1]
    for name in ("step-00000030 (copy).safetensors", "step-x.safetensors", "notes.txt"):
        shutil.copy(newest, checkpoints / name)
    (checkpoints / f".{newest.name}.77.tmp").write_bytes(b"half")
    for name in ("run", "bare"):
        potstill.resume(tmp_path / name)
        assert bytes_of(tmp_path / name) == bytes_of(old)
    kept = {path.name for path in checkpoints.iterdir()}
    assert {"step-x.safetensors", "notes.txt", "step-00000030 (copy).safetensors"} < kept
    assert not list(checkpoints.glob(".*.tmp"))


def test_a_damaged_finished_set_is_made_again(run):
    whole = bytes_of(run)
    file = run / "distilled.safetensors"
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    said: list[str] = []
    potstill.resume(run, listener=Listener(say=said.append))
    assert bytes_of(run) == whole
    assert any("is made again from the last checkpoint" in sentence for sentence in said)
    assert (run / "distilled.safetensors.damaged").exists()


def test_a_picture_that_a_kill_prevented_is_made_when_the_run_is_resumed(run, capsys):
    picture = (run / run_folder.PICTURE).read_bytes()
    (run / run_folder.PICTURE).unlink()
    assert main(["distill", "--resume", str(run)]) == 2
    assert "is finished" in capsys.readouterr().err
    assert (run / run_folder.PICTURE).read_bytes() == picture


def test_a_class_name_with_control_characters_is_drawn_and_printed_harmlessly(tmp_path, capsys):
    for name in ("a\nb", "e\x1b[31mf"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for index, level in enumerate(range(0, 250, 25)):
            Image.new("L", (8, 8), level).save(tmp_path / "d" / name / f"{index}.png")
    more = flags(classes_per_batch=2, ipc=1, preprocess="none")
    assert (
        main(["distill", "--data", f"folder:{tmp_path / 'd'}", "--out", str(tmp_path / "r"), *more])
        == 0
    )
    assert "\x1b[31m" not in capsys.readouterr().err
    assert (tmp_path / "r" / run_folder.PICTURE).exists()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_saves_and_the_exit_code_tells_which(name, code, old, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("distill", "--out", out, *flags(steps=4000, device="cpu")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / run_folder.METRICS).exists():
        assert process.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert f"potstill distill --resume {out}" in errors
    assert RunFolder(out).checkpoints.files[-1].stem.endswith(checkpoints.INTERRUPTED)


LITTLE = """
import os, re, resource, sys
from pathlib import Path
from potstill.cli import commands, parser
if int(sys.argv[1]) > 100:  # else a library may be what does not fit
    import sklearn.datasets
taken = int(re.search(r"VmSize:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * 1_000_000,) * 2)
code = parser.main(sys.argv[2:])
sys.stderr.flush()
os._exit(code)  # torch may crash while an interpreter without memory ends
"""
"""Runs a command in so many MB more than torch takes."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much is taken")
@pytest.mark.parametrize("more", [20, 150, 250, 370, 430, 600])
def test_out_of_memory_on_a_cpu_is_one_sentence_with_a_way_out(more, tmp_path):
    """Wherever it runs out: a library is imported, the network checked, a step taken."""
    options = {"model": "convnet", "width": 512, "real_batch": 1200, "micro_batch": 1200}
    words = flags(without=("learn_labels", "depth"), **options, augment="")
    words += ["--compile", "off", "--device", "cpu", "--out", str(tmp_path / "run")]
    failed = subprocess.run(
        [sys.executable, "-c", LITTLE, str(more), "distill", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert failed.returncode == 2, failed.stderr[-2000:]
    way_out = "; lower --micro-batch" if more > 100 else ""  # else it may be a library's error
    assert failed.stderr.splitlines()[-1].startswith("potstill: error: ")
    assert f"out of memory{way_out}" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_torn_line_in_the_middle_of_the_log_costs_that_line_only_and_is_told(old, tmp_path):
    interrupted_run(tmp_path / "run", after=9, device="cpu")
    log = tmp_path / "run" / run_folder.METRICS
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], lines[3][:20], *lines[4:]]) + "\n")
    said: list[str] = []
    potstill.resume(tmp_path / "run", listener=Listener(say=said.append))
    assert bytes_of(tmp_path / "run") == bytes_of(old)
    steps = [record.step for record in RunFolder(tmp_path / "run").records()]
    assert steps == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert "1 line of metrics.jsonl cannot be read: the log is without it" in said


def test_a_set_of_ones_own_in_a_folder_is_not_taken_for_what_a_kill_left(run, tmp_path):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "start.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists and is no run of potstill"):
        potstill.distill(**QUICK, device="cpu", out=tmp_path / "mine", init=str(run))
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("start", [False, True])
def test_what_was_made_before_the_configuration_does_not_stand_in_the_way(start, tmp_path):
    out = tmp_path / "new"
    (out / CHECKPOINTS).mkdir(parents=True)
    if start:
        (out / "start.safetensors").write_bytes(b"half")
    potstill.distill(**QUICK, device="cpu", out=out)
    assert RunFolder(out).finished


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (ImportError("libgomp.so.1: cannot allocate memory in static TLS block"), False),
        (ImportError("x.so: failed to map segment from shared object"), False),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_what_says_that_memory_ran_out_is_known(error, is_memory):
    assert out_of_memory(error) == is_memory
