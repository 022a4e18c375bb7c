"""``mpq push``: copy a run to storage by URI, verified; what is there is not sent again."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run")
@click.argument("uri")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, uri: str, runs_dir: str, as_json: bool) -> ExitCode:
    """Copy RUN to URI/<run>: s3://bucket/runs, gs://..., hdfs://..., or a folder."""
    from orchestrator.private import close_umask
    from orchestrator.runs import find_run
    from orchestrator.storage import push

    close_umask()
    done = push(find_run(run, runs_dir), uri)
    if as_json:
        click.echo(json.dumps(asdict(done)))
    else:
        size = done.size_bytes / 2**20
        click.echo(f"{done.place}: {done.num_moved} of {done.num_files} files sent, {size:.1f} MiB")
    return ExitCode.DONE
