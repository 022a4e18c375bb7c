"""MetaMix through the same pipeline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.ray


def test_two_targets_share_a_meta_state_and_stand_beside_the_controls(command: Command) -> None:
    text = (
        command.config.replace("method: limpq", "method: metamix")
        .replace("weight: [2, 3, 4], act: [2, 3, 4]", "weight: [4], act: [2, 4, 8]")
        .replace("{bitops_level: 2.5x3}, {bitops_level: 3x3}, {bitops: 1}",
                 "{bitops_level: 4x4}, {bitops_level: 4x5}, {bitops: 1}")
        .replace("train_limits: [0]", "train_limits: [0, 1, 2]")
        .replace("controls: [uniform, random, reversed, initial]",
                 "controls: [uniform, metamix_ilp]\n"
                 "metamix: {meta: {epochs: 2, batch_size: 64, lr: 0.02}, search: {epochs: 2}}")
    )  # fmt: skip
    command.write("tiny.yaml", text)
    code, output = command.run("run", "tiny.yaml")
    assert code == 3, output
    records = command.records()
    assert sum(r["phase"] == "meta" for r in records) == 1
    assert sum(r["phase"] == "bit_selection" for r in records) == 2
    rows = {r["step"]: r for r in records if r["phase"] == "solve" and r["method"] == "metamix"}
    assert [r["state"] for r in rows.values()].count("INFEASIBLE") == 1
    root = command.folder / "runs" / "tiny"
    for row in rows.values():
        if row["state"] == "DONE":
            policy = json.loads((root / row["outputs"]["policy"]).read_text())
            assert policy["cost"]["bitops"] <= row["facts"]["bounds"]["bitops_level"]
            trained = [r for r in records if r["facts"].get("training") == row["facts"]["training"]
                       and r["phase"] == "train"]  # fmt: skip
            assert len(trained) == 1
            assert trained[0]["facts"]["inherited_steps"] is True
            assert trained[0]["metrics"]["search/device_s"] > 0
