"""``mpq solve``: saved tables and limits in, exact policies out; neither torch nor Ray.

Three uses: one policy with its certificate (limits from options or one device); one policy a
device (a file with several, from CSV, a list or ranges); with ``--front``, devices answered from
the complete Pareto front, or the front itself if no device is named.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from orchestrator.errors import ExitCode, UserError

if TYPE_CHECKING:
    from orchestrator.solve_inputs import SolveInputs
    from solvers.devices import Device
    from solvers.limits import Limit


@click.command()
@click.option("--importance", required=True, help="Importance table, Parquet.")
@click.option("--costs", required=True, help="Cost table, Parquet.")
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
@click.option("--out", help="Where to write: policy JSON for one, results Parquet for many.")
@click.option("--accounting", default="standard", show_default=True)
@click.option(
    "--repair", default="isotonic", show_default=True,
    type=click.Choice(["isotonic", "keep", "erase"]),
    help="For indicators that rise with bits.",
)  # fmt: skip
@click.option(
    "--solver", default="auto", show_default=True, type=click.Choice(["auto", "highs", "cbc"])
)
@click.option("--time-limit", "time_limit_s", default=60.0, show_default=True, help="Seconds.")
@click.option("--weight-bits", help="Candidates, e.g. 2,3,4; default: all with indicators.")
@click.option("--act-bits", help="Candidates; one width makes a weights-only search.")
@click.option("--tied", is_flag=True, help="Weights and activations of a layer share bits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    importance: str,
    costs: str,
    alphas: tuple[float, ...],
    limits: tuple[str, ...],
    device: str | None,
    use_front: bool,
    out: str | None,
    accounting: str,
    repair: str,
    solver: str,
    time_limit_s: float,
    weight_bits: str | None,
    act_bits: str | None,
    tied: bool,
    as_json: bool,
) -> ExitCode:
    """Assign bits from tables on disk; an infeasible limit is an answer (exit code 3)."""
    from orchestrator.device_files import load_devices
    from orchestrator.solve_inputs import naming, read_inputs
    from solvers.limits import parse_limit

    own = tuple(parse_limit(text) for text in limits)
    devices = load_devices(device) if device is not None else ()
    inputs = read_inputs(
        costs,
        importance,
        accounting=accounting,
        weight_bits=weight_bits,
        act_bits=act_bits,
        tied=tied,
    )
    with naming(inputs.files):
        if use_front and not devices:
            return _whole_front(inputs, alphas, own, repair, out, as_json)
        if not devices and not own:
            raise UserError(
                "nothing limits the policy",
                "mpq solve",
                todo="give --limit kind=amount or --device FILE",
            )
        if len(devices) > 1 or len(alphas) > 1 or use_front:
            return _many(
                inputs, alphas, own, devices, repair, solver, time_limit_s, use_front, out, as_json
            )
        all_limits = own + (devices[0].limits if devices else ())
        return _one(inputs, alphas[0], all_limits, repair, solver, time_limit_s, out, as_json)


def _one(
    inputs: SolveInputs,
    alpha: float,
    limits: tuple[Limit, ...],
    repair: str,
    solver: str,
    time_limit_s: float,
    out: str | None,
    as_json: bool,
) -> ExitCode:
    from orchestrator.solve_output import exit_code, result_lines, result_record
    from solvers.policy_file import save_policy
    from solvers.result import SolveRequest
    from solvers.solve import changed_by_repair, solve

    request = SolveRequest(
        costs=inputs.costs,
        importance=inputs.importance,
        choices=inputs.choices,
        limits=limits,
        alpha=alpha,
        accounting=inputs.accounting,
        repair=repair,  # type: ignore[arg-type]  # click.Choice holds it to the names
        solver=solver,  # type: ignore[arg-type]
        time_limit_s=time_limit_s,
        prices="resolved",
    )
    result = solve(request)
    changed = changed_by_repair(request, result)
    if out is not None and result.policy is not None:
        save_policy(out, result.policy)
    if as_json:
        record = result_record(result) | {"layers_changed_by_repair": list(changed)}
        click.echo(json.dumps(record, indent=1))
    else:
        click.echo("\n".join(result_lines(result)))
        if result.violations:
            click.echo(
                f"           the rule changes the bits of {', '.join(changed) or 'no layer'}"
            )
        if out is not None and result.policy is not None:
            click.echo(f"wrote {out}")
    return exit_code(result)


def _many(
    inputs: SolveInputs,
    alphas: tuple[float, ...],
    own: tuple[Limit, ...],
    devices: tuple[Device, ...],
    repair: str,
    solver: str,
    time_limit_s: float,
    use_front: bool,
    out: str | None,
    as_json: bool,
) -> ExitCode:
    from orchestrator.solve_output import results_exit_code, results_lines, results_record
    from solvers.batch import Question, Tables, answer
    from solvers.result_files import save_results

    asked = [(d.name, own + d.limits) for d in devices] or [("limits", own)]
    questions = [
        Question(label=name, alpha=alpha, limits=limits)
        for alpha in alphas
        for name, limits in asked
    ]
    results = answer(
        Tables(
            costs=inputs.costs,
            importance=inputs.importance,
            choices=inputs.choices,
            accounting=inputs.accounting,
            repair=repair,  # type: ignore[arg-type]
        ),
        questions,
        solver=solver,  # type: ignore[arg-type]
        time_limit_s=time_limit_s,
        use_fronts=use_front,
    )
    if out is not None:
        save_results(out, results)
    if as_json:
        click.echo(json.dumps(results_record(results, out), indent=1))
    else:
        click.echo("\n".join(results_lines(results, out)))
    return results_exit_code(results)


def _whole_front(
    inputs: SolveInputs,
    alphas: tuple[float, ...],
    own: tuple[Limit, ...],
    repair: str,
    out: str | None,
    as_json: bool,
) -> ExitCode:
    """Every point of the front over the first limit's kind, up to its height if one is given."""
    from orchestrator.solve_output import results_exit_code, results_lines, results_record
    from solvers.batch import Tables, whole_fronts
    from solvers.limits import Limit
    from solvers.result_files import save_results

    if len(own) > 1:
        raise UserError("a front is over one limit", "mpq solve --front", todo="give --limit once")
    results = whole_fronts(
        Tables(
            costs=inputs.costs,
            importance=inputs.importance,
            choices=inputs.choices,
            accounting=inputs.accounting,
            repair=repair,  # type: ignore[arg-type]
        ),
        alphas,
        own[0] if own else Limit(kind="bitops", limit=2**62),
    )
    if out is not None:
        save_results(out, results)
    if as_json:
        click.echo(json.dumps(results_record(results, out), indent=1))
    else:
        click.echo("\n".join(results_lines(results, out)))
    return results_exit_code(results) if results.rows else ExitCode.INCOMPLETE
