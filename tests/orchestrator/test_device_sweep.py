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
from orchestrator import device_sweep
from orchestrator.cli import run_command
from orchestrator.config import load_config
from orchestrator.config_schema import ImportanceConfig
from orchestrator.device_sweep import (
    _key,
    device_questions,
    refuse_unanswerable,
    saved_tables,
    sweep_devices,
)
from orchestrator.errors import ExitCode, StoreError
from orchestrator.journal import read_journal
from orchestrator.ledger import Ledger
from solvers.devices import Device
from solvers.errors import LimitError, SolversError, TableError
from solvers.latency import LatencyTable
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


def _never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster may be asked for."""

    @contextmanager
    def joined(address: str | None, *, insecure: bool = False) -> Iterator[None]:
        raise AssertionError("a cluster was started")
        yield

    monkeypatch.setattr(clusters, "ray_cluster", joined)


HALF = LatencyTable(name="half.csv", rows=(("a", 2, 2, 1),))


@pytest.mark.parametrize(
    ("limit", "alpha", "error", "told"),
    [
        (parse_limit("latency_us=5"), 1.0, LimitError, "no latency table"),
        (parse_limit("latency_us=5", HALF), 1.0, TableError, "half.csv.* has no latency_us"),
        (parse_limit("mean_weight_bits=3@head.*"), 1.0, LimitError, "matches no layer"),
        (parse_limit("peak_activation_bytes=1MiB"), 1.0, SolversError, "no tensor"),
        (parse_limit("bitops=2M"), float("nan"), TableError, "alpha is nan"),
        (parse_limit("bitops=2M"), float("inf"), TableError, "alpha is inf"),
    ],
)
def test_what_no_task_could_answer_is_refused_before_a_cluster_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: Any, alpha: float,
    error: type[Exception], told: str,
) -> None:  # fmt: skip
    _never(monkeypatch)
    session = _session(tmp_path, "raw")
    session.ledger, session.say = Ledger(), lambda text: None
    devices = [
        Device(name="fine", limits=(parse_limit("bitops=2M"),)),
        Device(name="phone", limits=(limit,)),
    ]
    asked = [replace(q, alpha=1.0 if q.label == "fine" else q.alpha)
             for q in device_questions(devices, [alpha])]  # fmt: skip
    with pytest.raises(error, match=f"device 'phone', alpha .*{told}"):
        sweep_devices(session, asked, None)


def test_limits_of_many_heights_are_laid_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []

    def build(*asked: Any, **_: Any) -> None:
        built.append(asked[2])

    _, tables = saved_tables(_session(tmp_path, "raw"))
    monkeypatch.setattr(device_sweep, "build_problem", build)
    devices = [Device(name=f"d{n}", limits=(parse_limit(f"bitops={n}M"),)) for n in range(1, 50)]
    devices += [Device(name="last", limits=(parse_limit("weight_bytes=1KiB"),))]
    refuse_unanswerable(device_questions(devices, [1.0, 2.0]), tables)
    assert built == [devices[0].limits, devices[-1].limits]


@pytest.mark.parametrize("alpha", ["nan", "inf", "-1"])
def test_the_command_refuses_an_alpha_that_is_no_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alpha: str
) -> None:
    write_run(tmp_path, "r")
    ask = ["sweep", "r", "--runs-dir", str(tmp_path), "--limit", "bitops=2M", "--alpha", alpha]
    assert run_command(ask) == ExitCode.BAD_INPUT
    assert "finite number, 0 or more" in capsys.readouterr().err
