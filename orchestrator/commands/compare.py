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
@click.option("--csv", "as_csv", is_flag=True, help="The same as --format csv.")
@click.option("--md", "as_md", is_flag=True, help="The same as --format md.")
@click.option("--literature", is_flag=True, help="Beside them, what the papers report.")
def command(
    runs: tuple[str, ...], runs_dir: str, form: str, as_json: bool, as_csv: bool, as_md: bool,
    literature: bool,
) -> ExitCode:  # fmt: skip
    """Compare RUNS: names, run folders, experiment or study files; the first is the reference.

    Prints accuracy, drop, BitOps, size, in which layers policies differ, search cost by phase and
    per device, how stable policies are between the runs, and what makes them incomparable.
    """
    from orchestrator.compare.inputs import read_runs
    from orchestrator.compare.runs import as_values, compare
    from orchestrator.compare.text import comparison_markdown, literature_rows, print_comparison
    from orchestrator.errors import StoreError
    from orchestrator.rehearsal.config import refuse_mixture
    from orchestrator.study.store import find_runs

    read = read_runs([store for run in runs for store in find_runs(run, runs_dir)])
    if not read.runs:
        told = "; ".join(f"{label}: {why}" for label, why in read.unread.items())
        raise StoreError("no run could be read", why=told)
    refuse_mixture({run.label: bool(run.config.get("rehearsal")) for run in read.runs})
    found = compare(read)
    reported = literature_rows(read) if literature else []
    form = "json" if as_json else "csv" if as_csv else "md" if as_md else form
    if form == "json":
        values = as_values(read, found)
        if literature:
            values["reported"] = [row.to_json() for row in reported]
        click.echo(json.dumps(values, indent=1))
        return ExitCode.DONE
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([found.columns, *found.rows])
    elif form == "md":
        click.echo(comparison_markdown(found, reported))
    else:
        print_comparison(found, reported)
    for warning in found.warnings:
        click.echo(f"note: {warning}", err=True)
    for run, lines in found.differences.items():
        for line in lines:
            click.echo(f"note: {run}: {line}", err=True)
    return ExitCode.DONE
