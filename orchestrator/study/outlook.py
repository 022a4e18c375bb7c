"""What would a study do and take? The forecasts of its runs, added up; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config import LoadedConfig
from orchestrator.figures.cost import seconds_text
from orchestrator.forecast.now import DONE, forecast
from orchestrator.forecast.rate import stated_rate
from orchestrator.study.config import Study


def study_forecast(
    experiments: Mapping[int, tuple[str, LoadedConfig]],
) -> dict[int, dict[str, Any]]:
    """Seed -> what ``mpq plan`` would say of its run, at the rate that the configuration states.

    Every run is looked at, because some may be done: a study goes on.

    Raises:
        ModelError: the network cannot be built, or weights do not fit.
        DataError: the images cannot be looked at.
    """
    return {
        seed: forecast(loaded.config, stated_rate(loaded.config, None))
        for seed, (_, loaded) in experiments.items()
    }


def outlook_lines(study: Study, found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The forecasts in words."""
    num = len(study.methods) * len(study.budgets)
    lines = [f"study {study.name}: {len(found)} runs of {num} method-budget pairs"]
    for seed, run in found.items():
        left = [step for step in run["steps"] if step["state"] not in DONE]
        lines.append(
            f"  seed {seed}: {study.runs_dir}/{study.run_name(seed)}: {len(left)} of "
            f"{len(run['steps'])} steps to do, at most {run['policies']} policies to train"
        )
        if run["drift"]:
            lines.append("    refused: it was made with another configuration:")
            lines += [f"      {line}" for line in run["drift"]]
    first = next(iter(found.values()))
    lines.append("limits:")
    for limits in first["limits"]:
        state = "infeasible" if limits["problem"] else "feasible"
        told = limits["problem"] or "; ".join(limits["reach"])
        lines.append(f"  {state:<11} {limits['name']}: {told}")
    return [*lines, *_time([run["time"] for run in found.values()])]


def is_within_reach(found: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether every budget can be met by some policy."""
    return not any(limits["problem"] for run in found.values() for limits in run["limits"])


def _time(runs: list[Mapping[str, Any]]) -> list[str]:
    rate = runs[0]["rate"]
    if rate is None:
        return ["time: not reckoned, no rate is known; set cluster.images_per_second in settings"]
    skipped = dict.fromkeys(name for run in runs for name in run["not_reckoned"])
    lines = [f"  not in it: {', '.join(skipped)}"] if skipped else []
    known = [run for run in runs if run["device_h"] is not None]
    if not known and skipped:
        return ["time: not reckoned, the number of images is not known"]
    device_s, wall_s = (3600 * sum(run[key] for run in known) for key in ("device_h", "wall_h"))
    return [
        f"time: {seconds_text(device_s)} of device time, {seconds_text(wall_s)} on the clock if "
        "runs follow one another and workers share each without loss",
        f"  at {rate['images_per_second']:.4g} images a second and worker ({rate['source']})",
        *lines,
    ]
