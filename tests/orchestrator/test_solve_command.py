"""``mpq solve``, ``mpq explain`` and ``mpq costs`` on saved tables, through the entry point."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.instances import indicators
from benchmarks.networks import resnet18, resnet50
from orchestrator.cli import run_command
from orchestrator.device_files import load_devices
from orchestrator.errors import ExitCode
from solvers import layer_report
from solvers.certificate import SolveStatus
from solvers.policy import check_fits
from solvers.search import search
from solvers.storage import (
    load_importance,
    load_policy,
    load_results,
    save_costs,
    save_importance,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("tables")
    costs = resnet18()
    save_costs(at / "costs.parquet", costs)
    save_importance(at / "importance.parquet", indicators(costs, 0))
    return at


def on(folder: Path, verb: str, *more: str) -> list[str]:
    tables = ["--costs", str(folder / "costs.parquet")]
    tables += ["--importance", str(folder / "importance.parquet"), "--alpha", "2"]
    return [verb, *tables, *more]


def test_one_policy(folder, tmp_path, capsys):
    out = tmp_path / "p.json"
    code = run_command(on(folder, "solve", "--limit", "bitops=20G", "--out", str(out), "--json"))
    assert code == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    policy = load_policy(out)
    check_fits(policy, resnet18())
    assert said["policy"]["policy_id"] == policy.policy_id
    assert said["status"] == "PROVEN_OPTIMAL"
    (use,) = said["uses"]
    assert use["use"] == policy.cost.bitops <= use["bound"] == 20 * 10**9
    assert use["slack"] == use["bound"] - use["use"]
    assert policy.certificate.price_method == "resolved"


def test_words_for_people(folder, capsys):
    assert run_command(on(folder, "solve", "--limit", "bitops=20G")) == ExitCode.DONE
    text = capsys.readouterr().out
    assert "PROVEN_OPTIMAL" in text
    assert "1 % more buys" in text


def test_infeasible(folder, tmp_path, capsys):
    out = tmp_path / "p.json"
    code = run_command(on(folder, "solve", "--limit", "bitops=1G", "--out", str(out), "--json"))
    assert code == ExitCode.INCOMPLETE
    said = json.loads(capsys.readouterr().out)
    assert said["policy"] is None
    assert said["infeasibility"]["causes"][0]["name"] == "conv1"
    assert not out.exists()


def test_devices_with_and_without_the_front_agree(folder, tmp_path, capsys):
    devices = tmp_path / "devices.csv"
    lines = [f"d{i},{amount}G," for i, amount in enumerate((1, 16, 20, 30, 60))]
    devices.write_text("name,bitops,weight_bytes\n" + "\n".join([*lines, "both,20G,4MiB"]) + "\n")
    answers = {}
    for name, flag in (("front", ["--front"]), ("solver", [])):
        out = tmp_path / f"{name}.parquet"
        code = run_command(on(folder, "solve", "--device", str(devices), "--out", str(out), *flag))
        assert code == ExitCode.INCOMPLETE  # the first device is out of reach
        answers[name] = load_results(out)
    rows = list(zip(answers["front"].rows, answers["solver"].rows, strict=True))
    for fast, slow in rows:
        assert (fast.label, fast.status, fast.objective) == (
            slow.label,
            slow.status,
            slow.objective,
        )
    assert [fast.solver for fast, _ in rows[:5]] == ["front"] * 5
    assert [fast.status for fast, _ in rows].count(SolveStatus.PROVEN_OPTIMAL) == 5
    assert "out of reach" in rows[0][0].reason


def test_the_front_itself_for_two_alphas(folder, tmp_path, capsys):
    out = tmp_path / "front.parquet"
    code = run_command(on(folder, "solve", "--alpha", "1", "--front", "--out", str(out), "--json"))
    assert code == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    rows = load_results(out).rows
    assert said["num_rows"] == len(rows) > 1000
    assert {row.alpha for row in rows} == {1.0, 2.0}
    one = [row for row in rows if row.alpha == 1.0]
    assert all(a.uses < b.uses for a, b in itertools.pairwise(one))


def test_explain(folder, capsys):
    code = run_command(on(folder, "explain", "layer2.0.conv1", "--limit", "bitops=20G", "--json"))
    assert code == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    assert said["layer"] == "layer2.0.conv1"
    assert said["next_costs"] > 0
    assert len(said["options"]) == 25
    assert run_command(on(folder, "explain", "conv9", "--limit", "bitops=20G")) == 2
    assert "no layer 'conv9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "told", "code"),
    [
        ("PROVEN_OPTIMAL", "PROVEN_OPTIMAL", "more\n", ExitCode.DONE),
        ("PROVEN_OPTIMAL", "FEASIBLE_UNPROVEN", "more (not proven", ExitCode.INCOMPLETE),
        ("FEASIBLE_UNPROVEN", "PROVEN_OPTIMAL", "more (not proven", ExitCode.INCOMPLETE),
        ("PROVEN_OPTIMAL", "INFEASIBLE", "without this pair nothing fits", ExitCode.DONE),
        ("PROVEN_OPTIMAL", "NO_SOLUTION_IN_TIME", "found nothing within", ExitCode.INCOMPLETE),
    ],
)
def test_explain_says_what_the_second_solve_proved(
    folder, capsys, monkeypatch, first, second, told, code
):
    statuses = []

    def ended(problem, **options):
        status = SolveStatus((first, second)[len(statuses)])
        statuses.append(status)
        found = search(problem, **options)
        return replace(found, status=status, picks=found.picks if status.has_policy else None)

    monkeypatch.setattr(layer_report, "search", ended)
    asked = on(folder, "explain", "layer2.0.conv1", "--limit", "bitops=20G")
    assert run_command(asked) == code
    assert told in capsys.readouterr().out
    statuses.clear()
    assert run_command([*asked, "--json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["next_status"]) == (first, second)


def test_explain_of_a_pinned_layer_does_not_claim_that_nothing_else_fits(folder, capsys):
    asked = on(folder, "explain", "conv1", "--limit", "bitops=20G")
    assert run_command(asked) == ExitCode.DONE
    text = capsys.readouterr().out
    assert "next choice: none; this pair is the only one it may take" in text
    assert run_command([*asked, "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["next_status"] is None


@pytest.mark.parametrize(("tensor", "option"), [("act", "--weight-bits"), ("weight", "--act-bits")])
def test_a_table_of_one_tensor_needs_the_candidates_of_the_other_and_no_more(
    folder, tmp_path, capsys, tensor, option
):
    full = load_importance(folder / "importance.parquet")
    rows = tuple(row for row in full.rows if row.tensor == tensor)
    save_importance(tmp_path / "importance.parquet", replace(full, rows=rows))
    save_costs(tmp_path / "costs.parquet", resnet18())
    asked = on(tmp_path, "solve", "--limit", "bitops=30G")
    assert run_command(asked) == ExitCode.BAD_INPUT
    other = {"act": "weight", "weight": "act"}[tensor]
    assert f"name the candidates of the {other} tensor" in capsys.readouterr().err
    assert run_command([*asked, option, "4", "--json"]) == ExitCode.DONE
    bits = json.loads(capsys.readouterr().out)["policy"]["layers"]
    found = {layer[f"{other}_bits"] for layer in bits if layer["name"] not in ("conv1", "fc")}
    assert found == {4}


def test_costs_of_a_saved_table(folder, capsys):
    table = str(folder / "costs.parquet")
    assert run_command(["costs", table, "--weight-bits", "4", "--act-bits", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert round(said["bitops_g"], 3) == 34.714
    assert said["bitops"] == sum(layer["bitops"] for layer in said["layers"])
    assert run_command(["costs", table, "--pin", "conv1=8x8"]) == ExitCode.BAD_INPUT


def test_a_latency_table_beside_the_device_file(folder, tmp_path, capsys):
    lines = ["layer,weight_bits,act_bits,latency_us"]
    for layer in resnet18():
        widths = (8,) if layer.pinned else range(2, 7)
        lines += [f"{layer.name},{w},{a},{w + a}" for w in widths for a in widths]
    (tmp_path / "chip.csv").write_text("\n".join(lines) + "\n")
    device = tmp_path / "chip.yaml"
    text = "name: chip\nlimits: {latency_us: 150, bitops: 30G}\nlatency_table: chip.csv\n"
    device.write_text(text)
    assert run_command(on(folder, "solve", "--device", str(device), "--json")) == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    assert [use["kind"] for use in said["uses"]] == ["latency_us", "bitops"]
    # The table holds the pinned layers at their pins only, as it was measured.
    device.write_text(text.replace("150", "5"))
    assert run_command(on(folder, "solve", "--device", str(device))) == ExitCode.INCOMPLETE
    assert "out of reach: latency_us=5" in capsys.readouterr().out
    device.write_text(text)
    (tmp_path / "chip.csv").write_text("\n".join(lines[:-30]) + "\n")
    assert run_command(on(folder, "solve", "--device", str(device))) == ExitCode.BAD_INPUT
    assert "chip.csv: layer" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs/devices").glob("*.yaml")), ids=str)
def test_shipped_device_files_load(path):
    from solvers.limits import ceilings_of

    devices = load_devices(str(path))
    assert devices
    for device in devices[:10]:
        from solvers.accounting import STANDARD

        assert all(c.bound > 0 for c in ceilings_of(device.limits, resnet50(), STANDARD))


def test_neither_torch_nor_ray_is_imported(folder):
    arguments = on(folder, "solve", "--limit", "bitops=20G")
    code = (
        "import sys\n"
        "from orchestrator.cli import run_command\n"
        f"assert run_command({arguments!r}) == 0\n"
        "bad = {'torch', 'ray', 'mlflow'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_pool_of_near_policies(folder, tmp_path, capsys):
    out = tmp_path / "pool.parquet"
    asked = ["--limit", "bitops=16G", "--pool", "0.2%", "--most", "4"]
    assert run_command(on(folder, "solve", *asked, "--out", str(out), "--json")) == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    results = load_results(out)
    assert [row["label"] for row in said["rows"]] == [row.label for row in results.rows]
    assert said["end"] in ("complete", "full")
    assert said["within_percent"] == 0.2
    objectives = [row.objective for row in results.rows]
    assert objectives == sorted(objectives)
    assert objectives[-1] <= objectives[0] * 1.002
    assert len({row.policy_id for row in results.rows}) == len(results.rows) > 1
    assert all(row.uses[0] <= 16 * 10**9 for row in results.rows)
    assert run_command(on(folder, "solve", *asked)) == ExitCode.DONE
    text = capsys.readouterr().out
    assert text.startswith(f"{len(results.rows)} policies within 0.2 % of the optimum")
    assert "near-001" in text


def test_a_pool_where_nothing_fits_says_why_and_writes_nothing(folder, tmp_path, capsys):
    out = tmp_path / "pool.parquet"
    asked = ["--limit", "bitops=1G", "--pool", "1", "--out", str(out)]
    assert run_command(on(folder, "solve", *asked)) == ExitCode.INCOMPLETE
    assert "out of reach" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--pool", "much"], ["--pool", "-1%"], ["--pool", "nan"], ["--pool", "1%", "--most", "0"],
        ["--pool", "1%", "--front"], ["--pool", "1%", "--alpha", "3"],
    ],
)  # fmt: skip
def test_impossible_pools_are_refused(folder, capsys, options):
    code = run_command(on(folder, "solve", "--limit", "bitops=16G", *options))
    assert code == ExitCode.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err
