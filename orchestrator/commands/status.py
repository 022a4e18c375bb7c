"""``mpq status``: how runs stand, read from their folders; no cluster needed."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run", required=False)
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str | None, runs_dir: str, as_json: bool) -> ExitCode:
    """Say how RUN stands: a name, a run folder or an experiment file; without RUN, all runs."""
    from orchestrator.runs import find_run, run_status
    from orchestrator.store import RunStore, list_runs

    stores = (
        [find_run(run, runs_dir)]
        if run is not None
        else [RunStore(runs_dir, name) for name in list_runs(runs_dir)]
    )
    found = [run_status(store) for store in stores]
    if as_json:
        values = [status.to_json() for status in found]
        click.echo(json.dumps(values if run is None else values[0], indent=1))
        return ExitCode.DONE
    if not found:
        click.echo(f"no runs in {runs_dir}")
    for status in found:
        click.echo(f"{status.name}: {status.state}" + (f", {status.owner}" if status.owner else ""))
        if run is None:
            continue
        click.echo(f"  folder    {status.path}")
        click.echo(f"  attempts  {status.attempts}")
        for phase, states in status.counts.items():
            shown = ", ".join(f"{count} {state}" for state, count in states.items())
            click.echo(f"  {phase:<16} {shown}")
        if status.pending:
            click.echo(f"  to do     {', '.join(status.pending)}")
        if status.best:
            best = status.best
            click.echo(f"  best      {best['top1']:.2f} % by {best['method']} {best['policy_id']}")
        if status.unmirrored:
            click.echo(f"  MLflow    {status.unmirrored} records not mirrored yet: mpq sync")
        if status.last_message:
            click.echo(f"  last error  {status.last_message.splitlines()[0]}")
        if status.resume:
            click.echo(f"  go on     {status.resume}")
    return ExitCode.DONE
