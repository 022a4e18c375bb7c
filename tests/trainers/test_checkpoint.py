"""Checkpoints: what is written comes back, and what is damaged is noticed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil

import pytest
import torch
from torch import nn

from trainers.checkpoint import (
    KEEP,
    Checkpoints,
    damage,
    load_tensors,
    save_tensors,
    state_hash,
    write_atomically,
)
from trainers.errors import CheckpointError


def shared(step):
    return {"model": {"w": torch.full((50,), float(step))}, "cost": {"images": step}}


def save(folder, *steps):
    checkpoints = Checkpoints(folder, rank=0)
    for step in steps:
        checkpoints.save(step, shared(step), {"buffers": {"b": torch.tensor([float(-step)])}})
    return checkpoints


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "shared cut": lambda folder: cut(folder / "shared.pt"),
    "shared empty": lambda folder: (folder / "shared.pt").write_bytes(b""),
    "shared missing": lambda folder: (folder / "shared.pt").unlink(),
    "own missing": lambda folder: (folder / "rank0.pt").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: cut(folder / "manifest.json"),
    "manifest of another shape": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest without files": lambda folder: (folder / "manifest.json").write_text('{"files": []}'),
    "manifest with no file": lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
    "folder empty": lambda folder: [p.unlink() for p in folder.iterdir()],
}


def test_the_newest_comes_back(tmp_path):
    found = save(tmp_path, 3, 12).newest()
    assert found is not None
    step, state, own = found
    assert step == 12
    assert state_hash(state) == state_hash(shared(12))
    assert own["buffers"]["b"].item() == -12.0


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "never", rank=0).newest() is None
    assert Checkpoints(tmp_path, rank=0).newest() is None


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_one_is_skipped_for_the_one_before(tmp_path, caplog, what):
    checkpoints = save(tmp_path, 3, 12)
    assert damage(tmp_path / "step-000000012") is None
    DAMAGES[what](tmp_path / "step-000000012")
    with caplog.at_level(logging.WARNING):
        step, state, _ = checkpoints.newest()
    assert (step, state["cost"]["images"]) == (3, 3)
    assert "step-000000012 is damaged" in caplog.text


@pytest.mark.parametrize("file", ["shared.pt", "rank0.pt"])
def test_every_flipped_bit_is_noticed(tmp_path, file):
    save(tmp_path, 1)
    folder = tmp_path / "step-000000001"
    size = (folder / file).stat().st_size
    for at in range(0, size, max(1, size // 40)):
        flip(folder / file, at, bit=1 << (at % 8))
        assert damage(folder) is not None, f"byte {at} of {size}"
        flip(folder / file, at, bit=1 << (at % 8))
    assert damage(folder) is None


def test_nothing_is_reported_when_nothing_is_damaged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        step, _, _ = save(tmp_path, 3, 12).newest()
    assert step == 12
    assert not caplog.records


@pytest.mark.parametrize("what", DAMAGES)
def test_only_damaged_ones_are_an_error_and_no_silent_start(tmp_path, what):
    checkpoints = save(tmp_path, 3, 12)
    for folder in tmp_path.glob("step-*"):
        DAMAGES[what](folder)
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        checkpoints.newest()


def test_a_write_that_was_killed_is_not_read_and_is_swept(tmp_path):
    checkpoints = save(tmp_path, 3)
    shutil.copytree(tmp_path / "step-000000003", tmp_path / ".tmp-step-000000007")
    assert checkpoints.newest()[0] == 3
    save(tmp_path, 9)
    assert not list(tmp_path.glob(".tmp-*"))


def test_old_ones_go_and_two_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert KEEP == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]


def test_a_damaged_later_one_does_not_count_as_kept(tmp_path):
    save(tmp_path, 3, 12)
    cut(tmp_path / "step-000000012" / "shared.pt")
    save(tmp_path, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000005"]


def test_the_same_step_again_replaces_the_damaged_one(tmp_path):
    save(tmp_path, 3, 12)
    cut(tmp_path / "step-000000012" / "shared.pt")
    assert save(tmp_path, 12).newest()[0] == 12


def test_a_rank_reads_its_own_and_a_newcomer_rank_zero_s(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "step-000000001"
    save_tensors(folder / "rank1.pt", {"buffers": {"b": torch.tensor([77.0])}})
    content = (folder / "rank1.pt").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["rank1.pt"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Checkpoints(tmp_path, rank=1).newest()[2]["buffers"]["b"].item() == 77.0
    assert Checkpoints(tmp_path, rank=2).newest()[2]["buffers"]["b"].item() == -1.0


def test_a_file_that_holds_code_is_refused(tmp_path):
    class Boom:
        def __reduce__(self):
            return os.system, ("exit 1",)

    torch.save({"w": Boom()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_tensors(tmp_path / "bad.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-3])
    with pytest.raises(CheckpointError, match=r"pickle\.pt"):
        load_tensors(tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match=r"gone\.pt"):
        load_tensors(tmp_path / "gone.pt")


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.bin"
    write_atomically(path, b"old")

    def broken(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"newer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_clear_leaves_nothing(tmp_path):
    checkpoints = save(tmp_path / "c", 1)
    checkpoints.clear()
    assert not (tmp_path / "c").exists()


def test_state_hash_sees_one_bit_type_shape_and_name():
    torch.manual_seed(0)
    state = nn.Linear(3, 2).state_dict()
    before = state_hash(state)
    assert before == state_hash({k: v.clone() for k, v in reversed(state.items())})
    state["weight"][0, 0] = torch.nextafter(state["weight"][0, 0], torch.tensor(9.0))
    assert before != state_hash(state)
    zeros = torch.zeros(6)
    hashes = {
        state_hash({"a": zeros}),
        state_hash({"b": zeros}),
        state_hash({"a": zeros.view(2, 3)}),
        state_hash({"a": zeros.view(3, 2)}),
        state_hash({"a": zeros.int()}),
        state_hash({"a": -zeros}),
        state_hash({"a": zeros, "step": 1}),
        state_hash({"a": zeros, "step": 2}),
        state_hash({"a": [zeros, torch.empty(0, dtype=torch.bool)]}),
    }
    assert len(hashes) == 9
