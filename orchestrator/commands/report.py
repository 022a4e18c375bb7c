"""``mpq report``: write a run's report, table and figures again from its records."""

from __future__ import annotations

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
def command(run: str, runs_dir: str) -> ExitCode:
    """Write the report of RUN: a name, a run folder or an experiment file."""
    from orchestrator.journal import read_journal
    from orchestrator.report import write_report
    from orchestrator.runs import find_run
    from orchestrator.tables_text import print_results

    store = find_run(run, runs_dir)
    print_results(write_report(store, read_journal(store.journal_path)))
    click.echo(f"report: {store.report_path}")
    return ExitCode.DONE
