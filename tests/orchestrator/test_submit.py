"""Runs handed to a cluster, followed, found and stopped; with a made-up cluster."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import submit
from orchestrator.cli import run_command
from orchestrator.errors import ConfigError, ResourceError, UserError
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


class Cluster:
    """What ``JobSubmissionClient`` does, as far as it is used."""

    def __init__(self, exit_code: int = 0) -> None:
        self.jobs: list[SimpleNamespace] = []
        self.exit_code, self.polls = exit_code, 0
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
        self.polls += 1
        if self.polls == 3 and job.status == "RUNNING":
            job.status = "FAILED" if self.exit_code else "SUCCEEDED"
            job.driver_exit_code = self.exit_code
        return job

    def get_job_logs(self, job_id: str) -> str:
        return "".join(f"line {n}\n" for n in range(self.polls))

    def stop_job(self, job_id: str) -> bool:
        (job,) = [j for j in self.jobs if j.submission_id == job_id]
        job.status = "STOPPED"
        return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "far.yaml"
    path.write_text(CONFIG)
    return path


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


def test_what_is_wrong_everywhere_is_told_and_absent_files_are_not(file: Path) -> None:
    file.write_text(CONFIG.replace("cifar_resnet8", "cifar_resnet9"))
    with pytest.raises(ConfigError) as caught:
        _request(file)
    assert [p.key for p in caught.value.problems] == ["model.name"]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 3), (4, 4), (6, 6), (77, 1)])
def test_following_passes_on_the_log_and_the_exit_code(
    file: Path, code: int, expected: int
) -> None:
    jobs, said = Jobs("a", Cluster(code)), list[str]()
    job = jobs.follow(jobs.submit(_request(file)).job_id, said.append, sleep=lambda _: None)
    assert "".join(said) == "line 0\nline 1\nline 2\n"
    assert int(job.code) == expected


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
