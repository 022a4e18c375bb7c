"""How does one training serve many devices? Alphas x devices from the indicators of a run.

Nothing is trained. The answers are one Parquet file; every distinct policy has a file and a record
of its own, however many devices asked for it. A sweep is named after what it asks, so asking the
same again finds the answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator import records as keys
from orchestrator.cells import bit_choices
from orchestrator.cluster import OnDemandCluster
from orchestrator.errors import StoreError
from orchestrator.figures.files import save_figure
from orchestrator.figures.sweep import objective_over_limit
from orchestrator.outcomes import policy_metrics
from orchestrator.phase_step import lost_for_good
from orchestrator.records import RunRecord, State
from orchestrator.relaunch import GroupLostError
from orchestrator.runs import newest_records
from orchestrator.session import Session
from orchestrator.solve_tasks import SweepTables, answer_questions
from orchestrator.sweep import SweepOutcome, question_chunks
from orchestrator.sweep_step import ImportanceFile
from orchestrator.watched_sweep import watched_sweep
from solvers.accounting import accounting_named
from solvers.batch import Question
from solvers.certificate import SolveStatus
from solvers.devices import Device
from solvers.errors import SolversError
from solvers.importance import check_alpha
from solvers.limits import ceilings_of
from solvers.problem import build_problem
from solvers.storage import load_costs, load_policy, load_results, save_results

# A trial costs a process that imports Ray Tune (2 s of CPU), and an idle moment at each change of
# trials; 2,000 two-limit devices of ResNet-18 are 75 s of solving.
DEVICES_PER_TRIAL = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSweep:
    """What came of a sweep over devices.

    Attributes:
        folder: where its files are.
        record: its record.
        states: solve status -> number of answers.
        num_policies: distinct policies.
        reused: the answers were there already.
    """

    folder: Path
    record: RunRecord
    states: dict[str, int]
    num_policies: int
    reused: bool


def device_questions(devices: Sequence[Device], alphas: Sequence[float]) -> tuple[Question, ...]:
    """Every device at every alpha."""
    return tuple(
        Question(label=device.name, alpha=alpha, limits=device.limits)
        for alpha in alphas
        for device in devices
    )


def sweep_devices(
    session: Session, questions: Sequence[Question], address: str | None
) -> DeviceSweep:
    """Answer every question on a cluster, with one record for all and one a distinct policy.

    Raises:
        StoreError: the run has no indicators yet.
        TableError: an alpha that is no weight, or tables that do not fit the network.
        LimitError: a limit that does not apply to the network.
        StepFailedError: a trial failed for good.
        ResourceError: memory or disk ran out, or the cluster cannot be reached or is gone.
        InterruptedRunError: a signal asked to stop; what was answered is kept.
    """
    source, tables = saved_tables(session)
    key = _key(source, questions, session)
    step = f"sweeps/{key[:12]}"
    folder = session.store.step_dir(step)
    verdict = session.store.finished(step, key)
    if verdict.record is not None:
        session.keep(verdict.record)
        results = load_results(folder / "results.parquet")
        states = Counter(row.status.value for row in results.rows)
        policies = {row.policy_id for row in results.rows if row.policy_id}
        return DeviceSweep(
            folder=folder,
            record=verdict.record,
            states=dict(states),
            num_policies=len(policies),
            reused=True,
        )
    refuse_unanswerable(questions, tables)
    began = time.perf_counter()
    # Where the run itself was worked on says nothing of where its devices are solved.
    where = replace(session.config.cluster, address=address)
    chunks = question_chunks(questions, DEVICES_PER_TRIAL, key)
    with OnDemandCluster(where, session.ledger) as cluster:
        session.say(f"{step}: solved on {cluster.num_cpus} CPUs")  # the first look connects
        started = time.perf_counter()
        try:
            outcome = watched_sweep(session, step, key, chunks, answer_questions, tables, cluster)
        except GroupLostError as error:
            # No record: the run itself lacks nothing.
            raise lost_for_good(step, folder, error) from error
    kept = _keep(session, step, key, folder, outcome, tables, started - began)
    session.stop_if_asked()  # asked while the last chunk was solved
    return kept


def refuse_unanswerable(questions: Sequence[Question], tables: SweepTables) -> None:
    """Find now what no solver could answer: a task would find it as well, and die of it.

    What is wrong with limits shows when their problem is laid out. Those that differ in height
    alone are laid out alike, so one of them is enough, and a thousand devices take no time.

    Raises:
        TableError: an alpha that is no weight, or a latency table that lacks a layer.
        LimitError: a limit that does not apply to the network.
    """
    accounting = accounting_named(tables.accounting)
    seen: set[object] = set()
    for question in questions:
        try:
            check_alpha(question.alpha)
            if id(question.limits) in seen:  # every alpha asks with the device's own
                continue
            ceilings = ceilings_of(question.limits, tables.costs, accounting)
            kinds = tuple((c.resource, c.layers, id(c.limit.latency)) for c in ceilings)
            if kinds not in seen:
                build_problem(tables.costs, tables.choices, question.limits, importance=None,
                              accounting=accounting)  # fmt: skip
            seen |= {kinds, id(question.limits)}
        except SolversError as error:
            asked = f"device {question.label!r}, alpha {question.alpha:g}"
            raise type(error)(f"{asked}: {error}") from error


def saved_tables(session: Session) -> tuple[RunRecord, SweepTables]:
    """The indicators of a run, as its row ``limpq`` reads them, and what else a solve reads.

    Raises:
        StoreError: the run has none yet.
    """
    done = {r.step: r for r in newest_records(session.journal.view) if r.state is State.DONE}
    if "indicators" not in done or "costs" not in done:
        raise StoreError(
            f"run {session.store.name!r} has no learned indicators",
            str(session.store.root),
            "its indicator training has not finished",
            "finish it first with mpq run",
        )
    root = session.store.root
    costs = load_costs(root / done["costs"].outputs["costs"])
    outputs = done["indicators"].outputs
    statistics = outputs.get("statistics")
    learned = ImportanceFile(
        path=root / outputs["importance"],
        transform=session.config.importance.transform,
        statistics=root / statistics if statistics else None,
    )
    tables = SweepTables(
        costs=costs,
        choices=bit_choices(session.config),
        importance={"limpq": learned.read(costs)},
        search=session.config.search,
        accounting=session.config.accounting,
    )
    return done["indicators"], tables


def _keep(
    session: Session,
    step: str,
    key: str,
    folder: Path,
    outcome: SweepOutcome,
    tables: SweepTables,
    ray_start_s: float,
) -> DeviceSweep:
    rows = outcome.results.rows
    save_results(folder / "results.parquet", outcome.results)
    drawn = save_figure(objective_over_limit(rows), folder, "objective")
    states = Counter(row.status.value for row in rows)
    counted = Counter(row.policy_id for row in rows if row.policy_id)
    record = RunRecord(
        run=session.store.name,
        step=step,
        key=key,
        phase="device_sweep",
        method="limpq",
        state=State.DONE,
        seed=session.config.seed,
        metrics={keys.SOLVE_WALL_S: outcome.solve_wall_s},
        costs={
            "solve_wall_s": outcome.solve_wall_s,
            "solve_cpu_s": outcome.solve_cpu_s,
            "sweep_wall_s": outcome.wall_s,
            "ray_start_s": ray_start_s,
        },
        outputs={
            "results": session.store.relative(folder / "results.parquet"),
            "policies": session.store.relative(folder / "policies"),
            "figure": session.store.relative(drawn[1]),
        }
        if counted
        else {"results": session.store.relative(folder / "results.parquet")},
        facts={"solves": len(rows), "states": dict(states), "distinct_policies": len(counted)},
        wall_s=outcome.wall_s,
    )
    session.store.finish_step(step, record)
    alphas = {row.policy_id: row.alpha for row in reversed(rows) if row.policy_id}
    children = []
    for policy_id, count in counted.items():
        path = folder / "policies" / f"{policy_id}.json"
        policy = load_policy(path)
        child = hashlib.sha256(f"{key}/{policy_id}".encode()).hexdigest()[:24]
        children.append(
            RunRecord(
                run=session.store.name,
                step=f"{step}/{policy_id}",
                key=child,
                phase="device_policy",
                method="limpq",
                state=State.DONE,
                policy_id=policy_id,
                alpha=alphas[policy_id],
                seed=session.config.seed,
                metrics=policy_metrics(policy),
                outputs={"policy": session.store.relative(path)},
                facts={"devices": count},
            )
        )
    session.journal.append_all([record, *children])
    return DeviceSweep(
        folder=folder,
        record=record,
        states=dict(states),
        num_policies=len(counted),
        reused=False,
    )


def _key(source: RunRecord, questions: Sequence[Question], session: Session) -> str:
    asked = [[q.label, q.alpha, [limit.text for limit in q.limits]] for q in questions]
    tables = {limit.latency for q in questions for limit in q.limits if limit.latency}
    latency = sorted(hashlib.sha256(repr(t.rows).encode()).hexdigest() for t in tables)
    facts: list[object] = [source.key, asked, latency, asdict(session.config.search)]
    transform = session.config.importance.transform
    facts += [] if transform == "raw" else [transform]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]


def is_incomplete(sweep: DeviceSweep) -> bool:
    """Whether some device got no proven policy."""
    return set(sweep.states) != {SolveStatus.PROVEN_OPTIMAL.value}
