"""Which phases of a search every further device pays again, and which are paid once."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.records import RunRecord, State
from orchestrator.report.costs import amortised, fixed_and_marginal, search_parts


def _record(step: str, phase: str, method: str, device_s: float, **values: Any) -> RunRecord:
    return RunRecord(
        run="r", step=step, key=step, phase=phase, method=method, state=State.DONE,
        metrics={"search/device_s": device_s}, **values,
    )  # fmt: skip


def _row(index: int, device_s: float, *steps: str) -> RunRecord:
    return _record(f"sweep/m-l{index}", "solve", "m", device_s, policy_id=f"p{index}",
                   limits={"bitops": f"{index}G"}, facts={"search_steps": list(steps)})  # fmt: skip


def test_a_phase_that_aims_at_limits_is_paid_by_every_device_even_where_there_is_one() -> None:
    records = [
        _record("shared", "source", "m", 40.0),
        _record("m-l0", "source", "m", 10.0),
        _row(0, 50.0, "shared", "m-l0"),
    ]
    parts = {part.part: part for part in search_parts(records)}
    assert {name: part.per_device for name, part in parts.items()} == {"shared": False, "m": True}
    assert fixed_and_marginal(tuple(parts.values())) == (40.0, 10.0)
    assert amortised(tuple(parts.values()), 4) == pytest.approx(20.0)


def test_a_phase_that_not_every_device_rests_on_is_no_shared_one() -> None:
    records = [
        _record("one", "source", "m", 10.0),
        _record("two", "source", "m", 30.0),
        _row(0, 10.0, "one"),
        _row(1, 40.0, "one", "two"),
    ]
    parts = {part.part: part.per_device for part in search_parts(records)}
    assert parts == {"one": False, "two": True}
