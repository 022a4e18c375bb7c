"""The only file that knows Ray Tune: named pieces of work as trials, several at once.

Tune spends 30 to 1,500 ms on a trial, so a trial is something that takes seconds or minutes: a
chunk of solves, or a whole training phase. The trial itself asks for almost nothing and gets its
work done by tasks or workers of its own. What it leaves is a file, and which files are missing
decides what runs: Tune's own memory of finished trials is not relied on, because after a kill of
the driver Tune runs some of them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A trial waits for its tasks or workers; it must not hold a core that they need.
TRIAL_CPUS = 0.01


def run_trials(
    names: Sequence[str],
    work: Callable[[str], Mapping[str, Any]],
    *,
    folder: Path,
    label: str,
    concurrent: int,
    resources: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run ``work(name)`` for every name on the connected cluster.

    Args:
        names: of the trials.
        work: returns small plain values; files carry the rest.
        folder: where Tune keeps its state.
        label: beginning of the experiment's name.
        concurrent: trials at once.
        resources: what a trial asks for besides a hundredth of a CPU, e.g. a certain node.

    Returns:
        Name -> what its work returned.

    Raises:
        RuntimeError: a trial failed.
    """
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({**work(config["name"]), "name": config["name"]})

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": TRIAL_CPUS, **(resources or {})}),
        param_space={"name": tune.grid_search(list(names))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(
            # Never a name that was used before: Tune lets two experiments of one name destroy
            # each other.
            name=f"{label}-{time.time_ns()}",
            storage_path=str(folder / "tune"),
            verbose=0,
        ),
    )
    grid = tuner.fit()
    errors = [str(result.error) for result in grid if result.error is not None]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(names)} trials failed: {errors[0]}")
    return {result.metrics["name"]: dict(result.metrics) for result in grid}
