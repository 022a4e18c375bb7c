"""Parquet tables whose columns or metadata are damaged end in one line, not in a traceback."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solvers.errors import FormatError, TableError
from solvers.latency_files import load_latency
from solvers.storage import load_costs, load_importance, save_costs, save_importance


def with_facts(path, text):
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata) | {b"mpq.facts": text}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def facts_of(path):
    return json.loads(pq.read_table(path).schema.metadata[b"mpq.facts"])


@pytest.fixture
def saved(tmp_path, tiny, tiny_importance):
    save_costs(tmp_path / "c.parquet", tiny)
    save_importance(tmp_path / "i.parquet", tiny_importance)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "load", "column"),
    [("c.parquet", load_costs, "num_macs"), ("i.parquet", load_importance, "value")],
)
def test_a_column_that_stands_twice(saved, name, load, column):
    path = saved / name
    table = pq.read_table(path)
    pq.write_table(table.append_column(column, table.column(column)), path)
    with pytest.raises(FormatError, match=rf"{name}: column '{column}' of .* stands 2 times"):
        load(path)


def test_a_latency_column_that_stands_twice(tmp_path):
    columns = {"layer": ["a"], "weight_bits": [2], "act_bits": [2], "latency_us": [1.5]}
    table = pa.table(columns).append_column("layer", pa.array(["b"]))
    pq.write_table(table, tmp_path / "l.parquet")
    with pytest.raises(FormatError, match=r"l\.parquet: column 'layer' stands 2 times"):
        load_latency(tmp_path / "l.parquet")


@pytest.mark.parametrize("strange", [["a"], {}, 3, None])
def test_names_of_tensors_that_are_no_text(saved, strange):
    path = saved / "c.parquet"
    facts = facts_of(path)
    facts["tensors"][1]["layers"] = [strange]
    with_facts(path, json.dumps(facts).encode())
    with pytest.raises(FormatError, match=r"c\.parquet: tensors\[1\]: layers must hold names"):
        load_costs(path)


@pytest.mark.parametrize(("name", "load"), [("c", load_costs), ("i", load_importance)])
def test_facts_nested_beyond_reading(saved, name, load):
    path = saved / f"{name}.parquet"
    with_facts(path, b"[" * 100_000)
    with pytest.raises(FormatError, match=r"facts are not JSON"):
        load(path)


@pytest.mark.parametrize("amount", [10**30, 10**400])
def test_amounts_that_no_network_has(saved, amount):
    path = saved / "c.parquet"
    facts = facts_of(path)
    with_facts(path, json.dumps(facts | {"num_other_params": amount}).encode())
    with pytest.raises(TableError, match=r"c\.parquet: .* num_other_params is too large to add up"):
        load_costs(path)
    facts["tensors"][0]["num_elements"] = amount
    with_facts(path, json.dumps(facts).encode())
    with pytest.raises(TableError, match=r"c\.parquet: .* tensors are too large to add up"):
        load_costs(path)
