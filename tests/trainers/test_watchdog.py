"""Hung and superseded workers end; working ones do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainers.watchdog import HANG_EXIT_CODE, Fence, SupersededError, Watchdog, raise_fence


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_progress_for_too_long_leaves_stacks_and_ends_the_process(tmp_path: Path) -> None:
    clock, ended = Clock(), list[int]()
    path = tmp_path / "hang-rank0.txt"
    dog = Watchdog(60.0, path, end=ended.append, clock=clock)
    clock.now = 59.0
    assert not dog.look()
    dog.beat()
    clock.now = 118.0
    assert not dog.look()
    clock.now = 120.0
    assert dog.look()
    assert ended == [HANG_EXIT_CODE]
    assert "test_no_progress_for_too_long" in path.read_text()


def test_without_patience_it_never_bites(tmp_path: Path) -> None:
    clock, ended = Clock(), list[int]()
    dog = Watchdog(None, tmp_path / "x", end=ended.append, clock=clock)
    clock.now = 1e9
    assert not dog.look()
    assert ended == []


def hang(stacks: Path, broken: str = "") -> int:
    """A process that makes no progress for 8 s under a watchdog of 1 s; how it ended."""
    code = (
        "import sys, time; from pathlib import Path; from trainers.watchdog import Watchdog\n"
        f"{broken}\n"
        "Watchdog(1.0, Path(sys.argv[1])).start()\n"
        "time.sleep(8)"
    )
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", code, str(stacks)], cwd=root).returncode


def test_the_thread_ends_a_process_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    assert hang(path) == HANG_EXIT_CODE
    assert "no update for 1 s" in path.read_text()


def test_a_watchdog_that_is_asleep_lets_it_hang(tmp_path: Path) -> None:
    """Negative control: what ends the process above is the look, and nothing else."""
    path = tmp_path / "stacks.txt"
    assert hang(path, "Watchdog.look = lambda self: False") == 0
    assert not path.exists()


def test_a_group_that_was_replaced_may_not_write(tmp_path: Path) -> None:
    clock = Clock()
    raise_fence(tmp_path, "first")
    first = Fence(tmp_path, "first", clock=clock)
    first.check()
    raise_fence(tmp_path, "second")
    clock.now = 2.0
    with pytest.raises(SupersededError):
        first.check()
    Fence(tmp_path, "second", clock=clock).check()


def test_a_fence_that_nobody_raised_stops_nobody(tmp_path: Path) -> None:
    """Negative control: the refusal above comes from the second group's token."""
    clock = Clock()
    raise_fence(tmp_path, "first")
    first = Fence(tmp_path, "first", clock=clock)
    first.check()
    clock.now = 2.0
    first.check()


def test_a_phase_that_runs_alone_has_no_fence(tmp_path: Path) -> None:
    raise_fence(tmp_path, "some group")
    Fence(tmp_path, "").check()
