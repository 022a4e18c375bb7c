"""Several runs side by side: distances, costs, stability, and what makes them incomparable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import events
from orchestrator.commands.compare import command
from orchestrator.commands.report import command as report_command
from orchestrator.compare.inputs import pinned_layers, read_runs
from orchestrator.compare.policies import distance, stability
from orchestrator.compare.runs import as_values, compare, question
from orchestrator.errors import StoreError
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore
from solvers.policy import make_policy
from solvers.tables import LayerBits
from tests.orchestrator.run_folders import POLICIES, costs, policy, write_run


def test_distance_counts_layers_by_hand() -> None:
    first, second = policy((2, 3), (3, 2), (3, 3)), policy((2, 4), (4, 4), (3, 3))
    found = distance(first.bits_by_name(), second.bits_by_name(), ("first", "last"))
    assert found is not None
    assert found.layers == ("a", "b")
    assert (found.num_weight, found.num_act, found.num_layers) == (1, 2, 3)
    assert (found.weight_bits, found.act_bits, found.changed) == (1, 3, 3)


def test_policies_of_other_layers_have_no_distance() -> None:
    bits = policy((2, 2), (2, 2), (2, 2)).bits_by_name()
    assert distance(bits, {"x": bits["a"]}) is None


def test_stability_is_the_mean_over_all_pairs() -> None:
    one, two = policy((2, 2), (2, 2), (2, 2)), policy((3, 2), (2, 2), (2, 4))
    three = policy((3, 2), (2, 2), (2, 2))
    answers = [p.bits_by_name() for p in (one, one, two, three)]
    found = stability(("q",), answers, ("first", "last"))
    assert found is not None
    # Pairs: 11: 0, 12: 2 twice, 13: 1 twice, 23: 1; six pairs.
    assert found.mean_changed == pytest.approx((2 + 2 + 1 + 1 + 1) / 6)
    assert (found.num_runs, found.num_distinct, found.max_changed) == (4, 3, 2)
    assert (found.num_widths, found.unstable) == (6, ("a", "c"))
    alone = stability(("q",), answers[:1])
    assert alone is not None
    assert alone.mean_changed is None


def test_runs_stand_side_by_side_with_distances_and_costs(tmp_path: Path) -> None:
    other = {**POLICIES, ("limpq", "1G"): policy((2, 3), (3, 2), (4, 3))}
    stores = [write_run(tmp_path, "a"), write_run(tmp_path, "b", seed=1, policies=other)]
    found = compare(read_runs(stores))
    line = next(row for row in found.rows if row[:2] == ("b", "limpq") and "bitops=1G" in row)
    assert line[-3:] == ("1", "0", "c")
    own = next(row for row in found.rows if row[:2] == ("a", "limpq") and "bitops=1G" in row)
    assert own[-3:] == ("1", "2", "a, c")  # against uniform at the same limits
    cost = [row for row in found.costs if row[:2] == ("a", "limpq")]
    assert cost == [
        ("a", "limpq", "indicators", "once", "30 s", "30 s", "3.01 s", "310 ms", "40 ms", "13 ms"),
        ("a", "limpq", "solve", "every device", "10 ms", "", "", "", "", ""),
    ]
    stable = {s.question: s.mean_changed for s in found.stability}
    assert stable["limpq", "1", "bitops=1G"] == 1.0
    assert stable["uniform", "-", "bitops=1G"] == 0.0


def test_what_makes_runs_incomparable_is_said_with_its_reason(tmp_path: Path) -> None:
    stores = [
        write_run(tmp_path, "a"),
        write_run(
            tmp_path, "b", seed=1, data="data-2",
            config={"accounting": "limpq", "rehearsal": True, "train": {"epochs": 3},
                    "cluster": {"num_workers": 2, "threads_per_worker": 1}},
        ),
    ]  # fmt: skip
    found = compare(read_runs(stores))
    for part in (
        "b differs from a in data: data-2 against data-1; accuracies are of different images",
        "b differs from a in seed: 1 against 0", "in accounting: limpq against standard",
        "in workers and threads: 2 x 1 against 2 x its CPUs", "in rehearsal: yes against no",
        "b: rehearsal, figures mean nothing",
    ):  # fmt: skip
        assert any(part in line for line in found.warnings), part
    assert "train.epochs: (absent) -> 3" in found.differences["b"]
    assert not any("no interval" in line for line in found.warnings)


def test_runs_that_left_images_out_say_so(tmp_path: Path) -> None:
    skip = RunRecord(run="x", step="e", key="e", phase="evidence", method="any", state=State.DONE,
                     facts={"skipped_images": ["a.jpg: truncated"]})  # fmt: skip
    stores = [write_run(tmp_path, "a"), write_run(tmp_path, "b", extra=[skip])]
    warnings = compare(read_runs(stores)).warnings
    assert any(w.startswith("b differs from a in skipped images: 1 against 0") for w in warnings)
    assert any(w.startswith("b: 1 image could not be read") for w in warnings)


def test_many_differing_runs_are_one_line_each_fact(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, f"r{seed}", seed=seed) for seed in range(5)]
    warnings = compare(read_runs(stores)).warnings
    assert [w for w in warnings if "seed" in w] == [
        "4 of 5 runs differ from r0 in seed (5 values): differences may be chance"
    ]


def test_a_run_that_cannot_be_read_stops_no_other(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, "a"), write_run(tmp_path, "b"), RunStore(tmp_path, "gone")]
    text = stores[1].journal_path.read_text().replace("journal/1", "journal/9")
    stores[1].journal_path.write_text(text)
    (stores[0].root / "config.yaml").unlink()
    read = read_runs(stores)
    assert [run.label for run in read.runs] == ["a"]
    found = compare(read)
    assert any(line.startswith("b is left out") for line in found.warnings)
    assert any(line.startswith("gone is left out") for line in found.warnings)
    assert "a: config.yaml is missing" in found.warnings


WRONG = {"model": 5, "data": [1], "cluster": 7, "reports": 3, "importance": 5, "tracking": 1}


def test_a_configuration_of_wrong_types_counts_as_lacking_and_stops_nothing(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, n, seed=s, config=WRONG if s else None)
              for s, n in enumerate("abc")]  # fmt: skip
    (write_run(tmp_path, "d").root / "config.yaml").write_text("- a\n")
    read = read_runs([*stores, RunStore(tmp_path, "d")])
    # b and c differ in name and seed alone, so c is not parsed again; it lacks the same.
    for run in read.runs[1:3]:
        wrong = ("model", "data", "cluster", "importance")
        assert run.lacks == (
            *(f"config.yaml: {key} is no section" for key in wrong),
            "config.yaml: reports is no list",
        )
        assert run.facts["workers and threads"] == "unknown x its CPUs"
    assert read.runs[3].lacks == ("config.yaml cannot be read: it holds no sections",)
    found = compare(read)
    assert "b: config.yaml: cluster is no section" in found.warnings
    for flag in ("--json", "--literature"):
        ask = ["a", "b", "d", "--runs-dir", str(tmp_path), flag]
        result = CliRunner().invoke(command, ask)
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(report_command, ["b", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "cluster is no section" in (stores[1].root / "report.html").read_text()


def test_a_layer_that_one_run_pins_and_another_searches_is_compared(tmp_path: Path) -> None:
    free = replace(costs(), layers=tuple(replace(layer, pinned=None) for layer in costs()))
    bits = POLICIES["limpq", "1G"].bits_by_name() | {"last": LayerBits(weight_bits=4, act_bits=8)}
    searched = {**POLICIES, ("limpq", "1G"): make_policy(free, bits, "test")}
    stores = [
        write_run(tmp_path, "a"),
        write_run(tmp_path, "b", seed=1, policies=searched, pinned=["first"]),
        RunStore(tmp_path, "empty"),
    ]
    with stores[2].opened() as journal:
        journal.event(events.RUN_STARTED, {})
    for order in (stores, stores[::-1]):
        read = read_runs(order)
        assert pinned_layers(read.runs) == {"first"}
    found = compare(read_runs(stores))
    line = next(row for row in found.rows if row[:2] == ("b", "limpq") and "bitops=1G" in row)
    assert line[-3:] == ("1", "0", "last")
    stable = {s.question: s for s in found.stability}["limpq", "1", "bitops=1G"]
    assert (stable.mean_changed, stable.num_widths, stable.unstable) == (1.0, 8, ("last",))


def test_a_run_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    one = write_run(tmp_path, "a")
    two = write_run(tmp_path, "b", seed=1)
    (tmp_path / "link").symlink_to(tmp_path)
    again = [one, two, RunStore(tmp_path / "link", "a"), one]
    assert [run.label for run in read_runs(again).runs] == ["a", "b"]
    (stable, *_) = compare(read_runs(again)).stability
    assert stable.num_runs == 2
    assert compare(read_runs([one, one])).stability == ()
    ask = ["b", "a", str(tmp_path / "b"), "--runs-dir", str(tmp_path), "--json"]
    result = CliRunner().invoke(command, ask)
    assert [run["label"] for run in json.loads(result.stdout)["runs"]] == ["b", "a"]


def test_missing_policies_and_unfinished_runs_are_shown_as_such(tmp_path: Path) -> None:
    found = compare(read_runs([write_run(tmp_path, "a", files=False, finished=False)]))
    assert {row[-3:] for row in found.rows} == {("-", "-", "-"), ("", "", "")}
    assert "a: not finished" in found.warnings


def test_runs_of_one_name_and_one_seed_are_told_apart_and_claim_no_interval(tmp_path: Path) -> None:
    stores = [write_run(tmp_path / "x", "run"), write_run(tmp_path / "y", "run")]
    found = compare(read_runs(stores))
    assert {row[0] for row in found.rows} == {str(store.root) for store in stores}
    assert found.warnings == ("all results are of seed 0: no interval is claimed",)


def test_values_for_scripts_are_numbers(tmp_path: Path) -> None:
    read = read_runs([write_run(tmp_path, "a"), write_run(tmp_path, "b", seed=1)])
    values = json.loads(json.dumps(as_values(read, compare(read))))
    assert values["schema"] == "comparison/1"
    (row,) = [r for r in values["runs"][0]["rows"]
              if (r["method"], r["limits"]) == ("limpq", {"bitops": "1G"})]  # fmt: skip
    assert (row["top1"], row["drop"]) == (90.0, 9.0)
    assert values["runs"][0]["search"][0]["seconds"] == 30.0
    assert values["stability"][0]["mean_changed"] == 0.0


@pytest.mark.parametrize("flag", ["--json", "--csv", "--md", "--literature"])
def test_the_command_prints_every_format(tmp_path: Path, flag: str) -> None:
    model = {"model": {"name": "resnet18", "num_classes": 1000}, "data": {"name": "parquet"}}
    for seed in (0, 1):
        write_run(tmp_path, f"r{seed}", seed=seed, config=model)
    result = CliRunner().invoke(command, ["r0", "r1", "--runs-dir", str(tmp_path), flag])
    assert result.exit_code == 0, result.output
    text = result.stdout
    if flag == "--json":
        assert [run["label"] for run in json.loads(text)["runs"]] == ["r0", "r1"]
    elif flag == "--csv":
        assert text.splitlines()[0].startswith("run,method,alpha,limits")
        assert len(text.splitlines()) == 1 + 2 * 7
    elif flag == "--md":
        assert "## policy stability" in text
    else:
        assert "reported by the papers, not measured here" in text
        assert "LIMPQ Table 2" in text


def test_no_readable_run_is_bad_input(tmp_path: Path) -> None:
    store = write_run(tmp_path, "a")
    store.journal_path.write_text("rubbish\nrubbish\n")
    with pytest.raises(StoreError, match="no run could be read"):
        CliRunner().invoke(command, ["a", "--runs-dir", str(tmp_path)], catch_exceptions=False)


def test_a_question_is_a_method_an_alpha_and_limits(tmp_path: Path) -> None:
    read = read_runs([write_run(tmp_path, "a")])
    assert question(read.runs[0].results.rows[0]) == ("limpq", "1", "bitops=1G")
    # A study's rows are keyed by it: two alphas of seven digits are two rows.
    first = read.runs[0].results.rows[0]
    near = [question(replace(first, alpha=alpha))[1] for alpha in (1.0, 1.0000001, 1.0000002)]
    assert near == ["1", "1.0000001", "1.0000002"]
