"""Files come back as they were, appear whole or not at all, and damaged ones are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from solvers.atomic import write_atomically
from solvers.batch import Question, Tables, answer
from solvers.errors import FormatError, PolicyError, SolversError, TableError
from solvers.latency import LatencyTable, latency_ps_from_us
from solvers.latency_files import load_latency
from solvers.limits import parse_limit
from solvers.policy import check_fits, make_policy
from solvers.result import SolveRequest
from solvers.solve import solve
from solvers.storage import (
    load_costs,
    load_importance,
    load_policy,
    load_results,
    save_costs,
    save_importance,
    save_policy,
    save_results,
)
from solvers.tables import LayerBits


@pytest.fixture
def policy(tiny, tiny_importance, pairs):
    limits = (parse_limit("bitops_level=4x4"), parse_limit("peak_activation_bytes=800"))
    request = SolveRequest(
        costs=tiny, importance=tiny_importance, choices=pairs, limits=limits, alpha=2.0
    )
    return solve(request).policy


def test_round_trips(tmp_path, tiny, tiny_importance, pairs, policy):
    grouped = replace(
        tiny, layers=tuple(replace(s, group="g") if not s.pinned else s for s in tiny.layers)
    )
    for costs in (tiny, grouped):
        save_costs(tmp_path / "c.parquet", costs)
        assert load_costs(tmp_path / "c.parquet") == costs
    save_importance(tmp_path / "i.parquet", tiny_importance)
    assert load_importance(tmp_path / "i.parquet") == tiny_importance
    save_policy(tmp_path / "p.json", policy)
    assert load_policy(tmp_path / "p.json") == policy
    questions = [
        Question(label=f"q{i}", alpha=1.0, limits=(parse_limit(text),))
        for i, text in enumerate(["bitops=1", "bitops_level=4x4", "peak_activation_bytes=700"])
    ]
    results = answer(Tables(costs=tiny, importance=tiny_importance, choices=pairs), questions)
    save_results(tmp_path / "r.parquet", results)
    assert load_results(tmp_path / "r.parquet") == results
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.parquet", "i.parquet", "p.json", "r.parquet",
    ]  # fmt: skip


def test_same_bits_have_the_same_id_whatever_found_them(tiny, policy):
    again = make_policy(tiny, policy.bits_by_name(), "somebody else")
    assert again.policy_id == policy.policy_id
    other = dict(policy.bits_by_name(), a=LayerBits(weight_bits=3, act_bits=3))
    assert make_policy(tiny, other, "x").policy_id != policy.policy_id


def test_policies_must_respect_pins_and_groups(tiny, policy):
    bits = policy.bits_by_name()
    with pytest.raises(PolicyError, match="'stem' has 4x4 bits but is pinned"):
        make_policy(tiny, dict(bits, stem=LayerBits(weight_bits=4, act_bits=4)), "x")
    grouped = replace(
        tiny, layers=tuple(replace(s, group="g") if not s.pinned else s for s in tiny.layers)
    )
    bits = dict(
        bits, a=LayerBits(weight_bits=2, act_bits=2), b=LayerBits(weight_bits=4, act_bits=2)
    )
    with pytest.raises(PolicyError, match="must share bits"):
        make_policy(grouped, bits, "x")
    del bits["b"]
    with pytest.raises(PolicyError, match="layer 'b' has no bits"):
        make_policy(tiny, bits, "x")


def test_a_policy_of_another_network_names_the_first_layer_that_differs(tiny, policy):
    check_fits(policy, tiny)
    renamed = replace(tiny.layers[2], name="bb")
    with pytest.raises(PolicyError, match="layer 2 is 'b' there and 'bb' here"):
        check_fits(policy, replace(tiny, layers=(*tiny.layers[:2], renamed, tiny.layers[3])))
    larger = replace(tiny.layers[1], num_weights=401)
    with pytest.raises(PolicyError, match=r"layer 'a' has .* 400 weights there"):
        check_fits(policy, replace(tiny, layers=(tiny.layers[0], larger, *tiny.layers[2:])))
    with pytest.raises(PolicyError, match="layer 'head' is too many"):
        check_fits(policy, replace(tiny, layers=tiny.layers[:3]))
    with pytest.raises(PolicyError, match="fingerprints"):
        check_fits(policy, replace(tiny, input_shape=(3, 9, 9), fingerprint=""))


@pytest.mark.parametrize("cut", [0, 1, 4, 50, 200, -1, -8, -100])
def test_files_cut_short(tmp_path, tiny, tiny_importance, policy, cut):
    for name, save, load, value in (
        ("c.parquet", save_costs, load_costs, tiny),
        ("i.parquet", save_importance, load_importance, tiny_importance),
        ("p.json", save_policy, load_policy, policy),
    ):
        path = tmp_path / name
        save(path, value)
        path.write_bytes(path.read_bytes()[:cut])
        if name == "p.json" and cut == -1:
            assert load(path) == value  # only the final newline is gone
            continue
        with pytest.raises(FormatError, match=name):
            load(path)


def test_one_kind_of_file_is_not_another(tmp_path, tiny, tiny_importance):
    save_costs(tmp_path / "c.parquet", tiny)
    with pytest.raises(FormatError, match="holds costs/1, but importance/1"):
        load_importance(tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="no such file"):
        load_costs(tmp_path / "missing.parquet")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(schema="policy/9"), "policy/9"),
        (lambda r: r.pop("fingerprint"), "key 'fingerprint' is missing"),
        (lambda r: r["layers"][1].update(weight_bits=3), "changed by hand"),
        (lambda r: r["layers"][1].update(weight_bits=33), "layer 'a': weight_bits is 33"),
        (lambda r: r["layers"][1].update(weight_bits=2.0), "whole number"),
        (lambda r: r["layers"].append(r["layers"][0]), "layer 'stem' stands twice"),
        (lambda r: r.update(layers=[]), "layers is empty"),
        (lambda r: r["certificate"].update(status="FINE"), "status must be one of"),
        (lambda r: r["certificate"].update(gap=float("nan")), "must be finite"),
        (lambda r: r.update(cost=[]), "expected an object"),
    ],
)
def test_edited_policies(tmp_path, policy, change, complaint):
    path = tmp_path / "p.json"
    save_policy(path, policy)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SolversError, match=complaint) as caught:
        load_policy(path)
    assert "p.json" in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x"
    write_atomically(path, b"old")

    def fail(_):
        raise OSError("disk")

    monkeypatch.setattr("solvers.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_path_that_names_no_file_is_told_as_a_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == []


def test_latency_tables(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("layer,weight_bits,act_bits,latency_us\na,2,2,1.5\na,4,2,0.1\n")
    table = load_latency(path)
    assert table == LatencyTable(
        name=str(path), rows=(("a", 2, 2, 1_500_000), ("a", 4, 2, 100_000))
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"layer": ["a"], "weight_bits": [2], "act_bits": [2], "latency_us": [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    bits = LayerBits(weight_bits=2, act_bits=2)
    assert load_latency(tmp_path / "l.parquet").latency_ps("a", bits) == 1_500_000
    with pytest.raises(TableError, match="layer 'b' has no latency_us for 2 bit"):
        table.latency_ps("b", bits)


def test_latencies_are_never_rounded_down():
    # A sum of rounded-down entries could pass a limit that the true sum exceeds.
    assert latency_ps_from_us("0.0000001", "x") == 1
    assert latency_ps_from_us("1.0000005", "x") == 1_000_001
    assert latency_ps_from_us("1/3", "x") == 333_334
    assert latency_ps_from_us("1.5", "x") == 1_500_000


@pytest.mark.parametrize(
    "row",
    ["a,2,2,-1", "a,2,2,nan", "a,2,2,inf", "a,0,2,1", "a,33,2,1", ",2,2,1", "a,2,2,", "a,x,2,1",
     "a,2,2,1\na,2,2,1", "a,2,2,1e60000000", "a,2,2,1E-0060000000", "a," + "9" * 5000 + ",2,1"],
)  # fmt: skip
def test_impossible_latencies(tmp_path, row):
    path: Path = tmp_path / "l.csv"
    path.write_text(f"layer,weight_bits,act_bits,latency_us\n{row}\n")
    with pytest.raises(TableError, match=r"l\.csv"):
        load_latency(path)
