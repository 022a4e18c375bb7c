"""What does a study say? One row a method and budget: mean, spread, and paired against uniform.

A row counts every seed: those measured, and those infeasible, failed or not run, by name. Nothing
is averaged over a seed that is not there, and one seed claims no interval. Methods are held
against uniform bits at the same limits, seed by seed, because seeds share their full-precision
network; p-values are adjusted for the number of comparisons (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.compare.inputs import ComparedRun, ReadRuns
from orchestrator.compare.runs import question
from orchestrator.compare.statistics import Paired, Summary, holm, paired, summary
from orchestrator.figures.cost import seconds_text
from orchestrator.results import NOT_RECORDED, ResultRow, bitops_text, skipped_text

REFERENCE = "uniform"
MISSING = "not run"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRow:
    """One method at one budget over all seeds.

    Attributes:
        method: who proposes.
        alpha: of the solve, as text; ``-`` where there is none.
        limits: the budget.
        top1: seed -> percent, of the seeds that measured one.
        lacking: seed -> why there is no accuracy.
        accuracy: mean, standard deviation and interval; None without any.
        drop: the same of the drop against each seed's own full precision.
        against: paired differences to uniform at the same limits; None for uniform itself, or
            where no seed has both.
        p_adjusted: of the paired test, for all comparisons of the study.
        num_policies: distinct ones over the seeds.
        bitops_g: mean, in 1e9.
        weight_mib: mean.
        search_s: mean device seconds of the search behind it; None where no run recorded any.
        solve_s: mean wall seconds of its solve.
    """

    method: str
    alpha: str
    limits: str
    top1: Mapping[int, float]
    lacking: Mapping[int, str]
    accuracy: Summary | None
    drop: Summary | None
    against: Paired | None = None
    p_adjusted: float | None = None
    num_policies: int = 0
    bitops_g: float | None = None
    weight_mib: float | None = None
    search_s: float | None = 0.0
    solve_s: float = 0.0

    @property
    def num_seeds(self) -> int:
        """Seeds that were asked for."""
        return len(self.top1) + len(self.lacking)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTable:
    """A study's one table.

    Attributes:
        name: of the study.
        seeds: all that were asked for.
        rows: in the order of the budgets, methods as in the first run.
        full_precision: of the seeds that measured it.
        problems: seeds that could not be read or did not finish, and what does not fit together.
        device: of the search seconds.
    """

    name: str
    seeds: tuple[int, ...]
    rows: tuple[StudyRow, ...]
    full_precision: Summary | None
    problems: tuple[str, ...] = ()
    device: str = field(default="cpu")


def study_table(name: str, asked: Mapping[int, str], read: ReadRuns) -> StudyTable:
    """Join the tables of the seeds; pure.

    Args:
        name: of the study.
        asked: seed -> name of its run.
        read: what could be read of them.
    """
    by_label = {run.results.run: run for run in read.runs}
    runs = {seed: by_label[label] for seed, label in asked.items() if label in by_label}
    why = {seed: read.unread.get(label, MISSING) for seed, label in asked.items()
           if seed not in runs}  # fmt: skip
    asked_rows: dict[tuple[str, str, str], dict[int, ResultRow]] = {}
    for seed, run in runs.items():
        for row in run.results.shown:
            asked_rows.setdefault(question(row), {})[seed] = row
    limits = {text: n for n, text in enumerate(dict.fromkeys(key[2] for key in asked_rows))}
    ordered = sorted(asked_rows, key=lambda key: limits[key[2]])
    rows = [_row(key, asked_rows[key], runs, why) for key in ordered]
    rows = _held_against_uniform(rows)
    full = [run.results.full_precision_top1 for run in runs.values()]
    measured = [value for value in full if value is not None]
    devices = list(dict.fromkeys(run.results.device for run in runs.values()))
    return StudyTable(
        name=name,
        seeds=tuple(sorted(asked)),
        rows=tuple(rows),
        full_precision=summary(measured) if measured else None,
        problems=tuple(_problems(asked, runs, why)),
        device=" / ".join(devices) or "cpu",
    )


def _row(
    key: tuple[str, str, str], found: Mapping[int, ResultRow], runs: Mapping[int, ComparedRun],
    why: Mapping[int, str],
) -> StudyRow:  # fmt: skip
    top1 = {seed: row.top1 for seed, row in found.items() if row.top1 is not None}
    lacking = dict(why)
    for seed, run in runs.items():
        if seed not in top1:
            row = found.get(seed)
            if row is not None:
                lacking[seed] = f"{row.status}: {row.reason}" if row.reason else row.status
            else:
                lacking[seed] = MISSING if run.finished else "not yet"
    drops = [row.drop for row in found.values() if row.drop is not None]
    kept = [row for row in found.values() if row.policy_id is not None]
    return StudyRow(
        method=key[0],
        alpha=key[1],
        limits=key[2],
        top1=dict(sorted(top1.items())),
        lacking=dict(sorted(lacking.items())),
        accuracy=summary(list(top1.values())) if top1 else None,
        drop=summary(drops) if drops else None,
        num_policies=len({row.policy_id for row in kept}),
        bitops_g=_mean([row.bitops_g for row in kept if row.bitops_g is not None]),
        weight_mib=_mean([row.weight_mib for row in kept if row.weight_mib is not None]),
        search_s=_mean([s for row in kept if (s := row.search_device_s) is not None])
        if kept
        else 0.0,
        solve_s=_mean([row.solve_wall_s for row in kept]) or 0.0,
    )


def _held_against_uniform(rows: Sequence[StudyRow]) -> list[StudyRow]:
    uniform = {row.limits: row for row in rows if row.method == REFERENCE}
    compared = []
    for row in rows:
        reference = uniform.get(row.limits)
        if reference is None or row is reference:
            compared.append(row)
            continue
        compared.append(replace(row, against=paired(dict(row.top1), dict(reference.top1))))
    adjusted = holm([None if r.against is None else r.against.p_value for r in compared])
    return [replace(row, p_adjusted=p) for row, p in zip(compared, adjusted, strict=True)]


def _problems(
    asked: Mapping[int, str], runs: Mapping[int, ComparedRun], why: Mapping[int, str]
) -> list[str]:
    lines = [f"seed {seed} ({asked[seed]}): {reason}" for seed, reason in sorted(why.items())]
    lines += [
        f"seed {seed} ({run.label}): has not finished"
        for seed, run in sorted(runs.items())
        if not run.finished
    ]
    for seed, run in sorted(runs.items()):
        lines += [f"seed {seed}: {r.step} {r.state}: {r.message}" for r in run.results.failures]
        lines += [f"seed {seed}: {lack}" for lack in run.lacks]
        lines += [f"seed {seed}: {skipped_text(run.results)}"] * bool(run.results.skipped)
    first = next(iter(runs.values()), None)
    for seed, run in sorted(runs.items()):
        assert first is not None
        lines += [
            f"seed {seed} differs in {name}: {run.facts[name]} against {first.facts[name]}"
            for name in first.facts
            if name != "seed" and run.facts[name] != first.facts[name]
        ]
    if len(asked) == 1:
        lines.append("one seed: no standard deviation, no interval and no test")
    return lines


COLUMNS = ("method", "alpha", "limits", "n", "top-1 %", "sd", "95 % interval", "drop",
           "against uniform", "95 % of it", "p (Holm)", "BitOps", "size", "search", "policies",
           "without a result")  # fmt: skip
NUMERIC = frozenset({"n", "alpha", "top-1 %", "sd", "drop", "against uniform", "p (Holm)", "BitOps",
                     "size", "search", "policies"})  # fmt: skip


def study_cells(row: StudyRow) -> tuple[str, ...]:
    """A line of ``COLUMNS``."""
    search = [NOT_RECORDED] if row.search_s is None else []
    search += [seconds_text(spent) for spent in (row.search_s, row.solve_s) if spent]
    against = row.against.difference if row.against else None
    return (
        row.method, row.alpha, row.limits, f"{len(row.top1)} of {row.num_seeds}",
        "-" if row.accuracy is None else f"{row.accuracy.mean:.2f}",
        _sd(row.accuracy),
        _interval(row.accuracy, "{:.2f}"),
        "-" if row.drop is None else f"{row.drop.mean:+.2f}",
        "-" if against is None else f"{against.mean:+.2f}",
        _interval(against, "{:+.2f}"),
        _p_value(row.p_adjusted),
        "-" if row.bitops_g is None else bitops_text(row.bitops_g),
        "-" if row.weight_mib is None else f"{row.weight_mib:.3f} MiB",
        " + ".join(search) or "0",
        str(row.num_policies),
        "; ".join(f"seed {seed}: {reason}" for seed, reason in row.lacking.items()),
    )  # fmt: skip


def study_values(table: StudyTable) -> dict[str, Any]:
    """The table as numbers for scripts."""
    return {
        "schema": "study-results/1",
        "name": table.name,
        "seeds": list(table.seeds),
        "device": table.device,
        "full_precision": None if table.full_precision is None else asdict(table.full_precision),
        "problems": list(table.problems),
        "rows": [asdict(row) for row in table.rows],
    }


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _sd(found: Summary | None) -> str:
    return "-" if found is None or found.sd is None else f"{found.sd:.2f}"


def _interval(found: Summary | None, form: str) -> str:
    """The interval, or why none is claimed."""
    if found is None:
        return "-"
    if found.n == 1:
        return "one seed"
    if found.low is None or found.high is None:
        return "all equal"
    return f"{form.format(found.low)} to {form.format(found.high)}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
