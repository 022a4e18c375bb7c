"""Row 13: configurations, journals, checkpoints and names that are wrong, by the thousand.

Each goes through the command's entry point in this process (checkpoints, which no command reads
by itself, through the reader that a phase uses): exit code 2 and no traceback. A journal that was
cut at its end may be read, and then says nothing that was not in it.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cli import run_command
from orchestrator.errors import StoreError
from orchestrator.journal import read_journal
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from trainers.checkpoint import Checkpoints
from trainers.errors import CheckpointError

if TYPE_CHECKING:
    from fault_ledger import Ledger

QUICK = 40
SLOW = {"configs": 5000, "journals": 2500, "checkpoints": 1000, "names": 2500}
EASY = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None,
        "derandomize": True}  # fmt: skip
WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), -1), st.just(float("nan")),
    st.just(float("inf")), st.text(max_size=8), st.lists(st.integers(-3, 3), max_size=2),
    st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(), max_size=2),
)  # fmt: skip


def sizes(kind: str) -> Any:
    """A quick number of cases for ``make test``, the whole for ``make faults``."""
    return pytest.mark.parametrize(
        "count", [QUICK, pytest.param(SLOW[kind], marks=pytest.mark.slow)], ids=["quick", "all"]
    )


def base() -> dict[str, Any]:
    from conftest import FULL

    return dict(yaml.safe_load(FULL))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def changed(path: tuple[Any, ...], value: Any, how: str) -> Any:
    tree = copy.deepcopy(base())
    place = tree
    for key in path[:-1]:
        place = place[key]
    if how == "unknown key" and isinstance(place, dict):
        place[f"{path[-1]}_{value!r:.8}".replace("\n", "")] = 1
    else:
        place[path[-1]] = value
    return tree


def run_quietly(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = int(run_command(list(arguments)))
    told = capfd.readouterr()
    assert "Traceback" not in told.err + told.out
    assert "internal error" not in told.err, told.err
    return code, told.err


@sizes("configs")
def test_configurations(
    count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from orchestrator.config import load_config
    from orchestrator.errors import ConfigError
    from orchestrator.forecast import now as forecast

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "forecast", _accepted)
    tried = [0]
    file = tmp_path / "x.yaml"
    everywhere = places(base())

    @settings(max_examples=count, **EASY)
    @given(
        st.sampled_from(everywhere), WRONG, st.sampled_from(["value", "unknown key", "bytes"]),
        st.integers(0, 10**6), st.binary(min_size=1, max_size=4),
    )  # fmt: skip
    def check(path: Any, value: Any, how: str, at: int, noise: bytes) -> None:
        if how == "bytes":
            text = yaml.safe_dump(base()).encode()
            at %= len(text)
            file.write_bytes(text[:at] + noise + text[at + len(noise) :])
        else:
            file.write_text(yaml.safe_dump(changed(path, value, how)))
        try:
            config = load_config(file).config
        except ConfigError:
            code, told = run_quietly(capfd, "plan", "x.yaml")
            assert code == 2, told
            assert "x.yaml" in told
            tried[0] += 1
        else:
            # The change gave another valid file; nothing in it may be out of its range.
            assert config.seed >= 0
            assert config.cluster.num_workers >= 1
            assert config.train.lr > 0

    check()
    ledger.inject(13, "configurations", tried[0])
    ledger.survive(13, "configurations", tried[0])
    assert tried[0] > count / 3
    assert not (tmp_path / "runs").exists()


def _accepted(config: object) -> None:
    raise AssertionError("a wrong configuration was accepted")


@pytest.fixture(scope="module")
def journal_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = RunStore(tmp_path_factory.mktemp("good"), "run")
    with store.opened() as journal:
        journal.event("run_started", {"command": "mpq run x.yaml"})
        for number in range(6):
            journal.append(
                RunRecord(run="run", step=f"s{number}", key=f"k{number}", phase="train",
                          method="limpq", state=State.DONE, metrics={"eval/top1": 50.0})
            )  # fmt: skip
    return store.journal_path.read_bytes()


@sizes("journals")
def test_journals(
    count: int, tmp_path: Path, journal_bytes: bytes, capfd: pytest.CaptureFixture[str],
    ledger: Ledger,
) -> None:  # fmt: skip
    good = journal_bytes
    root = tmp_path / "runs" / "run"
    root.mkdir(parents=True)
    (root / "journal.jsonl").write_bytes(good)
    whole = read_journal(root / "journal.jsonl").entries
    tried = [0]

    @settings(max_examples=count, **EASY)
    @given(
        st.integers(0, len(good) - 1), st.binary(max_size=6), st.integers(0, 40),
        st.sampled_from(["change", "cut", "drop a line", "swap lines", "twice"]),
    )  # fmt: skip
    def check(at: int, noise: bytes, width: int, how: str) -> None:
        lines = good.splitlines(keepends=True)
        line = at % len(lines)
        if how == "cut":
            bad = good[:at]
        elif how == "drop a line":
            bad = b"".join(lines[:line] + lines[line + 1 :])
        elif how == "swap lines":
            lines[line], lines[line - 1] = lines[line - 1], lines[line]
            bad = b"".join(lines)
        elif how == "twice":
            bad = b"".join([*lines[: line + 1], lines[line], *lines[line + 1 :]])
        else:
            bad = good[:at] + noise + good[at + width :]
        if bad == good:
            return
        (root / "journal.jsonl").write_bytes(bad)
        code, told = run_quietly(capfd, "status", str(root), "--json")
        tried[0] += 1
        if code == 0:
            entries = read_journal(root / "journal.jsonl").entries
            assert entries == whole[: len(entries)]
        else:
            assert code == 2, told
            assert "journal" in told or "no run" in told
            with pytest.raises(StoreError):
                read_journal(root / "journal.jsonl")

    check()
    ledger.inject(13, "journals", tried[0])
    ledger.survive(13, "journals", tried[0])
    assert tried[0] > count / 2


@sizes("checkpoints")
def test_checkpoints(count: int, tmp_path: Path, ledger: Ledger) -> None:
    good = Checkpoints(tmp_path / "good", 0)
    good.save(1, {"model": torch.arange(40.0)}, {"buffers": torch.ones(3)})
    files = {p.name: p.read_bytes() for p in (tmp_path / "good" / "step-000000001").iterdir()}
    folder = tmp_path / "bad" / "step-000000001"
    folder.mkdir(parents=True)
    tried = [0]

    @settings(max_examples=count, **EASY)
    @given(
        st.sampled_from(sorted(files)), st.integers(0, 10**6), st.binary(max_size=5),
        st.integers(0, 9),
    )  # fmt: skip
    def check(name: str, at: int, noise: bytes, width: int) -> None:
        at %= len(files[name])
        bad = files[name][:at] + noise + files[name][at + width :]
        for each, content in files.items():
            (folder / each).write_bytes(bad if each == name else content)
        if bad == files[name] or (name == "manifest.json" and _same_json(bad, files[name])):
            return
        tried[0] += 1
        with pytest.raises(CheckpointError):
            Checkpoints(tmp_path / "bad", 0).newest()

    check()
    ledger.inject(13, "checkpoints", tried[0])
    ledger.survive(13, "checkpoints", tried[0])
    assert tried[0] > count / 2


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one)["files"] == json.loads(other)["files"])
    except (ValueError, KeyError, TypeError):
        return False


BAD_NAMES = (
    "..", "../x", "/etc/passwd", "a/b", "a\\b", "%2e%2e", "a\x00b", "", " ", ".hidden", "-x", "~",
    "a" * 129, "a" * 300, "a\u2215b", "\u202ea", "a b", "a\nb", "$(id)", "a;b", "a|b", "CON:", "a*",
)  # fmt: skip


@sizes("names")
def test_names(
    count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from conftest import FULL

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    tried = [0]

    @settings(max_examples=count, **EASY)
    @given(
        st.one_of(
            st.sampled_from(BAD_NAMES),
            st.text(min_size=1, max_size=12).map(lambda t: t + "/"),
            st.text(max_size=12).map(lambda t: "../" + t),
            st.text(min_size=1, max_size=20).filter(
                lambda t: not all(c.isascii() and (c.isalnum() or c in "._-") for c in t)
            ),
        ),
        st.booleans(),
    )
    def check(name: str, in_file: bool) -> None:
        if in_file:
            tree = dict(yaml.safe_load(FULL))
            try:
                text = yaml.safe_dump({**tree, "name": name}, allow_unicode=True)
                (tmp_path / "x.yaml").write_text(text)
            except (UnicodeEncodeError, yaml.YAMLError):
                return
            code, told = run_quietly(capfd, "plan", "x.yaml")
        else:
            if name.startswith("-") or os.path.isdir(name):
                return
            code, told = run_quietly(capfd, "status", "--", name)
        assert code == 2, (name, told)
        tried[0] += 1

    check()
    ledger.inject(13, "names", tried[0])
    ledger.survive(13, "names", tried[0])
    assert tried[0] > count / 3
    assert sorted(p.name for p in tmp_path.iterdir()) in (["runs"], ["runs", "x.yaml"])
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_fifty_real_processes(tmp_path: Path, journal_bytes: bytes, ledger: Ledger) -> None:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    everywhere = [p for p in places(base()) if isinstance(p[-1], str) and len(p) <= 2]
    everywhere = [p for p in everywhere if p[0] not in ("model", "data")]
    kind = "real processes"
    for number in range(50):
        if number % 2:
            path = everywhere[number % len(everywhere)]
            (tmp_path / "x.yaml").write_text(yaml.safe_dump(changed(path, 1, "unknown key")))
            arguments = ["plan", "x.yaml"]
        else:
            folder = tmp_path / f"run{number}"
            folder.mkdir()
            middle = len(journal_bytes) * (number + 1) // 60
            bad = bytearray(journal_bytes)
            bad[middle] ^= 1
            (folder / "journal.jsonl").write_bytes(bytes(bad))
            arguments = ["status", str(folder)]
        ledger.inject(13, kind)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=tmp_path, env=env,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        ledger.survive(13, kind)


def test_the_check_of_configurations_can_fail(tmp_path: Path) -> None:
    """Negative control: a right configuration is accepted by what the others are refused by."""
    from orchestrator.config import load_config

    (tmp_path / "x.yaml").write_text(yaml.safe_dump(base()))
    assert load_config(tmp_path / "x.yaml").config.name == "tiny"
