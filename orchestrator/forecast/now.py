"""What would a run do now, and what would it take? The plan held against the run folder.

Nothing is changed, and neither images nor weights are needed: what is not here is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.cells import LimitSet
from orchestrator.config_schema import ExperimentConfig
from orchestrator.drift import differences
from orchestrator.forecast.disk import disk_need
from orchestrator.forecast.images_at_hand import images_at_hand
from orchestrator.forecast.rate import Rate
from orchestrator.forecast.work import Work
from orchestrator.forecast.work_of_plan import hours, trained_policies, work_of
from orchestrator.given_policies import given_policies
from orchestrator.literature import rows_named
from orchestrator.plan import Plan, Step, make_plan
from orchestrator.results import amount_text
from orchestrator.store import RunStore
from orchestrator.trace import traced_costs, weight_hashes

# States of steps that nothing is left to do for.
DONE = ("cached", "reused")


def forecast(
    config: ExperimentConfig, rate: Rate | None = None, donors: Sequence[RunStore] = ()
) -> dict[str, Any]:
    """Plan a run, look at what is there already, and reckon what the rest takes.

    Args:
        config: the experiment.
        rate: images a second of one worker; None = hours are not reckoned.
        donors: runs whose finished steps this one would take over.

    Returns:
        Plain values: the run, its steps with state, reason, work and hours, the limits with their
        reach, workers, disk, images, and what the papers report for it.
    """
    store = RunStore(config.runs_dir, config.name)
    images = images_at_hand(config)
    costs = traced_costs(config)
    weights, given = weight_hashes(config), given_policies(config, costs)
    plan = make_plan(config, costs, images.fingerprint, weights, given)
    drift = differences(store, config)
    steps = _steps(store, plan, donors, blocked=bool(drift))
    work = None if images.count is None else work_of(config, plan, images.count)
    _add_work(steps, work, rate)
    policies = trained_policies(config, plan)
    disk = disk_need(plan, policies, images.size_bytes, config.runs_dir)
    cluster = config.cluster
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
        "images": {
            "are_here": images.are_here,
            "told": images.told,
            "count": None if images.count is None else asdict(images.count),
        },
        "workers": {
            "num_workers": cluster.num_workers,
            "gpus_per_worker": cluster.gpus_per_worker,
            "cpus_per_worker": cluster.cpus_per_worker,
        },
        "drift": list(drift),
        "steps": steps,
        "time": _time(steps, rate, cluster.num_workers),
        "disk": {**asdict(disk), "total": disk.total},
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
        "policies": policies,
        "reported": [row.to_json() for row in rows_named(config.reports)],
    }


def _steps(
    store: RunStore, plan: Plan, donors: Sequence[RunStore], *, blocked: bool
) -> list[dict[str, Any]]:
    told = []
    for step in plan.steps:
        verdict = store.finished(step.name, step.key)
        if verdict.record is not None:
            state, reason = "cached", "done, outputs verified"
        elif blocked:
            state, reason = "blocked", "the configuration changed"
        elif donor := _donor(donors, step):
            state, reason = "reused", f"done in {donor}, outputs verified"
        else:
            state = "run"
            reason = f"{step.about} ({verdict.reason})" if verdict.damaged else step.about
        told.append({"name": step.name, "action": step.action, "key": step.key,
                     "state": state, "reason": reason})  # fmt: skip
    return told


def _donor(donors: Sequence[RunStore], step: Step) -> str:
    """The first run that has the step; empty when none has."""
    return next((d.name for d in donors if d.finished(step.name, step.key).record), "")


def _add_work(
    steps: list[dict[str, Any]], work: dict[str, Work | None] | None, rate: Rate | None
) -> None:
    """Work and device hours of each step that would run; null = not reckoned."""
    for step in steps:
        found = None if work is None else work[step["name"]]
        step["work"] = None if found is None else asdict(found)
        step["device_h"] = None
        if found is not None and rate is not None:
            step["device_h"] = hours(found, rate.images_per_second)


def _time(steps: list[dict[str, Any]], rate: Rate | None, workers: int) -> dict[str, Any]:
    """Hours of the steps that are left; wall time if the workers share them without loss."""
    left = [step for step in steps if step["state"] not in DONE]
    unknown = [step["name"] for step in left if step["device_h"] is None]
    device_h = sum(step["device_h"] or 0.0 for step in left)
    known = rate is not None and len(unknown) < len(left)
    return {
        "rate": None if rate is None else asdict(rate),
        "device_h": device_h if known else None,
        "wall_h": device_h / workers if known else None,
        "not_reckoned": unknown,
    }


def _reach(limits: LimitSet) -> list[str]:
    return [
        "{} of {} to {} reachable".format(
            *(
                amount_text(limits.resources[kind], amount, limits.layers.get(kind, 0))
                for amount in (bound, limits.smallest[kind], limits.largest[kind])
            )
        )
        for kind, bound in limits.bounds.items()
    ]
