"""Which devices must a network fit, and how are a thousand of them made?

A device is a named set of limits. Device files are YAML (read by the orchestrator, which hands
plain mappings to ``devices_from_mapping``) or CSV with a ``name`` column and one column a kind of
limit. Three shapes of mapping are understood:

    {name: phone, limits: {bitops: 23.07G, weight_bytes: 7.97MiB}, latency_table: phone.csv}
    {devices: [ ... such mappings ... ]}
    {ranges: {count: 1000, seed: 0, spacing: log, limits: {bitops: [10G, 60G]}}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from solvers.errors import FormatError, LimitError
from solvers.latency import LatencyTable
from solvers.latency_files import read_csv_rows
from solvers.limits import Limit, limit_from

_DEVICE_KEYS = {"schema", "name", "limits", "latency_table", "notes"}
_RANGE_KEYS = {"name", "count", "seed", "spacing", "limits"}
LARGEST_COUNT = 1_000_000
_NOT_DRAWN = {
    "bitops_level": "give bitops, or list devices with a level each",
    "latency_us": "list devices, each with its latency_table",
}
ReadLatency = Callable[[str], LatencyTable]


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A named set of limits that hold together."""

    name: str
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise LimitError(f"device {self.name!r}: no limits; name at least one")


def device_from_mapping(
    mapping: object, where: str, read_latency: ReadLatency | None = None
) -> Device:
    """One device from plain values.

    Args:
        mapping: ``name``, ``limits`` and optionally ``latency_table``, ``notes``, ``schema``.
        where: file and key, as messages show it.
        read_latency: loads the table named by ``latency_table``; paths are the caller's matter.

    Raises:
        LimitError: unknown key, unknown limit or unit, no limits, an amount that is not above 0.
        FormatError: a value of the wrong kind.
    """
    fields = _mapping(mapping, where)
    _refuse_unknown(fields, _DEVICE_KEYS, where)
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        raise FormatError(f"{where}: key 'name' must be text, found {name!r}")
    where = f"{where}: device {name!r}"
    latency = None
    if fields.get("latency_table") is not None:
        named = fields["latency_table"]
        if not isinstance(named, str):
            raise FormatError(f"{where}: latency_table must be a file name, found {named!r}")
        if read_latency is None:
            raise LimitError(f"{where}: latency_table {named!r} cannot be read from here")
        latency = read_latency(named)
    limits = _mapping(fields.get("limits"), f"{where}: limits")
    try:
        return Device(
            name=name,
            limits=tuple(limit_from(str(k), amount, latency) for k, amount in limits.items()),
        )
    except LimitError as error:
        raise LimitError(f"{where}: {error}") from None


def devices_from_mapping(
    mapping: object, where: str, read_latency: ReadLatency | None = None
) -> tuple[Device, ...]:
    """One device, a list of them, or many made from ranges.

    Raises:
        LimitError: as ``device_from_mapping``; also two devices of one name.
        FormatError: a value of the wrong kind.
    """
    fields = _mapping(mapping, where)
    if "ranges" in fields:
        _refuse_unknown(fields, {"schema", "ranges", "notes"}, where)
        return _from_ranges(_mapping(fields["ranges"], f"{where}: ranges"), f"{where}: ranges")
    if "devices" not in fields:
        return (device_from_mapping(fields, where, read_latency),)
    _refuse_unknown(fields, {"schema", "devices", "notes"}, where)
    listed = fields["devices"]
    if not isinstance(listed, list) or not listed:
        raise FormatError(f"{where}: devices must be a list with at least one device")
    devices = tuple(
        device_from_mapping(item, f"{where}: devices[{i}]", read_latency)
        for i, item in enumerate(listed)
    )
    return _distinct(devices, where)


def load_devices_csv(path: Path | str) -> tuple[Device, ...]:
    """Devices from CSV: a ``name`` column and one column a kind of limit, empty = no such limit.

    Raises:
        FormatError: missing or unreadable, a column that stands twice, or a row with more cells
            than columns.
        LimitError: an unknown kind, unit or amount, naming the device.
    """
    path = Path(path)
    devices = []
    for line, row in read_csv_rows(path, ("name",)):
        name = row.pop("name", None)
        if not name:
            raise FormatError(f"{path}: line {line}: name is empty")
        try:
            limits = tuple(limit_from(k, v) for k, v in row.items() if v is not None and v.strip())
            devices.append(Device(name=name, limits=limits))
        except LimitError as error:
            raise LimitError(f"{path}: line {line}: device {name!r}: {error}") from None
    if not devices:
        raise FormatError(f"{path}: holds no device")
    return _distinct(tuple(devices), str(path))


def generate_devices(
    ranges: Mapping[str, tuple[Limit, Limit]],
    count: int,
    seed: int,
    *,
    spacing: str = "log",
    name: str = "device",
) -> tuple[Device, ...]:
    """Devices with limits drawn between two amounts a kind; the same seed draws the same.

    Args:
        ranges: kind -> (smallest, largest) limit.
        count: how many.
        seed: of the draws.
        spacing: ``log`` or ``linear``.
        name: devices are called name-0000, name-0001, ...

    Raises:
        LimitError: an impossible range, count or spacing.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= LARGEST_COUNT:
        raise LimitError(f"ranges: count is {count!r}; it must be from 1 to {LARGEST_COUNT}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise LimitError(f"ranges: seed is {seed!r}; it must be a whole number, 0 or more")
    if spacing not in ("log", "linear"):
        raise LimitError(f"ranges: spacing is {spacing!r}; use log or linear")
    rng = np.random.default_rng(seed)
    columns: list[list[Limit]] = []
    for kind, (low, high) in ranges.items():
        if low.limit > high.limit or low.act_level is not None:
            raise LimitError(f"ranges: {kind}: {low.text} to {high.text} is not a range")
        if low.layers != high.layers:
            raise LimitError(
                f"ranges: {kind}: {low.text} to {high.text} name different layers; "
                "write the same patterns behind both ends"
            )
        ends = float(low.limit), float(high.limit)
        draws = rng.random(count)
        if spacing == "log":
            amounts = np.exp(math.log(ends[0]) + draws * (math.log(ends[1]) - math.log(ends[0])))
        else:
            amounts = ends[0] + draws * (ends[1] - ends[0])
        columns.append(
            [Limit(kind=low.kind, limit=_rounded(a, low), layers=low.layers) for a in amounts]
        )
    digits = max(4, len(str(count - 1)))
    return tuple(
        Device(name=f"{name}-{i:0{digits}d}", limits=limits)
        for i, limits in enumerate(zip(*columns, strict=True))
    )


def _rounded(amount: float, low: Limit) -> Fraction | int:
    """Whole BitOps and bytes; other kinds to a thousandth."""
    if low.kind in ("bitops", "weight_bytes", "peak_activation_bytes"):
        return max(1, round(amount))
    return max(Fraction(1, 1000), Fraction(round(amount * 1000), 1000))


def _from_ranges(fields: Mapping[str, Any], where: str) -> tuple[Device, ...]:
    _refuse_unknown(fields, _RANGE_KEYS, where)
    limits = _mapping(fields.get("limits"), f"{where}: limits")
    ranges = {}
    for kind, ends in limits.items():
        if not isinstance(ends, list) or len(ends) != 2:
            raise FormatError(f"{where}: limits: {kind} must be [smallest, largest]")
        if kind in _NOT_DRAWN:
            raise LimitError(
                f"{where}: limits: {kind} cannot be drawn from a range; {_NOT_DRAWN[kind]}"
            )
        try:
            ranges[str(kind)] = (limit_from(str(kind), ends[0]), limit_from(str(kind), ends[1]))
        except LimitError as error:
            raise LimitError(f"{where}: {error}") from None
    if not ranges:
        raise LimitError(f"{where}: limits is empty; name at least one")
    try:
        return generate_devices(
            ranges,
            fields.get("count", 1000),
            fields.get("seed", 0),
            spacing=str(fields.get("spacing", "log")),
            name=str(fields.get("name", "device")),
        )
    except LimitError as error:
        raise LimitError(f"{where}: {error}") from None


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"{where}: expected a mapping, found {value!r}"[:300])
    return value


def _refuse_unknown(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in fields:
        if key not in known:
            raise LimitError(f"{where}: key {key!r} is unknown; use {', '.join(sorted(known))}")


def _distinct(devices: tuple[Device, ...], where: str) -> tuple[Device, ...]:
    seen: set[str] = set()
    for device in devices:
        if device.name in seen:
            raise LimitError(f"{where}: device {device.name!r} stands twice")
        seen.add(device.name)
    return devices
