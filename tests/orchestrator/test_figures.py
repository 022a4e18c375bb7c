from __future__ import annotations

import io
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from orchestrator import figures
from solvers.policy import Policy, make_policy
from solvers.tables import CostTable, Importance, ImportanceTable, LayerBits, LayerSpec

PINNED = LayerBits(weight_bits=8, act_bits=8)
NAMES = ("first", "block.a", "block.b", "last")


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
        Importance(layer=name, tensor=tensor, bits=bits, value=scale * (index + 1) / bits)  # type: ignore[arg-type]
        for index, name in enumerate(NAMES)
        for tensor in ("weight", "act")
        for bits in (2, 3, 4)
    )
    return ImportanceTable(
        model="net", fingerprint="f", method="limpq", seed=0, data_fingerprint="d", rows=rows
    )


def _saved(figure: Figure, folder: Path) -> tuple[bytes, bytes]:
    svg, png = figures.save_figure(figure, folder, "x")
    return svg.read_bytes(), png.read_bytes()


def _every() -> dict[str, Figure]:
    points = [
        figures.AccuracyPoint(method=m, bitops_g=x, top1=y)
        for m, x, y in (("limpq", 1.0, 70.0), ("limpq", 2.0, 72.0), ("uniform", 1.1, 69.0),
                        ("limpq", 1.5, 60.0), ("new", 1.2, 65.0))
    ]  # fmt: skip
    return {
        "bits": figures.bit_allocation(
            {"one": _policy(2, 3), "two": _policy(4, 6)}, frozenset({"first", "last"})
        ),
        "indicators": figures.indicator_heat_map({"learned": _table(1.0), "initial": _table(0.5)}),
        "accuracy": figures.accuracy_over_bitops(points, [0.5], 74.0),
        "cost": figures.search_cost_bars(
            {"limpq": {"indicators": 100.0, "solve": 0.06}, "uniform": {"indicators": 0.0}}, "s"
        ),
    }


@pytest.mark.parametrize("name", ["bits", "indicators", "accuracy", "cost"])
def test_figures_are_the_same_bytes_every_time_and_sound_files(name: str, tmp_path: Path) -> None:
    first, second = _saved(_every()[name], tmp_path), _saved(_every()[name], tmp_path)
    assert first == second
    assert ElementTree.fromstring(first[0]).tag.endswith("svg")
    assert first[1].startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["bits", "indicators", "accuracy", "cost"])
def test_no_text_is_cut_by_the_edge(name: str) -> None:
    figure = _every()[name]
    figure.savefig(io.BytesIO(), format="png")
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= width + 0.01
    assert drawn.y1 <= height + 0.01


def test_a_cut_text_would_be_noticed() -> None:
    """Negative control of the test above."""
    figure = _every()["cost"]
    figure.savefig(io.BytesIO(), format="png")
    figure.text(0.99, 0.5, "far too long to fit")
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    drawn = figure.get_tightbbox(canvas.get_renderer())
    assert drawn.x1 > figure.get_size_inches()[0] + 0.01


def test_bars_have_the_bits_of_the_policy_and_pinned_ones_are_hatched() -> None:
    figure = _every()["bits"]
    for axes, policy in zip(figure.axes, (_policy(2, 3), _policy(4, 6)), strict=True):
        heights = [(bar.get_height(), bar.get_hatch()) for bar in axes.patches]
        expected = []
        for name, bits in policy.layers:
            hatch = "////" if name in ("first", "last") else ""
            expected += [(bits.weight_bits, hatch), (bits.act_bits, hatch)]
        assert [(h, hatch or "") for h, hatch in heights] == expected
        assert list(axes.get_title(loc="left")) != []
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == list(NAMES)


def test_the_heat_map_shows_the_values_on_one_logarithmic_scale() -> None:
    figure = _every()["indicators"]
    images = [child for axes in figure.axes for child in axes.get_children()
              if isinstance(child, AxesImage)]  # fmt: skip
    assert len(images) == 4
    learned, initial = images[0], images[1]
    assert isinstance(learned.norm, LogNorm)
    assert learned.norm is initial.norm
    array = learned.get_array()
    assert array is not None
    assert array[1][2] == pytest.approx(2 / 4)
    assert math.isclose(float(array[1][2]) / 2, float(initial.get_array()[1][2]))  # type: ignore[index]


def test_the_front_skips_what_is_beaten_at_lower_cost() -> None:
    figure = _every()["accuracy"]
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in lines] == [[1.0, 2.0]]
    infeasible = next(line for line in axes.lines if line.get_label() == "infeasible limit")
    assert list(infeasible.get_ydata()) == [axes.get_ylim()[0]]


def test_small_costs_are_shown_in_millions() -> None:
    points = [figures.AccuracyPoint(method="limpq", bitops_g=0.015, top1=90.0)]
    (axes,) = figures.accuracy_over_bitops(points).axes
    assert "1e6" in axes.get_xlabel()
    assert list(axes.lines[0].get_xdata()) == [15.0]


def test_search_cost_is_logarithmic_and_shows_every_method() -> None:
    (axes,) = _every()["cost"].axes
    assert axes.get_xscale() == "log"
    low, high = sorted(axes.get_ylim())
    assert low <= -0.5
    assert high >= 1.5
    assert {t.get_text() for t in axes.texts} == {"100.00 s", "0.06 s", "0"}


def test_a_very_deep_network_still_has_readable_labels() -> None:
    names = tuple(f"layer{i}.conv" for i in range(200))
    layers = tuple(
        LayerSpec(name=n, kind="conv", num_macs=1, num_macs_unfloored=1, num_weights=1,
                  num_biases=0, num_inputs=1, num_outputs=1)
        for n in names
    )  # fmt: skip
    costs = CostTable(model="deep", input_shape=(3, 8, 8), layers=layers)
    bits = {n: LayerBits(weight_bits=3, act_bits=3) for n in names}
    figure = figures.bit_allocation({"x": make_policy(costs, bits, "t")}, frozenset())
    assert len(figure.axes[-1].get_xticks()) <= 60
