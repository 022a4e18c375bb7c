from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import LockedError, ResourceError, StoreError
from orchestrator.journal import Journal, read_journal
from orchestrator.records import RunRecord, State


def _record(key: str, state: State = State.DONE, attempt: int = 1) -> RunRecord:
    return RunRecord(
        run="r", step=f"s-{key}", key=key, phase="train", method="limpq", state=state,
        attempt=attempt, metrics={"eval/top1": 97.5}, limits={"bitops": "1G"},
    )  # fmt: skip


def _written(path: Path, count: int = 3) -> None:
    with Journal(path) as journal:
        for index in range(count):
            journal.event("step_started", {"step": f"s{index}"})
            assert journal.append(_record(f"k{index}"))


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path)
    view = read_journal(path)
    assert [e.seq for e in view.entries] == [1, 2, 3, 4, 5, 6]
    assert view.records() == tuple(_record(f"k{i}") for i in range(3))
    with Journal(path) as journal:
        assert journal.view.entries == view.entries
        assert journal.notices == ()


def test_a_final_result_is_written_once_and_each_failure_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        assert journal.append(_record("k", State.FAILED, attempt=1))
        assert not journal.append(_record("k", State.FAILED, attempt=1))
        assert journal.append(_record("k", State.FAILED, attempt=2))
        assert journal.append(_record("k"))
        assert not journal.append(_record("k", State.DIVERGED))
        assert journal.append_all([_record("a"), _record("a"), _record("k")]) == 1
    with Journal(path) as journal:
        assert not journal.append(_record("k"))
        assert "k" in journal
        assert len(journal.records()) == 4


def test_a_tail_torn_at_any_byte_is_cut_and_everything_before_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # thousands of them; not what is tested
    path = tmp_path / "journal.jsonl"
    _written(path, 2)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        torn = size - max([0, *(end for end in ends if end <= size)])
        view = read_journal(path) if size else None
        if view is not None:
            assert len(view.entries) == max(kept - 1, 0)
            assert view.torn_bytes == torn
        with Journal(path) as journal:
            assert bool(journal.notices) == (torn > 0)
            assert journal.append(_record("later"))
        again = read_journal(path)
        assert again.torn_bytes == 0
        assert again.records()[-1] == _record("later")
        assert [e.seq for e in again.entries] == list(range(1, len(again.entries) + 1))


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_last_line_of_zeros_left_by_a_power_loss_is_cut(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, 1)
    path.write_bytes(path.read_bytes() + b"\0" * 100 + end)
    with Journal(path) as journal:
        assert f"{100 + len(end)} bytes" in journal.notices[0]
        assert len(journal.records()) == 1


def test_a_damaged_last_line_with_its_newline_was_acknowledged_and_is_never_cut(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, 2)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for place in range(start, len(whole) - 1):
        damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        path.write_bytes(damaged)
        for open_it in (read_journal, Journal):
            with pytest.raises(StoreError, match="damaged at line 5"):
                open_it(path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("bad", [b"x\n", b"\n", b"\0\0x\n", b"{}\n", b'{"seq":1}\n'])
@pytest.mark.parametrize("count", [0, 1])
def test_no_line_with_a_newline_is_taken_for_a_torn_one(
    tmp_path: Path, bad: bytes, count: int
) -> None:
    path = tmp_path / "journal.jsonl"
    if count:
        _written(path, count)
    damaged = (path.read_bytes() if count else b"") + bad
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=f"damaged at line {1 + 3 * count}"):
        Journal(path)
    assert path.read_bytes() == damaged


def _lost() -> None:
    raise LockedError("this run was taken over by another process")


def test_who_lost_the_lock_neither_cuts_nor_appends(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, 1)
    path.write_bytes(path.read_bytes() + b"the other one is writing")
    before = path.read_bytes()
    with pytest.raises(LockedError):
        Journal(path, before_write=_lost)
    assert path.read_bytes() == before
    with pytest.raises(LockedError):
        Journal(tmp_path / "new", before_write=_lost)
    assert not (tmp_path / "new").exists()


def test_the_lock_is_asked_before_every_write_and_what_failed_is_not_remembered(
    tmp_path: Path,
) -> None:
    path, lost = tmp_path / "journal.jsonl", [False]
    with Journal(path, before_write=lambda: _lost() if lost[0] else None) as journal:
        journal.event("mine")
        before = path.read_bytes()
        lost[0] = True
        for write in (lambda: journal.event("late"), lambda: journal.append(_record("k"))):
            with pytest.raises(LockedError):
                write()
        assert path.read_bytes() == before
        assert "k" not in journal
        assert [e.kind for e in journal.view.entries] == ["mine"]


def test_a_flipped_byte_before_the_end_is_refused_and_the_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path)
    whole = path.read_bytes()
    place = whole.index(b"97.5")
    damaged = whole[:place] + b"99.5" + whole[place + 4 :]
    path.write_bytes(damaged)
    for open_it in (read_journal, Journal):
        with pytest.raises(StoreError, match="damaged at line 3"):
            open_it(path)
    assert path.read_bytes() == damaged


def test_a_line_taken_out_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(StoreError, match="damaged at line 3"):
        read_journal(path)


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    from orchestrator import journal as module

    path = tmp_path / "journal.jsonl"
    path.write_bytes(module._line(0, "header", {"schema": "journal/2"}))
    with pytest.raises(StoreError, match="journal/2"):
        Journal(path)


def test_a_missing_journal_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_journal(tmp_path / "none.jsonl")


def test_a_metric_that_is_not_finite_is_named_and_not_written(tmp_path: Path) -> None:
    record = RunRecord(
        run="r", step="s", key="k", phase="train", method="m", state=State.DIVERGED,
        metrics={"eval/top1": float("nan"), "eval/loss": float("inf"), "search/images": 3.0},
    )  # fmt: skip
    assert record.metrics == {"search/images": 3.0}
    assert record.facts["not_finite"] == ["eval/loss", "eval/top1"]
    with Journal(tmp_path / "j") as journal:
        journal.append(record)
    assert read_journal(tmp_path / "j").records() == (record,)


_KILLED = """
import os, sys
from pathlib import Path
from orchestrator.journal import Journal
from orchestrator.records import RunRecord, State
with Journal(Path(sys.argv[1])) as journal:
    for index in range(10**6):
        journal.append(RunRecord(run="r", step="s", key=f"k{index}", phase="p", method="m",
                                 state=State.DONE))
        os.write(1, b"%d\\n" % index)
"""


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    root = Path(__file__).resolve().parents[2]
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE, cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20 + 7 * round_)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        with Journal(path) as journal:
            keys = [record.key for record in journal.records()]
        assert len(keys) == len(set(keys))
        assert {f"k{index}" for index in acknowledged} <= set(keys)


_FULL = """
import resource, signal, sys
from pathlib import Path
from orchestrator.errors import ResourceError
from orchestrator.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
journal = Journal(path)
journal.event("first")
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    journal.event("second", {"text": "x" * 200})
except ResourceError as error:
    assert path.stat().st_size == size, "half a line stayed"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error.exit_code.value, journal.event("third"))
"""


def test_a_full_disk_leaves_no_half_line_and_says_what_to_do(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    path = tmp_path / "journal.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["6", "2"], done.stderr
    assert ResourceError.exit_code == 6
    assert [e.kind for e in read_journal(path).entries] == ["first", "third"]


def test_a_write_that_failed_late_takes_nothing_back_of_who_took_the_run_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lost = tmp_path / "journal.jsonl", [False]
    with Journal(path, before_write=lambda: _lost() if lost[0] else None) as journal:

        def away(handle: int) -> None:
            lost[0] = True
            with path.open("ab") as stream:
                stream.write(b"theirs\n")
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", away)
        with pytest.raises(LockedError):
            journal.event("mine")
        assert path.read_bytes().endswith(b"theirs\n")
        monkeypatch.undo()


def test_lines_are_json_a_person_can_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path, 1)
    header, event, record = (json.loads(line) for line in path.read_text().splitlines())
    assert header["data"]["schema"] == "journal/1"
    assert read_journal(path).run_id == header["data"]["run_id"]
    assert event["kind"] == "step_started"
    assert record["data"]["schema"] == "record/1"
