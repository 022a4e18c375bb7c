"""A cluster does not outlive its driver: shown on plain processes, which cost nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.orphans import MARK, cluster_of, end_cluster, living, orphans_ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc; run it on Linux")

ROOT = Path(__file__).resolve().parents[2]
SLEEP = "import time; time.sleep(600)"
# A driver whose cluster is one marked process ("raylet"), and below it one that has lost its
# environment, as Ray's agents have.
DRIVER = textwrap.dedent(
    """
    import subprocess, sys, time
    from orchestrator.orphans import orphans_ended
    sleep = {sleep!r}
    raylet = (
        "import subprocess, sys, time\\n"
        f"agent = subprocess.Popen([sys.executable, '-S', '-c', {{sleep!r}}], env={{{{}}}})\\n"
        "print(agent.pid, flush=True)\\n" + sleep
    )
    with orphans_ended(supported={supported}) as note:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", raylet], stdout=subprocess.PIPE, text=True
        )
        agent = child.stdout.readline()
        note()
        print(child.pid, agent, flush=True)
        time.sleep({stays})
    """
)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def drive(*, supported: bool, stays: float) -> tuple[subprocess.Popen[str], list[int]]:
    code = DRIVER.format(sleep=SLEEP, supported=supported, stays=stays)
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pids = [int(word) for word in driver.stdout.readline().split()]
    assert len(pids) == 2
    return driver, pids


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", SLEEP])
    yield process
    process.kill()
    process.wait()


def test_a_killed_driver_leaves_nobody(bystander: subprocess.Popen[bytes]) -> None:
    driver, pids = drive(supported=True, stays=600)
    driver.kill()
    driver.wait()
    assert gone(pids, 60)
    assert bystander.poll() is None


def test_without_the_guard_they_stay() -> None:
    """Negative control: what the test above sees is the guard's doing."""
    driver, pids = drive(supported=False, stays=600)
    driver.kill()
    driver.wait()
    try:
        assert not gone(pids, 3)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_driver_that_ends_leaves_nobody_either() -> None:
    driver, pids = drive(supported=True, stays=0)
    assert driver.wait(120) == 0
    assert gone(pids, 0.1)  # the driver waits for it


def test_an_id_that_was_given_away_is_spared(bystander: subprocess.Popen[bytes]) -> None:
    stat = Path(f"/proc/{bystander.pid}/stat").read_text()
    started = int(stat.rpartition(")")[2].split()[19])
    for known in (frozenset({(bystander.pid, started + 1)}), frozenset()):
        assert list(living("no such mark", known)) == []
        assert end_cluster("no such mark", known, 0.0) == 0
    assert bystander.poll() is None
    assert end_cluster("no such mark", frozenset({(bystander.pid, started)}), 0.0) == 1
    bystander.wait()


def test_the_mark_is_the_clusters_alone() -> None:
    before = os.environ.get(MARK)
    with orphans_ended():
        mark = os.environ[MARK]
        assert cluster_of(mark) == frozenset()  # neither the guard nor this process has it
        with orphans_ended():
            assert os.environ[MARK] != mark
        assert os.environ[MARK] == mark
    assert os.environ.get(MARK) == before
