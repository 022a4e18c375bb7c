"""Studies: what a file may say, what it becomes, and what its table claims and does not claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import run_command
from orchestrator.commands.report import command as report_command
from orchestrator.compare.inputs import read_runs
from orchestrator.errors import ConfigError, DriftError, ExitCode, StoreError
from orchestrator.records import RunRecord, State
from orchestrator.study import story
from orchestrator.study.config import expand, experiment_tree, is_study, load_study
from orchestrator.study.report import write_study_report
from orchestrator.study.results import COLUMNS, study_cells, study_table, study_values
from orchestrator.study.store import (
    StudyStore,
    find_runs,
    find_study,
    keep_study,
    read_study,
    seeds_of,
)
from orchestrator.study.trials import exit_code, pending_seeds
from orchestrator.yaml_source import dump_yaml
from tests.orchestrator.run_folders import POLICIES, write_run

BASE: dict[str, Any] = {
    "schema": "experiment/1", "name": "base", "seed": 5, "method": "limpq",
    "model": {"name": "cifar_resnet14", "num_classes": 10}, "data": {"name": "digits"},
    "train": {"epochs": 2, "warmup_epochs": 0}, "search": {"alphas": [1.0], "train_limits": [0]},
    "sources": {"hawq_v2": {"images": 64}},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "schema": "study/1", "name": "s", "base": "base.yaml", "seeds": [0, 3],
    "methods": ["limpq", "uniform", "hawq_v2", "quantization_error"],
    "budgets": [{"bitops_level": "3x3"}], "settings": {"train": {"epochs": 1}},
}  # fmt: skip


def _file(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(dump_yaml(BASE))
    path = folder / "s.yaml"
    tree = {k: v for k, v in {**STUDY, **changes}.items() if v is not None}
    path.write_text(dump_yaml({**tree, "runs_dir": str(folder / "runs")}))
    return path


def test_a_study_becomes_one_experiment_a_seed(tmp_path: Path) -> None:
    study = load_study(_file(tmp_path))
    experiments = expand(study)
    assert list(experiments) == [0, 3]
    config = experiments[3][1].config
    assert (config.name, config.seed, config.method) == ("s-s3", 3, "limpq")
    assert config.controls == ("uniform",)
    assert [source.name for source, _ in config.asked_sources] == ["quantization_error", "hawq_v2"]
    assert config.sources.hawq_v2 is not None
    assert config.sources.hawq_v2.images == 64
    assert (config.train.epochs, config.search.train_limits) == (1, None)
    assert config.search.limits == ({"bitops_level": "3x3"},)
    assert config.tracking.experiment == "s"


def test_metamix_beside_limpq_is_one_run() -> None:
    study = load_study_of({**STUDY, "methods": ["limpq", "metamix", "random"]})
    tree = experiment_tree(study, BASE, 0)
    assert (tree["method"], tree["controls"]) == ("metamix", ["limpq", "random"])
    assert tree["sources"] == {}


def load_study_of(tree: dict[str, Any]) -> Any:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(dump_yaml(tree))
        return load_study(path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"schema": "study/2"}, "study/1"), ({"seeds": [0, 0]}, "seeds.1"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [True]}, "seeds.0"), ({"seeds": [-1]}, "seeds.0"), ({"name": "../x"}, "name"),
        ({"methods": ["limp"]}, "did you mean limpq"), ({"budgets": [{}]}, "budgets.0"),
        ({"base": None}, "base"), ({"extra": 1}, "unknown key"),
        ({"settings": {"seed": 3}}, "said by the study"), ({"settings": 3}, "sections"),
        ({"methods": "limpq"}, "methods"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_study_is_said_with_its_key(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(_file(tmp_path, **changes))
    assert found in str(caught.value)


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"sources": ["hawq_v2"]}, "sources: found ['hawq_v2']; allowed: a section"),
    ({"sources": "x"}, "sources: found 'x'; allowed: a section"),
    ({"search": "x"}, "search: found 'x'; allowed: a section"),
    ({"search": [1]}, "search: found [1]; allowed: a section"),
    ({"tracking": "x"}, "tracking: found 'x'; allowed: a section"),
    ({"sources": {"hawq_v22": {"images": 8}}}, "did you mean hawq_v2"),
]


@pytest.mark.parametrize(("given", "told"), SHAPES)
def test_sections_of_another_shape_are_told_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, Any], told: str
) -> None:
    key = next(iter(given))
    path = _file(tmp_path, settings=given)
    assert run_command(["study", str(path), "--plan"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if f"  {key}:" in text)
    assert f"{path}:{line}: settings.{key}" in said or f"{path}:{line + 1}: settings.{key}" in said
    # The same in the base, where another file is named.
    path = _file(tmp_path)
    (tmp_path / "base.yaml").write_text(dump_yaml({**BASE, **given}))
    assert run_command(["study", str(path), "--plan"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    assert str(tmp_path / "base.yaml") in said


def test_sections_without_a_value_and_sources_that_are_not_asked_for_are_fine(
    tmp_path: Path,
) -> None:
    for settings in (
        {"tracking": None, "sources": None}, {"sources": {"hawq": {"images": 8}, "hawq_v2": None}},
    ):  # fmt: skip
        assert list(expand(load_study(_file(tmp_path, settings=settings)))) == [0, 3]


def test_a_key_that_stands_twice_in_the_base_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    text = (tmp_path / "base.yaml").read_text()
    (tmp_path / "base.yaml").write_text(f"{text}accounting: standard\naccounting: limpq\n")
    with pytest.raises(ConfigError, match="twice"):
        expand(load_study(path))


def test_what_the_study_makes_of_its_base_is_checked_before_anything_starts(tmp_path: Path) -> None:
    study = load_study(_file(tmp_path, settings={"train": {"epoch": 1}}))
    with pytest.raises(ConfigError, match=r"s\.yaml over .*base\.yaml, seed 0"):
        expand(study)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["run", "plan", "status"])
def test_a_study_given_as_an_experiment_is_one_error_that_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    path = _file(tmp_path)
    assert run_command([verb, str(path)]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "has 1 problem:" in said
    assert f"{path}:1: schema: found 'study/1': this is a study" in said
    assert f"mpq study {path}" in said
    assert not (tmp_path / "runs").exists()


def test_an_experiment_given_as_a_study_or_a_study_as_its_base_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path)
    assert run_command(["study", str(tmp_path / "base.yaml"), "--plan"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "has 1 problem:" in said
    assert f"mpq run {tmp_path / 'base.yaml'}" in said
    assert not is_study(tmp_path / "base.yaml")
    with pytest.raises(ConfigError, match="found a study; allowed: an experiment"):
        expand(load_study(_file(tmp_path, base=path.name)))


def _kept(path: Path) -> StudyStore:
    study = load_study(path)
    return keep_study(study, expand(study))


def test_seeds_may_be_added_and_nothing_else(tmp_path: Path) -> None:
    store = _kept(_file(tmp_path))
    assert "s-s3" in store.config_path(3).read_text()
    more = _kept(_file(tmp_path, seeds=[7]))
    assert sorted(more.runs) == [0, 3, 7]
    elsewhere = {"train": {"epochs": 1}, "cluster": {"num_workers": 2}}
    assert sorted(_kept(_file(tmp_path, settings=elsewhere)).runs) == [0, 3, 7]
    with pytest.raises(DriftError, match="settings"):
        _kept(_file(tmp_path, settings={"train": {"epochs": 2}}))
    with pytest.raises(DriftError, match="budgets"):
        _kept(_file(tmp_path, budgets=[{"bitops_level": "2x2"}]))
    write_run(tmp_path / "runs", "taken")
    with pytest.raises(StoreError, match="is a run"):
        _kept(_file(tmp_path, name="taken"))


def test_a_study_is_found_by_name_folder_and_file(tmp_path: Path) -> None:
    path = _file(tmp_path)
    assert is_study(path)
    with pytest.raises(StoreError, match="not started"):
        find_study(str(path), "runs")
    _kept(path)
    runs = str(tmp_path / "runs")
    for text in (str(path), f"{runs}/s", "s"):
        found = find_study(text, runs)
        assert found is not None
        assert found.runs == {0: "s-s0", 3: "s-s3"}
    assert find_study("nothing", runs) is None
    assert [store.name for store in find_runs("s", runs)] == ["s-s0", "s-s3"]
    (tmp_path / "runs" / "s" / "study.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        read_study(tmp_path / "runs", "s")


def _top1(shift: float) -> dict[tuple[str, str], float]:
    """limpq is 1, 2 and 6 points above uniform for shifts 0, 1 and 2."""
    above = {0.0: 1.0, 1.0: 2.0, 2.0: 6.0}[shift]
    return {
        (method, budget): 80.0 + shift + (above if method == "limpq" else 0.0)
        for method, budget in POLICIES
    }


def test_the_table_is_what_is_worked_out_by_hand(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, f"s-s{n}", seed=n, top1=_top1(float(n))) for n in range(3)]
    table = study_table("s", {n: f"s-s{n}" for n in range(3)}, read_runs(stores))
    row = next(r for r in table.rows if (r.method, r.limits) == ("limpq", "bitops=1G"))
    # 81, 83, 88: mean 84, squares 9 + 1 + 16.
    assert row.accuracy is not None
    assert (row.accuracy.mean, row.accuracy.sd) == (84.0, pytest.approx(13**0.5))
    assert row.against is not None
    assert row.against.difference.mean == 3.0
    # Full precision is 99 in every seed: it lost 18, 16 and 11 points.
    assert row.drop is not None
    assert row.drop.mean == 15.0
    # Paired t of 1, 2, 6 has p 0.18851; Holm over the two rows of limpq doubles it.
    assert row.against.p_value == pytest.approx(0.18851, abs=2e-4)
    assert row.p_adjusted == pytest.approx(2 * 0.18851, abs=4e-4)
    random = next(r for r in table.rows if (r.method, r.limits) == ("random", "bitops=1G"))
    assert random.against is not None
    assert random.against.p_value is None  # equal to uniform in every seed
    uniform = next(r for r in table.rows if r.method == "uniform")
    assert uniform.against is None
    cells = dict(zip(COLUMNS, study_cells(row), strict=True))
    assert (cells["n"], cells["top-1 %"], cells["against uniform"]) == ("3 of 3", "84.00", "+3.00")
    assert (cells["search"], cells["drop"]) == ("30 s + 10 ms", "+15.00")
    assert json.loads(json.dumps(study_values(table)))["rows"][0]["method"] == "limpq"


def test_failed_and_missing_seeds_are_named_and_never_averaged(tmp_path: Path) -> None:
    lost = {k: v for k, v in _top1(1.0).items() if k != ("limpq", "1G")}
    failed = RunRecord(run="x", step="hawq_v2", key="h", phase="source", method="hawq_v2",
                       state=State.FAILED, message="no memory")  # fmt: skip
    stores = [
        write_run(tmp_path, "s-s0", seed=0, top1=_top1(0.0)),
        write_run(tmp_path, "s-s1", seed=1, top1=lost, extra=[failed], data="other"),
    ]
    table = study_table("s", {0: "s-s0", 1: "s-s1", 2: "s-s2"}, read_runs(stores))
    row = next(r for r in table.rows if (r.method, r.limits) == ("limpq", "bitops=1G"))
    assert dict(row.top1) == {0: 81.0}
    assert row.lacking == {1: "DIVERGED: loss is nan <at> step 3", 2: "not run"}
    assert row.accuracy is not None
    assert (row.accuracy.sd, row.accuracy.low) == (None, None)
    cells = dict(zip(COLUMNS, study_cells(row), strict=True))
    assert (cells["n"], cells["95 % interval"]) == ("1 of 3", "one seed")
    for part in ("seed 2 (s-s2): not run", "seed 1: hawq_v2 FAILED: no memory",
                 "seed 1 differs in data: other against data-1"):  # fmt: skip
        assert part in table.problems


def test_limits_out_of_reach_skipped_images_and_unknown_costs_are_shown(tmp_path: Path) -> None:
    out = RunRecord(
        run="x", step="sweep/o", key="o", phase="solve", method="limpq", state=State.INFEASIBLE,
        alpha=1.0, limits={"bitops": "0.1G"},
        facts={"bounds": {"bitops": 10**8}, "smallest": {"bitops": 2 * 10**8},
               "resources": {"bitops": "bitops"}},
    )  # fmt: skip
    skip = RunRecord(run="x", step="e", key="e", phase="evidence", method="any", state=State.DONE,
                     facts={"skipped_images": ["a.jpg: truncated"]})  # fmt: skip
    stores = [
        write_run(tmp_path, "s-s0", seed=0, top1=_top1(0.0), extra=[out]),
        write_run(tmp_path, "s-s1", seed=1, top1=_top1(1.0), extra=[out, skip]),
    ]
    asked = {0: "s-s0", 1: "s-s1"}
    table = write_study_report("s", asked, stores, tmp_path / "s")
    data = (tmp_path / "s" / "figures" / "accuracy.csv").read_text()
    assert "limit out of reach,,0.1,,,,limit" in data
    assert "limits that no policy can meet" in (tmp_path / "s" / "report.html").read_text()
    assert "limit out of reach" not in (tmp_path / "s" / "figures/accuracy_size.csv").read_text()
    assert any(p.startswith("seed 1: 1 image could not be read") for p in table.problems)
    assert "seed 1 differs in skipped images: 1 against 0" in table.problems
    (row,) = [r for r in table.rows if r.limits == "bitops=0.1G"]
    assert study_cells(row)[COLUMNS.index("search")] == "0"  # no policy: nothing was searched
    limpq = next(r for r in table.rows if r.method == "limpq" and r.top1)
    assert study_cells(replace(limpq, search_s=None))[COLUMNS.index("search")] == (
        "not recorded + 10 ms"
    )


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, "s-s0", top1=_top1(0.0))]
    table = write_study_report("s", {0: "s-s0"}, stores, tmp_path / "s")
    assert "one seed: no standard deviation, no interval and no test" in table.problems
    text = (tmp_path / "s" / "report.html").read_text()
    assert "One seed: no interval and no test is claimed." in text
    assert all(row.p_adjusted is None for row in table.rows)


def test_the_page_of_a_study_is_whole_escaped_and_the_same_bytes(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, f"s-s{n}", seed=n, top1=_top1(float(n))) for n in range(3)]
    asked = {n: f"s-s{n}" for n in range(3)}
    pages = []
    for _ in range(2):
        write_study_report("s", asked, stores, tmp_path / "s")
        pages.append([p.read_bytes() for p in sorted((tmp_path / "s").rglob("*")) if p.is_file()])
    assert pages[0] == pages[1]
    text = (tmp_path / "s" / "report.html").read_text()
    for title in ("Results", "Against uniform", "Accuracy", "Search cost", "Policy stability",
                  "Proxy validity", "Not run", "Runs"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    assert "<img src=x" not in text
    assert "<script" not in text
    assert 'href="../s-s1/report.html"' in text


def test_the_report_command_takes_a_study_and_several_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    _kept(_file(tmp_path))
    for seed in (0, 3):
        write_run(runs, f"s-s{seed}", seed=seed, top1=_top1(0.0))
    result = CliRunner().invoke(report_command, ["s", "--runs-dir", str(runs)])
    assert result.exit_code == 0, result.output
    assert (runs / "s" / "report.html").is_file()
    out = tmp_path / "both"
    arguments = ["s-s0", "s-s3", "--runs-dir", str(runs), "--output", str(out)]
    result = CliRunner().invoke(report_command, arguments)
    assert result.exit_code == 0, result.output
    assert (out / "report.html").is_file()
    twins = [write_run(tmp_path / "a", "x"), write_run(tmp_path / "b", "y")]
    with pytest.raises(StoreError, match="same seed"):
        seeds_of(twins)


def test_a_study_runs_what_is_missing_and_ends_as_its_runs_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(_file(tmp_path, settings={"tracking": {"enabled": False}}))
    experiments = expand(study)
    write_run(tmp_path / "runs", "s-s0", seed=0, top1=_top1(0.0))
    asked: list[int] = []

    def run(store: Any, seeds: Any, **_: Any) -> dict[int, int]:
        asked.extend(seeds)
        write_run(tmp_path / "runs", "s-s3", seed=3, top1=_top1(1.0), finished=bool(asked[1:]))
        return dict.fromkeys(seeds, 0 if asked[1:] else 130)

    monkeypatch.setattr(story, "run_study", run)
    order = story.StudyOrder(study=study, experiments=experiments, quiet=True)
    table, store, code = story.run_whole_study(order)
    assert (asked, code) == ([3], ExitCode.INTERRUPTED)
    assert pending_seeds(store) == [3]
    assert exit_code(store, 3) is None
    assert "seed 3 (s-s3): has not finished" in table.problems


def test_reuse_of_a_study_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    study = load_study(_file(tmp_path))
    order = story.StudyOrder(study=study, experiments=expand(study), reuse=("gone",), quiet=True)
    with pytest.raises(StoreError, match="no study 'gone'"):
        story.run_whole_study(order)
