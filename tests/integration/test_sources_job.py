"""Other sources of policies through one pipeline, and a second run that takes over its steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.ray

SOURCES = """\
controls: [uniform_all, random]
random_draws: 2
sources:
  quantization_error: {images: 64}
  one_shot: {evaluations: 12, population: 4, parents: 2, images: 64, bn_images: 64}
"""


def test_sources_stand_in_one_table_and_their_steps_are_shared_with_another_run(
    command: Command,
) -> None:
    text = (
        command.config.replace("method: limpq", "method: uniform")
        .replace("epochs: 60", "epochs: 2")
        .replace("  alphas: [0.5, 2.0]\n", "")
        .replace("controls: [uniform, random, reversed, initial]\n", SOURCES)
        .replace("cluster: {num_workers: 2}", "cluster: {num_workers: 1}")
    )
    command.write("tiny.yaml", text)
    code, output = command.run("run", "tiny.yaml")
    assert code == 0, output
    records = command.records()
    phases = {r["step"]: r for r in records}
    assert {"indicators", "quantization_error", "one_shot-l0"} <= set(phases)
    assert "search/evaluations" in phases["one_shot-l0"]["metrics"]
    rows = {r["method"]: r for r in records if r["phase"] == "solve"}
    assert set(rows) == {
        "uniform", "uniform_w2a3", "uniform_w3a2", "random", "random-2", "quantization_error",
        "one_shot",
    }  # fmt: skip
    bound = rows["one_shot"]["facts"]["bounds"]["bitops_level"]
    root = command.folder / "runs" / "tiny"
    for row in rows.values():
        policy = json.loads((root / row["outputs"]["policy"]).read_text())
        assert policy["cost"]["bitops"] <= bound
        assert any(
            r["phase"] == "train" and r["policy_id"] == row["policy_id"] for r in records
        )  # fmt: skip
    # The joint training is part of what one_shot costs, and of nothing else here.
    spent = {name: phases[name]["metrics"]["search/device_s"]
             for name in ("indicators", "one_shot-l0", "quantization_error")}  # fmt: skip
    cost = {method: row["metrics"].get("search/device_s") for method, row in rows.items()}
    assert cost["one_shot"] == pytest.approx(spent["indicators"] + spent["one_shot-l0"])
    assert cost["quantization_error"] == pytest.approx(spent["quantization_error"])
    assert cost["uniform"] is None
    assert "| one\\_shot |" in (root / "report.md").read_text()  # Markdown is escaped

    code, output = command.run(
        "run", "tiny.yaml", "--fork", "other", "--reuse", "tiny",
        "--set", "controls=[random]", "--set", "random_draws=1",
    )  # fmt: skip
    assert code == 0, output
    other = command.records("other")
    taken = {r["step"] for r in other if r["facts"].get("reused_from") == "tiny"}
    # Trainings of the same bits from the same start are taken over too, one by one.
    steps = {"costs", "pretrain", "indicators", "quantization_error", "one_shot-l0"}
    assert {name for name in taken if not name.startswith("train/")} == steps
    events = [e for e in command.journal("other") if e["kind"] == "step_started"]
    assert {e["data"]["step"] for e in events} == {"sweep", "train"}
    before = {r["key"]: r["metrics"] for r in records if r["phase"] == "train"}
    again = {r["key"]: r["metrics"] for r in other if r["phase"] == "train"}
    assert again
    assert all(metrics["eval/top1"] == before[key]["eval/top1"] for key, metrics in again.items())
