"""``mpq explain LAYER``: its indicators, costs, price and next best choice under given limits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from orchestrator.errors import ExitCode, UserError

if TYPE_CHECKING:
    from solvers.layer_report import LayerReport


@click.command()
@click.argument("layer")
@click.option("--importance", required=True, help="Importance table, Parquet.")
@click.option("--costs", required=True, help="Cost table, Parquet.")
@click.option("--alpha", type=float, required=True, help="Weight of the weight indicators.")
@click.option("--limit", "limits", multiple=True, help="As for mpq solve; repeat it.")
@click.option("--device", help="Device file with one device.")
@click.option("--accounting", default="standard", show_default=True)
@click.option(
    "--repair", default="isotonic", show_default=True,
    type=click.Choice(["isotonic", "keep", "erase"]),
)  # fmt: skip
@click.option(
    "--solver", default="auto", show_default=True, type=click.Choice(["auto", "highs", "cbc"])
)
@click.option("--time-limit", "time_limit_s", default=60.0, show_default=True, help="Seconds.")
@click.option("--weight-bits", help="Candidates, e.g. 2,3,4; default: all with indicators.")
@click.option("--act-bits", help="Candidates.")
@click.option("--tied", is_flag=True, help="Weights and activations of a layer share bits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    layer: str,
    importance: str,
    costs: str,
    alpha: float,
    limits: tuple[str, ...],
    device: str | None,
    accounting: str,
    repair: str,
    solver: str,
    time_limit_s: float,
    weight_bits: str | None,
    act_bits: str | None,
    tied: bool,
    as_json: bool,
) -> ExitCode:
    """Say why LAYER got its bits."""
    from dataclasses import asdict

    from orchestrator.device_files import load_devices
    from orchestrator.solve_inputs import naming, read_inputs
    from solvers.layer_report import report_layer
    from solvers.limits import parse_limit
    from solvers.result import SolveRequest

    asked = tuple(parse_limit(text) for text in limits)
    if device is not None:
        devices = load_devices(device)
        if len(devices) != 1:
            raise UserError(f"{len(devices)} devices", device, todo="name a file with one device")
        asked += devices[0].limits
    inputs = read_inputs(
        costs,
        importance,
        accounting=accounting,
        weight_bits=weight_bits,
        act_bits=act_bits,
        tied=tied,
    )
    with naming(inputs.files):
        report = report_layer(
            SolveRequest(
                costs=inputs.costs,
                importance=inputs.importance,
                choices=inputs.choices,
                limits=asked,
                alpha=alpha,
                accounting=inputs.accounting,
                repair=repair,  # type: ignore[arg-type]  # click.Choice holds it to the names
                solver=solver,  # type: ignore[arg-type]
                time_limit_s=time_limit_s,
            ),
            layer,
        )
    if as_json:
        click.echo(json.dumps(asdict(report) | {"status": report.status.value}, indent=1))
    else:
        click.echo("\n".join(_lines(report)))
    return ExitCode.DONE if report.status.has_policy else ExitCode.INCOMPLETE


def _lines(report: LayerReport) -> list[str]:
    lines = [f"{report.layer}: {report.status.value}"]
    if len(report.members) > 1:
        lines.append(f"shares its bits with {', '.join(report.members)}")
    for tensor, bits, learned, used in report.indicators:
        shown = "-" if learned is None else f"{learned:.6g}"
        note = (
            "" if learned == used else f" (used: {'forbidden' if used is None else f'{used:.6g}'})"
        )
        lines.append(f"  indicator  {tensor:<6} {bits:>2} bit  {shown}{note}")
    for limit, price in zip(report.limits, report.prices, strict=True):
        if price is not None:
            lines.append(f"  limit      {limit}: 1 % more buys about {price:.6g}")
    lines.append("  option   objective    reduced cost  uses")
    for option in report.options:
        reduced = "-" if option.reduced_cost is None else f"{option.reduced_cost:.6g}"
        mark = "*" if option.is_chosen else " "
        pair = f"{option.bits.weight_bits}x{option.bits.act_bits}"
        uses = ", ".join(str(n) for n in option.uses)
        lines.append(f"  {mark} {pair:<6} {option.objective:<12.6g} {reduced:<13} {uses}")
    if report.next_bits is not None and report.next_costs is not None:
        pair = f"{report.next_bits.weight_bits}x{report.next_bits.act_bits}"
        lines.append(f"  next choice {pair}: the whole policy costs {report.next_costs:.6g} more")
    elif report.chosen is not None:
        lines.append("  next choice: none; without this pair nothing fits")
    return lines
