"""``mpq export``: a trained policy as whole numbers, steps and rules, for a deployment tool."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run")
@click.argument("policy")
@click.argument("out")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, policy: str, out: str, runs_dir: str, as_json: bool) -> ExitCode:
    """Write the trained POLICY of RUN to the new folder OUT: weights.pt and manifest.json."""
    from orchestrator.export import MANIFEST, WEIGHTS, export_trained

    done = export_trained(run, policy, out, runs_dir=runs_dir)
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return ExitCode.DONE
    size = done.size_bytes / 2**20
    measured = "" if done.top1 is None else f", recorded top-1 {done.top1:.2f} %"
    click.echo(
        f"{done.folder}: {WEIGHTS} and {MANIFEST}, {size:.2f} MiB, policy {done.training}{measured}"
    )
    click.echo(
        f"  {done.num_coded} of {done.num_layers} layers have whole numbers for weights, "
        "equal to the network's own bit by bit"
    )
    return ExitCode.DONE
