"""Runs handed to a cluster, followed, found and stopped; with a made-up cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import submit
from orchestrator.cli import run_command
from orchestrator.errors import ConfigError, ResourceError, UserError
from orchestrator.follow import follow_job
from orchestrator.lock import RunLock
from orchestrator.names import known_names
from orchestrator.store import RunStore
from orchestrator.submit import Jobs, make_request

CONFIG = """\
schema: experiment/1
name: far
runs_dir: /shared/runs
model: {name: cifar_resnet8, num_classes: 10, options: {in_channels: 1}}
data: {name: parquet, path: /shared/images}
search: {limits: [{bitops_level: 3x3}]}
"""


LOG = "line 0\nline 1\nline 2\n"


class Cluster:
    """What ``JobSubmissionClient`` does, as far as it is used."""

    def __init__(self, exit_code: int = 0) -> None:
        self.jobs: list[SimpleNamespace] = []
        self.exit_code, self.num_logs = exit_code, 0
        self.files: dict[str, str] = {}

    def submit_job(self, **asked: Any) -> str:
        folder = Path(asked["runtime_env"]["working_dir"])
        self.files = {path.name: path.read_text() for path in folder.iterdir()}
        self.asked = asked
        self.jobs.append(
            SimpleNamespace(
                submission_id=asked["submission_id"], job_id=None, metadata=asked["metadata"],
                status="RUNNING", start_time=len(self.jobs), message="", driver_exit_code=None,
            )
        )  # fmt: skip
        return str(asked["submission_id"])

    def list_jobs(self) -> list[SimpleNamespace]:
        stranger = SimpleNamespace(submission_id="x", metadata=None, start_time=9)
        return [*self.jobs, stranger]

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        (job,) = [j for j in self.jobs if j.submission_id == job_id]
        return job

    def get_job_logs(self, job_id: str) -> str:
        self.num_logs += 1
        return LOG

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for line in LOG.splitlines(keepends=True):
            yield line
        self.end()

    def end(self) -> None:
        (job,) = self.jobs
        job.status = "FAILED" if self.exit_code else "SUCCEEDED"
        job.driver_exit_code = self.exit_code

    def stop_job(self, job_id: str) -> bool:
        (job,) = [j for j in self.jobs if j.submission_id == job_id]
        job.status = "STOPPED"
        return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "far.yaml"
    path.write_text(CONFIG)
    return path


def no_sleep(_: float) -> None:
    """Time is not what these tests are about."""


def _request(file: Path, *overrides: str) -> submit.Request:
    return make_request(str(file), overrides, known_names())


def test_the_file_and_the_overrides_travel(file: Path) -> None:
    cluster = Cluster()
    job = Jobs("http://h:8265", cluster).submit(_request(file, "seed=3"), "~/venv/bin/mpq")
    assert cluster.files == {"experiment.yaml": CONFIG}
    assert cluster.asked["entrypoint"] == (
        "~/venv/bin/mpq run experiment.yaml --address auto --set seed=3"
    )
    assert cluster.asked["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    assert job.run == "far"
    assert job.job_id.startswith("mpq-far-")


def test_an_override_cannot_leave_its_argument(file: Path) -> None:
    cluster = Cluster()
    Jobs("a", cluster).submit(_request(file, "tracking.experiment='x; touch /tmp/owned'"))
    assert cluster.asked["entrypoint"].endswith("""'"'"'x; touch /tmp/owned'"'"''""")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("runs_dir: /shared/runs", "runs_dir: runs"), "runs_dir is relative"),
        (("/shared/images", "images"), "data.path is relative"),
        (("search:", "cluster: {address: 'h:6379'}\nsearch:"), "cluster.address"),
        (("path: /shared/images", "path: 's3://me:hunter22@b/x'"), "holds a secret"),
    ],
)
def test_what_means_something_else_there_is_refused(
    file: Path, change: tuple[str, str], words: str
) -> None:
    file.write_text(CONFIG.replace(*change))
    with pytest.raises(UserError, match=words):
        _request(file)


TAUGHT = "search:", "train: {distillation: {model: resnet101, weights: %s}}\nsearch:"


def test_teachers_are_files_of_the_nodes_too(file: Path) -> None:
    before, after = TAUGHT
    for fine in ("/shared/teacher.pt", "torchvision", "torchvision:IMAGENET1K_V1"):
        file.write_text(CONFIG.replace(before, after % fine))
        _request(file)
    for wrong, words in (("teacher.pt", "is relative"), ("s3://b/teacher.pt", "is a URI")):
        file.write_text(CONFIG.replace(before, after % wrong))
        with pytest.raises(UserError, match=f"train.distillation.weights {words}"):
            _request(file)


def test_own_policies_are_files_of_the_nodes_too(file: Path) -> None:
    text = "policies: {mine: %s}\nsearch:"
    file.write_text(CONFIG.replace("search:", text % "/shared/policy.json"))
    _request(file)
    file.write_text(CONFIG.replace("search:", text % "policy.json"))
    with pytest.raises(UserError, match=r"policies\.mine is relative"):
        _request(file)


def test_what_is_wrong_everywhere_is_told_and_absent_files_are_not(file: Path) -> None:
    file.write_text(CONFIG.replace("cifar_resnet8", "cifar_resnet9"))
    with pytest.raises(ConfigError) as caught:
        _request(file)
    assert [p.key for p in caught.value.problems] == ["model.name"]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 3), (4, 4), (6, 6), (77, 1)])
def test_following_passes_on_the_log_and_the_exit_code(
    file: Path, code: int, expected: int
) -> None:
    cluster, said = Cluster(code), list[str]()
    jobs = Jobs("a", cluster)
    job = follow_job(jobs, jobs.submit(_request(file)).job_id, said.append, sleep=no_sleep)
    assert said == ["line 0\n", "line 1\n", "line 2\n"]
    assert int(job.code) == expected
    # The whole log is fetched at the end and not at every look.
    assert cluster.num_logs == 1


class Breaking(Cluster):
    """The line to it breaks after a part of the log, and stays broken for a while."""

    def __init__(self, num_failures: int, heard: str, why: str = "Connection refused") -> None:
        super().__init__()
        self.num_failures, self.heard, self.why = num_failures, heard, why
        self.polls = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if self.num_failures and self.polls:
            raise OSError(self.why)
        yield self.heard
        if self.num_failures:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield LOG[len(self.heard) :]
        self.end()

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        self.polls += 1
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError(self.why)
        return super().get_job_info(job_id)

    def get_job_logs(self, job_id: str) -> str:
        whole = super().get_job_logs(job_id)
        return whole if self.jobs[0].status != "RUNNING" else self.heard


class Clock:
    """Time passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("heard", ["line 0\n", "line 0\nli", LOG])
def test_a_line_that_breaks_and_comes_back_loses_and_doubles_nothing(
    file: Path, heard: str
) -> None:
    clock, said = Clock(), list[str]()
    jobs = Jobs("a", Breaking(20, heard))
    job_id = jobs.submit(_request(file)).job_id
    job = follow_job(jobs, job_id, said.append, clock.sleep, lambda: clock.now)
    assert "".join(said) == LOG
    assert int(job.code) == 0


def test_a_connection_that_is_silent_for_ever_counts_as_a_broken_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Cluster):
        def get_job_info(self, job_id: str) -> SimpleNamespace:
            told.wait()
            return super().get_job_info(job_id)

    told = threading.Event()
    jobs = Jobs("a", Silent())
    job_id = jobs.submit(_request(file)).job_id
    monkeypatch.setattr(submit, "ANSWER_WITHIN_S", 0.05)
    try:
        with pytest.raises(ResourceError, match="TimeoutError"):
            jobs.state(job_id)
    finally:
        told.set()
    assert jobs.state(job_id).job_id == job_id


def test_failures_that_are_not_in_a_row_do_not_add_up(file: Path) -> None:
    class Flaky(Breaking):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            raise OSError("no web sockets here")
            yield ""

        def get_job_info(self, job_id: str) -> SimpleNamespace:
            self.polls += 1
            if self.polls > 200:
                self.end()
            if self.polls % 20:
                raise RuntimeError("Connection refused")
            return Cluster.get_job_info(self, job_id)

    clock, said = Clock(), list[str]()
    jobs = Jobs("a", Flaky(0, "line 0\n"))
    job_id = jobs.submit(_request(file)).job_id
    follow_job(jobs, job_id, said.append, clock.sleep, lambda: clock.now)
    assert clock.now > 300
    assert said == ["line 0\n", "line 1\nline 2\n"]


def test_a_cluster_out_of_reach_for_a_minute_is_told_with_how_to_go_on(file: Path) -> None:
    clock, said = Clock(), list[str]()
    jobs = Jobs("http://h:8265", Breaking(10**6, "line 0\n"))
    job_id = jobs.submit(_request(file)).job_id
    with pytest.raises(ResourceError, match="the run goes on") as caught:
        follow_job(jobs, job_id, said.append, clock.sleep, lambda: clock.now)
    assert 60 <= clock.now < 70
    assert f"mpq logs {job_id} --address http://h:8265 --follow" in caught.value.todo
    assert caught.value.why == "Connection refused"
    assert int(caught.value.exit_code) == 6
    assert said == ["line 0\n"]


def test_a_cluster_that_says_no_is_not_asked_again(file: Path) -> None:
    clock = Clock()
    why = "Request failed with status code 404: Job x does not exist"
    jobs = Jobs("a", Breaking(10**6, "", why))
    job_id = jobs.submit(_request(file)).job_id
    with pytest.raises(ResourceError, match="404"):
        follow_job(jobs, job_id, lambda _: None, clock.sleep, lambda: clock.now)
    assert clock.now == 0


def test_a_job_is_found_by_name_or_id_and_stopped_once(file: Path) -> None:
    jobs = Jobs("a", Cluster())
    first = jobs.submit(_request(file))
    assert jobs.find("far").job_id == jobs.find(first.job_id).job_id == first.job_id
    assert jobs.stop(first.job_id)
    assert not jobs.stop(first.job_id)
    assert int(jobs.state(first.job_id).code) == 143
    with pytest.raises(UserError, match="no job of 'near'"):
        jobs.find("near")


def test_a_cluster_that_is_not_there_is_one_clear_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["submit", str(file), "--address", "http://127.0.0.1:9"]) == 6
    told = capsys.readouterr().err
    assert "does not take jobs" in told
    assert "Traceback" not in told


def test_a_cluster_that_answers_nonsense_is_told(file: Path) -> None:
    class Broken(Cluster):
        def submit_job(self, **asked: Any) -> str:
            raise RuntimeError("Request failed with status code 401: Unauthorized")

    with pytest.raises(ResourceError, match="401"):
        Jobs("a", Broken()).submit(_request(file))


# --- logs and cancel of a run in a folder ---------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs", "here")
    with store.opened() as journal:
        journal.event("run_started", {"command": "mpq run x.yaml"})
    store.log_path.write_text("".join(f"line {n}\n" for n in range(5)))
    path = store.step_dir("pretrain") / "logs" / "rank1.log"
    path.parent.mkdir(parents=True)
    path.write_text("worker\n")
    return store


def test_logs_are_read_without_a_cluster(run: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["logs", str(run.root), "-n", "2", "--follow"]) == 0
    assert capsys.readouterr().out == "line 3\nline 4\n"
    assert run_command(["logs", str(run.root), "--step", "pretrain", "--rank", "1"]) == 0
    assert capsys.readouterr().out == "worker\n"
    assert run_command(["logs", str(run.root), "--step", "pretrain"]) == 2
    assert "pretrain/logs/rank1.log" in capsys.readouterr().err
    assert run_command(["logs", str(run.root), "--step", "../../x"]) == 2
    assert run_command(["logs", "nobody", "--runs-dir", str(run.runs_dir)]) == 2


def test_cancelling_what_nobody_runs_changes_nothing(
    run: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.dumps(sorted(p.name for p in run.root.iterdir()))
    for _ in range(2):
        assert run_command(["cancel", str(run.root)]) == 0
    assert "nobody is running it" in capsys.readouterr().out
    assert json.dumps(sorted(p.name for p in run.root.iterdir())) == before


def test_cancel_asks_the_owner_and_waits_for_it(
    run: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.commands import cancel

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(cancel.os, "kill", lambda pid, number: asked.append((pid, number)))
    with RunLock(run.lock_path):
        assert run_command(["cancel", str(run.root), "--wait", "0.5"]) == 6
    assert len(asked) == 1
    assert (run.root / "stop-requested").exists()
    assert "did not end within" in capsys.readouterr().err
