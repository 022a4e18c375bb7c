"""What came out of a study? One page, one table, its figures and files, from its runs' records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.compare.inputs import ComparedRun, ReadRuns, read_runs
from orchestrator.compare.policies import STABILITY_COLUMNS
from orchestrator.compare.proxies import proxy_points, validities
from orchestrator.compare.runs import STABLE_QUESTION, compare, stability_rows
from orchestrator.figures.accuracy import AccuracyPoint, accuracy_figure, cost_axes
from orchestrator.figures.cost import (
    AMORTISED_COLUMNS,
    AMORTISED_NUMERIC,
    amortised_figure,
    amortised_rows,
    search_cost_figure,
    seconds_text,
)
from orchestrator.figures.study import paired_figure
from orchestrator.figures.svg import Drawing
from orchestrator.report.cells_text import markdown_table
from orchestrator.report.costs import SearchPart, search_parts
from orchestrator.report.escape import bullets, esc, facts_list, html_table, paragraph
from orchestrator.report.inputs import read_inputs
from orchestrator.report.literature import reported_for, reported_table
from orchestrator.report.page import Section, cards, figures, page
from orchestrator.report.write import PAGE, save_drawings
from orchestrator.results import out_of_reach
from orchestrator.store import RunStore
from orchestrator.study.results import (
    COLUMNS,
    NUMERIC,
    StudyTable,
    study_cells,
    study_table,
    study_values,
)
from solvers.atomic import write_atomically
from solvers.policy import Policy

# Importance tables take milliseconds each; beyond this many runs the first ones stand for all.
MAX_PROXY_RUNS = 30
_MAX_NOTES = 60
_DEVICE = "mean over seeds"


def write_study_report(
    name: str, asked: Mapping[int, str], stores: Sequence[RunStore], folder: Path
) -> StudyTable:
    """Write ``report.html``, ``report.md``, ``results.csv``, ``results.json`` and figures.

    Args:
        name: of the study.
        asked: seed -> name of its run.
        stores: of the same runs.
        folder: where the files go.
    """
    read = read_runs(stores)
    table = study_table(name, asked, read)
    parts = mean_parts(read.runs)
    accuracy = _accuracy(table, read.runs)
    paired = paired_figure(table)
    unit = f"{table.device}, {_DEVICE}"
    cost = [d for d in (search_cost_figure(parts, unit), amortised_figure(parts, unit)) if d]
    drawn = [*accuracy, *([paired] if paired else []), *cost]
    paths = save_drawings(drawn, folder / "figures")
    cells = [study_cells(row) for row in table.rows]
    write_atomically(folder / "results.csv", _csv(cells))
    write_atomically(folder / "results.json", json.dumps(study_values(table), indent=1) + "\n")
    write_atomically(folder / "report.md", _markdown(table, cells, paths, folder))
    sections = [
        Section(title="Results", body=_results(table, cells)),
        Section(title="Against uniform", body=figures([paired])),
        Section(title="Accuracy", body=figures(accuracy, side_by_side=True)),
        Section(title="Search cost", body=_cost(parts, cost)),
        Section(title="Policy stability", body=_stability(read)),
        Section(title="Proxy validity", body=_proxies(read)),
        Section(title="Reported by the papers", body=_reported(read)),
        Section(title="Not run", body=_not_run(table)),
        Section(title="Runs", body=_runs(read, asked, folder)),
    ]
    lead = f"{len(table.seeds)} seed{'s' * (len(table.seeds) != 1)}, {_what(read)}"
    foot = "Made by mpq from the journals and records of its runs; the same give the same bytes."
    text = page(name, lead, _top(table), sections, foot)
    write_atomically(folder / PAGE, text)
    return table


def mean_parts(runs: Sequence[ComparedRun]) -> list[SearchPart]:
    """Every method's phases, seconds and meters as means over the runs that have them."""
    found: dict[tuple[str, str], list[SearchPart]] = {}
    for run in runs:
        for part in search_parts(run.records):
            found.setdefault((part.method, part.part), []).append(part)
    return [
        SearchPart(
            method=method,
            part=part,
            device_s=sum(p.device_s for p in own) / len(own),
            per_device=own[0].per_device,
            meters={
                key: sum(p.meters.get(key, 0.0) for p in own) / len(own)
                for key in dict.fromkeys(key for p in own for key in p.meters)
            },
        )
        for (method, part), own in found.items()
    ]


def _accuracy(table: StudyTable, runs: Sequence[ComparedRun]) -> list[Drawing]:
    rows = [r for r in table.rows if r.accuracy is not None]
    full = None if table.full_precision is None else table.full_precision.mean
    # All seeds at once: a limit that one of them met is within reach.
    records = [record for run in runs for record in run.records]
    drawn = []
    for axis in cost_axes(r.bitops_g for r in rows):
        points = [
            AccuracyPoint(
                method=r.method, label=f"{r.limits}{'' if r.alpha == '-' else f' alpha {r.alpha}'}",
                cost=cost * axis.factor, top1=r.accuracy.mean, low=r.accuracy.low,
                high=r.accuracy.high,
            )
            for r in rows
            if r.accuracy is not None and (cost := getattr(r, axis.field)) is not None
        ]  # fmt: skip
        crosses = out_of_reach(records, axis.resource)
        drawing = accuracy_figure(points, axis, infeasible=crosses, full_precision=full)
        drawn += [drawing] if drawing else []
    return drawn


def _top(table: StudyTable) -> str:
    values = [(str(len(table.seeds)), "seeds asked for")]
    if table.full_precision is not None:
        full = table.full_precision
        spread = "" if full.sd is None else f", sd {full.sd:.2f}"
        values.append((f"{full.mean:.2f} %", f"full precision, mean of {full.n}{spread}"))
    best = max((r for r in table.rows if r.accuracy), key=lambda r: r.accuracy.mean, default=None)  # type: ignore[union-attr]
    if best is not None and best.accuracy is not None:
        values.append((f"{best.accuracy.mean:.2f} %", f"highest mean: {best.method} at "
                       f"{best.limits}"))  # fmt: skip
    apart = [r for r in table.rows if r.p_adjusted is not None and r.p_adjusted < 0.05]
    values.append((str(len(apart)), "rows told apart from uniform at 5 % (Holm)"))
    lacking = sum(len(row.lacking) for row in table.rows)
    if lacking:
        values.append((str(lacking), "results that are not there, each named below"))
    single = len(table.seeds) == 1
    told = paragraph("One seed: no interval and no test is claimed.", "warn") if single else ""
    return told + cards(values)


def _results(table: StudyTable, cells: Sequence[Sequence[str]]) -> str:
    kinds, before = [], ""
    for row in table.rows:
        kind = "bad" if not row.top1 else ""
        kinds.append(f"{kind} first".strip() if row.limits != before else kind)
        before = row.limits
    told = (
        "n is seeds measured of seeds asked for. Intervals are 95 % t-intervals of the mean over "
        "seeds; against uniform is the mean paired difference in points. Search is device seconds "
        f"of the phases ({table.device}) plus the solve, means over seeds. policies counts "
        "distinct ones."
    )
    return html_table(COLUMNS, cells, numeric=NUMERIC, row_kinds=kinds) + paragraph(told, "note")


def _cost(parts: Sequence[SearchPart], drawn: Sequence[Drawing]) -> str:
    if not parts:
        return ""
    columns = list(AMORTISED_COLUMNS)
    rows = [(p.method, p.part, "every device" if p.per_device else "once",
             seconds_text(p.device_s)) for p in parts]  # fmt: skip
    return (
        figures(drawn)
        + html_table(("method", "phase", "paid", "device time"), rows,
                     numeric=frozenset({"device time"}))
        + "<h3>For one device, when a search serves many</h3>"
        + html_table(columns, amortised_rows(parts),
                     numeric=AMORTISED_NUMERIC)
    )  # fmt: skip


def _stability(read: ReadRuns) -> str:
    rows = stability_rows(compare(read)) if len(read.runs) > 1 else []
    if not rows:
        return ""
    told = (
        "How many bit-widths (two in every searched layer) differ between the policies of two "
        "seeds: mean and most over all pairs."
    )
    numeric = frozenset(STABILITY_COLUMNS[:-1])
    columns = (*STABLE_QUESTION, *STABILITY_COLUMNS)
    table = html_table(columns, rows, numeric=numeric)
    return paragraph(told) + f'<div class="wraps">{table}</div>'


def _proxies(read: ReadRuns) -> str:
    taus: dict[tuple[str, str], list[tuple[float, int]]] = {}
    known: dict[str, Policy] = {}
    parsed: dict[str, dict[str, Any]] = {}
    for run in read.runs[:MAX_PROXY_RUNS]:
        inputs = read_inputs(run.store, run.view, known, parsed)
        measured = inputs.measured()
        for each in inputs.importance:
            if each.solved is None:
                continue
            points = proxy_points(each.source, each.solved, each.alpha, measured)
            for found in validities(points, each.source, each.alpha):
                if found.correlation.tau is not None:
                    key = (each.source, found.limits)
                    taus.setdefault(key, []).append((found.correlation.tau, found.correlation.n))
    if not taus:
        return ""
    rows = [
        (source, limits, str(len(own)), f"{min(n for _, n in own)} to {max(n for _, n in own)}",
         f"{sum(t for t, _ in own) / len(own):+.2f}",
         f"{min(t for t, _ in own):+.2f} to {max(t for t, _ in own):+.2f}")
        for (source, limits), own in taus.items()
    ]  # fmt: skip
    told = (
        "Kendall's tau of the loss that an importance table predicts and the error that was "
        "measured, one value a seed; each seed's interval is in the report of its run. 1 = ranks "
        "as training does, 0 = knows nothing."
    )
    if len(read.runs) > MAX_PROXY_RUNS:
        told += f" Of the first {MAX_PROXY_RUNS} of {len(read.runs)} runs."
    columns = ("source", "limits", "seeds", "policies", "mean tau", "least to most")
    return paragraph(told) + html_table(columns, rows, numeric=frozenset(columns[2:]))


def _reported(read: ReadRuns) -> str:
    return reported_table(reported_for(read.runs[0].config).every if read.runs else ())


def _not_run(table: StudyTable) -> str:
    lines = [*table.problems]
    lines += [
        f"{row.method} at {row.limits}, seed {seed}: {why}"
        for row in table.rows
        for seed, why in row.lacking.items()
    ]
    if not lines:
        return paragraph("Everything that was asked for was.")
    more = len(lines) - _MAX_NOTES
    tail = [f"and {more} more; results.json has all of them"] if more > 0 else []
    return bullets([*lines[:_MAX_NOTES], *tail])


def _runs(read: ReadRuns, asked: Mapping[int, str], folder: Path) -> str:
    lines = []
    for run in read.runs[:_MAX_NOTES]:
        near = run.store.root.parent in (folder, folder.parent)
        place = f"../{run.store.root.name}" if run.store.root.parent == folder.parent else "."
        link = (
            f'<a href="{esc(quote(place))}/{PAGE}">{esc(run.label)}</a>' if near else esc(run.label)
        )
        lines.append(f"<li>seed {esc(run.seed)}: {link}</li>")
    facts = dict(read.runs[0].facts) if read.runs else {}
    facts.pop("seed", None)
    more = len(read.runs) - _MAX_NOTES
    tail = f"<li>and {more} more</li>" if more > 0 else ""
    return f"<ul>{''.join(lines)}{tail}</ul>" + facts_list({"first run": "", **facts})


def _what(read: ReadRuns) -> str:
    if not read.runs:
        return "no run could be read"
    config = read.runs[0].config
    model = (config.get("model") or {}).get("name", "unknown network")
    data = (config.get("data") or {}).get("name", "unknown images")
    return f"{model} on {data}"


def _markdown(
    table: StudyTable, cells: Sequence[Sequence[str]], paths: Mapping[str, Path], folder: Path
) -> str:
    shown = [f"![{text}]({path.relative_to(folder).as_posix()})" for text, path in paths.items()]
    problems = [f"* {line}" for line in table.problems] or ["Everything that was asked for was."]
    return "\n\n".join(
        [f"# {table.name}", markdown_table(COLUMNS, cells), *shown, "## What was not run",
         "\n".join(problems)]
    ) + "\n"  # fmt: skip


def _csv(cells: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *cells])
    return text.getvalue()
