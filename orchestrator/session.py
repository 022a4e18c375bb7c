"""Everything one attempt at a run holds while it is going: store, journal, ledger, stop request."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

from orchestrator import events
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import InterruptedRunError, TerminatedRunError
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger
from orchestrator.mirror_thread import MirrorThread
from orchestrator.plan import Step
from orchestrator.provenance import library_versions
from orchestrator.records import RunRecord
from orchestrator.store import RunStore
from trainers.messages import STOP_FILE


@dataclass(kw_only=True)
class Session:
    """One attempt.

    Attributes:
        config: what was asked for.
        store: the run's folder.
        journal: open for appending.
        ledger: where the wall time goes.
        command: what to type to go on.
        mirror: brings MLflow up to date in the background; None when tracking is off.
        quiet: say nothing, because standard output carries JSON.
        donors: other runs whose finished steps this one may take over.
        hide: takes secrets out of what is told.
        asked_to_stop: number of the signal that asked, 0 for none.
    """

    config: ExperimentConfig
    store: RunStore
    journal: Journal
    ledger: Ledger
    command: str
    mirror: MirrorThread | None = None
    quiet: bool = False
    donors: tuple[RunStore, ...] = ()
    hide: Callable[[Any], Any] = lambda value: value
    asked_to_stop: int = 0
    _began: float = field(default_factory=time.perf_counter)

    def say(self, text: str) -> None:
        """One line for the person who waits, and for ``mpq logs``, without secrets."""
        text = str(self.hide(text))
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with self.store.log_path.open("a") as log:
            log.write(f"{stamp} {text}\n")
        if not self.quiet:
            print(f"[{time.perf_counter() - self._began:7.1f} s] {text}", flush=True)

    def stamped(self, record: RunRecord) -> RunRecord:
        """The record with what decided it besides the configuration, and when it began."""
        began = datetime.now(UTC) - timedelta(seconds=record.wall_s)
        return replace(
            self._marked(record),
            versions=library_versions(),
            started_utc=began.isoformat(timespec="milliseconds"),
        )

    def keep(self, record: RunRecord) -> None:
        """Put a record into the journal; one that is there already changes nothing."""
        self.journal.append(self._marked(record))
        if self.mirror is not None:
            self.mirror.wake()

    def _marked(self, record: RunRecord) -> RunRecord:
        """A rehearsal says so in every record: its figures mean nothing."""
        if not self.config.rehearsal:
            return record
        return replace(record, facts={**record.facts, "rehearsal": True})

    @property
    def starts(self) -> int:
        """How often the run was started before."""
        return sum(e.kind == events.RUN_STARTED for e in self.journal.view.entries)

    def attempts(self, step: Step) -> int:
        """The number of this attempt at a step, from 1."""
        before = sum(
            entry.kind == events.STEP_STARTED and entry.data.get("step") == step.name
            for entry in self.journal.view.entries
        )
        return int(before) + 1

    def stop_if_asked(self) -> None:
        """End the run here if a signal asked for it.

        Raises:
            InterruptedRunError: SIGINT.
            TerminatedRunError: SIGTERM.
        """
        if not self.asked_to_stop and (self.store.root / STOP_FILE).exists():
            self.asked_to_stop = signal.SIGTERM  # `mpq cancel`, perhaps from another node
        if not self.asked_to_stop:
            return
        kind = TerminatedRunError if self.asked_to_stop == signal.SIGTERM else InterruptedRunError
        raise kind(
            "the run was asked to stop and has stopped",
            str(self.store.root),
            "finished steps and checkpoints are kept",
            f"go on with: {self.command}",
        )

    @contextmanager
    def signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: ask the workers to checkpoint. Second: stop at once."""
        stop_file = self.store.root / STOP_FILE
        stop_file.unlink(missing_ok=True)

        def ask(number: int, _: FrameType | None) -> None:
            if self.asked_to_stop:
                raise KeyboardInterrupt
            self.asked_to_stop = number
            stop_file.touch()
            name = signal.Signals(number).name
            print(
                f"\n{name}: stopping at the next checkpoint; once more stops at once.\n"
                f"go on later with: {self.command}",
                file=sys.stderr,
                flush=True,
            )

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            stop_file.unlink(missing_ok=True)
