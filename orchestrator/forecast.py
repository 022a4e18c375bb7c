"""What would a run do now? The plan held against the run folder, which stays as it is."""

from __future__ import annotations

from typing import Any

from orchestrator.cells import LimitSet
from orchestrator.config_schema import ExperimentConfig
from orchestrator.drift import differences
from orchestrator.plan import Plan, make_plan
from orchestrator.results import amount_text
from orchestrator.store import RunStore
from orchestrator.trace import images_fingerprint, traced_costs


def forecast(config: ExperimentConfig) -> dict[str, Any]:
    """Plan a run and look at what is there already.

    Returns:
        Plain values: the run, its steps with state and reason, the limits with their reach.
    """
    store = RunStore(config.runs_dir, config.name)
    plan = make_plan(config, traced_costs(config), images_fingerprint(config))
    drift = differences(store, config)
    return {
        "run": config.name,
        "folder": str(store.root),
        "network": {
            "model": plan.costs.model,
            "fingerprint": plan.costs.fingerprint,
            "layers": len(plan.costs.layers),
            "searched": len(plan.costs.searched),
            "macs": sum(layer.num_macs for layer in plan.costs),
            "weights": sum(layer.num_weights for layer in plan.costs),
        },
        "drift": list(drift),
        "steps": _steps(store, plan, blocked=bool(drift)),
        "limits": [
            {
                "name": limits.name,
                "problem": limits.problem,
                "bounds": dict(limits.bounds),
                "smallest": dict(limits.smallest),
                "largest": dict(limits.largest),
                "reach": _reach(limits),
            }
            for limits in plan.limit_sets
        ],
        "cells": len(plan.cells),
    }


def _steps(store: RunStore, plan: Plan, *, blocked: bool) -> list[dict[str, str]]:
    told = []
    for step in plan.steps:
        verdict = store.finished(step.name, step.key)
        if verdict.record is not None:
            state, reason = "cached", "done, outputs verified"
        elif blocked:
            state, reason = "blocked", "the configuration changed"
        else:
            state = "run"
            reason = f"{step.about} ({verdict.reason})" if verdict.damaged else step.about
        told.append({"name": step.name, "action": step.action, "key": step.key,
                     "state": state, "reason": reason})  # fmt: skip
    return told


def _reach(limits: LimitSet) -> list[str]:
    return [
        f"{amount_text(limits.resources[kind], bound)} of "
        f"{amount_text(limits.resources[kind], limits.smallest[kind])} to "
        f"{amount_text(limits.resources[kind], limits.largest[kind])} reachable"
        for kind, bound in limits.bounds.items()
    ]
