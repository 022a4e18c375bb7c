"""A study as a user starts it: seeds as trials of one cluster, one table, resumed after a stop."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STUDY = """\
schema: study/1
name: twice
base: tiny.yaml
seeds: [0, 1]
methods: [limpq, uniform, random, quantization_error]
budgets: [{bitops_level: 3x3}]
settings:
  search: {alphas: [1.0]}
  cluster: {num_workers: 1}
  sources: {quantization_error: {images: 64}}
"""


def test_a_study_stops_resumes_and_ends_in_one_table(command: Command) -> None:
    command.write("tiny.yaml", command.config.replace("epochs: 60", "epochs: 4"))
    command.write("twice.yaml", STUDY)
    runs = command.folder / "runs"
    going = command.start("study", "twice.yaml")
    deadline = time.monotonic() + 200
    while not (runs / "twice-s0" / "steps" / "pretrain" / "record.json").is_file():
        assert time.monotonic() < deadline
        assert going.poll() is None, going.communicate()[0]
        time.sleep(0.5)
    going.send_signal(signal.SIGINT)
    said, _ = going.communicate(timeout=120)
    assert going.returncode == 130, said
    assert not (runs / "twice-s1" / "report.html").exists()

    code, said = command.run("study", "twice.yaml")
    assert code == 0, said
    table = json.loads((runs / "twice" / "results.json").read_text())
    assert table["problems"] == []
    assert {row["method"] for row in table["rows"]} == {
        "limpq", "uniform", "random", "quantization_error",
    }  # fmt: skip
    assert all(len(row["top1"]) == 2 for row in table["rows"])
    for seed in (0, 1):
        journal = (runs / f"twice-s{seed}" / "journal.jsonl").read_text().splitlines()
        keys = [
            json.loads(line)["data"].get("key") for line in journal if '"kind":"record"' in line
        ]
        assert len(keys) == len(set(keys))
        assert '"command":"mpq study twice.yaml"' in "".join(journal)
    assert "<h2>Against uniform</h2>" in (runs / "twice" / "report.html").read_text()
    assert command.run("study", "twice.yaml")[0] == 0
