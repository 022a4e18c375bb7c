"""Where does a run stand? Read from its folder alone, whether or not anything is running."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import events
from orchestrator.errors import StoreError
from orchestrator.journal import Entry, JournalView, read_journal
from orchestrator.lock import lock_owner
from orchestrator.records import EVAL_TOP1, RunRecord, State
from orchestrator.store import RunStore, list_runs

# Steps whose records say the same as the step's state; cells and policies are counted apart.
_BAD = (State.FAILED, State.DIVERGED, State.TIMEOUT, State.INTERRUPTED, State.BLOCKED)

# What file systems take; a longer name cannot even be asked for.
_LONGEST_NAME = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """One run, as ``mpq status`` shows it.

    Attributes:
        name: of the run.
        path: its folder.
        state: ``running``, ``finished``, ``incomplete`` (finished with cells missing),
            ``interrupted`` (nobody runs it and it did not end).
        owner: who runs it, or empty.
        attempts: how often it was started.
        counts: phase -> state -> number of records.
        pending: planned steps without a final record.
        best: method, policy and top-1 of the best trained policy, or None.
        last_message: the newest complaint, or empty.
        unmirrored: records that MLflow has not got yet; None when mirroring is off or unknown.
        torn_bytes: length of an unfinished last journal line.
        resume: the command that goes on with it, or empty.
    """

    name: str
    path: str
    state: str
    owner: str
    attempts: int
    counts: Mapping[str, Mapping[str, int]]
    pending: tuple[str, ...]
    best: Mapping[str, Any] | None
    last_message: str
    unmirrored: int | None
    torn_bytes: int
    resume: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def find_run(text: str, runs_dir: str) -> RunStore:
    """The run that a user means: a name in ``runs_dir``, a run folder, or an experiment file.

    Raises:
        StoreError: there is no such run.
        ConfigError: an experiment file that is wrong.
    """
    path = Path(text)
    if len(path.name.encode(errors="replace")) > _LONGEST_NAME:
        raise StoreError(
            f"{text[:40]!r}... is no run: its name is too long", runs_dir, "",
            "give a run's name with --runs-dir, a run folder, or its experiment file",
        )  # fmt: skip
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from orchestrator.config import load_config

        config = load_config(path).config
        store = RunStore(config.runs_dir, config.name)
    elif path.is_dir() and (path / "journal.jsonl").is_file():
        store = RunStore(path.resolve().parent, path.resolve().name)
    else:
        store = RunStore(runs_dir, text)
    if not store.exists():
        known = list_runs(store.runs_dir)
        shown = ", ".join(known[:10]) if known else "none"
        raise StoreError(
            f"there is no run {text!r}", str(store.runs_dir), f"runs there: {shown}",
            "give a run's name with --runs-dir, a run folder, or its experiment file",
        )  # fmt: skip
    return store


def newest_records(view: JournalView) -> tuple[RunRecord, ...]:
    """For every key its final record, or the newest of its failures; in order of appearance.

    A step that was done again under another key, because images, weights or a step's version
    changed, counts with its last key alone: rows of two networks must not stand in one table.
    """
    newest: dict[str, RunRecord] = {}
    for record in view.records():
        kept = newest.get(record.key)
        if kept is None or not kept.state.final:
            newest[record.key] = record
    current = view.current_keys()
    return tuple(record for record in newest.values() if current[record.step] == record.key)


def run_status(store: RunStore) -> RunStatus:
    """Read the state of one run.

    Raises:
        StoreError: its journal is damaged.
    """
    view = read_journal(store.journal_path)
    records = newest_records(view)
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(record.phase, Counter())[str(record.state)] += 1
    started = last_event(view, events.RUN_STARTED)
    finished = last_event(view, events.RUN_FINISHED)
    owner = lock_owner(store.lock_path)
    over = finished is not None and (started is None or finished.seq > started.seq)
    complaints = [r for r in records if r.message and r.state in _BAD]
    state = _state(owner is not None, finished if over else None)
    return RunStatus(
        name=store.name,
        path=str(store.root),
        state=state,
        owner=f"process {owner.get('pid')} on {owner.get('host')}" if owner else "",
        attempts=sum(e.kind == events.RUN_STARTED for e in view.entries),
        counts={phase: dict(counter) for phase, counter in counts.items()},
        pending=() if over else _pending(view, records),
        best=_best(records),
        last_message=complaints[-1].message if complaints else "",
        unmirrored=_unmirrored(store, view),
        torn_bytes=view.torn_bytes,
        resume=str(started.data.get("command", "")) if started and state != "finished" else "",
    )


def last_event(view: JournalView, kind: str) -> Entry | None:
    """The newest event of a kind."""
    return next((e for e in reversed(view.entries) if e.kind == kind), None)


def _state(running: bool, finished: Entry | None) -> str:
    if running:
        return "running"
    if finished is None:
        return "interrupted"
    return "finished" if finished.data.get("exit_code") == 0 else "incomplete"


def _pending(view: JournalView, records: tuple[RunRecord, ...]) -> tuple[str, ...]:
    planned = last_event(view, events.PLANNED)
    # A training has a record per policy and none of its own.
    done = {record.step.partition("/")[0] for record in records if record.state.final}
    done |= {record.step for record in records if record.state.final}
    steps = planned.data.get("steps", []) if planned else []
    return tuple(s["name"] for s in steps if s["name"] not in done)


def _best(records: tuple[RunRecord, ...]) -> dict[str, Any] | None:
    measured = [r for r in records if r.policy_id is not None and EVAL_TOP1 in r.metrics]
    if not measured:
        return None
    best = max(measured, key=lambda r: r.metrics[EVAL_TOP1])
    return {
        "method": best.method, "policy_id": best.policy_id, "top1": best.metrics[EVAL_TOP1]
    }  # fmt: skip


def _unmirrored(store: RunStore, view: JournalView) -> int | None:
    path = store.root / "mirror.json"
    if not path.is_file():
        return None
    try:
        mirrored = set(json.loads(path.read_text())["mirrored"])
    except (ValueError, KeyError, TypeError):
        return len(view.records())
    return sum(record.record_id not in mirrored for record in view.records())
