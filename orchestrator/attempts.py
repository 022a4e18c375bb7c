"""How is a run opened for work (lock, journal, mirror, signals), and closed whatever comes?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator import events
from orchestrator.config import config_tree, load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import exit_code_of
from orchestrator.ledger import Ledger
from orchestrator.mirror_thread import MirrorThread
from orchestrator.private import close_umask, make_private
from orchestrator.redact import hider, redacted_arguments
from orchestrator.session import Session
from orchestrator.store import RunStore
from orchestrator.tracking import Mirror

# What an attempt that ended early waits for MLflow; a dead server takes all of it.
_EARLY_END_S = 5.0


@contextmanager
def attempt(
    store: RunStore,
    config: ExperimentConfig,
    *,
    quiet: bool = False,
    donors: tuple[RunStore, ...] = (),
) -> Iterator[Session]:
    """A session on a run; MLflow is brought up to date at its end, whatever ended it.

    Args:
        store: the run.
        config: what was asked for.
        quiet: say nothing, because standard output carries JSON.
        donors: other runs whose finished steps this one may take over.

    Raises:
        LockedError: another process runs it.
    """
    ledger = Ledger()
    close_umask()
    hide = hider(config_tree(config))
    with store.opened(hide) as journal:
        make_private(store.root)
        session = Session(
            config=config,
            store=store,
            journal=journal,
            ledger=ledger,
            command=shlex.join(["mpq", *redacted_arguments(sys.argv[1:])]),
            quiet=quiet,
            hide=hide,
            donors=donors,
        )
        if config.tracking.enabled:
            mirror = Mirror(store, config.tracking, config_tree(config))
            session.mirror = MirrorThread(mirror, lambda: journal.view)
            session.mirror.start()  # makes the schema before any worker starts
        before = len(journal.view.entries)
        with session.signals():
            try:
                yield session
            except Exception as error:
                # A second Ctrl-C is no Exception: it stops at once, perhaps amid an append.
                _end_early(session, error, before)
                raise
        _last_sync(session)


@contextmanager
def opened_session(store: RunStore, *, quiet: bool = False) -> Iterator[Session]:
    """A session on a run that exists, with the configuration it was made with."""
    config = load_config(store.config_path).config
    with attempt(store, config, quiet=quiet) as session:
        yield session


def _end_early(session: Session, error: Exception, before: int) -> None:
    """Have the journal and MLflow say that the attempt ended, in front of nothing that ended it.

    Args:
        session: the attempt.
        error: what ended it.
        before: number of entries that the journal had when the attempt began.
    """
    try:
        kinds = {entry.kind for entry in session.journal.view.entries[before:]}
        if events.RUN_STARTED in kinds and events.RUN_FINISHED not in kinds:
            data = {"signal": session.asked_to_stop, "exit_code": int(exit_code_of(error))}
            session.journal.event(events.RUN_INTERRUPTED, data)
        if kinds:  # a start that was refused has nothing to show
            _last_sync(session, _EARLY_END_S)
    except Exception as fault:
        error.add_note(f"and its end was not kept: {fault}")
    except KeyboardInterrupt:
        return  # enough of waiting; what ended the run is still to be told


def _last_sync(session: Session, timeout_s: float | None = None) -> None:
    """The end of the run and its report; a dead server must not hold us."""
    if session.mirror is None:
        return
    outcome = session.mirror.finish(timeout_s)
    session.say(f"MLflow: {session.mirror.open_command}")
    if outcome.error:
        lack = f"{outcome.pending} records" if outcome.pending else "the end of this run"
        session.say(f"MLflow lacks {lack} ({outcome.error}); `mpq sync` adds what is missing")
