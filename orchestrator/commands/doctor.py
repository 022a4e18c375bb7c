"""``mpq doctor``: versions, machine, storage, security, a running cluster; names that exist."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from orchestrator.errors import ExitCode


@click.command()
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--address", help="Look at this running Ray cluster too (host:port, or auto).")
@click.option("--names", is_flag=True, help="List networks and data sets instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(runs_dir: str, address: str | None, names: bool, as_json: bool) -> ExitCode:
    """Check this machine, and with --address a cluster; exit code 6 when a run would not work.

    On the cluster every node is asked for its versions, whether it sees the run folder, and
    whether torch sees the GPUs that Ray hands out there. Nothing is left behind.
    """
    if names:
        return _names(as_json)
    from orchestrator.checkup import checkup

    checks = list(checkup(runs_dir))
    if address is not None:
        from orchestrator.cluster_checkup import cluster_checkup

        checks += cluster_checkup(address, runs_dir)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            advice = f"  -> {check.advice}" if check.advice else ""
            click.echo(f"{check.grade:<5} {check.name:<15} {check.found}{advice}")
    failed = any(check.grade == "fail" for check in checks)
    return ExitCode.RESOURCES if failed else ExitCode.DONE


def _names(as_json: bool) -> ExitCode:
    from orchestrator.names import known_names

    found = known_names()
    lists = {"networks": sorted(found.models or ()), "data sets": sorted(found.datasets or ())}
    if as_json:
        click.echo(json.dumps(lists, indent=1))
    else:
        for title, members in lists.items():
            click.echo(f"{title}: {', '.join(members)}")
    return ExitCode.DONE
