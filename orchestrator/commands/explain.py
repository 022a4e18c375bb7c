"""``mpq explain LAYER``: its indicators, costs, price and next best choice under given limits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from orchestrator.errors import ExitCode, UserError
from orchestrator.solve_options import TableOptions, table_options

if TYPE_CHECKING:
    from solvers.layer_report import LayerReport


@click.command()
@click.argument("layer")
@click.option("--alpha", type=float, required=True, help="Weight of the weight indicators.")
@click.option("--limit", "limits", multiple=True, help="As for mpq solve; repeat it.")
@click.option("--device", help="Device file with one device.")
@table_options
def command(
    layer: str, alpha: float, limits: tuple[str, ...], device: str | None, asked: TableOptions
) -> ExitCode:
    """Say why LAYER got its bits; what is not proven or does not fit ends with exit code 3."""
    from dataclasses import asdict

    from orchestrator.device_files import load_devices
    from orchestrator.solve_inputs import naming, read_inputs, request_for
    from solvers.layer_report import report_layer
    from solvers.limits import parse_limit

    all_limits = tuple(parse_limit(text) for text in limits)
    if device is not None:
        devices = load_devices(device)
        if len(devices) != 1:
            raise UserError(f"{len(devices)} devices", device, todo="name a file with one device")
        all_limits += devices[0].limits
    inputs = read_inputs(asked)
    with naming(inputs.files):
        report = report_layer(request_for(asked, inputs, alpha, all_limits), layer)
    if asked.as_json:
        second = report.next_status and report.next_status.value
        words = {"status": report.status.value, "next_status": second}
        click.echo(json.dumps(asdict(report) | words, indent=1))
    else:
        click.echo("\n".join(_lines(report)))
    return ExitCode.DONE if report.is_proven else ExitCode.INCOMPLETE


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
    if report.chosen is not None:
        lines.append(f"  next choice{_next_choice(report)}")
    return lines


def _next_choice(report: LayerReport) -> str:
    from solvers.certificate import SolveStatus

    if report.next_bits is not None and report.next_costs is not None:
        pair = f"{report.next_bits.weight_bits}x{report.next_bits.act_bits}"
        doubt = "" if report.is_proven else " (not proven: --time-limit was too short)"
        return f" {pair}: the whole policy costs {report.next_costs:.6g} more{doubt}"
    if report.next_status is None:
        return ": none; this pair is the only one it may take"
    if report.next_status is SolveStatus.INFEASIBLE:
        return ": none; without this pair nothing fits"
    return ": not known; the solve without this pair found nothing within --time-limit"
