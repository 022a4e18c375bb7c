"""How does MetaMix run inside the pipeline: one meta-state, a bit selection for every target.

A selection yields a policy itself, without a solver, and hands its weights and activation step
sizes to the training of that policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.cluster import OnDemandCluster
from orchestrator.config_schema import ExperimentConfig
from orchestrator.outcomes import candidate_record, search_metrics
from orchestrator.parallel_phases import phase_steps
from orchestrator.phase_step import output_path, phase_step
from orchestrator.plan import Plan
from orchestrator.policies import Candidate
from orchestrator.records import RunRecord
from orchestrator.session import Session
from orchestrator.specs import phase_spec
from solvers.storage import load_policy
from trainers.metamix.config import BitSelectionConfig


def metamix_steps(
    session: Session, plan: Plan, inputs: Mapping[str, str], cluster: OnDemandCluster
) -> tuple[RunRecord, tuple[Candidate, ...]]:
    """Train the meta-state and select bits for every target.

    Args:
        session: this attempt.
        plan: the run.
        inputs: full-precision weights and costs.
        cluster: where the workers run.

    Returns:
        The meta-state's record, and a row for each target.
    """
    config = session.config
    spec = phase_spec(config, "metamix.meta", config.metamix, inputs, plan.choices)
    meta = phase_step(session, plan.step("meta"), spec, cluster, phase="meta", method="metamix")
    shared = {**inputs, "meta": str(output_path(session, meta, "meta"))}
    work = []
    for step, limits in plan.selections:
        recipe = BitSelectionConfig(
            metamix=config.metamix, target=limits.limits[0].text, accounting=config.accounting
        )
        spec = phase_spec(config, "metamix.bit_selection", recipe, shared, plan.choices)
        work.append((step, spec))
    records = phase_steps(session, work, cluster, phase="bit_selection", method="metamix")
    rows = []
    for (step, limits), record in zip(plan.selections, records, strict=True):
        row = Candidate(
            method="metamix",
            alpha=None,
            limit_set=limits,
            policy=load_policy(output_path(session, record, "policy")),
            start=_start(config, {role: output_path(session, record, role) for role in
                                  ("weights", "act_steps")}),
            start_key=step.key,
            search={
                name: value + search_metrics(record).get(name, 0.0)
                for name, value in search_metrics(meta).items()
            },
            facts={
                "selection": step.name,
                "search_steps": [plan.step("meta").name, step.name],
                **{k: record.facts[k] for k in ("in_band", "changed_layers", "argmax_policy_id")},
            },
            reason="" if record.facts["in_band"] else "nearest reachable to the target",
        )  # fmt: skip
        kept = candidate_record(
            config.name, step, row, seed=config.seed, policy_file=record.outputs["policy"]
        )
        session.keep(session.stamped(kept))
        rows.append(row)
    return meta, tuple(rows)


def _start(config: ExperimentConfig, outputs: Mapping[str, Path]) -> dict[str, str]:
    """What weight training takes over from the selection."""
    roles = {
        "weights_and_steps": ("weights", "act_steps"),
        "weights": ("weights",),
        "nothing": (),
    }
    return {role: str(outputs[role]) for role in roles[config.metamix.inherit]}
