"""``mpq costs MODEL``: the cost table of a network and its totals under a named accounting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.errors import ExitCode, UserError

if TYPE_CHECKING:
    from solvers.accounting import Accounting, CostBreakdown
    from solvers.tables import CostTable, LayerBits


@click.command()
@click.argument("model")
@click.option("--weight-bits", type=click.IntRange(1, 32), default=32, show_default=True)
@click.option("--act-bits", type=click.IntRange(1, 32), default=32, show_default=True)
@click.option("--input", "input_shape", default="3x224x224", show_default=True, help="One image.")
@click.option("--num-classes", type=click.IntRange(1), default=1000, show_default=True)
@click.option(
    "--pin", "pins", multiple=True,
    help="EXPRESSION=8x8: bits of layers that no search changes; first match wins.",
)  # fmt: skip
@click.option("--group", "groups", multiple=True, help="Expression: its layers share their bits.")
@click.option("--accounting", default="standard", show_default=True)
@click.option("--out", help="Write the cost table, Parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    weight_bits: int,
    act_bits: int,
    input_shape: str,
    num_classes: int,
    pins: tuple[str, ...],
    groups: tuple[str, ...],
    accounting: str,
    out: str | None,
    as_json: bool,
) -> ExitCode:
    """Print what MODEL costs: a name, module:factory, or a saved cost table (.parquet)."""
    from solvers.accounting import accounting_named, cost_breakdown
    from solvers.liveness import peak_activation_bits
    from solvers.table_files import load_costs, save_costs
    from solvers.tables import LayerBits

    counted = accounting_named(accounting)
    shape = _shape(input_shape)
    pinned = tuple(_pin(text) for text in pins)
    if model.endswith(".parquet"):
        if pinned or groups:
            raise UserError("pins and groups are part of a saved table", model)
        _refuse_given(model, "--input", "input_shape")
        _refuse_given(model, "--num-classes", "num_classes")
        costs = load_costs(model)
    else:
        costs = _traced(model, shape, num_classes, pinned, groups)
    bits = LayerBits(weight_bits=weight_bits, act_bits=act_bits)
    bits_by_name = {layer.name: layer.pinned or bits for layer in costs}
    breakdown = cost_breakdown(costs, bits_by_name, counted)
    peak = peak_activation_bits(costs, bits_by_name, counted) if costs.tensors else None
    if out is not None:
        save_costs(out, costs)
    if as_json:
        record = _record(costs, bits_by_name, breakdown, peak, counted, out)
        click.echo(json.dumps(record, indent=1))
    else:
        click.echo("\n".join(_lines(costs, bits_by_name, breakdown, peak, counted, out)))
    return ExitCode.DONE


def _refuse_given(model: str, option: str, parameter: str) -> None:
    """A saved table has its image and its classes; to take others silently would be a lie."""
    source = click.get_current_context().get_parameter_source(parameter)
    if source is not ParameterSource.DEFAULT:
        raise UserError(
            f"{option} is part of a saved table", model,
            todo="leave it out, or name the network to trace it again",
        )  # fmt: skip


def _traced(
    model: str,
    shape: tuple[int, ...],
    num_classes: int,
    pins: tuple[tuple[str, int, int], ...],
    groups: tuple[str, ...],
) -> CostTable:
    from trainers.costs import trace_costs
    from trainers.models import build_model
    from trainers.phases import ModelSpec

    network = build_model(ModelSpec(name=model, num_classes=num_classes))
    return trace_costs(network, name=model, input_shape=shape, pins=pins, groups=groups)


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if len(sides) != 3 or not all(_is_whole(side, 10**5 - 1) for side in sides):
        raise UserError(f"{text[:60]!r} is not an image", "--input", todo="write 3x224x224")
    return tuple(int(side) for side in sides)


def _pin(text: str) -> tuple[str, int, int]:
    expression, _, bits = text.rpartition("=")
    weight_bits, _, act_bits = bits.partition("x")
    if not expression or not _is_whole(weight_bits, 32) or not _is_whole(act_bits, 32):
        raise UserError(
            f"{text[:60]!r} is not a pin", "--pin", todo="write EXPRESSION=8x8; widths are 1 to 32"
        )
    return expression, int(weight_bits), int(act_bits)


def _is_whole(text: str, largest: int) -> bool:
    # The length first: a text of thousands of digits is no integer to Python either.
    is_short = len(text) <= len(str(largest))
    return is_short and text.isdecimal() and 1 <= int(text) <= largest


def _record(
    costs: CostTable,
    bits_by_name: dict[str, LayerBits],
    breakdown: CostBreakdown,
    peak_bits: int | None,
    accounting: Accounting,
    out: str | None,
) -> dict[str, Any]:
    from dataclasses import asdict

    from solvers.accounting import layer_bitops

    return {
        "model": costs.model,
        "fingerprint": costs.fingerprint,
        "input_shape": list(costs.input_shape),
        "accounting": accounting.name,
        "num_macs": sum(layer.num_macs for layer in costs),
        "num_weights": sum(layer.num_weights for layer in costs),
        "bitops": breakdown.bitops,
        "bitops_g": breakdown.bitops_g,
        "size_mib": breakdown.size_mib,
        "compression": breakdown.compression,
        "peak_activation_bytes": None if peak_bits is None else peak_bits / 8,
        "out": out,
        "layers": [
            asdict(layer)
            | asdict(bits_by_name[layer.name])
            | {"bitops": layer_bitops(layer, bits_by_name[layer.name], accounting, is_first=i == 0)}
            for i, layer in enumerate(costs)
        ],
    }


def _lines(
    costs: CostTable,
    bits_by_name: dict[str, LayerBits],
    breakdown: CostBreakdown,
    peak_bits: int | None,
    accounting: Accounting,
    out: str | None,
) -> list[str]:
    from solvers.accounting import layer_bitops

    width = max(len(name) for name in costs.names)
    lines = [f"{'layer':<{width}}  kind       bits   MACs          weights      MBitOps"]
    for i, layer in enumerate(costs):
        bits = bits_by_name[layer.name]
        bitops = layer_bitops(layer, bits, accounting, is_first=i == 0)
        pair = f"{bits.weight_bits}x{bits.act_bits}" + ("*" if layer.pinned else "")
        lines.append(
            f"{layer.name:<{width}}  {layer.kind:<9}  {pair:<5}  {layer.num_macs:<12}  "
            f"{layer.num_weights:<11}  {bitops / 1e6:.3f}"
            + (f"  group {layer.group}" if layer.group else "")
        )
    num_weights = sum(layer.num_weights for layer in costs)
    lines += [
        f"{len(costs.layers)} layers, {len(costs.searched)} searched (* pinned), "
        f"{sum(s.num_macs for s in costs) / 1e6:.3f} M MACs, {num_weights} weights",
        f"{breakdown.bitops_g:.4f} GBitOps, {breakdown.size_mib:.4f} MiB "
        f"({breakdown.compression:.3f}x), accounting {accounting.name}",
    ]
    if peak_bits is not None:
        lines.append(f"peak of live activations {peak_bits / 8 / 2**20:.4f} MiB")
    if out is not None:
        lines.append(f"wrote {out}")
    return lines
