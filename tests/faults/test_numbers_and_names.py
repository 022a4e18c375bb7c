"""Rows 10 to 12, 14 to 16, 18 and 25: numbers, limits, names, images, policies, clocks."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from forked import Phases
from small_tables import importance_of, survived

from orchestrator.cli import run_command
from orchestrator.journal import read_journal
from orchestrator.lock import RunLock
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from solvers.batch import Question, Tables, answer
from solvers.errors import PolicyError, TableError
from solvers.limits import Limit
from solvers.policy import check_fits, make_policy
from solvers.tables import BitChoices, CostTable, LayerBits
from trainers.checkpoint import load_tensors
from trainers.costs import trace_costs
from trainers.errors import DivergedError, TrainersError
from trainers.models import build_model
from trainers.phases import ModelSpec, PhaseContext
from trainers.registry import find_phase
from trainers.results import load_result
from trainers.watchdog import Fence, SupersededError, Watchdog, raise_fence

if TYPE_CHECKING:
    from fault_ledger import Ledger


# --- 10: not a number ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrain", "metamix.meta"])
def test_a_rate_of_1e20_diverges_and_says_where(
    phases: Phases, tmp_path: Path, ledger: Ledger, name: str
) -> None:
    spec = phases.spec(name, 0)
    fast: Any = replace(spec.config, lr=1e20) if name != "metamix.meta" else replace(
        spec.config, meta=replace(spec.config.meta, lr=1e20)
    )  # fmt: skip

    def check() -> None:
        with pytest.raises(DivergedError, match="update"):
            find_phase(name)(replace(spec, config=fast), PhaseContext.alone(tmp_path))
        assert not (tmp_path / "result.json").exists()
        for path in tmp_path.rglob("shared.pt"):
            state = load_tensors(path)["model"]
            assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())

    survived(ledger, 10, "learning rate 1e20", check)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_broken_indicator_never_reaches_the_solver(
    costs: CostTable, ledger: Ledger, value: float
) -> None:
    table = importance_of(costs)
    rows = (replace(table.rows[0], value=value), *table.rows[1:])

    def check() -> None:
        with pytest.raises(TableError, match=table.rows[0].layer):
            replace(table, rows=rows)

    survived(ledger, 10, "indicator that is no positive number", check)


def test_a_metric_that_is_no_number_is_named_and_not_kept(ledger: Ledger) -> None:
    def check() -> None:
        record = RunRecord(run="r", step="s", key="k", phase="train", method="limpq",
                           state=State.DONE, metrics={"eval/loss": float("inf")})  # fmt: skip
        assert record.metrics == {}
        assert record.facts["not_finite"] == ["eval/loss"]
        json.dumps(record.to_json(), allow_nan=False)

    survived(ledger, 10, "infinite metric", check)


# --- 11, 12: the solver ---------------------------------------------------------------------------


def solve(costs: CostTable, bitops: int, time_limit_s: float = 60.0) -> Any:
    tables = Tables(costs=costs, importance=importance_of(costs),
                    choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)))  # fmt: skip
    question = Question(label="q", alpha=1.0, limits=(Limit(kind="bitops", limit=bitops),))
    return answer(tables, [question], time_limit_s=time_limit_s).rows[0]


def least_bitops(costs: CostTable) -> int:
    from solvers.accounting import cost_breakdown

    lowest = LayerBits(weight_bits=2, act_bits=2)
    return cost_breakdown(costs, {s.name: s.pinned or lowest for s in costs}).bitops


@pytest.mark.parametrize(("share", "fits"), [(0.9, False), (1.0, True), (None, False)])
def test_the_edge_of_the_feasible(
    costs: CostTable, ledger: Ledger, share: float | None, fits: bool
) -> None:
    least = least_bitops(costs)
    bitops = least - 1 if share is None else int(least * share)

    def check() -> None:
        row = solve(costs, bitops)
        assert row.status.has_policy == fits
        if not fits:
            assert str(row.status).endswith("INFEASIBLE")

    survived(ledger, 11, "limit at 0.9, 1.0 and just below 1.0 of the least", check)


@pytest.mark.parametrize("seconds", [1e-9, 1e-6])
def test_no_time_is_never_called_optimal_without_being_it(
    costs: CostTable, ledger: Ledger, seconds: float
) -> None:
    bitops = int(least_bitops(costs) * 1.7)
    best = solve(costs, bitops)

    def check() -> None:
        row = solve(costs, bitops, time_limit_s=seconds)
        if str(row.status).endswith("PROVEN_OPTIMAL"):
            assert row.objective == pytest.approx(best.objective)
        if row.policy_id:
            assert row.uses[0] <= bitops

    survived(ledger, 12, "time limit of no time", check)


# --- 14, 15, 16 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("cifar_resnet9", "cifar_resnet8"), ("resnet81", "resnet18"), ("digitz", "digits")],
)
def test_unknown_names_are_told_the_near_ones(
    tmp_path: Path, ledger: Ledger, capfd: pytest.CaptureFixture[str], wrong: str, near: str
) -> None:
    from conftest import CONFIG

    known = "digits" if wrong == "digitz" else "cifar_resnet8"
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG.replace(f"name: {known}", f"name: {wrong}"))

    def check() -> None:
        assert run_command(["plan", str(path)]) == 2
        assert near in capfd.readouterr().err

    survived(ledger, 14, "misspelt network or data set", check)


@pytest.mark.parametrize("how", ["cut", "magic", "footer", "row bytes", "label", "column"])
def test_a_broken_image_set_is_refused_with_its_place(
    tmp_path: Path, ledger: Ledger, how: str
) -> None:
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from trainers.data import load_data
    from trainers.phases import DataSpec

    def png(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()

    images, labels = [png(i) for i in range(6)], [i % 2 for i in range(6)]
    if how == "row bytes":
        images[3] = images[3][:40]
    if how == "label":
        labels[3] = -7
    names = ["picture", "label"] if how == "column" else ["image", "label"]
    for part in ("train", "test"):
        pq.write_table(pa.table([images, labels], names=names), tmp_path / f"{part}.parquet")
    path = tmp_path / "train.parquet"
    content = path.read_bytes()
    made = {"cut": content[: len(content) // 2], "magic": b"XXXX" + content[4:-4] + b"XXXX",
            "footer": content[:-12] + bytes(12)}  # fmt: skip
    path.write_bytes(made.get(how, content))

    def check() -> None:
        with pytest.raises(TrainersError, match="train"):
            load_data(DataSpec(name="parquet", path=str(tmp_path)), 0)

    survived(ledger, 15, f"Parquet: {how}", check)


@pytest.mark.parametrize("how", ["network", "swapped", "dropped", "renamed"])
def test_a_policy_of_another_network_is_refused(costs: CostTable, ledger: Ledger, how: str) -> None:
    bits = LayerBits(weight_bits=3, act_bits=3)
    layers = list(costs.layers)
    if how == "network":
        model = build_model(ModelSpec(name="cifar_resnet14", options={"in_channels": 1}))
        other = trace_costs(model, name="cifar_resnet14", input_shape=(1, 8, 8))
    else:
        if how == "swapped":
            layers[1], layers[2] = layers[2], layers[1]
        elif how == "dropped":
            del layers[3]
        else:
            layers[2] = replace(layers[2], name="another")
        other = replace(costs, layers=tuple(layers), tensors=())
    policy = make_policy(other, {s.name: s.pinned or bits for s in other}, "uniform")

    def check() -> None:
        with pytest.raises(PolicyError):
            check_fits(policy, costs)

    survived(ledger, 16, f"policy of another network: {how}", check)


# --- 18: clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0, 3_600.0])
def test_a_clock_that_is_set_moves_no_lock_watchdog_or_order(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real = time.time
    ended: list[int] = []
    dog = Watchdog(3600.0, tmp_path / "stacks", end=ended.append)
    store = RunStore(tmp_path, "run")

    def check() -> None:
        with store.opened() as journal:
            journal.event("before")
            monkeypatch.setattr(time, "time", lambda: real() + jump_s)
            journal.event("after")
            with pytest.raises(Exception, match="already running"):
                RunLock(store.lock_path, grace_s=0.3).acquire()
            assert not dog.look()
        assert [e.seq for e in read_journal(store.journal_path).entries] == [1, 2]
        assert ended == []

    survived(ledger, 18, "wall clock set by an hour or a day", check)


# --- 25: late results -----------------------------------------------------------------------------


def _late_group(phases: Phases, folder: Path, at: int) -> None:
    """The old group is held at an update while a new one is started; then both go on."""
    step_dir = folder / "step"
    spec = phases.spec("pretrain", 0)
    raise_fence(step_dir, "old")
    clock = iter(range(10**6))
    updates = [0]

    def old_should_stop() -> bool:
        updates[0] += 1
        if updates[0] == at:
            raise_fence(step_dir, "new")
            find_phase("pretrain")(spec, PhaseContext.alone(step_dir))
        fence.check()
        return False

    fence = Fence(step_dir, "old", clock=lambda: float(next(clock) * 2))
    context = replace(PhaseContext.alone(step_dir), should_stop=old_should_stop)
    with pytest.raises(SupersededError):
        find_phase("pretrain")(spec, context)
    alone = PhaseContext.alone(folder / "alone")
    expected = find_phase("pretrain")(spec, alone)
    found = load_result(step_dir / "result.json")
    assert found is not None
    assert found.metrics == expected.metrics
    crc = [zlib.crc32((p / "weights.pt").read_bytes()) for p in (step_dir, folder / "alone")]
    assert crc[0] == crc[1]


@pytest.mark.parametrize("at", [1, 4])
def test_a_worker_that_was_replaced_writes_nothing_more(
    phases: Phases, tmp_path: Path, ledger: Ledger, at: int
) -> None:
    survived(
        ledger,
        25,
        "old group goes on beside the new one",
        lambda: _late_group(phases, tmp_path, at),
    )


def test_without_the_fence_the_replaced_worker_goes_on(
    phases: Phases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the test above fails when the fence looks at nothing."""
    monkeypatch.setattr(Fence, "check", lambda self: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        _late_group(phases, tmp_path, 1)
