"""MetaMix's figures show the rows they are given."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_hex

from orchestrator.figures import metamix as figures
from orchestrator.figures.files import save_figure


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


DRIFT = _columns(
    ("variant", "update", "bits", "variance"),
    [
        (v, u, 8 if u < 3 else 2, 1.0 + 0.1 * u)
        for v in ("fp_weights", "metamix")
        for u in range(1, 6)
    ],
)
CELLS = _columns(
    ("weight_bits", "act_bits", "layer", "left", "right", "count", "variance"),
    [
        (w, a, n, i / 4, (i + 1) / 4, 10 * i + a, 0.5)
        for w in (0, 4)
        for a in (2, 8)
        for n in ("x", "y")
        for i in range(4)
    ],
)
ALPHAS = _columns(
    ("update", "unit", "tensor", "bits", "probability"),
    [
        (u, n, "act", b, 0.4 if b == 8 else 0.3)
        for u in (1, 2)
        for n in ("l1", "l2", "l3", "l4", "l5")
        for b in (2, 4, 8)
    ],
)


def test_drift_has_a_panel_a_variant_and_a_series_a_width() -> None:
    figure = figures.norm_drift(DRIFT, "layer1")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["fp weights", "metamix"]
    line, narrow, wide = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[u, 1.0 + 0.1 * u] for u in range(1, 6)]
    assert narrow.get_xdata().tolist() == [3, 4, 5]
    assert wide.get_xdata().tolist() == [1, 2]


def test_distributions_are_a_grid_of_widths() -> None:
    figure = figures.input_distributions(CELLS, "y")
    titles = [axes.get_title() for axes in figure.axes]
    assert [t.rsplit(",", 1)[0] for t in titles] == [
        "W FP, A 8 bit", "W FP, A 2 bit", "W 4 bit, A 8 bit", "W 4 bit, A 2 bit",
    ]  # fmt: skip
    assert figure.axes[1].patches[0].get_data().values.tolist() == [2, 12, 22, 32]


def test_alpha_paths_draw_each_width_of_each_layer() -> None:
    figure = figures.alpha_paths(ALPHAS)
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in drawn] == ["l1", "l2", "l3", "l4", "l5"]
    assert drawn[0].lines[2].get_ydata().tolist() == [0.4, 0.4]


def test_depthwise_layers_stand_apart_and_every_line_has_a_panel() -> None:
    lines = {"MACs": {"a": 10.0, "c": 1000.0}, "trace": {"a": -1.0, "b": 2.0, "c": 3.0}}
    figure = figures.selected_bits({"a": 8, "b": 4, "c": 2}, frozenset({"b"}), lines)
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [8, 4, 2]
    assert to_hex(bars[1].get_facecolor()) != to_hex(bars[0].get_facecolor())
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[0, 10.0], [2, 1000.0]]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [-1.0, 2.0, 3.0]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]


def test_traces_are_means_over_the_weights_with_their_errors() -> None:
    rows = {"layer": ["a", "b"], "trace": [6.0, -4.0], "standard_error": [3.0, 1.0],
            "num_weights": [3, 2]}  # fmt: skip
    (axes,) = figures.hessian_traces(rows).axes
    assert axes.lines[0].get_ydata().tolist() == [2.0, -2.0]
    (bars,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    assert [s[:, 1].tolist() for s in bars.get_segments()] == [[1.0, 3.0], [-2.5, -1.5]]


@pytest.mark.parametrize("name", ["drift", "cells", "alphas", "bits"])
def test_the_same_rows_give_the_same_bytes(name: str, tmp_path: Any) -> None:
    draw = {
        "drift": lambda: figures.norm_drift(DRIFT, "layer1"),
        "cells": lambda: figures.input_distributions(CELLS, "x"),
        "alphas": lambda: figures.alpha_paths(ALPHAS),
        "bits": lambda: figures.selected_bits({"a": 8, "b": 4}, frozenset()),
    }[name]
    first = [path.read_bytes() for path in save_figure(draw(), tmp_path / "1", "x")]
    assert first == [path.read_bytes() for path in save_figure(draw(), tmp_path / "2", "x")]
