"""Which indicators does a sweep over devices solve with, and what names it?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster as clusters
from orchestrator.config import load_config
from orchestrator.config_schema import ImportanceConfig
from orchestrator.device_sweep import _key, device_questions, saved_tables, sweep_devices
from orchestrator.errors import StoreError
from orchestrator.journal import read_journal
from orchestrator.ledger import Ledger
from solvers.devices import Device
from solvers.limits import parse_limit
from solvers.transforms import transform
from tests.orchestrator.run_folders import costs, table, write_run

TEXT = "schema: experiment/1\nname: r\nmodel: {name: net}\ndata: {name: d}\n"


def _session(folder: Path, way: Any) -> Any:
    """A finished run whose indicators are read in some way."""
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(TEXT)
    asked = load_config(folder / "r.yaml").config
    config = replace(asked, importance=ImportanceConfig(transform=way))
    store = write_run(folder, "r")
    journal = SimpleNamespace(view=read_journal(store.journal_path))
    return SimpleNamespace(config=config, store=store, journal=journal)


@pytest.mark.parametrize("way", ["raw", "relative"])
def test_devices_are_solved_with_what_the_run_itself_solves_with(tmp_path: Path, way: Any) -> None:
    _, tables = saved_tables(_session(tmp_path, way))
    expected = transform(table(), costs(), way)
    assert tables.importance["limpq"].values() == expected.values()


def test_what_decides_the_answers_names_the_sweep(tmp_path: Path) -> None:
    device = Device(name="a", limits=(parse_limit("bitops=2M"),))
    session = _session(tmp_path, "raw")
    source, _ = saved_tables(session)
    questions = device_questions([device], [1.0])
    other_way = SimpleNamespace(config=_session(tmp_path / "other", "relative").config)
    names = {
        _key(source, questions, session),
        _key(source, device_questions([device], [2.0]), session),
        _key(source, device_questions([replace(device, name="b")], [1.0]), session),
        _key(source, questions, other_way),
    }
    assert len(names) == 4
    assert _key(source, questions, session) in names


def test_a_run_without_indicators_is_refused(tmp_path: Path) -> None:
    session = _session(tmp_path, "raw")
    session.journal.view = SimpleNamespace(records=tuple, current_keys=dict)
    with pytest.raises(StoreError, match="no learned indicators"):
        saved_tables(session)


@pytest.mark.parametrize("insecure", [False, True])
def test_an_open_cluster_is_joined_where_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    asked = []

    @contextmanager
    def joined(address: str | None, *, insecure: bool = False) -> Iterator[None]:
        asked.append((address, insecure))
        raise ConnectionError
        yield

    monkeypatch.setattr(clusters, "ray_cluster", joined)
    session = _session(tmp_path, "raw")
    session.ledger, session.say = Ledger(), lambda text: None
    cluster = replace(session.config.cluster, insecure=insecure)
    session.config = replace(session.config, cluster=cluster)
    with pytest.raises(ConnectionError):
        sweep_devices(session, device_questions([], [1.0]), "head:6379")
    assert asked == [("head:6379", insecure)]
