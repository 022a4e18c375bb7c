"""Rows 6, 7, 10 to 12, 14 to 16, 18, 20, 21, 24 and 25: what needs no cluster to go wrong."""

from __future__ import annotations

import json
import os
import pickle
import resource
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from forked import Phases, in_child

from orchestrator.cli import run_command
from orchestrator.errors import ResourceError, StoreError
from orchestrator.journal import Journal, read_journal
from orchestrator.lock import RunLock
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from solvers.batch import Question, Tables, answer
from solvers.errors import PolicyError, SolversError, TableError
from solvers.limits import Limit
from solvers.policy import check_fits, make_policy
from solvers.storage import (
    load_costs,
    load_importance,
    load_policy,
    load_results,
    save_importance,
    save_policy,
)
from solvers.tables import BitChoices, CostTable, Importance, ImportanceTable, LayerBits
from trainers.checkpoint import Checkpoints, load_tensors
from trainers.costs import trace_costs
from trainers.errors import CheckpointError, DivergedError, TrainersError
from trainers.models import build_model
from trainers.phases import ModelSpec, PhaseContext
from trainers.registry import find_phase
from trainers.results import load_result
from trainers.watchdog import Fence, SupersededError, Watchdog, raise_fence

if TYPE_CHECKING:
    from fault_ledger import Ledger


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return Phases(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def costs(phases: Phases) -> CostTable:
    return load_costs(phases.inputs["costs"])


def importance_of(costs: CostTable) -> ImportanceTable:
    searched = [layer.name for layer in costs if layer.pinned is None]
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=b, value=(index + 2.0) / b)
        for index, name in enumerate(searched)
        for tensor in ("weight", "act")
        for b in (2, 4)
    )
    return ImportanceTable(model=costs.model, fingerprint=costs.fingerprint, method="test",
                           seed=0, data_fingerprint="d", rows=rows)  # fmt: skip


def survived(ledger: Ledger, row: int, kind: str, check: Callable[[], None]) -> None:
    ledger.inject(row, kind)
    check()
    ledger.survive(row, kind)


# --- 6: no room ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 200, 1_000, 5_000, 20_000, 60_000, 100_000, 300_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, ledger: Ledger, limit: int
) -> None:
    first, second = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    Checkpoints(tmp_path, 0).save(1, first, {"b": torch.zeros(2)})

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            Checkpoints(tmp_path, 0).save(2, second, {"b": torch.ones(2)})
        except OSError as error:
            os._exit(9 if error.errno == 27 else 8)

    def check() -> None:
        assert in_child(write) == 9
        found = Checkpoints(tmp_path, 0).newest()
        assert found is not None
        assert found[0] == 1
        assert torch.equal(found[1]["w"], first["w"])
        assert not list(tmp_path.rglob(".tmp-*.pt"))
        Checkpoints(tmp_path, 0).save(3, second, {"b": torch.ones(2)})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]

    survived(ledger, 6, "checkpoint larger than the room left (RLIMIT_FSIZE)", check)


@pytest.mark.parametrize("room", [0, 1, 50, 200])
def test_a_journal_line_that_does_not_fit_is_taken_back(
    tmp_path: Path, ledger: Ledger, room: int
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.event("one")
    size = path.stat().st_size

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
        with Journal(path) as journal:
            try:
                journal.event("two", {"text": "x" * 400})
            except ResourceError:
                os._exit(9)

    def check() -> None:
        assert in_child(write) == 9
        assert path.stat().st_size == size
        with Journal(path) as journal:
            journal.event("three")
        assert [e.kind for e in read_journal(path).entries] == ["one", "three"]

    survived(ledger, 6, "journal line larger than the room left (RLIMIT_FSIZE)", check)


# --- 7: damage -----------------------------------------------------------------------------------

DAMAGE = [("flip", part) for part in range(8)] + [("cut", part) for part in range(8)] + [
    ("zero", 0), ("missing", 0), ("no manifest", 0), ("manifest", 0), ("empty", 0),
]  # fmt: skip


@pytest.mark.parametrize(("how", "part"), DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, how: str, part: int
) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path, 0).save(step, {"w": torch.full((500,), float(step))}, {})
    newest = tmp_path / "step-000000002"
    path = newest / ("manifest.json" if "manifest" in how else "shared.pt")
    content = path.read_bytes()
    at = len(content) * part // 8
    if how in ("missing", "no manifest"):
        path.unlink()
    elif how == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    else:
        made = {"cut": content[:at], "zero": bytes(len(content)), "manifest": b"{}", "empty": b""}
        path.write_bytes(made[how])

    def check() -> None:
        found = Checkpoints(tmp_path, 0).newest()
        assert found is not None
        assert found[0] == 1
        assert "damaged" in caplog.text
        for each in tmp_path.rglob("shared.pt"):
            each.write_bytes(b"x")
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoints(tmp_path, 0).newest()

    survived(ledger, 7, f"checkpoint: {how}", check)


def test_without_its_manifest_check_a_flipped_bit_would_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison with the manifest is what notices."""
    import trainers.checkpoint

    Checkpoints(tmp_path, 0).save(1, {"w": torch.zeros(500)}, {})
    path = tmp_path / "step-000000001" / "shared.pt"
    content = bytearray(path.read_bytes())
    at = content.index(bytes(400)) + 100
    content[at] ^= 4
    path.write_bytes(bytes(content))
    monkeypatch.setattr(trainers.checkpoint, "damage", lambda folder: None)
    try:
        found = Checkpoints(tmp_path, 0).newest()
    except CheckpointError:
        return  # this build of torch checks sums itself; then the manifest is the second guard
    assert found is not None
    assert not torch.equal(found[1]["w"], torch.zeros(500))


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


# --- 20: files that would run code ----------------------------------------------------------------


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


READERS: dict[str, Callable[[Path], object]] = {
    "load_tensors": load_tensors,
    "load_policy": load_policy,
    "load_costs": load_costs,
    "load_importance": load_importance,
    "load_results": load_results,
    "load_result": load_result,
    "read_journal": read_journal,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_no_reader_runs_what_is_in_a_file(
    tmp_path: Path, ledger: Ledger, reader: str, form: str
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "file"
    if form == "torch":
        torch.save({"model": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"schema": Bomb(mark)}))

    def check() -> None:
        with pytest.raises((TrainersError, SolversError, StoreError)):
            READERS[reader](path)
        assert not mark.exists()

    survived(ledger, 20, f"a {form} file that touches another", check)


def test_the_file_would_have_run_its_code(tmp_path: Path) -> None:
    """Negative control: read with pickle, the file does what it says."""
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    pickle.loads(path.read_bytes())
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch mark]",
                                 "!!python/name:os.system"])  # fmt: skip
def test_yaml_makes_no_objects(
    tmp_path: Path, ledger: Ledger, capfd: pytest.CaptureFixture[str], tag: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"schema: experiment/1\nname: {tag}\n")

    def check() -> None:
        assert run_command(["plan", str(path)]) == 2
        assert not Path("mark").exists()
        assert "Traceback" not in capfd.readouterr().err

    survived(ledger, 20, "YAML that makes Python objects", check)


# --- 21: paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "a/../../x", "a\x00b", "%2e%2e/x", "x" * 300]
)
def test_no_name_leads_out_of_the_run(tmp_path: Path, ledger: Ledger, name: str) -> None:
    def check() -> None:
        store = RunStore(tmp_path, "run")
        with pytest.raises(StoreError):
            RunStore(tmp_path, name)
        with pytest.raises(StoreError):
            store.step_dir(name)

    survived(ledger, 21, "run or step name", check)


@pytest.mark.parametrize("how", ["link", "outside", "folder link"])
def test_no_output_leads_out_of_the_run(tmp_path: Path, ledger: Ledger, how: str) -> None:
    store = RunStore(tmp_path / "runs", "run")
    secret = tmp_path / "secret"
    secret.write_text("s")
    folder = store.step_dir("s")
    folder.mkdir(parents=True)
    output = "steps/s/out"
    if how == "link":
        (folder / "out").symlink_to(secret)
    elif how == "folder link":
        (folder / "out").symlink_to(tmp_path)
    else:
        output = "../../secret"
    record = RunRecord(run="run", step="s", key="k", phase="train", method="m", state=State.DONE,
                       outputs={"o": output})  # fmt: skip

    def check() -> None:
        with pytest.raises(StoreError):
            store.finish_step("s", record)

    survived(ledger, 21, "output that is a link or outside", check)


# --- 24: versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["journal/0", "journal/2", "ledger/1", None])
def test_a_journal_of_another_version_is_refused_unchanged(
    tmp_path: Path, ledger: Ledger, schema: str | None
) -> None:
    from orchestrator.journal import _line

    path = tmp_path / "journal.jsonl"
    path.write_bytes(_line(0, "header", {"schema": schema, "run_id": "x"}))
    before = path.read_bytes()

    def check() -> None:
        with pytest.raises(StoreError, match="schema"):
            Journal(path)
        assert path.read_bytes() == before

    survived(ledger, 24, "journal of another version", check)


@pytest.mark.parametrize("kind", ["policy", "importance"])
def test_a_table_or_policy_of_another_version_is_refused(
    tmp_path: Path, costs: CostTable, ledger: Ledger, kind: str
) -> None:
    path = tmp_path / "file"
    if kind == "policy":
        bits = LayerBits(weight_bits=3, act_bits=3)
        save_policy(path, make_policy(costs, {s.name: s.pinned or bits for s in costs}, "uniform"))
        body = json.loads(path.read_text())
        body["schema"] = body["schema"].rpartition("/")[0] + "/99"
        path.write_text(json.dumps(body))
    else:
        save_importance(path, importance_of(costs))
        content = path.read_bytes()
        assert b"importance/" in content
        path.write_bytes(content.replace(b"importance/1", b"importance/9"))

    def check() -> None:
        with pytest.raises(SolversError):
            (load_policy if kind == "policy" else load_importance)(path)

    survived(ledger, 24, f"{kind} of another version", check)


# --- 25: late results -----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 4])
def test_a_worker_that_was_replaced_writes_nothing_more(
    phases: Phases, tmp_path: Path, ledger: Ledger, at: int
) -> None:
    """The old group is held at an update while a new one is started; then both go on."""
    step_dir = tmp_path / "step"
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

    def check() -> None:
        context = replace(PhaseContext.alone(step_dir), should_stop=old_should_stop)
        with pytest.raises(SupersededError):
            find_phase("pretrain")(spec, context)
        alone = PhaseContext.alone(tmp_path / "alone")
        expected = find_phase("pretrain")(spec, alone)
        found = load_result(step_dir / "result.json")
        assert found is not None
        assert found.metrics == expected.metrics
        crc = [zlib.crc32((p / "weights.pt").read_bytes()) for p in (step_dir, tmp_path / "alone")]
        assert crc[0] == crc[1]

    survived(ledger, 25, "old group goes on beside the new one", check)
