"""What do the activations do while bits are searched? MetaMix's figures, from the phases' tables.

Pure functions from plain rows, drawn like ``figures`` and saved by its ``save_figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

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
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Activation bits by layer, depth-wise layers apart, over what may explain them (Figure 7).

    Args:
        bits: layer -> activation bits, in network order.
        depthwise: names of the depth-wise layers.
        lines: what it is (MACs, Hessian trace over MACs) -> layer -> value; a panel each, on a
            logarithmic scale where all values are positive.
    """
    lines = lines or {}
    names = list(bits)
    places = range(len(names))
    figure = _figure(max(4.0, 1.5 + 0.17 * len(names)), 2.4 + 1.1 * len(lines))
    ratios = [2.0, *[1.0] * len(lines)]
    grid = figure.subplots(
        1 + len(lines), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )
    panels = list(grid[:, 0])
    colours = [_DEPTHWISE if name in depthwise else _OTHER for name in names]
    panels[0].bar(places, list(bits.values()), color=colours)
    panels[0].set_ylabel("activation bits", fontsize=8)
    for axes, (label, values) in zip(panels[1:], lines.items(), strict=True):
        shown = [(i, values[name]) for i, name in enumerate(names) if name in values]
        axes.plot(
            [i for i, _ in shown], [v for _, v in shown], color=_LINE, marker=".", linewidth=0.8
        )
        # A Hessian trace may be negative.
        if all(value > 0 for _, value in shown):
            axes.set_yscale("log")
        axes.set_ylabel(label, fontsize=7)
    for axes in panels:
        axes.tick_params(which="both", labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xticks(places, names, fontsize=5, rotation=90)
    if depthwise:
        handles = [Patch(color=_DEPTHWISE, label="depth-wise"), Patch(color=_OTHER, label="other")]
        figure.legend(
            handles=handles, loc="outside upper right", ncols=2, fontsize=7, frameon=False
        )
    return figure


def hessian_traces(rows: Rows) -> Figure:
    """Average Hessian trace of every layer, with one standard error.

    Args:
        rows: columns layer, trace, standard_error, num_weights of ``hessian``.
    """
    names = rows["layer"]
    sizes = rows["num_weights"]
    means = [trace / size for trace, size in zip(rows["trace"], sizes, strict=True)]
    errors = [error / size for error, size in zip(rows["standard_error"], sizes, strict=True)]
    figure = _figure(max(4.0, 1.5 + 0.17 * len(names)), 2.8)
    axes = figure.subplots()
    axes.errorbar(
        range(len(names)), means, yerr=errors, color=_LINE, marker=".", linewidth=0.8, capsize=2
    )
    axes.set_xticks(range(len(names)), names, fontsize=5, rotation=90)
    axes.set_ylabel("Hessian trace / weights", fontsize=8)
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colours(bits: Sequence[int]) -> dict[int, str]:
    return {b: _WIDTH_COLOURS[i % len(_WIDTH_COLOURS)] for i, b in enumerate(sorted(set(bits)))}


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
