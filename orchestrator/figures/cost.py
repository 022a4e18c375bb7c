"""What does a search cost? By phase on a logarithmic scale, and per device when it is shared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.figures.methods import legend, legend_height, method_styles
from orchestrator.figures.svg import Canvas, Drawing, Scale
from orchestrator.report.costs import SearchPart, amortised, fixed_and_marginal

_PART_COLOURS = ("blue", "orange", "green", "pink", "violet", "brown", "olive", "sky")
_ROW, _GAP = 17.0, 9.0
MAX_DEVICES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedCost:
    """A search cost that a paper states, measured on its authors' machine.

    Attributes:
        method: as the paper names it.
        device_s: seconds, in the unit that ``note`` gives.
        note: hardware and source.
    """

    method: str
    device_s: float
    note: str


def search_cost_figure(
    parts: Sequence[SearchPart], unit: str, reported: Sequence[ReportedCost] = ()
) -> Drawing | None:
    """Bars of every phase of every method; None when no search cost anything.

    Args:
        parts: of every method.
        unit: of the seconds, e.g. ``2 x cpu``.
        reported: values of papers; hatched, in grey.
    """
    positive = [p.device_s for p in parts if p.device_s > 0] + [
        r.device_s for r in reported if r.device_s > 0
    ]
    if not positive:
        return None
    lines: list[tuple[str, str, float, str, bool]] = []
    colours = {name: _PART_COLOURS[i % len(_PART_COLOURS)]
               for i, name in enumerate(dict.fromkeys(p.part for p in parts))}  # fmt: skip
    for part in parts:
        again = "for every device" if part.per_device else "once"
        lines.append((part.method, part.part, part.device_s, again, False))
    lines += [(each.method, "reported", each.device_s, each.note, True) for each in reported]
    labels = [f"{method}: {part}" for method, part, *_ in lines]
    left = min(300.0, 6.3 * max(map(len, labels)) + 16)
    width, top = max(720.0, left + 420), 14.0
    breaks = sum(a[0] != b[0] for a, b in pairwise(lines))
    bottom = top + _ROW * len(lines) + _GAP * breaks + 6
    canvas = Canvas(stem="search_cost", width=width, height=bottom + 44)
    low = 10 ** math.floor(math.log10(min(positive)) - 0.2)
    high = 10 ** math.ceil(math.log10(max(positive)) + 0.3)
    xs = Scale(low=low, high=high, first_px=left, last_px=width - 90, log=True)
    canvas.x_axis(xs, top, bottom, f"seconds ({unit}; solves: wall clock), logarithmic", 9)
    y, before = top + 2, lines[0][0]
    for (method, phase, seconds, told, quoted), label in zip(lines, labels, strict=True):
        y += _GAP if method != before else 0.0
        before = method
        fill = canvas.hatch("grey") if quoted else f"var(--{colours[phase]})"
        canvas.text(left - 8, y + 11.5, label, "m s" if quoted else "s", "end")
        canvas.bar(left, y + 2, xs.at(seconds) - left if seconds > 0 else 0.0, _ROW - 4, fill,
                   f"{label}: {seconds_text(seconds)}, {told}", 1.5)  # fmt: skip
        x = xs.at(seconds) if seconds > 0 else left
        canvas.text(x + 5, y + 11.5, seconds_text(seconds) + (" (reported)" if quoted else ""),
                    "m s")  # fmt: skip
        y += _ROW
    caption = (
        "Device seconds of every phase behind a method, and the wall time of one solve. Methods "
        "that are not shown search for nothing, or have no cost on record."
    )
    if reported:
        caption += " Hatched bars are what papers state, on their hardware; they were not measured."
    return Drawing(
        stem="search_cost",
        title="Search cost by phase",
        caption=caption,
        svg=canvas.svg("Search cost of every method by phase, logarithmic"),
        columns=("method", "phase", "seconds", "paid", "source"),
        rows=tuple(
            (method, part, seconds, told, "reported" if quoted else "measured")
            for method, part, seconds, told, quoted in lines
        ),
    )


def amortised_figure(parts: Sequence[SearchPart], unit: str) -> Drawing | None:
    """Search seconds per device over the number of devices that one search serves."""
    by_method: dict[str, list[SearchPart]] = {}
    for part in parts:
        by_method.setdefault(part.method, []).append(part)
    shown = {m: own for m, own in by_method.items() if any(p.device_s > 0 for p in own)}
    if not shown:
        return None
    numbers = [round(10 ** (step / 8)) for step in range(8 * 4 + 1)]
    numbers = sorted({*numbers, 1, MAX_DEVICES})
    values = {m: [amortised(own, z) for z in numbers] for m, own in shown.items()}
    styles = {m: s for m, s in method_styles(by_method).items() if m in shown}
    width, left, right = 720.0, 64.0, 692.0
    top = legend_height(styles, width - 60) + 8
    bottom = top + 270
    canvas = Canvas(stem="amortised", width=width, height=bottom + 44)
    legend(canvas, styles, left - 40, 18, width - 60)
    every = [v for line in values.values() for v in line if v > 0]
    xs = Scale(low=1, high=MAX_DEVICES, first_px=left, last_px=right, log=True)
    ys = Scale(low=min(every) / 1.6, high=max(every) * 1.6, first_px=bottom, last_px=top, log=True)
    canvas.x_axis(xs, top, bottom, "devices or budgets served by one search")
    canvas.y_axis(ys, left, right, "seconds per device")
    dashes = ("", "9 4", "3 3", "9 3 2 3")
    for index, (method, (colour, marker)) in enumerate(styles.items()):
        own = [(z, v) for z, v in zip(numbers, values[method], strict=True) if v > 0]
        canvas.path([(xs.at(z), ys.at(v)) for z, v in own], colour, dashes[index % 4])
        for z, v in own:
            if z in (1, 10, 100, 1000, MAX_DEVICES):
                told = f"{method}: {seconds_text(v)} per device at {z:,} devices"
                canvas.marker(marker, xs.at(z), ys.at(v), colour, told, 4)
    tables = [fixed_and_marginal(own) for own in shown.values()]
    caption = (
        f"What is paid once is divided by the number of devices, what every device pays is not "
        f"({unit}). Training at the chosen bits is not search and is left out."
    )
    if any(marginal > 0 for _, marginal in tables):
        caption += " Where a line bends to the level, its cost for one more device is all that is "
        caption += "left."
    return Drawing(
        stem="amortised",
        title="Search cost per device",
        caption=caption,
        svg=canvas.svg("Search seconds per device over the number of devices, both logarithmic"),
        columns=("method", "devices", "seconds per device"),
        rows=tuple((m, z, v) for m, line in values.items()
                   for z, v in zip(numbers, line, strict=True)),
    )  # fmt: skip


def amortised_rows(parts: Sequence[SearchPart]) -> list[tuple[str, ...]]:
    """Method, once, per device, and per device at 1, 10, 100, 1,000 and 10,000 devices."""
    by_method: dict[str, list[SearchPart]] = {}
    for part in parts:
        by_method.setdefault(part.method, []).append(part)
    rows = []
    for method, own in by_method.items():
        fixed, marginal = fixed_and_marginal(own)
        each = [seconds_text(amortised(own, z)) for z in (1, 10, 100, 1000, MAX_DEVICES)]
        rows.append((method, seconds_text(fixed), seconds_text(marginal), *each))
    return rows


def seconds_text(seconds: float) -> str:
    """Seconds with three figures, in a unit that people read."""
    if seconds == 0:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


AMORTISED_COLUMNS: Mapping[str, str] = {
    "method": "", "paid once": "n", "every device": "n", "1 device": "n", "10": "n", "100": "n",
    "1,000": "n", "10,000": "n",
}  # fmt: skip
AMORTISED_NUMERIC = frozenset(name for name, side in AMORTISED_COLUMNS.items() if side)
