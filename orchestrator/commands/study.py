"""``mpq study``: methods x budgets x seeds as runs of one cluster, then one table."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("config", type=click.Path())
@click.option("--address", help="Running Ray cluster to join; default: one on this machine.")
@click.option("--runs-dir", help="Where run folders are made, in place of the file's.")
@click.option("--reuse", multiple=True, metavar="STUDY",
              help="Take over finished steps of another study, seed by seed.")  # fmt: skip
@click.option("--plan", "only_plan", is_flag=True,
              help="Check it and say what would run, what is within reach, how long.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(
    config: str, address: str | None, runs_dir: str | None, reuse: tuple[str, ...],
    only_plan: bool, as_json: bool,
) -> ExitCode:  # fmt: skip
    """Run the study of the file CONFIG, or go on with it where it stopped.

    Every seed is a run of its own, executed as a trial of Ray Tune; finished ones are not run
    again. Seeds may be added to a study; other methods or budgets need another name.
    """
    from orchestrator.names import known_names
    from orchestrator.study.config import expand, load_study
    from orchestrator.study.results import study_values
    from orchestrator.study.story import StudyOrder, run_whole_study
    from orchestrator.study.text import print_study

    study = load_study(config, runs_dir)
    experiments = expand(study, known_names())
    if only_plan:
        from orchestrator.study.outlook import is_within_reach, outlook_lines, study_forecast

        found = study_forecast(experiments)
        click.echo("\n".join(outlook_lines(study, found)))
        return ExitCode.DONE if is_within_reach(found) else ExitCode.INCOMPLETE
    order = StudyOrder(study=study, experiments=experiments, address=address, reuse=reuse,
                       quiet=as_json)  # fmt: skip
    table, store, code = run_whole_study(order)
    if as_json:
        click.echo(json.dumps(study_values(table), indent=1))
    else:
        print_study(table)
        click.echo(f"report: {store.root / 'report.html'}")
    return code
