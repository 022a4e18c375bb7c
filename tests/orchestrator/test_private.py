"""Secrets stay out of what is written, files stay their owner's, open clusters are refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.cluster import ray_cluster
from orchestrator.config import config_tree, load_config
from orchestrator.errors import ExitCode, ResourceError, UserError
from orchestrator.open_cluster import door_of, refuse_open_cluster
from orchestrator.private import close_umask, ensure_token, make_private
from orchestrator.redact import HIDDEN, hider, redacted, redacted_arguments, redacted_text

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
    from orchestrator.records import RunRecord, State
    from orchestrator.store import RunStore

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
