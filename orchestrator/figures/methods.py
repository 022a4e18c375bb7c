"""Which colour and which marker is a method's, in every figure of every report?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.figures.svg import CHAR_PX, MARKERS, Canvas, legend_rows

# Methods that people look for keep their marks in every report; the others take what is left.
_OWN: Mapping[str, tuple[str, str]] = {
    "limpq": ("blue", "circle"),
    "metamix": ("green", "plus"),
    "uniform": ("ink", "square"),
    "random": ("orange", "up"),
    "reversed": ("red", "down"),
    "initial": ("pink", "diamond"),
}
_COLOURS = ("sky", "brown", "violet", "olive", "grey", "green", "red", "blue", "pink", "orange")
FIRST = ("limpq", "metamix", "uniform")


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker), no two alike up to eighty; the searched ones first."""
    named = sorted(set(methods), key=lambda m: (FIRST.index(m) if m in FIRST else len(FIRST), m))
    styles: dict[str, tuple[str, str]] = {}
    taken = {_OWN[m] for m in named if m in _OWN}
    free = [
        (_COLOURS[i], MARKERS[(i + shift) % len(MARKERS)])
        for shift in range(len(MARKERS))
        for i in range(len(_COLOURS))
    ]
    spare = [style for style in free if style not in taken]
    for method in named:
        styles[method] = _OWN[method] if method in _OWN else spare.pop(0) if spare else free[-1]
    return styles


def legend(
    canvas: Canvas, styles: Mapping[str, tuple[str, str]], left: float, top: float, width: float
) -> None:
    """Every method with its mark, in rows."""
    labels = list(styles)
    for row, indexes in enumerate(legend_rows(labels, width)):
        x = left
        for index in indexes:
            colour, marker = styles[labels[index]]
            canvas.marker(marker, x + 6, top + 18 * row - 4, colour)
            canvas.text(x + 16, top + 18 * row, labels[index])
            x += 26 + CHAR_PX * len(labels[index])


def legend_height(labels: Iterable[str], width: float) -> float:
    """Pixels that the legend takes."""
    return 18.0 * len(legend_rows(list(labels), width)) + 6
