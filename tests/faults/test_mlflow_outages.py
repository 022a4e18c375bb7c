"""Rows 8 and 9: the tracking server dies, sleeps or talks nonsense, and nobody waits for it.

A real ``mlflow server`` on loopback. The run is what a driver does: a record into the journal at
every step, with the mirror's thread beside it.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from forked import start_child, wait_for

from orchestrator import events
from orchestrator.config_schema import TrackingConfig
from orchestrator.journal import read_journal
from orchestrator.mirror_thread import MirrorThread
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from orchestrator.tracking import Mirror
from tests.orchestrator.mlflow_contents import contents, undisturbed, without_ids

if TYPE_CHECKING:
    from fault_ledger import Ledger

CONFIG = {"name": "run", "method": "limpq"}
STEP_S = 0.25


class Server:
    """``mlflow server`` with a database that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = os.environ.get("MPQ_POSTGRES_URI") or f"sqlite:///{folder}/server.db"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store,
             "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
             "--port", str(self.port), "--workers", "1"],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.3)
        pytest.fail("the server did not start")

    def kill(self) -> None:
        """SIGKILL of the server and of all that it started."""
        import psutil

        if self.process is not None and self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            for process in [*family, psutil.Process(self.process.pid)]:
                process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


def record(number: int) -> RunRecord:
    return RunRecord(
        run="run", step=f"train/p{number}", key=f"k{number}", phase="train", method="limpq",
        state=State.DONE, metrics={"eval/top1": float(number)}, wall_s=STEP_S,
        started_utc="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def work(
    store: RunStore, uri: str, steps: int, at: dict[int, Any], give_up_s: float = 5.0
) -> tuple[float, int]:
    """Journal a record a step; longest delay of a step by that, and what was not mirrored."""
    longest = 0.0
    with store.opened() as journal:
        journal.event(events.RUN_STARTED, {"command": "mpq run x.yaml"})
        mirror = Mirror(store, TrackingConfig(uri=uri, experiment=store.name), CONFIG)
        thread = MirrorThread(mirror, lambda: journal.view)
        thread.start()
        for number in range(steps):
            if number in at:
                threading.Thread(target=at[number], daemon=True).start()
            time.sleep(STEP_S)
            began = time.perf_counter()
            journal.append(record(number))
            thread.wake()
            longest = max(longest, time.perf_counter() - began)
        journal.event(events.RUN_FINISHED, {"exit_code": 0})
        began = time.perf_counter()
        pending = thread.finish(give_up_s).pending
        assert time.perf_counter() - began < give_up_s + 2
    return longest, pending


def assert_equal_after_sync(store: RunStore, uri: str) -> None:
    """MLflow has, after one sync, to the last tag what it has of a run that nobody disturbed."""
    view = read_journal(store.journal_path)
    mirror = Mirror(store, TrackingConfig(uri=uri, experiment=store.name), CONFIG)
    assert mirror.sync(view).error == ""
    assert mirror.sync(view).added == 0
    found = contents(uri, store.name)
    counted = Counter(str(each["tags"]["mpq.record"]) for each in found)
    assert counted == Counter([*(r.record_id for r in view.records()), "run"])
    with TemporaryDirectory() as folder:
        assert without_ids(found) == undisturbed(store, CONFIG, Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize("outage_s", [0, 20, 60])
def test_a_server_killed_in_a_run_delays_no_step_and_is_brought_up_to_date(
    tmp_path: Path, server: Server, ledger: Ledger, outage_s: int
) -> None:
    kind = f"mlflow server killed for {outage_s} s"

    def outage() -> None:
        ledger.inject(8, kind)
        server.kill()
        time.sleep(outage_s)
        server.start()

    store = RunStore(tmp_path, f"run{outage_s}-{time.time_ns()}")
    steps = int((outage_s + 25) / STEP_S)
    longest, _ = work(store, server.uri, steps, {20: outage}, give_up_s=20.0)
    assert longest < 2.0
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{server.uri}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    assert_equal_after_sync(store, server.uri)
    ledger.figure(f"MLflow server killed for {outage_s} s", f"longest delay {longest * 1e3:.0f} ms")
    ledger.survive(8, kind)


class Nonsense(socketserver.BaseRequestHandler):
    """Answers as its server says."""

    def handle(self) -> None:
        try:
            self.request.recv(65536)
            how = self.server.how  # type: ignore[attr-defined]
            if how == "sleeps":
                time.sleep(30)
            elif how == "garbage":
                self.request.sendall(b"\x00\xff not http at all\r\n\r\n")
            elif how == "html":
                body = b"<html>a login page</html>"
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                self.request.sendall(body)
            else:
                self.request.sendall(b"HTTP/1.1 %s x\r\nContent-Length: 0\r\n\r\n" % how.encode())
        except OSError:
            return


@pytest.mark.parametrize("how", ["500", "429", "403", "garbage", "html", "sleeps"])
def test_a_server_that_talks_nonsense_delays_nothing(
    tmp_path: Path, ledger: Ledger, how: str
) -> None:
    kind = f"server that answers {how}" if how != "sleeps" else "server that sleeps 30 s"
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Nonsense) as fake:
        fake.daemon_threads, fake.block_on_close = True, False
        fake.how = how  # type: ignore[attr-defined]
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        ledger.inject(8, kind)
        store = RunStore(tmp_path, "run")
        uri = f"http://127.0.0.1:{fake.server_address[1]}"
        longest, pending = work(store, uri, 8, {}, give_up_s=1.0)
        fake.shutdown()
    assert longest < 2.0
    assert pending == 8
    assert len(read_journal(store.journal_path).records()) == 8
    ledger.survive(8, kind)


@pytest.mark.slow
def test_eight_processes_that_open_a_fresh_database_at_once(tmp_path: Path, ledger: Ledger) -> None:
    kind = "eight processes on a fresh SQLite store"
    stores = [RunStore(tmp_path, f"run{n}") for n in range(8)]
    for number, store in enumerate(stores):
        with store.opened() as journal:
            journal.append(record(number))

    def mirror(store: RunStore) -> None:
        outcome = Mirror(store, TrackingConfig(), CONFIG).sync(read_journal(store.journal_path))
        assert outcome.error == "", outcome.error

    ledger.inject(9, kind)
    children = [start_child(lambda s=store: mirror(s)) for store in stores]
    assert [wait_for(child) for child in children] == [0] * 8
    ledger.survive(9, kind)


@pytest.mark.slow
def test_a_database_that_somebody_holds_is_pending_and_not_lost(
    tmp_path: Path, ledger: Ledger
) -> None:
    kind = "EXCLUSIVE lock on the SQLite file"
    store = RunStore(tmp_path, "run")
    with store.opened() as journal:
        # Without its time MLflow takes its own, and no two mirrors are equal.
        journal.event(events.RUN_STARTED, {"command": "mpq run x.yaml"})
        journal.append(record(0))
    mirror = Mirror(store, TrackingConfig(), CONFIG)
    assert mirror.sync(read_journal(store.journal_path)).error == ""
    with store.opened() as journal:
        journal.append(record(1))
    ledger.inject(9, kind)
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    held = mirror.sync(read_journal(store.journal_path))
    holder.execute("ROLLBACK")
    holder.close()
    assert held.error
    assert held.pending == 1
    assert_equal_after_sync(store, mirror.uri)
    ledger.survive(9, kind)
