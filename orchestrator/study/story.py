"""The story of a study, from a checked file to one table: expand, run what is missing, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.config import LoadedConfig
from orchestrator.errors import ExitCode, StoreError
from orchestrator.lock import RunLock
from orchestrator.private import close_umask
from orchestrator.redact import redacted_text
from orchestrator.store import RunStore
from orchestrator.study.config import Study
from orchestrator.study.report import write_study_report
from orchestrator.study.results import COLUMNS, StudyTable, study_cells
from orchestrator.study.store import StudyStore, find_study, keep_study, study_folder
from orchestrator.study.trials import exit_code, pending_seeds, run_study
from orchestrator.tracking import mirror_study
from orchestrator.tracking_tables import by_column

_STOPPED = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOrder:
    """What the person asked for.

    Attributes:
        study: the checked file.
        experiments: seed -> experiment file and configuration.
        address: of a running cluster, or None.
        reuse: studies whose runs of the same seed may give finished steps.
        quiet: say nothing, because standard output carries JSON.
    """

    study: Study
    experiments: Mapping[int, tuple[str, LoadedConfig]]
    address: str | None = None
    reuse: tuple[str, ...] = ()
    quiet: bool = False


def run_whole_study(order: StudyOrder) -> tuple[StudyTable, StudyStore, ExitCode]:
    """Run a study, or go on with it.

    Returns:
        Its table, its folder, and what the command ends with: that of a stop, else 3 when a seed
        lacks anything, else 0.

    Raises:
        UserError: refused, or out of resources.
    """
    study, began = order.study, time.perf_counter()

    def say(text: str) -> None:
        if not order.quiet:
            print(f"[{time.perf_counter() - began:7.1f} s] {text}", flush=True)

    reuse = _donors(order)
    close_umask()
    with RunLock(study_folder(study) / "lock"):
        # Under the lock: a start that is refused leaves the files of the one that goes on.
        store = keep_study(study, order.experiments)
        pending = [seed for seed in pending_seeds(store) if seed in order.experiments]
        told: dict[int, int] = {}
        say(f"study {study.name} in {store.root}: {len(study.seeds)} runs, {len(pending)} to do")
        if pending:
            first = order.experiments[pending[0]][1].config
            cluster = first.cluster
            if order.address is not None:
                cluster = replace(cluster, address=order.address)
            told = run_study(
                store, pending, study_file=str(study.path), cluster=cluster, say=say, reuse=reuse
            )
        for seed, code in sorted(told.items()):
            if code not in (0, 3):
                log = store.log_path(seed)
                say(f"seed {seed} ended with exit code {code}; what it said is in {log}")
        stores = [store.store(seed) for seed in sorted(store.runs)]
        table = write_study_report(study.name, store.runs, stores, store.root)
        tracking = next(iter(order.experiments.values()))[1].config.tracking
        columns = by_column(COLUMNS, [study_cells(row) for row in table.rows])
        folder = RunStore(store.runs_dir, store.name)
        error = mirror_study(folder, tracking, study.name, columns)
        if error:
            say(f"MLflow lacks the study's table: {redacted_text(error)}")
    return table, store, _ended(store, told)


def _donors(order: StudyOrder) -> dict[int, tuple[str, ...]]:
    found: dict[int, list[str]] = {seed: [] for seed in order.study.seeds}
    for text in order.reuse:
        donor = find_study(text, order.study.runs_dir)
        if donor is None:
            raise StoreError(f"there is no study {text!r}", order.study.runs_dir,
                             todo="give a study's name, folder or file")  # fmt: skip
        for seed in order.study.seeds:
            if seed in donor.runs and donor.store(seed).exists():
                found[seed].append(str(donor.store(seed).root))
    return {seed: tuple(runs) for seed, runs in found.items()}


def _ended(store: StudyStore, told: Mapping[int, int]) -> ExitCode:
    for code in told.values():
        if code in _STOPPED:
            return ExitCode(code)
    done = all(exit_code(store, seed) == ExitCode.DONE for seed in store.runs)
    return ExitCode.DONE if done else ExitCode.INCOMPLETE
