"""Taking over finished steps of other runs: only what is equal and whole, and never by harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.outcomes import training_key
from orchestrator.plan import Step
from orchestrator.policies import Candidate
from orchestrator.records import RunRecord, State
from orchestrator.reuse import take_over, take_over_files
from orchestrator.store import RunStore

KEY = "k" * 24


def _donor(folder: Path, name: str = "first") -> RunStore:
    store = RunStore(folder, name)
    step = store.step_dir("indicators")
    (step / "more").mkdir(parents=True)
    (step / "importance.parquet").write_bytes(b"learned")
    (step / "more" / "a.json").write_bytes(b"{}")
    record = RunRecord(
        run=name, step="indicators", key=KEY, phase="indicators", method="limpq",
        state=State.DONE, metrics={"search/device_s": 3.0},
        outputs={"importance": "steps/indicators/importance.parquet",
                 "more": "steps/indicators/more"},
    )  # fmt: skip
    store.finish_step("indicators", record)
    return store


def test_an_equal_key_is_taken_over_whole(tmp_path: Path) -> None:
    donor, store = _donor(tmp_path), RunStore(tmp_path, "second")
    assert take_over(store, (RunStore(tmp_path, "nobody"), donor), "indicators", KEY) == "first"
    found = store.finished("indicators", KEY).record
    assert found is not None
    assert (found.run, found.facts["reused_from"]) == ("second", "first")
    assert found.metrics == {"search/device_s": 3.0}
    path = store.step_dir("indicators")
    assert (path / "more" / "a.json").read_bytes() == b"{}"
    assert (path / "key").read_text() == KEY  # or the step would be emptied when it begins
    assert not list(store.root.rglob(".tmp-*"))
    assert (path / "importance.parquet").stat().st_nlink == 2


def test_what_one_run_replaces_the_other_keeps(tmp_path: Path) -> None:
    from solvers.atomic import write_atomically

    donor, store = _donor(tmp_path), RunStore(tmp_path, "second")
    take_over(store, (donor,), "indicators", KEY)
    write_atomically(store.step_dir("indicators") / "importance.parquet", b"another")
    assert donor.finished("indicators", KEY).record is not None
    assert store.finished("indicators", KEY).damaged


def test_files_are_copied_where_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    donor, store = _donor(tmp_path), RunStore(tmp_path / "elsewhere", "second")
    monkeypatch.setattr(os, "link", refuse)
    assert take_over(store, (donor,), "indicators", KEY) == "first"
    assert (store.step_dir("indicators") / "importance.parquet").stat().st_nlink == 1
    assert store.finished("indicators", KEY).record is not None


@pytest.mark.parametrize("fault", ["key", "content", "missing", "record"])
def test_what_differs_or_is_damaged_is_not_taken(tmp_path: Path, fault: str) -> None:
    donor, store = _donor(tmp_path), RunStore(tmp_path, "second")
    path = donor.step_dir("indicators") / "importance.parquet"
    if fault == "content":
        path.write_bytes(b"learneD")
    elif fault == "missing":
        path.unlink()
    elif fault == "record":
        (donor.step_dir("indicators") / "record.json").write_text("{")
    key = "other" if fault == "key" else KEY
    assert take_over(store, (donor,), "indicators", key) == ""
    assert not (store.step_dir("indicators") / "record.json").exists()


def test_files_alone_leave_the_record_to_the_caller(tmp_path: Path) -> None:
    donor, store = _donor(tmp_path), RunStore(tmp_path, "second")
    assert take_over_files(store, (donor,), "indicators", KEY) == "first"
    assert store.finished("indicators", KEY).record is None
    assert (store.step_dir("indicators") / "importance.parquet").read_bytes() == b"learned"


def test_taking_over_again_changes_nothing(tmp_path: Path) -> None:
    donor, store = _donor(tmp_path), RunStore(tmp_path, "second")
    for _ in range(2):
        assert take_over(store, (donor,), "indicators", KEY) == "first"
    assert not list(store.root.rglob(".tmp-*"))


def test_a_training_is_keyed_by_its_bits_and_its_start_alone(tmp_path: Path) -> None:
    from unittest.mock import Mock

    step = Step(name="train", action="weight_training", key="t", needs=(), about="")
    policy, limits = Mock(policy_id="bits"), Mock(index=0)

    def row(method: str, **more: object) -> Candidate:
        values = {"method": method, "alpha": None, "limit_set": limits, "policy": policy}
        return Candidate(**{**values, **more})  # type: ignore[arg-type]

    assert training_key(step, row("limpq")) == training_key(step, row("uniform", alpha=2.0))
    first = row("metamix", start={"weights": "w"}, start_key="one")
    other = row("metamix", start={"weights": "w"}, start_key="two")
    more = row("metamix", start={"weights": "w", "act_steps": "a"}, start_key="one")
    keys = {training_key(step, each) for each in (row("limpq"), first, other, more)}
    assert len(keys) == 4
