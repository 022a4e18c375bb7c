"""However an attempt ends, the journal and MLflow say so, and what ended it is what is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import attempts, events, mirror_thread, pipeline
from orchestrator.attempts import attempt
from orchestrator.config import load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import DriftError, InterruptedRunError, ResourceError, TerminatedRunError
from orchestrator.journal import JournalView, read_journal
from orchestrator.mirror_thread import MirrorThread
from orchestrator.store import RunStore
from orchestrator.tracking import SyncOutcome
from tests.orchestrator.mlflow_contents import contents
from trainers.errors import DataError, InterruptedPhaseError

CONFIG = """schema: experiment/1
name: digits
runs_dir: 'RUNS'
model: {name: cifar_resnet8, num_classes: 10, options: {in_channels: 1, base_width: 4}}
data: {name: digits}
search: {limits: [{bitops_level: 4x4}]}
"""


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """An attempt makes what this process writes private."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow may take its time on a busy machine."""
    monkeypatch.setattr(attempts, "_EARLY_END_S", 300.0)
    monkeypatch.setattr(mirror_thread, "PATIENCE_S", 300.0)


def _config(folder: Path, more: str = "") -> ExperimentConfig:
    path = folder / "digits.yaml"
    path.write_text(CONFIG.replace("RUNS", str(folder)) + more)
    return load_config(path).config


def _ended(config: ExperimentConfig, error: BaseException, *, started: bool = True) -> RunStore:
    """A run of which one attempt ended with that error, and with no other."""
    store = RunStore(config.runs_dir, config.name)

    def work() -> None:
        with attempt(store, config) as session:
            if started:
                session.journal.event(events.RUN_STARTED, {"command": "mpq run x.yaml"})
            if isinstance(error, TerminatedRunError):
                session.asked_to_stop = signal.SIGTERM
            raise error

    with pytest.raises(type(error)) as caught:
        work()
    assert caught.value is error
    return store


def _parent(runs_dir: Path) -> dict[str, Any]:
    found = contents(f"sqlite:///{runs_dir}/mlflow.db", "digits")
    (parent,) = [each for each in found if each["tags"]["mpq.record"] == "run"]
    return parent


def _last(store: RunStore) -> tuple[str, Any]:
    entry = read_journal(store.journal_path).entries[-1]
    return entry.kind, entry.data.get("exit_code")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (InterruptedRunError("asked to stop"), 130, "KILLED"),
        (TerminatedRunError("asked to stop"), 143, "KILLED"),
        (InterruptedPhaseError("workers stopped"), 130, "KILLED"),
        (ResourceError("the Ray cluster is gone"), 6, "FAILED"),
        (RuntimeError("a defect"), 1, "FAILED"),
    ],
)
def test_mlflow_says_how_an_attempt_ended(
    runs_dir: Path, patient: None, error: Exception, code: int, status: str
) -> None:
    store = _ended(_config(runs_dir), error)
    assert _last(store) == (events.RUN_INTERRUPTED, code)
    parent = _parent(runs_dir)
    assert (parent["status"], parent["tags"]["mpq.exit_code"]) == (status, str(code))


def test_mlflow_says_that_a_step_refused_its_input(
    runs_dir: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("x.jpg: truncated")

    monkeypatch.setattr(pipeline, "_training", refuse)
    _config(runs_dir)
    with pytest.raises(DataError, match=r"x\.jpg"):
        pipeline.run_experiment(load_config(runs_dir / "digits.yaml"))
    assert _last(RunStore(runs_dir, "digits")) == (events.RUN_FINISHED, 2)
    parent = _parent(runs_dir)
    assert (parent["status"], parent["tags"]["mpq.exit_code"]) == ("FAILED", "2")


def test_a_refused_start_leaves_nothing_in_mlflow(runs_dir: Path, patient: None) -> None:
    store = _ended(_config(runs_dir), DriftError("another configuration"), started=False)
    assert read_journal(store.journal_path).entries == ()
    assert not (store.root / "mirror.json").exists()


def test_a_second_ctrl_c_waits_for_nobody(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MirrorThread, "finish", lambda *_: pytest.fail("it waited"))
    store = _ended(_config(runs_dir), KeyboardInterrupt())
    assert _last(store)[0] == events.RUN_STARTED


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_trouble_with_mlflow_does_not_hide_what_ended_the_run(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def finish(*_: Any) -> SyncOutcome:
        raise fault

    monkeypatch.setattr(MirrorThread, "finish", finish)
    error = ResourceError("the Ray cluster is gone")
    _ended(_config(runs_dir), error)
    told = [] if isinstance(fault, KeyboardInterrupt) else ["and its end was not kept: disk full"]
    assert getattr(error, "__notes__", []) == told


def test_a_server_that_never_answers_holds_an_early_end_only_shortly(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setattr(attempts, "_EARLY_END_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)
        port = silent.getsockname()[1]
        config = _config(runs_dir, f"tracking: {{uri: 'http://127.0.0.1:{port}'}}\n")
        store = _ended(config, ResourceError("the Ray cluster is gone"))
    assert "lacks the end of this run (MLflow did not answer" in store.log_path.read_text()
    assert _last(store) == (events.RUN_INTERRUPTED, 6)


class _Hanging:
    """A mirror whose server never answers."""

    def __init__(self) -> None:
        self.answer = threading.Event()

    def prepare(self) -> str:
        return ""

    def sync(self, view: JournalView) -> SyncOutcome:
        self.answer.wait()
        return SyncOutcome(mirrored=7)


def test_all_waits_for_a_dead_server_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_thread, "PATIENCE_S", 5.0)
    hanging: Any = _Hanging()
    thread = MirrorThread(hanging, lambda: JournalView(entries=()))
    thread.start()
    first, second = thread.catch_up(), thread.finish()
    within = [float(each.error.split()[-2]) for each in (first, second)]
    assert within[0] >= 5
    # The second wait got what the first one left: nothing.
    assert within[1] < within[0] + 4
    hanging.answer.set()


def test_a_mirror_that_keeps_up_is_waited_for_twice() -> None:
    hanging: Any = _Hanging()
    hanging.answer.set()
    thread = MirrorThread(hanging, lambda: JournalView(entries=()))
    thread.start()
    assert (thread.catch_up().mirrored, thread.finish().mirrored) == (7, 7)
