"""What did each method's search cost, phase by phase, and what does it cost one more device?

A phase that serves every set of limits (an indicator training, a meta-state) is paid once; one
that aims at a single set of limits (a bit selection, a policy search) is paid again for every
device, and so is a solve. Everything is read from records: the row of a method carries what all
phases behind it cost, and here that sum is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.records import (
    SEARCH_DEVICE_S,
    SEARCH_IMAGES,
    SEARCH_PASSES,
    SOLVE_WALL_S,
    RunRecord,
    State,
)

SOLVE = "solve"
OTHER = "other search"
# A record's meters that are shown beside the seconds, with what people call them.
METERS: Mapping[str, str] = {
    "images": "images",
    "forward_passes": "forward passes",
    "backward_passes": "backward passes",
    "hvps": "Hessian-vector products",
    "evaluations": "evaluations",
}
_EXACT = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPart:
    """One phase of one method's search.

    Attributes:
        method: whose.
        part: name of the phase, or ``solve``.
        device_s: device seconds of one such phase (mean over sets of limits); wall seconds of a
            solve.
        per_device: whether every further device pays it again.
        meters: images, passes and the like of one such phase.
    """

    method: str
    part: str
    device_s: float
    per_device: bool
    meters: Mapping[str, float]


def search_parts(records: Sequence[RunRecord]) -> tuple[SearchPart, ...]:
    """Every method's phases, methods and phases in order of appearance.

    Args:
        records: the newest record of every key.
    """
    rows = [r for r in records if r.phase == "solve" and r.method != "any"]
    phases = [r for r in records if r.state is State.DONE and SEARCH_DEVICE_S in r.metrics
              and r.phase not in ("solve", "train")]  # fmt: skip
    parts: list[SearchPart] = []
    for method in dict.fromkeys(row.method for row in rows):
        parts += _of_method(method, [r for r in rows if r.method == method], phases)
    return tuple(parts)


def fixed_and_marginal(parts: Sequence[SearchPart]) -> tuple[float, float]:
    """Seconds of one method that are paid once, and those that every device pays."""
    fixed = sum(p.device_s for p in parts if not p.per_device)
    return fixed, sum(p.device_s for p in parts if p.per_device)


def amortised(parts: Sequence[SearchPart], num_devices: int) -> float:
    """Search seconds per device when one search serves ``num_devices`` of them."""
    fixed, marginal = fixed_and_marginal(parts)
    return fixed / num_devices + marginal


def _of_method(
    method: str, rows: Sequence[RunRecord], phases: Sequence[RunRecord]
) -> list[SearchPart]:
    answered = [r for r in rows if SEARCH_DEVICE_S in r.metrics and r.policy_id is not None]
    solved = [r.metrics[SOLVE_WALL_S] for r in rows if SOLVE_WALL_S in r.metrics]
    parts: list[SearchPart] = []
    if answered:
        behind = [_phases_behind(row, phases) for row in answered]
        names = list(dict.fromkeys(_part_name(p) for found in behind for p in found))
        for name in names:
            own = [p for found in behind for p in found if _part_name(p) == name]
            distinct = list({p.key: p for p in own}.values())
            shared = all(any(p.key == distinct[0].key for p in found) for found in behind)
            # One target alone does not show it, but a phase that aims at limits is named for them.
            aimed = distinct[0].step.rpartition("-l")[2].isdigit()
            parts.append(
                SearchPart(
                    method=method,
                    part=name,
                    device_s=_mean([p.metrics[SEARCH_DEVICE_S] for p in distinct]),
                    per_device=aimed or not shared,
                    meters=_meters(distinct),
                )
            )
        told = [
            row.metrics[SEARCH_DEVICE_S] - sum(p.metrics[SEARCH_DEVICE_S] for p in found)
            for row, found in zip(answered, behind, strict=True)
        ]
        rest = _mean(told)
        if rest > _EXACT * max(1.0, _mean([r.metrics[SEARCH_DEVICE_S] for r in answered])):
            # What cannot be told apart is not called shared: that would flatter the method.
            meters = {}
            if not names:
                meters = {
                    "images": _mean([r.metrics.get(SEARCH_IMAGES, 0.0) for r in answered]),
                    "passes": _mean([r.metrics.get(SEARCH_PASSES, 0.0) for r in answered]),
                }
            parts.append(SearchPart(method=method, part=OTHER, device_s=rest, per_device=True,
                                    meters=meters))  # fmt: skip
    if solved:
        parts.append(SearchPart(method=method, part=SOLVE, device_s=_mean(solved),
                                per_device=True, meters={}))  # fmt: skip
    return parts


def _phases_behind(row: RunRecord, phases: Sequence[RunRecord]) -> list[RunRecord]:
    """The phases whose device seconds make up the row's."""
    if "search_steps" in row.facts:
        named = set(row.facts["search_steps"])
        return [p for p in phases if p.step in named]
    # Rows that do not name them: by what belongs to the method.
    own = {row.method, f"{row.method}-l{row.facts.get('limit_index')}", row.facts.get("selection")}
    return [p for p in phases if p.step in own or _serves(p, row.method)]


def _serves(phase: RunRecord, method: str) -> bool:
    if phase.phase == "indicators":
        return method in ("limpq", "reversed") or method.startswith("limpq_")
    return phase.phase == "meta" and method in ("metamix", "metamix_ilp")


def _part_name(record: RunRecord) -> str:
    """The phase without the limits it aims at."""
    head, _, tail = record.step.rpartition("-l")
    name = head if tail.isdigit() and head else record.step
    return {"select": "bit selection", "meta": "meta-state"}.get(name, name)


def _meters(records: Sequence[RunRecord]) -> dict[str, float]:
    found = {}
    for name in METERS:
        values = [r.costs.get(name, r.metrics.get(f"search/{name}", 0.0)) for r in records]
        if any(values):
            found[name] = _mean(values)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
