"""Trials whose process was lost run again, those that failed do not; Ray Tune is played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.retries import Decision, FailureClass, RetriesConfig
from orchestrator.trials import Ended, TrialsLostError, Work, run_trials
from trainers.errors import InterruptedPhaseError


class RayActorError(Exception):
    """Named like Ray's."""


class Tune:
    """Loses or fails what it is told to, once a mention, and does the rest."""

    def __init__(self, *troubles: dict[str, Exception]) -> None:
        self.troubles = list(troubles)
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str], work: Work) -> Ended:
        self.asked.append(list(names))
        now = self.troubles.pop(0) if self.troubles else {}
        done = {name: dict(work(name)) for name in names if name not in now}
        return done, list(now.values())


class Told(list[tuple[list[str], int, str]]):
    """What was told of restarts: who, at which attempt, and the class."""

    def __call__(self, names: Sequence[str], attempt: int, decision: Decision) -> None:
        self.append((list(names), attempt, str(decision.failure)))


def run(
    tune: Any, told: Told | None = None, stopped: Callable[[], bool] = lambda: False,
    waits: list[float] | None = None, **retries: Any,
) -> tuple[dict[str, dict[str, Any]], list[float]]:  # fmt: skip
    waits = [] if waits is None else waits
    found = run_trials(
        ["a", "b", "c"], lambda name: {"did": name}, folder=Path("unused"), label="x",
        concurrent=2, tell=told if told is not None else Told(), stopped=stopped,
        retries=RetriesConfig(**retries), fit=tune, sleep=waits.append,
    )  # fmt: skip
    return found, waits


LOST = RayActorError("The actor died unexpectedly before finishing this task.")


def test_only_lost_trials_run_again_and_nothing_is_missing() -> None:
    tune, told = Tune({"b": LOST, "c": LOST}, {"c": LOST}), Told()
    found, waits = run(tune, told)
    assert tune.asked == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert told == [(["b", "c"], 2, "infrastructure"), (["c"], 3, "infrastructure")]
    assert found == {name: {"did": name} for name in "abc"}
    assert list(found) == ["a", "b", "c"]
    assert 1.5 <= sum(waits) <= 3.0
    assert all(0 < wait <= 1.0 for wait in waits)


def test_the_budget_ends_it_with_the_class_and_what_the_others_did() -> None:
    tune = Tune(*({"b": LOST} for _ in range(9)))
    with pytest.raises(TrialsLostError, match=r"1 of 3 trials failed: .*The actor died") as caught:
        run(tune, infrastructure=2)
    assert len(tune.asked) == 3
    assert caught.value.failure == FailureClass.INFRASTRUCTURE
    assert caught.value.found == {name: {"did": name} for name in "ac"}


def test_a_disk_that_stays_full_ends_it_as_want_of_resources() -> None:
    full = OSError(28, "No space left on device")
    tune = Tune(*({"b": full} for _ in range(9)))
    with pytest.raises(TrialsLostError, match="No space left") as caught:
        run(tune)
    assert len(tune.asked) == 2
    assert caught.value.failure == FailureClass.RESOURCE


def test_what_the_work_raised_is_not_tried_again() -> None:
    tune = Tune({"a": LOST, "b": ValueError("shapes")})
    with pytest.raises(TrialsLostError, match=r"2 of 3 trials failed: .*shapes") as caught:
        run(tune)
    assert len(tune.asked) == 1
    assert caught.value.failure == FailureClass.USER


def test_tune_itself_may_be_lost_but_what_else_it_raises_is_a_defect() -> None:
    tune, troubles = Tune(), [LOST]

    def fit(names: Sequence[str], work: Work) -> Ended:
        if troubles:
            raise troubles.pop()
        return tune(names, work)

    found, _ = run(fit)
    assert sorted(found) == ["a", "b", "c"]
    troubles.append(TypeError("cannot pickle"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot pickle"):
        run(fit)


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
def test_who_asked_to_stop_waits_for_no_other_round(wait_s: float) -> None:
    tune = Tune({"b": LOST}, {"b": LOST})
    told, waits = Told(), list[float]()
    with pytest.raises(InterruptedPhaseError):
        run(tune, told, lambda: bool(told), waits, first_wait_s=wait_s)
    assert len(tune.asked) == 1
    assert waits == []
