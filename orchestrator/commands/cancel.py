"""``mpq cancel``: ask a run to save and end; asking again, or a run that ended, changes nothing."""

from __future__ import annotations

import os
import signal
import time

import click

from orchestrator.errors import ExitCode, ResourceError


@click.command()
@click.argument("run")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--address", metavar="URL", help="RUN is a job of this cluster (mpq submit).")
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=120.0, show_default=True,
              help="Seconds to wait for its end.")  # fmt: skip
def command(run: str, runs_dir: str, address: str | None, wait_s: float) -> ExitCode:
    """Cancel RUN: a name, a run folder, an experiment file, or with --address a job.

    Its workers save a checkpoint first; the same `mpq run` goes on from there later.
    """
    if address is not None:
        return _on_cluster(run, address, wait_s)
    from orchestrator.lock import is_here, lock_owner
    from orchestrator.runs import find_run
    from trainers.messages import STOP_FILE

    store = find_run(run, runs_dir)
    owner = lock_owner(store.lock_path)
    if owner is None:
        click.echo(f"{store.name}: nobody is running it")
        return ExitCode.DONE
    stop_file = store.root / STOP_FILE
    stop_file.touch()
    if is_here(owner):
        os.kill(int(owner["pid"]), signal.SIGTERM)
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    click.echo(f"{store.name}: asked {who} to save and end")
    deadline = time.monotonic() + wait_s
    while (there := lock_owner(store.lock_path)) and there.get("token") == owner.get("token"):
        if time.monotonic() >= deadline:
            raise ResourceError(
                f"{store.name} did not end within {wait_s:g} s", str(store.root),
                f"{who} still holds it", "wait longer with --wait, or end that process",
            )  # fmt: skip
        time.sleep(0.3)
    click.echo(f"{store.name}: ended")
    return ExitCode.DONE


def _on_cluster(run: str, address: str, wait_s: float) -> ExitCode:
    from orchestrator.submit import Jobs

    jobs = Jobs(address)
    job = jobs.find(run)
    if not jobs.stop(job.job_id):
        click.echo(f"{job.job_id}: {job.status} before")
        return ExitCode.DONE
    click.echo(f"{job.job_id}: asked to save and end")
    deadline = time.monotonic() + wait_s
    while not jobs.state(job.job_id).ended:
        if time.monotonic() >= deadline:
            raise ResourceError(f"{job.job_id} did not end within {wait_s:g} s", address, "",
                                "wait longer with --wait")  # fmt: skip
        time.sleep(1.0)
    click.echo(f"{job.job_id}: {jobs.state(job.job_id).status}")
    return ExitCode.DONE
