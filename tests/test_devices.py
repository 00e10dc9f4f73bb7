"""The machine: page faults, fast arithmetic."""

import platform
import subprocess
import sys

import pytest
import torch
from test_runs import QUICK
from twins import CPU

import potstill
from potstill.devices import AUTO_PRECISION, auto_precision, bfloat16_cost, fast_bfloat16
from potstill.errors import InputError
from potstill.progress import Listener

FAULTS = """
import resource, sys, torch
from potstill.devices import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def once():
    torch.ones(16_000_000).sum()
for _ in range(20):  # until the heap has settled: it grew up to seven times
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_freed_memory_is_used_again_without_page_faults():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "plain")
    }
    assert faults["keep"] < 0.2 * faults["plain"]


def test_bfloat16_is_fast_with_tiles_and_in_large_networks_with_dot_products(monkeypatch):
    assert not fast_bfloat16(torch.device("mps"))
    for tiles, dots, small, large in (
        (True, True, True, True),
        (False, True, False, True),
        (False, False, False, False),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=tiles: found)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=dots: found)
        assert (fast_bfloat16(CPU, 2e7), fast_bfloat16(CPU, 3e8)) == (small, large)


RESOLVED = """
import potstill
distilled = potstill.distill(
    model="mlp", width=4, depth=1, steps=1, unroll=1, window=1, lengths=(1,), precision="auto"
)
print(distilled.metadata.option("precision"), distilled.recipe.precision)
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_automatic_precision_can_be_that_of_another_machine(precision, monkeypatch):
    monkeypatch.setenv(AUTO_PRECISION, precision)
    assert auto_precision(CPU) == precision
    result = subprocess.run(
        [sys.executable, "-c", RESOLVED], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [precision, precision]


def test_the_automatic_precision_is_the_fast_one(monkeypatch):
    expected = "bfloat16" if fast_bfloat16(CPU) else "float32"
    monkeypatch.delenv(AUTO_PRECISION, raising=False)
    assert auto_precision(CPU) == expected
    monkeypatch.setenv(AUTO_PRECISION, "")  # as `make test` sets it
    assert auto_precision(CPU) == expected
    monkeypatch.setenv(AUTO_PRECISION, "float16")
    with pytest.raises(
        InputError, match="POTSTILL_AUTO_PRECISION must be float32 or bfloat16, got 'float16'"
    ):
        auto_precision(CPU)


def test_who_asks_for_slow_arithmetic_is_told_its_factor(monkeypatch):
    said = []
    options = {**QUICK, "steps": 1, "listener": Listener(say=said.append)}
    for factor, precision, told in (
        (5.3, "bfloat16", 1), (0.3, "bfloat16", 0), (5.3, "float32", 0), (5.3, "auto", 0)
    ):  # fmt: skip
        monkeypatch.setattr("potstill.distillation.setup.bfloat16_cost", lambda _, f=factor: f)
        said.clear()
        potstill.distill(**options, precision=precision)
        slow = [sentence for sentence in said if "as long as float32" in sentence]
        assert len(slow) == told
    assert 0 < bfloat16_cost(torch.device("cpu")) < 100
