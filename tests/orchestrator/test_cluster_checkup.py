"""What ``mpq doctor --address`` makes of what it finds; real clusters are in tests/faults."""

from __future__ import annotations

import socket
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from orchestrator.cluster_checkup import (
    cluster_checkup,
    door_check,
    node_checks,
    reachable,
    refused,
)
from orchestrator.cluster_probe import NodeReport
from orchestrator.open_cluster import place_of

OURS = {"mpq-orchestrator": "0.1.0", "ray": "2.60.0", "torch": "2.14.1"}
GOOD = NodeReport(
    node="n1 (10.0.0.2)", gpus_offered=2, python="3.11.7", versions=OURS, devices=2, torch_gpus=2,
    oom_retries="1", shared=True,
)  # fmt: skip


def grades(report: NodeReport) -> dict[str, str]:
    checks = node_checks(report, Path("/shared/runs"), OURS, "3.11.7")
    assert all(c.advice for c in checks if c.grade != "ok")
    found = node_checks(report, Path("/shared/runs"), OURS, "3.11.7")
    return {check.name.rpartition(") ")[2]: check.grade for check in found}


def test_a_node_that_is_as_it_should_be() -> None:
    assert set(grades(GOOD).values()) == {"ok"}
    assert set(grades(replace(GOOD, gpus_offered=0, devices=0, torch_gpus=None)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("report", "amiss"),
    [
        (replace(GOOD, shared=False), {"run folder": "fail"}),
        (replace(GOOD, oom_retries=""), {"restarts": "warn"}),
        (replace(GOOD, python="3.12.1"), {"python": "fail"}),
        (replace(GOOD, python="3.11.9"), {"python": "warn"}),
        (replace(GOOD, versions={**OURS, "ray": "2.59.0"}), {"packages": "fail"}),
        (replace(GOOD, versions={**OURS, "mpq-orchestrator": ""}), {"packages": "fail"}),
        (replace(GOOD, torch_gpus=0), {"GPUs": "fail"}),
        (replace(GOOD, torch_gpus=None), {"GPUs": "fail"}),
        (replace(GOOD, gpus_offered=0, torch_gpus=None), {"GPUs": "warn"}),
    ],
)
def test_what_is_amiss_on_a_node_is_named_and_nothing_else(
    report: NodeReport, amiss: dict[str, str]
) -> None:
    assert {name: grade for name, grade in grades(report).items() if grade != "ok"} == amiss


def test_a_node_that_did_not_answer_is_one_line() -> None:
    silent = NodeReport(node="10.0.0.3", error="no answer within 120 s")
    (check,) = node_checks(silent, Path("/r"), OURS, "3.11.7")
    assert (check.grade, check.found) == ("fail", "no answer within 120 s")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://h:10001", "host", "h:port"])
def test_an_address_of_another_kind_is_told(address: str, tmp_path: Path) -> None:
    assert place_of(address) == ""
    (check,) = cluster_checkup(address, str(tmp_path))
    assert check.grade == "fail"
    assert "host:port" in check.found
    assert "10.0.0.1:6379" in check.advice


def test_nothing_there_and_something_else_there(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        (check,) = cluster_checkup(place, str(tmp_path))
        assert "nothing answers" in check.found
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        first, second = cluster_checkup(f"127.0.0.1:{port}", str(tmp_path))
        assert (first.grade, second.grade) == ("ok", "fail")
        assert "cannot be told" in second.found
    finally:
        server.stop(None)


def test_a_cluster_that_lets_strangers_in_is_looked_at_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.cluster_checkup.door_of", lambda place: "open")
    check = door_check("h:1")
    assert check.grade == "fail"
    assert "RAY_AUTH_MODE=token" in check.advice
    monkeypatch.setattr("orchestrator.cluster_checkup.door_of", lambda place: "closed")
    assert door_check("h:1").grade == "ok"


def test_why_ray_refused_is_told() -> None:
    assert refused("Version mismatch: Ray: 2.9\n Python: 3.12").name == "versions"
    assert "auth_token" in refused("Failed to connect to Ray cluster at h:1").advice
    assert refused("").grade == "fail"


def test_no_cluster_here_is_told() -> None:
    assert "no cluster on this machine" in reachable("auto", "").found
