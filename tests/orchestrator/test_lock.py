from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import run_command
from orchestrator.errors import ExitCode, LockedError
from orchestrator.lock import RunLock, _process_started, lock_owner
from orchestrator.store import RunStore
from trainers.messages import STOP_FILE

ROOT = Path(__file__).resolve().parents[2]


class FakeTime:
    """A monotonic clock that moves when somebody sleeps."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.now = 0.0
        self._on_sleep = on_sleep

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._on_sleep()


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


_TAKE = """
import sys
from pathlib import Path
from orchestrator.errors import LockedError
from orchestrator.lock import RunLock
sys.stdin.readline()
try:
    lock = RunLock(Path(sys.argv[1]))
    lock.acquire()
except LockedError as error:
    print("locked", error.exit_code.value, flush=True)
else:
    print("taken", len(lock.notices), flush=True)
    sys.stdin.readline()
    if sys.argv[2:] == ["release"]:
        lock.release()
"""


def _race(path: Path, count: int = 10) -> list[str]:
    """Let ``count`` processes start together; the winner holds on until all have answered."""
    racers = [_start(_TAKE, str(path)) for _ in range(count)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = []
    for racer in racers:
        assert racer.stdout is not None
        answers.append(racer.stdout.readline().strip())
    for racer in racers:
        racer.kill()
        racer.wait()
        for stream in (racer.stdin, racer.stdout):
            assert stream is not None
            stream.close()
    return answers


def test_of_ten_processes_that_start_together_exactly_one_wins(tmp_path: Path) -> None:
    answers = _race(tmp_path / "lock")
    assert sorted(answers) == ["locked 4"] * 9 + ["taken 0"]


def test_of_ten_processes_that_meet_a_dead_owner_exactly_one_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    owner = _start(_TAKE, str(path))
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("go\n")
    owner.stdin.flush()
    assert owner.stdout.readline().startswith("taken")
    owner.kill()
    owner.wait()
    assert path.exists()
    assert lock_owner(path) is None
    answers = _race(path)
    assert sorted(answers) == ["locked 4"] * 9 + ["taken 1"]


def test_the_message_names_the_owner_and_the_code_is_4(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with RunLock(path), pytest.raises(LockedError) as caught:
        RunLock(path).acquire()
    assert f"process {os.getpid()} on" in str(caught.value)
    assert caught.value.exit_code is ExitCode.LOCKED
    assert not path.exists()


def test_release_lets_the_next_one_in(tmp_path: Path) -> None:
    for _ in range(3):
        with RunLock(tmp_path / "lock") as lock:
            lock.check()
            assert lock.notices == ()


def _foreign(path: Path, **changes: object) -> None:
    """A lock as another process would have left it."""
    with RunLock(path):
        owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boot_id": "another", "machine_id": "this"}, "restarted"),
        ({"pid": 2**22 + 1}, "process is gone"),
        ({"process_started": "1"}, "belongs to another"),
    ],
)
def test_a_dead_owner_of_this_host_is_stale_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], reason: str
) -> None:
    monkeypatch.setattr("orchestrator.lock._machine_id", lambda: "this")
    path = tmp_path / "lock"
    _foreign(path, **changes)
    with RunLock(path, sleep=_never) as lock:
        assert reason in lock.notices[0]


@pytest.mark.parametrize(("theirs", "ours"), [("that", "this"), ("", ""), (None, "this")])
@pytest.mark.parametrize("beats", [True, False])
def test_another_machine_of_our_name_is_given_time_to_show_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str | None, ours: str, beats: bool
) -> None:
    """Two clones of one virtual machine: another boot of the same name is no restart."""
    monkeypatch.setattr("orchestrator.lock._machine_id", lambda: ours)
    path = tmp_path / "lock"
    _foreign(path, boot_id="another", machine_id=theirs)
    assert lock_owner(path) is not None
    fake = FakeTime(on_sleep=lambda: os.utime(path, (1.0, 1.0)) if beats else None)
    lock = RunLock(path, grace_s=30, clock=fake.clock, sleep=fake.sleep)
    if beats:
        with pytest.raises(LockedError):
            lock.acquire()
    else:
        with lock:
            assert "stood still for 30 s" in lock.notices[0]
    assert path.exists() == beats


def test_a_lock_tells_its_machine_without_the_id_that_others_must_not_have(tmp_path: Path) -> None:
    file = Path("/etc/machine-id")
    text = file.read_text().strip() if file.is_file() else ""
    with RunLock(tmp_path / "lock"):
        owner = json.loads((tmp_path / "lock").read_text())
    assert bool(owner["machine_id"]) == (len(text) == 32)
    assert not text or text not in json.dumps(owner)


def _never(seconds: float) -> None:
    raise AssertionError("there was no reason to wait")


def test_an_empty_lock_was_left_by_a_process_killed_while_taking_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with RunLock(path, sleep=_never) as lock:
        assert "killed while taking" in lock.notices[0]


def test_an_owner_on_another_host_is_stale_only_after_its_heartbeat_stood_still(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    _foreign(path, host="elsewhere")
    fake = FakeTime()
    with RunLock(path, grace_s=30, clock=fake.clock, sleep=fake.sleep) as lock:
        assert "stood still for 30 s" in lock.notices[0]
    assert 30 <= fake.now <= 32


def test_an_owner_on_another_host_that_beats_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _foreign(path, host="elsewhere")
    # A heartbeat may carry any time stamp: the owner's clock may be a day off, or jump back.
    fake = FakeTime(on_sleep=lambda: os.utime(path, (1.0, 1.0)))
    with pytest.raises(LockedError):
        RunLock(path, grace_s=30, clock=fake.clock, sleep=fake.sleep).acquire()
    assert path.exists()


def test_a_process_in_another_container_is_not_judged_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _foreign(path, pid_space="pid:[1]", pid=2**22 + 1)
    fake = FakeTime(on_sleep=lambda: os.utime(path, (1.0, 1.0)))
    with pytest.raises(LockedError):
        RunLock(path, clock=fake.clock, sleep=fake.sleep).acquire()


@pytest.mark.parametrize(
    "changes", [{}, {"pid_space": "pid:[1]"}, {"host": "elsewhere"}, {"process_started": "1"}]
)
def test_cancel_signals_the_owner_and_never_another_process_of_its_number(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    with RunStore(tmp_path, "a").opened():
        pass
    lock = tmp_path / "a" / "lock"
    bystander = _start("import sys; sys.stdin.read()")
    started = _process_started(bystander.pid)
    _foreign(lock, **{"pid": bystander.pid, "process_started": started, **changes})
    run_command(["cancel", "a", "--runs-dir", str(tmp_path), "--wait", "0.1"])
    stopped = (tmp_path / "a" / STOP_FILE).exists()
    if changes:
        assert bystander.poll() is None
        assert stopped == ("process_started" not in changes)  # nobody is asked where nobody runs
    else:
        assert bystander.wait(timeout=30) == -signal.SIGTERM
        assert stopped
    bystander.kill()
    bystander.communicate()


def test_an_owner_whose_lock_was_taken_over_notices_and_leaves_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = RunLock(path)
    lock.acquire()
    path.unlink()
    path.write_text("{}")
    with pytest.raises(LockedError, match="taken over"):
        lock.check()
    lock.release()
    assert path.exists()


def test_a_successor_with_the_number_of_our_file_is_noticed(tmp_path: Path) -> None:
    """File systems give the inode number of a removed file to the next one."""
    path = tmp_path / "lock"
    lock = RunLock(path)
    lock.acquire()
    number = path.stat().st_ino
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another"}))
    assert path.stat().st_ino == number
    with pytest.raises(LockedError, match="taken over"):
        lock.check()
    lock.release()
    assert path.exists()


def test_the_heartbeat_moves(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with RunLock(path, heartbeat_s=0.01):
        first = path.stat().st_mtime_ns
        for _ in range(500):
            if path.stat().st_mtime_ns != first:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime_ns != first
