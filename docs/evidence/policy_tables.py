"""Tables of policies: accuracy, bits, search cost, and what predicts their accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cell_text import interval, markdown, tau
from read_results import Run, accuracies, method_of, spoken

from orchestrator.compare.proxies import predicted_objective
from orchestrator.compare.statistics import kendall, paired
from solvers.tables import Importance, ImportanceTable, LayerBits

# What the pages put beside every method, and the order of a table.
UNIFORM, REVERSED = "uniform_w2a3", "reversed"
METERS = ("images", "forward_passes", "backward_passes")
DEVICES = (1, 10, 100, 10_000)


def accuracy_table(runs: Sequence[Run], others: Sequence[str] = (UNIFORM, REVERSED)) -> str:
    """Top-1 of every method and its paired difference to some of them."""
    by_method = accuracies(runs)
    bits = {method_of(row): row for run in reversed(runs) for row in run["rows"]}
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
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
    """Kendall's tau of predicted objective and measured error: a seed's policies, then all.

    The last column predicts the distinct policies of all seeds by the tables of the first.
    """
    rows = []
    policies = distinct(runs)
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
        shown = f"{mean:+.2f}" if taus else "-"
        rows.append((mean, (label, alpha, *cells, shown, _tau_of(runs[0], label, alpha, policies))))
    rows.sort(key=lambda row: -row[0])
    seeds = [f"seed {run['seed']}" for run in runs]
    columns = ("importance", "alpha", *seeds, "mean", f"all {len(policies)} policies")
    return markdown(columns, [row for _, row in rows])


def distinct(runs: Sequence[Run]) -> list[tuple[Mapping[str, LayerBits], float]]:
    """Bits and top-1 of every distinct policy; the mean where several seeds trained it."""
    bits: dict[str, Mapping[str, LayerBits]] = {}
    top1: dict[str, list[float]] = {}
    for run in runs:
        trained = {r["policy_id"]: r["top1"] for r in run["rows"] if r["top1"] is not None}
        for name, value in trained.items():
            top1.setdefault(name, []).append(value)
            bits[name] = {
                layer: LayerBits(weight_bits=int(weight), act_bits=int(act))
                for layer, own in run["policies"][name].items()
                for weight, act in (own.split("/"),)
            }
    return [(bits[name], statistics.mean(values)) for name, values in top1.items()]


def _tau_of(
    run: Run, label: str, alpha: str, policies: Sequence[tuple[Mapping[str, LayerBits], float]]
) -> str:
    """Tau of the objective by one table of ``run`` and the error of ``policies``."""
    rows = tuple(
        Importance(layer=layer, tensor=tensor, bits=bits, value=value)
        for layer, tensor, bits, value in run["importance"][label]
    )
    table = ImportanceTable(
        model="", fingerprint="", method=label, seed=run["seed"], data_fingerprint="", rows=rows
    )
    found = [(predicted_objective(table, own, float(alpha)), -top1) for own, top1 in policies]
    both = [(objective, error) for objective, error in found if objective is not None]
    return tau([objective for objective, _ in both], [error for _, error in both])


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


def cost_table(runs: Sequence[Run]) -> str:
    """What each method's search paid, the mean over seeds, and the share of one device of many.

    What serves every device is shared out; what a method does for each device is paid each time.
    """
    rows = []
    sums = _paid(runs)
    for method, totals in sorted(sums.items(), key=lambda item: _mean(item[1], "shared")):
        meters = (f"{_mean(totals, name):,.0f}" for name in METERS)
        shares = (f"{seconds:,.2f}" for seconds in _shares(totals))
        rows.append((spoken(method), *meters, *shares))
    devices = (f"s a device of {z:,}" for z in DEVICES)
    return markdown(("method", *(name.replace("_", " ") for name in METERS), *devices), rows)


def seconds_a_device(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Method -> device seconds of search a device, one value for each of ``DEVICES``."""
    return {method: _shares(totals) for method, totals in _paid(runs).items()}


def _paid(runs: Sequence[Run]) -> dict[str, list[dict[str, float]]]:
    """Method -> what its search paid, a mapping a run: ``shared``, ``each`` and the meters."""
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
    return sums


def _shares(totals: Sequence[Mapping[str, float]]) -> list[float]:
    return [_mean(totals, "shared") / z + _mean(totals, "each") for z in DEVICES]


def _mean(totals: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.mean(total.get(name, 0.0) for total in totals)
