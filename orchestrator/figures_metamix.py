"""What do the activations do while bits are searched? MetaMix's figures, from the phases' tables.

Pure functions from plain rows, drawn like ``figures`` and saved by its ``save_figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito, in the order of a scale: narrow widths warm, wide ones cool.
_WIDTH_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7")
_DEPTHWISE, _OTHER, _LINE = "#E69F00", "#0072B2", "#D55E00"

Rows = Mapping[str, Sequence[Any]]


def norm_drift(rows: Rows, layer: str) -> Figure:
    """Running variance behind one layer over updates, a panel a variant (Figure 2).

    Args:
        rows: columns variant, update, bits, variance of ``metamix.drift``.
        layer: whose bits change.
    """
    variants = list(dict.fromkeys(rows["variant"]))
    colours = _colours(rows["bits"])
    figure = _figure(6.4, 0.7 + 1.5 * len(variants))
    panels = figure.subplots(len(variants), 1, sharex=True, squeeze=False)[:, 0]
    for axes, variant in zip(panels, variants, strict=True):
        own = [i for i, v in enumerate(rows["variant"]) if v == variant]
        updates = [rows["update"][i] for i in own]
        axes.plot(updates, [rows["variance"][i] for i in own], color="#999999", linewidth=0.8)
        for bits, colour in colours.items():
            at = [i for i in own if rows["bits"][i] == bits]
            axes.plot(
                [rows["update"][i] for i in at], [rows["variance"][i] for i in at],
                linestyle="", marker=".", markersize=3, color=colour, label=f"{bits} bit",
            )  # fmt: skip
        axes.set_title(variant.replace("_", " "), fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"update; activation bits of {layer} change", fontsize=8)
    figure.supylabel("running variance", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(labels), fontsize=7, frameon=False
    )
    return figure


def input_distributions(rows: Rows, layer: str) -> Figure:
    """Histograms of what one layer reads: rows weight bits, columns activation bits (1 and 6).

    Args:
        rows: columns weight_bits, act_bits, layer, left, right, count, variance of
            ``metamix.distributions``; 0 weight bits is full precision.
        layer: which of the layers.
    """
    own = [i for i, name in enumerate(rows["layer"]) if name == layer]
    weights = list(dict.fromkeys(rows["weight_bits"][i] for i in own))
    acts = sorted({rows["act_bits"][i] for i in own}, reverse=True)
    figure = _figure(1.0 + 1.9 * len(acts), 0.6 + 1.3 * len(weights))
    grid = figure.subplots(len(weights), len(acts), sharex=True, sharey=True, squeeze=False)
    for row, weight_bits in enumerate(weights):
        for column, act_bits in enumerate(acts):
            axes = grid[row, column]
            at = [
                i
                for i in own
                if (rows["weight_bits"][i], rows["act_bits"][i]) == (weight_bits, act_bits)
            ]
            edges = [rows["left"][i] for i in at] + [rows["right"][at[-1]]]
            axes.stairs([rows["count"][i] for i in at], edges, fill=True, color=_OTHER)
            axes.set_yscale("symlog", linthresh=1)
            name = "FP" if weight_bits == 0 else f"{weight_bits} bit"
            variance = rows["variance"][at[0]]
            axes.set_title(f"W {name}, A {act_bits} bit, var {variance:.3g}", fontsize=7)
            axes.tick_params(labelsize=6)
    figure.supxlabel(f"input of {layer}", fontsize=8)
    figure.supylabel("count", fontsize=8)
    return figure


def alpha_paths(rows: Rows, tensor: str = "act") -> Figure:
    """Probability of every width over updates, a panel a layer.

    Args:
        rows: columns update, unit, tensor, bits, probability of the alpha history.
        tensor: weight or act.
    """
    own = [i for i, t in enumerate(rows["tensor"]) if t == tensor]
    units = list(dict.fromkeys(rows["unit"][i] for i in own))
    colours = _colours([rows["bits"][i] for i in own])
    num_columns = min(4, len(units))
    num_rows = -(-len(units) // num_columns)
    figure = _figure(0.8 + 1.7 * num_columns, 0.7 + 1.05 * num_rows)
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(units) :]:
        axes.set_axis_off()
    for axes, unit in zip(grid.flat, units, strict=False):
        for bits, colour in colours.items():
            at = [i for i in own if rows["unit"][i] == unit and rows["bits"][i] == bits]
            axes.plot(
                [rows["update"][i] for i in at], [rows["probability"][i] for i in at],
                color=colour, linewidth=1.0, label=f"{bits} bit",
            )  # fmt: skip
        axes.set_title(unit, fontsize=6, loc="left")
        axes.set_ylim(0, 1)
        axes.tick_params(labelsize=6)
    figure.supxlabel("update of the bit search", fontsize=8)
    figure.supylabel("softmax of alpha", fontsize=8)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(labels), fontsize=7, frameon=False
    )
    return figure


def selected_bits(
    bits: Mapping[str, int],
    depthwise: frozenset[str],
    line: Mapping[str, float] | None = None,
    line_label: str = "",
) -> Figure:
    """Activation bits by layer, depth-wise layers apart, with a second quantity (Figure 7).

    Args:
        bits: layer -> activation bits, in network order.
        depthwise: names of the depth-wise layers.
        line: layer -> positive value on a logarithmic axis of its own, e.g. MACs.
        line_label: what ``line`` is.
    """
    names = list(bits)
    figure = _figure(1.5 + 0.17 * len(names), 2.6)
    axes = figure.subplots()
    colours = [_DEPTHWISE if name in depthwise else _OTHER for name in names]
    axes.bar(range(len(names)), list(bits.values()), color=colours)
    axes.set_xticks(range(len(names)), names, fontsize=5, rotation=90)
    axes.set_ylabel("activation bits", fontsize=8)
    axes.spines["top"].set_visible(False)
    if line is not None:
        other = axes.twinx()
        other.plot(
            [i for i, n in enumerate(names) if n in line], [line[n] for n in names if n in line],
            color=_LINE, marker=".", linewidth=0.8,
        )  # fmt: skip
        other.set_yscale("log")
        other.set_ylabel(line_label, fontsize=8, color=_LINE)
        other.tick_params(labelsize=6)
        other.spines["top"].set_visible(False)
    return figure


def _colours(bits: Sequence[int]) -> dict[int, str]:
    return {b: _WIDTH_COLOURS[i % len(_WIDTH_COLOURS)] for i, b in enumerate(sorted(set(bits)))}


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
