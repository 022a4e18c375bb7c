"""Which pictures do the pages show? Drawn from ``results/*.json`` into ``images/*.svg``.

python docs/evidence/plots.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import matplotlib as mpl  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from read_results import Run, accuracies, at, cells_of, runs_of, spoken  # noqa: E402
from training_plots import cost, drift, learning, learning_curves  # noqa: E402

IMAGES = HERE / "images"
# The same file from the same numbers.
mpl.rcParams["svg.hashsalt"] = "evidence"
BITS_COLOURS = {2: "#c0392b", 3: "#d68910", 4: "#2471a3"}


def save(figure: Figure, name: str) -> None:
    """Write one SVG without a date."""
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    print(f"images/{name}.svg")


def accuracy(runs: Sequence[Run]) -> Figure:
    """Top-1 of every method, a dot a seed, a line at their mean."""
    found = accuracies(runs)
    order = sorted(found, key=lambda m: statistics.mean(found[m].values()))
    figure = Figure(figsize=(7, 0.32 * len(order) + 1))
    axes = figure.add_subplot()
    for y, method in enumerate(order):
        values = list(found[method].values())
        axes.plot(values, [y] * len(values), "o", color="#2471a3", alpha=0.6)
        axes.plot([statistics.mean(values)] * 2, [y - 0.3, y + 0.3], color="black")
    axes.set_yticks(range(len(order)), [spoken(method) for method in order])
    axes.set_xlabel("top-1 on the test images, percent (a dot a seed, the bar is the mean)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def prediction(runs: Sequence[Run], labels: Sequence[tuple[str, str]]) -> Figure:
    """Measured top-1 over the predicted objective, one panel an importance table."""
    labels = [(label, alpha) for label, alpha in labels if label in runs[0]["predictions"]]
    figure = Figure(figsize=(3.4 * len(labels), 3.2))
    for panel, (label, alpha) in enumerate(labels):
        axes = figure.add_subplot(1, len(labels), panel + 1)
        for run in runs:
            objective = run["predictions"].get(label, {}).get(alpha, {})
            top1 = {r["policy_id"]: r["top1"] for r in run["rows"] if r["top1"] is not None}
            both = [n for n in top1 if objective.get(n) is not None]
            axes.plot([objective[n] for n in both], [top1[n] for n in both], "o", alpha=0.7,
                      label=f"seed {run['seed']}")  # fmt: skip
        axes.set_title(f"{label}, alpha {alpha}", fontsize=9)
        axes.set_xlabel("predicted objective")
        if not panel:
            axes.set_ylabel("top-1, percent")
            axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.subplots_adjust(wspace=0.3)
    return figure


def sensitivity(run: Run, learned: Run) -> Figure:
    """Rise of the loss after a short training over the learned step size, a dot a layer."""
    figure = Figure(figsize=(8, 3.4))
    for panel, tensor in enumerate(("weight", "act")):
        axes = figure.add_subplot(1, 2, panel + 1)
        for bits, colour in BITS_COLOURS.items():
            points = cells_of(run, "evidence-sensitivity", learned, tensor, bits)
            axes.plot([p.learned for p in points], [max(p.rise_after, 1e-4) for p in points], "o",
                      color=colour, label=f"{bits} bit")  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"learned step size of the {'weights' if tensor == 'weight' else 'input'}")
        if not panel:
            axes.set_ylabel("rise of the loss after 20 updates")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Draw what there are numbers for."""
    limpq = runs_of("evidence-limpq-25")
    if limpq:
        save(accuracy(limpq), "limpq-25-accuracy")
        save(
            prediction(
                limpq,
                [("limpq, learned", "0.5"), ("limpq, learned", "2"),
                 ("quantization_error, learned", "1"), ("fitted, learned", "1")],
            ),
            "limpq-25-prediction",
        )  # fmt: skip
    for run in runs_of("evidence-sensitivity"):
        save(sensitivity(run, limpq[0]), "sensitivity")
    save(learning([limpq[0], *runs_of("evidence-learning")]), "learning")
    metamix, watched = runs_of("evidence-metamix"), runs_of("evidence-metamix-core")
    save(accuracy(at(metamix, "bitops_level=4x3.4")), "metamix-accuracy")
    save(drift(watched[0]), "metamix-drift")
    panels = {"2.5 bits, weights and activations": limpq, "4 bits less 15 %, activations": watched}
    save(cost(panels), "cost")
    curves = runs_of("evidence-lsq-curves")
    save(learning_curves(curves, curves[0]["full_precision_top1"]), "curves")


if __name__ == "__main__":
    main()
