"""What does a report read of a run? Journal, configuration, policies and tables, and what lacks.

Reading changes nothing and stops at nothing but a journal that cannot be read: an output that is
missing or damaged is a line of the report, and what needs it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.compare.proxies import MeasuredPolicy
from orchestrator.errors import UserError
from orchestrator.journal import JournalView
from orchestrator.records import RunRecord, State
from orchestrator.redact import redacted
from orchestrator.results import Results, results_of
from orchestrator.runs import newest_records
from orchestrator.store import RunStore
from orchestrator.yaml_source import parse_value, parse_yaml
from solvers.errors import SolversError, TableError
from solvers.layer_statistics import load_statistics
from solvers.policy import Policy
from solvers.storage import load_costs, load_importance, load_policy
from solvers.tables import CostTable, ImportanceTable
from solvers.transforms import transform

T = TypeVar("T")
INITIAL = "initial"
# The lines of a resolved configuration in which the runs of a study differ.
_OWN_LINES = re.compile(r"^(name|seed): (.*)\n", re.MULTILINE)
# Keys that reports and comparisons look into, with what they must be.
_SHAPES: Mapping[str, tuple[type, str]] = {
    "model": (Mapping, "section"),
    "data": (Mapping, "section"),
    "cluster": (Mapping, "section"),
    "importance": (Mapping, "section"),
    "reports": (list, "list"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """One importance table of a run.

    Attributes:
        source: whose: the method that solves with it.
        label: for people: ``limpq, learned``.
        alpha: of the cells that are solved with it.
        table: its values, as they were learned.
        solved: its values as the solver reads them (``importance.transform``); None where what
            that needs is missing.
    """

    source: str
    label: str
    alpha: float
    table: ImportanceTable
    solved: ImportanceTable | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """One run as a report sees it.

    Attributes:
        store: where it is.
        view: its journal.
        config: its resolved configuration without secrets; empty when that is missing.
        records: the newest of every key.
        results: its table.
        costs: of its network, or None.
        policies: policy id -> policy, of every row.
        importance: every table, learned ones before initial ones.
        lacks: what is missing or damaged, one clause each.
    """

    store: RunStore
    view: JournalView
    config: Mapping[str, Any]
    records: Sequence[RunRecord]
    results: Results
    costs: CostTable | None
    policies: Mapping[str, Policy]
    importance: tuple[Importances, ...]
    lacks: tuple[str, ...]

    @property
    def pinned(self) -> frozenset[str]:
        """Layers that no search may change."""
        found = next((r.facts.get("pinned", ()) for r in self.records if r.phase == "costs"), ())
        return frozenset(found)

    def measured(self) -> list[MeasuredPolicy]:
        """Every trained policy with the limits it was proposed for, each training once."""
        limits: dict[str, list[str]] = {}
        trained: dict[str, MeasuredPolicy] = {}
        for row in self.results.rows:
            policy = self.policies.get(row.policy_id or "")
            if row.trained is None or row.top1 is None or policy is None:
                continue
            own = limits.setdefault(row.trained.key, [])
            if row.limits_text not in own:
                own.append(row.limits_text)
            trained.setdefault(
                row.trained.key,
                MeasuredPolicy(
                    label=f"{row.method} {row.policy_id}",
                    limits=(),
                    bits=policy.bits_by_name(),
                    top1=row.top1,
                ),
            )
        return [replace(each, limits=tuple(limits[key])) for key, each in trained.items()]


def read_inputs(
    store: RunStore,
    view: JournalView,
    known: dict[str, Policy] | None = None,
    parsed: dict[str, dict[str, Any]] | None = None,
) -> RunInputs:
    """Everything a report of one run needs.

    Args:
        store: the run.
        view: its journal.
        known: policies that other runs had; the same id is the same bits, so they are not read
            again. New ones are added.
        parsed: configurations of other runs, as ``read_config`` takes them.
    """
    records = newest_records(view)
    results = results_of(store.name, records)
    lacks: list[str] = []
    found = [_output(store, r, "costs", load_costs, lacks) for r in records if r.phase == "costs"]
    costs = next((costs for costs in found if costs is not None), None)
    config = read_config(store, lacks, parsed)
    return RunInputs(
        store=store,
        view=view,
        config=config,
        records=records,
        results=results,
        costs=costs,
        policies=_policies(store, records, {} if known is None else known, lacks),
        importance=_importance(store, records, results, _Reading(_way(config), costs), lacks),
        lacks=tuple(dict.fromkeys(lacks)),
    )


def read_config(
    store: RunStore, lacks: list[str], parsed: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The resolved configuration without secrets; keys whose values make no sense are left out.

    Args:
        store: the run.
        lacks: gets a clause when there is none, and for every key that is left out.
        parsed: configurations by their text without name and seed; the runs of a study differ in
            nothing else, and parsing is what takes the time. New ones are added.
    """
    try:
        text = store.config_path.read_text()
        own = _OWN_LINES.findall(text)
        key = _OWN_LINES.sub("", text)
        if parsed is not None and len(own) == 2 and key in parsed:
            known = {**parsed[key], **{name: parse_value(value, "") for name, value in own}}
            return _sound(known, lacks)
        tree = parse_yaml(text, str(store.config_path)).tree
    except FileNotFoundError:
        lacks.append("config.yaml is missing")
        return {}
    except (UserError, OSError, UnicodeDecodeError) as error:
        told = str(error).splitlines()
        lacks.append(f"config.yaml cannot be read: {told[0] if told else type(error).__name__}")
        return {}
    if not isinstance(tree, dict):
        lacks.append("config.yaml cannot be read: it holds no sections")
        return {}
    config = dict(redacted(tree))
    if parsed is not None:
        parsed[key] = config
    return _sound(config, lacks)


def _sound(config: dict[str, Any], lacks: list[str]) -> dict[str, Any]:
    """Without the keys that another program or a hand made something else of."""
    wrong = {key: text for key, (kind, text) in _SHAPES.items()
             if config.get(key) is not None and not isinstance(config[key], kind)}  # fmt: skip
    lacks += [f"config.yaml: {key} is no {text}" for key, text in wrong.items()]
    return {key: value for key, value in config.items() if key not in wrong}


def _policies(
    store: RunStore, records: Sequence[RunRecord], known: dict[str, Policy], lacks: list[str]
) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for record in records:
        name = record.policy_id
        if name is None or name in found or record.phase not in ("solve", "train"):
            continue
        policy = known.get(name) or _output(store, record, "policy", load_policy, lacks)
        if policy is None:
            continue
        if policy.policy_id != name:
            lacks.append(f"{record.outputs['policy']} holds policy {policy.policy_id}, not {name}")
            continue
        found[name] = known[name] = policy
    return found


@dataclass(frozen=True, slots=True)
class _Reading:
    """How the solver of a run reads its learned indicators: the transform, and its network."""

    transform: str
    costs: CostTable | None

    def __call__(
        self, store: RunStore, record: RunRecord, table: ImportanceTable, lacks: list[str]
    ) -> ImportanceTable | None:
        """The table as it is solved with; else None, and a clause in ``lacks``."""
        if self.transform == "raw":
            return table
        known = _output(store, record, "statistics", load_statistics, lacks)
        try:
            if self.costs is None:
                raise TableError("the cost table is missing")
            return transform(table, self.costs, self.transform, known or ())
        except SolversError as error:
            path = record.outputs["importance"]
            lacks.append(f"{path} cannot be read as {self.transform!r}: {error}")
            return None


def _way(config: Mapping[str, Any]) -> str:
    section = config.get("importance")
    return str(section.get("transform", "raw")) if isinstance(section, Mapping) else "raw"


def _importance(
    store: RunStore,
    records: Sequence[RunRecord],
    results: Results,
    read: _Reading,
    lacks: list[str],
) -> tuple[Importances, ...]:
    alphas: dict[str, float] = {}
    for row in results.rows:
        if row.alpha is not None:
            alphas.setdefault(row.method, row.alpha)
    first = next(iter(alphas.values()), 1.0)
    tables: list[Importances] = []
    for role, label in (("importance", "learned"), (INITIAL, INITIAL)):
        for record in records:
            # A selection's step sizes are its meta-state's, trained on: one table a method.
            if record.state is not State.DONE or record.phase in ("bit_selection", "solve"):
                continue
            table = _output(store, record, role, load_importance, lacks)
            if table is not None:
                # Only these are transformed: other tables are the solver's as they are.
                learned = record.phase == "indicators" and role != INITIAL
                source = record.method
                if record.phase == "meta":
                    source = "metamix_ilp"
                if role == INITIAL:
                    source = INITIAL if record.phase == "indicators" else f"{source} {INITIAL}"
                tables.append(
                    Importances(
                        source=source,
                        label=f"{record.method}, {label}",
                        alpha=alphas.get(source, first),
                        table=table,
                        solved=read(store, record, table, lacks) if learned else table,
                    )
                )
    return tuple(tables)


def _output(
    store: RunStore, record: RunRecord, role: str, load: Callable[[Path], T], lacks: list[str]
) -> T | None:
    """One output of a record; None when the record has none, or it is noted as lacking."""
    relative = record.outputs.get(role)
    if relative is None:
        return None
    path = store.root / relative
    if not path.is_file():
        lacks.append(f"{relative} is missing")
        return None
    try:
        return load(path)
    except (SolversError, OSError, ValueError) as error:
        told = str(error).splitlines()
        lacks.append(f"{relative} cannot be read: {told[0] if told else type(error).__name__}")
        return None
