"""Faults on purpose: what is counted, and how commands are started and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from fault_ledger import Ledger  # noqa: E402
from forked import Phases  # noqa: E402

from orchestrator.records import State  # noqa: E402
from solvers.storage import load_costs  # noqa: E402
from solvers.tables import CostTable  # noqa: E402

LEDGER = Ledger()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the counts where ``make faults`` picks them up."""
    path = os.environ.get("MPQ_FAULTS_OUT")
    if path and LEDGER.injected:
        LEDGER.save(Path(path))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many, in one line."""
    if LEDGER.injected:
        n, ok = sum(LEDGER.injected.values()), sum(LEDGER.survived.values())
        terminalreporter.write_line(f"faults: {ok} of {n} survived")


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return LEDGER


# About 40 s of work in all where nothing else runs; most of it waits for Ray.
CONFIG = """\
schema: experiment/1
name: tiny
seed: 3
method: uniform
model: {name: cifar_resnet8, num_classes: 10, options: {in_channels: 1, base_width: 8}}
data: {name: digits}
bits: {weight: [2, 3, 4], act: [2, 3, 4]}
cluster:
  num_workers: 2
  cpus_per_worker: 0.5
  threads_per_worker: 1
  retries: {infrastructure: 40, first_wait_s: 0}
pretrain: {epochs: 12, batch_size: 64, lr: 0.1}
search:
  limits: [{bitops_level: 2x2}, {bitops_level: 3x3}]
train: {epochs: 2, batch_size: 64, lr: 0.02, warmup_epochs: 0, bn_reestimate_images: 128}
controls: [uniform]
tracking: {enabled: false}
"""

# The same with LIMPQ's search, for faults in every kind of phase.
FULL = CONFIG.replace("method: uniform", "method: limpq").replace(
    "search:", "indicators: {epochs: 12, batch_size: 64, lr: 0.01, fraction: 0.5}\nsearch:\n"
    "  alphas: [1.0]"
)  # fmt: skip


class Command:
    """``mpq`` in a folder of its own, with faults if there is a plan."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(config)
        self.plan = folder / "plan.json"
        self.env = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PWD": str(folder),
        }  # fmt: skip

    def with_faults(self, faults: list[dict[str, Any]]) -> None:
        self.plan.write_text(json.dumps(faults))
        self.env["MPQ_FAULT_PLAN"] = str(self.plan)
        self.env["PYTHONPATH"] = f"{HERE / 'inject'}{os.pathsep}{ROOT}"

    @property
    def fired(self) -> int:
        return len(list(self.folder.glob("plan.json.fired-*")))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.log = self.folder / f"output-{time.time_ns()}.txt"
        with self.log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=self.folder,
                env=self.env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self, process: subprocess.Popen[bytes], timeout_s: float = 1200) -> int:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"not over after {timeout_s} s:\n{self.output[-3000:]}")

    def run(self, *arguments: str, timeout_s: float = 1200) -> int:
        return self.wait(self.start(*arguments), timeout_s)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "tiny"

    def journal(self) -> list[dict[str, Any]]:
        path = self.root / "journal.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def records(self) -> list[dict[str, Any]]:
        return [entry["data"] for entry in self.journal() if entry["kind"] == "record"]

    def until(
        self, process: subprocess.Popen[bytes], condition: Any, timeout_s: float = 600
    ) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            if process.poll() is not None:
                pytest.fail(f"ended early with {process.returncode}:\n{self.output[-3000:]}")
            time.sleep(0.05)
        process.kill()
        pytest.fail(f"waited for nothing:\n{self.output[-3000:]}")

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started in this folder, Ray's processes included."""
        found = []
        for process in psutil.process_iter(["environ", "pid", "status"]):
            inside = (process.info["environ"] or {}).get("PWD", "") == str(self.folder)
            if inside and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def assert_no_orphans(self, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while self.processes():
            if time.monotonic() > deadline:
                pytest.fail(f"left behind: {[p.cmdline()[:4] for p in self.processes()]}")
            time.sleep(0.3)

    def results(self) -> dict[str, Any]:
        """What no fault may change: states, policies, accuracies and weights by key."""
        found = {}
        for record in self.records():
            # The trainings together have a record only where they were blocked before, to take that
            # back. Each of them has its own.
            if not State(record["state"]).final or record["phase"] == "weight_training":
                continue
            weights = record["outputs"].get("weights")
            digest = ""
            if weights:
                from trainers.checkpoint import load_tensors, state_hash

                digest = state_hash(load_tensors(self.root / weights))
            found[record["key"]] = (
                record["state"], record["policy_id"], record["metrics"].get("eval/top1"), digest,
            )  # fmt: skip
        return found

    def assert_sound(self, undisturbed: dict[str, Any]) -> None:
        """Nothing lost, nothing twice, every number the same, no torn file left."""
        entries = self.journal()
        assert [e["seq"] for e in entries] == list(range(len(entries)))
        final = [r["key"] for r in self.records() if State(r["state"]).final]
        assert max(Counter(final).values()) == 1
        assert self.results() == undisturbed
        assert not list(self.root.rglob(".tmp-*"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the same run without a fault."""
    command = Command(tmp_path_factory.mktemp("undisturbed"))
    code = command.run("run", "tiny.yaml")
    assert code == 0, command.output
    command.assert_no_orphans()
    return command.results()


@pytest.fixture(scope="session")
def undisturbed_search(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the run with LIMPQ's search without a fault."""
    command = Command(tmp_path_factory.mktemp("undisturbed-search"), FULL)
    code = command.run("run", "tiny.yaml")
    assert code == 0, command.output
    command.assert_no_orphans()
    return command.results()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path / "work")
    yield made
    for process in made.processes():
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return Phases(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def costs(phases: Phases) -> CostTable:
    return load_costs(phases.inputs["costs"])
