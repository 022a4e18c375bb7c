"""What does ``report.md`` say? The table, the figures' links and the rest as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import events
from orchestrator.journal import JournalView
from orchestrator.records import EVIDENCE, RunRecord, State, alpha_text
from orchestrator.report.cells_text import COLUMNS, escaped, markdown_table, result_cells
from orchestrator.report.inputs import RunInputs
from orchestrator.report.run_page import not_run_lines
from orchestrator.report.time_spent import COLUMNS as TIME_COLUMNS
from orchestrator.report.time_spent import time_spent
from orchestrator.results import Results, skipped_text
from orchestrator.runs import last_event
from orchestrator.store import RunStore


def markdown(run: RunInputs, figures: Mapping[str, Path]) -> str:
    """The whole text.

    Args:
        run: what was read.
        figures: text -> file, as they were drawn.
    """
    texts = (
        _head(run),
        _table(run.results),
        _figures(run.store, figures),
        _search(run.results),
        _evidence(run.records),
        _time(run.view),
        _not_run(run),
        _provenance(run.view, run.records),
    )
    return "\n\n".join(text for text in texts if text).rstrip() + "\n"


def _head(run: RunInputs) -> str:
    config = run.config
    model, data = config.get("model") or {}, config.get("data") or {}
    finished = last_event(run.view, events.RUN_FINISHED)
    ended = (
        "not finished" if finished is None else finished.time_utc[:19].replace("T", " ") + " UTC"
    )
    rows = [
        ("method", str(config.get("method", "unknown"))),
        ("network", str(model.get("name", "unknown"))),
        ("data", str(data.get("name", "unknown"))),
        ("seed", str(config.get("seed", "unknown"))),
        ("accounting", str(config.get("accounting", "unknown"))),
        ("finished", ended),
    ]
    if config.get("rehearsal"):
        rows.insert(0, ("REHEARSAL", "a few updates on a few images: no figure means anything"))
    return f"# {escaped(run.store.name)}\n\n{markdown_table(('run', ''), rows)}"


def _table(results: Results) -> str:
    lines = ["## Results", markdown_table(COLUMNS, result_cells(results, results.shown))]
    lines.append(
        "Bits are means over the searched layers. Drop is full-precision top-1 less the row's, in "
        "points. Search is the device seconds of the search phase "
        f"(unit: {escaped(results.device)}), which one phase serves for all rows of its method, "
        "plus the solve of the row. Every accuracy is of one seed: no interval is claimed."
    )
    if results.skipped:
        lines.append(f"{escaped(skipped_text(results))}.")
    reasons = [
        f"* {escaped(r.method)} at {escaped(r.limits_text)}: **{r.status}**. {escaped(r.reason)}"
        for r in results.shown
        if r.reason
    ]
    if reasons:
        lines += ["Rows without an accuracy:", "\n".join(reasons)]
    return "\n\n".join(lines)


def _figures(store: RunStore, figures: Mapping[str, Path]) -> str:
    if not figures:
        return "## Figures\n\nNone: nothing was trained."
    shown = [
        f"![{text}]({path.relative_to(store.root).as_posix()})" for text, path in figures.items()
    ]
    return "\n\n".join(["## Figures", *shown])


def _search(results: Results) -> str:
    states = Counter(row.status for row in results.rows)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
    distinct = len({row.policy_id for row in results.rows if row.policy_id})
    lines = [
        "## Search",
        f"{len(results.rows)} proposals ({counted or 'none'}), {distinct} distinct policies.",
    ]
    grid = [row for row in results.rows if row.alpha is not None and row.method == "limpq"]
    if grid:
        alphas = sorted({row.alpha for row in grid if row.alpha is not None})
        limits = list(dict.fromkeys(row.limits_text for row in grid))
        cell = {(row.alpha, row.limits_text): row for row in grid}
        rows = []
        for text in limits:
            found = [cell.get((alpha, text)) for alpha in alphas]
            rows.append([text, *[(row.policy_id or row.status) if row else "-" for row in found]])
        lines += [
            "Policies by limit and alpha; equal names are equal bits, trained once:",
            markdown_table(["limits", *[f"alpha {alpha_text(alpha)}" for alpha in alphas]], rows),
        ]
    return "\n\n".join(lines)


def _evidence(records: Sequence[RunRecord]) -> str:
    """What was measured beside the search; nothing where nothing was asked for."""
    rows = []
    for record in (r for r in records if r.phase == EVIDENCE and r.state is State.DONE):
        tables = [p for role, p in record.outputs.items() if role != "result"]
        spent = f"{record.costs.get('device_s', 0.0):.1f} s"
        prefix = f"{EVIDENCE}/"
        rows += [
            (record.step.removeprefix("evidence-"), name.removeprefix(prefix), f"{value:.4g}",
             spent, ", ".join(tables))
            for name, value in record.metrics.items()
        ]  # fmt: skip
    if not rows:
        return ""
    columns = ("observation", "what", "value", "device seconds", "data")
    return "## Evidence\n\n" + markdown_table(columns, rows)


def _time(view: JournalView) -> str:
    told, rows = time_spent(view)
    parts = [
        "## Where the time went",
        told,
        *([markdown_table(TIME_COLUMNS, rows)] if rows else []),
    ]
    return "\n\n".join(parts)


def _not_run(run: RunInputs) -> str:
    lines = [f"* {escaped(line)}" for line in not_run_lines(run)]
    return "## What was not run\n\n" + ("\n".join(lines) or "Everything that was asked for was.")


def _provenance(view: JournalView, records: Sequence[RunRecord]) -> str:
    started = last_event(view, events.RUN_STARTED)
    data: Mapping[str, Any] = started.data if started else {}
    machine = data.get("machine", {})
    facts = next((r.facts for r in records if r.phase == "pretrain"), {})
    costs = next((r.facts for r in records if r.phase == "costs"), {})
    states = Counter(str(r.state) for r in records if r.state is not State.DONE)
    rows = [
        ("command", str(data.get("command", "unknown"))),
        ("attempts", str(sum(e.kind == events.RUN_STARTED for e in view.entries))),
        ("machine", ", ".join(f"{key} {value}" for key, value in machine.items()) or "unknown"),
        ("network fingerprint", str(costs.get("fingerprint", "unknown"))),
        ("data fingerprint", str(facts.get("data_fingerprint", "unknown"))),
        ("records", f"{len(records)}, of which not DONE: {dict(states) or 'none'}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in data.get("versions", {}).items())),
    ]
    return "## Provenance\n\n" + markdown_table(("what", ""), rows)
