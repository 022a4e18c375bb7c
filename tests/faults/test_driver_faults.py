"""Rows 3 and 4: the driver is asked to stop, or killed, again and again, in one run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Command
    from fault_ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ASKED = 12
KILLED_AT_RANDOM = 8


def _lines(command: Command, step: str) -> int:
    path = command.root / "steps" / step / "progress.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_asked_to_stop_at_twelve_moments_of_one_run(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    """Before Ray, while Ray starts, while workers start, and in training; then it finishes."""
    draw = random.Random(0)
    kind = "SIGINT or SIGTERM to `mpq run`"
    stopped = 0
    for number in range(ASKED):
        before = _lines(command, "pretrain")
        process = command.start("run", "tiny.yaml")
        if number % 3 == 0:
            command.until(process, lambda: (command.root / "lock").exists())
            time.sleep(draw.uniform(0.5, 12.0))
        else:
            command.until(process, lambda was=before: _lines(command, "pretrain") > was)
            time.sleep(draw.uniform(0.0, 0.3))
        asked = signal.SIGTERM if number % 2 else signal.SIGINT
        process.send_signal(asked)
        ledger.inject(3, kind)
        code = command.wait(process, 400)
        assert code == (143 if asked == signal.SIGTERM else 130), command.output
        assert "go on" in command.output
        assert command.journal()[-1]["kind"] == "run_interrupted"
        command.assert_no_orphans()
        stopped += 1
        if _lines(command, "pretrain") >= 11:
            break
    assert stopped >= 6
    code = command.run("run", "tiny.yaml")
    assert code == 0, command.output
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(3, kind, stopped)


def test_a_second_signal_stops_at_once(command: Command, ledger: Ledger) -> None:
    kind = "two SIGINT in a row"
    process = command.start("run", "tiny.yaml", "--set", "pretrain.epochs=4000")
    command.until(process, lambda: _lines(command, "pretrain") > 0)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    ledger.inject(3, kind)
    assert command.wait(process, 200) == 130, command.output
    command.assert_no_orphans()
    ledger.survive(3, kind)


POINTS = [
    {"point": "step-begin", "at": 1},
    {"point": "before-group", "at": 1},
    {"point": "before-record", "at": 1},
    {"point": "after-record", "at": 1},
    {"point": "mid-journal", "at": 1},
    {"point": "after-journal", "at": 1},
    {"point": "before-record", "at": 2},
    {"point": "mid-journal", "at": 2},
]


def test_killed_at_every_named_point(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    kind = "SIGKILL of `mpq run` at a named point"
    command.with_faults([{**point, "do": "SIGKILL"} for point in POINTS])
    for _ in range(len(POINTS)):
        process = command.start("run", "tiny.yaml")
        assert command.wait(process) == -signal.SIGKILL, command.output
        command.assert_no_orphans()
    ledger.inject(4, kind, command.fired)
    assert command.fired == len(POINTS)
    assert command.run("run", "tiny.yaml") == 0, command.output
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(4, kind, command.fired)


def test_killed_at_random_moments(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    kind = "SIGKILL of `mpq run` at a random moment"
    draw = random.Random(1)
    killed, code = 0, -1
    while code != 0:
        process = command.start("run", "tiny.yaml")
        deadline = time.monotonic() + draw.uniform(2.0, 30.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None and killed < KILLED_AT_RANDOM:
            process.kill()
            killed += 1
            ledger.inject(4, kind)
        code = command.wait(process)
        command.assert_no_orphans()
        assert code in (0, -signal.SIGKILL), command.output
    assert killed >= 3
    command.assert_sound(undisturbed)
    ledger.survive(4, kind, killed)


def test_two_starts_at_once_are_one_run(
    tmp_path: Path, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    from conftest import Command

    commands = [Command(tmp_path / "work") for _ in range(5)]
    kind = "five `mpq run` of one name started together"
    started = [c.start("run", "tiny.yaml") for c in commands]
    ledger.inject(17, kind, 4)
    codes = [c.wait(p) for c, p in zip(commands, started, strict=True)]
    assert sorted(codes) == [0, 4, 4, 4, 4], [c.output[-500:] for c in commands]
    commands[0].assert_sound(undisturbed)
    ledger.survive(17, kind, 4)
