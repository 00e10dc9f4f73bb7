"""Ctrl-C while a run is being compiled: once or twice, it is never a traceback."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_runs import command, flags
from twins import CPU

from potstill.engine.when_to_compile import missing_compiler

SLOW = {"model": "convnet", "compile": "on", "precision": "float32", "device": "cpu"}


@pytest.mark.skipif(
    missing_compiler(CPU) is not None, reason=f"cannot compile: {missing_compiler(CPU)}"
)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_compiling_is_no_traceback(times, tmp_path):
    process = subprocess.Popen(
        command("distill", "--out", tmp_path / "run", *flags(**SLOW)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert process.stderr
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("compiling 0/"):
            break
    for _ in range(times):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    told.append(process.communicate(timeout=120)[1])
    errors = "".join(told)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "stopping after what is being compiled; once more stops at once" in errors
    last = ("potstill: interrupted; no step was done", "potstill: stopped at once")
    assert last[times - 1] in errors
    assert not (tmp_path / "run").exists()


def test_the_helpers_of_a_killed_study_end_by_themselves(tmp_path):
    words = ("study", "inner-optimizer", "--steps", "4000", "--seeds", "2", "--jobs", "2")
    process = subprocess.Popen(
        command(*words, "--out", tmp_path / "study"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    helper = None
    while helper is None:
        assert process.poll() is None
        time.sleep(0.2)
        listed = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        logs = list((tmp_path / "study").rglob("metrics.jsonl"))
        helper = int(listed[0]) if listed and len(logs) == 2 else None
    process.kill()
    process.wait()
    ended = time.monotonic() + 30
    while Path(f"/proc/{helper}").exists():
        assert time.monotonic() < ended, "the helper works on"
        time.sleep(0.2)
