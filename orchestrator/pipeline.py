"""The story of a run, from a checked configuration to a report. Read it top to bottom.

    plan -> full precision -> indicators -> other sources -> sweep
         -> train each distinct policy -> evidence, where it is asked for -> report

Decisions are made elsewhere (``plan``, ``policies``, ``outcomes``); here they are carried out in
order, and whatever happens ends in the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator import events
from orchestrator.attempts import attempt
from orchestrator.cells import limpq_transforms, trained_limits
from orchestrator.cluster import OnDemandCluster
from orchestrator.config import LoadedConfig
from orchestrator.drift import refuse_drift
from orchestrator.errors import ExitCode, exit_code_of
from orchestrator.evidence import evidence_parts
from orchestrator.forecast.images_at_hand import require_path
from orchestrator.given_policies import given_policies
from orchestrator.ledger import USEFUL, overhead_share
from orchestrator.literature import rows_named
from orchestrator.metamix_step import metamix_steps
from orchestrator.outcomes import costs_record, failed_record, search_metrics
from orchestrator.parallel_phases import phase_steps
from orchestrator.phase_step import StepFailedError, begin, finished_record, output_path, phase_step
from orchestrator.plan import Plan, make_plan
from orchestrator.policies import Candidate, unmet_candidates
from orchestrator.provenance import code_commit, library_versions, machine_facts
from orchestrator.records import EVIDENCE, RunRecord, State
from orchestrator.redact import redacted_text
from orchestrator.report.cells_text import print_results
from orchestrator.report.write import PAGE, draw_figures, write_report
from orchestrator.runs import newest_records
from orchestrator.session import Session
from orchestrator.source_steps import source_steps
from orchestrator.specs import phase_spec
from orchestrator.store import RunStore
from orchestrator.sweep_step import ImportanceFile, keep_rows, sweep_step
from orchestrator.trace import images_fingerprint, traced_costs, weight_hashes
from orchestrator.train_step import train_step
from solvers.errors import SolversError
from solvers.storage import save_costs
from trainers.errors import InterruptedPhaseError, TrainersError


def run_experiment(loaded: LoadedConfig, donors: tuple[RunStore, ...] = ()) -> ExitCode:
    """Run an experiment, or go on with it where it stopped.

    Args:
        loaded: what was asked for.
        donors: other runs whose finished steps are taken over where the keys are equal.

    Raises:
        UserError: refused, interrupted or out of resources; its exit code says which.
    """
    config = loaded.config
    # Before the run has a folder: a stored configuration without images would be drift later.
    require_path(config)
    rows_named(config.reports)
    if config.policies:
        given_policies(config, traced_costs(config))
    store = RunStore(config.runs_dir, config.name)
    others = tuple(donor for donor in donors if donor.root != store.root)
    with attempt(store, config, donors=others) as session:
        refuse_drift(store, config)
        return _attempt(session)


def _attempt(session: Session) -> ExitCode:
    config = session.config
    for notice in session.journal.notices:
        session.say(notice)
    with session.ledger.span("plan"):
        images, weights = images_fingerprint(config), weight_hashes(config)
        network = traced_costs(config)
        plan = make_plan(config, network, images, weights, given_policies(config, network))
    _announce(session, plan)
    try:
        costs = _costs_step(session, plan)
        if plan.feasible_limits:
            with OnDemandCluster(config.cluster, session.ledger) as cluster:
                _training(session, plan, costs, cluster)
        else:
            unmet = unmet_candidates(config.method, plan.limit_sets)
            keep_rows(session, plan.step("costs"), unmet)
    except StepFailedError as error:
        session.say(str(error))
        _block_the_rest(session, plan, error.what)
        return _finish(session)
    except InterruptedPhaseError:
        raise
    except (TrainersError, SolversError) as refusal:
        # What a step was given is wrong: the run ends like any other, and the command says so.
        _block_the_rest(session, plan, str(refusal))
        _finish(session, exit_code_of(refusal))
        raise
    return _finish(session)


def _training(session: Session, plan: Plan, costs: RunRecord, cluster: OnDemandCluster) -> None:
    """Everything that may need a cluster."""
    config = session.config
    spec = phase_spec(config, "pretrain", config.pretrain, {})
    full = phase_step(session, plan.step("pretrain"), spec, cluster, phase="pretrain", method="fp")
    inputs = {
        "weights": str(output_path(session, full, "weights")),
        "costs": str(output_path(session, costs, "costs")),
    }
    providers = {"costs": costs, "pretrain": full}
    tables: dict[str, ImportanceFile] = {}
    selected: tuple[Candidate, ...] = ()
    if config.learns_indicators:
        spec = phase_spec(config, "limpq.indicators", config.indicators, inputs, plan.choices)
        indicators = phase_step(
            session, plan.step("indicators"), spec, cluster, phase="indicators", method="limpq"
        )
        providers["indicators"] = indicators
        tables |= _limpq_tables(session, indicators)
        # Statistics of one batch: what learning them cost is not what they cost.
        tables["initial"] = ImportanceFile(path=output_path(session, indicators, "initial"))
    if config.method == "metamix":
        start = inputs
        if config.metamix.start == "limpq":
            start = {**inputs, "weights": str(output_path(session, indicators, "plain"))}
        meta, selected = metamix_steps(session, plan, start, cluster)
        tables["metamix_ilp"] = _table(session, meta, "importance")
        unmet = unmet_candidates("metamix", trained_limits(config.search, plan.limit_sets))
        keep_rows(session, plan.step("meta"), unmet)
    sources = source_steps(session, plan, providers, cluster)
    tables |= sources.importance
    sweep = plan.step("sweep")
    solved = sweep_step(session, plan, sweep, tables, cluster, failed=sources.failed)
    rows = selected + sources.rows + solved
    spec = phase_spec(config, "weight_training", config.train, inputs)
    train_step(session, plan, plan.step("train"), spec, cluster, rows)
    evidence = [
        (plan.step(part.name), phase_spec(config, part.action, part.recipe, inputs, plan.choices))
        for part in evidence_parts(config.evidence)
    ]
    if evidence:
        phase_steps(session, evidence, cluster, phase=EVIDENCE, method="any")


def _block_the_rest(session: Session, plan: Plan, why: str) -> None:
    """What depends on a failed step is a row of the report, not an absence."""
    known = {record.key for record in session.journal.records()}
    for step in plan.steps:
        if step.key not in known:
            record = failed_record(
                session.config.name,
                step,
                phase=step.action,
                state=State.BLOCKED,
                message=why,
                attempt=session.starts,
                wall_s=0.0,
            )
            session.keep(session.stamped(record))


def _limpq_tables(session: Session, indicators: RunRecord) -> dict[str, ImportanceFile]:
    """The learned indicators as the configuration reads them, and as its controls do."""
    config = session.config
    ways = {"limpq": config.importance.transform, **limpq_transforms(config)}
    learned = replace(
        _table(session, indicators, "importance"),
        statistics=output_path(session, indicators, "statistics"),
    )
    return {name: replace(learned, transform=way) for name, way in ways.items()}


def _table(session: Session, record: RunRecord, role: str) -> ImportanceFile:
    return ImportanceFile(
        path=output_path(session, record, role),
        search=search_metrics(record),
        steps=(record.step,),
    )


def _costs_step(session: Session, plan: Plan) -> RunRecord:
    step = plan.step("costs")
    done = finished_record(session, step)
    if done is not None:
        return done
    path = begin(session, step) / "costs.parquet"
    save_costs(path, plan.costs)
    record = session.stamped(
        costs_record(session.config.name, step, plan, session.store.relative(path))
    )
    session.store.finish_step(step.name, record)
    session.keep(record)
    return record


def _announce(session: Session, plan: Plan) -> None:
    config = session.config
    session.journal.event(
        events.RUN_STARTED,
        {
            "command": redacted_text(session.command),
            "attempt": session.starts + 1,
            "machine": machine_facts(),
            "versions": library_versions(),
            "git_commit": code_commit(),
        },
    )
    session.journal.event(
        events.PLANNED,
        {
            "steps": [
                {"name": s.name, "phase": s.action, "state": "run", "reason": s.about}
                for s in plan.steps
            ],
            "not_run": [
                {"what": limits.name, "reason": limits.problem}
                for limits in plan.limit_sets
                if limits.problem
            ],
        },
    )
    session.say(f"run {config.name} in {session.store.root}")
    session.say(f"go on after an interruption with: {session.command}")
    for limits in plan.limit_sets:
        if limits.problem:
            session.say(f"infeasible, found before training: {limits.problem}")


def _finish(session: Session, refused: ExitCode | None = None) -> ExitCode:
    """Write what people read, mirror what is recorded, and say how it ended."""
    store, journal = session.store, session.journal
    with session.ledger.span("report"):
        figures = draw_figures(store, journal.view)
    if session.mirror is not None:
        with session.ledger.span("MLflow"):
            session.mirror.catch_up()
    code = ExitCode.INCOMPLETE if _incomplete(newest_records(journal.view)) else ExitCode.DONE
    code = refused or code
    spent = session.ledger.shares()
    journal.event(
        events.RUN_FINISHED,
        {"exit_code": int(code), "wall_s": sum(spent.values()), "spent": spent},
    )
    print_results(write_report(store, journal.view, figures))
    useful = ", ".join(f"{name} {spent.get(name, 0.0):.0f} s" for name in USEFUL)
    rest = ", ".join(
        f"{name} {wall_s:.0f} s"
        for name, wall_s in sorted(spent.items(), key=lambda item: -item[1])
        if name not in USEFUL and wall_s >= 0.5
    )
    session.say(f"wall time {sum(spent.values()):.0f} s: {useful}")
    session.say(f"{100 * overhead_share(spent):.0f} % is neither: {rest}")
    session.say(f"report: {store.report_path.with_name(PAGE)}")
    return code


def _incomplete(records: Sequence[RunRecord]) -> bool:
    """Whether some cell or step ended without what was asked of it."""
    done = {record.key for record in records if record.state is State.DONE}
    return any(record.key not in done for record in records)
