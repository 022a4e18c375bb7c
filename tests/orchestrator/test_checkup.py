"""What ``mpq doctor`` says about tokens and rights."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checkup import Check, checkup


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "journal.jsonl").touch()
    for path in (run, run.parent):
        path.chmod(0o700)
    return tmp_path


def _check(home: Path, name: str) -> Check:
    found = [check for check in checkup(str(home / "runs")) if check.name == name]
    assert len(found) == 1, name
    return found[0]


def test_a_token_that_others_can_read_is_told(home: Path) -> None:
    assert _check(home, "Ray token").grade == "ok"
    (home / "token").write_text("x")
    (home / "token").chmod(0o644)
    assert _check(home, "Ray token").grade == "warn"
    (home / "token").chmod(0o600)
    assert _check(home, "Ray token").grade == "ok"


def test_runs_that_others_can_read_or_steer_are_told(home: Path) -> None:
    assert _check(home, "run folders").grade == "ok"
    (home / "runs" / "one").chmod(0o755)
    assert "one" in _check(home, "run folders").found
    (home / "runs").chmod(0o777)
    assert _check(home, "runs_dir mode").grade == "fail"


def test_no_token_mode_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _check(home, "RAY_AUTH_MODE").grade == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert _check(home, "RAY_AUTH_MODE").grade == "warn"
