"""How does a sweep end that is asked to stop, loses its head or its trials? Ray is played.

The command, the session with its signals, the thread and the trials' own work are real.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster as clusters
from orchestrator import trials
from orchestrator.cli import run_command
from orchestrator.errors import ResourceError
from orchestrator.journal import read_journal
from orchestrator.phase_step import StepFailedError
from orchestrator.plan import make_plan
from orchestrator.records import State
from orchestrator.runs import newest_records
from orchestrator.session import Session
from orchestrator.store import RunStore
from orchestrator.sweep_step import ImportanceFile, sweep_step
from orchestrator.trials import Ended, Work
from solvers.storage import save_importance
from tests.orchestrator.run_folders import costs, table, write_run
from trainers.messages import STOP_FILE

TEXT = """schema: experiment/1
name: r
runs_dir: RUNS
model: {name: net}
data: {name: d}
bits: {weight: [2, 3, 4], act: [2, 3, 4]}
search: {alphas: [1.0, 2.0], limits: [{bitops: 160000}]}
cluster: {retries: {first_wait_s: 0, infrastructure: 2}}
tracking: {enabled: false}
"""
LEARNED = "steps/indicators/importance.parquet"


class Lost(Exception):  # noqa: N818 - as Ray names it
    """Base of what is played."""


class RayActorError(Lost):
    """Named like Ray's."""


class Ray:
    """One process that does every task when it is waited for, and Tune that does trial by trial.

    Attributes:
        at: number of a task, from 1 -> what happens in place of it; it does not end then.
        broken: what trials fail with, one a round.
        trials: names that Tune was given, round by round.
    """

    def __init__(self) -> None:
        self.at: dict[int, Callable[[], None]] = {}
        self.broken: list[Exception] = []
        self.trials: list[list[str]] = []
        self.cancelled = 0
        self.over = threading.Event()
        self._asked = self._looks = 0

    def module(self) -> SimpleNamespace:
        def remote(**_: Any) -> Callable[[Any], Any]:
            return lambda body: SimpleNamespace(remote=lambda *args: lambda: body(*args))

        def wait(refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
            self._asked += 1
            happens = self.at.pop(self._asked, None)
            if happens is None and not self.at.get(-1):
                return refs, []
            if happens is not None:
                happens()
                self.at[-1] = lambda: None  # from now on no task ends
            time.sleep(0.05)
            self._looks += 1
            assert self._looks < 400, "nobody stopped waiting"
            assert not self.over.is_set()
            return [], refs

        def cancel(_: Any) -> None:
            self.cancelled += 1

        context = SimpleNamespace(gcs_address="10.0.0.1:6379")
        return SimpleNamespace(
            put=lambda value: value, remote=remote, wait=wait, get=lambda ref: ref(),
            cancel=cancel, get_runtime_context=lambda: context,
        )  # fmt: skip

    def tune(self, *_: Any) -> Callable[[Sequence[str], Work], Ended]:
        def fit(names: Sequence[str], work: Work) -> Ended:
            self.trials.append(list(names))
            if self.broken:
                return {}, [self.broken.pop(0)]
            return {name: dict(work(name)) for name in names}, []

        return fit


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    played = Ray()

    @contextmanager
    def joined(address: str | None, *, insecure: bool = False) -> Iterator[Any]:
        yield ({"CPU": 2.0},)

    monkeypatch.setitem(sys.modules, "ray", played.module())
    monkeypatch.setattr(clusters, "ray_cluster", joined)
    monkeypatch.setattr(clusters, "HeadWatch", lambda _: SimpleNamespace(look=lambda: ""))
    monkeypatch.setattr(trials, "_tune", played.tune)
    yield played
    played.over.set()


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    """A finished run with indicators."""
    store = write_run(tmp_path, "r")
    store.config_path.write_text(TEXT.replace("RUNS", str(tmp_path)))
    learned = replace(table(), fingerprint=costs().fingerprint)
    save_importance(store.root / LEARNED, learned)
    return store


def mpq_sweep(store: RunStore) -> int:
    return int(run_command(["sweep", str(store.root)]))


def restarts(store: RunStore) -> list[dict[str, Any]]:
    entries = read_journal(store.journal_path).entries
    return [dict(entry.data) for entry in entries if entry.kind == "step_restarted"]


def answers(store: RunStore) -> list[Path]:
    return sorted(store.root.glob("steps/sweeps/*/answers/*.parquet"))


@pytest.mark.parametrize(
    ("asked", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), ("mpq cancel", 143)]
)
def test_a_sweep_that_is_asked_to_stop_stops_and_goes_on(
    run: RunStore, ray: Ray, capsys: pytest.CaptureFixture[str], asked: Any, code: int
) -> None:
    def ask() -> None:
        if asked == "mpq cancel":  # from another node: it leaves the file, and no signal
            (run.root / STOP_FILE).touch()
        else:
            os.kill(os.getpid(), asked)

    ray.at[2] = ask  # in the second of two trials
    assert mpq_sweep(run) == code
    assert "go on with" in capsys.readouterr().err
    assert len(answers(run)) == 1
    assert ray.cancelled == 1
    assert not (run.root / STOP_FILE).exists()
    ray.at.clear()
    assert mpq_sweep(run) == 0
    assert [len(names) for names in ray.trials] == [2, 1]
    assert len(answers(run)) == 2


def test_a_stop_that_comes_with_the_last_answer_keeps_all_of_them(
    run: RunStore, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ray.tune()

    def then_asked(*_: Any) -> Any:
        def both(names: Sequence[str], work: Work) -> Ended:
            ended = fit(names, work)
            (run.root / STOP_FILE).touch()
            return ended

        return both

    monkeypatch.setattr(trials, "_tune", then_asked)
    assert mpq_sweep(run) == 143
    assert mpq_sweep(run) == 0
    assert len(ray.trials) == 1


def test_what_a_killed_trial_tore_is_no_part_of_the_sweep(
    run: RunStore, ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is hashed as an output, swept at the next start, and the sweep counts as damaged."""
    fit = ray.tune()

    def torn(folder: Path, *_: Any) -> Any:
        def both(names: Sequence[str], work: Work) -> Ended:
            ended = fit(names, work)
            (folder / "policies" / ".tmp-9-x.json").write_text("{")
            return ended

        return both

    monkeypatch.setattr(trials, "_tune", torn)
    for _ in ("solved", "found"):
        assert mpq_sweep(run) == 0
        assert not list(run.root.rglob(".tmp-*"))
    assert len(ray.trials) == 1


def test_a_lost_head_ends_a_sweep(
    run: RunStore, ray: Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = threading.Event()
    watch = SimpleNamespace(look=lambda: "its head has not answered" if gone.is_set() else "")
    monkeypatch.setattr(clusters, "HeadWatch", lambda _: watch)
    ray.at[1] = gone.set
    assert mpq_sweep(run) == 6
    told = capsys.readouterr().err
    assert "the Ray cluster is gone" in told
    assert "sweeps/" in told


DIED = RayActorError("The actor died")
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("errors", "code", "failures"),
    [
        ([DIED], 0, ["infrastructure"]),
        ([DIED] * 3, 3, ["infrastructure"] * 2),
        ([FULL], 0, ["resource"]),
        ([FULL] * 2, 6, ["resource"]),
        ([ValueError("shapes")], 3, []),
    ],
    ids=["died", "died too often", "full", "full again", "raised"],
)
def test_lost_trials_are_restarts_in_the_journal_and_no_defect_of_ours(
    run: RunStore, ray: Ray, capsys: pytest.CaptureFixture[str], errors: list[Exception],
    code: int, failures: list[str],
) -> None:  # fmt: skip
    ray.broken = list(errors)
    assert mpq_sweep(run) == code
    told = capsys.readouterr().err
    assert "internal error" not in told
    assert (str(errors[-1]).rpartition("]")[2] in told) == (code != 0)
    found = restarts(run)
    assert [each["failure"] for each in found] == failures
    assert [each["attempt"] for each in found] == list(range(2, 2 + len(failures)))
    assert all(each["step"].startswith("sweeps/") and each["num_workers"] == 2 for each in found)
    # The run itself lacks nothing.
    records = newest_records(read_journal(run.journal_path))
    assert {record.state for record in records} == {State.DONE}


@pytest.mark.parametrize(
    ("error", "kind", "rounds"), [(DIED, StepFailedError, 3), (FULL, ResourceError, 2)]
)
def test_a_run_whose_sweep_loses_its_trials_says_so_and_goes_on(
    run: RunStore, ray: Ray, error: Exception, kind: type[Exception], rounds: int
) -> None:
    from orchestrator.attempts import opened_session

    path = run.root / LEARNED

    def sweep(session: Session) -> int:
        plan = make_plan(session.config, costs(), "images")
        with clusters.OnDemandCluster(session.config.cluster, session.ledger) as cluster:
            return len(sweep_step(session, plan, plan.step("sweep"),
                                  {"limpq": ImportanceFile(path=path)}, cluster))  # fmt: skip

    ray.broken = [error] * rounds
    with opened_session(run) as session:
        with pytest.raises(kind):
            sweep(session)
        failed = [r for r in session.journal.records() if r.step == "sweep"]
        assert [(r.state, r.phase) for r in failed] == [(State.FAILED, "sweep")]
        assert len(restarts(run)) == rounds - 1
        assert {each["step"] for each in restarts(run)} == {"sweep"}
        assert sweep(session) > 0
        newest = {r.step: r.state for r in newest_records(session.journal.view)}
        assert newest["sweep"] is State.DONE
