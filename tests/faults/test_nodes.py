"""Rows 2 and 5: nodes lost in the middle of every phase, the head lost; several nodes for real.

Nodes are raylets of their own on this machine (``ray.cluster_utils.Cluster``), and the head of row
5 is a ``ray start`` process. The driver is ``mpq run --address`` in a process of its own.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Command
    from fault_ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODES_LOST = 10
# One for all clusters of this process: Ray's core reads it once.
TOKEN = secrets.token_hex(32)
HEADS_LOST = 10


class Nodes:
    """A head without CPUs and some nodes with one each."""

    def __init__(self, count: int, cpus: float = 1.0) -> None:
        from ray.cluster_utils import Cluster

        self.cpus = cpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.add() for _ in range(count)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=self.cpus)

    def lose(self, node: Any) -> None:
        """SIGKILL of its raylet: as if its plug was pulled."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def with_workers(self) -> list[Any]:
        """Nodes on which a training worker runs now."""
        found = []
        for node in self.nodes:
            raylet = next(iter(node.all_processes["raylet"])).process.pid
            lines = [" ".join(p.cmdline()) for p in psutil.Process(raylet).children(True)]
            if any("RayTrainWorker" in line for line in lines):
                found.append(node)
        return found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    from orchestrator.cluster import set_environment

    set_environment()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    made = Nodes(4)
    yield made
    made.cluster.shutdown()


def _progress(command: Command) -> int:
    return sum(
        len(p.read_text().splitlines()) for p in command.root.glob("steps/**/progress.jsonl")
    )


def test_nodes_lost_in_the_middle_of_every_phase(
    tmp_path: Path, nodes: Nodes, ledger: Ledger, undisturbed_search: dict[str, Any]
) -> None:
    """Run after run, until enough nodes were lost: a run may end before."""
    kind = "SIGKILL of a raylet that has a training worker"
    total = 0
    while total < NODES_LOST:
        folder = tmp_path / f"after{total}"
        lost = _a_run_that_loses_nodes(folder, nodes, ledger, kind, undisturbed_search)
        assert lost >= 2
        total += lost
        ledger.survive(2, kind, lost)


def _a_run_that_loses_nodes(
    folder: Path, nodes: Nodes, ledger: Ledger, kind: str, undisturbed_search: dict[str, Any]
) -> int:
    """One run to its end, a node lost after every sign of progress; how many were."""
    from conftest import FULL, Command

    # Longer trainings, so that there is a middle to be lost in.
    command = Command(folder, FULL)
    process = command.start(
        "run", "tiny.yaml", "--address", nodes.address, "--set", "cluster.placement=SPREAD"
    )
    lost = 0
    while process.poll() is None and lost < NODES_LOST:
        seen = _progress(command)
        deadline = time.monotonic() + 600
        while process.poll() is None and _progress(command) <= seen:
            assert time.monotonic() < deadline, command.output
            time.sleep(0.05)
        there = nodes.with_workers()
        if process.poll() is None and there:
            nodes.lose(there[lost % len(there)])
            ledger.inject(2, kind)
            lost += 1
            nodes.nodes.append(nodes.add())
    code = command.wait(process, 1500)
    assert code == 0, command.output
    restarts = [e for e in command.journal() if e["kind"] == "step_restarted"]
    assert len(restarts) >= lost / 2  # two nodes can be lost before a group is up again
    command.assert_sound(undisturbed_search)
    return lost


def test_ten_thousand_solves_over_four_nodes_with_one_lost(
    tmp_path: Path, nodes: Nodes, ledger: Ledger
) -> None:
    """10,000 questions, 50 a task; every answer is there once and distinct."""
    import threading

    import ray
    from forked import Phases
    from test_numbers_and_names import importance_of

    from orchestrator.config_schema import SearchConfig
    from orchestrator.solve_tasks import SweepTables, answer_questions, solve_on_cluster
    from solvers.batch import Question
    from solvers.limits import Limit
    from solvers.storage import load_costs
    from solvers.tables import BitChoices

    costs = load_costs(Phases(tmp_path).inputs["costs"])
    least = 1_000_000
    questions = [
        Question(label=f"q{n}", alpha=1.0, limits=(Limit(kind="bitops", limit=least + 300 * n),))
        for n in range(10_000)
    ]
    tables = SweepTables(
        costs=costs, choices=BitChoices(weight_bits=(2, 4), act_bits=(2, 4)),
        importance={"limpq": importance_of(costs)}, search=SearchConfig(), accounting="standard",
    )  # fmt: skip
    kind = "SIGKILL of a raylet during 10,000 solves"
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        began = time.perf_counter()
        found: list[Any] = []
        kept: list[Any] = []
        work = threading.Thread(
            target=lambda: found.append(
                solve_on_cluster(answer_questions, ray.put(tables), questions, 50, kept.append)
            )
        )
        work.start()
        while len(kept) < 20 and work.is_alive():  # of 200 tasks
            time.sleep(0.05)
        assert work.is_alive(), "over before a node could be lost"
        nodes.lose(nodes.nodes[1])
        ledger.inject(2, kind)
        work.join(1500)
        labels = Counter(row.label for row in found[0].rows)
        assert len(labels) == 10_000
        assert set(labels.values()) == {1}
        ledger.survive(2, kind)
        wall_s = time.perf_counter() - began
        ledger.figure("10,000 solves, 4 nodes, one lost", f"10,000 distinct in {wall_s:.0f} s")
    finally:
        ray.shutdown()


class Head:
    """``ray start --head`` on loopback, with a token."""

    def __init__(self, env: dict[str, str], port: int) -> None:
        self.env, self.port = env, port
        self.address = f"127.0.0.1:{port}"

    @classmethod
    def of(cls, command: Any, port: int) -> Head:
        """A head that the command has the token of."""
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        command.env |= ours
        env = {**os.environ, **ours, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
               "PYTHONPATH": command.env["PYTHONPATH"],
               "MPQ_FAULT_HEAD": secrets.token_hex(4)}  # fmt: skip
        return cls(env, port)

    def start(self) -> None:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={self.port}",
             "--node-ip-address=127.0.0.1", "--num-cpus=2", "--dashboard-host=127.0.0.1"],
            env=self.env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self) -> list[psutil.Process]:
        """Of Ray, in this test's folder; never those of another cluster."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            inside = (process.info["environ"] or {}).get("MPQ_FAULT_HEAD") == self.env[
                "MPQ_FAULT_HEAD"
            ]
            if inside:
                found.append(process)
        return found

    def lose(self) -> None:
        """SIGKILL of the control store; then, as the machine is gone, of what it ran."""
        for process in self.processes():
            if "gcs_server" in " ".join(process.info["cmdline"] or []):
                process.kill()

    def clear(self) -> None:
        for process in self.processes():
            process.kill()


def test_the_head_lost_again_and_again_and_a_new_cluster_goes_on(
    tmp_path: Path, ledger: Ledger, undisturbed_search: dict[str, Any]
) -> None:
    """Run after run, until enough heads were lost: workers train on while a head is missed."""
    kind = "SIGKILL of gcs_server, then a new cluster"
    total = 0
    while total < HEADS_LOST:
        lost = _a_run_that_loses_heads(tmp_path / f"after{total}", ledger, kind, undisturbed_search)
        assert lost >= 2
        total += lost
        ledger.survive(5, kind, lost)


def _a_run_that_loses_heads(
    folder: Path, ledger: Ledger, kind: str, undisturbed_search: dict[str, Any]
) -> int:
    """One run to its end, a head lost after every sign of progress; how many were."""
    from conftest import FULL, Command

    command = Command(folder, FULL)
    head = Head.of(command, 6391)
    lost = 0
    try:
        while True:
            head.start()
            before = _progress(command)
            process = command.start(
                "run", "tiny.yaml", "--address", head.address,
                "--set", "cluster.cpus_per_worker=0.9",
            )  # fmt: skip
            deadline = time.monotonic() + 600
            while process.poll() is None and _progress(command) <= before:
                assert time.monotonic() < deadline, command.output
                time.sleep(0.05)
            if process.poll() is not None:
                break
            head.lose()
            ledger.inject(5, kind)
            lost += 1
            code = command.wait(process, 300)
            # Where the driver's own node goes with the head, Ray may end the process itself.
            assert code in (6, 1), command.output
            assert code == 1 or "the Ray cluster is gone" in command.output
            head.clear()
        assert process.returncode == 0, command.output
        command.assert_sound(undisturbed_search)
    finally:
        head.clear()
    return lost


def test_a_cluster_without_a_token_is_not_joined(command: Command, ledger: Ledger) -> None:
    kind = "cluster started with RAY_AUTH_MODE=disabled"
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
           "MPQ_FAULT_HEAD": secrets.token_hex(4)}  # fmt: skip
    head = Head(env, 6393)
    try:
        head.start()
        for mode in ("token", "disabled"):
            ledger.inject(23, kind)
            command.env["RAY_AUTH_MODE"] = mode
            assert command.run("run", "tiny.yaml", "--address", head.address) == 6, command.output
            assert "token" in command.output
            ledger.survive(23, kind)
    finally:
        head.clear()


def test_a_wrong_token_is_refused(command: Command, ledger: Ledger) -> None:
    kind = "another token than the cluster's"
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
           "RAY_USAGE_STATS_ENABLED": "0", "MPQ_FAULT_HEAD": secrets.token_hex(4)}  # fmt: skip
    head = Head(env, 6395)
    try:
        head.start()
        ledger.inject(23, kind)
        command.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        assert command.run("run", "tiny.yaml", "--address", head.address) == 6, command.output
        ledger.survive(23, kind)
    finally:
        head.clear()


def test_a_run_on_eight_nodes(nodes: Nodes, command: Command, undisturbed: dict[str, Any]) -> None:
    for _ in range(4):
        nodes.nodes.append(nodes.add())
    code = command.run(
        "run", "tiny.yaml", "--address", nodes.address, "--set", "cluster.placement=STRICT_SPREAD"
    )
    assert code == 0, command.output
    command.assert_sound(undisturbed)
