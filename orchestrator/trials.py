"""The only file that knows Ray Tune: named pieces of work as trials, several at once.

Tune spends 30 to 1,500 ms on a trial, so a trial is something that takes seconds or minutes: a
chunk of solves, or a whole training phase. The trial itself asks for almost nothing and gets its
work done by tasks or workers of its own. What it leaves is a file, and which files are missing
decides what runs: Tune's own memory of finished trials is not relied on, because after a kill of
the driver Tune runs some of them again. Nor is its way of trying again, which knows no classes:
trials whose process or node was lost are run anew here, by the budgets of ``retries``.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cluster import TRIAL_CPUS
from orchestrator.launch import losses_of
from orchestrator.relaunch import GroupLostError
from orchestrator.retries import Decision, FailureClass, RetriesConfig, classify, decide
from trainers.errors import InterruptedPhaseError

Work = Callable[[str], Mapping[str, Any]]
# What the trials that ended well returned, by name, and what the others failed with: of a trial
# that was lost before its first report, Tune does not say which it was.
Ended = tuple[dict[str, dict[str, Any]], list[Exception]]
Fit = Callable[[Sequence[str], Work], Ended]
# Hears which trials run again, at which attempt (from 2), and why.
Tell = Callable[[Sequence[str], int, Decision], None]


class TrialsLostError(GroupLostError):
    """Trials failed for good.

    Args:
        message: what happened last.
        failure: its class.
        found: what the trials that ended well returned, by name.
    """

    def __init__(self, message: str, failure: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(message, failure)
        self.args = (message, str(failure), found)
        self.found = found


def run_trials(
    names: Sequence[str],
    work: Work,
    *,
    folder: Path,
    label: str,
    concurrent: int,
    tell: Tell,
    stopped: Callable[[], bool] = lambda: False,
    resources: Mapping[str, float] | None = None,
    retries: RetriesConfig | None = None,
    fit: Fit | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, dict[str, Any]]:
    """Run ``work(name)`` for every name on the connected cluster.

    Args:
        names: of the trials.
        work: returns small plain values; files carry the rest, and what is there is not done twice.
        folder: where Tune keeps its state.
        label: beginning of the experiment's name.
        concurrent: trials at once.
        tell: hears of every restart; may be called in a thread.
        stopped: whether the user wants to stop; asked before and between rounds. Within one, the
            work itself looks.
        resources: what a trial asks for besides a hundredth of a CPU, e.g. a certain node.
        retries: how often trials whose process was lost are run again, by class of the loss; None =
            the defaults. What the work raised is not tried again.
        fit: runs trials once; None = Ray Tune.
        sleep: waits.

    Returns:
        Name -> what its work returned.

    Raises:
        TrialsLostError: a trial failed for good; it has what the others returned.
        InterruptedPhaseError: the user wanted to stop before every trial had run.
    """
    run_once = fit or _tune(folder, label, concurrent, resources)
    budget, spent = retries or RetriesConfig(), Counter[FailureClass]()
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    attempt = 1
    while True:
        if stopped():
            raise InterruptedPhaseError("stopped before every trial had run")
        try:
            returned, errors = run_once(left, work)
        except Exception as raised:
            # Tune itself may go with a node; whatever else it raises is a defect of ours.
            if classify(losses_of(raised)) is FailureClass.USER:
                raise
            returned, errors = {}, [raised]
        found |= returned
        if not errors:
            return {name: found[name] for name in names}
        left = [name for name in names if name not in found]
        decisions = [
            decide(losses_of(error), spent, budget, num_workers=1, draw=random.random())
            for error in errors
        ]
        for error, decision in zip(errors, decisions, strict=True):
            if not decision.again:
                raise TrialsLostError(
                    f"{len(errors)} of {len(names)} trials failed: {decision.reason}",
                    decision.failure,
                    found,
                ) from error
        spent.update({decision.failure for decision in decisions})
        attempt += 1
        slowest = max(decisions, key=lambda decision: decision.wait_s)
        tell(left, attempt, slowest)
        waited_s = 0.0
        while waited_s < slowest.wait_s and not stopped():
            sleep(min(1.0, slowest.wait_s - waited_s))
            waited_s += 1.0


def _tune(folder: Path, label: str, concurrent: int, resources: Mapping[str, float] | None) -> Fit:
    """Runs trials once under Ray Tune."""
    from ray import tune

    def fit(names: Sequence[str], work: Work) -> Ended:
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
        grid = list(tuner.fit())
        returned = {r.metrics["name"]: dict(r.metrics) for r in grid if r.error is None}
        return returned, [r.error for r in grid if r.error is not None]

    return fit
