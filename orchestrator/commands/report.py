"""``mpq report``: write report, table and figures of a run or a study again from its records."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--output", type=click.Path(file_okay=False), metavar="FOLDER",
              help="Where the report of several runs goes; default: comparison.")  # fmt: skip
def command(runs: tuple[str, ...], runs_dir: str, output: str | None) -> ExitCode:
    """Write the report of RUNS: one run or one study, by name, folder or file; or several runs.

    Several runs are taken as seeds of one study: the page holds their means and intervals.
    """
    from orchestrator.journal import read_journal
    from orchestrator.private import close_umask
    from orchestrator.report.cells_text import print_results
    from orchestrator.report.write import PAGE, write_report
    from orchestrator.study.report import write_study_report
    from orchestrator.study.store import find_runs, find_study
    from orchestrator.study.text import print_study

    close_umask()
    study = find_study(runs[0], runs_dir) if len(runs) == 1 else None
    stores = [store for run in runs for store in find_runs(run, runs_dir)]
    if study is not None:
        print_study(write_study_report(study.name, study.runs, stores, study.root))
        click.echo(f"report: {study.root / PAGE}")
    elif len(stores) == 1:
        (store,) = stores
        print_results(write_report(store, read_journal(store.journal_path)))
        click.echo(f"report: {store.root / PAGE}")
    else:
        from orchestrator.study.store import seeds_of

        folder = Path(output or "comparison")
        table = write_study_report(folder.resolve().name, seeds_of(stores), stores, folder)
        print_study(table)
        click.echo(f"report: {folder / PAGE}")
    return ExitCode.DONE
