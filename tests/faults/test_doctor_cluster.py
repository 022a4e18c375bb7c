"""``mpq doctor --address`` on clusters as ``ray start`` makes them: good, wrong token, no token."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from test_nodes import Head

if TYPE_CHECKING:
    from conftest import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def doctor(command: Command, address: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code = command.run("doctor", "--runs-dir", "runs", "--address", address, "--json")
    text = command.output
    checks = json.loads(text[text.index("[\n") :])
    return code, {check["name"]: check for check in checks}


def start(command: Command, mode: str, port: int) -> Head:
    env = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": secrets.token_hex(32),
           "RAY_USAGE_STATS_ENABLED": "0", "MPQ_FAULT_HEAD": secrets.token_hex(4)}  # fmt: skip
    head = Head(env, port)
    head.start()
    return head


def test_a_cluster_that_is_as_it_should_be_and_a_wrong_token(command: Command) -> None:
    head = start(command, "token", 6397)
    try:
        command.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.env["RAY_AUTH_TOKEN"]}
        code, checks = doctor(command, head.address)
        assert code == 0, checks
        assert checks["token"]["found"] == "accepted"
        nodes = {name.rpartition(") ")[2] for name in checks if name.startswith("node ")}
        assert nodes == {"python", "packages", "run folder", "GPUs"}
        assert not list((command.folder / "runs").iterdir())
        command.env["RAY_AUTH_TOKEN"] = "0" * 64
        code, checks = doctor(command, head.address)
        assert code == 6
        assert checks["token"]["grade"] == "fail"
        assert "auth_token" in checks["token"]["advice"]
    finally:
        head.clear()


def test_a_cluster_without_a_token(command: Command) -> None:
    head = start(command, "disabled", 6399)
    try:
        code, checks = doctor(command, head.address)
        assert code == 6
        assert "callers without a token" in checks["strangers"]["found"]
        assert "token" not in checks
    finally:
        head.clear()
