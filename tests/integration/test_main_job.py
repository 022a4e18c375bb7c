"""The main job, undisturbed: what it leaves, and what a second call does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.ray


def test_every_phase_solve_and_policy_has_one_record(finished: Command) -> None:
    records = finished.records()
    assert max(Counter(r["key"] for r in records).values()) == 1
    phases = Counter(r["phase"] for r in records)
    assert (phases["costs"], phases["pretrain"], phases["indicators"]) == (1, 1, 1)
    # 2 alphas x 3 limit sets, 4 controls at the one that is trained
    assert phases["solve"] == 6 + 4
    rows = [
        r for r in records if r["phase"] == "solve" and r["limits"] == {"bitops_level": "2.5x3"}
    ]
    assert {r["method"] for r in rows} == {"limpq", "uniform", "random", "reversed", "initial"}
    assert phases["train"] == len({r["policy_id"] for r in rows})


def test_an_infeasible_limit_is_a_row_that_says_what_is_reachable(finished: Command) -> None:
    rows = [r for r in finished.records() if r["limits"] == {"bitops": "1"}]
    assert {r["state"] for r in rows} == {"INFEASIBLE"}
    assert len(rows) == 2
    assert all(r["facts"]["smallest"]["bitops"] > 1 for r in rows)
    output = (finished.folder / "output.txt").read_text()
    assert output.index("infeasible, found before training") < output.index("pretrain: train")


def test_a_policy_is_certified_and_within_its_limit(finished: Command) -> None:
    root = finished.folder / "runs" / "tiny"
    rows = [r for r in finished.records() if r["phase"] == "solve" and r["method"] == "limpq"]
    done = [r for r in rows if r["state"] == "DONE"]
    assert len(done) == 4
    for row in done:
        policy = json.loads((root / row["outputs"]["policy"]).read_text())
        assert policy["certificate"]["status"] == "PROVEN_OPTIMAL"
        assert policy["cost"]["bitops"] <= row["facts"]["bounds"]["bitops_level"]
        assert policy["policy_id"] == row["policy_id"]


def test_search_cost_is_recorded_for_the_phase_and_on_what_it_led_to(finished: Command) -> None:
    records = finished.records()
    (indicators,) = [r for r in records if r["phase"] == "indicators"]
    # 60 epochs x 10 updates x (3 uniform + 1 random) passes, forward and backward, on two ranks
    assert indicators["metrics"]["search/passes"] == 60 * 10 * 4 * 2
    assert indicators["metrics"]["search/images"] == 60 * 10 * 4 * 64
    trained = [r for r in records if r["phase"] == "train" and r["method"] == "limpq"]
    assert trained
    for record in trained:
        assert record["metrics"]["search/passes"] == indicators["metrics"]["search/passes"]
        assert 0 <= record["metrics"]["eval/top1"] <= 100
        assert record["versions"]["torch"]


def test_report_figures_and_mlflow_show_the_run(finished: Command) -> None:
    root = finished.folder / "runs" / "tiny"
    report = (root / "report.md").read_text()
    for heading in ("## Results", "## Search", "## Where the time went", "## What was not run"):
        assert heading in report
    for name in ("bits", "indicators", "accuracy", "search_cost"):
        assert (root / "figures" / f"{name}.svg").stat().st_size > 2_000
    assert "<h2>Search cost</h2>" in (root / "report.html").read_text()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder}/runs/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    tagged = [r.data.tags.get("mpq.record") for r in runs]
    ids = {r["key"] for r in finished.records()}
    assert ids <= set(tagged)
    assert max(Counter(t for t in tagged if t).values()) == 1
    assert all(r.info.status == "FINISHED" for r in runs)


def test_the_same_command_again_runs_nothing(finished: Command) -> None:
    before = len(finished.records())
    code, output = finished.run("run", "tiny.yaml")
    assert code == 3, output
    events = finished.journal()
    last_start = max(i for i, e in enumerate(events) if e["kind"] == "run_started")
    assert not [e for e in events[last_start:] if e["kind"] == "step_started"]
    assert len(finished.records()) == before


def test_a_damaged_output_is_made_again(finished: Command) -> None:
    """The negative control of the verification: one flipped byte is noticed."""
    root = finished.folder / "runs" / "tiny"
    path = root / "steps" / "costs" / "costs.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    code, output = finished.run("run", "tiny.yaml")
    assert code == 3, output
    assert "costs: done again" in output
    assert path.read_bytes() == good


def test_another_configuration_under_the_same_name_is_refused(finished: Command) -> None:
    code, output = finished.run("run", "tiny.yaml", "--set", "train.lr=0.5")
    assert code == 5
    assert "train.lr: 0.02 -> 0.5" in output
    assert "--fork" in output


def test_devices_are_answered_from_the_indicators(finished: Command) -> None:
    finished.write(
        "devices.yaml",
        "ranges: {name: d, count: 60, seed: 0, limits: "
        "{bitops_level: [2x2, 4x4], weight_bytes: [3KiB, 9KiB]}}\n".replace(
            "bitops_level: [2x2, 4x4]", "bitops: [1.2M, 6M]"
        ),
    )
    code, output = finished.run("sweep", "tiny", "--devices", "devices.yaml", "--json")
    assert code in (0, 3), output
    facts = json.loads(output[output.index("{") :])
    assert sum(facts["states"].values()) == 60 * 2
    assert facts["distinct_policies"] > 1
    assert (Path(facts["folder"]) / "results.parquet").is_file()
    code, output = finished.run("sweep", "tiny", "--devices", "devices.yaml", "--json")
    assert json.loads(output[output.index("{") :])["reused"] is True


def test_a_policy_that_was_only_solved_is_trained_when_given(finished: Command) -> None:
    """The run solved 3x3 and did not train it; a second one is handed that file."""
    solved = next(
        r
        for r in finished.records()
        if r["phase"] == "solve" and r["limits"] == {"bitops_level": "3x3"}
    )
    call = (
        "run", "tiny.yaml", "--set", "method=uniform", "--set", "controls=[]",
        "--set", f"policies={{mine: runs/tiny/{solved['outputs']['policy']}}}",
        "--set", "search.limits=[{bitops_level: 2.5x3}, {bitops_level: 3x3}]",
        "--set", "search.train_limits=null", "--reuse", "tiny", "--fork", "given",
    )  # fmt: skip
    code, output = finished.run(*call)
    assert code == 3, output
    records = finished.records("given")
    (trained,) = [r for r in records if r["phase"] == "train"]
    assert (trained["state"], trained["policy_id"]) == ("DONE", solved["policy_id"])
    rows = {r["limits"]["bitops_level"]: r for r in records if r["phase"] == "solve"}
    assert rows["2.5x3"]["state"] == "INFEASIBLE"
    assert "where bitops_level=2.5x3 allows" in rows["2.5x3"]["message"]
    assert "full-precision network" not in output  # taken over, not trained again
    assert finished.run(*call)[0] == 3
    assert len(finished.records("given")) == len(records)
