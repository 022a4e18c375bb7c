"""``mpq solve``: saved tables and limits in, exact policies out; neither torch nor Ray.

Four uses: one policy with its certificate (limits from options or one device); with ``--pool``,
every policy nearly as good as that one; one policy a device (a file with several, from CSV, a list
or ranges); with ``--front``, devices answered from the complete Pareto front, or the front itself
if no device is named.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from orchestrator.errors import ExitCode, UserError
from orchestrator.solve_options import TableOptions, table_options

if TYPE_CHECKING:
    from orchestrator.solve_inputs import SolveInputs
    from solvers.batch import Tables
    from solvers.devices import Device
    from solvers.limits import Limit
    from solvers.result_files import Results


@click.command()
@click.option(
    "--alpha", "alphas", type=float, multiple=True, required=True,
    help="Weight of the weight indicators; repeat it for several.",
)  # fmt: skip
@click.option(
    "--limit", "limits", multiple=True,
    help="bitops=23.07G, weight_bytes=8MiB, compression_rate=12x ...; all hold at once.",
)  # fmt: skip
@click.option("--device", help="Device file, YAML or CSV; one or many.")
@click.option("--front", "use_front", is_flag=True, help="Answer from the complete Pareto front.")
@click.option("--pool", help="Also every policy within this of the optimum, e.g. 0.5%.")
@click.option("--most", default=20, show_default=True, help="Policies in a pool, at most.")
@click.option("--out", help="Where to write: policy JSON for one, results Parquet for many.")
@table_options
def command(
    alphas: tuple[float, ...],
    limits: tuple[str, ...],
    device: str | None,
    use_front: bool,
    pool: str | None,
    most: int,
    out: str | None,
    asked: TableOptions,
) -> ExitCode:
    """Assign bits from tables on disk; an infeasible limit is an answer (exit code 3)."""
    from orchestrator.device_files import load_devices
    from orchestrator.solve_inputs import naming, percent, read_inputs
    from solvers.limits import parse_limit

    own = tuple(parse_limit(text) for text in limits)
    within = None if pool is None else percent("--pool", pool)
    devices = load_devices(device) if device is not None else ()
    inputs = read_inputs(asked)
    with naming(inputs.files):
        if within is not None and (use_front or len(devices) > 1 or len(alphas) > 1):
            raise UserError(
                "a pool is of one question",
                "mpq solve --pool",
                todo="give one --alpha, one device at most, and no --front",
            )
        if use_front and not devices:
            return _whole_front(inputs, asked, alphas, own, out)
        if not devices and not own:
            raise UserError(
                "nothing limits the policy",
                "mpq solve",
                todo="give --limit kind=amount or --device FILE",
            )
        if len(devices) > 1 or len(alphas) > 1 or use_front:
            return _many(inputs, asked, alphas, own, devices, use_front, out)
        all_limits = own + (devices[0].limits if devices else ())
        if within is not None:
            return _pool(inputs, asked, alphas[0], all_limits, within, most, out)
        return _one(inputs, asked, alphas[0], all_limits, out)


def _one(
    inputs: SolveInputs,
    asked: TableOptions,
    alpha: float,
    limits: tuple[Limit, ...],
    out: str | None,
) -> ExitCode:
    from orchestrator.solve_inputs import request_for
    from orchestrator.solve_output import exit_code, repair_lines, result_lines, result_record
    from solvers.policy_file import save_policy
    from solvers.solve import changed_by_repair, solve

    request = replace(request_for(asked, inputs, alpha, limits), prices="resolved")
    result = solve(request)
    changed = changed_by_repair(request, result)
    if out is not None and result.policy is not None:
        save_policy(out, result.policy)
    if asked.as_json:
        names = None if changed is None else list(changed)
        record = result_record(result) | {"layers_changed_by_repair": names}
        click.echo(json.dumps(record, indent=1))
    else:
        click.echo("\n".join(result_lines(result) + repair_lines(result, changed)))
        if out is not None and result.policy is not None:
            click.echo(f"wrote {out}")
    return exit_code(result)


def _pool(
    inputs: SolveInputs,
    asked: TableOptions,
    alpha: float,
    limits: tuple[Limit, ...],
    within_percent: float,
    most: int,
    out: str | None,
) -> ExitCode:
    """Policies near the optimum; the rows of a file are called ``near-000`` onwards."""
    from orchestrator.solve_inputs import request_for
    from orchestrator.solve_output import pool_exit_code, pool_lines, pool_record
    from solvers.pool import near_optimal
    from solvers.result_files import Results, row_of, save_results

    request = request_for(asked, inputs, alpha, limits)
    pool = near_optimal(request, within_percent=within_percent, most=most)
    results = Results(
        model=inputs.costs.model,
        fingerprint=inputs.costs.fingerprint,
        accounting=inputs.accounting.name,
        layers=inputs.costs.names,
        rows=tuple(
            row_of(result, label=f"near-{i:03d}", alpha=alpha, limits=limits)
            for i, result in enumerate(pool.policies)
        ),
    )
    written = out if pool.policies else None
    if written is not None:
        save_results(written, results)
    if asked.as_json:
        click.echo(json.dumps(pool_record(pool, results, within_percent, written), indent=1))
    else:
        click.echo("\n".join(pool_lines(pool, results, within_percent, written)))
    return pool_exit_code(pool)


def _many(
    inputs: SolveInputs,
    asked: TableOptions,
    alphas: tuple[float, ...],
    own: tuple[Limit, ...],
    devices: tuple[Device, ...],
    use_front: bool,
    out: str | None,
) -> ExitCode:
    from solvers.batch import Question, answer

    of_devices = [(d.name, own + d.limits) for d in devices] or [("limits", own)]
    questions = [
        Question(label=name, alpha=alpha, limits=limits)
        for alpha in alphas
        for name, limits in of_devices
    ]
    results = answer(
        _tables(inputs, asked),
        questions,
        solver=asked.solver,  # type: ignore[arg-type]  # click.Choice holds it to the names
        time_limit_s=asked.time_limit_s,
        use_fronts=use_front,
    )
    return _told(results, asked, out)


def _whole_front(
    inputs: SolveInputs,
    asked: TableOptions,
    alphas: tuple[float, ...],
    own: tuple[Limit, ...],
    out: str | None,
) -> ExitCode:
    """Every point of the front over the first limit's kind, up to its height if one is given."""
    from solvers.accounting import LARGEST_TOTAL
    from solvers.batch import whole_fronts
    from solvers.limits import Limit

    if len(own) > 1:
        raise UserError("a front is over one limit", "mpq solve --front", todo="give --limit once")
    limit = own[0] if own else Limit(kind="bitops", limit=LARGEST_TOTAL)  # no network costs more
    results = whole_fronts(_tables(inputs, asked), alphas, limit)
    code = _told(results, asked, out)
    return code if results.rows else ExitCode.INCOMPLETE


def _tables(inputs: SolveInputs, asked: TableOptions) -> Tables:
    from solvers.batch import Tables

    return Tables(
        costs=inputs.costs,
        importance=inputs.importance,
        choices=inputs.choices,
        accounting=inputs.accounting,
        repair=asked.repair,  # type: ignore[arg-type]
    )


def _told(results: Results, asked: TableOptions, out: str | None) -> ExitCode:
    """Write and print many results."""
    from orchestrator.solve_output import results_exit_code, results_lines, results_record
    from solvers.result_files import save_results

    if out is not None:
        save_results(out, results)
    if asked.as_json:
        click.echo(json.dumps(results_record(results, out), indent=1))
    else:
        click.echo("\n".join(results_lines(results, out)))
    return results_exit_code(results)
