"""Which figures does a run get? Chosen from what its records lead to, drawn by ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.compare.proxies import ProxyValidity, proxy_points, validities
from orchestrator.figures.accuracy import AccuracyPoint, accuracy_figure, cost_axes
from orchestrator.figures.bits import bits_figure
from orchestrator.figures.cost import ReportedCost, amortised_figure, search_cost_figure
from orchestrator.figures.heat import SolvedCell, alpha_map, indicator_figure
from orchestrator.figures.proxies import proxy_scatter, tau_figure
from orchestrator.figures.svg import Drawing
from orchestrator.records import alpha_text
from orchestrator.report.costs import search_parts
from orchestrator.report.inputs import Importances, RunInputs
from orchestrator.results import ResultRow, out_of_reach
from solvers.policy import Policy

MAX_POLICIES_SHOWN = 10
_MAX_SCATTERS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """The figures of one run by the part of the page they stand in; parts may be empty."""

    accuracy: list[Drawing] = field(default_factory=list)
    bits: list[Drawing] = field(default_factory=list)
    cost: list[Drawing] = field(default_factory=list)
    indicators: list[Drawing] = field(default_factory=list)
    alphas: list[Drawing] = field(default_factory=list)
    proxies: list[Drawing] = field(default_factory=list)
    validity: list[ProxyValidity] = field(default_factory=list)

    @property
    def every(self) -> list[Drawing]:
        """All of them."""
        return [*self.accuracy, *self.bits, *self.cost, *self.indicators, *self.alphas,
                *self.proxies]  # fmt: skip


def run_figures(
    run: RunInputs,
    reported_points: Sequence[AccuracyPoint] = (),
    reported_costs: Sequence[ReportedCost] = (),
) -> RunFigures:
    """Draw what there is data for.

    Args:
        run: what was read.
        reported_points: accuracies that papers state, cost in 1e9 BitOps.
        reported_costs: search costs that papers state.
    """
    parts = search_parts(run.records)
    unit = run.results.device
    scatters, found = _proxies(run)
    tau = tau_figure(found)
    return RunFigures(
        accuracy=_accuracy(run, reported_points),
        bits=_kept([bits_figure(_shown_policies(run), run.pinned, _kinds(run))]),
        cost=_kept(
            [search_cost_figure(parts, unit, reported_costs), amortised_figure(parts, unit)]
        ),
        indicators=_kept([indicator_figure({e.label: e.table for e in _by_owner(run)})]),
        alphas=_kept([alpha_map(_cells(run))]),
        proxies=_kept([tau, *scatters]),
        validity=found,
    )


def _accuracy(run: RunInputs, reported: Sequence[AccuracyPoint]) -> list[Drawing]:
    rows = [r for r in run.results.rows if r.top1 is not None]
    axes = cost_axes(r.bitops_g for r in rows)
    full = run.results.full_precision_top1
    drawn = []
    for axis in axes:
        points = [
            AccuracyPoint(method=r.method, label=_label(r), cost=cost * axis.factor, top1=r.top1)
            for r in rows
            if (cost := getattr(r, axis.field)) is not None and r.top1 is not None
        ]
        note = ""
        if axis is axes[0]:
            # Papers state BitOps, in 1e9.
            points += [replace(p, cost=p.cost * axis.factor, reported=True) for p in reported]
            note = "One seed: marks this near to each other are not told apart."
        crosses = out_of_reach(run.records, axis.resource)
        drawn.append(
            accuracy_figure(points, axis, infeasible=crosses, full_precision=full, note=note)
        )
    return _kept(drawn)


def _shown_policies(run: RunInputs) -> dict[str, Policy]:
    """The method's own policies first, then uniform bits, cheapest first; each once."""
    shown: dict[str, Policy] = {}
    seen: set[str] = set()
    rows = sorted(
        run.results.rows,
        key=lambda r: (
            r.trained is None, r.method not in ("limpq", "metamix"), r.method != "uniform",
            r.method, r.bitops_g or 0.0,
        ),
    )  # fmt: skip
    for row in rows:
        if row.policy_id in run.policies and row.policy_id not in seen:
            if len(shown) == MAX_POLICIES_SHOWN:
                break
            seen.add(row.policy_id or "")
            top1 = "" if row.top1 is None else f": {row.top1:.2f} %"
            label = f"{row.method} {_label(row)}{top1}"
            shown[label] = run.policies[row.policy_id or ""]
    return shown


def _kinds(run: RunInputs) -> dict[str, str]:
    return {} if run.costs is None else {layer.name: layer.kind for layer in run.costs}


def _by_owner(run: RunInputs) -> list[Importances]:
    """A method's initial table before its learned one: that is how they are compared."""
    ordered: dict[str, list[Importances]] = {}
    for each in run.importance:
        ordered.setdefault(each.label.partition(",")[0], []).insert(0, each)
    own = [e for group in ordered.values() for e in group]
    # Tables in units of loss have no common scale with step sizes.
    return [e for e in own if e.source in ("limpq", "initial", "metamix_ilp")
            or e.source.startswith("metamix")]  # fmt: skip


def _cells(run: RunInputs) -> list[SolvedCell]:
    found = []
    for row in run.results.rows:
        if row.method != "limpq" or row.alpha is None:
            continue
        found.append(
            SolvedCell(
                alpha=row.alpha, limits=row.limits_text, policy_id=row.policy_id, top1=row.top1,
                status=row.status, use=_use(run, row),
            )
        )  # fmt: skip
    return found


def _use(run: RunInputs, row: ResultRow) -> float | None:
    for record in run.records:
        if (
            record.phase == "solve" and record.method == row.method
            and record.alpha == row.alpha and record.limits == row.limits
        ):  # fmt: skip
            bounds, uses = record.facts.get("bounds", {}), record.facts.get("uses", ())
            bound = next(iter(bounds.values()), 0)
            return uses[0] / bound if uses and bound else None
    return None


def _proxies(run: RunInputs) -> tuple[list[Drawing | None], list[ProxyValidity]]:
    measured = run.measured()
    scatters: list[Drawing | None] = []
    found: list[ProxyValidity] = []
    for each in run.importance:
        if each.solved is None:
            continue
        points = proxy_points(each.source, each.solved, each.alpha, measured)
        own = validities(points, each.source, each.alpha)
        found += own
        if own and len(scatters) < _MAX_SCATTERS:
            scatters.append(proxy_scatter(points, each.source))
    return scatters, found


def _label(row: ResultRow) -> str:
    alpha = "" if row.alpha is None else f"alpha {alpha_text(row.alpha)} "
    return f"{alpha}at {row.limits_text} ({row.policy_id})"


def _kept(drawings: Sequence[Drawing | None]) -> list[Drawing]:
    return [drawing for drawing in drawings if drawing is not None]
