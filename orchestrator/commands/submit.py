"""``mpq submit``: hand a run to a cluster as a Ray job, and follow what it says."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--address", required=True, metavar="URL",
    help="The cluster's dashboard, http://127.0.0.1:8265 through `ray dashboard` or ssh.",
)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for mpq run.")
@click.option("--fork", metavar="NAME", help="Run under another name.")
@click.option("--command", "mpq", default="mpq", show_default=True,
              help="How mpq is called on the head, e.g. ~/venv/bin/mpq.")  # fmt: skip
@click.option("--no-follow", is_flag=True, help="Do not wait for its end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the log.")
def command(
    config: str,
    address: str,
    overrides: tuple[str, ...],
    fork: str | None,
    mpq: str,
    no_follow: bool,
    as_json: bool,
) -> ExitCode:
    """Submit the experiment of the file CONFIG; exit codes are those of mpq run.

    Ctrl-C stops following, not the run: that is `mpq cancel`.
    """
    from orchestrator.follow import follow_job
    from orchestrator.names import known_names
    from orchestrator.submit import Jobs, make_request

    if fork is not None:
        overrides = (*overrides, f"name={json.dumps(fork)}")
    request = make_request(config, overrides, known_names())
    jobs = Jobs(address)
    job = jobs.submit(request, mpq)
    how = f"--address {address}"
    if not as_json:
        click.echo(f"submitted {job.run} as {job.job_id}")
        click.echo(f"  follow  mpq logs {job.job_id} {how} --follow")
        click.echo(f"  stop    mpq cancel {job.job_id} {how}")
    if not no_follow:
        try:
            job = follow_job(jobs, job.job_id, lambda text: click.echo(text, nl=False, err=as_json))
        except KeyboardInterrupt:
            click.echo(f"the run goes on; to stop it: mpq cancel {job.job_id} {how}", err=True)
            return ExitCode.INTERRUPTED
    if as_json:
        told = {"job": job.job_id, "run": job.run, "status": job.status, "exit": job.exit_code}
        click.echo(json.dumps(told))
    elif job.ended and job.status != "SUCCEEDED":
        click.echo(f"{job.status}: {job.message}", err=True)
    return job.code if job.ended else ExitCode.DONE
