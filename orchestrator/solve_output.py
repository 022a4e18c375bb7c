"""How is a solve told to a person and to a script?"""

from __future__ import annotations

from collections import Counter
from typing import Any

from orchestrator.errors import ExitCode
from solvers.certificate import LimitUse, SolveStatus
from solvers.infeasibility import Infeasibility
from solvers.policy_file import certificate_record, policy_record
from solvers.pool import Pool
from solvers.result import SolveResult
from solvers.result_files import Results

_MOST_ROWS = 20


def exit_code(result: SolveResult) -> ExitCode:
    """0 only for a proven policy."""
    proven = result.status is SolveStatus.PROVEN_OPTIMAL
    return ExitCode.DONE if proven else ExitCode.INCOMPLETE


def result_record(result: SolveResult) -> dict[str, Any]:
    """A result as plain JSON-able values."""
    from dataclasses import asdict

    policy = result.policy
    record: dict[str, Any] = {
        "status": result.status.value,
        "objective": result.objective,
        "bound": result.bound,
        "gap": result.gap,
        "solver": result.solver,
        "solver_version": result.solver_version,
        "wall_s": result.wall_s,
        "cpu_s": result.cpu_s,
        "violations": [asdict(v) for v in result.violations],
        "infeasibility": result.infeasibility and asdict(result.infeasibility),
        "policy": policy and policy_record(policy),
    }
    if policy is not None and policy.certificate is not None:
        record["uses"] = certificate_record(policy.certificate)["uses"]
    return record


def result_lines(result: SolveResult) -> list[str]:
    """A result in words."""
    lines = [f"status     {result.status.value}, {result.solver} ({result.solver_version})"]
    if result.policy is not None:
        cost = result.policy.cost
        lines += [
            f"policy     {result.policy.policy_id}",
            f"objective  {result.objective:.6f}, bound {result.bound:.6f}, gap {result.gap:.2e}",
            f"costs      {cost.bitops_g:.4f} GBitOps, {cost.size_mib:.4f} MiB, "
            f"{cost.compression:.3f}x, mean {cost.mean_weight_bits:.2f} weight bits and "
            f"{cost.mean_act_bits:.2f} activation bits ({result.policy.accounting})",
            *(f"limit      {_use_text(use)}" for use in result.uses),
            f"time       {result.wall_s:.3f} s wall, {result.cpu_s:.3f} s CPU",
        ]
    if result.infeasibility is not None:
        lines += _infeasible_lines(result.infeasibility)
    if result.violations:
        repaired = ", ".join(
            f"{v.layer} {v.tensor} {v.bits} bit" for v in result.violations[:_MOST_ROWS]
        )
        lines.append(f"repaired   {len(result.violations)} rising indicators: {repaired}")
    return lines


def repair_lines(result: SolveResult, changed: tuple[str, ...] | None) -> list[str]:
    """What the repair rule did to the answer; nothing where that is not known.

    Args:
        result: of one question.
        changed: layers with other bits than without the rule; None if that could not be compared.
    """
    lines = []
    num_forbidden = sum(v.used is None for v in result.violations)
    if result.status is SolveStatus.INFEASIBLE and num_forbidden:
        lines.append(f"           the rule forbids {num_forbidden} candidates; keep forbids none")
    if result.violations and changed is not None:
        lines.append(f"           the rule changes the bits of {', '.join(changed) or 'no layer'}")
    return lines


def _use_text(use: LimitUse) -> str:
    text = f"{use.limit}: uses {use.shown_use:.6g} of {use.shown_bound:.6g}, slack {use.slack}"
    text += ", binding" if use.binding else ""
    if use.price is not None:
        text += f"; 1 % more buys {use.price:.6g}"
    return text


def _infeasible_lines(why: Infeasibility) -> list[str]:
    lines = [f"why        {why.text}"]
    lines += [
        f"  {cause.what} {cause.name}: freeing it saves {cause.saves} of {cause.limit}"
        + (", and that is enough" if cause.is_enough else "")
        for cause in why.causes[:_MOST_ROWS]
    ]
    return lines


def results_exit_code(results: Results) -> ExitCode:
    """0 only if every row is proven."""
    proven = all(row.status is SolveStatus.PROVEN_OPTIMAL for row in results.rows)
    return ExitCode.DONE if proven else ExitCode.INCOMPLETE


def results_record(results: Results, out: str | None) -> dict[str, Any]:
    """A summary of many results; the rows themselves only where no file holds them."""
    record: dict[str, Any] = {
        "model": results.model,
        "accounting": results.accounting,
        "num_rows": len(results.rows),
        "num_policies": len({r.policy_id for r in results.rows if r.policy_id}),
        "statuses": dict(Counter(row.status.value for row in results.rows)),
        "out": out,
    }
    if out is None:
        record["layers"] = list(results.layers)
        record["rows"] = [
            {
                "label": row.label,
                "alpha": row.alpha,
                "limits": row.limits,
                "status": row.status.value,
                "policy_id": row.policy_id,
                "objective": row.objective,
                "uses": list(row.uses),
                "weight_bits": [b.weight_bits for b in row.bits],
                "act_bits": [b.act_bits for b in row.bits],
                "reason": row.reason,
            }
            for row in results.rows
        ]
    return record


def results_lines(results: Results, out: str | None) -> list[str]:
    """A summary of many results in words, the first rows and all failures up to a screenful."""
    counts = Counter(row.status.value for row in results.rows)
    policies = {row.policy_id for row in results.rows if row.policy_id}
    shown = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    lines = [f"{len(results.rows)} answers, {len(policies)} distinct policies: {shown}"]
    failed = [r for r in results.rows if r.status is not SolveStatus.PROVEN_OPTIMAL]
    answered = [r for r in results.rows if r.status is SolveStatus.PROVEN_OPTIMAL]
    lines += [
        f"  {row.label}  {row.policy_id}  {row.objective:.6f}  {row.limits}"
        for row in answered[:_MOST_ROWS]
    ]
    if len(answered) > _MOST_ROWS:
        lines.append(f"  ... {len(answered) - _MOST_ROWS} more" + (f" in {out}" if out else ""))
    lines += [f"  {row.label}  {row.status.value}: {row.reason}" for row in failed[:_MOST_ROWS]]
    if len(failed) > _MOST_ROWS:
        lines.append(f"  ... {len(failed) - _MOST_ROWS} more without a policy")
    if out is not None:
        lines.append(f"wrote {out}")
    return lines


_POOL_ENDS = {
    "complete": "no other policy is that near",
    "full": "there may be more; raise --most",
    "unproven": "the next one could not be proven in time",
    "infeasible": "nothing fits",
}


def pool_exit_code(pool: Pool) -> ExitCode:
    """0 if the pool holds all that was asked for."""
    return ExitCode.DONE if pool.end in ("complete", "full") else ExitCode.INCOMPLETE


def pool_record(
    pool: Pool, results: Results, within_percent: float, out: str | None
) -> dict[str, Any]:
    """A pool as plain JSON-able values; the rows stand in it even where a file holds them."""
    from dataclasses import asdict

    return results_record(results, None) | {
        "out": out,
        "within_percent": within_percent,
        "end": pool.end,
        "infeasibility": pool.infeasibility and asdict(pool.infeasibility),
    }


def pool_lines(pool: Pool, results: Results, within_percent: float, out: str | None) -> list[str]:
    """A pool in words: what each policy loses, and how many layers differ from the best one."""
    lines = [
        f"{len(results.rows)} policies within {within_percent:g} % of the optimum: "
        f"{_POOL_ENDS[pool.end]}"
    ]
    for row in results.rows:
        best = results.rows[0]
        above = ((row.objective or 0.0) / (best.objective or 1.0) - 1) * 100
        changed = sum(a != b for a, b in zip(row.bits, best.bits, strict=True))
        uses = ", ".join(str(use) for use in row.uses)
        lines.append(
            f"  {row.label}  {row.policy_id}  {row.objective:.6f}  +{above:.4f} %  "
            f"{changed} layers differ  uses {uses}"
        )
    if pool.infeasibility is not None:
        lines += _infeasible_lines(pool.infeasibility)
    if out is not None:
        lines.append(f"wrote {out}")
    return lines
