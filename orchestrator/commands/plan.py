"""``mpq plan``: what a run would do and take; reads the network and the run folder, no more."""

from __future__ import annotations

import json
from typing import Any

import click

from orchestrator.errors import ExitCode, UserError


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key, e.g. train.epochs=3; may be given several times.",
)
@click.option("--reuse", multiple=True, metavar="RUN",
              help="A run whose finished steps `mpq run --reuse` would take over.")  # fmt: skip
@click.option("--images-per-s", type=click.FloatRange(min=0, min_open=True),
              help="Images a second that one worker trains, to reckon hours with.")  # fmt: skip
@click.option("--calibrate", is_flag=True, help="Measure that rate here, in about 10 seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    config: str,
    overrides: tuple[str, ...],
    reuse: tuple[str, ...],
    images_per_s: float | None,
    calibrate: bool,
    as_json: bool,
) -> ExitCode:
    """Say what running the file CONFIG would do, and what it would take.

    Every step is told as run, cached (done, outputs verified), reused (done in a run named by
    --reuse) or blocked, with the reason, and every set of limits with what is reachable; then
    device hours, wall time and disk, and what the papers report for the same. Needs neither images
    nor weights, but those that the file names must be here: for a cluster's file, give --set
    data.path=null or --set model.weights=torchvision. Exit code 3 when some limits are infeasible.
    """
    from orchestrator.config import load_config
    from orchestrator.forecast.now import forecast
    from orchestrator.forecast.rate import measured_rate, stated_rate
    from orchestrator.names import known_names
    from orchestrator.runs import find_run

    if calibrate and images_per_s is not None:
        raise UserError("a rate is stated and another is to be measured",
                        "--images-per-s, --calibrate", todo="leave one of them out")  # fmt: skip
    asked = load_config(config, overrides, known_names()).config
    rate = measured_rate(asked) if calibrate else stated_rate(asked, images_per_s)
    donors = tuple(find_run(run, asked.runs_dir) for run in reuse)
    found = forecast(asked, rate, donors)
    code = ExitCode.INCOMPLETE if any(x["problem"] for x in found["limits"]) else ExitCode.DONE
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return code
    click.echo("\n".join(_lines(found)))
    return code


def _lines(found: dict[str, Any]) -> list[str]:
    network = found["network"]
    lines = [
        f"run {found['run']} in {found['folder']}",
        f"network {network['model']}: {network['layers']} layers, {network['searched']} searched, "
        f"{network['macs']:,} MACs, {network['weights']:,} weights",
        f"images: {found['images']['told']}",
        _workers(found["workers"]),
    ]
    if found["drift"]:
        lines.append("refused: the run exists with another configuration:")
        lines += [f"  {line}" for line in found["drift"]]
    width = max(len(step["name"]) for step in found["steps"])
    for step in found["steps"]:
        spent = f"{_hours(step['device_h'])}  " if step["device_h"] else ""
        lines.append(f"  {step['state']:<8} {step['name']:<{width}} {spent}{step['reason']}")
    lines.append("limits:")
    for limits in found["limits"]:
        state = "infeasible" if limits["problem"] else "feasible"
        told = limits["problem"] or "; ".join(limits["reach"])
        lines.append(f"  {state:<11} {limits['name']}: {told}")
    lines.append(f"{found['cells']} cells to solve, at most {found['policies']} policies to train")
    return [*lines, *_time(found), *_disk(found["disk"]), *_reported(found["reported"])]


def _workers(workers: dict[str, Any]) -> str:
    each = f"{workers['gpus_per_worker']:g} GPU" if workers["gpus_per_worker"] else "no GPU"
    return f"workers: {workers['num_workers']}, {each} each"


def _time(found: dict[str, Any]) -> list[str]:
    time, unit = found["time"], "GPU" if found["workers"]["gpus_per_worker"] else "worker"
    if time["rate"] is None:
        return ["time: not reckoned, no rate is known; give --images-per-s N or --calibrate"]
    if time["device_h"] is None:
        return ["time: not reckoned, the number of images is not known"]
    lines = [
        f"time: {_hours(time['device_h'])} of {unit} time, {_hours(time['wall_h'])} on the clock "
        f"if {found['workers']['num_workers']} workers share it without loss",
        f"  at {time['rate']['images_per_second']:.4g} images a second and worker "
        f"({time['rate']['source']}); a forward pass alone counts a third",
    ]
    if time["not_reckoned"]:
        lines.append(f"  not in it: {', '.join(time['not_reckoned'])}")
    return lines


def _disk(disk: dict[str, Any]) -> list[str]:
    line = (
        f"disk: {_bytes(disk['total'])} at most ({_bytes(disk['weights'])} weights, "
        f"{_bytes(disk['checkpoints'])} checkpoints while they last, {_bytes(disk['tables'])} "
        f"policies and records); {_bytes(disk['free'])} free"
    )
    short = ["  too little is free"] if disk["total"] > disk["free"] else []
    if disk["images_packed"] is not None:
        packed = _bytes(disk["images_packed"])
        line += f"; the images packed take about {packed} more"
    return [line, *short]


def _reported(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["reported by the paper, not measured here:"]
    shown = {"top1": "top-1 {:.2f}", "top1_fp": "full precision {:.2f}", "drop": "drop {:+.2f}",
             "bitops_g": "{:.2f} GBitOps", "size_mb": "{:.2f} MB", "compression": "{:.1f}x",
             "search_gpu_h": "search {:g} GPU-hours", "solve_s": "solve {:g} s"}  # fmt: skip
    for row in rows:
        figures = [text.format(row[key]) for key, text in shown.items() if row[key] is not None]
        lines.append(f"  {row['source']}, {row['method']}: {', '.join(figures)}")
    return lines


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _bytes(amount: int) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount / 1024:.0f} KiB"
