"""What the plan decides: keys, cells, what is trained, what is not, how a sweep is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cells import Cell, LimitSet, resolve_limits
from orchestrator.config import load_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.ledger import Ledger, overhead_share
from orchestrator.made_controls import draw_seed, made_controls
from orchestrator.outcomes import candidate_record
from orchestrator.plan import Plan, make_plan
from orchestrator.policies import Candidate, to_train, unmet_candidates
from orchestrator.results import reachable_text
from orchestrator.sweep import cell_chunks, question_chunks
from orchestrator.trace import weight_hashes
from solvers.batch import Question
from solvers.errors import LimitError
from solvers.limits import parse_limit
from solvers.policy import Policy, make_policy
from solvers.tables import CostTable, LayerBits, LayerSpec

TEXT = """schema: experiment/1
name: planned
model: {name: anything}
data: {name: anything}
bits: {weight: [2, 4], act: [2, 4]}
search:
  alphas: [1, 2]
  limits: [{bitops_level: 2x4}, {bitops_level: 4x4}, {bitops: 1}]
  train_limits: [0]
  train_alphas: [2]
"""


def _layer(name: str, macs: int, pinned: LayerBits | None = None) -> LayerSpec:
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=10,
        num_biases=0, num_inputs=4, num_outputs=4, pinned=pinned,
    )  # fmt: skip


EIGHT = LayerBits(weight_bits=8, act_bits=8)
COSTS = CostTable(
    model="anything",
    input_shape=(1, 2, 2),
    layers=(_layer("a", 100, EIGHT), _layer("b", 200), _layer("c", 300), _layer("d", 10, EIGHT)),
)


def _config(tmp_path: Path, text: str = TEXT, *overrides: str) -> ExperimentConfig:
    path = tmp_path / "planned.yaml"
    path.write_text(text)
    return load_config(path, overrides).config


def _plan(tmp_path: Path, *overrides: str, text: str = TEXT) -> Plan:
    return make_plan(_config(tmp_path, text, *overrides), COSTS, "images")


def _keys(plan: Plan) -> dict[str, str]:
    return {step.name: step.key for step in plan.steps}


def test_a_change_reaches_the_steps_after_it_and_none_before(tmp_path: Path) -> None:
    before = _keys(_plan(tmp_path))
    after = _keys(_plan(tmp_path, "indicators.lr=0.5"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"indicators", "sweep"}  # a policy's training knows its bits, not who asked
    after = _keys(_plan(tmp_path, "train.lr=0.5"))
    assert {name for name in before if before[name] != after[name]} == {"train"}


def test_resources_and_tracking_decide_no_result(tmp_path: Path) -> None:
    overrides = (
        "cluster.num_workers=2",
        "cluster.retries.infrastructure=0",
        "tracking.enabled=false",
    )
    assert _keys(_plan(tmp_path, *overrides)) == _keys(_plan(tmp_path))


def test_other_images_or_another_seed_make_other_results(tmp_path: Path) -> None:
    here = _keys(_plan(tmp_path))
    other_images = _keys(make_plan(_config(tmp_path), COSTS, "other images"))
    assert all(here[name] != other_images[name] for name in here)
    assert all(key != here[name] for name, key in _keys(_plan(tmp_path, "seed=1")).items())


def test_other_weights_under_the_same_name_make_other_results(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(b"some weights")
    text = TEXT.replace("{name: anything}", f"{{name: anything, weights: {file}}}", 1)
    config = _config(tmp_path, text + "train: {distillation: {model: x, weights: torchvision}}\n")
    first = _keys(make_plan(config, COSTS, "images", weight_hashes(config)))
    assert first == _keys(make_plan(config, COSTS, "images", weight_hashes(config)))
    file.write_bytes(b"other weights")
    other = _keys(make_plan(config, COSTS, "images", weight_hashes(config)))
    assert all(other[name] != first[name] for name in first)


def test_an_infeasible_limit_is_found_with_its_smallest_reachable_value(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    *fine, bad = plan.limit_sets
    assert [limits.problem for limits in fine] == ["", ""]
    least = 64 * 110 + 4 * 500
    assert bad.smallest == {"bitops": least}
    assert f"{least:,}" in bad.problem
    assert len(plan.steps) == 5


def test_nothing_is_planned_but_costs_when_no_limit_can_be_met(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("  limits")] + "  limits: [{bitops: 1}, {bitops: 2}]\n"
    plan = _plan(tmp_path, text=text)
    assert [step.name for step in plan.steps] == ["costs"]
    rows = unmet_candidates("limpq", plan.limit_sets)
    assert [row.policy for row in rows] == [None, None]
    assert all("smallest reachable" in row.reason for row in rows)


def test_a_limit_that_cannot_be_read_names_its_place(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(LimitError, match=r"search\.limits\.0"):
        resolve_limits(
            type(config.search)(limits=({"mean_act_bits": "3@nothing"},)), COSTS,
            _plan(tmp_path).choices, "standard",
        )  # fmt: skip


def test_controls_are_asked_at_what_is_trained_and_cells_everywhere(tmp_path: Path) -> None:
    cells = _plan(tmp_path).cells
    own = [c for c in cells if c.method == "limpq"]
    assert len(own) == 2 * 3
    controls = [c for c in cells if c.method != "limpq"]
    assert {(c.method, c.alpha, c.limit_set.index) for c in controls} == {
        ("reversed", 2.0, 0), ("initial", 2.0, 0),
    }  # fmt: skip


def _policy(bits: int) -> Policy:
    wide = LayerBits(weight_bits=bits, act_bits=bits)
    return make_policy(COSTS, {s.name: s.pinned or wide for s in COSTS}, "test")


def test_equal_bits_are_trained_once_and_only_where_they_are_asked(tmp_path: Path) -> None:
    config = _config(tmp_path)
    plan = make_plan(config, COSTS, "images")
    first, second, _ = plan.limit_sets

    def row(
        method: str, alpha: float | None, limits: LimitSet, bits: int, **more: Any
    ) -> Candidate:
        policy = _policy(bits)
        return Candidate(method=method, alpha=alpha, limit_set=limits, policy=policy, **more)

    rows = [
        row("limpq", 1.0, first, 4),  # its alpha is not trained
        row("limpq", 2.0, second, 4),  # its limits are not trained
        row("limpq", 2.0, first, 2),
        row("uniform", None, first, 2),  # the same bits again
        row("metamix", None, first, 2, start={"weights": "w"}),  # the same bits, another start
    ]
    assert [(c.method, c.entry) for c in to_train(config, plan, rows)] == [
        ("limpq", _policy(2).policy_id),
        ("metamix", f"{_policy(2).policy_id}-metamix-l0"),
    ]


def test_controls_made_without_importance_meet_the_limits(tmp_path: Path) -> None:
    config = _config(tmp_path)
    plan = make_plan(config, COSTS, "images")
    rows = made_controls(config, plan)
    assert [row.method for row in rows] == ["uniform", "random"]
    for row in rows:
        assert row.policy is not None
        assert row.policy.cost.bitops <= row.limit_set.bounds["bitops_level"]


def test_each_random_draw_is_a_row_of_its_own(tmp_path: Path) -> None:
    overrides = ("controls=[random]", "random_draws=4", "bits.weight=[2,3,4]", "bits.act=[2,3,4]")
    rows = made_controls(_config(tmp_path, TEXT, *overrides), _plan(tmp_path, *overrides))
    assert [row.method for row in rows] == ["random", "random-2", "random-3", "random-4"]
    assert len({row.name for row in rows}) == 4
    assert len({row.entry for row in rows}) > 1
    once = made_controls(_config(tmp_path, TEXT, *overrides[:1], *overrides[2:]),
                         _plan(tmp_path, *overrides[:1], *overrides[2:]))  # fmt: skip
    assert once[0].policy == rows[0].policy  # more draws leave the first as it was
    assert len({draw_seed(0, draw) for draw in range(1, 50)} | {draw_seed(1, 2)}) == 50


def test_uniform_all_is_every_mix_that_fits_and_that_no_other_exceeds(tmp_path: Path) -> None:
    overrides = ("controls=[uniform,uniform_all]", "bits.weight=[2,3,4,5,6]",
                 "bits.act=[2,3,4,5,6]", "search.limits=[{bitops_level: 2.5x2.5}]")  # fmt: skip
    rows = made_controls(_config(tmp_path, TEXT, *overrides), _plan(tmp_path, *overrides))
    # 2 x 3 = 6 <= 6.25: W2A3 and W3A2 fit, and W2A2 lies below both
    assert [row.method for row in rows] == ["uniform", "uniform_w2a3", "uniform_w3a2"]
    assert rows[0].entry == rows[1].entry  # the largest is trained once


def test_uniform_all_says_when_nothing_fits(tmp_path: Path) -> None:
    overrides = ("controls=[uniform_all]", "groups=[]",
                 "search.limits=[{bitops: 1}, {bitops_level: 2x2}]",
                 "search.train_limits=[0, 1]")  # fmt: skip
    rows = made_controls(_config(tmp_path, TEXT, *overrides), _plan(tmp_path, *overrides))
    assert [(row.method, row.limit_set.index) for row in rows] == [("uniform_w2a2", 1)]


METAMIX = (
    TEXT.replace("bits: {weight: [2, 4]", "method: metamix\nbits: {weight: [4]")
    .replace("  train_limits: [0]\n", "")
    .replace("  train_alphas: [2]\n", "")
    + "controls: [uniform]\n"
)


def test_metamix_selects_for_each_target_that_can_be_met_from_one_meta_state(
    tmp_path: Path,
) -> None:
    plan = _plan(tmp_path, text=METAMIX.replace("2x4", "4x3"))
    assert [step.name for step in plan.steps] == [
        "costs", "pretrain", "meta", "select-l0", "select-l1", "sweep", "train",
    ]  # fmt: skip
    assert [limits.index for _, limits in plan.selections] == [0, 1]
    assert "meta" in plan.step("select-l0").needs


def test_another_target_leaves_the_meta_state_as_it_is(tmp_path: Path) -> None:
    before = _keys(_plan(tmp_path, text=METAMIX.replace("2x4", "4x3")))
    after = _keys(_plan(tmp_path, text=METAMIX.replace("2x4", "4x2.5")))
    assert before["meta"] == after["meta"]
    assert before["select-l1"] == after["select-l1"]
    assert before["select-l0"] != after["select-l0"]


def test_a_target_outside_what_the_candidates_reach_is_told_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    for level, words in (("4x9", "largest reachable"), ("4x1", "smallest reachable")):
        plan = _plan(tmp_path, text=METAMIX.replace("2x4", level))
        assert words in plan.limit_sets[0].problem
        assert [limits.index for _, limits in plan.selections] == [1]
        (row, *_) = unmet_candidates("metamix", plan.limit_sets)
        assert words in reachable_text(
            candidate_record("run", plan.step("sweep"), row, seed=0, policy_file="")
        )
    # To LIMPQ the same limit is no more than loose.
    assert not _plan(tmp_path, text=TEXT.replace("2x4", "4x9")).limit_sets[0].problem


def test_what_training_takes_over_changes_no_selection(tmp_path: Path) -> None:
    before = _keys(_plan(tmp_path, text=METAMIX))
    after = _keys(_plan(tmp_path, "metamix.inherit=nothing", text=METAMIX))
    assert before == after
    other = _keys(_plan(tmp_path, "metamix.search.lambda_r=0.5", text=METAMIX))
    assert before["select-l0"] != other["select-l0"]


def test_a_start_from_limpq_trains_its_indicators_first(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "metamix.start=limpq", text=METAMIX)
    names = [step.name for step in plan.steps]
    assert names.index("indicators") < names.index("meta")
    assert "indicators" in plan.step("meta").needs
    assert _keys(plan)["meta"] != _keys(_plan(tmp_path, text=METAMIX))["meta"]


def _cells(plan: Plan) -> tuple[Cell, ...]:
    return plan.cells


def test_a_sweep_is_cut_by_method_and_alpha_and_every_item_is_in_one_trial(tmp_path: Path) -> None:
    cells = _cells(_plan(tmp_path))
    chunks = cell_chunks(cells, 2, "key")
    assert sorted(c.name for chunk in chunks for c in chunk.items) == sorted(c.name for c in cells)
    assert all(len({(c.method, c.alpha) for c in chunk.items}) == 1 for chunk in chunks)
    assert max(len(chunk.items) for chunk in chunks) == 2
    assert len({chunk.name for chunk in chunks}) == len(chunks)
    # Names hold what was asked: other cells never find old answers.
    assert {c.name for c in cell_chunks(cells, 2, "other")}.isdisjoint({c.name for c in chunks})


def test_devices_are_cut_by_alpha(tmp_path: Path) -> None:
    limit = (parse_limit("bitops=9000"),)
    questions = [
        Question(label=f"d{i}", alpha=alpha, limits=limit) for alpha in (2.0, 1.0) for i in range(5)
    ]
    chunks = question_chunks(questions, 3, "key")
    assert [len(chunk.items) for chunk in chunks] == [3, 2, 3, 2]
    assert [chunk.items[0].alpha for chunk in chunks] == [1.0, 1.0, 2.0, 2.0]


def test_the_ledger_books_every_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("orchestrator.ledger.time.perf_counter", lambda: now[0])
    ledger = Ledger()
    now[0] = 1.0
    with ledger.span("plan"):
        now[0] = 3.0
        with ledger.span("report"):
            now[0] = 4.0
        now[0] = 10.0
        ledger.add("train", 5.0)
    now[0] = 12.0
    shares = ledger.shares()
    assert shares == {"plan": 3.0, "report": 1.0, "train": 5.0, "other": 3.0}
    assert sum(shares.values()) == 12.0
    assert overhead_share(shares) == pytest.approx(7 / 12)


def test_the_ledger_books_no_second_of_an_earlier_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("orchestrator.ledger.time.perf_counter", lambda: now[0])
    ledger = Ledger()
    with ledger.span("Ray start and stop"):
        now[0] = 20.0
    now[0] = 30.0
    # A phase that had an hour behind it when this attempt began, and 10 s of it.
    ledger.add("train", 3610.0)
    ledger.add("evaluate", 60.0)
    with ledger.span("report"):
        now[0] = 40.0
    shares = ledger.shares()
    assert sum(shares.values()) == 40.0
    assert shares["Ray start and stop"] == 20.0
    assert shares["train"] == 10.0
    assert overhead_share(shares) == pytest.approx(30 / 40)
