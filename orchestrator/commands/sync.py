"""``mpq sync``: bring MLflow up to date with a run's journal; adds nothing twice."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--uri", help="Tracking server or database; default: the run's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, runs_dir: str, uri: str | None, as_json: bool) -> ExitCode:
    """Replay the journal of RUN into MLflow."""
    from orchestrator.config_schema import TrackingConfig
    from orchestrator.journal import read_journal
    from orchestrator.private import close_umask
    from orchestrator.runs import find_run
    from orchestrator.tracking import Mirror
    from orchestrator.yaml_source import read_yaml

    store = find_run(run, runs_dir)
    close_umask()
    tree = read_yaml(store.config_path).tree
    known = {**tree.get("tracking", {}), **({"uri": uri} if uri else {}), "enabled": True}
    mirror = Mirror(store, TrackingConfig(**known), tree)
    outcome = mirror.sync(read_journal(store.journal_path))
    if as_json:
        click.echo(json.dumps(asdict(outcome)))
    else:
        click.echo(f"{outcome.mirrored} records in MLflow, {outcome.added} of them new")
        click.echo(f"look at them: {mirror.open_command}")
    if outcome.error:
        click.echo(f"mpq: {outcome.pending} records not mirrored: {outcome.error}", err=True)
        return ExitCode.RESOURCES
    return ExitCode.DONE
