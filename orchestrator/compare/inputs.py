"""What does a comparison read of each run? Journal, configuration and distinct policies, no more.

Five hundred runs are read in seconds: a policy is a file with the hash of its bits for a name, so
each is read once, whichever run it comes from, and nothing but the journal is verified. A run that
cannot be read is said, and the others are compared without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import events
from orchestrator.errors import UserError
from orchestrator.journal import JournalView, read_journal
from orchestrator.records import RunRecord
from orchestrator.report.inputs import read_config
from orchestrator.results import Results, results_of
from orchestrator.runs import last_event, newest_records
from orchestrator.store import RunStore
from solvers.errors import SolversError
from solvers.policy import Policy
from solvers.storage import load_policy

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: what to call it: its name, or its path where names are not distinct.
        store: where it is.
        view: its journal.
        records: the newest of every key.
        results: its table.
        facts: what must agree for a fair comparison, by name.
        config: its resolved configuration, without secrets.
        lacks: what is missing or damaged, one clause each.
    """

    label: str
    store: RunStore
    view: JournalView
    records: tuple[RunRecord, ...]
    results: Results
    facts: dict[str, str]
    config: dict[str, Any]
    lacks: tuple[str, ...] = ()

    @property
    def seed(self) -> int | None:
        """Of the configuration."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return last_event(self.view, events.RUN_FINISHED) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadRuns:
    """What could be read.

    Attributes:
        runs: those that could, in the order given.
        unread: label -> why not.
    """

    runs: tuple[ComparedRun, ...]
    unread: Mapping[str, str]


def read_runs(stores: Sequence[RunStore]) -> ReadRuns:
    """Read every run once; one that cannot be read stops no other.

    A run that is named twice, or beside the study that it is of, would count as two runs that
    agree.
    """
    stores = tuple({store.root.resolve(): store for store in stores}.values())
    names = [store.name for store in stores]
    runs, unread = [], {}
    parsed: dict[str, dict[str, Any]] = {}
    for store in stores:
        label = store.name if names.count(store.name) == 1 else str(store.root)
        try:
            runs.append(_read(store, label, parsed))
        except UserError as error:
            unread[label] = f"{error.what}{f' ({error.why})' if error.why else ''}"
    return ReadRuns(runs=tuple(runs), unread=unread)


def load_policies(runs: Sequence[ComparedRun]) -> dict[str, Policy]:
    """Every policy of the tables of some runs, by its id; those that cannot be read are left out.

    A missing one is no fault of a comparison: the report of its run names it.
    """
    found: dict[str, Policy] = {}
    for run in runs:
        for record in run.records:
            name = record.policy_id
            if name is None or name in found or "policy" not in record.outputs:
                continue
            try:
                policy = load_policy(run.store.root / record.outputs["policy"])
            except (SolversError, OSError, ValueError):
                continue
            if policy.policy_id == name:
                found[name] = policy
    return found


def pinned_layers(runs: Sequence[ComparedRun]) -> frozenset[str]:
    """Layers that every run pins, as far as runs say it.

    Pins are not in a network's fingerprint: what one run pins another may search, and there its
    bits can differ.
    """
    records = (next((r for r in run.records if r.phase == "costs"), None) for run in runs)
    pins = [frozenset(record.facts.get("pinned", ())) for record in records if record is not None]
    return frozenset.intersection(*pins) if pins else frozenset()


def _read(store: RunStore, label: str, parsed: dict[str, dict[str, Any]]) -> ComparedRun:
    view = read_journal(store.journal_path)
    records = newest_records(view)
    lacks: list[str] = []
    config = read_config(store, lacks, parsed)
    results = results_of(store.name, records)
    return ComparedRun(
        label=label,
        store=store,
        view=view,
        records=records,
        results=results,
        facts=_facts(view, records, config, results),
        config=config,
        lacks=tuple(lacks),
    )


def _facts(
    view: JournalView, records: Sequence[RunRecord], config: Mapping[str, Any], results: Results
) -> dict[str, str]:
    started = last_event(view, events.RUN_STARTED)
    data: Mapping[str, Any] = started.data if started else {}
    versions, machine = data.get("versions", {}), data.get("machine", {})
    cluster = config.get("cluster") or {}
    threads = cluster.get("threads_per_worker")
    workers = cluster.get("num_workers", UNKNOWN)
    return {
        "network": _fact(records, "costs", "fingerprint"),
        "data": _fact(records, "pretrain", "data_fingerprint"),
        "skipped images": str(len(results.skipped)),
        "seed": str(config.get("seed", UNKNOWN)),
        "accounting": str(config.get("accounting", UNKNOWN)),
        "device": results.device,
        "workers and threads": f"{workers} x {'its CPUs' if threads is None else threads}",
        "processor": f"{machine.get('processor', UNKNOWN)}, {machine.get('cores', '?')} cores",
        "torch": str(versions.get("torch", UNKNOWN)),
        "rehearsal": "yes" if config.get("rehearsal") else "no",
    }


def _fact(records: Sequence[RunRecord], phase: str, name: str) -> str:
    found = next((r.facts.get(name) for r in records if r.phase == phase), None)
    return UNKNOWN if found is None else str(found)
