"""A run goes to storage and comes back whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli import run_command
from orchestrator.errors import LockedError, ResourceError, StoreError
from orchestrator.lock import RunLock
from orchestrator.records import RunRecord, State
from orchestrator.storage import pull, push
from orchestrator.store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    made = RunStore(tmp_path / "runs", "one")
    with made.opened() as journal:
        folder = made.step_dir("pretrain")
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(bytes(range(256)) * 40)
        record = RunRecord(run="one", step="pretrain", key="k", phase="pretrain", method="fp",
                           state=State.DONE,
                           outputs={"w": "steps/pretrain/weights.pt"})  # fmt: skip
        made.finish_step("pretrain", record)
        journal.append(record)
    (made.root / "ray").mkdir()
    (made.root / "ray" / "state").write_text("of a cluster")
    return made


def test_there_and_back(store: RunStore, tmp_path: Path) -> None:
    place = (tmp_path / "bucket").as_uri()
    first = push(store, place)
    assert (first.num_files, first.num_moved) == (3, 3)
    assert push(store, place).num_moved == 0
    assert pull(place, "one", tmp_path / "other").num_moved == 3
    back = RunStore(tmp_path / "other", "one")
    assert back.finished("pretrain", "k").record is not None
    assert back.journal_path.read_bytes() == store.journal_path.read_bytes()
    assert not (back.root / "ray").exists()
    with store.opened() as journal:
        journal.event("more")
    assert push(store, place).num_moved == 1
    assert pull(place, "one", tmp_path / "other").num_moved == 1


def test_a_damaged_copy_and_an_unfinished_one_are_refused(store: RunStore, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    push(store, str(bucket))
    path = bucket / "one" / "steps" / "pretrain" / "weights.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(StoreError, match=r"weights\.pt is damaged"):
        pull(str(bucket), "one", tmp_path / "other")
    assert not RunStore(tmp_path / "other", "one").exists()
    (bucket / "one" / "push.json").unlink()
    with pytest.raises(StoreError, match="no whole copy"):
        pull(str(bucket), "one", tmp_path / "other")


def test_a_copy_cannot_write_outside(store: RunStore, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    push(store, str(bucket))
    path = bucket / "one" / "push.json"
    body = json.loads(path.read_text())
    body["files"]["../../../outside"] = next(iter(body["files"].values()))
    path.write_text(json.dumps(body))
    with pytest.raises(StoreError, match="outside its run"):
        pull(str(bucket), "one", tmp_path / "other")


def test_another_run_of_the_name_is_not_overwritten(store: RunStore, tmp_path: Path) -> None:
    push(store, str(tmp_path / "bucket"))
    with RunStore(tmp_path / "other", "one").opened() as journal:
        journal.event("its own")
    with pytest.raises(StoreError, match="lacks"):
        pull(str(tmp_path / "bucket"), "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("data: {path: 's3://AKIAEXAMPLE:hunter2-secret@bucket/x'}", "data.path"),
        ("tracking: {uri: 'postgresql://me:hunter2-secret@db/x'}", "tracking.uri"),
        ("data: {options: {api_key: hunter2-secret, keys: 3}}", "data.options.api_key"),
        ("model: {options: {credentials: {mine: hunter2-secret}}}", "model.options.credentials"),
        ("data: {path: x}  # was s3://me:hunter2-secret@bucket/x", "the comment of line 1"),
    ],
)
def test_a_secret_is_not_copied(
    store: RunStore, tmp_path: Path, config: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.config_path.write_text(config + "\n")
    assert run_command(["push", str(store.root), str(tmp_path / "bucket")]) == 2
    told = capsys.readouterr().err
    assert f"in {place}: " in told
    assert str(store.config_path) in told
    assert "hunter2" not in told
    assert not (tmp_path / "bucket").exists()


def test_what_is_no_secret_is_copied(store: RunStore, tmp_path: Path) -> None:
    store.config_path.write_text(
        "data: {path: 's3://bucket/x', options: {num_tokens: 1000000, api_key: null}}\n"
        "indicators: {random_pass: separate}\ntracking: {uri: 'http://mlflow.example:5000'}\n"
    )
    push(store, str(tmp_path / "bucket"))
    assert (tmp_path / "bucket" / "one" / "config.yaml").is_file()


def test_a_run_that_goes_on_is_not_copied(store: RunStore, tmp_path: Path) -> None:
    with RunLock(store.lock_path), pytest.raises(LockedError):
        push(store, str(tmp_path / "bucket"))


def test_storage_that_cannot_be_used_is_one_clear_line(
    store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ResourceError, match="cannot be used"):
        push(store, "nowhere://x/y")
    (tmp_path / "file").write_text("x")
    assert run_command(["push", str(store.root), str(tmp_path / "file" / "below")]) == 6
    told = capsys.readouterr().err
    assert "cannot be used" in told
    assert "Traceback" not in told
