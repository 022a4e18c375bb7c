"""How accurate is what each method found, for what it costs? Accuracy over BitOps or over size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.figures.methods import legend, legend_height, method_styles
from orchestrator.figures.svg import Canvas, Drawing, Scale, spread

_WIDTH, _PLOT = 520.0, 270.0
_SEARCHED = ("limpq", "metamix")
_LINES = (*_SEARCHED, "uniform")


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyPoint:
    """One trained policy, or the mean of several seeds.

    Attributes:
        method: what proposed it.
        label: what tells it apart from the method's others.
        cost: in the unit of the axis.
        top1: percent.
        low: lower end of its interval; None when none is claimed.
        high: upper end.
        reported: whether it was only read in a paper.
    """

    method: str
    label: str
    cost: float
    top1: float
    low: float | None = None
    high: float | None = None
    reported: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CostAxis:
    """A cost that accuracy is drawn over.

    Attributes:
        stem: file name of its figure.
        what: of the cost.
        unit: of the axis.
        field: of a row that holds the cost.
        factor: from the field's unit to the axis's.
        resource: the solver's name for it.
        per_integer: from the solver's integers to the axis's unit.
    """

    stem: str
    what: str
    unit: str
    field: str
    factor: float
    resource: str
    per_integer: float


def cost_axes(bitops_g: Iterable[float | None]) -> tuple[CostAxis, CostAxis]:
    """BitOps and size, for networks of these BitOps: small ones cost millions, not billions."""
    largest = max((b for b in bitops_g if b is not None), default=0.0)
    factor, unit = (1e3, "1e6") if 0.0 < largest < 0.1 else (1.0, "1e9")
    return (
        CostAxis(stem="accuracy", what="BitOps of one image", unit=unit, field="bitops_g",
                 factor=factor, resource="bitops", per_integer=factor / 1e9),
        CostAxis(stem="accuracy_size", what="size of the weights", unit="MiB", field="weight_mib",
                 factor=1.0, resource="size_bits", per_integer=1 / 8 / 2**20),
    )  # fmt: skip


def accuracy_figure(
    points: Sequence[AccuracyPoint],
    axis: CostAxis,
    *,
    infeasible: Sequence[int] = (),
    full_precision: float | None = None,
    note: str = "",
) -> Drawing | None:
    """Top-1 over a cost; None without points.

    Args:
        points: trained policies, costs in the unit of the axis.
        axis: the cost.
        infeasible: limits that nothing can meet, in the solver's integers; crosses on the axis.
        full_precision: percent, drawn as a line.
        note: added to the caption.
    """
    if not points:
        return None
    stem, what, unit = axis.stem, axis.what, axis.unit
    crosses = [bound * axis.per_integer for bound in infeasible]
    styles = method_styles(p.method for p in points)
    names = [*styles, *(["limit out of reach"] if infeasible else [])]
    top, left, right = legend_height(names, _WIDTH - 60) + 8, 64.0, _WIDTH - 14
    bottom = top + _PLOT
    canvas = Canvas(stem=stem, width=_WIDTH, height=bottom + 44)
    marks = {**styles, **({"limit out of reach": ("red", "cross")} if infeasible else {})}
    legend(canvas, marks, left - 40, 18, _WIDTH - 60)
    heights = [v for p in points for v in (p.top1, p.low, p.high) if v is not None]
    if full_precision is not None:
        heights.append(full_precision)
    xs = Scale(low=0, high=1, first_px=left, last_px=right)
    low, high = spread([*(p.cost for p in points), *crosses])
    xs = Scale(low=max(low, 0.0), high=high, first_px=left, last_px=right)
    low, high = spread(heights, 0.1)
    ys = Scale(low=low, high=min(high, 100.6), first_px=bottom, last_px=top)
    canvas.x_axis(xs, top, bottom, f"{what} ({unit})")
    canvas.y_axis(ys, left, right, "top-1 (%)", 7)
    if full_precision is not None:
        y = ys.at(full_precision)
        canvas.line(left, y, right, y, "", "stroke:var(--muted);stroke-dasharray:2 4")
        canvas.text(right, y - 5, f"full precision {full_precision:.2f}", "m s", "end")
    for method, (colour, _) in styles.items():
        own = sorted(
            (p for p in points if p.method == method and not p.reported),
            key=lambda p: (p.cost, -p.top1),
        )
        if method in _LINES:
            line = own if method == "uniform" else front(own)
            if len(line) > 1:
                way = [(xs.at(p.cost), ys.at(p.top1)) for p in line]
                canvas.path(way, colour, "6 4" if method == "uniform" else "")
    for point in sorted(points, key=lambda p: p.method not in _SEARCHED):
        colour, marker = styles[point.method]
        x, y = xs.at(point.cost), ys.at(point.top1)
        if point.low is not None and point.high is not None:
            canvas.line(x, ys.at(point.low), x, ys.at(point.high), "",
                        f"stroke:var(--{colour});stroke-width:1.4")  # fmt: skip
        told = f"{point.method} {point.label}: {point.top1:.2f} % at {point.cost:,.5g} {unit}"
        # Two methods may end at the same bits: the searched one shows as a rim around the other.
        size = 7.0 if point.method in _SEARCHED else 5.0
        canvas.marker(marker, x, y, colour, told + (" (reported)" if point.reported else ""),
                      size, hollow=point.reported)  # fmt: skip
    for bound in crosses:
        canvas.marker("cross", xs.at(bound), bottom, "red",
                      f"no policy meets {bound:,.5g} {unit}")  # fmt: skip
    caption = "Each mark is a trained policy. Dashed: uniform bits; solid: the front of a search."
    if any(p.low is not None for p in points):
        caption = (
            "Each mark is the mean over seeds, with its 95 % t-interval where one is claimed. "
            "Dashed: uniform bits."
        )
    if any(p.reported for p in points):
        caption += " Hollow marks are reported in a paper, not measured here."
    if infeasible:
        caption += " Crosses on the axis are limits that no policy can meet."
    return Drawing(
        stem=stem,
        title=f"Accuracy over {what}",
        caption=f"{caption} {note}".strip(),
        svg=canvas.svg(f"Top-1 accuracy over {what} of {len(points)} policies"),
        columns=("method", "policy", f"cost ({unit})", "top-1 (%)", "low", "high", "source"),
        rows=tuple(
            (p.method, p.label, p.cost, p.top1, p.low, p.high,
             "reported" if p.reported else "measured")
            for p in points
        ) + tuple(("limit out of reach", "", bound, None, None, None, "limit")
                  for bound in crosses),
    )  # fmt: skip


def front(points: Sequence[AccuracyPoint]) -> list[AccuracyPoint]:
    """Points that no other one beats at lower cost; input is sorted by cost, best first."""
    best: list[AccuracyPoint] = []
    for point in points:
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best
