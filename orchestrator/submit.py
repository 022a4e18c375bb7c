"""How does an experiment reach a cluster from a laptop? As a Ray job whose driver is ``mpq run``.

The experiment file travels, checked; code, images and the runs folder are on the cluster
already. Job submission is the only part of Ray used here, over HTTP with the token, so no cluster
has to be joined and the laptop may be closed.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from orchestrator.config import KnownNames, load_config
from orchestrator.config_types import MOUNTED, is_published
from orchestrator.errors import ConfigError, ExitCode, ResourceError, UserError
from orchestrator.private import ensure_token
from orchestrator.redact import redacted_text, secrets_of
from orchestrator.yaml_source import parse_value, read_yaml

FILE = "experiment.yaml"
_RUN_KEY = "mpq_run"
# `mpq run` saves a checkpoint when it is asked to stop; Ray kills after 3 s by default.
STOP_WAIT_S = 120
_PATHS = ("data.path", "model.weights")
_TEACHER = "distillation.weights"
_POLICIES = "policies."
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's client itself would wait for ever on a connection whose middle is gone.
ANSWER_WITHIN_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One submitted run.

    Attributes:
        job_id: Ray's submission id.
        run: name of the run.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: of ``mpq run``, once it ended by itself.
        message: what Ray says about it.
    """

    job_id: str
    run: str
    status: str
    exit_code: int | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in _ENDED

    @property
    def code(self) -> ExitCode:
        """What the shell gets to see."""
        if self.status == "SUCCEEDED":
            return ExitCode.DONE
        if self.status == "STOPPED":
            return ExitCode.TERMINATED
        known = {int(code) for code in ExitCode}
        return ExitCode(self.exit_code) if self.exit_code in known else ExitCode.INTERNAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A run to hand over.

    Attributes:
        name: of the run.
        text: the experiment file.
        overrides: ``--set`` texts, for the command on the head.
    """

    name: str
    text: str
    overrides: tuple[str, ...]


def make_request(path: str, overrides: tuple[str, ...], names: KnownNames) -> Request:
    """Check a configuration as far as it can be checked away from the cluster.

    Files that only the nodes see cannot be looked at here; the head does, before it starts.

    Raises:
        ConfigError: something else is wrong in it.
        UserError: it would mean something else on the cluster.
    """
    try:
        load_config(path, overrides, names)
    except ConfigError as error:
        here = tuple(p for p in error.problems if not _on_nodes(p.key))
        if here:
            raise ConfigError(here) from error
    tree = overridden(read_yaml(path).tree, overrides)
    _refuse_local(tree)
    return Request(name=str(tree["name"]), text=Path(path).read_text(), overrides=overrides)


def overridden(tree: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The few keys that matter here, with ``--set`` applied; ``load_config`` checked both."""
    found: dict[str, Any] = {**tree}
    for text in overrides:
        key, _, value = text.partition("=")
        place = found
        *sections, last = key.split(".")
        for section in sections:
            place[section] = dict(place.get(section) or {})
            place = place[section]
        place[last] = parse_value(value, "--set")
    return found


def _refuse_local(tree: Mapping[str, Any]) -> None:
    faults = []
    if not Path(str(tree.get("runs_dir", "runs"))).is_absolute():
        faults.append("runs_dir is relative: give the folder that every node sees")
    for key, value in _texts(tree):
        if not _on_nodes(key):
            continue
        if "://" in value:
            faults.append(f"{key} is a URI: give {MOUNTED}")
        elif not Path(value).is_absolute() and not is_published(value):
            faults.append(f"{key} is relative: give the path on the nodes")
    if dict(tree.get("cluster") or {}).get("address") not in (None, "auto"):
        faults.append("cluster.address is set: a job joins the cluster that it runs on")
    if secrets_of(tree):
        faults.append("it holds a secret, which the cluster's dashboard would show")
    if faults:
        raise UserError("this configuration cannot be submitted", "", "; ".join(faults),
                        "mend it, or give the keys with --set")  # fmt: skip


def _on_nodes(key: str) -> bool:
    """Whether the value of a key is a file that only the nodes need to see."""
    return key in _PATHS or key.endswith(_TEACHER) or key.startswith(_POLICIES)


def _texts(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text below a part of the tree, with its dotted key."""
    if isinstance(part, str):
        yield key, part
    elif isinstance(part, Mapping):
        for name, each in part.items():
            yield from _texts(each, f"{key}.{name}" if key else str(name))
    elif isinstance(part, list | tuple):
        for index, each in enumerate(part):
            yield from _texts(each, f"{key}.{index}")


class Jobs:
    """Runs on one cluster, submitted, watched and stopped over HTTP.

    Args:
        address: of the cluster's dashboard, ``http://host:8265``.
    """

    def __init__(self, address: str, client: Any = None) -> None:
        self.address = address
        self._client = client if client is not None else _client(address)

    def submit(self, request: Request, command: str = "mpq") -> Job:
        """Hand a run over; returns at once.

        Args:
            request: what to run.
            command: how ``mpq`` is called on the head.

        Raises:
            ResourceError: the cluster does not take it.
        """
        with TemporaryDirectory(prefix="mpq-submit-") as folder, self._told():
            (Path(folder) / FILE).write_text(request.text)
            given = [part for text in request.overrides for part in ("--set", text)]
            arguments = shlex.join(["run", FILE, "--address", "auto", *given])
            job_id = self._client.submit_job(
                entrypoint=f"{command} {arguments}",
                submission_id=f"mpq-{request.name[:80]}-{time.time_ns() // 1_000_000:x}",
                metadata={_RUN_KEY: request.name},
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                },
            )
        return Job(job_id=str(job_id), run=request.name, status="PENDING")

    def all(self) -> tuple[Job, ...]:
        """Every run that was submitted to the cluster, newest last."""
        with self._told():
            listed = _in_time(self._client.list_jobs)
        found = [j for j in listed if _RUN_KEY in (j.metadata or {})]
        return tuple(_job(j) for j in sorted(found, key=lambda j: j.start_time or 0))

    def find(self, text: str) -> Job:
        """The job of that id, or the newest one of a run of that name.

        Raises:
            UserError: there is none.
        """
        jobs = self.all()
        for job in reversed(jobs):
            if text in (job.job_id, job.run):
                return job
        known = ", ".join(f"{j.run} ({j.job_id})" for j in jobs[-10:]) or "none"
        raise UserError(f"no job of {text!r}", self.address, f"jobs there: {known}",
                        "give a run's name or a job's id")  # fmt: skip

    def state(self, job_id: str) -> Job:
        """How it stands now."""
        with self._told():
            return _job(_in_time(lambda: self._client.get_job_info(job_id)))

    def log(self, job_id: str) -> str:
        """Everything its driver wrote so far; there after it ended or was stopped, too."""
        with self._told():
            return str(self._client.get_job_logs(job_id))

    def stream(self, job_id: str) -> AsyncIterator[str]:
        """What its driver writes, from the beginning, as it comes; ends with the job."""
        found: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        return found

    def stop(self, job_id: str) -> bool:
        """Ask the run to save and end; false when it had ended before."""
        if self.state(job_id).ended:
            return False
        with self._told():
            return bool(self._client.stop_job(job_id))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError, OSError) as error:
            raise _unreachable(self.address, error) from error


def _in_time(ask: Callable[[], T]) -> T:
    """The answer to a question, or ``TimeoutError``; then a thread is left that waits on."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(ANSWER_WITHIN_S)


def _client(address: str) -> Any:
    ensure_token()
    from orchestrator.cluster import set_environment

    set_environment()
    from ray.job_submission import JobSubmissionClient

    # It tells the terminal of every stream that ended.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # Ray raises what its HTTP library raises, and its own
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ResourceError:
    lines = redacted_text(str(error)).splitlines() or [type(error).__name__]
    return ResourceError(
        "the cluster does not take jobs", redacted_text(address), lines[0][:300],
        "give the dashboard's address, http://host:8265 (through ssh: docs/cluster.md), and the "
        "cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token",
    )  # fmt: skip


def _job(details: Any) -> Job:
    return Job(
        job_id=str(details.submission_id or details.job_id),
        run=str((details.metadata or {}).get(_RUN_KEY, "")),
        status=str(getattr(details.status, "value", details.status)),
        exit_code=getattr(details, "driver_exit_code", None),
        message=redacted_text(str(details.message or "")),
    )
