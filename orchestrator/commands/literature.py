"""``mpq literature``: what the papers report for a network; nothing of it is measured here."""

from __future__ import annotations

import json

import click

from orchestrator.errors import ExitCode


@click.command()
@click.option("--model", help="Only this network.")
@click.option("--paper", type=click.Choice(["LIMPQ", "MetaMix"]), help="Only this paper.")
@click.option("--folder", type=click.Path(), help="Tables of your own instead of the papers'.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, paper: str | None, folder: str | None, as_json: bool) -> ExitCode:
    """Print the rows of both papers' tables, as reported."""
    from orchestrator.literature import load_literature, shipped_rows

    rows = [
        row
        for row in (shipped_rows() if folder is None else load_literature(folder))
        if model in (None, row.model) and paper in (None, row.paper)
    ]
    if as_json:
        click.echo(json.dumps([row.to_json() for row in rows], indent=1))
        return ExitCode.DONE
    source = ""
    for row in rows:
        if row.source != source:
            source = row.source
            click.echo(f"{source}: {row.model} on {row.dataset}, as reported")
        click.echo(f"  {row.id:<28} {row.method:<22} {_figures(row.to_json())}")
    if not rows:
        click.echo("nothing is reported for that")
    return ExitCode.DONE


_SHOWN = {
    "top1": "top-1 {:.2f}", "top5": "top-5 {:.2f}", "drop": "drop {:+.2f}",
    "bitops_g": "{:.2f} GBitOps", "size_mb": "{:.2f} MB", "compression": "{:.2f}x",
    "search_gpu_h": "search {:g} GPU-hours", "search_epochs": "search {} epochs",
    "retrain_epochs": "training {} epochs", "solve_s": "solve {:g} s",
}  # fmt: skip


def _figures(row: dict[str, object]) -> str:
    bits = [str(row[key]) for key in ("weight_bits", "act_bits") if row[key]]
    parts = [f"W{bits[0]} A{bits[1]}"] if len(bits) == 2 else []
    parts += [text.format(row[key]) for key, text in _SHOWN.items() if row[key] is not None]
    return ", ".join([*parts, *([str(row["note"])] if row["note"] else [])])
