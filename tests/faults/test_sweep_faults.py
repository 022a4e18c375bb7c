"""Rows 1, 3 and 5 for `mpq sweep`: asked to stop, a trial killed, the head lost, all for real."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.instances import indicators
from benchmarks.networks import resnet18
from solvers.storage import load_results, save_costs, save_importance
from tests.orchestrator.run_folders import write_run

if TYPE_CHECKING:
    from conftest import Command
    from fault_ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Three trials of six tasks, about 2 s each on a core; the work of a run is played by its files.
DEVICES, ALPHAS = 300, (1.0, 2.0, 3.0)
CONFIG = """\
schema: experiment/1
name: tiny
model: {name: resnet18}
data: {name: digits}
bits: {weight: [2, 3, 4, 5, 6], act: [2, 3, 4, 5, 6]}
search: {alphas: [1.0, 2.0, 3.0], limits: [{bitops: 20G}]}
cluster: {retries: {first_wait_s: 0}}
tracking: {enabled: false}
"""


@pytest.fixture
def sweep(command: Command) -> Callable[..., Any]:
    """Starts `mpq sweep` on a run with indicators."""
    store = write_run(command.folder / "runs", "tiny")
    costs = resnet18()
    save_costs(store.root / "steps/costs/costs.parquet", costs)
    learned = replace(indicators(costs, 0), fingerprint=costs.fingerprint)
    save_importance(store.root / "steps/indicators/importance.parquet", learned)
    store.config_path.write_text(CONFIG)
    limits = {"bitops": ["18G", "40G"], "weight_bytes": ["4.5MiB", "6.5MiB"]}
    devices = {"ranges": {"count": DEVICES, "seed": 0, "limits": limits}}
    (command.folder / "devices.yaml").write_text(json.dumps(devices))
    return lambda *more: command.start("sweep", "tiny", "--devices", "devices.yaml", *more)


def answers(command: Command) -> list[Path]:
    return sorted(command.root.glob("steps/sweeps/*/answers/*.parquet"))


def policies(command: Command) -> list[Path]:
    return list(command.root.glob("steps/sweeps/*/policies/*.json"))


def assert_whole(command: Command) -> None:
    (path,) = command.root.glob("steps/sweeps/*/results.parquet")
    asked = [(row.label, row.alpha) for row in load_results(path).rows]
    assert len(asked) == len(set(asked)) == DEVICES * len(ALPHAS)
    assert not list(command.root.rglob(".tmp-*"))


def test_asked_to_stop_it_stops_keeps_what_it_has_and_goes_on(
    sweep: Callable[..., Any], command: Command, ledger: Ledger
) -> None:
    kind = "SIGINT, SIGTERM or `mpq cancel` to `mpq sweep`"
    for way, code in (("cancel", 143), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = len(answers(command)), len(policies(command))
        process = sweep()
        log = command.log
        command.until(
            process, lambda was=before: (len(answers(command)), len(policies(command))) > was
        )
        ledger.inject(3, kind)
        if isinstance(way, str):
            assert command.run("cancel", "tiny", "--wait", "100") == 0, command.output
        else:
            process.send_signal(way)
        command.log = log
        assert command.wait(process, 100) == code, command.output
        assert "go on with" in command.output
        command.assert_no_orphans()
        assert len(answers(command)) >= before[0]
        assert not list(command.root.glob("steps/sweeps/*/results.parquet"))
        ledger.survive(3, kind)
    kept = {path: path.read_bytes() for path in answers(command)}
    assert command.wait(sweep()) == 0, command.output
    assert {path: path.read_bytes() for path in kept} == kept
    assert_whole(command)


def test_a_killed_trial_is_a_restart_in_the_journal(
    sweep: Callable[..., Any], command: Command, ledger: Ledger
) -> None:
    kind = "SIGKILL of a trial's process in `mpq sweep`"
    process = sweep()
    command.until(process, lambda: policies(command))
    trial = next(p for p in command.processes() if "ImplicitFunc" in " ".join(p.cmdline()))
    trial.kill()
    ledger.inject(1, kind)
    assert command.wait(process) == 0, command.output
    restarts = [e["data"] for e in command.journal() if e["kind"] == "step_restarted"]
    assert [each["failure"] for each in restarts] == ["infrastructure"]
    assert_whole(command)
    command.assert_no_orphans()
    ledger.survive(1, kind)


def test_a_lost_head_ends_it_in_words(
    sweep: Callable[..., Any], command: Command, ledger: Ledger
) -> None:
    from test_nodes import Head

    kind = "SIGKILL of gcs_server during `mpq sweep`"
    head = Head.of(command, 6397)
    try:
        head.start()
        process = sweep("--address", head.address)
        command.until(process, lambda: policies(command))
        head.lose()
        ledger.inject(5, kind)
        code = command.wait(process, 100)
        # Where the driver's own node goes with the head, Ray may end the process itself.
        assert code in (6, 1), command.output
        assert code == 1 or "the Ray cluster is gone" in command.output
        ledger.survive(5, kind)
    finally:
        head.clear()
