"""The section ``sources``: steps, inputs, cells, refusals, and a source that fails."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from orchestrator import source_steps as subject
from orchestrator.config import load_config
from orchestrator.config_schema import Control, ExperimentConfig, ImportanceConfig
from orchestrator.errors import ConfigError
from orchestrator.outcomes import candidate_record, phase_record
from orchestrator.phase_step import StepFailedError
from orchestrator.plan import STEP_VERSIONS, Plan, make_plan
from orchestrator.policies import failed_candidates, to_train
from orchestrator.records import RunRecord, State
from orchestrator.results import results_of
from orchestrator.source_parts import PROVIDERS, source_parts
from orchestrator.sweep_step import ImportanceFile
from solvers.errors import TableError
from solvers.policy import make_policy
from solvers.storage import save_importance, save_policy
from solvers.tables import CostTable, Importance, ImportanceTable, LayerBits, LayerSpec
from solvers.transforms import TRANSFORMS
from trainers.phases import Cost, PhaseResult
from trainers.registry import phase_names
from trainers.source_config import PolicySearch, SourcesConfig
from trainers.sources import SOURCES

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
EIGHT = LayerBits(weight_bits=8, act_bits=8)
COSTS = CostTable(
    model="anything",
    input_shape=(1, 2, 2),
    layers=tuple(
        LayerSpec(
            name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=10,
            num_biases=0, num_inputs=4, num_outputs=4, pinned=EIGHT if name in "ad" else None,
        )
        for name, macs in (("a", 100), ("b", 200), ("c", 300), ("d", 10))
    ),
)  # fmt: skip
ASKED = (
    "sources={quantization_error: {images: 16}, hawq: {}, one_shot: {}, fitted: {}}",
    "controls=[]",
)


def _config(folder: Path, *overrides: str, text: str = TEXT) -> ExperimentConfig:
    path = folder / "planned.yaml"
    path.write_text(text)
    return load_config(path, overrides).config


def _plan(folder: Path, *overrides: str, text: str = TEXT) -> Plan:
    return make_plan(_config(folder, *overrides, text=text), COSTS, "images")


def test_every_source_has_a_field_a_phase_a_version_and_known_inputs() -> None:
    assert [source.name for source in SOURCES] == [f.name for f in fields(SourcesConfig)]
    steps = {"costs", "pretrain", "indicators", "sweep", "train", "meta"}
    for source in SOURCES:
        assert source.phase in phase_names()
        assert source.phase in STEP_VERSIONS
        assert set(source.needs) <= set(PROVIDERS)
        assert source.name not in steps


def test_importance_is_one_step_and_a_policy_is_one_for_each_limit_that_is_trained(
    tmp_path: Path,
) -> None:
    plan = _plan(tmp_path, *ASKED, "search.train_limits=[0, 1, 2]")
    names = [step.name for step in plan.steps]
    # the third set of limits cannot be met
    assert names == [
        "costs", "pretrain", "indicators", "quantization_error", "hawq-l0", "hawq-l1",
        "one_shot-l0", "one_shot-l1", "fitted", "sweep", "train",
    ]  # fmt: skip
    assert plan.step("one_shot-l0").needs == ("costs", "pretrain", "indicators")
    assert plan.step("quantization_error").needs == ("costs", "pretrain")
    assert {"quantization_error", "fitted"} <= set(plan.step("sweep").needs)
    assert not {"hawq-l0", "one_shot-l0"} & set(plan.step("sweep").needs)
    assert set(names) - {"train"} >= set(plan.step("train").needs)


def test_what_is_asked_is_in_the_key_of_its_step_alone(tmp_path: Path) -> None:
    def keys(*more: str) -> dict[str, str]:
        return {step.name: step.key for step in _plan(tmp_path, *ASKED, *more).steps}

    before = keys()
    for change, reached in (
        ("sources.one_shot.evaluations=99", {"one_shot-l0"}),
        ("sources.quantization_error.images=17", {"quantization_error", "sweep"}),
        ("search.limits.0={bitops_level: 2x3}", {"hawq-l0", "one_shot-l0", "sweep"}),
    ):
        after = keys(change)
        assert {name for name in before if before[name] != after[name]} == reached, change


def test_cells_of_a_source_stand_at_trained_limits_and_its_own_alpha(tmp_path: Path) -> None:
    cells = [c for c in _plan(tmp_path, *ASKED).cells if c.method != "limpq"]
    # 2 is the only alpha that is trained, and these tables are made to be added up as they are
    assert {(c.method, c.alpha, c.limit_set.index) for c in cells} == {
        ("quantization_error", 1.0, 0), ("fitted", 1.0, 0),
    }  # fmt: skip


@pytest.mark.parametrize("source", ["one_shot", "fitted"])
@pytest.mark.parametrize("method", ["uniform", "metamix"])
def test_a_source_that_needs_the_joint_training_brings_it_along(
    tmp_path: Path, method: str, source: str
) -> None:
    text = TEXT.replace("bits:", f"method: {method}\nbits:")
    if method == "metamix":  # steered by activations, which its weights leave room for
        text = text.replace("weight: [2, 4]", "weight: [4]").replace("2x4", "4x3")
    names = [s.name for s in _plan(tmp_path, f"sources={{{source}: {{}}}}", text=text).steps]
    assert "indicators" in names
    without = [s.name for s in _plan(tmp_path, "sources={hawq: {}}", text=text).steps]
    assert "indicators" not in without


def test_a_policy_source_is_told_its_limits_and_the_accounting(tmp_path: Path) -> None:
    config = _config(tmp_path, *ASKED)
    parts = {part.name: part for part in source_parts(config, _plan(tmp_path, *ASKED).limit_sets)}
    task = parts["one_shot-l0"].task("standard")
    assert isinstance(task, PolicySearch)
    assert task.limits == ("bitops_level=2x4",)
    assert task.source == config.sources.one_shot
    assert parts["fitted"].task("standard") is config.sources.fitted


def test_a_source_with_another_alpha_is_trained_all_the_same(tmp_path: Path) -> None:
    from orchestrator.policies import Candidate

    config, plan = _config(tmp_path, *ASKED), _plan(tmp_path, *ASKED)
    two = LayerBits(weight_bits=2, act_bits=2)
    policy = make_policy(COSTS, {layer.name: layer.pinned or two for layer in COSTS}, "x")
    row = Candidate(method="fitted", alpha=1.0, limit_set=plan.limit_sets[0], policy=policy)
    assert to_train(config, plan, [row]) == (row,)


@pytest.mark.parametrize(
    ("overrides", "where", "says"),
    [
        (("sources.hawk={}",), "sources.hawk", "did you mean hawq"),
        (("sources.hawq.max_iteration=3",), "sources.hawq.max_iteration", "max_iterations?"),
        (("sources.edmips={}", "search.limits=[{bitops_level: 3x3, weight_mib: 1}]",
          "search.train_limits=[0]"), "sources.edmips", "it aims at one number"),
        (("sources.edmips={batch_size: 33}", "cluster.num_workers=2"),
         "sources.edmips.batch_size", "a multiple of cluster.num_workers"),
        (("sources.edmips={min_lr: 1.0}",), "sources.edmips.min_lr", "at most lr"),
        (("controls=[unifrom]",), "controls.0", "did you mean uniform"),
        (("controls=[limpq_relativ]",), "controls.0", "did you mean limpq_relative"),
        (("importance.transform=by_scal",), "importance.transform", "did you mean by_scale"),
        (("importance.transform=log", "controls=[limpq_log]"), "controls", "limpq already"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], where: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(tmp_path, *overrides)
    told = {problem.key: str(problem) for problem in caught.value.problems}
    assert where in told
    assert says in told[where]


def _result(**values: Any) -> PhaseResult:
    return PhaseResult(
        phase="x", cost=Cost(device_s=2.0, images=10, forward_passes=3, backward_passes=1, hvps=7),
        **values,
    )  # fmt: skip


class Ran:
    """Stands for the phases: results or errors by step name, and what they were told."""

    def __init__(self, store: Any, outcomes: dict[str, Any]) -> None:
        self.store, self.outcomes, self.told = store, outcomes, {}

    def __call__(self, session: Any, work: Any, cluster: Any, *, phase: str, method: str) -> Any:
        records = []
        for step, spec in work:
            self.told[step.name] = spec
            outcome = self.outcomes[step.name]
            if isinstance(outcome, Exception):
                raise outcome
            records.append(
                phase_record(
                    "run", step, outcome, phase=phase, method=method, seed=0,
                    outputs={role: f"steps/{step.name}/{f}" for role, f in outcome.outputs.items()},
                    wall_s=0.0,
                )
            )  # fmt: skip
        return tuple(records)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The sources of a plan run without a cluster, on outcomes a test names."""
    config, plan = _config(tmp_path, *ASKED), _plan(tmp_path, *ASKED)
    two = LayerBits(weight_bits=2, act_bits=2)
    policy = make_policy(COSTS, {layer.name: layer.pinned or two for layer in COSTS}, "x")
    (tmp_path / "steps" / "one_shot-l0").mkdir(parents=True)
    save_policy(tmp_path / "steps" / "one_shot-l0" / "policy.json", policy)
    kept: list[RunRecord] = []
    session = SimpleNamespace(
        config=config,
        store=SimpleNamespace(root=tmp_path, step_dir=lambda name: tmp_path / "steps" / name,
                              relative=str),
        journal=SimpleNamespace(records=lambda: kept, append_all=lambda r: kept.extend(r)),
        say=lambda text: None, keep=kept.append, stamped=lambda record: record,
    )  # fmt: skip

    def provider(name: str, **outputs: str) -> RunRecord:
        step = plan.step(name)
        result = _result(outputs=outputs)
        return phase_record("run", step, result, phase=name, method="any", seed=0,
                            outputs=outputs, wall_s=0.0)  # fmt: skip

    providers = {
        "costs": provider("costs", costs="c.parquet"),
        "pretrain": provider("pretrain", weights="w.pt"),
        "indicators": provider("indicators", joint="j.pt", importance="i.parquet"),
    }
    good: dict[str, Any] = {
        "quantization_error": _result(outputs={"importance": "importance.parquet"}),
        "hawq-l0": _result(facts={"reason": "nothing fits its order"}),
        "one_shot-l0": _result(outputs={"policy": "policy.json"}, facts={"in_band": True},
                               metrics={"evaluations": 12.0, "reached_share": 0.99}),
        "fitted": _result(outputs={"importance": "importance.parquet"}),
    }  # fmt: skip

    def run(**changed: Any) -> Any:
        fake = Ran(session.store, good | {k.replace("_l0", "-l0"): v for k, v in changed.items()})
        monkeypatch.setattr(subject, "phase_steps", fake)
        monkeypatch.setattr(subject, "finished_record", lambda session, step: None)
        outcome = subject.source_steps(session, plan, providers, None)  # type: ignore[arg-type]
        return SimpleNamespace(outcome=outcome, kept=kept, told=fake.told, plan=plan)

    return run


def test_inputs_come_from_the_steps_that_have_them_and_costs_add_up(ran: Any) -> None:
    found = ran()
    inputs = {name: set(spec.inputs) for name, spec in found.told.items()}
    assert inputs["quantization_error"] == {"costs", "weights"}
    assert inputs["one_shot-l0"] == {"costs", "weights", "joint"}
    assert found.told["one_shot-l0"].inputs["joint"].endswith("j.pt")
    tables = found.outcome.importance
    assert set(tables) == {"quantization_error", "fitted"}
    assert tables["quantization_error"].search["search/device_s"] == 2.0
    assert tables["fitted"].search["search/device_s"] == 2.0 + 2.0  # the joint training too
    assert tables["fitted"].steps == ("fitted", "indicators")
    rows = {row.method: row for row in found.outcome.rows}
    assert rows["one_shot"].policy is not None
    assert rows["one_shot"].search["search/evaluations"] == 12.0
    assert rows["one_shot"].search["search/hvps"] == 14.0


def test_a_search_that_finds_nothing_is_a_row_with_its_reason(ran: Any) -> None:
    (row,) = [row for row in ran().outcome.rows if row.method == "hawq"]
    assert row.policy is None
    record = candidate_record("run", ran().plan.step("hawq-l0"), row, seed=0, policy_file="")
    assert record.state is State.INFEASIBLE
    (shown,) = results_of("run", [record]).rows
    assert shown.reason == "nothing fits its order"


@pytest.mark.parametrize(("share", "says"), [(0.9, "90.0 %"), (1.031, "103.1 %")])
def test_a_policy_off_its_limit_says_by_how_much(ran: Any, share: float, says: str) -> None:
    missed = _result(outputs={"policy": "policy.json"}, facts={"in_band": False},
                     metrics={"reached_share": share})  # fmt: skip
    (row,) = [r for r in ran(one_shot_l0=missed).outcome.rows if r.method == "one_shot"]
    assert row.policy is not None
    assert says in row.reason


def test_a_source_that_fails_is_said_and_the_others_go_on(ran: Any) -> None:
    lost = StepFailedError("one_shot-l0 diverged", "", "loss is nan")
    found = ran(one_shot_l0=lost, quantization_error=lost)
    assert set(found.outcome.failed) == {"quantization_error"}
    assert set(found.outcome.importance) == {"fitted"}
    (row,) = [r for r in found.outcome.rows if r.method == "one_shot"]
    assert (row.policy, row.failed) == (None, True)
    record = candidate_record("run", found.plan.step("one_shot-l0"), row, seed=0, policy_file="")
    assert record.state is State.BLOCKED
    assert not record.state.final  # asked again by the next attempt
    (cell,) = failed_candidates(found.plan.cells, found.outcome.failed)
    assert (cell.method, cell.failed) == ("quantization_error", True)


def test_being_asked_to_stop_is_no_failure_of_a_source(ran: Any) -> None:
    from orchestrator.errors import InterruptedRunError

    with pytest.raises(InterruptedRunError):
        ran(fitted=InterruptedRunError("stopped"))


def test_there_is_a_control_for_every_transform() -> None:
    controls = {c for c in get_args(Control) if c.startswith("limpq_")}
    assert controls == {f"limpq_{name}" for name in TRANSFORMS}
    hints = get_type_hints(ImportanceConfig)
    assert get_args(hints["transform"]) == tuple(TRANSFORMS)


def test_controls_of_other_transforms_stand_at_the_first_trained_alpha(tmp_path: Path) -> None:
    overrides = ("controls=[limpq_relative, limpq_by_input, reversed]",)
    cells = [c for c in _plan(tmp_path, *overrides).cells if c.method != "limpq"]
    assert {(c.method, c.alpha, c.limit_set.index) for c in cells} == {
        ("limpq_relative", 2.0, 0), ("limpq_by_input", 2.0, 0), ("reversed", 2.0, 0),
    }  # fmt: skip
    text = TEXT.replace("bits:", "method: uniform\nbits:")
    names = [step.name for step in _plan(tmp_path, *overrides, text=text).steps]
    assert "indicators" in names  # asked for on demand, whatever the method


def test_another_transform_is_another_sweep_and_the_same_indicators(tmp_path: Path) -> None:
    before = {s.name: s.key for s in _plan(tmp_path).steps}
    after = {s.name: s.key for s in _plan(tmp_path, "importance.transform=log").steps}
    assert {name for name in before if before[name] != after[name]} == {"sweep"}


def test_a_table_is_read_by_its_transform(tmp_path: Path) -> None:
    rows = tuple(
        Importance(layer=layer, tensor=tensor, bits=bits, value=scale / bits)
        for layer, scale in (("b", 1.0), ("c", 100.0))
        for tensor in ("weight", "act")
        for bits in (2, 4)
    )  # fmt: skip
    table = ImportanceTable(model="anything", fingerprint=COSTS.fingerprint, method="limpq",
                            seed=0, data_fingerprint="d", rows=rows)  # fmt: skip
    path = tmp_path / "importance.parquet"
    save_importance(path, table)
    assert ImportanceFile(path=path).read(COSTS) == table
    relative = ImportanceFile(path=path, transform="relative").read(COSTS).values()
    assert relative["b", "act", 2] == pytest.approx(relative["c", "act", 2])
    with pytest.raises(TableError, match="by_input"):
        ImportanceFile(path=path, transform="by_input").read(COSTS)
