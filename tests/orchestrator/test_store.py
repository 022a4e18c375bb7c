from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.errors import LockedError, StoreError
from orchestrator.journal import read_journal
from orchestrator.leftovers import sweep_temporaries
from orchestrator.records import RunRecord, State, write_table
from orchestrator.store import RECORD, RunStore, list_runs
from solvers.atomic import write_atomically


def _record(store: RunStore, outputs: dict[str, str], state: State = State.DONE) -> RunRecord:
    return RunRecord(
        run=store.name, step="indicators", key="key-1", phase="indicators", method="limpq",
        state=state, outputs=outputs, metrics={"search/images": 12.0}, costs={"wall_s": 1.5},
    )  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path, "run")
    folder = store.step_dir("indicators")
    write_atomically(folder / "table.parquet", b"0123456789")
    write_atomically(folder / "parts" / "a.bin", b"abc")
    record = _record(
        store, {"table": "steps/indicators/table.parquet", "parts": "steps/indicators/parts"}
    )
    store.finish_step("indicators", record)
    return store


def test_a_finished_step_verifies_and_gives_its_record(finished: RunStore) -> None:
    verdict = finished.finished("indicators", "key-1")
    assert verdict.record is not None
    assert verdict.record.metrics == {"search/images": 12.0}
    assert verdict.reason == ""


def test_a_step_without_record_is_not_done(tmp_path: Path) -> None:
    verdict = RunStore(tmp_path, "run").finished("indicators", "key-1")
    assert verdict.record is None
    assert not verdict.damaged


def test_another_key_or_a_state_that_is_not_final_is_not_done(finished: RunStore) -> None:
    assert "changed" in finished.finished("indicators", "key-2").reason
    record = _record(finished, {}, State.INTERRUPTED)
    finished.finish_step("indicators", record)
    assert "INTERRUPTED" in finished.finished("indicators", "key-1").reason


@pytest.mark.parametrize("name", ["table.parquet", "parts/a.bin"])
def test_every_single_flipped_byte_is_found(finished: RunStore, name: str) -> None:
    path = finished.step_dir("indicators") / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        verdict = finished.finished("indicators", "key-1")
        assert verdict.record is None
        assert verdict.damaged
        assert name in verdict.reason
    path.write_bytes(whole)
    assert finished.finished("indicators", "key-1").record is not None


def test_the_detector_of_flipped_bytes_is_the_hash(
    finished: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with the hash broken on purpose, a flipped byte passes."""
    path = finished.step_dir("indicators") / "table.parquet"
    good = path.read_bytes()
    stored = json.loads((finished.step_dir("indicators") / RECORD).read_text())["files"]
    path.write_bytes(good[:-1] + b"X")
    assert finished.finished("indicators", "key-1").record is None
    monkeypatch.setattr(
        "orchestrator.store.sha256_of", lambda p: stored[finished.relative(p)]["sha256"]
    )
    assert finished.finished("indicators", "key-1").record is not None


def test_a_cut_or_missing_output_is_damage(finished: RunStore) -> None:
    path = finished.step_dir("indicators") / "table.parquet"
    path.write_bytes(b"01234")
    assert "another size" in finished.finished("indicators", "key-1").reason
    path.unlink()
    assert "missing" in finished.finished("indicators", "key-1").reason


def test_a_record_cut_anywhere_is_damage_and_never_a_crash(finished: RunStore) -> None:
    path = finished.step_dir("indicators") / RECORD
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        verdict = finished.finished("indicators", "key-1")
        assert verdict.record is None
        assert verdict.damaged
    path.write_text('{"schema": "step/2", "record": {}, "files": {}}')
    assert finished.finished("indicators", "key-1").damaged


def test_outputs_outside_the_run_or_behind_links_are_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs", "run")
    outside = tmp_path / "secret"
    outside.write_text("x")
    folder = store.step_dir("indicators")
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    for relative in ("../../secret", str(outside), "steps/indicators/link", "steps/none"):
        with pytest.raises(StoreError):
            store.finish_step("indicators", _record(store, {"x": relative}))
        assert not (folder / RECORD).exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/abs", "a\0b", "-x", ".x", "a b", "x" * 129, "a\u2215b",
     "%2e%2e", "a\n"],
)  # fmt: skip
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError):
        RunStore(tmp_path, name)
    if "/" not in name:
        with pytest.raises(StoreError):
            RunStore(tmp_path, "run").step_dir(f"train/{name}")


def test_a_linked_run_folder_or_step_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        RunStore(tmp_path, "run")
    store = RunStore(tmp_path, "run2")
    (tmp_path / "run2" / "steps").mkdir(parents=True)
    (tmp_path / "run2" / "steps" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        store.step_dir("train")


def test_opening_locks_sweeps_and_journals(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "run")
    assert not store.exists()
    with store.opened() as journal:
        journal.event("x")
        with pytest.raises(LockedError), store.opened():
            pass
    leftover = store.root / "steps" / ".tmp-123-weights.pt"
    leftover.write_bytes(b"half")
    with store.opened() as journal:
        assert "swept 1 unfinished" in journal.notices[0]
    assert not leftover.exists()
    assert list_runs(tmp_path) == ("run",)


def test_a_driver_that_stood_still_and_lost_its_run_writes_nothing_more(tmp_path: Path) -> None:
    slept, other = RunStore(tmp_path, "run"), RunStore(tmp_path, "run")
    with slept.opened() as late:
        late.event("mine")
        slept.lock_path.unlink()  # as who waited for its heartbeat in vain does
        with other.opened() as journal:
            journal.event("theirs")
            with pytest.raises(LockedError, match="taken over by another process") as caught:
                late.event("late")
            assert caught.value.exit_code == 4
            with pytest.raises(LockedError):
                late.append(_record(slept, {}))
            with pytest.raises(LockedError):
                slept.finish_step("indicators", _record(slept, {}))
            journal.event("theirs again")
            other.finish_step("costs", _record(other, {}))
    assert [e.kind for e in read_journal(slept.journal_path).entries] == [
        "mine", "theirs", "theirs again",
    ]  # fmt: skip
    assert not (slept.step_dir("indicators") / RECORD).exists()
    slept.before_write()  # nobody holds it now


def test_without_the_fence_the_journal_of_two_writers_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: both number their lines from the same one."""
    monkeypatch.setattr("orchestrator.lock.RunLock.check", lambda self: None)
    slept, other = RunStore(tmp_path, "run"), RunStore(tmp_path, "run")
    with slept.opened() as late:
        slept.lock_path.unlink()
        with other.opened() as journal:
            journal.event("theirs")
            late.event("late")
    with pytest.raises(StoreError, match="damaged at line 3"):
        read_journal(slept.journal_path)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_atomically(path, "old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert sweep_temporaries(tmp_path) == 0


def test_the_table_has_a_row_for_every_record_and_a_column_for_every_metric(
    finished: RunStore,
) -> None:
    import pyarrow.parquet as pq

    infeasible = RunRecord(
        run="run", step="solve/c1", key="k2", phase="solve", method="limpq",
        state=State.INFEASIBLE, alpha=2.0, limits={"bitops": "1G"}, message="smallest is 2G",
        metrics={"solve/wall_s": 0.1},
    )  # fmt: skip
    write_table([_record(finished, {}), infeasible], finished.table_path)
    table = pq.read_table(finished.table_path)
    assert table.schema.metadata[b"schema"] == b"runs/1"
    rows = table.to_pylist()
    assert [row["state"] for row in rows] == ["DONE", "INFEASIBLE"]
    assert rows[0]["search/images"] == 12.0
    assert rows[0]["spent/wall_s"] == 1.5
    assert rows[1]["search/images"] is None
    assert json.loads(rows[1]["limits_json"]) == {"bitops": "1G"}


def test_a_record_survives_json_and_unknown_ones_are_refused(finished: RunStore) -> None:
    record = _record(finished, {"a": "b"})
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    good = record.to_json()
    for bad in (
        {**good, "schema": "record/2"}, {**good, "extra": 1}, {**good, "state": "MAYBE"},
        {k: v for k, v in good.items() if k != "key"}, {},
    ):  # fmt: skip
        with pytest.raises(StoreError):
            RunRecord.from_json(bad)
