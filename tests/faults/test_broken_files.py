"""Rows 6, 7, 20, 21 and 24: files that do not fit, are damaged, would run code or lead out."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from forked import in_child
from small_tables import importance_of, survived

from orchestrator.cli import run_command
from orchestrator.errors import ResourceError, StoreError
from orchestrator.journal import Journal, read_journal
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from solvers.errors import SolversError
from solvers.policy import make_policy
from solvers.storage import (
    load_costs,
    load_importance,
    load_policy,
    load_results,
    save_importance,
    save_policy,
)
from solvers.tables import CostTable, LayerBits
from trainers.checkpoint import Checkpoints, load_tensors
from trainers.errors import CheckpointError, TrainersError
from trainers.results import load_result

if TYPE_CHECKING:
    from fault_ledger import Ledger


# --- 6: no room ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 200, 1_000, 5_000, 20_000, 60_000, 100_000, 300_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, ledger: Ledger, limit: int
) -> None:
    first, second = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    Checkpoints(tmp_path, 0).save(1, first, {"b": torch.zeros(2)})

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            Checkpoints(tmp_path, 0).save(2, second, {"b": torch.ones(2)})
        except OSError as error:
            os._exit(9 if error.errno == 27 else 8)

    def check() -> None:
        assert in_child(write) == 9
        found = Checkpoints(tmp_path, 0).newest()
        assert found is not None
        assert found[0] == 1
        assert torch.equal(found[1]["w"], first["w"])
        assert not list(tmp_path.rglob(".tmp-*.pt"))
        Checkpoints(tmp_path, 0).save(3, second, {"b": torch.ones(2)})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]

    survived(ledger, 6, "checkpoint larger than the room left (RLIMIT_FSIZE)", check)


@pytest.mark.parametrize("room", [0, 1, 50, 200])
def test_a_journal_line_that_does_not_fit_is_taken_back(
    tmp_path: Path, ledger: Ledger, room: int
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.event("one")
    size = path.stat().st_size

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
        with Journal(path) as journal:
            try:
                journal.event("two", {"text": "x" * 400})
            except ResourceError:
                os._exit(9)

    def check() -> None:
        assert in_child(write) == 9
        assert path.stat().st_size == size
        with Journal(path) as journal:
            journal.event("three")
        assert [e.kind for e in read_journal(path).entries] == ["one", "three"]

    survived(ledger, 6, "journal line larger than the room left (RLIMIT_FSIZE)", check)


# --- 7: damage -----------------------------------------------------------------------------------

DAMAGE = [("flip", part) for part in range(8)] + [("cut", part) for part in range(8)] + [
    ("zero", 0), ("missing", 0), ("no manifest", 0), ("manifest", 0), ("empty", 0),
]  # fmt: skip


@pytest.mark.parametrize(("how", "part"), DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, how: str, part: int
) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path, 0).save(step, {"w": torch.full((500,), float(step))}, {})
    newest = tmp_path / "step-000000002"
    path = newest / ("manifest.json" if "manifest" in how else "shared.pt")
    content = path.read_bytes()
    at = len(content) * part // 8
    if how in ("missing", "no manifest"):
        path.unlink()
    elif how == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    else:
        made = {"cut": content[:at], "zero": bytes(len(content)), "manifest": b"{}", "empty": b""}
        path.write_bytes(made[how])

    def check() -> None:
        found = Checkpoints(tmp_path, 0).newest()
        assert found is not None
        assert found[0] == 1
        assert "damaged" in caplog.text
        for each in tmp_path.rglob("shared.pt"):
            each.write_bytes(b"x")
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoints(tmp_path, 0).newest()

    survived(ledger, 7, f"checkpoint: {how}", check)


def test_without_its_manifest_check_a_flipped_bit_would_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison with the manifest is what notices."""
    import trainers.checkpoint

    Checkpoints(tmp_path, 0).save(1, {"w": torch.zeros(500)}, {})
    path = tmp_path / "step-000000001" / "shared.pt"
    content = bytearray(path.read_bytes())
    at = content.index(bytes(400)) + 100
    content[at] ^= 4
    path.write_bytes(bytes(content))
    monkeypatch.setattr(trainers.checkpoint, "damage", lambda folder: None)
    try:
        found = Checkpoints(tmp_path, 0).newest()
    except CheckpointError:
        return  # this build of torch checks sums itself; then the manifest is the second guard
    assert found is not None
    assert not torch.equal(found[1]["w"], torch.zeros(500))


# --- 20: files that would run code ----------------------------------------------------------------


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


READERS: dict[str, Callable[[Path], object]] = {
    "load_tensors": load_tensors,
    "load_policy": load_policy,
    "load_costs": load_costs,
    "load_importance": load_importance,
    "load_results": load_results,
    "load_result": load_result,
    "read_journal": read_journal,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_no_reader_runs_what_is_in_a_file(
    tmp_path: Path, ledger: Ledger, reader: str, form: str
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "file"
    if form == "torch":
        torch.save({"model": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"schema": Bomb(mark)}))

    def check() -> None:
        with pytest.raises((TrainersError, SolversError, StoreError)):
            READERS[reader](path)
        assert not mark.exists()

    survived(ledger, 20, f"a {form} file that touches another", check)


def test_the_file_would_have_run_its_code(tmp_path: Path) -> None:
    """Negative control: read with pickle, the file does what it says."""
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    pickle.loads(path.read_bytes())
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch mark]",
                                 "!!python/name:os.system"])  # fmt: skip
def test_yaml_makes_no_objects(
    tmp_path: Path, ledger: Ledger, capfd: pytest.CaptureFixture[str], tag: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"schema: experiment/1\nname: {tag}\n")

    def check() -> None:
        assert run_command(["plan", str(path)]) == 2
        assert not Path("mark").exists()
        assert "Traceback" not in capfd.readouterr().err

    survived(ledger, 20, "YAML that makes Python objects", check)


# --- 21: paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "a/../../x", "a\x00b", "%2e%2e/x", "x" * 300]
)
def test_no_name_leads_out_of_the_run(tmp_path: Path, ledger: Ledger, name: str) -> None:
    def check() -> None:
        store = RunStore(tmp_path, "run")
        with pytest.raises(StoreError):
            RunStore(tmp_path, name)
        with pytest.raises(StoreError):
            store.step_dir(name)

    survived(ledger, 21, "run or step name", check)


@pytest.mark.parametrize("how", ["link", "outside", "folder link"])
def test_no_output_leads_out_of_the_run(tmp_path: Path, ledger: Ledger, how: str) -> None:
    store = RunStore(tmp_path / "runs", "run")
    secret = tmp_path / "secret"
    secret.write_text("s")
    folder = store.step_dir("s")
    folder.mkdir(parents=True)
    output = "steps/s/out"
    if how == "link":
        (folder / "out").symlink_to(secret)
    elif how == "folder link":
        (folder / "out").symlink_to(tmp_path)
    else:
        output = "../../secret"
    record = RunRecord(run="run", step="s", key="k", phase="train", method="m", state=State.DONE,
                       outputs={"o": output})  # fmt: skip

    def check() -> None:
        with pytest.raises(StoreError):
            store.finish_step("s", record)

    survived(ledger, 21, "output that is a link or outside", check)


# --- 24: versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["journal/0", "journal/2", "ledger/1", None])
def test_a_journal_of_another_version_is_refused_unchanged(
    tmp_path: Path, ledger: Ledger, schema: str | None
) -> None:
    from orchestrator.journal import _line

    path = tmp_path / "journal.jsonl"
    path.write_bytes(_line(0, "header", {"schema": schema, "run_id": "x"}))
    before = path.read_bytes()

    def check() -> None:
        with pytest.raises(StoreError, match="schema"):
            Journal(path)
        assert path.read_bytes() == before

    survived(ledger, 24, "journal of another version", check)


@pytest.mark.parametrize("kind", ["policy", "importance"])
def test_a_table_or_policy_of_another_version_is_refused(
    tmp_path: Path, costs: CostTable, ledger: Ledger, kind: str
) -> None:
    path = tmp_path / "file"
    if kind == "policy":
        bits = LayerBits(weight_bits=3, act_bits=3)
        save_policy(path, make_policy(costs, {s.name: s.pinned or bits for s in costs}, "uniform"))
        body = json.loads(path.read_text())
        body["schema"] = body["schema"].rpartition("/")[0] + "/99"
        path.write_text(json.dumps(body))
    else:
        save_importance(path, importance_of(costs))
        content = path.read_bytes()
        assert b"importance/" in content
        path.write_bytes(content.replace(b"importance/1", b"importance/9"))

    def check() -> None:
        with pytest.raises(SolversError):
            (load_policy if kind == "policy" else load_importance)(path)

    survived(ledger, 24, f"{kind} of another version", check)
