"""What a step does with results that are there: its own, damaged ones, and another run's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import parallel_phases, pipeline
from orchestrator import phase_step as phases
from orchestrator import train_step as trainings
from orchestrator.attempts import attempt
from orchestrator.config import load_config
from orchestrator.errors import LockedError
from orchestrator.events import RUN_STARTED
from orchestrator.ledger import Ledger
from orchestrator.outcomes import failed_record
from orchestrator.phase_step import phase_step
from orchestrator.pipeline import _incomplete
from orchestrator.plan import Step, make_plan
from orchestrator.policies import Candidate
from orchestrator.records import State
from orchestrator.relaunch import Restart
from orchestrator.results import results_of
from orchestrator.retries import Loss, RetriesConfig, decide
from orchestrator.runs import newest_records, run_status
from orchestrator.session import Session
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.sweep_step import sweep_step
from orchestrator.train_step import train_step
from solvers.policy import make_policy
from solvers.tables import CostTable, LayerBits, LayerSpec
from trainers.errors import DataError
from trainers.phases import Cost, PhaseResult, PhaseSpec
from trainers.results import save_result

TEXT = """schema: experiment/1
name: NAME
model: {name: anything}
data: {name: anything}
bits: {weight: [2, 4], act: [2, 4]}
search: {limits: [{bitops_level: 4x4}]}
tracking: {enabled: false}
"""
DIGITS = """schema: experiment/1
name: digits
runs_dir: RUNS
model: {name: cifar_resnet8, num_classes: 10, options: {in_channels: 1, base_width: 4}}
data: {name: digits}
search: {limits: [{bitops_level: 4x4}]}
tracking: {enabled: false}
"""
COSTS = CostTable(
    model="anything",
    input_shape=(1, 2, 2),
    layers=tuple(
        LayerSpec(
            name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=10,
            num_biases=0, num_inputs=4, num_outputs=4,
        )
        for name, macs in (("a", 100), ("b", 200))
    ),
)  # fmt: skip
STEP = Step(name="indicators", action="limpq.indicators", key="k" * 24, needs=(), about="learn")


class Phases:
    """Stands for worker groups: leaves a result and an output, and counts."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(
        self, session: Session, step: Step, spec: PhaseSpec, cluster: Any, *, tick: Any = None
    ) -> PhaseResult:
        folder = session.store.step_dir(step.name)
        entries = [role.partition(":")[2] for role in spec.inputs if role.startswith("policy:")]
        for entry in entries or [""]:
            self.ran.append(f"{step.name}/{entry}" if entry else step.name)
            result = PhaseResult(
                phase=spec.phase, outputs={"weights": "weights.pt"}, metrics={"top1": 90.0},
                cost=Cost(device_s=1.0),
            )  # fmt: skip
            (folder / entry).mkdir(parents=True, exist_ok=True)
            (folder / entry / "weights.pt").write_bytes(b"weights")
            save_result(folder / entry / "result.json", result)
        if tick is not None:
            tick()
        return result


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Phases:
    fake = Phases()
    monkeypatch.setattr(phases, "run_phase", fake.run)
    monkeypatch.setattr(trainings, "run_phase", fake.run)
    return fake


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Any]:
    """Makes sessions on runs below one folder."""
    with ExitStack() as stack:

        def session(name: str, donors: tuple[RunStore, ...] = (), method: str = "limpq") -> Session:
            path = tmp_path / f"{name}.yaml"
            path.write_text(TEXT.replace("NAME", name) + f"method: {method}\n")
            store = RunStore(tmp_path / "runs", name)
            return Session(
                config=load_config(path).config, store=store, ledger=Ledger(), command="",
                journal=stack.enter_context(store.opened()), quiet=True, donors=donors,
            )  # fmt: skip

        yield session


def _learn(session: Session) -> Any:
    spec = phase_spec(session.config, STEP.action, None, {})
    cluster: Any = SimpleNamespace()
    return phase_step(session, STEP, spec, cluster, phase="indicators", method="limpq")


def _train(session: Session, *bits: int, **more: Any) -> Any:
    plan = make_plan(session.config, COSTS, "images")
    rows = [
        Candidate(
            method=f"m{width}", alpha=None, limit_set=plan.limit_sets[0],
            policy=make_policy(COSTS, {layer.name: _wide(width) for layer in COSTS}, "x"), **more,
        )
        for width in bits
    ]  # fmt: skip
    spec = phase_spec(session.config, "weight_training", session.config.train, {})
    cluster: Any = SimpleNamespace()
    return train_step(session, plan, plan.step("train"), spec, cluster, rows)


def _wide(bits: int) -> LayerBits:
    return LayerBits(weight_bits=bits, act_bits=bits)


def _flip(path: Path) -> None:
    """Another content of the same length under the same name, as a broken disk would leave."""
    good = path.read_bytes()
    path.unlink()  # a file that is shared with another run is damaged in this one only
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))


def test_a_finished_phase_is_not_run_again(sessions: Any, made: Phases) -> None:
    session = sessions("one")
    assert _learn(session) == _learn(session)
    assert made.ran == ["indicators"]


def test_a_damaged_output_is_made_again_although_its_result_is_there(
    sessions: Any, made: Phases
) -> None:
    session = sessions("one")
    _learn(session)
    path = session.store.step_dir("indicators") / "weights.pt"
    _flip(path)
    _learn(session)
    assert made.ran == ["indicators", "indicators"]
    assert path.read_bytes() == b"weights"


def test_a_damaged_training_is_made_again_and_its_neighbours_are_not(
    sessions: Any, made: Phases
) -> None:
    session = sessions("one")
    first, second = _train(session, 2, 4)
    path = session.store.root / first.outputs["weights"]
    _flip(path)
    _train(session, 2, 4)
    assert made.ran == [first.step, second.step, first.step]
    assert path.read_bytes() == b"weights"


def test_another_runs_steps_are_taken_over_once(sessions: Any, made: Phases) -> None:
    donor = sessions("one")
    _learn(donor)
    _train(donor, 2)
    session = sessions("two", (donor.store,))
    record = _learn(session)
    assert (record.run, record.facts["reused_from"]) == ("two", "one")
    old, new = _train(session, 2, 4)
    assert (old.run, old.facts.get("reused_from")) == ("two", "one")
    assert "reused_from" not in new.facts
    assert old.facts["asked_by"] == ["m2-l0"]
    assert made.ran == ["indicators", old.step, new.step]
    _learn(session), _train(session, 2, 4)
    assert made.ran == ["indicators", old.step, new.step]
    assert len(session.journal.records()) == 3


def test_a_damaged_step_is_mended_from_another_run(sessions: Any, made: Phases) -> None:
    donor = sessions("one")
    _learn(donor)
    session = sessions("two", (donor.store,))
    _learn(session)
    _flip(session.store.step_dir("indicators") / "weights.pt")
    _learn(session)
    assert made.ran == ["indicators"]
    assert session.store.finished("indicators", STEP.key).record is not None


def test_the_same_bits_from_another_start_are_another_training(sessions: Any, made: Phases) -> None:
    donor = sessions("one")
    _train(donor, 2, start={"weights": "w"}, start_key="first")
    session = sessions("two", (donor.store,))
    (record,) = _train(session, 2, start={"weights": "w"}, start_key="second")
    assert "reused_from" not in record.facts
    assert len(made.ran) == 2


def test_a_training_that_lost_its_workers_once_is_whole_when_all_policies_are(
    sessions: Any, made: Phases
) -> None:
    session = sessions("one")
    step = make_plan(session.config, COSTS, "images").step("train")
    lost = failed_record(
        "one", step, phase=step.action, state=State.FAILED, message="workers lost", attempt=1,
        wall_s=1.0,
    )  # fmt: skip
    session.keep(lost)
    assert _incomplete(newest_records(session.journal.view))
    for _ in ("trained", "found"):
        _train(session, 2, 4)
        records = newest_records(session.journal.view)
        assert not _incomplete(records)
        assert results_of("one", records).failures == ()


def _lose(session: Session) -> None:
    """Somebody else takes the run over, as after 30 s without a heartbeat."""
    session.store.lock_path.write_text("{}")


def test_who_lost_the_run_removes_nothing_of_its_new_owner(sessions: Any, made: Phases) -> None:
    session = sessions("one")
    _learn(session)
    first, _ = _train(session, 2, 4)
    for step in ("indicators", first.step):
        _flip(session.store.step_dir(step) / "weights.pt")
    _lose(session)
    before = sorted(session.store.root.rglob("*"))
    for work in (
        lambda: _learn(session), lambda: _train(session, 2, 4),
        lambda: phases.begin(session, replace(STEP, key="another")),
    ):  # fmt: skip
        with pytest.raises(LockedError, match="taken over"):
            work()
    assert sorted(session.store.root.rglob("*")) == before
    assert len(made.ran) == 3


def test_who_lost_the_run_starts_no_group_again(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers were superseded by the new owner's, and must not supersede them in turn."""
    session = sessions("one")
    started: list[str] = []

    def group(spec: PhaseSpec, *, tell: Any, **_: Any) -> Any:
        started.append("once")
        _lose(session)
        tell(Restart(step="indicators", attempt=2, failure="infrastructure", reason="superseded",
                     wait_s=0.0, num_workers=1))  # fmt: skip
        started.append("again")
        raise AssertionError("not reached")

    monkeypatch.setattr(phases, "run_group", group)
    cluster: Any = SimpleNamespace(
        resources=lambda: SimpleNamespace(num_workers=1), lost=lambda: ""
    )
    spec = phase_spec(session.config, STEP.action, None, {})
    with pytest.raises(LockedError, match="taken over"):
        phases.run_phase(session, STEP, spec, cluster)
    assert started == ["once"]


def test_who_lost_the_run_goes_on_with_no_other_phase(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions("one")
    ran: list[str] = []

    def run(session: Session, step: Step, *_: Any) -> PhaseResult:
        ran.append(step.name)
        _lose(session)
        session.store.before_write()
        raise AssertionError("not reached")

    monkeypatch.setattr(parallel_phases, "run_phase", run)
    monkeypatch.setattr(parallel_phases, "groups_at_once", lambda *_: 1)
    cluster: Any = SimpleNamespace(nodes=[], resources=lambda: None)
    spec = phase_spec(session.config, STEP.action, None, {})
    work = [(replace(STEP, name=name), spec) for name in ("first", "second")]
    with pytest.raises(LockedError, match="taken over"):
        parallel_phases.phase_steps(session, work, cluster, phase="source", method="any")
    assert ran == ["first"]


def test_who_lost_the_run_starts_no_trials_again(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions("one")
    started: list[str] = []

    def trials(names: list[str], work: Any, *, tell: Any, **_: Any) -> Any:
        started.append("once")
        _lose(session)
        decision = decide([Loss(rank=0, kinds=frozenset({"RayActorError"}))], {}, RetriesConfig(),
                          num_workers=1, draw=0.0)  # fmt: skip
        tell(names, 2, decision)
        started.append("again")
        raise AssertionError("not reached")

    monkeypatch.setattr(parallel_phases, "run_trials", trials)
    monkeypatch.setattr(parallel_phases, "groups_at_once", lambda *_: 2)
    cluster: Any = SimpleNamespace(
        nodes=[], resources=lambda: SimpleNamespace(num_workers=1), lost=lambda: ""
    )
    spec = phase_spec(session.config, STEP.action, None, {})
    work = [(replace(STEP, name=name), spec) for name in ("first", "second")]
    with pytest.raises(LockedError, match="taken over"):
        parallel_phases.phase_steps(session, work, cluster, phase="source", method="any")
    assert started == ["once"]


def test_an_attempt_that_lost_its_run_ends_with_4_and_leaves_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(TEXT.replace("NAME", "one"))
    store, config = RunStore(tmp_path / "runs", "one"), load_config(path).config
    before: list[bytes] = []

    def lose_and_go_on() -> None:
        with attempt(store, config, quiet=True) as session:
            session.journal.event(RUN_STARTED)
            _lose(session)
            before.append(store.journal_path.read_bytes())
            session.journal.event("late")

    with pytest.raises(LockedError, match="taken over") as caught:
        lose_and_go_on()
    assert caught.value.exit_code == 4
    assert [store.journal_path.read_bytes()] == before
    assert store.lock_path.read_text() == "{}"


def test_a_refused_step_ends_the_run_with_a_report_and_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that cannot be read, in the middle: exit code 2, and a run that did end."""
    path = tmp_path / "digits.yaml"
    path.write_text(DIGITS.replace("RUNS", str(tmp_path / "runs")))

    def refuse(session: Session, *_: Any) -> None:
        raise DataError("x.jpg: truncated")

    monkeypatch.setattr(pipeline, "_training", refuse)
    with pytest.raises(DataError, match=r"x\.jpg"):
        pipeline.run_experiment(load_config(path))
    store = RunStore(tmp_path / "runs", "digits")
    status = run_status(store)
    assert status.state == "incomplete"
    assert status.counts["pretrain"] == {"BLOCKED": 1}
    assert "x.jpg: truncated" in status.last_message
    assert store.report_path.is_file()


def test_a_sweep_that_has_no_policy_of_its_own_is_finished(sessions: Any) -> None:
    """MetaMix alone: its policies lie with its bit selections, and no control is asked for."""
    session = sessions("alone", method="metamix\ncontrols: []")
    plan = make_plan(session.config, COSTS, "images")
    cluster: Any = SimpleNamespace()
    for _ in ("made", "found"):
        assert sweep_step(session, plan, plan.step("sweep"), {}, cluster) == ()
    record = next(r for r in session.journal.records() if r.step == "sweep")
    assert record.outputs == {}
