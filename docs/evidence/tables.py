"""What do the pages' tables say? Made from ``results/*.json``, never by hand.

    python docs/evidence/tables.py            write the tables into the pages
    python docs/evidence/tables.py --check    list the pages that are out of date, exit 1 if any

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of NAME -->``.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from read_results import Run, accuracies, at, cells_of, method_of, runs_of, spoken  # noqa: E402

from orchestrator.compare.statistics import Summary, kendall, paired  # noqa: E402

# What the pages put beside every method, and the order of a table.
UNIFORM, REVERSED = "uniform_w2a3", "reversed"
TENSORS = {"weight": "weights", "act": "input"}
PRICED = ("limpq, initial", "limpq, learned", "fitted, learned")
METERS = ("images", "forward_passes", "backward_passes")
DEVICES = (1, 10, 100, 10_000)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    line = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, line, *rows))


def interval(found: Summary | None) -> str:
    """A difference with its interval; the decided ones stand out."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f} (n = {found.n})"
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low * found.high > 0 else text


def accuracy_table(runs: Sequence[Run], others: Sequence[str] = (UNIFORM, REVERSED)) -> str:
    """Top-1 of every method and its paired difference to some of them."""
    by_method = accuracies(runs)
    bits = {method_of(row): row for run in reversed(runs) for row in run["rows"]}
    seeds = [run["seed"] for run in runs]
    rows = []
    order = sorted(by_method, key=lambda m: -statistics.mean(by_method[m].values()))
    for method in order:
        own = by_method[method]
        differences = []
        for other in others:
            found = paired(own, by_method[other]) if other != method else None
            differences.append(interval(found.difference if found else None))
        rows.append(
            (
                method.replace("uniform_w2a3", "uniform W2A3").replace(
                    "uniform_w3a2", "uniform W3A2"
                ),
                f"{bits[method]['mean_weight_bits']:.2f} / {bits[method]['mean_act_bits']:.2f}",
                f"{1e3 * bits[method]['bitops_g']:.1f} M",
                *(f"{own[seed]:.2f}" if seed in own else "-" for seed in seeds),
                f"{statistics.mean(own.values()):.2f}",
                *differences,
            )
        )
    return markdown(
        ("method", "mean W / A bits", "BitOps", *(f"seed {seed}" for seed in seeds), "mean",
         *(f"less {spoken(other)}" for other in others)),
        rows,
    )  # fmt: skip


def tau_table(runs: Sequence[Run]) -> str:
    """Kendall's tau of predicted objective and measured error over a seed's policies."""
    rows = []
    labels = [(label, alpha) for label, own in runs[0]["predictions"].items() for alpha in own]
    for label, alpha in labels:
        cells, taus = [], []
        for run in runs:
            objective = run["predictions"].get(label, {}).get(alpha, {})
            top1 = {r["policy_id"]: r["top1"] for r in run["rows"] if r["top1"] is not None}
            both = [n for n in top1 if objective.get(n) is not None]
            if len(both) < 2:
                cells.append("-")
                continue
            first, second = [objective[n] for n in both], [-top1[n] for n in both]
            cells.append(tau(first, second))
            taus += [value for value in (kendall(first, second).tau,) if value is not None]
        mean = statistics.mean(taus) if taus else -2.0
        rows.append((mean, (label, alpha, *cells, f"{mean:+.2f}" if taus else "-")))
    rows.sort(key=lambda row: -row[0])
    seeds = [f"seed {run['seed']}" for run in runs]
    return markdown(("importance", "alpha", *seeds, "mean"), [row for _, row in rows])


def bits_table(run: Run) -> str:
    """Weight / activation bits of every layer, one column a method."""
    rows = [row for row in run["rows"] if row["top1"] is not None]
    shown: dict[str, str] = {}
    for row in rows:
        shown.setdefault(method_of(row), row["policy_id"])
    layers = list(next(iter(run["policies"].values())))
    return markdown(
        ("layer", *shown),
        [(layer, *(run["policies"][name][layer] for name in shown.values())) for layer in layers],
    )


def marginal_table(runs: Sequence[Run]) -> str:
    """What one more bit is worth to an importance table, by what a layer reads.

    In a block of this network ``conv1`` reads the residual stream and ``conv2`` an inner ReLU.
    Values are over that of an inner input from 2 to 3 bits, means over layers and seeds.
    """
    rows = []
    for label in PRICED:
        cells: list[float] = []
        for bits in (2, 3):
            for tensor, suffix in (("act", "conv1"), ("act", "conv2"), ("weight", "")):
                cells.append(
                    statistics.mean(
                        prices[layer, tensor, bits] - prices[layer, tensor, bits + 1]
                        for run in runs
                        if label in run["importance"]
                        for prices in [{(r[0], r[1], r[2]): r[3] for r in run["importance"][label]}]
                        for layer in sorted({key[0] for key in prices if key[0].endswith(suffix)})
                    )
                )
        rows.append((label, *(f"{cell / cells[1]:.2f}" for cell in cells)))
    kinds = ("stream", "inner", "weights")
    columns = [f"{kind}, {bits} to {bits + 1} bit" for bits in (2, 3) for kind in kinds]
    return markdown(("importance", *columns), rows)


def cost_table(runs: Sequence[Run]) -> str:
    """What each method's search paid, the mean over seeds, and the share of one device of many.

    What serves every device is shared out; what a method does for each device is paid each time.
    """
    sums: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        own: dict[str, dict[str, float]] = {}
        for part in run["search"]:
            total = own.setdefault(part["method"], {})
            kind = "each" if part["per_device"] else "shared"
            total[kind] = total.get(kind, 0.0) + part["seconds"]
            for name in METERS:
                total[name] = total.get(name, 0.0) + part.get(name, 0.0)
        for method, total in own.items():
            sums.setdefault(method, []).append(total)
    rows = []
    for method, totals in sorted(sums.items(), key=lambda item: _mean(item[1], "shared")):
        shared, each = _mean(totals, "shared"), _mean(totals, "each")
        meters = (f"{_mean(totals, name):,.0f}" for name in METERS)
        rows.append((spoken(method), *meters, *(f"{shared / z + each:,.2f}" for z in DEVICES)))
    devices = (f"s a device of {z:,}" for z in DEVICES)
    return markdown(("method", *(name.replace("_", " ") for name in METERS), *devices), rows)


def _mean(totals: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.mean(total.get(name, 0.0) for total in totals)


def sensitivity_table(run: Run, learned: Run) -> str:
    """Tau of the learned step size and the rise of the loss, over layers."""
    rows = []
    for tensor, label in TENSORS.items():
        for bits in sorted(set(run["sensitivity"]["evidence-sensitivity"]["cells"]["bits"])):
            cells = cells_of(run, "evidence-sensitivity", learned, tensor, bits)
            steps = [c.learned for c in cells]
            rows.append(
                (
                    f"{label}, {bits} bit",
                    str(len(cells)),
                    f"{max(c.rise for c in cells):.3f}",
                    f"{max(c.rise_after for c in cells):.3f}",
                    tau(steps, [c.rise for c in cells]),
                    tau(steps, [c.rise_after for c in cells]),
                )
            )
    return markdown(
        ("tensor", "layers", "largest rise", "largest after training", "tau with the rise",
         "tau with the rise after training"),
        rows,
    )  # fmt: skip


def separate_table(run: Run, learned: Run) -> str:
    """Do step sizes learned one tensor at a time order the layers as the joint ones do?"""
    rows = []
    starts = {"evidence-sensitivity-2": "statistics", "evidence-sensitivity-3": "0.1 / bits"}
    for step, start in starts.items():
        for tensor, label in TENSORS.items():
            for bits in sorted(set(run["sensitivity"][step]["cells"]["bits"])):
                cells = cells_of(run, step, learned, tensor, bits)
                after = [c.step_after for c in cells]
                rows.append(
                    (
                        f"{label}, {bits} bit",
                        start,
                        f"{min(c.step for c in cells):.3f} to {max(c.step for c in cells):.3f}",
                        f"{min(after):.3f} to {max(after):.3f}",
                        tau(after, [c.learned for c in cells]),
                        tau(after, [c.rise for c in cells]),
                    )
                )
    return markdown(
        ("tensor", "start", "steps at the start", "after 60 updates", "tau with the joint ones",
         "tau with the rise of the loss"),
        rows,
    )  # fmt: skip


def tau(first: Sequence[float], second: Sequence[float]) -> str:
    """Kendall's tau with its interval; those off zero stand out."""
    found = kendall(first, second)
    if found.tau is None or found.low is None or found.high is None:
        return "-"
    text = f"{found.tau:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low * found.high > 0 else text


def curves_table(runs: Sequence[Run]) -> str:
    """Top-1 during training, a row a policy."""
    rows, epochs = [], set()
    for run in runs:
        for row in run["rows"]:
            curve = {
                int(name.rpartition("_")[2]): value
                for name, value in run["curves"].get(row["policy_id"], {}).items()
            }
            if curve:
                epochs |= curve.keys()
                rows.append((f"{row['mean_weight_bits']:g} / {row['mean_act_bits']:g}", curve, row))
    shown = sorted(epochs)
    return markdown(
        ("W / A bits", *(f"epoch {epoch}" for epoch in shown), "end"),
        [
            (bits, *(f"{curve[e]:.2f}" if e in curve else "-" for e in shown), f"{row['top1']:.2f}")
            for bits, curve, row in rows
        ],
    )


def provenance(runs: Sequence[Run]) -> str:
    """Which runs, when, on what."""
    return markdown(
        ("run", "seed", "began (UTC)", "commit", "hours of its steps", "machine"),
        [
            (
                run["run"], str(run["seed"]), run["began_utc"][:16].replace("T", " "),
                run["commit"], f"{run['steps_hours']:.2f}",
                f"{run['machine']['processor']}, {run['machine']['cores']} cores, "
                f"torch {run['versions']['torch']}",
            )
            for run in runs
        ],
    )  # fmt: skip


def _limpq(make: Callable[[Sequence[Run]], str]) -> Callable[[], str]:
    return lambda: make(runs_of("evidence-limpq-25"))


def _metamix(limits: str) -> Callable[[], str]:
    return lambda: accuracy_table(at(runs_of("evidence-metamix"), limits), ("uniform", "random"))


def _sensitivity(make: Callable[[Run, Run], str]) -> Callable[[], str]:
    return lambda: make(runs_of("evidence-sensitivity")[0], runs_of("evidence-limpq-25")[0])


TABLES: Mapping[str, Callable[[], str]] = {
    "sensitivity": _sensitivity(sensitivity_table),
    "sensitivity-separate": _sensitivity(separate_table),
    "sensitivity-runs": lambda: provenance(runs_of("evidence-sensitivity")),
    "curves": lambda: curves_table(runs_of("evidence-lsq-curves")),
    "curves-runs": lambda: provenance(runs_of("evidence-lsq-curves")),
    "metamix-accuracy": _metamix("bitops_level=4x3.4"),
    "metamix-accuracy-4x4": _metamix("bitops_level=4x4"),
    "metamix-bits": lambda: bits_table(runs_of("evidence-metamix")[0]),
    "metamix-cost": lambda: cost_table(runs_of("evidence-metamix")),
    "metamix-runs": lambda: provenance(runs_of("evidence-metamix")),
    "limpq-25-accuracy": _limpq(accuracy_table),
    "limpq-25-tau": _limpq(tau_table),
    "limpq-25-bits": _limpq(lambda runs: bits_table(runs[0])),
    "limpq-25-marginal": _limpq(marginal_table),
    "limpq-25-cost": _limpq(cost_table),
    "limpq-25-runs": _limpq(provenance),
}


def filled(text: str) -> str:
    """A page with each of its tables made again.

    Raises:
        KeyError: the page names a table that is not here.
    """

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table: {name} -->\n\n{TABLES[name]()}\n\n<!-- end of {name} -->"

    return re.sub(
        r"<!-- table: (?P<name>\S+) -->.*?<!-- end of (?P=name) -->", table, text, flags=re.S
    )


def main(check: bool) -> int:
    """Write the tables, or compare them; the number of pages that were out of date."""
    stale = 0
    for page in sorted(HERE.glob("*.md")):
        text = page.read_text()
        made = filled(text)
        if made != text:
            stale += 1
            print(f"{page.name} {'is out of date' if check else 'written'}")
            if not check:
                page.write_text(made)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(min(main("--check" in sys.argv[1:]), 1))
