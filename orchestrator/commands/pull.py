"""``mpq pull``: bring a pushed run back, every file compared with its hash."""

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
    """Bring the run of name RUN back from URI, where mpq push put it."""
    from orchestrator.private import close_umask
    from orchestrator.storage import pull

    close_umask()
    done = pull(uri, run, runs_dir)
    if as_json:
        click.echo(json.dumps(asdict(done)))
    else:
        size = done.size_bytes / 2**20
        click.echo(f"{done.run}: {done.num_moved} of {done.num_files} files taken, {size:.1f} MiB")
    return ExitCode.DONE
