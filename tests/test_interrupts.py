"""Ctrl-C while a run is being compiled: once or twice, it is never a traceback."""

import os
import signal
import subprocess
import time

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
