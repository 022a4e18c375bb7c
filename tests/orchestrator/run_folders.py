"""Run folders as tests of reports and comparisons need them: journal, configuration, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import events
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from orchestrator.yaml_source import dump_yaml
from solvers.policy import Policy, make_policy
from solvers.storage import save_costs, save_importance, save_policy
from solvers.tables import CostTable, Importance, ImportanceTable, LayerBits, LayerSpec

NAMES = ("first", "a", "b", "c", "last")
PINNED = LayerBits(weight_bits=8, act_bits=8)
BUDGETS = ("1G", "2G")


def costs() -> CostTable:
    """A network of five layers, the outer ones pinned."""
    layers = tuple(
        LayerSpec(
            name=name, kind="conv", num_macs=1000, num_macs_unfloored=1000, num_weights=90,
            num_biases=0, num_inputs=50, num_outputs=50,
            pinned=PINNED if name in ("first", "last") else None,
        )
        for name in NAMES
    )  # fmt: skip
    return CostTable(model="net", input_shape=(3, 8, 8), layers=layers)


def policy(*pairs: tuple[int, int]) -> Policy:
    """(weight bits, activation bits) of the three searched layers."""
    own = {n: LayerBits(weight_bits=w, act_bits=a)
           for n, (w, a) in zip(NAMES[1:-1], pairs, strict=True)}  # fmt: skip
    return make_policy(costs(), {**own, "first": PINNED, "last": PINNED}, "test")


def table(scale: float = 1.0) -> ImportanceTable:
    """Importance that falls with bits, larger for later layers."""
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=bits, value=scale * (index + 1) / bits)
        for index, name in enumerate(NAMES[1:-1])
        for tensor in ("weight", "act")
        for bits in (2, 3, 4)
    )
    return ImportanceTable(
        model="net", fingerprint="f", method="limpq", seed=0, data_fingerprint="d", rows=rows
    )


POLICIES = {
    ("limpq", "1G"): policy((2, 3), (3, 2), (3, 3)),
    ("uniform", "1G"): policy((3, 2), (3, 2), (3, 2)),
    ("random", "1G"): policy((4, 2), (2, 2), (2, 4)),
    ("limpq", "2G"): policy((3, 4), (4, 4), (4, 4)),
    ("uniform", "2G"): policy((4, 4), (4, 4), (4, 4)),
    ("random", "2G"): policy((4, 4), (2, 4), (4, 3)),
}


def write_run(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    top1: dict[tuple[str, str], float] | None = None,
    policies: dict[tuple[str, str], Policy] | None = None,
    config: dict[str, Any] | None = None,
    data: str = "data-1",
    finished: bool = True,
    extra: Sequence[RunRecord] = (),
    files: bool = True,
    pinned: Sequence[str] = ("first", "last"),
) -> RunStore:
    """A run of limpq, uniform and random at two budgets.

    Args:
        folder: of the runs.
        name: of the run.
        seed: of the run.
        top1: (method, budget) -> percent; a method that is not there failed in training.
        policies: (method, budget) -> what was found.
        config: laid over the configuration.
        data: fingerprint of the images.
        finished: whether it came to its end.
        extra: further records.
        files: whether policies and tables are there.
        pinned: layers that it says it pins.
    """
    policies = POLICIES if policies is None else policies
    if top1 is None:
        top1 = {key: 90.0 + index for index, key in enumerate(POLICIES)}
    store = RunStore(folder, name)

    def record(phase: str, key: str, **values: Any) -> RunRecord:
        base: dict[str, Any] = {
            "run": name, "step": phase, "key": f"{phase}-{key}", "phase": phase, "method": "any",
            "state": State.DONE, "seed": seed,
        }  # fmt: skip
        return RunRecord(**{**base, **values})

    search = {"search/device_s": 30.0, "search/wall_s": 20.0, "search/images": 640.0,
              "search/passes": 20.0}  # fmt: skip
    records = [
        record("costs", "c", outputs={"costs": "steps/costs/costs.parquet"},
               facts={"fingerprint": costs().fingerprint, "pinned": list(pinned)}),
        record("pretrain", "p", method="fp", metrics={"eval/top1": 99.0}, device="2 x cpu",
               facts={"data_fingerprint": data}),
        record("indicators", "i", method="limpq", metrics=search, device="2 x cpu",
               costs={"images": 640.0, "forward_passes": 10.0, "backward_passes": 10.0},
               outputs={"importance": "steps/indicators/importance.parquet",
                        "initial": "steps/indicators/initial.parquet"}),
    ]  # fmt: skip
    for (method, budget), own in policies.items():
        index = BUDGETS.index(budget)
        solved = {**search, "solve/wall_s": 0.01} if method == "limpq" else {}
        metrics = {"cost/bitops_g": 1.0 + index, "cost/weight_mib": 0.5 + index / 10,
                   "cost/mean_weight_bits": 3.0, "cost/mean_act_bits": 3.0, **solved}  # fmt: skip
        path = f"policies/{own.policy_id}.json"
        facts = {"limit_index": index, "bounds": {"bitops": int(1e9)}, "uses": [int(9e8)],
                 "resources": {"bitops": "bitops"}, "training": own.policy_id,
                 "search_steps": ["indicators"] if method == "limpq" else []}  # fmt: skip
        records.append(
            record("solve", f"{method}-{budget}", step=f"sweep/{method}-{budget}", method=method,
                   policy_id=own.policy_id, limits={"bitops": budget},
                   alpha=1.0 if method == "limpq" else None,
                   metrics=metrics, outputs={"policy": path}, facts=facts)
        )  # fmt: skip
        measured = top1.get((method, budget))
        state = State.DONE if measured is not None else State.DIVERGED
        trained = record(
            "train", own.policy_id, step=f"train/{own.policy_id}", method=method,
            policy_id=own.policy_id, state=state,
            metrics={} if measured is None else {"eval/top1": measured},
            message="" if measured is not None else "loss is nan <at> step 3",
            outputs={"policy": path}, facts={"training": own.policy_id},
        )  # fmt: skip
        if all(r.key != trained.key for r in records):
            records.append(trained)
        if files:
            save_policy(store.root / path, own)
    if files:
        save_costs(store.root / "steps/costs/costs.parquet", costs())
        save_importance(store.root / "steps/indicators/importance.parquet", table())
        save_importance(store.root / "steps/indicators/initial.parquet", table(0.5))
    with store.opened() as journal:
        journal.event(events.RUN_STARTED, {
            "command": "mpq run <x>.yaml", "machine": {"cores": 2, "processor": "p"},
            "versions": {"torch": "2"},
        })  # fmt: skip
        journal.event(events.PLANNED, {"steps": [], "not_run": []})
        journal.append_all([*records, *(replace(r, run=name) for r in extra)])
        if finished:
            spent = {"train": 60.0, "Ray start and stop": 40.0}
            journal.event(events.RUN_FINISHED, {"exit_code": 0, "wall_s": 100.0, "spent": spent})
    tree = {"schema": "experiment/1", "name": name, "seed": seed, "method": "limpq",
            "model": {"name": "<img src=x onerror=alert(1)>"}, "data": {"name": "d"},
            "accounting": "standard", "cluster": {"num_workers": 2}, **(config or {})}  # fmt: skip
    store.config_path.write_text(dump_yaml(tree))
    return store
