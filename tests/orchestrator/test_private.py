"""Secrets stay out of what is written, files stay their owner's, open clusters are refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from orchestrator.attempts import attempt
from orchestrator.cluster import ray_cluster
from orchestrator.commands import pull, push, report, sync
from orchestrator.config import config_tree, load_config
from orchestrator.errors import ExitCode, ResourceError, UserError
from orchestrator.mirror_state import exclusive
from orchestrator.open_cluster import door_of, refuse_open_cluster
from orchestrator.pipeline import run_experiment
from orchestrator.private import close_umask, ensure_token, make_private
from orchestrator.records import RunRecord, State
from orchestrator.redact import HIDDEN, hider, redacted, redacted_arguments, redacted_text
from orchestrator.rehearsal.run import rehearse_experiment
from orchestrator.store import RunStore
from orchestrator.study import story
from tests.orchestrator.run_folders import write_run

QUICKSTART = Path(__file__).parents[2] / "configs" / "experiments" / "quickstart.yaml"
CANARY = "canary-%02d-hunter2"


def planted() -> tuple[dict[str, Any], list[str]]:
    """A configuration with a secret in each of twelve places, and the secrets."""
    c = [CANARY % number for number in range(12)]
    tree = {
        "data": {
            "path": f"s3://{c[0]}:{c[1]}@bucket/images",
            "options": {
                "api_key": c[2],
                "credentials": {"user": c[3], "list": [c[4]]},
                "url": f"https://host/x?X-Amz-Signature={c[5]}&width=3",
                "header": f"Authorization: Bearer {c[6]}",
                "dsn": f"host=db password={c[7]} user=me",
                "sas": c[8],
            },
        },
        "model": {"options": {"secret_key": c[9]}, "weights": f"https://h/w.pt?token={c[10]}"},
        "tracking": {"uri": f"https://me:{c[11]}@mlflow.example"},
    }
    return tree, c


def test_twelve_planted_secrets_are_hidden_in_the_tree() -> None:
    tree, canaries = planted()
    text = json.dumps(redacted(tree))
    assert [c for c in canaries if c in text] == []
    assert "width=3" in text
    assert "bucket/images" in text


def test_what_is_secret_is_hidden_in_anybody_s_text() -> None:
    """Somebody else's error repeats a value without the key that says what it is."""
    tree, canaries = planted()
    hide = hider(tree)
    text = "cannot log in as " + " nor ".join(canaries)
    assert not [c for c in canaries if c in hide(text)]
    assert not [c for c in canaries if c in json.dumps(hide({"deep": [{"x": text}]}))]
    # Negative control: without the configuration nothing says that these are secrets.
    assert canaries[2] in hider({})(text)


def test_counts_and_plain_words_are_kept() -> None:
    tree = {"num_tokens": 5, "tokens": "a b", "author_list": True, "lr": 0.1, "password": None}
    assert redacted(tree)["num_tokens"] == 5
    assert redacted(tree)["lr"] == 0.1


def test_nothing_that_the_experiment_file_decides_is_taken_for_a_secret() -> None:
    tree = config_tree(load_config(QUICKSTART).config)
    assert tree["indicators"]["random_pass"] == "tied"
    assert redacted(tree) == tree
    # A secret's value is hidden wherever it stands, so a plain word must not become one.
    chosen = load_config(QUICKSTART, ("indicators.random_pass=separate",)).config
    assert hider(config_tree(chosen))("learned in separate runs") == "learned in separate runs"
    assert hider({"api_key": "ab"})("a table") == "a table"


def test_a_command_line_keeps_no_secret() -> None:
    shown = redacted_arguments(
        ["run", "x.yaml", "--set", "data.options.api_key=hunter22", "--set=tracking.uri="
         "postgresql://me:hunter22@db/x", "--set", "train.lr=0.1"]
    )  # fmt: skip
    assert "hunter22" not in " ".join(shown)
    assert f"data.options.api_key={HIDDEN}" in shown
    assert "train.lr=0.1" in shown
    assert "me:" not in redacted_text("postgresql://me:hunter22@db/x")


def test_the_journal_and_the_record_keep_no_secret(tmp_path: Path) -> None:
    tree, canaries = planted()
    told = " ".join(canaries)
    store = RunStore(tmp_path, "run")
    with store.opened(hider(tree)) as journal:
        journal.event("run_started", {"command": told})
        record = RunRecord(
            run="run", step="pretrain", key="k", phase="pretrain", method="fp",
            state=State.FAILED, message=told, facts={"why": told},
        )  # fmt: skip
        journal.append(record)
        store.finish_step("pretrain", record)
    for path in store.root.rglob("*"):
        if path.is_file():
            assert not [c for c in canaries if c in path.read_text()], path


def test_a_run_is_its_owner_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o022)
    try:
        folder = tmp_path / "run"
        folder.mkdir(mode=0o755)
        make_private(folder)
        (folder / "x").write_text("x")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "x").stat().st_mode) == 0o600
        monkeypatch.setenv("MPQ_UMASK", "027")
        assert close_umask() == 0o027
        monkeypatch.setenv("MPQ_UMASK", "rw")
        with pytest.raises(UserError, match="MPQ_UMASK"):
            close_umask()
    finally:
        os.umask(before)


@pytest.fixture
def masked() -> Iterator[None]:
    """A shell that leaves everything open, and its mask again afterwards."""
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize(
    ("mask", "folder", "file", "to_lock"),
    [
        (None, 0o700, 0o600, 0o600),
        ("077", 0o700, 0o600, 0o600),
        ("027", 0o750, 0o640, 0o660),  # whoever of the group mirrors needs that lock for writing
        ("007", 0o770, 0o660, 0o660),
    ],
)
def test_the_mask_decides_who_may_read_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str | None, folder: int, file: int,
    to_lock: int,
) -> None:  # fmt: skip
    if mask is None:
        monkeypatch.delenv("MPQ_UMASK", raising=False)
    else:
        monkeypatch.setenv("MPQ_UMASK", mask)
    config = replace(load_config(QUICKSTART).config, runs_dir=str(tmp_path / "runs"))
    config = replace(config, tracking=replace(config.tracking, enabled=False))
    store = RunStore(config.runs_dir, "run")
    with attempt(store, config, quiet=True) as session:
        session.say("hello")
        record = RunRecord(run="run", step="pretrain", key="k", phase="pretrain", method="fp",
                           state=State.DONE)  # fmt: skip
        store.finish_step("pretrain", record)
        for lock in (store.root / "mirror.lock", store.runs_dir / "mlflow.lock"):
            for _ in range(2):
                with exclusive(lock, 1.0):
                    assert stat.S_IMODE(lock.stat().st_mode) == to_lock
        found = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (store.runs_dir, *store.runs_dir.rglob("*"))
        }
    assert {found.pop(name) for name in ("mirror.lock", "mlflow.lock")} == {to_lock}
    folders = {"runs", "run", "steps", "pretrain"}
    assert found == dict.fromkeys(folders, folder) | dict.fromkeys(
        ("lock", "lock.guard", "journal.jsonl", "driver.log", "record.json"), file
    )


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("mask", [None, "027"])
def test_what_is_written_later_is_as_private_as_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str | None
) -> None:
    if mask is None:
        monkeypatch.delenv("MPQ_UMASK", raising=False)
    else:
        monkeypatch.setenv("MPQ_UMASK", mask)
    file, folder = (0o600, 0o700) if mask is None else (0o640, 0o750)
    runs, copies, both = tmp_path / "runs", tmp_path / "copies", tmp_path / "both"

    def made(verb: Any, *arguments: str) -> dict[str, int]:
        """Modes of what a command made, in a shell that leaves everything open."""
        before = set(tmp_path.rglob("*"))
        os.umask(0o000)
        verb.command.main([*arguments, "--runs-dir", str(runs)], standalone_mode=False)
        fresh = set(tmp_path.rglob("*")) - before
        assert fresh
        return {str(path): stat.S_IMODE(path.stat().st_mode) for path in fresh}

    for seed in (0, 1):
        write_run(runs, f"r{seed}", seed=seed)
    told = made(report, "r0")
    told |= made(report, "r0", "r1", "--output", str(both))
    told |= made(push, "r0", str(copies))
    shutil.rmtree(runs / "r0")
    told |= made(pull, "r0", str(copies))
    # The lock must be open to whoever of the group works on the run next.
    told = {path: mode for path, mode in told.items() if "lock" not in Path(path).name}
    for path, mode in told.items():
        assert mode == (folder if Path(path).is_dir() else file), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize(("mask", "taken"), [(0o027, True), (0o077, False)])
def test_another_of_the_group_takes_the_lock_of_the_tracking_store(mask: int, taken: bool) -> None:
    with TemporaryDirectory() as folder:  # pytest's own is closed to others
        os.chmod(folder, 0o770)
        path = Path(folder) / "mlflow.lock"
        os.umask(mask)
        with exclusive(path, 1.0):
            pass
        child = os.fork()
        if child == 0:
            os.setgroups([os.getgid()])
            os.setuid(65534)
            try:
                with exclusive(path, 1.0):
                    os._exit(0)
            except PermissionError:
                os._exit(9)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if taken else 9)


class _SeenError(Exception):
    """Ends a command where it would begin to write."""


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("verb", ["run", "rehearse", "study", "sync"])
def test_nothing_is_made_before_the_mask_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.delenv("MPQ_UMASK", raising=False)
    masks: list[int] = []

    def see(*_: Any, **__: Any) -> Any:
        masks.append(os.umask(0))
        raise _SeenError

    loaded = load_config(QUICKSTART, (f"runs_dir={tmp_path}/runs",))
    if verb == "sync":
        with RunStore(tmp_path, "run").opened():
            pass
        (tmp_path / "run" / "config.yaml").write_text("{}")
        monkeypatch.setattr("orchestrator.tracking.Mirror.sync", see)
        with pytest.raises(_SeenError):
            sync.command.main(["run", "--runs-dir", str(tmp_path)], standalone_mode=False)
    elif verb == "study":
        monkeypatch.setattr(story, "RunLock", see)
        study: Any = SimpleNamespace(name="s", runs_dir=str(tmp_path), seeds=())
        with pytest.raises(_SeenError):
            story.run_whole_study(story.StudyOrder(study=study, experiments={}, quiet=True))
    elif verb == "rehearse":
        monkeypatch.setattr("orchestrator.rehearsal.run.prepare", see)
        with pytest.raises(_SeenError):
            rehearse_experiment(loaded)
    else:
        monkeypatch.setattr("orchestrator.store.RunLock", see)
        with pytest.raises(_SeenError):
            run_experiment(loaded)
        assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o700
    assert masks == [0o077]


def test_the_token_is_made_private_and_an_open_one_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "made a token" in ensure_token()
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_token() == ""
    path.chmod(0o644)
    assert "600" in ensure_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/nowhere/token")
    with pytest.raises(UserError, match="none can be written"):
        ensure_token()


class _Control(grpc.GenericRpcHandler):
    """A control store that asks for a token, or for none."""

    def __init__(self, asks: bool) -> None:
        self._asks = asks

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            told = dict(context.invocation_metadata())
            if self._asks and "authorization" not in told:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def control_store(*, asks: bool) -> Iterator[str]:
    """The address of one."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_Control(asks),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize(("asks", "expected"), [(True, "closed"), (False, "open")])
def test_a_cluster_without_a_token_is_told_from_one_with(asks: bool, expected: str) -> None:
    with control_store(asks=asks) as address:
        assert door_of(address) == expected


def test_our_token_is_not_shown_to_a_cluster_that_lets_everybody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    joined: list[str] = []

    def init(address: str, **_: object) -> None:
        joined.append(address)
        raise RuntimeError("not in this test")

    monkeypatch.setattr(ray, "init", init)
    with control_store(asks=False) as address:
        with pytest.raises(ResourceError, match="without a token"), ray_cluster(address):
            pass
        assert joined == []
        with (
            pytest.raises(ResourceError, match="not in this test"),
            ray_cluster(address, insecure=True),
        ):
            pass
    assert joined == [address]
    with (
        control_store(asks=True) as address,
        pytest.raises(ResourceError, match="not in this test"),
        ray_cluster(address),
    ):
        pass
    assert joined[1:] == [address]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "elsewhere"])
def test_our_token_is_not_shown_where_nobody_can_be_asked(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was joined"))
    with pytest.raises(ResourceError, match="cannot reach"), ray_cluster(address):
        pass


def test_an_open_or_silent_cluster_is_refused() -> None:
    refuse_open_cluster("h:1", lambda _: "closed")
    with pytest.raises(ResourceError, match="without a token") as caught:
        refuse_open_cluster("h:1", lambda _: "open")
    assert caught.value.exit_code is ExitCode.RESOURCES
    with pytest.raises(ResourceError, match="cannot be told"):
        refuse_open_cluster("h:1", lambda _: "unknown")
