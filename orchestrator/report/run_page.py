"""What does the page of a run hold? Section by section, from what was read and drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator import events
from orchestrator.compare.proxies import tau_text
from orchestrator.figures.cost import (
    AMORTISED_COLUMNS,
    AMORTISED_NUMERIC,
    amortised_rows,
    seconds_text,
)
from orchestrator.figures.svg import Drawing
from orchestrator.records import EVIDENCE, RunRecord, State, alpha_text
from orchestrator.report.cells_text import COLUMNS, NUMERIC, result_cells
from orchestrator.report.costs import METERS, amortised, search_parts
from orchestrator.report.escape import bullets, facts_list, html_table, paragraph
from orchestrator.report.figures import RunFigures
from orchestrator.report.inputs import RunInputs
from orchestrator.report.literature import (
    Reported,
    paper_cells,
    reported_table,
)
from orchestrator.report.page import Section, cards, figures, page
from orchestrator.report.time_spent import COLUMNS as TIME_COLUMNS
from orchestrator.report.time_spent import NUMERIC as TIME_NUMERIC
from orchestrator.report.time_spent import time_spent
from orchestrator.results import NOT_TRAINED, ResultRow, skipped_text
from orchestrator.runs import last_event

_PAPER_COLUMNS = ("paper top-1", "paper drop", "difference")


def run_page(
    run: RunInputs, drawn: RunFigures, metamix: Sequence[Drawing], reported: Reported
) -> str:
    """The whole page of one run.

    Args:
        run: what was read.
        drawn: its figures.
        metamix: figures of MetaMix's selections and observations.
        reported: what the papers print.
    """
    config = run.config
    model = (config.get("model") or {}).get("name", "unknown network")
    data = (config.get("data") or {}).get("name", "unknown images")
    lead = f"{config.get('method', 'unknown method')} on {model}, {data}, seed "
    lead += f"{config.get('seed', 'unknown')}"
    if config.get("rehearsal"):
        lead = f"REHEARSAL, no figure means anything: {lead}"
    sections = [
        Section(title="Results", body=_results(run, reported)),
        Section(title="Accuracy", body=figures(drawn.accuracy, side_by_side=True)),
        Section(title="Bits", body=figures(drawn.bits)),
        Section(title="Search cost", body=_cost(run, drawn)),
        Section(title="Indicators", body=figures(drawn.indicators)),
        Section(title="Alphas and budgets", body=_search(run) + figures(drawn.alphas)),
        Section(title="Proxy validity", body=_proxies(drawn)),
        Section(title="MetaMix", body=figures(metamix)),
        Section(title="Observations", body=_evidence(run.records)),
        Section(title="Reported by the papers", body=_reported(reported)),
        Section(title="Time", body=_time(run)),
        Section(title="Not run", body=_not_run(run, reported)),
        Section(title="Provenance", body=_provenance(run)),
    ]
    foot = (
        "Made by mpq report from the run's journal and records alone; the same records give the "
        "same bytes. Values marked reported were read in a paper and not measured here."
    )
    return page(run.store.name, lead, _top(run), sections, foot)


def _top(run: RunInputs) -> str:
    results = run.results
    measured = [r for r in results.rows if r.top1 is not None]
    values: list[tuple[str, str]] = []
    if results.full_precision_top1 is not None:
        values.append((f"{results.full_precision_top1:.2f} %", "full precision, top-1"))
    best = max(measured, key=lambda r: (r.top1 or 0.0, -(r.bitops_g or 0.0)), default=None)
    if best is not None:
        values.append((f"{best.top1:.2f} %", f"best policy: {best.method} at {best.limits_text}"))
    parts = search_parts(run.records)
    for method in ("limpq", "metamix"):
        own = [p for p in parts if p.method == method]
        if own:
            text = f"search of {method} for one budget ({results.device})"
            values.append((seconds_text(amortised(own, 1)), text))
    policies = {r.policy_id for r in results.rows if r.policy_id}
    values.append((str(len(policies)), f"distinct policies in {len(results.rows)} proposals"))
    bad = [r for r in results.rows if r.status not in ("DONE", NOT_TRAINED)]
    bad_steps = len(results.failures)
    if bad or bad_steps or run.lacks:
        values.append((str(len(bad) + bad_steps + len(run.lacks)), "rows, steps or files without a "
                       "result: see Not run"))  # fmt: skip
    finished = last_event(run.view, events.RUN_FINISHED)
    note = "" if finished else paragraph("This run has not finished: what stands here is what it "
                                         "has recorded so far.", "warn")  # fmt: skip
    return note + cards(values)


def _results(run: RunInputs, reported: Reported) -> str:
    results, shown = run.results, run.results.shown
    columns: tuple[str, ...] = COLUMNS
    rows = result_cells(results, shown)
    offset = len(rows) - len(shown)
    extra = [paper_cells(row, reported.repeated) for row in shown]
    if any(any(cells) for cells in extra):
        columns = (*COLUMNS, *_PAPER_COLUMNS)
        rows = [
            (*cells, *(("", "", "") if i < offset else extra[i - offset]))
            for i, cells in enumerate(rows)
        ]
    kinds = ["base"] * offset
    before = ""
    for row in shown:
        kind = "bad" if row.status != "DONE" else ""
        kinds.append(f"{kind} first".strip() if row.limits_text != before else kind)
        before = row.limits_text
    parts = [
        html_table(columns, rows, numeric=frozenset({*NUMERIC, *_PAPER_COLUMNS}), row_kinds=kinds),
        paragraph(
            "Bits are means over the searched layers. Drop is full-precision top-1 less the "
            f"row's, in points. Search is device seconds of the search phases ({results.device}), "
            "plus the solve of the row. Every accuracy is of one seed: no interval is claimed.",
            "note",
        ),
    ]
    if len(columns) > len(COLUMNS):
        told = "Difference is our top-1 less the paper's, in points, at the nearest cost: "
        told += ", ".join(f"{r.id} ({r.source})" for r in reported.repeated) + "."
        parts.append(paragraph(told, "note"))
    if results.skipped:
        parts.append(paragraph(f"{skipped_text(results)}.", "warn"))
    reasons = [f"{r.method} at {r.limits_text}: {r.status}. {r.reason}" for r in shown if r.reason]
    if reasons:
        parts += ["<h3>Rows with a remark</h3>", bullets(reasons)]
    return "".join(parts)


def _cost(run: RunInputs, drawn: RunFigures) -> str:
    parts = search_parts(run.records)
    names = [name for name in METERS if any(name in p.meters for p in parts)]
    rows = [
        (
            p.method, p.part, "every device" if p.per_device else "once", seconds_text(p.device_s),
            *[f"{p.meters[n]:,.0f}" if n in p.meters else "" for n in names],
        )
        for p in parts
    ]  # fmt: skip
    if not rows:
        return ""
    titles = [METERS[name] for name in names]
    methods = {r.method for r in run.results.rows} - {p.method for p in parts}
    lost = {r.method for r in run.results.rows if r.search_device_s is None}
    free = methods - lost
    told = f"No search cost: {', '.join(sorted(free))}." if free else ""
    told += f" Search cost not recorded: {', '.join(sorted(lost))}." if lost else ""
    columns = list(AMORTISED_COLUMNS)
    return (
        figures(drawn.cost)
        + "<h3>By phase</h3>"
        + html_table(
            ["method", "phase", "paid", "device time", *titles], rows,
            numeric=frozenset({"device time", *titles}),
        )
        + paragraph(told.strip(), "note")
        + "<h3>For one device, when a search serves many</h3>"
        + html_table(columns, amortised_rows(parts),
                     numeric=AMORTISED_NUMERIC)
    )  # fmt: skip


def _search(run: RunInputs) -> str:
    rows = run.results.rows
    if not rows:
        return ""
    counted = ", ".join(f"{n} {status}" for status, n in sorted(Counter(
        row.status for row in rows).items()))  # fmt: skip
    return paragraph(f"{len(rows)} proposals: {counted}.")


def _proxies(drawn: RunFigures) -> str:
    if not drawn.validity:
        return ""
    rows = [
        (v.source, alpha_text(v.alpha), v.limits, str(v.correlation.n), tau_text(v.correlation))
        for v in drawn.validity
    ]
    told = (
        "Each importance table predicts a loss for every policy that was trained, whatever found "
        "it; Kendall's tau says how well that ranks their measured accuracies. Few policies, or "
        "accuracies that differ by less than a seed does, support no conclusion."
    )
    tau, scatters = drawn.proxies[:1], drawn.proxies[1:]
    return (
        paragraph(told)
        + figures(tau)
        + html_table(("source", "alpha", "limits", "policies", "tau [95 % interval]"), rows,
                     numeric=frozenset({"alpha", "policies"}))
        + figures(scatters, side_by_side=True)
    )  # fmt: skip


def _evidence(records: Sequence[RunRecord]) -> str:
    rows = [
        (r.step.removeprefix("evidence-"), name.removeprefix(f"{EVIDENCE}/"), f"{value:.4g}",
         seconds_text(r.costs.get("device_s", 0.0)))
        for r in records
        if r.phase == EVIDENCE and r.state is State.DONE
        for name, value in r.metrics.items()
    ]  # fmt: skip
    columns = ("observation", "what", "value", "device time")
    return html_table(columns, rows, numeric=frozenset(columns[2:])) if rows else ""


def _reported(reported: Reported) -> str:
    if not reported.every:
        return ""
    told = (
        "Read in the papers, measured by their authors on their machines, with their recipes: to "
        "be read beside the results above, not against them to the last digit."
    )
    return paragraph(told) + reported_table(reported.every)


def _time(run: RunInputs) -> str:
    told, rows = time_spent(run.view)
    table = html_table(TIME_COLUMNS, rows, numeric=TIME_NUMERIC) if rows else ""
    return paragraph(told) + table


def _not_run(run: RunInputs, reported: Reported) -> str:
    lines = not_run_lines(run)
    lines += [f"reported rows: {reported.problem}"] if reported.problem else []
    return bullets(lines) if lines else paragraph("Everything that was asked for was.")


def not_run_lines(run: RunInputs) -> list[str]:
    """Everything that was asked for and has no result, and why."""
    planned = last_event(run.view, events.PLANNED)
    lines = [
        f"{each.get('what')}: {each.get('reason')}"
        for each in (planned.data.get("not_run", []) if planned else [])
    ]
    lines += [f"{_named(r)}: {r.status}. {r.reason}" for r in run.results.rows
              if r.status not in ("DONE", NOT_TRAINED)]  # fmt: skip
    untrained = sum(row.status == NOT_TRAINED for row in run.results.rows)
    if untrained:
        lines.append(
            f"{untrained} proposals were solved but not trained: their limits or alphas are not "
            "among those that the configuration trains."
        )
    lines += [f"{r.step}: {r.state}: {r.message}" for r in run.results.failures]
    lines += [f"not shown, because {lack}" for lack in run.lacks]
    return lines


def _named(row: ResultRow) -> str:
    alpha = "" if row.alpha is None else f", alpha {alpha_text(row.alpha)}"
    return f"{row.method}{alpha} at {row.limits_text}"


def _provenance(run: RunInputs) -> str:
    started = last_event(run.view, events.RUN_STARTED)
    data = started.data if started else {}
    costs = next((r.facts for r in run.records if r.phase == "costs"), {})
    full = next((r.facts for r in run.records if r.phase == "pretrain"), {})
    states = Counter(str(r.state) for r in run.records if r.state is not State.DONE)
    attempts = [e for e in run.view.entries if e.kind == events.RUN_STARTED]
    facts = {
        "command": str(data.get("command", "unknown")),
        "started": attempts[0].time_utc[:19].replace("T", " ") + " UTC" if attempts else "unknown",
        "attempts": str(len(attempts)),
        "machine": ", ".join(f"{k} {v}" for k, v in data.get("machine", {}).items()) or "unknown",
        "accounting of costs": str(run.config.get("accounting", "unknown")),
        "network fingerprint": str(costs.get("fingerprint", "unknown")),
        "data fingerprint": str(full.get("data_fingerprint", "unknown")),
        "records": f"{len(run.records)}, not DONE: "
        + (", ".join(f"{n} {s}" for s, n in sorted(states.items())) or "none"),
        "versions": ", ".join(f"{k} {v}" for k, v in data.get("versions", {}).items()),
        "run id": run.view.run_id,
    }
    return facts_list(facts)
