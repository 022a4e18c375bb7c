from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator import events
from orchestrator.config_schema import TrackingConfig
from orchestrator.journal import Journal, JournalView, read_journal
from orchestrator.mirror_thread import MirrorThread
from orchestrator.records import RunRecord, State
from orchestrator.runs import run_status
from orchestrator.store import RunStore
from orchestrator.tracking import Mirror
from tests.orchestrator.mlflow_contents import contents, undisturbed, without_ids

CONFIG = {
    "name": "run", "method": "limpq", "seed": 3,
    "data": {"path": "s3://user:hunter2@bucket/x", "options": {"api_key": "hunter2", "a(b)": 1}},
    "tracking": {"uri": "http://me:hunter2@host/"},
}  # fmt: skip


def _record(store: RunStore, index: int, state: State = State.DONE, **more: Any) -> RunRecord:
    return RunRecord(
        run=store.name, step=f"train/p{index}", key=f"key{index}", phase="train", method="limpq",
        state=state, policy_id=f"p{index}", alpha=2.0, limits={"bitops": "1G"}, seed=3,
        metrics={"eval/top1": 90.0 + index, "cost/bitops_g": 0.5}, costs={"wall_s": 1.5},
        started_utc="2026-01-01T00:00:00+00:00", wall_s=2.5, **more,
    )  # fmt: skip


@pytest.fixture
def store(runs_dir: Path) -> RunStore:
    store = RunStore(runs_dir, "run")
    with store.opened() as journal:
        journal.event(events.RUN_STARTED, {"command": "mpq run x.yaml"})
        for index in range(3):
            journal.append(_record(store, index))
    return store


def _mirror(store: RunStore, **tracking: Any) -> Mirror:
    return Mirror(store, TrackingConfig(**tracking), CONFIG)


def _append(store: RunStore, *records: RunRecord, finish: bool = False) -> JournalView:
    with Journal(store.journal_path) as journal:
        journal.append_all(records)
        if finish:
            journal.event(events.RUN_FINISHED, {"exit_code": 3})
    return read_journal(store.journal_path)


def _contents(store: RunStore) -> list[dict[str, Any]]:
    return contents(f"sqlite:///{store.runs_dir}/mlflow.db", store.name)


def test_replaying_any_number_of_times_adds_nothing(store: RunStore) -> None:
    view = read_journal(store.journal_path)
    assert (_mirror(store).sync(view).added, _mirror(store).sync(view).added) == (3, 0)
    first = _contents(store)
    assert [each["tags"]["mpq.record"] for each in first] == ["key0", "key1", "key2", "run"]
    (store.root / "mirror.json").unlink()
    outcome = _mirror(store).sync(view)
    assert (outcome.error, outcome.pending) == ("", 0)
    assert _contents(store) == first


def test_a_record_looks_in_mlflow_as_in_the_journal(store: RunStore) -> None:
    folder = store.root / "policies"
    folder.mkdir()
    (folder / "p9.json").write_text("{}")
    (folder / "weights.pt").write_bytes(b"big")
    record = _record(
        store, 9, State.DIVERGED, message="loss is nan at step 3",
        outputs={"policy": "policies/p9.json", "weights": "policies/weights.pt"},
    )  # fmt: skip
    _mirror(store).sync(_append(store, record, finish=True))
    found = {each["tags"]["mpq.record"]: each for each in _contents(store)}
    child, parent = found["key9"], found["run"]
    assert child["history"]["eval/top1"] == [(99.0, 1767225602500, 0)]
    assert child["params"] == {"alpha": "2", "limit.bitops": "1G", "seed": "3"}
    assert child["tags"]["mlflow.parentRunId"] == parent["id"]
    assert child["tags"]["mpq.message"] == "loss is nan at step 3"
    assert (child["status"], child["start"]) == ("FAILED", 1767225600000)
    assert child["artifacts"] == ["policy"]
    assert parent["params"]["method"] == "limpq"
    assert parent["status"] == "FINISHED"
    assert parent["artifacts"] == ["config.yaml", "policies"]


def test_no_secret_reaches_the_database_or_the_artifacts(store: RunStore) -> None:
    record = _record(store, 7, State.FAILED, message="cannot reach http://me:hunter2@host/x")
    assert _mirror(store).sync(_append(store, record)).error == ""
    _contents(store)
    files = [p for p in store.runs_dir.rglob("*") if p.is_file() and p != store.journal_path]
    assert any(p.name == "config.yaml" for p in files)
    assert not [p for p in files if b"hunter2" in p.read_bytes()]


def _killed_at(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every call that changes something in MLflow is counted, and number ``fail_at`` fails."""
    from mlflow import MlflowClient

    plan = {"calls": 0, "fail_at": 0}

    def counted(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            plan["calls"] += 1
            if plan["calls"] == plan["fail_at"]:
                raise ConnectionError("gone")
            return real(*args, **kwargs)

        return call

    for name in ("create_run", "log_batch", "set_terminated", "log_artifact", "set_tag"):
        monkeypatch.setattr(MlflowClient, name, counted(name))
    return plan


def test_a_mirror_killed_anywhere_is_completed_by_the_next(
    tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parameters for more than one call, a record, and a row of the table.
    config = {**CONFIG, "more": {f"key{number}": number for number in range(150)}}
    store = RunStore(tmp_path / "first", "run")
    with store.opened() as journal:
        journal.event(events.RUN_STARTED, {"command": "mpq run x.yaml"})
        journal.append(_record(store, 1))
        journal.append(replace(_record(store, 1), phase="solve", step="sweep/0", key="solved"))
        journal.event(events.RUN_FINISHED, {"exit_code": 3})
    expected = undisturbed(store, config, tmp_path / "undisturbed", mlflow_template)
    (parent,) = [each for each in expected if each["tags"]["mpq.record"] == "run"]
    assert len(parent["params"]) > 150
    assert "mlflow.loggedArtifacts" in parent["tags"]
    plan = _killed_at(monkeypatch)
    for fail_at in range(1, 60):
        copy = RunStore(tmp_path / str(fail_at), "run")
        shutil.copytree(store.root, copy.root)
        shutil.copy(mlflow_template, copy.runs_dir / "mlflow.db")
        view = read_journal(copy.journal_path)
        plan.update(calls=0, fail_at=fail_at)
        outcome = Mirror(copy, TrackingConfig(), config).sync(view)
        if not outcome.error:
            break
        assert "gone" in outcome.error
        plan.update(calls=0, fail_at=0)
        assert Mirror(copy, TrackingConfig(), config).sync(view).error == ""
        assert without_ids(_contents(copy)) == expected, f"killed at call {fail_at}"
    else:
        pytest.fail("never finished")
    assert plan["fail_at"] > 18, "the kill points were not reached"


def test_what_is_remembered_does_not_hide_that_parameters_are_missing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = read_journal(store.journal_path)
    with monkeypatch.context() as killed:
        _killed_at(killed)["fail_at"] = 2
        assert "gone" in _mirror(store).sync(view).error
    # The next attempt runs on another cluster; MLflow takes no second value for a parameter.
    for workers in (2, 4):
        config = {**CONFIG, "cluster": {"num_workers": workers}}
        assert Mirror(store, TrackingConfig(), config).sync(view).error == ""
    (parent,) = [each for each in _contents(store) if each["tags"]["mpq.record"] == "run"]
    assert parent["params"]["method"] == "limpq"
    assert parent["params"]["cluster.num_workers"] == "2"


def test_a_record_without_a_start_is_stamped_with_its_place_in_the_journal(
    store: RunStore,
) -> None:
    values = {**_record(store, 20).to_json(), "started_utc": ""}
    view = _append(store, RunRecord.from_json(values))
    appended = next(e for e in view.entries if e.data.get("key") == "key20").time_utc
    for _ in range(2):
        (store.root / "mirror.json").unlink(missing_ok=True)
        assert _mirror(store).sync(view).error == ""
    (found,) = [each for each in _contents(store) if each["tags"]["mpq.record"] == "key20"]
    end_ms = round(datetime.fromisoformat(appended).timestamp() * 1000)
    assert found["start"] == end_ms - 2500
    assert found["history"]["eval/top1"] == [(110.0, end_ms, 0)]


def test_two_runs_of_one_name_do_not_hide_each_other(store: RunStore) -> None:
    _mirror(store).sync(read_journal(store.journal_path))
    first_id = read_journal(store.journal_path).run_id
    for path in (store.journal_path, store.root / "mirror.json"):
        path.unlink()
    with Journal(store.journal_path) as journal:
        assert journal.run_id != first_id
        journal.append(_record(store, 0))
    assert _mirror(store).sync(read_journal(store.journal_path)).added == 1
    assert len(_contents(store)) == 4 + 2


def test_a_database_that_was_deleted_is_filled_again(
    store: RunStore, mlflow_template: Path
) -> None:
    view = read_journal(store.journal_path)
    _mirror(store).sync(view)
    (store.runs_dir / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    assert _mirror(store).sync(view).added == 3


def test_a_server_that_is_down_is_told_and_everything_stays_on_the_list(store: RunStore) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = _mirror(store, uri=f"http://127.0.0.1:{port}").sync(read_journal(store.journal_path))
    assert outcome.error == f"no answer from http://127.0.0.1:{port}"
    assert (outcome.pending, outcome.added) == (3, 0)
    assert run_status(store).unmirrored == 3
    outcome = _mirror(store).sync(read_journal(store.journal_path))
    assert (outcome.pending, outcome.added, outcome.error) == (0, 3, "")
    assert run_status(store).unmirrored == 0


@contextmanager
def _silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield server.getsockname()[1]


def test_a_server_that_never_answers_does_not_hold_the_run_up(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with _silent_server() as port:
        mirror = _mirror(store, uri=f"http://127.0.0.1:{port}")
        thread = MirrorThread(mirror, lambda: read_journal(store.journal_path))
        thread.start()
        began = time.monotonic()
        thread.wake()
        outcome = thread.finish(timeout_s=0.5)
        assert time.monotonic() - began < 10
    assert "did not answer" in outcome.error
    assert outcome.pending == 3


def test_the_thread_mirrors_what_was_appended_before_the_end(store: RunStore) -> None:
    with Journal(store.journal_path) as journal:
        thread = MirrorThread(_mirror(store), lambda: journal.view)
        thread.start()
        for index in range(10, 15):
            journal.append(_record(store, index))
            thread.wake()
        outcome = thread.finish(timeout_s=120)
    assert (outcome.mirrored, outcome.pending, outcome.error) == (8, 0, "")


def test_only_one_process_mirrors_a_run_at_a_time(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("orchestrator.tracking._LOCK_WAIT_S", 0.3)
    with (store.root / "mirror.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = _mirror(store).sync(read_journal(store.journal_path))
    assert "another process" in outcome.error


def test_a_deleted_experiment_is_told(store: RunStore) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store.runs_dir}/mlflow.db")
    client.delete_experiment(client.create_experiment("run"))
    assert "deleted" in _mirror(store).sync(read_journal(store.journal_path)).error


def test_addresses_are_absolute(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.runs_dir)
    mirror = Mirror(RunStore(".", "run"), TrackingConfig(), CONFIG)
    assert mirror.uri == f"sqlite:///{store.runs_dir}/mlflow.db"
    assert str(store.runs_dir) in mirror.open_command


def test_sync_command_replays_and_says_so(store: RunStore) -> None:
    from orchestrator.yaml_source import dump_yaml

    store.config_path.write_text(dump_yaml({"name": "run", "tracking": {"experiment": "study"}}))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "sync", str(store.root), "--json"],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"mirrored": 3, "added": 3, "pending": 0, "error": ""}
