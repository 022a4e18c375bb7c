"""Freed memory is used again: page faults of a fresh process that frees and allocates in turns."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# 32 MiB, freed and asked for again: 8,192 pages a time when it goes back to the system.
_TURNS = """
import resource
from trainers.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def turn():
    block = bytearray(32 * 2**20)
    del block
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*, keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _TURNS.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_stays_with_the_process() -> None:
    assert _faults(keep=True) < 100
    assert _faults(keep=False) > 20 * 1000  # what it is there to prevent
