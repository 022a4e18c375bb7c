"""How is a run opened for work (lock, journal, mirror, signals), and closed whatever comes?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.config import config_tree, load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.ledger import Ledger
from orchestrator.mirror_thread import MirrorThread
from orchestrator.private import close_umask, make_private
from orchestrator.redact import hider, redacted_arguments
from orchestrator.session import Session
from orchestrator.store import RunStore
from orchestrator.tracking import Mirror


@contextmanager
def attempt(
    store: RunStore,
    config: ExperimentConfig,
    *,
    quiet: bool = False,
    donors: tuple[RunStore, ...] = (),
) -> Iterator[Session]:
    """A session on a run; MLflow is brought up to date at its end.

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
        mirror = None
        if config.tracking.enabled:
            mirror = Mirror(store, config.tracking, config_tree(config))
            session.mirror = MirrorThread(mirror, lambda: journal.view)
            session.mirror.start()  # makes the schema before any worker starts
        with session.signals():
            yield session
        if mirror is not None:
            _last_sync(session, mirror)


@contextmanager
def opened_session(store: RunStore, *, quiet: bool = False) -> Iterator[Session]:
    """A session on a run that exists, with the configuration it was made with."""
    config = load_config(store.config_path).config
    with attempt(store, config, quiet=quiet) as session:
        yield session


def _last_sync(session: Session, mirror: Mirror) -> None:
    """The end of the run and its report, in a thread again: a dead server must not hold us."""
    thread = MirrorThread(mirror, lambda: session.journal.view)
    thread.start()
    outcome = thread.finish()
    session.say(f"MLflow: {mirror.open_command}")
    if outcome.error:
        lack = f"MLflow lacks {outcome.pending} records ({outcome.error})"
        session.say(f"{lack}; `mpq sync` adds them")
