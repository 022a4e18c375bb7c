"""How do people see runs in MLflow? A mirror of the journal, and the only file that knows MLflow.

One MLflow run per ``mpq run`` (the parent) and one per record (its children), each tagged with
the identity of what it shows, looked up before it is made, and stamped with the record's own
times. So replaying the whole journal any number of times adds nothing, and a mirror that was down
for a while is brought up to date by replaying. Nothing here may stop or slow a run: a fault is a
line in the outcome, and what was not mirrored stays on the list.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import events
from orchestrator.config_schema import TrackingConfig
from orchestrator.journal import JournalView
from orchestrator.mirror_state import MirrorError, exclusive, read_state, write_state
from orchestrator.records import RunRecord, State, alpha_text
from orchestrator.redact import redacted, redacted_text
from orchestrator.results import results_of
from orchestrator.runs import newest_records
from orchestrator.store import RunStore
from orchestrator.tracking_files import fit_to_show, log_files, log_run_files
from orchestrator.tracking_tables import log_results, results_table
from orchestrator.tracking_values import flat, method_metrics, milliseconds, named

_TAG_RECORD, _TAG_RUN, _TAG_KIND = "mpq.record", "mpq.run_id", "mpq.kind"
_PARENT = "run"
# Without it MLflow's pages open on tables of language-model traces.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_MAX_TEXT = 4000
# Another mirror of the same run is done within seconds; a new schema takes 5-13 s, more on NFS.
_LOCK_WAIT_S, _SCHEMA_WAIT_S = 10.0, 120.0
_STUDY_FILES = ("report.md", "report.html", "results.csv", "results.json", "figures/*")
_MLFLOW_STATUS = {
    State.FAILED: "FAILED", State.DIVERGED: "FAILED", State.TIMEOUT: "FAILED",
    State.BLOCKED: "KILLED", State.INTERRUPTED: "KILLED",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncOutcome:
    """What one replay did.

    Attributes:
        mirrored: records that MLflow has now.
        added: how many of them are new.
        pending: records that MLflow has not.
        error: why, or empty.
    """

    mirrored: int = 0
    added: int = 0
    pending: int = 0
    error: str = ""


@dataclass(slots=True)
class _Index:
    """What MLflow already has of this run.

    Attributes:
        runs: identity -> MLflow run id.
        params: names of the parent's parameters.
    """

    runs: dict[str, str] = field(default_factory=dict)
    params: frozenset[str] = frozenset()


class Mirror:
    """Replays one run's journal into MLflow."""

    def __init__(
        self, store: RunStore, tracking: TrackingConfig, config: Mapping[str, Any]
    ) -> None:
        """Point a mirror at a run.

        Args:
            store: the run.
            tracking: where MLflow is.
            config: the run's ``config_tree``.
        """
        self._store, self._tracking = store, tracking
        self._config = redacted(config)
        self._client: Any = None
        self._experiment_id = ""

    @property
    def uri(self) -> str:
        """Absolute address of the tracking store; workers with another cwd would agree on it."""
        return self._tracking.uri or f"sqlite:///{self._database}"

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment: the study."""
        return self._tracking.experiment or self._store.name

    @property
    def open_command(self) -> str:
        """What to type to look at it."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {redacted_text(self.uri)}"
        return f"mlflow ui --backend-store-uri '{redacted_text(self.uri)}'"

    @property
    def _database(self) -> Path:
        return self._store.runs_dir / "mlflow.db"

    def prepare(self) -> str:
        """Make the schema and the experiment, once; 5-13 s on a new SQLite file.

        Meant for a thread of its own while the first phase trains. Eight processes that opened a
        fresh SQLite store at once all failed, hence the lock.

        Returns:
            An error, or an empty text.
        """
        try:
            self._connect()
        except Exception as error:
            return _told(error)
        return ""

    def sync(self, view: JournalView) -> SyncOutcome:
        """Bring MLflow up to date with the journal; never raises."""
        records = view.stamped_records()
        state = read_state(self._store.root, redacted_text(self.uri))
        before = len(state.mirrored)
        error = ""
        try:
            self._connect()
            with exclusive(self._store.root / "mirror.lock", _LOCK_WAIT_S):
                state = read_state(self._store.root, redacted_text(self.uri))
                index = self._read_index(view.run_id)
                # What the server lost (a deleted database) is mirrored again.
                state.mirrored &= set(index.runs)
                if _PARENT not in index.runs:
                    state.files.clear()
                before = len(state.mirrored)
                parent = self._ensure_parent(index, view)
                for appended_utc, record in records:
                    if record.record_id not in state.mirrored:
                        self._mirror(index, parent, view.run_id, record, appended_utc)
                        state.mirrored.add(record.record_id)
                log_run_files(self._client, parent, self._store.root, state.files, self._config)
                if any(e.kind == events.RUN_FINISHED for e in view.entries):
                    self._mirror_methods(index, view)
                    results = results_of(self._store.name, newest_records(view))
                    if results.rows:
                        log_results(self._client, parent, results_table(results))
                self._end_parent(parent, view)
        except Exception as fault:
            error = _told(fault)
        try:
            if self._store.root.is_dir():
                write_state(self._store.root, state)
        except OSError as fault:
            error = error or _told(fault)
        missing = {r.record_id for _, r in records} - state.mirrored
        return SyncOutcome(
            mirrored=len(state.mirrored),
            added=len(state.mirrored) - before,
            pending=len(missing),
            error=error,
        )

    def log_study(self, name: str, columns: Mapping[str, list[str]]) -> None:
        """The study as a run: its table, its report and its figures."""
        self._connect()
        index = self._read_index(f"study/{name}")
        tags = {_TAG_RECORD: _PARENT, _TAG_RUN: f"study/{name}", _TAG_KIND: "study"}
        found = self._create(index, _PARENT, f"{name} (study)", 0, tags, {})
        log_results(self._client, found, columns)
        log_files(self._client, found, self._store.root, _STUDY_FILES, {})
        self._client.set_terminated(found, "FINISHED")

    def _connect(self) -> None:
        if self._client is not None:
            return
        # Read when MLflow is imported or a request is made; defaults retry for minutes.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        # Standard output may be JSON for a script.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        self._store.runs_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(self._store.runs_dir / "mlflow.lock", _SCHEMA_WAIT_S):
            client = MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise MirrorError(
                    f"experiment {self.experiment!r} is deleted in MLflow; restore it, or set "
                    "tracking.experiment to another name"
                )
            self._experiment_id = (
                found.experiment_id
                if found is not None
                else client.create_experiment(
                    self.experiment, self._artifact_location(), tags=_EXPERIMENT_TAGS
                )
            )
            self._client = client

    def _artifact_location(self) -> str | None:
        """Absolute folder beside a local database; a server decides for itself."""
        if self.uri.startswith(("http://", "https://")):
            return None
        return (self._store.runs_dir / "mlartifacts").as_uri()

    def _read_index(self, run_id: str) -> _Index:
        index = _Index()
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                filter_string=f"tags.`{_TAG_RUN}` = '{run_id}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                identity = run.data.tags.get(_TAG_RECORD, "")
                index.runs[identity] = run.info.run_id
                if identity == _PARENT:
                    index.params = frozenset(run.data.params)
            token = page.token
            if not token:
                return index

    def _ensure_parent(self, index: _Index, view: JournalView) -> str:
        started = next((e for e in view.entries if e.kind == events.RUN_STARTED), None)
        tags = {
            _TAG_RECORD: _PARENT, _TAG_RUN: view.run_id, "mpq.run": self._store.name,
            _TAG_KIND: "run", "mpq.seed": str(self._config.get("seed", "")),
            "mpq.method": str(self._config.get("method", "")),
        }  # fmt: skip
        start_ms = milliseconds(started.time_utc) if started else 0
        # MLflow refuses another value, and `cluster` may change between attempts; but a server that
        # died after it made the run lacks them, so what counts is what it has.
        config = {k: text for k, text in flat(self._config, "") if named(k) not in index.params}
        return self._create(index, _PARENT, self._store.name, start_ms, tags, config)

    def _mirror(
        self, index: _Index, parent: str, run_id: str, record: RunRecord, appended_utc: str
    ) -> None:
        from mlflow.entities import Metric

        # Both are in the journal, so a replay gives the same stamps.
        wall_ms = round(record.wall_s * 1000)
        end_ms = milliseconds(appended_utc)
        if record.started_utc:
            end_ms = milliseconds(record.started_utc) + wall_ms
        start_ms = end_ms - wall_ms
        tags = {
            _TAG_RECORD: record.record_id, _TAG_RUN: run_id, "mlflow.parentRunId": parent,
            _TAG_KIND: "record",
            "mpq.run": record.run, "mpq.key": record.key, "mpq.phase": record.phase,
            "mpq.method": record.method, "mpq.state": str(record.state),
            "mpq.attempt": str(record.attempt), "mpq.device": record.device,
        }  # fmt: skip
        if record.policy_id is not None:
            tags["mpq.policy_id"] = record.policy_id
        if record.message:
            tags["mpq.message"] = redacted_text(record.message)
        params = {f"limit.{kind}": value for kind, value in record.limits.items()}
        params |= {"alpha": alpha_text(record.alpha)} if record.alpha is not None else {}
        params |= {"seed": str(record.seed)} if record.seed is not None else {}
        found = self._create(index, record.record_id, record.step, start_ms, tags, params)
        values = {**record.metrics, **{f"spent/{k}": v for k, v in record.costs.items()}}
        metrics = [Metric(named(key), float(v), end_ms, 0) for key, v in values.items()]
        for start in range(0, len(metrics), 500):
            self._client.log_batch(found, metrics=metrics[start : start + 500])
        for role, relative in record.outputs.items():
            path = self._store.root / relative
            if path.is_file() and fit_to_show(path):
                self._client.log_artifact(found, str(path), role.replace(":", "-"))
        status = _MLFLOW_STATUS.get(record.state, "FINISHED")
        self._client.set_terminated(found, status, end_time=end_ms)

    def _mirror_methods(self, index: _Index, view: JournalView) -> None:
        """One run a method, with the same metric keys for all: search cost in one chart.

        Beside the parent and not below it: charts leave out what a list has folded away.
        """
        from mlflow.entities import Metric

        time_ms = milliseconds(view.entries[-1].time_utc)
        seed = str(self._config.get("seed", ""))
        methods = method_metrics(self._store.name, newest_records(view))
        for method, values in methods.items():
            tags = {
                _TAG_RECORD: f"method/{method}", _TAG_RUN: view.run_id, _TAG_KIND: "method",
                "mpq.run": self._store.name, "mpq.method": method, "mpq.seed": seed,
            }  # fmt: skip
            found = self._create(index, f"method/{method}", method, time_ms, tags, {"seed": seed})
            metrics = [Metric(named(key), float(v), time_ms, 0) for key, v in values.items()]
            self._client.log_batch(found, metrics=metrics)
            self._client.set_terminated(found, "FINISHED", end_time=time_ms)

    def _create(
        self,
        index: _Index,
        identity: str,
        name: str,
        start_ms: int,
        tags: Mapping[str, str],
        params: Mapping[str, str],
    ) -> str:
        """The MLflow run of that identity; made with its tags in one call, so never twice."""
        from mlflow.entities import Param

        found = index.runs.get(identity)
        if found is None:
            clipped = {key: value[:_MAX_TEXT] for key, value in tags.items()}
            run = self._client.create_run(
                self._experiment_id, start_time=start_ms, tags=clipped, run_name=name
            )
            found = index.runs[identity] = str(run.info.run_id)
        pairs = [Param(named(key), value[:_MAX_TEXT]) for key, value in params.items()]
        for start in range(0, len(pairs), 100):
            self._client.log_batch(found, params=pairs[start : start + 100])
        return found

    def _end_parent(self, parent: str, view: JournalView) -> None:
        last = next(
            (
                e
                for e in reversed(view.entries)
                if e.kind in (events.RUN_STARTED, events.RUN_FINISHED, events.RUN_INTERRUPTED)
            ),
            None,
        )
        if last is None or last.kind == events.RUN_STARTED:
            self._client.update_run(parent, status="RUNNING")
            return
        code = int(last.data.get("exit_code", -1))
        status = {0: "FINISHED", 3: "FINISHED"}.get(code, "FAILED")
        # Somebody stopped it, and nothing is wrong with it.
        if last.kind == events.RUN_INTERRUPTED and code in (-1, 130, 143):
            status = "KILLED"
        self._client.set_tag(parent, "mpq.exit_code", str(code))
        self._client.set_terminated(parent, status, end_time=milliseconds(last.time_utc))


def mirror_study(
    store: RunStore, tracking: TrackingConfig, name: str, columns: Mapping[str, list[str]]
) -> str:
    """Log a study's table, report and figures as a run of the study's experiment.

    ``store`` is the study's folder, taken as a run's for the place of the database; ``columns`` is
    its table. Returns an error, or an empty text.
    """
    if not tracking.enabled:
        return ""
    try:
        Mirror(store, tracking, {}).log_study(name, columns)
    except Exception as fault:
        return _told(fault)
    return ""


def _told(error: Exception) -> str:
    text = redacted_text(str(error)).splitlines()
    first = text[0] if text else ""
    # Their first line carries the whole chain of retries.
    if first.startswith("API request to") and "Max retries exceeded" in first:
        return f"no answer from {first.split()[3].partition('/api/')[0]}"
    return f"{type(error).__name__}: {first[:300]}"
