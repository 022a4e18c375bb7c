"""Whole runs through the command, as a user starts them; one Ray cluster at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# A whole run of every phase on 8x8 digits: seconds of work, about 50 s with Ray's own.
CONFIG = """\
schema: experiment/1
name: tiny
seed: 3
method: limpq
model: {name: cifar_resnet8, num_classes: 10, options: {in_channels: 1, base_width: 8}}
data: {name: digits}
bits: {weight: [2, 3, 4], act: [2, 3, 4]}
cluster: {num_workers: 2}
pretrain: {epochs: 4, batch_size: 64, lr: 0.1}
indicators: {epochs: 60, batch_size: 64, lr: 0.01, fraction: 0.5}
search:
  alphas: [0.5, 2.0]
  limits: [{bitops_level: 2.5x3}, {bitops_level: 3x3}, {bitops: 1}]
  train_limits: [0]
train: {epochs: 1, batch_size: 64, lr: 0.02, warmup_epochs: 0, bn_reestimate_images: 128}
controls: [uniform, random, reversed, initial]
"""


@dataclass
class Command:
    """``mpq`` in a folder of its own."""

    folder: Path
    config: str = CONFIG
    env: dict[str, str] = field(default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1"})

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=self.folder,
            env={**self.env, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, timeout_s: float = 400) -> tuple[int, str]:
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            pytest.fail(f"mpq {arguments} did not end in {timeout_s} s:\n{output[-3000:]}")
        return process.returncode, output

    def journal(self, run: str = "tiny") -> list[dict[str, Any]]:
        path = self.folder / "runs" / run / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def records(self, run: str = "tiny") -> list[dict[str, Any]]:
        return [entry["data"] for entry in self.journal(run) if entry["kind"] == "record"]

    def wait_for(self, process: subprocess.Popen[str], path: Path, num_lines: int) -> None:
        """Until a file has so many lines, or the process ended, or four minutes."""
        for _ in range(2400):
            if process.poll() is not None:
                output, _ = process.communicate()
                pytest.fail(f"ended before {path} had {num_lines} lines:\n{output[-3000:]}")
            if path.exists() and len(path.read_text().splitlines()) >= num_lines:
                return
            time.sleep(0.1)
        process.kill()
        pytest.fail(f"{path} did not get {num_lines} lines in time")

    def ray_processes(self) -> list[str]:
        """Command lines of living Ray processes that runs in this folder started."""
        import psutil

        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            line = " ".join(process.info["cmdline"] or [])
            inside = str(self.folder) in (process.info["environ"] or {}).get("PWD", "")
            if inside and any(name in line for name in ("raylet", "gcs_server", "ray::")):
                found.append(line[:120])
        return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with one undisturbed run."""
    command = Command(tmp_path_factory.mktemp("undisturbed"))
    command.env["PWD"] = str(command.folder)
    command.write("tiny.yaml", CONFIG)
    code, output = command.run("run", "tiny.yaml")
    assert code == 3, output  # one of the limits is out of reach
    (command.folder / "output.txt").write_text(output)
    return command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """An empty folder."""
    made = Command(tmp_path)
    made.env["PWD"] = str(tmp_path)
    return made
