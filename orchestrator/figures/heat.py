"""Which layer is sensitive to how few bits, and which bits come out where? Maps of small cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.figures.svg import CHAR_PX, Canvas, Drawing, short
from orchestrator.records import alpha_text
from solvers.tables import ImportanceTable

# Anchors of a scale from dark blue to yellow that is even in lightness, also without colour.
_SCALE = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102),
          (254, 232, 56))  # fmt: skip
_TENSORS = (("weight", "weights"), ("act", "activations"))


def indicator_figure(tables: Mapping[str, ImportanceTable]) -> Drawing | None:
    """Indicators by layer and bit-width (LIMPQ, Figure 4); None without tables.

    Args:
        tables: label -> table of one network, e.g. initial and learned; all on one logarithmic
            colour scale for weights and one for activations.
    """
    entries = [row for table in tables.values() for row in table.rows]
    if not entries:
        return None
    layers = list(dict.fromkeys(row.layer for row in entries))
    shown = [(t, text) for t, text in _TENSORS if any(row.tensor == t for row in entries)]
    bits = {t: sorted({r.bits for r in entries if r.tensor == t}) for t, _ in shown}
    cell_h = 15.0 if len(layers) <= 60 else 9.0
    left = min(220.0, 6.2 * max(map(len, layers)) + 16)
    panels = {t: max(30.0 * len(bits[t]), 84.0) for t, _ in shown}
    panel_px = sum(panels.values()) + 14 * len(shown)
    label_px = max(CHAR_PX * len(label) + 12 for label in tables)
    group_px = max(panel_px, label_px) + 18
    width = max(420.0, left + group_px * len(tables) + 8)
    top = 56.0
    bottom = top + cell_h * len(layers)
    canvas = Canvas(stem="indicators", width=width, height=bottom + 62)
    for index, layer in enumerate(layers):
        y = top + cell_h * index + cell_h * 0.72
        if cell_h > 10 or index % 2 == 0:
            canvas.text(left - 6, y, layer if len(layer) <= 32 else layer[:31] + "\u2026",
                        "m s", "end")  # fmt: skip
    ranges = {
        t: _range([r.value for r in entries if r.tensor == t]) for t, _ in shown
    }  # fmt: skip
    x = left
    for label, table in tables.items():
        known = table.values()
        canvas.text(x, 16, label, "b")
        at = x
        for tensor, title in shown:
            canvas.text(at, 34, title, "m s")
            step = panels[tensor] / len(bits[tensor])
            for column, width_bits in enumerate(bits[tensor]):
                canvas.text(at + step * (column + 0.5), 49, width_bits, "m s", "middle")
                for row, layer in enumerate(layers):
                    value = known.get((layer, tensor, width_bits))
                    if value is not None:
                        told = f"{layer}, {title}, {width_bits} bit: {value:.4g} ({label})"
                        canvas.bar(at + step * column, top + cell_h * row, step - 1, cell_h - 1,
                                   _colour(value, *ranges[tensor]), told)  # fmt: skip
            at += panels[tensor] + 14
        x += group_px
    x = left
    for tensor, title in shown:
        low, high = ranges[tensor]
        for step_number in range(40):
            share = (step_number + 0.5) / 40
            value = 10 ** (math.log10(low) + share * (math.log10(high) - math.log10(low)))
            canvas.bar(x + 3.5 * step_number, bottom + 16, 3.6, 10, _colour(value, low, high))
        canvas.text(x, bottom + 40, short(float(f"{low:.2g}")), "m s")
        canvas.text(x + 140, bottom + 40, short(float(f"{high:.2g}")), "m s", "end")
        canvas.text(x, bottom + 54, f"{title}, logarithmic", "m s")
        x += 190
    return Drawing(
        stem="indicators",
        title="Importance indicators by layer and bit-width",
        caption="Columns are candidate bit-widths. One logarithmic colour scale for all tables of "
        "a tensor: bright is more important (a larger step size), so what training changed shows "
        "as a change of colour.",
        svg=canvas.svg(f"Indicators of {len(layers)} layers: {', '.join(tables)}"),
        columns=("table", "layer", "tensor", "bits", "value"),
        rows=tuple(
            (label, r.layer, r.tensor, r.bits, r.value)
            for label, table in tables.items()
            for r in table.rows
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedCell:
    """One cell of the map of alphas and limits.

    Attributes:
        alpha: of the solve.
        limits: as a person writes them.
        policy_id: what came out, or None.
        top1: percent, where it was trained.
        status: why there is no policy.
        use: part of the first limit that is used, 0 to 1, or None.
    """

    alpha: float
    limits: str
    policy_id: str | None
    top1: float | None
    status: str
    use: float | None


def alpha_map(cells: Sequence[SolvedCell]) -> Drawing | None:
    """Which policy each alpha gives at each set of limits; None for fewer than two cells."""
    if len(cells) < 2:
        return None
    alphas = sorted({c.alpha for c in cells})
    limits = list(dict.fromkeys(c.limits for c in cells))
    names: dict[str, str] = {}
    for cell in cells:
        if cell.policy_id is not None:
            names.setdefault(cell.policy_id, _letters(len(names)))
    left = min(320.0, CHAR_PX * max(map(len, limits)) + 20)
    cell_w, cell_h = 92.0, 30.0
    top = 44.0
    width = max(420.0, left + cell_w * len(alphas) + 8)
    canvas = Canvas(stem="alpha_map", width=width, height=top + cell_h * len(limits) + 10)
    canvas.text(left, 16, "alpha", "m s")
    at = {(c.alpha, c.limits): c for c in cells}
    for column, alpha in enumerate(alphas):
        canvas.text(left + cell_w * (column + 0.5), 34, alpha_text(alpha), "b", "middle")
    for row, text in enumerate(limits):
        y = top + cell_h * row
        canvas.text(left - 8, y + 19, text, "m s", "end")
        for column, alpha in enumerate(alphas):
            found = at.get((alpha, text))
            x = left + cell_w * column
            if found is None:
                continue
            if found.policy_id is None:
                canvas.bar(x, y, cell_w - 3, cell_h - 3, canvas.hatch("red"),
                           f"alpha {alpha_text(alpha)}, {text}: {found.status}", 3)  # fmt: skip
                continue
            name = names[found.policy_id]
            use = "" if found.use is None else f", uses {100 * found.use:.1f} % of the first limit"
            told = f"alpha {alpha_text(alpha)}, {text}: policy {name} = {found.policy_id}{use}"
            trained = found.top1 is not None
            fill = "var(--grid)" if trained else "var(--panel)"
            canvas.bar(x, y, cell_w - 3, cell_h - 3, fill, told, 3)
            shown = f"{name}  {found.top1:.2f} %" if trained else name
            canvas.text(x + (cell_w - 3) / 2, y + 18, shown, "s" if trained else "m s", "middle")
    return Drawing(
        stem="alpha_map",
        title="Policies by alpha and budget",
        caption=f"{len(names)} distinct policies in {len(cells)} cells. Equal letters are equal "
        "bits, trained once; with a number where they were trained (top-1). Hatched: no policy.",
        svg=canvas.svg(f"{len(names)} policies over {len(alphas)} alphas and {len(limits)} limits"),
        columns=("alpha", "limits", "letter", "policy id", "top-1 (%)", "use of limit", "status"),
        rows=tuple(
            (c.alpha, c.limits, names.get(c.policy_id or "", ""), c.policy_id, c.top1, c.use,
             c.status)
            for c in cells
        ),
    )  # fmt: skip


def _letters(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(65 + rest) + text
    return text


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low * 0.9, high * 1.1)


def _colour(value: float, low: float, high: float) -> str:
    share = (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low))
    place = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    index = min(int(place), len(_SCALE) - 2)
    mixed = [a + (b - a) * (place - index)
             for a, b in zip(_SCALE[index], _SCALE[index + 1], strict=True)]  # fmt: skip
    return "#" + "".join(f"{round(c):02x}" for c in mixed)
