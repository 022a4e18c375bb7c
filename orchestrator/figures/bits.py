"""Which bits did each policy give to each layer? Weights and activations side by side."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.figures.svg import Canvas, Drawing
from solvers.policy import Policy

_ROW, _BAR_TOP, _UNIT = 74.0, 18.0, 46.0
_KINDS = {"depthwise": "dw", "linear": "fc"}


def bits_figure(
    policies: Mapping[str, Policy], pinned: frozenset[str], kinds: Mapping[str, str] | None = None
) -> Drawing | None:
    """Bits by layer in network order, one row a policy; None without policies.

    Args:
        policies: label -> policy, all of one network.
        pinned: layers that no search may change; hatched.
        kinds: layer -> kind; depth-wise and linear ones are marked below their bars.
    """
    if not policies:
        return None
    first = next(iter(policies.values()))
    names = [name for name, _ in first.layers]
    step = (
        40.0
        if len(names) <= 16
        else 26.0
        if len(names) <= 30
        else 18.0
        if len(names) <= 60
        else 11.0
    )
    left = 40.0
    label_px = min(150.0, 6.2 * max(map(len, names)) + 14)
    width = max(460.0, left + step * len(names) + 14)
    bottom = 34 + _ROW * len(policies)
    canvas = Canvas(stem="bits", width=width, height=bottom + label_px + 8)
    for x, fill, label in ((left, "var(--blue)", "weights"),
                           (left + 90, "var(--orange)", "activations"),
                           (left + 200, canvas.hatch("grey"), "pinned")):  # fmt: skip
        canvas.bar(x, 8, 12, 12, fill)
        canvas.text(x + 17, 18, label)
    top = max(max(b.weight_bits, b.act_bits) for p in policies.values() for _, b in p.layers)
    rows: list[tuple[object, ...]] = []
    for number, (label, policy) in enumerate(policies.items()):
        base = 34 + _ROW * (number + 1) - 6
        canvas.text(left, base - _UNIT - 8, label, "b s")
        for bits in sorted({2, top // 2, top} if top > 3 else {top}):
            y = base - _UNIT * bits / top
            canvas.line(left, y, width - 10, y, "g")
            canvas.text(left - 6, y + 3.5, bits, "m s", "end")
        for index, (name, chosen) in enumerate(policy.layers):
            x = left + step * index
            told = f"{name}: W {chosen.weight_bits}, A {chosen.act_bits} bit"
            for shift, value, colour in ((0.1, chosen.weight_bits, "blue"),
                                         (0.5, chosen.act_bits, "orange")):  # fmt: skip
                fill = canvas.hatch(colour) if name in pinned else f"var(--{colour})"
                height = _UNIT * value / top
                canvas.bar(x + shift * step, base - height, 0.38 * step, height, fill,
                           told + (" (pinned)" if name in pinned else ""))  # fmt: skip
            rows.append((label, policy.policy_id, name, chosen.weight_bits, chosen.act_bits,
                         name in pinned))  # fmt: skip
        canvas.line(left, base, width - 10, base)
    every = max(1, -(-len(names) // 70))
    for index, name in enumerate(names):
        mark = _KINDS.get((kinds or {}).get(name, ""), "")
        if index % every == 0:
            x = left + step * (index + 0.5) + 4
            shown = f"{name} ({mark})" if mark else name
            canvas.text(x, bottom + 8, shown if len(shown) <= 26 else shown[:25] + "\u2026",
                        "m s", "end", -90)  # fmt: skip
    marked = " Layers marked (dw) are depth-wise, (fc) linear." if any(
        (kinds or {}).get(name) in _KINDS for name in names
    ) else ""  # fmt: skip
    return Drawing(
        stem="bits",
        title="Bits of every layer",
        caption="Layers in the order of the network, a row a policy. Hatched layers are pinned "
        f"and not searched.{marked}",
        svg=canvas.svg(f"Weight and activation bits of {len(names)} layers"),
        columns=("policy", "policy id", "layer", "weight bits", "activation bits", "pinned"),
        rows=tuple(rows),
    )
