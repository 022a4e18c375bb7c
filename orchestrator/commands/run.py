"""``mpq run``: run an experiment, or go on with it where it stopped."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key, e.g. train.epochs=3; may be given several times.",
)
@click.option("--address", help="Running Ray cluster to join; default: one on this machine.")
@click.option("--fork", metavar="NAME",
              help="Run under another name; the run of the file stays as it is.")  # fmt: skip
@click.option("--reuse", multiple=True, metavar="RUN",
              help="Take over finished steps of another run where nothing that decides them "
                   "differs: a name, a run folder or an experiment file; may be given several "
                   "times.")  # fmt: skip
@click.option("--rehearse", is_flag=True,
              help="Run every phase for two updates on a few images, with one worker unless --set "
                   "cluster.num_workers says more, in a folder of its own.")  # fmt: skip
def command(
    config: str,
    overrides: tuple[str, ...],
    address: str | None,
    fork: str | None,
    reuse: tuple[str, ...],
    rehearse: bool,
) -> ExitCode:
    """Run the experiment of the file CONFIG.

    Finished steps are skipped after their outputs verify, so the same command goes on after an
    interruption. A changed configuration is refused (exit 5) unless --fork names a new run, which
    may --reuse what the first one finished.

    With --rehearse every phase runs at the real resolution on a handful of images, which are made
    up where data.path is not set; what would stop the run on a cluster stops it here in minutes.
    """
    from orchestrator.config import load_config
    from orchestrator.names import known_names

    if fork is not None:
        overrides = (*overrides, f"name={json.dumps(fork)}")
    if address is not None:
        overrides = (*overrides, f"cluster.address={json.dumps(address)}")
    loaded = load_config(config, overrides, known_names())
    if rehearse:
        from orchestrator.rehearsal.run import rehearse_experiment

        return rehearse_experiment(loaded)

    from orchestrator.pipeline import run_experiment
    from orchestrator.runs import find_run

    donors = tuple(find_run(run, loaded.config.runs_dir) for run in reuse)
    return run_experiment(loaded, donors)
