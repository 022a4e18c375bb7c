"""What is the result table of a run? Records in, rows out; pure.

A row is what one method proposed under one set of limits at one alpha. Rows that ended at the
same bits share one training; every row stands there, infeasible and failed ones included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.records import (
    BITOPS_G,
    EVAL_TOP1,
    EVAL_TOP5,
    MEAN_ACT_BITS,
    MEAN_WEIGHT_BITS,
    SEARCH_DEVICE_S,
    SOLVE_WALL_S,
    SOURCE,
    WEIGHT_MIB,
    RunRecord,
    State,
)

_SEARCH_PHASES = ("indicators", "meta", "bit_selection", SOURCE)
NOT_TRAINED = "not trained"
NOT_RECORDED = "not recorded"
_MOST_NAMED = 5
# Policies that are made and not searched for.
_MADE = re.compile(r"uniform(_pact|_all|_w\d+a\d+)?|random(-\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One row of the table.

    Attributes:
        method: who proposed the policy.
        alpha: of the solve, or None.
        limits: kind -> text as written.
        policy_id: what was proposed, or None.
        status: ``DONE`` when trained and measured, ``not trained``, or the state it ended in.
        reason: why there is no accuracy.
        mean_weight_bits: over the searched layers.
        mean_act_bits: over the searched layers.
        bitops_g: in 1e9, of one image.
        weight_mib: size of the weights.
        top1: percent, or None.
        top5: percent, or None.
        drop: full-precision top-1 less this one, in points.
        search_device_s: device seconds of the search phase behind the method; shared by all its
            rows, since one search serves all limits. 0 for methods without one, None where
            nothing says what it cost: a search that failed, or a run of an older version.
        solve_wall_s: of this row's solve.
        trained: the training behind the accuracy.
    """

    method: str
    alpha: float | None
    limits: Mapping[str, str]
    policy_id: str | None
    status: str
    reason: str = ""
    mean_weight_bits: float | None = None
    mean_act_bits: float | None = None
    bitops_g: float | None = None
    weight_mib: float | None = None
    top1: float | None = None
    top5: float | None = None
    drop: float | None = None
    search_device_s: float | None = 0.0
    solve_wall_s: float = 0.0
    trained: RunRecord | None = None

    @property
    def limits_text(self) -> str:
        """The limits as a person writes them."""
        return ", ".join(f"{kind}={value}" for kind, value in self.limits.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """The table of one run.

    Attributes:
        run: its name.
        full_precision: the measured full-precision network, or None.
        rows: every proposal, in order of the search.
        search: the search phases (indicator training, bit selection, other sources).
        failures: steps that gave no result.
        device: of the search seconds.
        skipped: ``place: reason`` of the images that any step could not read and left out.
    """

    run: str
    full_precision: RunRecord | None
    rows: tuple[ResultRow, ...]
    search: tuple[RunRecord, ...] = ()
    failures: tuple[RunRecord, ...] = ()
    device: str = field(default="cpu")
    skipped: tuple[str, ...] = ()

    @property
    def full_precision_top1(self) -> float | None:
        """Percent, where the full-precision network was measured."""
        return None if self.full_precision is None else self.full_precision.metrics.get(EVAL_TOP1)

    @property
    def shown(self) -> tuple[ResultRow, ...]:
        """Rows of the main table, methods side by side at each set of limits.

        All but the feasible ones that nobody wanted trained.
        """
        limits = list(dict.fromkeys(row.limits_text for row in self.rows))
        rows = [row for row in self.rows if row.status != NOT_TRAINED]
        return tuple(sorted(rows, key=lambda row: limits.index(row.limits_text)))


def results_of(run: str, records: Sequence[RunRecord]) -> Results:
    """Join proposals with trainings.

    Args:
        run: its name.
        records: the newest record of every key.
    """
    full = next((r for r in records if r.phase == "pretrain" and r.state is State.DONE), None)
    search = tuple(r for r in records if r.phase in _SEARCH_PHASES)
    trained = {r.facts.get("training", r.policy_id): r for r in records if r.phase == "train"}
    top1 = None if full is None else full.metrics.get(EVAL_TOP1)
    proposals = [r for r in records if r.phase == "solve" and r.method != "any"]
    rows = tuple(
        _row(r, trained.get(r.facts.get("training", r.policy_id)), top1, _search_s(r, search))
        for r in proposals
    )
    failures = tuple(
        r for r in records if r.phase not in ("solve", "train") and r.state is not State.DONE
    )
    device = next((r.device for r in (*search, *trained.values()) if r.device), "cpu")
    skipped = {image for r in records for image in r.facts.get("skipped_images", ())}
    return Results(
        run=run, full_precision=full, rows=rows, search=search, failures=failures, device=device,
        skipped=tuple(sorted(skipped)),
    )  # fmt: skip


def out_of_reach(records: Sequence[RunRecord], resource: str) -> tuple[int, ...]:
    """Limits on one resource that no method met, in the solver's integers, ascending.

    Of limits that are asked for together only those that cannot be met alone, if there are any.
    """
    asked = [r for r in records if r.phase == "solve"]
    met = {tuple(r.limits.items()) for r in asked if r.policy_id is not None}
    found: set[int] = set()
    for record in asked:
        if record.state is not State.INFEASIBLE or tuple(record.limits.items()) in met:
            continue
        bounds, resources = record.facts.get("bounds", {}), record.facts.get("resources", {})
        smallest = record.facts.get("smallest", {})
        alone = {kind for kind, bound in bounds.items() if smallest.get(kind, bound) > bound}
        found |= {bounds[k] for k in alone or bounds if resources.get(k) == resource}
    return tuple(sorted(found))


def skipped_text(results: Results) -> str:
    """How many images a run left out, and which; empty where it left out none."""
    if not results.skipped:
        return ""
    count, more = len(results.skipped), len(results.skipped) - _MOST_NAMED
    tail = f" and {more} more" if more > 0 else ""
    images = "1 image" if count == 1 else f"{count} images"
    return (
        f"{images} could not be read and another stood in "
        f"(data.on_bad_sample: skip): {'; '.join(results.skipped[:_MOST_NAMED])}{tail}"
    )


def _row(
    asked: RunRecord, trained: RunRecord | None, full_top1: float | None, search_s: float | None
) -> ResultRow:
    status, reason = str(asked.state), asked.message
    metrics = dict(asked.metrics)
    if trained is not None:
        metrics |= trained.metrics
        if asked.state is State.DONE or trained.state is not State.DONE:
            status, reason = str(trained.state), trained.message
    elif asked.state is State.DONE:
        status = NOT_TRAINED
    is_search = "search_steps" in asked.facts and "solver" not in asked.facts
    # What is in reach explains why nothing was found, not why a search or a given policy missed.
    if asked.state is State.INFEASIBLE and not is_search and "given" not in asked.facts:
        reason = reachable_text(asked) or reason
    top1 = metrics.get(EVAL_TOP1)
    return ResultRow(
        method=asked.method,
        alpha=asked.alpha,
        limits=asked.limits,
        policy_id=asked.policy_id,
        status=status,
        reason=reason,
        mean_weight_bits=metrics.get(MEAN_WEIGHT_BITS),
        mean_act_bits=metrics.get(MEAN_ACT_BITS),
        bitops_g=metrics.get(BITOPS_G),
        weight_mib=metrics.get(WEIGHT_MIB),
        top1=top1,
        top5=metrics.get(EVAL_TOP5),
        drop=None if top1 is None or full_top1 is None else full_top1 - top1,
        search_device_s=search_s,
        solve_wall_s=asked.metrics.get(SOLVE_WALL_S, 0.0),
        trained=trained,
    )


def _search_s(asked: RunRecord, search: Sequence[RunRecord]) -> float | None:
    """Device seconds of the steps behind a proposal, which its record names.

    Records of older versions name none; they may hold the seconds themselves.
    """
    own = asked.facts.get("search_steps")
    if own is None:
        made = 0.0 if _MADE.fullmatch(asked.method) else None
        return asked.metrics.get(SEARCH_DEVICE_S, made)
    return sum(
        r.metrics.get(SEARCH_DEVICE_S, 0.0)
        for r in search
        if r.state is State.DONE and r.step in own
    )


def reachable_text(record: RunRecord) -> str:
    """Of an infeasible row: what was asked and what any policy reaches at that end."""
    facts = record.facts
    parts = []
    for kind, smallest in facts.get("smallest", {}).items():
        bound = facts.get("bounds", {}).get(kind)
        resource = facts.get("resources", {}).get(kind, "")
        if bound is not None:
            layers = facts.get("layers", {}).get(kind, 0)
            largest = facts.get("largest", {}).get(kind, bound)
            asked = amount_text(resource, bound, layers)
            if bound > largest:
                end = f"largest reachable {amount_text(resource, largest, layers)}"
            else:
                note = "" if smallest > bound else ", can be met alone"
                end = f"smallest reachable {amount_text(resource, smallest, layers)}{note}"
            parts.append(f"{kind}: asked {asked}, {end}")
    return "; ".join(parts)


def amount_text(resource: str, amount: int, layers: int = 0) -> str:
    """An integer of the solver in the unit that people use; of a sum over layers, the mean."""
    if layers:
        return f"{amount / layers:.4g} bit"
    if resource == "bitops":
        return bitops_text(amount / 1e9)
    if resource == "size_bits":
        return f"{amount / 8 / 2**20:.4g} MiB"
    if resource == "peak_bits":
        return f"{amount / 8 / 2**10:.4g} KiB"
    if resource == "latency_ps":
        return f"{amount / 1e6:.4g} us"
    return f"{amount} {resource}".strip()


def bitops_text(bitops_g: float) -> str:
    """BitOps with a unit that keeps four figures."""
    for factor, unit in ((1e-3, "T"), (1.0, "G"), (1e3, "M"), (1e6, "K")):
        if bitops_g * factor >= 1.0:
            return f"{bitops_g * factor:.4g} {unit}"
    return f"{bitops_g * 1e9:.0f}"
