from __future__ import annotations

import dataclasses
import pickle
import types
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config import (
    KnownNames,
    config_differences,
    config_tree,
    dump_config,
    load_config,
)
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import ConfigError, ConfigProblem
from orchestrator.yaml_source import dump_yaml

GOOD = """schema: experiment/1
name: run-1
model: {name: net}
data: {name: images}
"""
NAMES = KnownNames(models=["net", "net2", "resnet18"], datasets=["images"])


def _write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def _problems(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> dict[str, ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(folder, text), overrides, NAMES)
    return {p.key: p for p in caught.value.problems}


def test_defaults_fill_in(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, GOOD), names=NAMES).config
    assert config.bits.weight == (2, 3, 4, 5, 6)
    assert config.indicators.clip_grad_value == 1.0
    assert config.indicators.step_clamp == (1e-5, 1.0)
    assert config.indicators.fraction == 0.5
    assert config.train.lr == 0.04
    assert config.tracking.enabled


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    text = """schema: experiment/1
name: ../x
seeed: 3
model:
  name: resnet81
  num_classes: "10"
data:
  name: images
  path: /does/not/exist
bits: {weight: [4, 2], act: [2, true]}
pins:
  - match: "(["
    weigth_bits: 8
search:
  alphas: [1.0, 1.0]
  limits: [{bitops: 3e9}, {}, {bitopz: 1}]
  solver: highz
train:
  epochs: 5.0
  momentum: "3e9"
  label_smoothing: 1.5
  step_clamp: [1.0, 0.5]
indicators: 7
cluster: {num_workers: 3}
evaluate:
  batch_size: yes
lr: 0.1
name: again
"""
    found = _problems(tmp_path, text)
    lines = {key: problem.line for key, problem in found.items() if key != "name"}
    assert lines == {
        "seeed": 3, "model.name": 5, "model.num_classes": 6, "data.path": 9, "bits.weight": 10,
        "bits.act.1": 10, "pins.0.match": 12, "pins.0.weigth_bits": 13, "search.alphas": 15,
        "search.limits.1": 16, "search.limits.2": 16, "search.solver": 17, "train.epochs": 19,
        "train.momentum": 20, "train.label_smoothing": 21, "train.step_clamp": 22,
        "indicators": 23, "pretrain.batch_size": 1, "train.batch_size": 18,
        "evaluate.batch_size": 26, "lr": 27,
    }  # fmt: skip
    assert found["seeed"].suggestion == "did you mean seed?"
    assert "did you mean resnet18" in found["model.name"].suggestion
    assert found["model.num_classes"].suggestion == "write the number without quotes"
    assert found["train.epochs"].suggestion == "write 5"
    assert "train.lr" in found["lr"].suggestion
    assert found["search.solver"].suggestion == "did you mean highs?"
    assert "No such file" in found["data.path"].allowed
    assert found["bits.act.1"].found == "true"
    assert all(p.file.endswith("x.yaml") for p in found.values())


def test_both_faults_of_a_key_that_stands_twice_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, GOOD + "seed: x\nseed: 1\n"), (), NAMES)
    assert [(p.key, p.line) for p in caught.value.problems] == [("seed", 5), ("seed", 6)]


def test_a_latency_limit_says_where_it_works(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, GOOD + "search: {limits: [{latency_us: 850}]}\n"), (), NAMES)
    (problem,) = caught.value.problems
    assert problem.key == "search.limits.0"
    assert "mpq sweep RUN --devices FILE" in problem.allowed


METAMIX = "method: metamix\ncontrols: [uniform]\n"


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("pretrain: null", "pretrain"),
        ("bits: {weight: [2, 4], act: [3, 5], tied: true}", "bits.tied"),
        ("bits: {weight: [2, 4], act: [4, 8]}", "indicators.random_pass"),
        ("search: {train_limits: [2]}", "search.train_limits"),
        ("search: {train_alphas: [3.0]}", "search.train_alphas"),
        ("search: {limits: [{bitops: 1G}, {bitops: 1G}]}", "search.limits.1"),
        ("train: {min_lr: 1.0}", "train.min_lr"),
        ("train: {epochs: 5}", "train.warmup_epochs"),
        ("indicators: {step_clamp: [1.0, 1.0]}", "indicators.step_clamp"),
        ("method: uniform\ncontrols: [reversed]", "controls"),
        (
            "method: metamix\nbits: {weight: [4], act: [2, 4]}\n"
            "search: {limits: [{weight_bytes: 1MB}]}",
            "search.limits.0",
        ),
        ("train: {accumulate: 3}", "train.batch_size"),
        (
            "cluster: {num_workers: 2}\nindicators: {batch_size: 12, accumulate: 4}",
            "indicators.batch_size",
        ),
        (
            "evidence: {sensitivity: [{batch_size: 12, accumulate: 5}]}",
            "evidence.sensitivity.0.batch_size",
        ),
        (f"{METAMIX}bits: {{tied: true}}", "bits.tied"),
        ("sources: {edmips: {}}\nbits: {tied: true}", "bits.tied"),
        (f"{METAMIX}bits: {{weight: [4], act: [4]}}", "bits.act"),
        ("sources: {edmips: {}}\nbits: {weight: [32], act: [3]}", "bits.act"),
        (
            f"{METAMIX}metamix: {{meta: {{accumulate: 2}}, search: {{fixed_meta_state: false}}}}",
            "metamix.meta.accumulate",
        ),
        (
            f"{METAMIX}metamix: {{meta: {{precision: fp16}}, search: {{fixed_meta_state: false}}}}",
            "metamix.meta.precision",
        ),
        ("evidence: {sensitivity: [{precision: bf16}]}", "evidence.sensitivity.0.precision"),
        ("sources: {fitted: {images_from: holdout}}", "sources.fitted.images_from"),
        ("pins: [{match: fc, weight_bits: 1}]", "pins.0.weight_bits"),
        ("pins: [{match: fc, act_bits: 1}]", "pins.0.act_bits"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, extra: str, key: str
) -> None:
    assert list(_problems(tmp_path, f"{GOOD}{extra}\n")) == [key]


def test_pins_of_no_bits_or_several_are_read(tmp_path: Path) -> None:
    pins = "pins: [{match: fc, weight_bits: 0, act_bits: 0}, {match: a, weight_bits: 2}]"
    config = load_config(_write(tmp_path, f"{GOOD}{pins}\n"), names=NAMES).config
    assert [(p.weight_bits, p.act_bits) for p in config.pins] == [(0, 0), (2, 8)]


def test_parts_that_divide_every_share_are_no_contradiction(tmp_path: Path) -> None:
    text = f"{GOOD}cluster: {{num_workers: 2}}\ntrain: {{batch_size: 24, accumulate: 4}}\n"
    assert load_config(_write(tmp_path, text), names=NAMES).config.train.accumulate == 4


def test_metamix_may_aim_at_a_size_where_it_searches_weights(tmp_path: Path) -> None:
    bits = "bits: {weight: [2, 4], act: [2, 4]}"
    for target in ("weight_bytes: 1MB", "compression_rate: 8", "mean_weight_bits: 3"):
        text = f"{GOOD}method: metamix\n{bits}\nsearch: {{limits: [{{{target}}}]}}\n"
        load_config(_write(tmp_path, text), names=NAMES)


def test_a_contradiction_that_rests_on_a_wrong_key_is_not_reported(tmp_path: Path) -> None:
    found = _problems(tmp_path, f"{GOOD}search: {{train_limits: [7], limits: [{{bitopz: 1}}]}}\n")
    assert list(found) == ["search.limits.0"]


def test_given_weights_imply_no_pretraining(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    text = GOOD.replace("{name: net}", f"{{name: net, weights: {weights}}}")
    assert load_config(_write(tmp_path, text), names=NAMES).config.pretrain is None
    assert list(_problems(tmp_path, text + "pretrain: {epochs: 3}\n")) == ["pretrain"]
    missing = text.replace("w.pt", "v.pt")
    assert list(_problems(tmp_path, missing)) == ["model.weights"]


def test_workers_get_relative_paths_as_seen_from_the_drivers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"")
    text = GOOD.replace("{name: net}", "{name: net, weights: w.pt}")
    text = text.replace("{name: images}", "{name: images, path: .}")
    config = load_config(_write(tmp_path, text), (), NAMES).config
    assert config.model.spec().weights == str(tmp_path / "w.pt")
    assert config.data.spec().path == str(tmp_path)
    # What decides the result stays as written: moving a folder makes no other experiment.
    assert config.model.weights == "w.pt"


@pytest.mark.parametrize("text", ["", "3", "[1]", "schema: experiment/2\n"])
def test_what_is_no_experiment_is_refused(tmp_path: Path, text: str) -> None:
    assert _problems(tmp_path, text)


def test_overrides_are_typed_recorded_and_win_in_order(tmp_path: Path) -> None:
    overrides = (
        "train.lr=1e-3", "train.lr=2e-3", "bits.weight=[2, 4]", "bits.act=[2, 4]",
        "search.limits=[{bitops_level: 3x3}]", "search.limits.0.bitops_level=2x2",
    )  # fmt: skip
    loaded = load_config(_write(tmp_path, GOOD), overrides, NAMES)
    assert loaded.config.train.lr == 2e-3
    assert loaded.config.bits.weight == (2, 4)
    assert loaded.config.search.limits == ({"bitops_level": "2x2"},)
    assert loaded.overrides == overrides


@pytest.mark.parametrize(
    "override",
    ["x", "=1", "train..lr=1", "train.lrr=1", "seed=[", "name.x=1", "bits.weight=3", "seed=true"],
)
def test_a_wrong_override_is_a_problem_of_set(tmp_path: Path, override: str) -> None:
    (problem,) = _problems(tmp_path, GOOD, (override,)).values()
    assert problem.file == "--set"
    assert problem.line is None


@pytest.mark.parametrize("method", ["uniform", "metamix\nbits: {weight: [4], act: [2, 4]}"])
def test_a_method_without_indicators_reads_back_too(tmp_path: Path, method: str) -> None:
    config = load_config(_write(tmp_path, f"{GOOD}method: {method}\n"), names=NAMES).config
    again = load_config(_write(tmp_path, dump_config(config)), names=NAMES).config
    assert again == config


def test_the_resolved_dump_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, GOOD), ("seed=7",), NAMES).config
    again = load_config(_write(tmp_path, dump_config(config)), names=NAMES).config
    assert again == config


def test_differences_name_the_changed_keys(tmp_path: Path) -> None:
    old = load_config(_write(tmp_path, GOOD), names=NAMES).config
    new = load_config(tmp_path / "x.yaml", ("train.lr=0.5", "pretrain.steps=9"), NAMES).config
    assert config_differences(config_tree(old), config_tree(new)) == (
        "pretrain.steps: null -> 9",
        "train.lr: 0.04 -> 0.5",
    )


def test_config_errors_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, "x: 1"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def _sections(kind: typing.Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], type]]:
    """Every dataclass that an experiment file reaches, with a key path to it."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    if typing.get_origin(kind) is tuple:
        return _sections(typing.get_args(kind)[0], (*path, "0"))
    if not dataclasses.is_dataclass(kind):
        return []
    hints = typing.get_type_hints(kind)
    inner = [s for name, hint in hints.items() for s in _sections(hint, (*path, name))]
    return [(path, typing.cast(type, kind)), *inner]


SECTIONS = _sections(ExperimentConfig, ())


def test_the_walk_over_sections_reaches_all_of_them() -> None:
    names = {kind.__name__ for _, kind in SECTIONS}
    assert {"ExperimentConfig", "PinConfig", "GroupConfig", "IndicatorConfig", "TrainConfig",
            "PretrainConfig", "EvaluateConfig", "SearchConfig"} <= names  # fmt: skip


@pytest.mark.parametrize(("path", "kind"), SECTIONS, ids=lambda v: getattr(v, "__name__", None))
def test_every_section_forbids_unknown_keys_and_documents_all_its_own(
    tmp_path: Path, path: tuple[str, ...], kind: type
) -> None:
    config: dict[str, typing.Any] = config_tree(
        load_config(_write(tmp_path, GOOD), names=NAMES).config
    )
    config["pins"], config["groups"] = [{"match": "a"}], [{"name": "g", "match": "b"}]
    config["evidence"]["distributions"] = [{}]
    config["evidence"]["sensitivity"] = [{}]
    node: typing.Any = config
    for part in path:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}  # an optional section that is off by default
        node = node[int(part)] if isinstance(node, list) else node[part]
    node["unheard_of"] = 1
    key = ".".join((*path, "unheard_of"))
    assert list(_problems(tmp_path, dump_yaml(config))) == [key]
    documented = "\n".join(base.__doc__ or "" for base in kind.__mro__)
    for each in dataclasses.fields(kind):
        assert f"{each.name}:" in documented, f"{kind.__name__}.{each.name} has no documentation"


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False),
    st.text("a\u00e90.'[", max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(["name", "lr", "x"]), st.integers(), max_size=2),
)
_TOP = [f.name for f in dataclasses.fields(ExperimentConfig)]
_KEYS = st.sampled_from([*_TOP, "x", "0", "naem"])


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.dictionaries(_KEYS, _VALUES | st.dictionaries(_KEYS, _VALUES, max_size=3), max_size=6))
def test_any_tree_is_read_or_refused_with_named_keys(
    tmp_path: Path, tree: dict[str, object]
) -> None:
    base = {"schema": "experiment/1", "name": "n", "model": {"name": "net"},
            "data": {"name": "images"}}  # fmt: skip
    try:
        load_config(_write(tmp_path, dump_yaml({**base, **tree})), names=NAMES)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert all(p.key and p.found and p.allowed for p in problems)
