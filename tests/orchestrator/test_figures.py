"""Figures drawn by hand: sound files, the right numbers in the right places, nothing cut off."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from orchestrator.figures.accuracy import AccuracyPoint, accuracy_figure, cost_axes, front
from orchestrator.figures.bits import bits_figure
from orchestrator.figures.cost import (
    ReportedCost,
    amortised_figure,
    search_cost_figure,
    seconds_text,
)
from orchestrator.figures.heat import SolvedCell, alpha_map, indicator_figure
from orchestrator.figures.methods import method_styles
from orchestrator.figures.svg import Drawing, Scale, legend_rows, short
from orchestrator.report.costs import SearchPart
from solvers.policy import Policy, make_policy
from solvers.tables import CostTable, Importance, ImportanceTable, LayerBits, LayerSpec

PINNED = LayerBits(weight_bits=8, act_bits=8)
NAMES = ("first", "block.a", "block.<b>", "last")
SVG = "{http://www.w3.org/2000/svg}"


def _costs() -> CostTable:
    layers = tuple(
        LayerSpec(
            name=name, kind="conv", num_macs=1000, num_macs_unfloored=1000, num_weights=90,
            num_biases=0, num_inputs=50, num_outputs=50,
            pinned=PINNED if name in ("first", "last") else None,
        )
        for name in NAMES
    )  # fmt: skip
    return CostTable(model="net", input_shape=(3, 8, 8), layers=layers)


def _policy(weight_bits: int, act_bits: int) -> Policy:
    own = LayerBits(weight_bits=weight_bits, act_bits=act_bits)
    bits = {name: PINNED if name in ("first", "last") else own for name in NAMES}
    return make_policy(_costs(), bits, "test")


def _table(scale: float) -> ImportanceTable:
    rows = tuple(
        Importance(layer=name, tensor=tensor, bits=bits, value=scale * (index + 1) / bits)
        for index, name in enumerate(NAMES)
        for tensor in ("weight", "act")
        for bits in (2, 3, 4)
    )
    return ImportanceTable(
        model="net", fingerprint="f", method="limpq", seed=0, data_fingerprint="d", rows=rows
    )


def _point(method: str, cost: float, top1: float, **more: float) -> AccuracyPoint:
    return AccuracyPoint(method=method, label="<p>", cost=cost, top1=top1, **more)  # type: ignore[arg-type]


POINTS = (
    _point("limpq", 1.0, 70.0), _point("limpq", 2.0, 72.0), _point("limpq", 1.5, 60.0),
    _point("uniform", 1.1, 69.0), _point("uniform", 1.9, 70.5), _point("new", 1.2, 65.0),
    _point("<script>", 1.3, 66.0, low=64.0, high=68.0),
)  # fmt: skip
PARTS = (
    SearchPart(method="limpq", part="indicators", device_s=100.0, per_device=False, meters={}),
    SearchPart(method="limpq", part="solve", device_s=0.06, per_device=True, meters={}),
    SearchPart(method="metamix", part="meta-state", device_s=40.0, per_device=False, meters={}),
    SearchPart(method="metamix", part="bit selection", device_s=10.0, per_device=True, meters={}),
)


def _accuracy() -> Drawing | None:
    return accuracy_figure(
        POINTS, cost_axes([1.3])[0], infeasible=[500_000_000], full_precision=74.0
    )


def _alphas() -> Drawing | None:
    return alpha_map(
        [
            SolvedCell(alpha=a, limits=text, policy_id=p, top1=t, status=s, use=0.5)
            for a, text, p, t, s in (
                (1.0, "a=1", "p1", 70.0, "DONE"), (2.0, "a=1", "p1", 70.0, "DONE"),
                (1.0, "a=2", "p2", None, "not trained"), (2.0, "a=2", None, None, "INFEASIBLE"),
            )
        ]
    )  # fmt: skip


EVERY: dict[str, Callable[[], Drawing | None]] = {
    "accuracy": _accuracy,
    "bits": lambda: bits_figure(
        {"one": _policy(2, 3), "two <b>": _policy(4, 6)}, frozenset({"first", "last"})
    ),
    "indicators": lambda: indicator_figure({"learned": _table(1.0), "initial": _table(0.5)}),
    "cost": lambda: search_cost_figure(
        PARTS, "2 x cpu", [ReportedCost(method="HAWQ", device_s=7200.0, note="4 <GPUs>")]
    ),
    "amortised": lambda: amortised_figure(PARTS, "2 x cpu"),
    "alphas": _alphas,
}


def _drawn(name: str) -> Drawing:
    drawing = EVERY[name]()
    assert drawing is not None
    return drawing


@pytest.mark.parametrize("name", EVERY)
def test_figures_are_the_same_bytes_every_time_and_sound_files(name: str) -> None:
    drawing = _drawn(name)
    assert drawing == _drawn(name)
    root = ElementTree.fromstring(drawing.standalone().split("\n", 1)[1])
    assert root.tag == f"{SVG}svg"
    assert "var(--" not in drawing.standalone()
    table = list(csv.reader(io.StringIO(drawing.csv())))
    assert tuple(table[0]) == drawing.columns
    assert len(table) == len(drawing.rows) + 1 > 1


@pytest.mark.parametrize("name", EVERY)
def test_everything_stands_inside_the_picture(name: str) -> None:
    root = ElementTree.fromstring(_drawn(name).svg)
    assert _outside(root) == []


def test_text_outside_the_picture_would_be_noticed() -> None:
    """Negative control of the test above."""
    root = ElementTree.fromstring(_drawn("cost").svg)
    text = next(e for e in root.iter(f"{SVG}text"))
    text.set("x", root.attrib["width"])
    text.set("text-anchor", "start")
    assert _outside(root)


def _outside(root: ElementTree.Element) -> list[str]:
    """Texts and boxes that reach over the edge, by the width that characters have at most."""
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    found = []
    for element in root.iter(f"{SVG}text"):
        x, y, words = float(element.attrib["x"]), float(element.attrib["y"]), element.text or ""
        length = 5.6 * len(words)
        back = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib["text-anchor"]] * length
        if "transform" in element.attrib:  # turned by -90 degrees
            top, bottom = y - (length - back), y + back
            if top < -2 or bottom > height + 2:
                found.append(words)
        elif x - back < -2 or x - back + length > width + 2 or not 0 < y <= height:
            found.append(words)
    found += [
        str(element.attrib)
        for element in root.iter(f"{SVG}rect")
        if "x" in element.attrib
        and not 0 <= float(element.attrib["x"]) <= width + 0.5 - float(element.attrib["width"])
    ]
    return found


@pytest.mark.parametrize("name", EVERY)
def test_words_from_outside_stay_words(name: str) -> None:
    svg = _drawn(name).svg
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert not re.search(r"(?:href|src)=", svg)


def test_marks_stand_where_their_numbers_say() -> None:
    root = ElementTree.fromstring(_drawn("accuracy").svg)
    marks = {}
    for circle in root.iter(f"{SVG}circle"):
        title = circle.find(f"{SVG}title")
        if title is not None and title.text:
            marks[title.text] = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
    low, high, middle = (marks[f"limpq <p>: {t} % at {c} 1e9"]
                         for t, c in (("70.00", 1), ("72.00", 2), ("60.00", "1.5")))  # fmt: skip
    assert low[0] < middle[0] < high[0]
    assert middle[0] - low[0] == pytest.approx(high[0] - middle[0], abs=0.2)
    # Up is better, and a tenth of the way is a tenth of the points.
    assert (middle[1] - low[1]) / (low[1] - high[1]) == pytest.approx(10 / 2, rel=0.02)


def test_the_front_skips_what_is_beaten_at_lower_cost() -> None:
    own = sorted((p for p in POINTS if p.method == "limpq"), key=lambda p: p.cost)
    assert [p.top1 for p in front(own)] == [70.0, 72.0]


def test_limits_out_of_reach_and_reported_values_are_marked_and_counted_apart() -> None:
    accuracy = _drawn("accuracy")
    assert "no policy meets 0.5 1e9" in accuracy.svg
    assert accuracy.rows[-1][-1] == "limit"
    cost = _drawn("cost")
    assert "url(#h-search-cost-grey)" in cost.svg
    assert cost.rows[-1] == ("HAWQ", "reported", 7200.0, "4 <GPUs>", "reported")
    assert "(reported)" in cost.svg


def test_bars_have_the_bits_of_the_policy_and_pinned_ones_are_hatched() -> None:
    drawing = _drawn("bits")
    assert drawing.rows[1] == ("one", _policy(2, 3).policy_id, "block.a", 2, 3, False)
    assert drawing.rows[0][-1] is True
    heights = [
        float(h) for h in re.findall(r'height="([0-9.]+)" style="fill:var\(--blue', drawing.svg)
    ]
    # A hatch and the legend come first; then two layers of 2 bits and two of 4.
    assert heights[1:] == [12.0, 11.5, 11.5, 23.0, 23.0]
    assert drawing.svg.count("url(#h-bits-blue)") == 4


def test_the_heat_map_shows_equal_values_in_equal_colours_over_all_tables() -> None:
    svg = _drawn("indicators").svg
    # 2 / 4 of the learned table and twice that of the initial one, one layer further.
    shades = dict(
        re.findall(r'style="fill:(#[0-9a-f]{6})"><title>([^<]*)</title>', svg)[i][::-1]
        for i in range(48)
    )
    first = shades["block.a, weights, 4 bit: 0.5 (learned)"]
    assert first == shades["last, weights, 4 bit: 0.5 (initial)"]
    assert len(set(shades.values())) > 8


def test_equal_policies_have_equal_letters() -> None:
    drawing = _drawn("alphas")
    assert [row[2] for row in drawing.rows] == ["A", "A", "B", ""]
    assert "alpha 2, a=2: INFEASIBLE" in drawing.svg


def test_amortised_cost_is_what_is_paid_once_over_devices_and_what_is_paid_again() -> None:
    rows = {(m, z): v for m, z, v in _drawn("amortised").rows}
    assert rows["limpq", 1] == pytest.approx(100.06)
    assert rows["limpq", 10_000] == pytest.approx(0.07)
    assert rows["metamix", 100] == pytest.approx(10.4)


def test_nothing_to_draw_is_none() -> None:
    assert accuracy_figure((), cost_axes([])[0]) is None
    assert bits_figure({}, frozenset()) is None
    assert indicator_figure({}) is None
    assert search_cost_figure((), "s") is None
    assert amortised_figure((), "s") is None
    assert alpha_map(()) is None


def test_scales_and_ticks() -> None:
    linear = Scale(low=0.0, high=10.0, first_px=0.0, last_px=100.0)
    assert [linear.at(v) for v in (0, 5, 10, 99)] == [0, 50, 100, 100]
    assert linear.ticks(5) == [0, 2, 4, 6, 8, 10]
    log = Scale(low=0.01, high=100.0, first_px=0.0, last_px=4.0, log=True)
    assert [log.at(v) for v in (0.01, 1, 100, 0)] == [0, 2, 4, 0]
    assert log.ticks() == [0.01, 0.1, 1, 10, 100]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.25, "0.25"), (12345.0, "12,345"), (99_999, "99,999"), (0.001, "0.001"),
        (0.00025, "2.5e-4"), (0.0002 + 0.0001, "3e-4"), (-0.00025, "-2.5e-4"), (1e5, "1e5"),
        (250_000, "2.5e5"), (1_000_500, "1.0005e6"), (1e-10, "1e-10"), (1.5e12, "1.5e12"),
    ],
)  # fmt: skip
def test_a_number_of_an_axis_is_short_and_whole(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(2e-4, 3e-4), (0.0, 6e-4), (1e5, 3e5), (1e6, 1.002e6), (0.0, 10.0)]
)
def test_no_two_ticks_of_an_axis_read_alike(low: float, high: float) -> None:
    shown = [short(v) for v in Scale(low=low, high=high, first_px=0.0, last_px=1.0).ticks()]
    assert len(set(shown)) == len(shown)
    assert max(map(len, shown)) <= 8


def test_the_ends_of_a_legend_have_two_digits() -> None:
    values = zip(NAMES, (2.5e-4, 4e-4, 9e-4, 2.5e5), strict=True)
    rows = tuple(
        Importance(layer=name, tensor="weight", bits=2, value=value) for name, value in values
    )
    table = ImportanceTable(
        model="net", fingerprint="f", method="limpq", seed=0, data_fingerprint="d", rows=rows
    )
    drawing = indicator_figure({"learned": table})
    assert drawing is not None
    assert ">2.5e-4<" in drawing.svg
    assert ">2.5e5<" in drawing.svg


def test_methods_have_marks_of_their_own() -> None:
    styles = method_styles([f"m{i}" for i in range(40)] + ["limpq", "uniform"])
    assert len(set(styles.values())) == 42
    assert next(iter(styles)) == "limpq"
    assert styles["uniform"] == ("ink", "square")


def test_legends_wrap() -> None:
    assert legend_rows(["a" * 10] * 4, 200.0) == [[0, 1], [2, 3]]
    assert legend_rows([], 10.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0"), (0.0123, "12.3 ms"), (4.567, "4.57 s"), (250.4, "250 s"), (7200.0, "2.0 h")],
)
def test_seconds_are_written_with_a_fitting_unit(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_very_deep_network_still_has_readable_labels() -> None:
    names = tuple(f"layer{i}.conv" for i in range(200))
    layers = tuple(
        LayerSpec(name=n, kind="conv", num_macs=1, num_macs_unfloored=1, num_weights=1,
                  num_biases=0, num_inputs=1, num_outputs=1)
        for n in names
    )  # fmt: skip
    costs = CostTable(model="deep", input_shape=(3, 8, 8), layers=layers)
    bits = {n: LayerBits(weight_bits=3, act_bits=3) for n in names}
    drawing = bits_figure({"x": make_policy(costs, bits, "t")}, frozenset())
    assert drawing is not None
    assert drawing.svg.count("rotate(-90") <= 70
