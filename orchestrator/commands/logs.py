"""``mpq logs``: what a run said, read from its folder or from the cluster it was submitted to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator.errors import ExitCode, UserError


@click.command()
@click.argument("run")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--step", help="What the workers of this step wrote, e.g. pretrain.")
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Which worker.")
@click.option("--address", metavar="URL", help="RUN is a job of this cluster (mpq submit).")
@click.option("--lines", "-n", type=click.IntRange(1), help="Only the last ones.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
def command(
    run: str,
    runs_dir: str,
    step: str | None,
    rank: int,
    address: str | None,
    lines: int | None,
    follow: bool,
) -> ExitCode:
    """Print the log of RUN: a name, a run folder, an experiment file, or with --address a job.

    Works with no cluster alive, and after a cancel.
    """
    if address is not None:
        return _from_cluster(run, address, lines, follow)
    from orchestrator.lock import lock_owner
    from orchestrator.runs import find_run

    store = find_run(run, runs_dir)
    path = store.log_path
    if step is not None:
        path = store.step_dir(step) / "logs" / f"rank{rank}.log"
        if not path.is_file():
            raise UserError(f"no log of rank {rank} of step {step!r}", str(path),
                            "; ".join(_steps(store.root)), "name a step and a rank")  # fmt: skip
    text = path.read_text(errors="replace") if path.is_file() else ""
    click.echo(_last(text, lines), nl=False)
    shown = len(text)
    while follow and lock_owner(store.lock_path) is not None:
        time.sleep(0.5)
        text = path.read_text(errors="replace") if path.is_file() else ""
        click.echo(text[shown:], nl=False)
        shown = len(text)
    return ExitCode.DONE


def _from_cluster(run: str, address: str, lines: int | None, follow: bool) -> ExitCode:
    from orchestrator.follow import follow_job
    from orchestrator.submit import Jobs

    jobs = Jobs(address)
    job = jobs.find(run)
    if follow:
        return follow_job(jobs, job.job_id, lambda text: click.echo(text, nl=False)).code
    click.echo(_last(jobs.log(job.job_id), lines), nl=False)
    return ExitCode.DONE


def _last(text: str, lines: int | None) -> str:
    return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:])


def _steps(root: Path) -> Iterator[str]:
    for path in sorted((root / "steps").glob("**/logs/rank*.log")):
        yield str(path.relative_to(root / "steps"))
