"""Where did the time of a run go? One text and one table for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator import events
from orchestrator.journal import JournalView
from orchestrator.ledger import USEFUL, overhead_share
from orchestrator.runs import last_event

COLUMNS = ("share", "wall time", "part", "what it is")
NUMERIC = frozenset(COLUMNS[1:3])

# What each share of the wall time that is not training, evaluating or solving is spent on.
_EXPLAINED: Mapping[str, str] = {
    "plan": "imports, tracing the network, checking limits",
    "Ray start and stop": "the local Ray cluster; nothing on a cluster that is up",
    "worker start and stop": "worker processes: start, imports, process group, shutdown",
    "set-up in the workers": "reading images, building and wrapping networks, checkpoints",
    "MLflow": "waiting for the mirror at the end",
    "Ray Tune": "Tune's own time around the solves",
    "report": "tables and figures",
    "other": "everything else in the driver",
}


def time_spent(view: JournalView) -> tuple[str, list[tuple[str, str, str, str]]]:
    """What to say, and the rows of ``COLUMNS``; none before the run has finished."""
    finished = last_event(view, events.RUN_FINISHED)
    spent: dict[str, float] = dict(finished.data.get("spent", {})) if finished else {}
    total = sum(spent.values())
    if not total:
        return "The run has not finished, so its time is not accounted.", []
    ordered = sorted(spent.items(), key=lambda item: (item[0] not in USEFUL, -item[1]))
    rows = [
        (name, f"{wall_s:.1f} s", f"{100 * wall_s / total:.1f} %",
         "what the run is for" if name in USEFUL else _EXPLAINED.get(name, ""))
        for name, wall_s in ordered
    ]  # fmt: skip
    attempts = sum(e.kind == events.RUN_STARTED for e in view.entries)
    scope = "" if attempts == 1 else f" Of the last of {attempts} attempts only."
    share = 100 * overhead_share(spent)
    return (
        f"{total:.1f} s of wall time, of which {share:.1f} % is not training, evaluating or "
        f"solving.{scope}"
    ), rows
