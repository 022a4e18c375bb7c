"""What is left of phases side by side when the trial that launched one of them is lost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import parallel_phases as parallel
from orchestrator import trials
from orchestrator.cluster import Resources
from orchestrator.config import load_config
from orchestrator.errors import TerminatedRunError
from orchestrator.launch import Launch
from orchestrator.ledger import Ledger
from orchestrator.parallel_phases import phase_steps
from orchestrator.phase_step import StepFailedError
from orchestrator.plan import Step
from orchestrator.records import State
from orchestrator.relaunch import Restart
from orchestrator.session import Session
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.trials import Ended, Work
from trainers.messages import STOP_FILE
from trainers.phases import Cost, PhaseResult
from trainers.results import save_result

TEXT = """schema: experiment/1
name: r
model: {name: anything}
data: {name: anything}
cluster: {retries: {first_wait_s: 0, infrastructure: 1}}
tracking: {enabled: false}
"""
STEPS = [
    Step(name=f"select-l{n}", action="metamix.bit_selection", key=str(n) * 24, needs=(), about="x")
    for n in range(2)
]
ASK = Resources(
    num_workers=3, cpus_per_worker=1.0, gpus_per_worker=0.0, num_threads=1, placement="PACK"
)


class RayActorError(Exception):
    """Named like Ray's."""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    store = RunStore(tmp_path / "runs", "r")
    with store.opened() as journal:
        yield Session(
            config=load_config(path).config, store=store, ledger=Ledger(), command="mpq run r",
            journal=journal, quiet=True,
        )  # fmt: skip


def restarted_group(*_: Any, step: str, step_dir: Path, tell: Any, **__: Any) -> Launch:
    """A phase that lost a worker once and then left its result."""
    tell(Restart(step=step, attempt=2, failure="infrastructure", reason="rank 1: died",
                 wait_s=0.0, num_workers=3))  # fmt: skip
    result = PhaseResult(phase="bit_selection", outputs={}, metrics={}, cost=Cost(device_s=1.0))
    save_result(step_dir / "result.json", result)
    return Launch(wall_s=2.0, worked_s=1.0, error=None)


def run(
    session: Session, monkeypatch: pytest.MonkeyPatch, fit: Callable[[Sequence[str], Work], Ended]
) -> tuple[Any, ...]:
    monkeypatch.setattr(trials, "_tune", lambda *_: fit)
    monkeypatch.setattr(parallel, "run_group", restarted_group)
    cluster: Any = SimpleNamespace(
        nodes=({"CPU": 8.0},), resources=lambda: ASK, lost=lambda: "", num_cpus=8
    )
    work = [(step, phase_spec(session.config, step.action, None, {})) for step in STEPS]
    return phase_steps(session, work, cluster, phase="bit_selection", method="metamix")


def restarts(session: Session) -> list[tuple[Any, ...]]:
    entries = [e.data for e in session.journal.view.entries if e.kind == "step_restarted"]
    return [(e["step"], e["reason"].partition(";")[0], e["num_workers"]) for e in entries]


def test_restarts_of_a_trial_that_is_lost_are_in_the_journal(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[str]] = []

    def fit(names: Sequence[str], work: Work) -> Ended:
        rounds.append(list(names))
        done = {name: dict(work(name)) for name in names}
        if len(rounds) > 1:
            return done, []
        # The second trial goes with its node after all that it did.
        return {"select-l0": done["select-l0"]}, [RayActorError("The actor died")]

    records = run(session, monkeypatch, fit)
    assert [r.state for r in records] == [State.DONE] * 2
    assert rounds == [["select-l0", "select-l1"], ["select-l1"]]
    group = "rank 1: died"
    again = "infrastructure: the controller: The actor died"
    assert sorted(restarts(session)) == sorted(
        [("select-l0", group, 3), ("select-l1", group, 3), ("select-l1", again, 3),
         ("select-l1", group, 3)]
    )  # fmt: skip


def test_a_trial_lost_for_good_fails_its_own_step_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(names: Sequence[str], work: Work) -> Ended:
        done = {name: dict(work(name)) for name in names if name == "select-l0"}
        return done, [RayActorError("The actor died")]

    with pytest.raises(StepFailedError, match=r"select-l1 lost its workers.*The actor died"):
        run(session, monkeypatch, fit)
    states = {r.step: r.state for r in session.journal.records()}
    assert states == {"select-l0": State.DONE, "select-l1": State.FAILED}
    assert ("select-l0", "rank 1: died", 3) in restarts(session)


def test_a_stop_between_rounds_is_a_stop(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(names: Sequence[str], work: Work) -> Ended:
        (session.store.root / STOP_FILE).touch()
        return {}, [RayActorError("The actor died")]

    with pytest.raises(TerminatedRunError):
        run(session, monkeypatch, fit)
