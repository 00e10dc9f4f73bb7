"""The machine: page faults, fast arithmetic."""

import platform
import subprocess
import sys

import pytest
import torch
from twins import CPU

from potstill.devices import fast_bfloat16

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
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "plain")
    }
    assert faults["keep"] < 0.2 * faults["plain"]


def test_bfloat16_is_fast_where_the_processor_has_tiles():
    assert fast_bfloat16(CPU) == bool(torch.cpu._is_amx_tile_supported())
    assert not fast_bfloat16(torch.device("mps"))
