"""What is written down about a finished piece of work, whatever came of it?

One ``RunRecord`` per finished step, solved cell or trained policy, infeasible and failed ones
included. Tables, plots, MLflow and the report are made from records and from nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from solvers.atomic import write_atomically

SCHEMA = "record/1"
TABLE_SCHEMA = "runs/1"

# The metric keys of every method, so that search costs stand in one chart.
SEARCH_DEVICE_S = "search/device_s"
SEARCH_WALL_S = "search/wall_s"
SEARCH_IMAGES = "search/images"
SEARCH_PASSES = "search/passes"
SEARCH_HVPS = "search/hvps"  # Hessian-vector products, of methods that need any
SEARCH_EVALUATIONS = "search/evaluations"  # networks measured as candidates
SOLVE_WALL_S = "solve/wall_s"
TRAIN_DEVICE_S = "train/device_s"
TRAIN_WALL_S = "train/wall_s"
SOURCE = "source"  # phase, and prefix of what else it measured
EVIDENCE = "evidence"  # phase, and prefix of what it measured
EVAL_TOP1 = "eval/top1"
EVAL_TOP5 = "eval/top5"
EVAL_LOSS = "eval/loss"
BITOPS_G = "cost/bitops_g"
WEIGHT_MIB = "cost/weight_mib"
MEAN_WEIGHT_BITS = "cost/mean_weight_bits"
MEAN_ACT_BITS = "cost/mean_act_bits"


def alpha_text(alpha: float) -> str:
    """An alpha in names and tables: short where that is the number itself, else every digit.

    Two alphas that agree to six digits are two questions, and one name for both loses an answer.
    """
    short = f"{alpha:g}"
    return short if float(short) == alpha else repr(float(alpha))


class State(StrEnum):
    """What came of a step."""

    DONE = "DONE"
    INFEASIBLE = "INFEASIBLE"
    """No policy meets the limits; the record says what is reachable."""
    UNPROVEN = "UNPROVEN"
    """A policy that meets the limits, without proof that it is the best."""
    TIMEOUT = "TIMEOUT"
    """No policy within the time limit."""
    DIVERGED = "DIVERGED"
    """The loss or a parameter stopped being finite."""
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"
    BLOCKED = "BLOCKED"
    """Something it depends on did not finish."""

    @property
    def final(self) -> bool:
        """Whether running the step again could give nothing new."""
        return self not in (State.FAILED, State.INTERRUPTED, State.BLOCKED)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One row of truth.

    Attributes:
        run: name of the run.
        step: name of the step, ``indicators`` or ``train/3f2a9c81d0e4``.
        key: hash of everything that decides the result.
        phase: what kind of work: ``pretrain``, ``costs``, ``indicators``, ``meta``,
            ``bit_selection``, ``source``, ``solve``, ``train``, ``evidence``.
        method: ``limpq``, ``uniform``, ``random``, ``reversed``, ``initial``, ``fp`` ...
        state: what came of it.
        policy_id: the policy it found, trained or measured.
        alpha: of the cell.
        limits: of the cell, kind -> text as written.
        seed: of the run.
        metrics: finite numbers by the keys of this module.
        costs: raw meters by name (``wall_s``, ``device_s``, ``images`` ...).
        device: the unit of ``device_s``: ``cpu`` or a GPU's name.
        outputs: role -> path below the run folder.
        facts: what a reader must know besides: reachable values, signed layers, data hash.
        message: why, for every state but DONE.
        attempt: 1 for the first.
        versions: library -> version.
        started_utc: ISO time stamp; a label, never compared.
        wall_s: from start to end, start-up of workers included.
    """

    run: str
    step: str
    key: str
    phase: str
    method: str
    state: State
    policy_id: str | None = None
    alpha: float | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    outputs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    attempt: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    started_utc: str = ""
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        # MLflow turns infinity into 1.8e308 and JSON has no NaN: such a metric is named, not kept.
        lost = sorted(k for k, v in self.metrics.items() if not math.isfinite(v))
        if lost:
            finite = {k: v for k, v in self.metrics.items() if math.isfinite(v)}
            object.__setattr__(self, "metrics", finite)
            object.__setattr__(self, "facts", {**self.facts, "not_finite": lost})

    @property
    def record_id(self) -> str:
        """Its identity in the journal: a final result exists once, each failed attempt once."""
        return self.key if self.state.final else f"{self.key}.{self.state}.{self.attempt}"

    def to_json(self) -> dict[str, Any]:
        """As plain values with the schema name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["state"] = str(self.state)
        return {"schema": SCHEMA, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunRecord:
        """From what ``to_json`` made.

        Raises:
            StoreError: other schema, missing or unknown entries, an unknown state.
        """
        body = dict(values)
        schema = body.pop("schema", None)
        if schema != SCHEMA:
            raise StoreError(
                f"a record has schema {schema!r}",
                why=f"this version reads {SCHEMA!r}",
                todo="read it with the version that wrote it",
            )
        try:
            return cls(**{**body, "state": State(body["state"])})
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError("a record is not whole", why=str(error)) from error


def write_table(records: Iterable[RunRecord], path: Path) -> None:
    """Write ``runs.parquet``: one row per record, one column per metric and cost."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(records)
    columns: dict[str, pa.Array] = {}
    for name in ("run", "step", "key", "phase", "method", "state", "policy_id", "device",
                 "message", "started_utc"):  # fmt: skip
        columns[name] = pa.array([_text(getattr(r, name)) for r in rows], pa.string())
    for name in ("seed", "attempt"):
        columns[name] = pa.array([getattr(r, name) for r in rows], pa.int64())
    for name in ("alpha", "wall_s"):
        columns[name] = pa.array([getattr(r, name) for r in rows], pa.float64())
    for name in ("limits", "outputs", "facts", "versions"):
        texts = [json.dumps(getattr(r, name), sort_keys=True) for r in rows]
        columns[f"{name}_json"] = pa.array(texts, pa.string())
    for name in sorted({key for r in rows for key in r.metrics}):
        columns[name] = pa.array([r.metrics.get(name) for r in rows], pa.float64())
    for name in sorted({key for r in rows for key in r.costs}):
        columns[f"spent/{name}"] = pa.array([r.costs.get(name) for r in rows], pa.float64())
    table = pa.table(columns).replace_schema_metadata({"schema": TABLE_SCHEMA})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _text(value: object) -> str | None:
    return None if value is None else str(value)
