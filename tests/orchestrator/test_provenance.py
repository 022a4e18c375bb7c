"""Which commit a run says it was made by."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator import provenance


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(root), *identity, *words], check=True,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    room = tmp_path / "orchestrator"
    room.mkdir()
    (room / "provenance.py").write_text("first\n")
    monkeypatch.setattr(provenance, "__file__", str(room / "provenance.py"))
    return tmp_path


def test_the_commit_is_told_and_marked_where_files_differ(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "one")
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.code_commit() == head
    (checkout / "beside.txt").write_text("not of the project\n")
    assert provenance.code_commit() == head
    (checkout / "orchestrator" / "provenance.py").write_text("second\n")
    assert provenance.code_commit() == f"{head}+"


def test_a_copy_inside_another_repository_has_none(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.code_commit() == ""
    git(checkout, "init", "-q")
    installed = checkout / "lib" / "orchestrator" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.code_commit() == ""
