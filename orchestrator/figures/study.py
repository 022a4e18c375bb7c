"""How much better or worse than uniform bits is each method, over seeds? Paired differences."""

from __future__ import annotations

from orchestrator.figures.svg import Canvas, Drawing, Scale, spread
from orchestrator.study.results import StudyRow, StudyTable

# More marks than that hide each other; the data beside the figure has all.
MAX_SEEDS_SHOWN = 40


def paired_figure(table: StudyTable) -> Drawing | None:
    """Every method's differences to uniform at the same limits; None without any."""
    shown = [row for row in table.rows if row.against is not None]
    if not shown:
        return None
    uniform = {row.limits: row for row in table.rows if row.method == "uniform"}
    labels = [row.method + ("" if row.alpha == "-" else f", alpha {row.alpha}") for row in shown]
    left = min(300.0, 6.4 * max(map(len, labels)) + 18)
    width, top, height = left + 440, 12.0, 21.0
    limits = list(dict.fromkeys(row.limits for row in shown))
    bottom = top + height * (len(shown) + len(limits)) + 6
    canvas = Canvas(stem="paired", width=width, height=bottom + 44)
    differences = {
        id(row): {seed: row.top1[seed] - uniform[row.limits].top1[seed]
                  for seed in row.top1 if seed in uniform[row.limits].top1}
        for row in shown
    }  # fmt: skip
    values = [0.0, *(v for own in differences.values() for v in own.values())]
    for row in shown:
        assert row.against is not None
        found = row.against.difference
        values += [v for v in (found.low, found.high) if v is not None]
    low, high = spread(values)
    xs = Scale(low=low, high=high, first_px=left, last_px=width - 16)
    canvas.x_axis(xs, top, bottom, "top-1 less that of uniform bits at the same limits, points", 7)
    canvas.line(xs.at(0), top, xs.at(0), bottom, "", "stroke:var(--muted)")
    y, data = top, []
    for text in limits:
        canvas.text(10, y + 15, text, "b s")
        y += height
        for row, label in zip(shown, labels, strict=True):
            if row.limits == text:
                data += _line(canvas, xs, row, label, y + 11, left, differences[id(row)])
                y += height
    return Drawing(
        stem="paired",
        title="Paired comparison with uniform bits",
        caption="Small marks are seeds, large ones their mean, lines its 95 % t-interval where one "
        "is claimed (two seeds or more that differ). Right of the line is better than uniform. An "
        "interval that holds 0 tells nothing apart.",
        svg=canvas.svg("Differences of every method to uniform bits over seeds"),
        columns=("limits", "method", "alpha", "seed", "difference", "mean", "low", "high", "n"),
        rows=tuple(data),
    )


def _line(
    canvas: Canvas, xs: Scale, row: StudyRow, label: str, y: float, left: float,
    own: dict[int, float],
) -> list[tuple[object, ...]]:  # fmt: skip
    assert row.against is not None
    found = row.against.difference
    canvas.text(left - 8, y + 4, label, "s", "end")
    if found.low is not None and found.high is not None:
        canvas.line(xs.at(found.low), y, xs.at(found.high), y, "",
                    "stroke:var(--blue);stroke-width:2")  # fmt: skip
    for seed, value in list(own.items())[:MAX_SEEDS_SHOWN]:
        canvas.marker("circle", xs.at(value), y, "orange", f"{label}, seed {seed}: {value:+.2f}", 3)
    canvas.marker("diamond", xs.at(found.mean), y, "blue",
                  f"{label}: mean {found.mean:+.2f} of {found.n} seeds", 4.5,
                  hollow=found.low is None)  # fmt: skip
    return [
        (row.limits, row.method, row.alpha, seed, value, found.mean, found.low, found.high, found.n)
        for seed, value in own.items()
    ]
