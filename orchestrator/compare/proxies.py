"""Does an importance table predict accuracy? Kendall's tau of predicted against measured.

The objective that the solver minimizes (LIMPQ, equation 4) is computed for every policy that was
trained, whatever found it, under each importance table of the run, and held against the loss of
accuracy that was measured: tau 1 = the table ranks policies as training does, 0 = it knows
nothing. Policies of a larger budget are better whatever the table says, so tau is taken within
each set of limits; over all policies it is given too, and is the more flattering number.

Tables count as they were learned: ``search.repair``, which evens out values that rise with the bits
before the solver sees them, is left out, since the question is what was learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.compare.statistics import RankCorrelation, kendall
from solvers.tables import ImportanceTable, LayerBits

ALL_LIMITS = "all limits"
MIN_POLICIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPolicy:
    """One trained policy.

    Attributes:
        label: method and policy id.
        limits: every set of limits it was proposed for; several methods may have proposed it.
        bits: layer -> bits.
        top1: percent.
    """

    label: str
    limits: tuple[str, ...]
    bits: Mapping[str, LayerBits]
    top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyPoint:
    """One policy under one importance table."""

    source: str
    label: str
    limits: tuple[str, ...]
    predicted: float
    top1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyValidity:
    """How well one importance table ranks the policies of one set of limits.

    Attributes:
        source: whose table.
        alpha: weight of the weights' term in the objective.
        limits: which policies; ``all limits`` for all of them.
        correlation: tau of predicted loss and measured error, with its interval.
    """

    source: str
    alpha: float
    limits: str
    correlation: RankCorrelation


def predicted_objective(
    table: ImportanceTable, bits: Mapping[str, LayerBits], alpha: float
) -> float | None:
    """Summed importance of the activations plus ``alpha`` times that of the weights (equation 4).

    A tensor that the table says nothing about at any width (pinned layers; weights in a search of
    activations alone) adds nothing. None when the table knows a tensor, but not at these bits.
    """
    known = table.values()
    ranked = {(layer, tensor) for layer, tensor, _ in known}
    total = 0.0
    for layer, own in bits.items():
        for tensor, width, weight in (("weight", own.weight_bits, alpha),
                                      ("act", own.act_bits, 1.0)):  # fmt: skip
            if (layer, tensor) not in ranked:
                continue
            value = known.get((layer, tensor, width))
            if value is None:
                return None
            total += weight * value
    return total


def proxy_points(
    source: str, table: ImportanceTable, alpha: float, policies: Sequence[MeasuredPolicy]
) -> list[ProxyPoint]:
    """Every policy that the table can judge."""
    points = []
    for policy in policies:
        predicted = predicted_objective(table, policy.bits, alpha)
        if predicted is not None:
            points.append(ProxyPoint(source=source, label=policy.label, limits=policy.limits,
                                     predicted=predicted, top1=policy.top1))  # fmt: skip
    return points


def validities(points: Sequence[ProxyPoint], source: str, alpha: float) -> list[ProxyValidity]:
    """Tau within every set of limits with at least three policies, then over all of them."""
    groups = {
        text: [p for p in points if text in p.limits]
        for text in dict.fromkeys(text for p in points for text in p.limits)
    }
    if len(groups) > 1:
        groups[ALL_LIMITS] = list(points)
    return [
        ProxyValidity(
            source=source,
            alpha=alpha,
            limits=text,
            correlation=kendall([p.predicted for p in own], [-p.top1 for p in own]),
        )
        for text, own in groups.items()
        if len(own) >= MIN_POLICIES
    ]


def tau_text(found: RankCorrelation) -> str:
    """Tau with its interval or its p-value, or that neither is claimed."""
    if found.tau is None:
        return "undefined (all equal)"
    if found.low is not None:
        return f"{found.tau:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    if found.p_value is None:
        return f"{found.tau:+.2f} (ties: no interval below 10 policies)"
    return f"{found.tau:+.2f} (p {found.p_value:.2f})"
