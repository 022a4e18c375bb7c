"""Damaged tables and policies through ``mpq solve``: one clear line, exit code 2, nothing written.

Hypothesis draws 2,000 malformed inputs for the command's entry point in this process; 50 more go
through real processes.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cli import run_command
from orchestrator.errors import ExitCode
from solvers.errors import SolversError
from solvers.policy import check_fits
from solvers.storage import load_policy, save_costs, save_importance
from solvers.tables import CostTable, Importance, ImportanceTable, LayerBits, LayerSpec

NUM_IN_PROCESS = 2000
NUM_PROCESSES = 50
LAYERS = ("stem", "a", "b", "head")


def small_network() -> CostTable:
    pin = LayerBits(weight_bits=8, act_bits=8)
    return CostTable(
        model="small",
        input_shape=(3, 8, 8),
        layers=tuple(
            LayerSpec(
                name=name, kind="conv", num_macs=1000 + i, num_macs_unfloored=1000 + i,
                num_weights=100 + i, num_biases=0, num_inputs=64, num_outputs=64,
                pinned=pin if name in ("stem", "head") else None,
            )
            for i, name in enumerate(LAYERS)
        ),
    )  # fmt: skip


def small_importance(costs: CostTable) -> ImportanceTable:
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=b, value=1.0 / b)
        for name in ("a", "b")
        for tensor in ("weight", "act")
        for b in (2, 4)
    )
    return ImportanceTable(
        model="small", fingerprint=costs.fingerprint, method="test", seed=0,
        data_fingerprint="", rows=rows,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    costs = small_network()
    save_costs(folder / "costs.parquet", costs)
    save_importance(folder / "importance.parquet", small_importance(costs))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "solve", "--costs", str(folder / "costs.parquet"),
        "--importance", str(folder / "importance.parquet"), "--alpha", "1",
        "--out", str(folder / "out.json"), *(more or ("--limit", "bitops_level=3x3")),
    ]  # fmt: skip


def rewrite(path: Path, change: Callable[[dict[str, list[Any]], dict[str, Any]], None]) -> None:
    """Read a table without its reader, change it, and write it without its writer."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    facts = json.loads(table.schema.metadata[b"mpq.facts"])
    change(columns, facts)
    metadata = dict(table.schema.metadata) | {b"mpq.facts": json.dumps(facts).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


COUNTS = ("num_macs", "num_macs_unfloored", "num_weights", "num_inputs", "num_outputs")


def damage(rng: random.Random, folder: Path) -> tuple[str, str]:
    """Damage one of the two files; (what was done, a word the complaint must hold)."""
    costs, importance = folder / "costs.parquet", folder / "importance.parquet"
    row = rng.randrange(4)
    name = LAYERS[row]
    learned = rng.randrange(8)

    def at(column: str, value: object) -> Callable[[dict[str, list[Any]], dict[str, Any]], None]:
        def change(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
            columns[column][row if column in COUNTS or column in ("name", "kind") else learned] = (
                value
            )

        return change

    def drop_learned(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        gone = rng.choice(["a", "b"])
        keep = [i for i, layer in enumerate(columns["layer"]) if layer != gone]
        for column in columns:
            columns[column] = [columns[column][i] for i in keep]

    def double(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        at_row = rng.randrange(len(next(iter(columns.values()))))
        for column in columns:
            columns[column].append(columns[column][at_row])

    def without_column(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        del columns[rng.choice(sorted(columns))]

    def without_fact(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        del facts[rng.choice(sorted(facts))]

    def strange_fact(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        key = rng.choice(["model", "fingerprint"])
        facts[key] = rng.choice([None, 3, [], {}, True, 1.5])

    def other_network(columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
        facts["fingerprint"] = f"{rng.getrandbits(64):016x}"

    match rng.randrange(14):
        case 0:
            count = rng.choice(COUNTS)
            rewrite(costs, at(count, -rng.randint(1, 10**9)))
            return "negative cost", name
        case 1:
            rewrite(costs, at(rng.choice(COUNTS), None))
            return "missing cost", name
        case 2:
            rewrite(costs, at("name", LAYERS[(row + 1) % 4]))
            return "doubled or missing layer", "layer"
        case 3:
            rewrite(costs, at("kind", rng.choice(["pool", "", "CONV", None])))
            return "unknown kind", name
        case 4:
            value = rng.choice([0.0, -1.0, math.nan, math.inf, -math.inf, None])
            rewrite(importance, at("value", value))
            return f"indicator {value}", "layer"
        case 5:
            rewrite(importance, at("bits", rng.choice([0, -2, 33, 1000, None])))
            return "impossible bits", "bits"
        case 6:
            rewrite(importance, at("tensor", rng.choice(["bias", "", None])))
            return "unknown tensor", "tensor"
        case 7:
            rewrite(importance, at("layer", rng.choice(["nowhere", "", None])))
            return "unknown layer", "layer"
        case 8:
            rewrite(importance, drop_learned)
            return "layer without indicators", "layer"
        case 9:
            rewrite(rng.choice([costs, importance]), double)
            return "doubled row", "stands twice"
        case 10:
            rewrite(rng.choice([costs, importance]), without_column)
            return "missing column", "column"
        case 11:
            rewrite(rng.choice([costs, importance]), rng.choice([without_fact, strange_fact]))
            return "missing or strange fact", ""
        case 12:
            rewrite(importance, other_network)
            return "another network", "another network"
        case _:
            path = rng.choice([costs, importance])
            raw = path.read_bytes()
            kind = rng.randrange(3)
            if kind == 0:
                path.write_bytes(raw[: rng.randrange(len(raw))])
            elif kind == 1:
                path.write_bytes(rng.randbytes(rng.randrange(400)))
            else:
                path.unlink()
            return "cut short, noise or missing", path.name


BAD_OPTIONS = [
    ("--limit", "bitops=0"), ("--limit", "bitops=-1G"), ("--limit", "flops=3"),
    ("--limit", "bitops=3MiB"), ("--limit", "bitops"), ("--limit", "latency_us=3"),
    ("--limit", "peak_activation_bytes=1KiB"), ("--limit", "mean_weight_bits=3@nothing*"),
    ("--limit", "bitops=1G", "--accounting", "guess"),
    ("--limit", "bitops=1G", "--weight-bits", "2,3"),
    ("--limit", "bitops=1G", "--weight-bits", ""),
    ("--limit", "bitops=1G", "--weight-bits", "2,x"), ("--limit", "bitops=1G", "--act-bits", "0"),
    ("--limit", "bitops=1G", "--alpha", "nan"),
    ("--limit", "bitops=1G", "--time-limit", "0"), ("--device", "missing.yaml"), (),
]  # fmt: skip


def check_refused(code: int, complaint: str, folder: Path, word: str, what: str) -> None:
    assert code == ExitCode.BAD_INPUT, (what, complaint)
    assert word in complaint, (what, complaint)
    assert "Traceback" not in complaint
    assert len(complaint.strip().splitlines()) <= 4, complaint
    assert not (folder / "out.json").exists(), what


def fresh(folder: Path, sound: Path) -> None:
    for name in ("costs.parquet", "importance.parquet"):
        (folder / name).write_bytes((sound / name).read_bytes())


def test_sound_tables_are_accepted(tmp_path, sound, capsys):
    fresh(tmp_path, sound)
    assert run_command(arguments(tmp_path)) == ExitCode.DONE
    check_fits(load_policy(tmp_path / "out.json"), small_network())


def test_an_infeasible_limit_is_an_answer_and_writes_nothing(tmp_path, sound, capsys):
    fresh(tmp_path, sound)
    assert run_command(arguments(tmp_path, "--limit", "bitops=1")) == ExitCode.INCOMPLETE
    assert "out of reach" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


def test_malformed_tables(tmp_path, sound, capsys):
    num_refused = 0

    @settings(
        max_examples=NUM_IN_PROCESS, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def refused(rng):
        nonlocal num_refused
        fresh(tmp_path, sound)
        what, word = damage(rng, tmp_path)
        code = run_command(arguments(tmp_path))
        check_refused(code, capsys.readouterr().err, tmp_path, word, what)
        num_refused += 1

    refused()
    assert num_refused >= NUM_IN_PROCESS


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_malformed_options(tmp_path, sound, capsys, options):
    fresh(tmp_path, sound)
    base = arguments(tmp_path, "x")[:-1]
    code = run_command([*base, *options])
    check_refused(code, capsys.readouterr().err, tmp_path, "", str(options))


@pytest.mark.slow
def test_malformed_processes(tmp_path, sound):
    for seed in range(NUM_PROCESSES):
        fresh(tmp_path, sound)
        what, word = damage(random.Random(seed + 10**6), tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments(tmp_path)],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        check_refused(done.returncode, done.stderr, tmp_path, word, f"{seed}: {what}")


def test_malformed_policies(tmp_path, sound, capsys):
    fresh(tmp_path, sound)
    assert run_command(arguments(tmp_path)) == ExitCode.DONE
    good = (tmp_path / "out.json").read_text()
    path = tmp_path / "damaged.json"
    num_refused = 0
    for seed in range(500):
        rng = random.Random(seed)
        record = json.loads(good)
        kind = rng.randrange(4)
        layer = rng.choice(record["layers"])
        if kind == 0:
            text = good[: rng.randrange(len(good) - 2)]
        elif kind == 1:
            del record[rng.choice([k for k in record if k != "certificate"])]
            text = json.dumps(record)
        elif kind == 2:
            layer[rng.choice(["weight_bits", "act_bits"])] = rng.choice(
                [0, -1, 33, 3.5, "4", None, True, 2**80, []]
            )
            text = json.dumps(record)
        else:
            layer["name"] = rng.choice(["elsewhere", "", None, 3, LAYERS[0], LAYERS[1]])
            text = json.dumps(record)
        if text == good or json.dumps(json.loads(good)) == text:
            continue
        path.write_text(text)
        with pytest.raises(SolversError) as caught:
            check_fits(load_policy(path), small_network())
        assert "\n" not in str(caught.value)
        num_refused += 1
    assert num_refused > 450
