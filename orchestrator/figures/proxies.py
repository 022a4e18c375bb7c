"""How well do importance tables rank policies? Predicted objective against measured accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.compare.proxies import ALL_LIMITS, ProxyPoint, ProxyValidity, tau_text
from orchestrator.figures.svg import CHAR_PX, MARKERS, Canvas, Drawing, Scale, legend_rows, spread

_COLOURS = ("blue", "orange", "green", "red", "pink", "violet", "brown", "olive")


def proxy_scatter(points: Sequence[ProxyPoint], source: str) -> Drawing | None:
    """Measured accuracy over the objective of one table; None for fewer than three policies."""
    if len(points) < 3:
        return None
    limits = list(dict.fromkeys(p.limits[0] for p in points))
    styles = {text: (_COLOURS[i % len(_COLOURS)], MARKERS[i % len(MARKERS)])
              for i, text in enumerate(limits)}  # fmt: skip
    width, left, right = 440.0, 60.0, 428.0
    entries = legend_rows(limits, width - 40)
    top = 18.0 * len(entries) + 14
    bottom = top + 210
    canvas = Canvas(stem=f"proxy-{source}", width=width, height=bottom + 44)
    for row, indexes in enumerate(entries):
        x = left - 30
        for index in indexes:
            colour, marker = styles[limits[index]]
            canvas.marker(marker, x + 6, 14 + 18 * row, colour)
            canvas.text(x + 16, 18 + 18 * row, limits[index], "s")
            x += 26 + CHAR_PX * len(limits[index])
    low, high = spread([p.predicted for p in points])
    xs = Scale(low=low, high=high, first_px=left, last_px=right)
    low, high = spread([p.top1 for p in points], 0.1)
    ys = Scale(low=low, high=high, first_px=bottom, last_px=top)
    canvas.x_axis(xs, top, bottom, f"predicted: summed importance ({source})", 5)
    canvas.y_axis(ys, left, right, "measured top-1 (%)")
    for point in points:
        colour, marker = styles[point.limits[0]]
        told = f"{point.label}: predicted {point.predicted:.4g}, measured {point.top1:.2f} %"
        canvas.marker(marker, xs.at(point.predicted), ys.at(point.top1), colour, told, 4.5)
    return Drawing(
        stem=f"proxy-{source}",
        title=f"Predicted against measured, {source}",
        caption="A table that predicts well falls from upper left to lower right within each set "
        "of limits (one mark each).",
        svg=canvas.svg(f"Measured accuracy over the objective predicted by {source}"),
        columns=("source", "policy", "limits", "predicted objective", "top-1 (%)"),
        rows=tuple((p.source, p.label, "; ".join(p.limits), p.predicted, p.top1) for p in points),
    )


def tau_figure(found: Sequence[ProxyValidity]) -> Drawing | None:
    """Kendall's tau with its interval, a line for each table and set of limits."""
    shown = [v for v in found if v.correlation.tau is not None]
    if not shown:
        return None
    labels = [f"{v.source}, {v.limits} (n = {v.correlation.n})" for v in shown]
    left = min(380.0, 6.2 * max(map(len, labels)) + 16)
    width, top = left + 380, 10.0
    bottom = top + 20 * len(shown) + 6
    canvas = Canvas(stem="proxy_tau", width=width, height=bottom + 44)
    xs = Scale(low=-1, high=1, first_px=left, last_px=width - 20)
    canvas.x_axis(xs, top, bottom, "Kendall's tau-b of predicted loss and measured error", 8)
    canvas.line(xs.at(0), top, xs.at(0), bottom, "", "stroke:var(--muted)")
    for index, (validity, label) in enumerate(zip(shown, labels, strict=True)):
        y = top + 20 * index + 13
        found_tau = validity.correlation
        assert found_tau.tau is not None
        colour = "grey" if validity.limits == ALL_LIMITS else "blue"
        canvas.text(left - 8, y + 4, label, "s", "end")
        if found_tau.low is not None and found_tau.high is not None:
            canvas.line(xs.at(found_tau.low), y, xs.at(found_tau.high), y, "",
                        f"stroke:var(--{colour});stroke-width:2")  # fmt: skip
        canvas.marker("circle", xs.at(found_tau.tau), y, colour, f"{label}: {tau_text(found_tau)}",
                      5, hollow=found_tau.low is None)  # fmt: skip
    return Drawing(
        stem="proxy_tau",
        title="How importance ranks policies",
        caption="1 = the table ranks policies exactly as their measured accuracies do, 0 = it "
        "knows nothing. Lines are 95 % intervals (Fieller); a hollow mark has too few policies "
        "for one. Grey: over all limits, where the budget itself helps the ranking.",
        svg=canvas.svg("Kendall's tau of every importance table"),
        columns=("source", "alpha", "limits", "n", "tau", "low", "high"),
        rows=tuple((v.source, v.alpha, v.limits, v.correlation.n, v.correlation.tau,
                    v.correlation.low, v.correlation.high) for v in shown),
    )  # fmt: skip
