"""Limits as people write them become integers, or one clear complaint."""

from fractions import Fraction

import pytest

from solvers.accounting import STANDARD, full_precision_size_bits
from solvers.errors import LimitError
from solvers.limits import Limit, ceiling_of, limit_from, parse_limit


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("bitops=23.07G", "bitops", 23_070_000_000),
        ("bitops = 5e9", "bitops", 5_000_000_000),
        ("weight_bytes=7.97MiB", "weight_bytes", Fraction(797, 100) * 2**20),
        ("weight_mib=2", "weight_bytes", 2 * 2**20),
        ("weight_bytes=3MB", "weight_bytes", 3_000_000),
        ("compression_rate=12.2x", "compression_rate", Fraction(122, 10)),
        ("mean_weight_bits=3.98", "mean_weight_bits", Fraction(398, 100)),
        ("latency_us=1.5ms", "latency_us", 1500),
        ("peak_activation_bytes=64KiB", "peak_activation_bytes", 65536),
    ],
)
def test_units(text, kind, amount):
    limit = parse_limit(text)
    assert (limit.kind, limit.limit) == (kind, amount)


@pytest.mark.parametrize(
    "text",
    ["bitops=23.07G", "bitops=12345", "bitops_level=2.5x3", "weight_bytes=100",
     "mean_act_bits=3.5@a,b*", "compression_rate=12.2"],
)  # fmt: skip
def test_text_reads_back(text):
    limit = parse_limit(text)
    assert parse_limit(limit.text) == limit


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bitops", "kind=amount"),
        ("flops=3", "unknown"),
        ("bitops=0", "above 0"),
        ("bitops=-3G", "above 0"),
        ("bitops=3MiB", "unit 'MiB' is unknown"),
        ("weight_bytes=3G", "unit 'G' is unknown"),
        ("bitops=nan", "not a number"),
        ("bitops=inf", "not a number"),
        ("bitops=1e9999", "not a number"),
        ("bitops=1e999", "from 1e-19 to 1e19"),
        ("compression_rate=1e-999", "from 1e-19 to 1e19"),
        ("bitops_level=3x1e300", "from 1e-19 to 1e19"),
        ("bitops=" + "1" * 5000, "5000 digits"),
        ("bitops=", "not a number"),
        ("bitops_level=3", "weight x activation"),
        ("bitops_level=0x3", "above 0"),
        ("bitops=1G@conv1", "means only"),
    ],
)
def test_refused(text, complaint):
    with pytest.raises(LimitError, match=complaint):
        parse_limit(text)


@pytest.mark.parametrize("amount", [True, None, [1], {}, float("nan"), float("inf"), -1, 0])
def test_values_that_are_no_amount(amount):
    with pytest.raises(LimitError):
        limit_from("bitops", amount)


def test_a_compression_rate_is_a_size_rounded_down(tiny):
    full = full_precision_size_bits(tiny, STANDARD)
    ceiling = ceiling_of(parse_limit("compression_rate=7.3"), tiny, STANDARD)
    assert ceiling.bound == (full * 10) // 73
    assert full / ceiling.bound >= 7.3
    assert full / (ceiling.bound + 1) < 7.3


def test_means_run_over_stated_layers(tiny):
    ceiling = ceiling_of(parse_limit("mean_weight_bits=3.5"), tiny, STANDARD)
    assert (ceiling.layers, ceiling.bound) == (("a", "b"), 7)
    everywhere = ceiling_of(parse_limit("mean_weight_bits=3.5@*"), tiny, STANDARD)
    assert (len(everywhere.layers), everywhere.bound) == (4, 14)
    with pytest.raises(LimitError, match="matches no layer"):
        ceiling_of(parse_limit("mean_weight_bits=3@nowhere"), tiny, STANDARD)


def test_latency_needs_a_table(tiny):
    with pytest.raises(LimitError, match="no latency table; only a device file in YAML"):
        ceiling_of(parse_limit("latency_us=5"), tiny, STANDARD)


def test_peak_needs_lifetimes(tiny):
    from dataclasses import replace

    with pytest.raises(LimitError, match="no tensor"):
        ceiling_of(
            Limit(kind="peak_activation_bytes", limit=9), replace(tiny, tensors=()), STANDARD
        )
