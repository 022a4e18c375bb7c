"""What does a search look like? Four figures, as pure functions from plain data.

Colours are those of Okabe and Ito, which people with any common colour blindness tell apart; what
colour says is also said by a marker, a hatch or a label. Figures are built without pyplot, so they
need no display and hold no global state, and the same data gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from solvers.atomic import write_atomically
from solvers.policy import Policy
from solvers.tables import ImportanceTable

WEIGHT_COLOUR, ACT_COLOUR, GREY = "#0072B2", "#E69F00", "#999999"
# Method -> colour and marker; a method not named here gets the grey of the last entry.
STYLES: Mapping[str, tuple[str, str]] = {
    "limpq": ("#0072B2", "o"),
    "metamix": ("#009E73", "P"),
    "uniform": ("#000000", "s"),
    "random": ("#E69F00", "^"),
    "reversed": ("#D55E00", "v"),
    "initial": ("#CC79A7", "D"),
}
_OTHER_STYLE = ("#56B4E9", "X")


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyPoint:
    """One trained policy in the accuracy figure.

    Attributes:
        method: what proposed it.
        bitops_g: cost in 1e9.
        top1: percent.
    """

    method: str
    bitops_g: float
    top1: float


def bit_allocation(policies: Mapping[str, Policy], pinned: frozenset[str]) -> Figure:
    """Bits of weights and activations by layer in network order, one row a policy.

    Args:
        policies: label -> policy, all of one network.
        pinned: layers that no search may change; drawn hatched.
    """
    names = [name for name, _ in next(iter(policies.values())).layers]
    width = min(16.0, max(6.4, 2.0 + 0.42 * len(names)))
    figure = _figure(width, 1.1 + 1.35 * len(policies) + _label_inches(names))
    rows = figure.subplots(len(policies), 1, sharex=True, squeeze=False)[:, 0]
    top = max(max(b.weight_bits, b.act_bits) for p in policies.values() for _, b in p.layers)
    for axes, (label, policy) in zip(rows, policies.items(), strict=True):
        for index, (name, bits) in enumerate(policy.layers):
            hatch = "////" if name in pinned else ""
            for shift, value, colour in (
                (-0.2, bits.weight_bits, WEIGHT_COLOUR),
                (0.2, bits.act_bits, ACT_COLOUR),
            ):
                axes.bar(index + shift, value, 0.38, color=colour, hatch=hatch,
                         edgecolor="white", linewidth=0.4)  # fmt: skip
        axes.set_title(label, fontsize=8, loc="left", pad=3)
        axes.set_ylim(0, top + 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_ylabel("bits", fontsize=8)
        axes.grid(axis="y", alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        _plain(axes)
    rows[-1].set_xlim(-0.7, len(names) - 0.3)
    _layer_ticks(rows[-1], names)
    figure.legend(
        handles=[
            Patch(facecolor=WEIGHT_COLOUR, label="weight"),
            Patch(facecolor=ACT_COLOUR, label="activation"),
            Patch(facecolor=GREY, hatch="////", edgecolor="white", label="pinned"),
        ],
        loc="outside upper right", ncols=3, fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


_TENSORS = (("weight", "weights"), ("act", "activations"))


def indicator_heat_map(tables: Mapping[str, ImportanceTable]) -> Figure:
    """Indicators by layer and bit-width, weights above activations (LIMPQ, Figure 4).

    Args:
        tables: label -> table of one network (``learned``, ``initial``); side by side, on one
            logarithmic colour scale for weights and one for activations.
    """
    entries = [row for table in tables.values() for row in table.rows]
    layers = list(dict.fromkeys(row.layer for row in entries))
    # A search of activations alone has no weight indicators.
    known_tensors = {row.tensor for row in entries}
    shown = [(t, text) for t, text in _TENSORS if t in known_tensors]
    height = 1.0 + len(shown) * max(1.9, 0.17 * len(layers) + 0.3)
    figure = _figure(1.9 + 2.6 * len(tables) + 0.07 * max(map(len, layers)), height)
    grid = figure.subplots(len(shown), len(tables), squeeze=False)
    for row, (tensor, title) in enumerate(shown):
        values = [r.value for r in entries if r.tensor == tensor]
        scale = LogNorm(min(values), max(values))
        bits = sorted({r.bits for r in entries if r.tensor == tensor})
        for column, (label, table) in enumerate(tables.items()):
            axes, known = grid[row, column], table.values()
            image = [[known.get((x, tensor, b), math.nan) for b in bits] for x in layers]
            drawn = axes.imshow(image, aspect="auto", cmap="cividis", norm=scale)
            axes.set_title(f"{title}, {label}", fontsize=8)
            axes.set_xticks(range(len(bits)), [str(b) for b in bits], fontsize=7)
            axes.set_yticks(range(len(layers)), layers if column == 0 else [], fontsize=6)
            axes.tick_params(length=0)
            if row == len(shown) - 1:
                axes.set_xlabel("bits", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(grid[row]), shrink=0.9, pad=0.02)
        bar.set_label("indicator (step size)", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    return figure


def accuracy_over_bitops(
    points: Sequence[AccuracyPoint],
    infeasible_g: Sequence[float] = (),
    full_precision_top1: float | None = None,
) -> Figure:
    """Top-1 of every trained policy over its BitOps; searched and uniform ones with their front.

    Args:
        points: trained policies.
        infeasible_g: limits in 1e9 BitOps that nothing can meet, marked on the axis.
        full_precision_top1: percent, drawn as a line.
    """
    figure = _figure(7.4, 4.2)
    axes = figure.subplots()
    # Small networks cost millions, large ones billions.
    factor, unit = (
        (1e3, "1e6") if max((p.bitops_g for p in points), default=1) < 0.1 else (1, "1e9")
    )
    methods = sorted({p.method for p in points}, key=lambda m: (m != "limpq", m != "uniform", m))
    for method in methods:
        own = sorted((p.bitops_g * factor, p.top1) for p in points if p.method == method)
        colour, marker = STYLES.get(method, _OTHER_STYLE)
        best = _front(own)
        # Two methods may end at the same policy: the searched one shows as a rim around it.
        size = 10 if method in ("limpq", "metamix") else 6
        axes.plot([x for x, _ in own], [y for _, y in own], marker, color=colour, markersize=size,
                  label=method, alpha=0.9, linestyle="none",
                  markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
        if len(best) > 1 and method in ("limpq", "metamix", "uniform"):
            dashes = "--" if method == "uniform" else "-"
            axes.plot([x for x, _ in best], [y for _, y in best], dashes, color=colour,
                      linewidth=1.1, alpha=0.7)  # fmt: skip
    if full_precision_top1 is not None:
        axes.axhline(full_precision_top1, color=GREY, linewidth=1, linestyle=":",
                     label=f"full precision, {full_precision_top1:.2f} %")  # fmt: skip
    axes.margins(x=0.06, y=0.1)
    if infeasible_g:
        low = axes.get_ylim()[0]
        axes.plot([x * factor for x in infeasible_g], [low] * len(infeasible_g), "x",
                  color="#D55E00", markersize=7, linestyle="none", clip_on=False,
                  label="infeasible limit", zorder=5)  # fmt: skip
        axes.set_ylim(bottom=low)
    axes.set_xlabel(f"BitOps of one image ({unit})")
    axes.set_ylabel("top-1 (%)")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    _plain(axes)
    return figure


def search_cost_bars(costs: Mapping[str, Mapping[str, float]], unit: str) -> Figure:
    """What each method's search costs by part, on a logarithmic scale.

    Args:
        costs: method -> part (``indicators``, ``solve``) -> seconds; 0 = free.
        unit: what the seconds are, e.g. ``CPU-seconds of 2 workers``.
    """
    parts = list(dict.fromkeys(part for by_part in costs.values() for part in by_part))
    colours = [WEIGHT_COLOUR, ACT_COLOUR, "#009E73", "#CC79A7", "#D55E00"]
    hatches = ["", "////", "....", "xxxx", "\\\\\\\\"]
    figure = _figure(6.4, 1.4 + 0.32 * len(costs) * max(1, len(parts)))
    axes = figure.subplots()
    positive = [v for by_part in costs.values() for v in by_part.values() if v > 0]
    low = 10 ** math.floor(math.log10(min(positive, default=0.01)) - 0.3)
    height = 0.8 / max(1, len(parts))
    for index, method in enumerate(costs):
        for number, part in enumerate(parts):
            value = costs[method].get(part, 0.0)
            place = index + (number - (len(parts) - 1) / 2) * height
            if value > 0:
                axes.barh(place, value - low, height * 0.9, left=low, hatch=hatches[number % 5],
                          color=colours[number % 5], edgecolor="white")  # fmt: skip
            text = f"{value:,.2f} s" if value > 0 else "0"
            axes.annotate(text, (max(value, low), place), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=7)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low, max(positive, default=1.0) * 6)
    axes.set_yticks(range(len(costs)), list(costs), fontsize=8)
    axes.set_ylim(len(costs) - 0.5, -0.5)
    axes.set_xlabel(f"search cost ({unit}, log scale)")
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    _plain(axes)
    figure.legend(
        handles=[
            Patch(facecolor=colours[n % 5], hatch=hatches[n % 5], edgecolor="white", label=part)
            for n, part in enumerate(parts)
        ],
        loc="outside upper right", ncols=max(1, len(parts)), fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def save_figure(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write ``stem.svg`` and ``stem.png``; the same figure gives the same bytes."""
    paths = []
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        # Element ids of SVG are random without a salt; text stays text and can be searched.
        with mpl.rc_context({"svg.hashsalt": "mpq", "svg.fonttype": "none"}):
            figure.savefig(buffer, format=suffix, dpi=144, metadata=metadata)
        path = folder / f"{stem}.{suffix}"
        write_atomically(path, buffer.getvalue())
        paths.append(path)
    return paths[0], paths[1]


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats at lower cost; input is sorted by cost."""
    front: list[tuple[float, float]] = []
    for x, y in points:
        if not front or y > front[-1][1]:
            if front and front[-1][0] == x:
                front.pop()
            front.append((x, y))
    return front


def _layer_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Every layer by name; of very deep networks every second, third, ... one."""
    step = max(1, -(-len(names) // 60))
    shown = list(range(0, len(names), step))
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names[round(x)]))
    axes.tick_params(axis="x", labelsize=6, rotation=90)


def _label_inches(names: Sequence[str]) -> float:
    """Height of the vertical layer names."""
    return 0.055 * max(map(len, names))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
