"""``mpq compare``: the results of several runs in one table, with what makes them incomparable."""

from __future__ import annotations

import csv
import json
import sys

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv", "md"]), default="table",
    show_default=True, help="How to print.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def command(runs: tuple[str, ...], runs_dir: str, form: str, as_json: bool) -> ExitCode:
    """Compare RUNS: names, run folders or experiment files; the first is the reference."""
    from rich.console import Console

    from orchestrator.compare import as_values, compare, read_runs
    from orchestrator.runs import find_run
    from orchestrator.tables_text import markdown_table, terminal_table

    read = read_runs([find_run(run, runs_dir) for run in runs])
    found = compare(read)
    if as_json or form == "json":
        click.echo(json.dumps(as_values(read, found), indent=1))
        return ExitCode.DONE
    if form == "csv":
        csv.writer(sys.stdout).writerows([found.columns, *found.rows])
    elif form == "md":
        click.echo(markdown_table(found.columns, found.rows))
    else:
        terminal_table("comparison", found.columns, found.rows, Console())
    for warning in found.warnings:
        click.echo(f"note: {warning}", err=True)
    for run, lines in found.differences.items():
        for line in lines:
            click.echo(f"note: {run}: {line}", err=True)
    return ExitCode.DONE
