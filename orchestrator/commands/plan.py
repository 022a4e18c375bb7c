"""``mpq plan``: what a run would do; reads the network and the run folder, changes nothing."""

from __future__ import annotations

import json
from typing import Any

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key, e.g. train.epochs=3; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")  # fmt: skip
def command(config: str, overrides: tuple[str, ...], as_json: bool) -> ExitCode:
    """Say what running the file CONFIG would do.

    Every step is told as run, cached (done, outputs verified) or blocked, with the reason, and
    every set of limits with what is reachable. Exit code 3 when some limits are infeasible.
    """
    from orchestrator.config import load_config
    from orchestrator.forecast import forecast
    from orchestrator.names import known_names

    found = forecast(load_config(config, overrides, known_names()).config)
    code = ExitCode.INCOMPLETE if any(x["problem"] for x in found["limits"]) else ExitCode.DONE
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return code
    _print(found)
    return code


def _print(found: dict[str, Any]) -> None:
    click.echo(f"run {found['run']} in {found['folder']}")
    network = found["network"]
    click.echo(
        f"network {network['model']}: {network['layers']} layers, {network['searched']} searched, "
        f"{network['macs']:,} MACs, {network['weights']:,} weights"
    )
    if found["drift"]:
        click.echo("refused: the run exists with another configuration:")
        for line in found["drift"]:
            click.echo(f"  {line}")
    width = max(len(step["name"]) for step in found["steps"])
    for step in found["steps"]:
        click.echo(f"  {step['state']:<8} {step['name']:<{width}} {step['reason']}")
    click.echo("limits:")
    for limits in found["limits"]:
        state = "infeasible" if limits["problem"] else "feasible"
        told = limits["problem"] or "; ".join(limits["reach"])
        click.echo(f"  {state:<11} {limits['name']}: {told}")
    click.echo(f"{found['cells']} cells to solve")
