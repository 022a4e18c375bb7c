"""Starting a study, again or a second time: what may have changed since, and who may write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drift import refuse_drift
from orchestrator.errors import DriftError, LockedError
from orchestrator.lock import RunLock
from orchestrator.study import story, trials
from orchestrator.study.config import expand, load_study
from orchestrator.study.store import StudyStore, keep_study, read_study
from orchestrator.yaml_source import dump_yaml

BASE: dict[str, Any] = {
    "schema": "experiment/1", "name": "base", "method": "limpq",
    "model": {"name": "cifar_resnet14", "num_classes": 10}, "data": {"name": "digits"},
    "train": {"epochs": 2, "warmup_epochs": 0},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "schema": "study/1", "name": "s", "base": "base.yaml", "methods": ["limpq", "uniform"],
    "budgets": [{"bitops_level": "3x3"}],
}  # fmt: skip


def _kept(path: Path) -> StudyStore:
    study = load_study(path)
    return keep_study(study, expand(study))


def _with_base(folder: Path, seeds: list[int], **changes: Any) -> Path:
    (folder / "base.yaml").write_text(dump_yaml({**BASE, **changes}))
    path = folder / "s.yaml"
    path.write_text(dump_yaml({**STUDY, "seeds": seeds, "runs_dir": str(folder / "runs")}))
    return path


def _begun(path: Path) -> StudyStore:
    """A study whose runs have been started, as their drivers leave them."""
    store = _kept(path)
    for seed, (_, loaded) in expand(load_study(path)).items():
        with store.store(seed).opened():
            refuse_drift(store.store(seed), loaded.config)
    return store


BATCHES: dict[str, Any] = {"pretrain": {"batch_size": 32}}


def test_a_study_refuses_another_base_once_a_run_was_made_from_the_first(tmp_path: Path) -> None:
    store = _begun(_with_base(tmp_path, [0, 3]))
    plan, seed_0 = (store.root / "study.json"), store.config_path(0)
    before = plan.read_text(), seed_0.read_text()
    with pytest.raises(DriftError, match=r"pretrain\.batch_size: 128 -> 32") as caught:
        _kept(_with_base(tmp_path, [0, 3, 7], **BATCHES))
    assert "base.yaml" in str(caught.value)
    assert (plan.read_text(), seed_0.read_text()) == before
    # Where and how it runs may change, and seeds may come.
    more = _kept(_with_base(tmp_path, [7], cluster={"num_workers": 2}, tracking={"enabled": False}))
    assert sorted(more.runs) == [0, 3, 7]


def test_a_base_may_be_corrected_before_there_is_a_run(tmp_path: Path) -> None:
    _kept(_with_base(tmp_path, [0]))
    _begun(_with_base(tmp_path, [0], **BATCHES))
    with pytest.raises(DriftError, match=r"pretrain\.batch_size: 32 -> 128"):
        _kept(_with_base(tmp_path, [0]))


def test_a_study_of_before_its_base_was_kept_is_held_against_its_runs(tmp_path: Path) -> None:
    store = _begun(_with_base(tmp_path, [0]))
    plan = store.root / "study.json"
    body = json.loads(plan.read_text())
    del body["shared"]
    plan.write_text(json.dumps(body))
    assert read_study(tmp_path / "runs", "s") == replace(store, shared=None)
    with pytest.raises(DriftError, match=r"pretrain\.batch_size: 128 -> 32"):
        _kept(_with_base(tmp_path, [0, 3], **BATCHES))
    assert _kept(_with_base(tmp_path, [0, 3])).shared is not None


def test_a_second_start_that_is_refused_changes_no_file(tmp_path: Path) -> None:
    store = _kept(_with_base(tmp_path, [0, 3]))
    files = [store.root / "study.json", store.config_path(0)]
    before = [path.read_text() for path in files]
    study = load_study(_with_base(tmp_path, [0, 3], cluster={"num_workers": 2}))
    order = story.StudyOrder(study=study, experiments=expand(study), quiet=True)
    with RunLock(store.root / "lock"), pytest.raises(LockedError):
        story.run_whole_study(order)
    assert [path.read_text() for path in files] == before


@pytest.mark.parametrize("insecure", [False, True])
def test_an_open_cluster_is_joined_where_the_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    asked = []

    @contextmanager
    def joined(address: str | None, *, insecure: bool = False) -> Iterator[None]:
        asked.append((address, insecure))
        raise ConnectionError
        yield

    monkeypatch.setattr(trials, "ray_cluster", joined)
    study = load_study(_with_base(tmp_path, [0], cluster={"insecure": insecure}))
    order = story.StudyOrder(
        study=study, experiments=expand(study), address="head:6379", quiet=True
    )
    with pytest.raises(ConnectionError):
        story.run_whole_study(order)
    assert asked == [("head:6379", insecure)]
