"""Trials whose process was lost run again, those that failed do not; Ray Tune is played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.retries import RetriesConfig
from orchestrator.trials import Ended, Work, run_trials


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


def run(tune: Tune, **retries: Any) -> tuple[dict[str, dict[str, Any]], list[float]]:
    waits: list[float] = []
    found = run_trials(
        ["a", "b", "c"], lambda name: {"did": name}, folder=Path("unused"), label="x",
        concurrent=2, retries=RetriesConfig(**retries), fit=tune, sleep=waits.append,
    )  # fmt: skip
    return found, waits


LOST = RayActorError("The actor died unexpectedly before finishing this task.")


def test_only_lost_trials_run_again_and_nothing_is_missing() -> None:
    tune = Tune({"b": LOST, "c": LOST}, {"c": LOST})
    found, waits = run(tune)
    assert tune.asked == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert found == {name: {"did": name} for name in "abc"}
    assert list(found) == ["a", "b", "c"]
    assert len(waits) == 2
    assert waits[0] > 0


def test_the_budget_ends_it() -> None:
    tune = Tune(*({"b": LOST} for _ in range(9)))
    with pytest.raises(RuntimeError, match=r"1 of 3 trials failed: The actor died"):
        run(tune, infrastructure=2)
    assert len(tune.asked) == 3


def test_what_the_work_raised_is_not_tried_again() -> None:
    tune = Tune({"a": LOST, "b": ValueError("shapes")})
    with pytest.raises(RuntimeError, match=r"2 of 3 trials failed: shapes"):
        run(tune)
    assert len(tune.asked) == 1
