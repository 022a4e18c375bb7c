from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import click
import pytest

from orchestrator import cli, errors
from orchestrator.checkup import FLOORS, checkup
from orchestrator.errors import ExitCode, UserError
from orchestrator.redact import redacted, redacted_text
from solvers.errors import LimitError, SolverFailedError
from trainers.errors import DataError, DivergedError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ROOT / "orchestrator" / "commands"


def _mpq(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        capture_output=True, text=True, cwd=cwd or ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_every_command_file_is_a_verb_with_a_command() -> None:
    files = {p.stem for p in COMMANDS.glob("*.py")} - {"__init__"}
    assert files <= set(cli.VERBS)
    for verb in files:
        command = importlib.import_module(f"orchestrator.commands.{verb}").command
        assert isinstance(command, click.Command)
        assert command.help or command.callback.__doc__


def test_help_lists_the_verbs_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom orchestrator.cli import run_command\n"
        "code = run_command(['--help'])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pydantic', 'yaml', 'numpy', 'pyarrow', 'matplotlib',\n"
        "         'pulp', 'rich', 'pandas'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert "heavy: []" in done.stdout
    for verb in ("run", "status", "report", "compare", "doctor"):
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("what"), 2),
        (errors.LockedError("what"), 4),
        (errors.DriftError("what"), 5),
        (errors.ResourceError("what"), 6),
        (errors.InterruptedRunError("what"), 130),
        (errors.TerminatedRunError("what"), 143),
        (LimitError("what"), 2),
        (DataError("what"), 2),
        (DivergedError("what"), 3),
        (SolverFailedError("what"), 1),
        (OSError(28, "what: no space left on device", "/some/file"), 6),
        (KeyboardInterrupt(), 130),
        (click.UsageError("what"), 2),
    ],
)
def test_every_error_is_one_message_and_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_invoke", fail)
    assert cli.run_command([]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert "what" in shown.err or "interrupted" in shown.err


def test_a_defect_is_told_in_short_and_kept_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: list[str]) -> None:
        raise ZeroDivisionError("odd\nsecond line")

    monkeypatch.setattr(cli, "_invoke", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.run_command([]) == ExitCode.INTERNAL
    shown = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: odd\n" in shown
    (kept,) = tmp_path.iterdir()
    assert str(kept) in shown
    assert "Traceback" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


def test_exit_codes_of_commands_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_invoke", lambda _: ExitCode.INCOMPLETE)
    assert cli.run_command([]) is ExitCode.INCOMPLETE
    monkeypatch.setattr(cli, "_invoke", lambda _: None)
    assert cli.run_command([]) is ExitCode.DONE


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["statsu"], "did you mean status?"),
        (["status", "none"], "there is no run 'none'"),
        (["status", "../x"], "is no run name"),
        (["report"], "Missing argument"),
        (["run", "none.yaml"], "No such file"),
        (["status", "--nonsense"], "No such option"),
    ],
)
def test_mistakes_on_the_command_line_end_with_2(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    done = _mpq(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_runs_should_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.store import RunStore

    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OSError, match="Not a directory"), RunStore(tmp_path / "runs", "a").opened():
        pass
    assert cli.run_command(["status", "a", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "there is no run 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"{", b"- 1", b"schema: experiment/9\n"])
def test_files_that_are_no_experiments_end_with_2(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    assert cli.run_command(["status", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_status_lists_runs_as_json(tmp_path: Path) -> None:
    from orchestrator.store import RunStore

    with RunStore(tmp_path, "a").opened() as journal:
        journal.event("run_started", {"command": "mpq run a.yaml"})
    done = _mpq("status", "--runs-dir", str(tmp_path), "--json")
    assert [each["name"] for each in json.loads(done.stdout)] == ["a"]
    one = json.loads(_mpq("status", "a", "--runs-dir", str(tmp_path), "--json").stdout)
    assert (one["state"], one["resume"]) == ("interrupted", "mpq run a.yaml")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "doctor"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors_shown = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert errors_shown == b""


_WORK = """
import sys
from pathlib import Path
from rich.console import Console
from orchestrator import cli
from orchestrator.errors import ExitCode, UserError

def work(_):
    if sys.argv[2] == "compare":
        Console().print("a table")
    for line in range(3):
        print(line, flush=True)
        print(line, file=sys.stderr, flush=True)
        Console().print(line)
    Path(sys.argv[1]).write_text("done")
    if sys.argv[3:]:
        raise UserError("what")
    return ExitCode.INCOMPLETE

cli._invoke = work
cli.main([sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("arguments", "code", "is_done"),
    [
        (["run"], 3, True),
        (["study"], 3, True),
        (["run", "fail"], 2, True),
        (["status"], 0, False),
        (["compare"], 0, False),
    ],
)
def test_a_reader_that_leaves_ends_no_work_and_hides_no_exit_code(
    tmp_path: Path, arguments: list[str], code: int, is_done: bool
) -> None:
    done = tmp_path / "done"
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK, str(done), *arguments], stdout=write, stderr=write, cwd=ROOT
    )
    os.close(write)
    os.close(read)
    assert process.wait() == code
    assert done.exists() == is_done


def test_user_errors_say_what_where_why_and_what_to_do_and_survive_pickling() -> None:
    for kind in vars(errors).values():
        if (
            isinstance(kind, type)
            and issubclass(kind, UserError)
            and kind is not errors.ConfigError
        ):
            error = kind("what happened", "a place", "a reason", "a deed")
            again = pickle.loads(pickle.dumps(error))
            assert str(again) == str(error)
            assert [part in str(error) for part in ("a place", "a reason", "a deed")] == [True] * 3
            assert again.exit_code == kind.exit_code


def test_doctor_finds_this_machine_fit_and_names_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = {check.name: check.grade for check in checkup(str(tmp_path / "runs"))}
    assert all(grades[name] == "ok" for name in FLOORS)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setitem(FLOORS, "torch", ("99", "of the test"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = {check.name: check for check in checkup(str(tmp_path))}
    assert (found["torch"].grade, found["RAY_AUTH_MODE"].grade) == ("fail", "warn")
    assert "torch >= 99: of the test" in found["torch"].advice


def test_floors_of_doctor_are_those_of_the_project() -> None:
    lines = [line.strip() for line in (ROOT / "pyproject.toml").read_text().splitlines()]
    for name, (floor, _) in FLOORS.items():
        (declared,) = [line for line in lines if line.startswith((f'"{name}>', f'"{name}['))]
        assert f">={floor}" in declared


def test_secrets_are_hidden_and_counts_are_not() -> None:
    tree = {
        "num_tokens": 5, "auth_token": "x", "options": {"aws_secret_access_key": "x", "lr": 1},
        "path": "s3://user:pw@bucket/a", "list": ["https://h/?sig=abc&x=1"], "password": ["x"],
    }  # fmt: skip
    assert redacted(tree) == {
        "num_tokens": 5, "auth_token": "(hidden)",
        "options": {"aws_secret_access_key": "(hidden)", "lr": 1}, "path": "s3://bucket/a",
        "list": ["https://h/?sig=(hidden)&x=1"], "password": "(hidden)",
    }  # fmt: skip
    assert redacted_text("no user info in a@b.c") == "no user info in a@b.c"
