"""What `potstill doctor` finds."""

import os
import shutil

import pytest
import torch

from potstill.cli.parser import main
from potstill.diagnosis import machine
from potstill.diagnosis.machine import examined


def findings(folder):
    return {one.name: one for one in examined(folder)}


def test_it_tells_versions_cores_memory_and_room(tmp_path, capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch:           {torch.__version__}" in told
    for name in ("processor", "memory", "precision", "compiler", "free here"):
        assert f"{name}:" in told
    assert "GFLOP/s" in told or torch.cuda.is_available()


def test_fewer_threads_than_cores_are_advised_against(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    monkeypatch.setattr(machine, "threads", lambda: 3)
    assert "torch takes 3 threads" in findings(tmp_path)["processor"].advice
    monkeypatch.setattr(machine, "threads", lambda: 64)
    assert findings(tmp_path)["processor"].advice == ""


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="the system tells no load")
@pytest.mark.parametrize(("load", "advised"), [(0.1, False), (9.0, True)])
def test_a_busy_machine_is_told(tmp_path, monkeypatch, load, advised):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert bool(findings(tmp_path)["load"].advice) is advised


@pytest.mark.parametrize(("cost", "advised"), [(0.5, False), (7.0, True)])
def test_slow_bfloat16_is_advised_against(tmp_path, monkeypatch, cost, advised):
    monkeypatch.setattr(machine, "bfloat16_cost", lambda device: cost)
    found = findings(tmp_path)["precision"]
    assert f"takes {cost:.2g} times as long" in found.value
    assert bool(found.advice) is advised


def test_no_compiler_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    if not torch.cuda.is_available():
        assert "g++" in findings(tmp_path)["compiler"].advice


def test_a_full_disk_is_told_and_a_folder_that_is_not_there_is_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 10**9))
    found = findings(tmp_path / "not" / "there")["free here"]
    assert found.value == "1.0 GB"
    assert "make room" in found.advice
