"""Killed, interrupted, started twice, asked for the impossible: nothing is lost or done twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.ray


def _results(command: Command) -> dict[str, Any]:
    """What must not depend on interruptions: states, policies and accuracies by key."""
    return {
        r["key"]: (r["state"], r["policy_id"], r["metrics"].get("eval/top1"))
        for r in command.records()
    }


def _wait_for_the_end_of_ray(command: Command) -> None:
    """Ray's processes end within half a minute of their driver, however it ended."""
    for _ in range(60):
        if not command.ray_processes():
            return
        time.sleep(0.5)
    pytest.fail(f"left behind: {command.ray_processes()}")


@pytest.mark.parametrize(
    ("step", "num_lines"),
    [("indicators", 5), pytest.param("train", 2, marks=pytest.mark.slow)],
)
def test_a_killed_driver_goes_on_to_the_same_results(
    finished: Command, command: Command, step: str, num_lines: int
) -> None:
    command.write("tiny.yaml", command.config)
    process = command.start("run", "tiny.yaml")
    steps = command.folder / "runs" / "tiny" / "steps"
    command.wait_for(process, steps / step / "progress.jsonl", num_lines)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _wait_for_the_end_of_ray(command)
    code, output = command.run("run", "tiny.yaml")
    assert code == 3, output
    assert "pretrain: done before" in output
    assert max(Counter(r["key"] for r in command.records()).values()) == 1
    assert _results(command) == _results(finished)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_no_process_and_a_second_start_is_refused(
    command: Command, number: signal.Signals, code: int
) -> None:
    text = command.config.replace("epochs: 60", "epochs: 4000")
    command.write("tiny.yaml", text)
    process = command.start("run", "tiny.yaml")
    progress = command.folder / "runs" / "tiny" / "steps" / "indicators" / "progress.jsonl"
    command.wait_for(process, progress, 3)
    refused, refusal = command.run("run", "tiny.yaml", timeout_s=120)
    assert refused == 4, refusal
    assert str(process.pid) in refusal
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "tiny.yaml" in output.split("go on")[-1]
    _wait_for_the_end_of_ray(command)
    checkpoints = list(progress.parent.glob("checkpoints/step-*"))
    assert checkpoints
    assert command.journal()[-1]["kind"] == "run_interrupted"


def test_nothing_is_trained_when_no_limit_can_be_met(command: Command) -> None:
    text = command.config.replace(
        "limits: [{bitops_level: 2.5x3}, {bitops_level: 3x3}, {bitops: 1}]",
        "limits: [{bitops: 1}, {weight_bytes: 10}]",
    )
    command.write("tiny.yaml", text)
    code, output = command.run("run", "tiny.yaml", timeout_s=120)
    assert code == 3, output
    assert "smallest reachable" in output
    assert {r["phase"] for r in command.records()} == {"costs", "solve"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("cifar_resnet8", "cifar_resnet9"), ("model.name", "cifar_resnet8")),
        (("weight: [2, 3, 4]", "weight: [4, 3, 3]"), ("bits.weight", "ascending")),
        (("epochs: 60", "epochs: many"), ("indicators.epochs", "many")),
        (("alphas:", "alpha:"), ("search.alpha", "alphas")),
        (("bitops_level: 3x3", "bitops_levels: 3x3"), ("search.limits.1",)),
    ],
)
def test_wrong_configurations_are_refused_before_ray(
    command: Command,
    change: tuple[str, str],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from orchestrator.cli import run_command

    path = command.write("tiny.yaml", command.config.replace(*change))
    monkeypatch.chdir(command.folder)
    code = run_command(["run", path.name])
    output = capfd.readouterr().err
    assert code == 2, output
    assert "Traceback" not in output
    for word in (*words, "tiny.yaml:"):
        assert word in output
    assert not (command.folder / "runs").exists()


def test_more_workers_than_the_machine_has_are_refused(command: Command) -> None:
    command.write("tiny.yaml", command.config)
    code, output = command.run(
        "run", "tiny.yaml", "--set", "cluster.num_workers=4", "--set", "cluster.cpus_per_worker=64",
        timeout_s=120,
    )  # fmt: skip
    assert code == 6, output
    assert "4 workers of 64 CPU" in output
