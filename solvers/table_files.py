"""How are cost and importance tables written, and read back without trust?

``costs/1``: one row a layer; network facts and tensor lifetimes in the metadata.
``importance/1``: one row a (layer, tensor, bits, value).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from solvers.accounting import check_magnitude
from solvers.columns import numbers, texts
from solvers.decode import Fields
from solvers.errors import FormatError, TableError
from solvers.parquet import read_table, write_table
from solvers.tables import (
    CostTable,
    Importance,
    ImportanceTable,
    LayerBits,
    LayerSpec,
    TensorLife,
)

COSTS_SCHEMA = "costs/1"
IMPORTANCE_SCHEMA = "importance/1"
_COUNTS = (
    "num_macs", "num_macs_unfloored", "num_weights", "num_biases", "num_inputs", "num_outputs",
)  # fmt: skip
_COST_COLUMNS = ("name", "kind", *_COUNTS, "pinned_weight_bits", "pinned_act_bits", "group")
_KINDS = ("conv", "depthwise", "linear")


def save_costs(path: Path | str, costs: CostTable) -> None:
    """Write a cost table as ``costs/1``."""
    rows = costs.layers
    columns: dict[str, Any] = {
        "name": texts([s.name for s in rows]),
        "kind": texts([s.kind for s in rows]),
    }
    columns |= {c: numbers([getattr(s, c) for s in rows], pa.int64()) for c in _COUNTS}
    pins = [s.pinned for s in rows]
    columns["pinned_weight_bits"] = numbers(
        [p.weight_bits if p else None for p in pins], pa.int64()
    )
    columns["pinned_act_bits"] = numbers([p.act_bits if p else None for p in pins], pa.int64())
    columns["group"] = texts([s.group for s in rows])
    facts = {
        "model": costs.model,
        "input_shape": list(costs.input_shape),
        "num_other_params": costs.num_other_params,
        "fingerprint": costs.fingerprint,
        "tensors": [
            {
                "num_elements": t.num_elements,
                "first_step": t.first_step,
                "last_step": t.last_step,
                "layers": list(t.layers),
            }
            for t in costs.tensors
        ],
    }
    write_table(path, COSTS_SCHEMA, facts, columns)


def load_costs(path: Path | str) -> CostTable:
    """Read ``costs/1``.

    Raises:
        FormatError: the file is not one.
        TableError: its contents are impossible, naming file, layer and key.
    """
    facts, columns = read_table(path, COSTS_SCHEMA, _COST_COLUMNS)
    about = Fields.of(facts, str(path))
    layers = []
    for i, name in enumerate(columns["name"]):
        where = f"{path}: layer {name!r}"
        if not isinstance(name, str) or not name:
            raise FormatError(f"{path}: row {i}: name must be text, found {name!r}")
        kind = columns["kind"][i]
        if kind not in _KINDS:
            raise FormatError(f"{where}: kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
        row = {c: columns[c][i] for c in _COUNTS}
        pin = (columns["pinned_weight_bits"][i], columns["pinned_act_bits"][i])
        group = columns["group"][i]
        if group is not None and not isinstance(group, str):
            raise FormatError(f"{where}: group must be text, found {group!r}")
        try:
            layers.append(
                LayerSpec(name=name, kind=kind, pinned=_pin(pin, where), group=group, **row)
            )
        except TableError as error:
            raise TableError(f"{path}: {error}") from None
    names = set(columns["name"])
    tensors = tuple(_tensor(t, names) for t in about.items("tensors"))
    shape = about.listed("input_shape")
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n <= 0 for n in shape):
        raise FormatError(f"{path}: input_shape is {shape!r}; it must hold sizes above 0")
    num_other = about.whole("num_other_params")
    if num_other < 0:
        raise TableError(f"{path}: num_other_params is {num_other}; it must be 0 or more")
    try:
        costs = CostTable(
            model=about.text("model"),
            input_shape=tuple(shape),
            layers=tuple(layers),
            num_other_params=num_other,
            tensors=tensors,
            fingerprint=about.text("fingerprint"),
        )
        check_magnitude(costs)
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
    return costs


def _pin(pin: tuple[object, object], where: str) -> LayerBits | None:
    if pin == (None, None):
        return None
    checked = []
    for key, bits in zip(("pinned_weight_bits", "pinned_act_bits"), pin, strict=True):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 32:
            raise TableError(f"{where}: {key} is {bits!r}; bit-widths are integers from 1 to 32")
        checked.append(bits)
    return LayerBits(weight_bits=checked[0], act_bits=checked[1])


def _tensor(tensor: Fields, names: set[object]) -> TensorLife:
    life = TensorLife(
        num_elements=tensor.whole("num_elements"),
        first_step=tensor.whole("first_step"),
        last_step=tensor.whole("last_step"),
        layers=tuple(tensor.listed("layers")),
    )
    if life.num_elements < 0 or life.last_step < life.first_step:
        raise TableError(
            f"{tensor.where}: {life.num_elements} elements alive from step {life.first_step} to "
            f"{life.last_step} is impossible"
        )
    for name in life.layers:
        if not isinstance(name, str):
            raise FormatError(f"{tensor.where}: layers must hold names, found {name!r}"[:300])
        if name not in names:
            raise TableError(f"{tensor.where}: layers names {name!r}, which is no layer")
    return life


def save_importance(path: Path | str, table: ImportanceTable) -> None:
    """Write an importance table as ``importance/1``."""
    facts = {f.name: getattr(table, f.name) for f in fields(ImportanceTable) if f.name != "rows"}
    columns = {
        "layer": texts([r.layer for r in table.rows]),
        "tensor": texts([r.tensor for r in table.rows]),
        "bits": numbers([r.bits for r in table.rows], pa.int64()),
        "value": numbers([r.value for r in table.rows], pa.float64()),
    }
    write_table(path, IMPORTANCE_SCHEMA, facts, columns)


def load_importance(path: Path | str) -> ImportanceTable:
    """Read ``importance/1``.

    Raises:
        FormatError: the file is not one.
        TableError: its contents are impossible, naming file, layer and key.
    """
    facts, columns = read_table(path, IMPORTANCE_SCHEMA, ("layer", "tensor", "bits", "value"))
    about = Fields.of(facts, str(path))
    rows = []
    for i, layer in enumerate(columns["layer"]):
        bits, value = columns["bits"][i], columns["value"][i]
        where = f"{path}: row {i}: layer {layer!r}"
        if not isinstance(layer, str):
            raise FormatError(f"{where}: layer must be text")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 32:
            raise TableError(f"{where}: bits is {bits!r}; bit-widths are integers from 1 to 32")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TableError(f"{where}, {bits} bit: value is {value!r}; it must be a number")
        rows.append(
            Importance(layer=layer, tensor=columns["tensor"][i], bits=bits, value=float(value))
        )
    try:
        return ImportanceTable(
            model=about.text("model"),
            fingerprint=about.text("fingerprint"),
            method=about.text("method"),
            seed=about.whole("seed"),
            data_fingerprint=about.text("data_fingerprint"),
            rows=tuple(rows),
        )
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
