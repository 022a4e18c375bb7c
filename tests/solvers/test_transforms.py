"""Named transforms of indicators against their formulas, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from solvers.errors import FormatError, TableError
from solvers.importance import read_indicators
from solvers.layer_statistics import TensorStatistics, load_statistics, save_statistics
from solvers.tables import BitChoices, CostTable, Importance, ImportanceTable, LayerSpec
from solvers.transforms import NEED_STATISTICS, TRANSFORMS, check_transform, transform

BITS = (2, 3, 4)


def layer(name, macs, weights, inputs):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=weights,
        num_biases=0, num_inputs=inputs, num_outputs=10,
    )  # fmt: skip


COSTS = CostTable(
    model="m", input_shape=(1, 8, 8), layers=(layer("a", 300, 10, 40), layer("b", 100, 30, 20))
)
VALUE = {
    ("a", "weight"): (0.8, 0.4, 0.2), ("a", "act"): (0.6, 0.3, 0.1),
    ("b", "weight"): (0.08, 0.05, 0.02), ("b", "act"): (0.1, 0.05, 0.03),
}  # fmt: skip
TABLE = ImportanceTable(
    model="m",
    fingerprint=COSTS.fingerprint,
    method="limpq",
    seed=0,
    data_fingerprint="d",
    rows=tuple(
        Importance(layer=name, tensor=tensor, bits=b, value=v)
        for (name, tensor), values in VALUE.items()
        for b, v in zip(BITS, values, strict=True)
    ),
)
STATISTICS = tuple(
    TensorStatistics(
        layer=r.layer, tensor=r.tensor, bits=r.bits, std=4.0 if r.layer == "a" else 0.5,
        mean_abs=1.0, num_elements=7, mean_abs_gradient=0.1 * r.bits,
    )
    for r in TABLE.rows
)  # fmt: skip


def by(name, **changes):
    return transform(TABLE, COSTS, name, changes.get("statistics", STATISTICS)).values()


def test_raw_is_the_table_itself():
    assert transform(TABLE, COSTS, "raw") is TABLE


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relative", lambda k, v, own: v / (sum(own) / 3)),
        ("by_scale", lambda k, v, own: v / (own[2] * 15)),
        ("by_input", lambda k, v, own: v / (4.0 if k[0] == "a" else 0.5)),
        ("by_gradient", lambda k, v, own: v * 0.1 * k[2]),
        ("by_macs", lambda k, v, own: v * (1.5 if k[0] == "a" else 0.5)),
        (
            "by_elements",
            lambda k, v, own: (
                v * {"aw": 10 / 20, "bw": 30 / 20, "aa": 40 / 30, "ba": 20 / 30}[k[0] + k[1][0]]
            ),
        ),
    ],
)
def test_each_transform_is_its_formula(name, formula):
    for key, value in by(name).items():
        own = VALUE[key[:2]]
        assert value == pytest.approx(formula(key, own[BITS.index(key[2])], own), rel=1e-12)


def test_logarithms_keep_differences_and_are_positive():
    values = by("log")
    raw = TABLE.values()
    first, second = ("a", "weight", 2), ("b", "act", 4)
    assert values[first] - values[second] == pytest.approx(math.log(raw[first] / raw[second]))
    assert min(values.values()) > 0


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_gives_a_table_the_solver_takes(name):
    table = transform(TABLE, COSTS, name, STATISTICS)
    assert table.method == ("limpq" if name == "raw" else f"limpq-{name}")
    assert table.values().keys() == TABLE.values().keys()
    choices = BitChoices(weight_bits=BITS, act_bits=BITS)
    assert read_indicators(table, COSTS, choices, "isotonic").values


@pytest.mark.parametrize("name", ["relative", "by_scale", "by_input"])
def test_magnitude_is_taken_out(name):
    # A tensor that is 100 times as large has steps and spread 100 times as large.
    rows = tuple(replace(r, value=r.value * 100) if r.layer == "a" else r for r in TABLE.rows)
    spread = tuple(replace(s, std=s.std * 100) if s.layer == "a" else s for s in STATISTICS)
    scaled = transform(replace(TABLE, rows=rows), COSTS, name, spread).values()
    for key, value in by(name).items():
        assert scaled[key] == pytest.approx(value)


def test_a_step_without_gradient_takes_the_smallest_seen():
    held = tuple(
        replace(s, mean_abs_gradient=0.0) if (s.layer, s.bits) == ("a", 4) else s
        for s in STATISTICS
    )
    assert by("by_gradient", statistics=held)["a", "weight", 4] == pytest.approx(0.2 * 0.2)


def test_what_is_missing_is_named():
    with pytest.raises(TableError, match="'best': unknown; use raw, relative"):
        check_transform("best")
    for name in NEED_STATISTICS:
        with pytest.raises(TableError, match="needs layer statistics"):
            transform(TABLE, COSTS, name)
        with pytest.raises(TableError, match="'b'"):
            transform(TABLE, COSTS, name, [s for s in STATISTICS if s.layer == "a"])
    dead = tuple(replace(s, std=0.0) for s in STATISTICS)
    with pytest.raises(TableError, match="no spread"):
        by("by_input", statistics=dead)
    still = tuple(replace(s, mean_abs_gradient=0.0) for s in STATISTICS)
    with pytest.raises(TableError, match="every gradient is 0"):
        by("by_gradient", statistics=still)


def test_statistics_survive_a_file(tmp_path):
    save_statistics(tmp_path / "s.parquet", STATISTICS)
    assert load_statistics(tmp_path / "s.parquet") == STATISTICS
    with pytest.raises(FormatError, match="no such file"):
        load_statistics(tmp_path / "other.parquet")
    with pytest.raises(TableError, match="std is nan"):
        replace(STATISTICS[0], std=math.nan)
