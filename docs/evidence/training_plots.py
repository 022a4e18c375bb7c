"""Which pictures come from trainings and their costs? Curves, moved steps, BatchNorm, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from indicator_tables import TENSORS, learning_variant, median_change
from matplotlib.figure import Figure
from policy_tables import DEVICES, seconds_a_device
from read_results import Run, spoken
from training_tables import curves, variances

# Read the step sizes that limpq learned, or those that it starts from: no line of their own.
SAME_SEARCH = ("reversed", "initial")


def learning(runs: Sequence[Run]) -> Figure:
    """How far joint training moves the step sizes, by bits, a line a variant."""
    figure = Figure(figsize=(8, 3.4))
    for panel, (tensor, label) in enumerate(TENSORS.items()):
        axes = figure.add_subplot(1, 2, panel + 1)
        for run in runs:
            moved = median_change(run, tensor)
            axes.plot(list(moved), [100 * value for value in moved.values()], "o-",
                      label=learning_variant(run))  # fmt: skip
        axes.set_title(f"steps of {label}", fontsize=9)
        axes.set_xlabel("bits")
        axes.set_xticks(list(moved))
        if not panel:
            axes.set_ylabel("change from the statistics, percent\n(median over layers)")
        else:
            axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return figure


def learning_curves(runs: Sequence[Run], full_precision: float) -> Figure:
    """Top-1 between epochs, a line a policy, beside full precision."""
    figure = Figure(figsize=(6, 3.4))
    axes = figure.add_subplot()
    for bits, curve in curves(runs):
        axes.plot(sorted(curve), [curve[epoch] for epoch in sorted(curve)], "o-", label=bits)
    axes.axhline(full_precision, color="black", linestyle="--", label="full precision")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 on the test images, percent")
    axes.legend(fontsize=8, title="W / A bits")
    axes.grid(alpha=0.3)
    return figure


def drift(run: Run) -> Figure:
    """Running variance of the watched BatchNorm over updates, a panel a kind of training."""
    watched = variances(run)
    most = max(p.variance for points in watched.values() for p in points)
    figure = Figure(figsize=(3.4 * len(watched), 3))
    for panel, (variant, points) in enumerate(watched.items()):
        axes = figure.add_subplot(1, len(watched), panel + 1)
        for bits in sorted({p.bits for p in points}):
            own = [p for p in points if p.bits == bits]
            axes.plot([p.update for p in own], [p.variance for p in own], ".", markersize=3,
                      label=f"{bits} bit")  # fmt: skip
        axes.set_title(variant.replace("_", " "), fontsize=9)
        axes.set_xlabel("update")
        axes.set_ylim(0, 1.1 * most)
        if not panel:
            axes.set_ylabel("variance behind the watched layer")
            axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.subplots_adjust(wspace=0.3)
    return figure


def cost(panels: Mapping[str, Sequence[Run]]) -> Figure:
    """Device seconds of search a device over the number of devices, a panel a comparison."""
    figure = Figure(figsize=(5.5 * len(panels), 3.4))
    for panel, (title, runs) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), panel + 1)
        for method, seconds in seconds_a_device(runs).items():
            if method in SAME_SEARCH or method.startswith("limpq_"):
                continue
            axes.plot(DEVICES, seconds, "o-", label=spoken(method))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("devices")
        if not panel:
            axes.set_ylabel("seconds of search a device")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        axes.grid(alpha=0.3)
    figure.subplots_adjust(wspace=0.9)
    return figure
