"""``mpq sweep``: many devices from the indicators of one run; nothing is trained."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.argument("run")
@click.option("--devices", "device_file", help="Device file, YAML or CSV; one, many or ranges.")
@click.option(
    "--limit", "limits", multiple=True,
    help="A device of one limit, e.g. bitops=23.07G; may be given several times.",
)  # fmt: skip
@click.option(
    "--alpha", "alphas", type=float, multiple=True, help="Default: the alphas of the run."
)
@click.option("--address", help="Running Ray cluster to join; default: one on this machine.")
@click.option("--runs-dir", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run: str,
    device_file: str | None,
    limits: tuple[str, ...],
    alphas: tuple[float, ...],
    address: str | None,
    runs_dir: str,
    as_json: bool,
) -> ExitCode:
    """Solve alphas x devices from the learned indicators of RUN.

    RUN is a name, a run folder or an experiment file. Without --devices and --limit the limit
    sets of the run's own configuration are the devices.
    """
    from orchestrator.attempts import opened_session
    from orchestrator.device_files import load_devices
    from orchestrator.device_sweep import device_questions, is_incomplete, sweep_devices
    from orchestrator.runs import find_run
    from solvers.devices import Device
    from solvers.importance import check_alpha
    from solvers.limits import limit_from, parse_limit

    devices = list(load_devices(device_file)) if device_file else []
    devices += [Device(name=text, limits=(parse_limit(text),)) for text in limits]
    for alpha in alphas:
        check_alpha(alpha)
    with opened_session(find_run(run, runs_dir), quiet=as_json) as session:
        if not devices:
            devices = [
                Device(
                    name=", ".join(f"{kind}={value}" for kind, value in texts.items()),
                    limits=tuple(limit_from(kind, value) for kind, value in texts.items()),
                )
                for texts in session.config.search.limits
            ]
        questions = device_questions(devices, alphas or session.config.search.alphas)
        session.say(f"{len(questions)} questions: {len(devices)} devices")
        sweep = sweep_devices(session, questions, address)
        costs = sweep.record.costs
        if as_json:
            facts = {
                "folder": str(sweep.folder),
                "states": sweep.states,
                "distinct_policies": sweep.num_policies,
                "reused": sweep.reused,
                "costs": dict(costs),
            }
            click.echo(json.dumps(facts, indent=1))
        else:
            shown = ", ".join(f"{count} {state}" for state, count in sweep.states.items())
            session.say(f"{shown}; {sweep.num_policies} distinct policies")
            session.say(
                f"solving took {costs['solve_cpu_s']:.1f} CPU seconds, the sweep "
                f"{costs['sweep_wall_s']:.1f} s, Ray's start {costs['ray_start_s']:.1f} s"
                + (" (answered before)" if sweep.reused else "")
            )
            session.say(f"results: {sweep.folder / 'results.parquet'}")
    return ExitCode.INCOMPLETE if is_incomplete(sweep) else ExitCode.DONE
