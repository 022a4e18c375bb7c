"""What is a figure made of? Scales, ticks, marks and text as SVG, with the data beside it.

Written by hand rather than by a plotting library because a figure of a page follows the reader's
colours, shows its numbers when a mark is pointed at, and stays text. The same data gives the same
bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.report.escape import anchor, esc
from orchestrator.report.style import FIGURE_STYLE, in_light

CHAR_PX = 6.6  # mean width of a character of 12 px; figures leave room by it
MARKERS = ("circle", "square", "up", "down", "diamond", "plus", "cross", "star")


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A finished figure and what is in it.

    Attributes:
        stem: file name without its ending.
        title: plain text.
        caption: plain text: what is shown and how to read it.
        svg: the picture as an ``svg`` element, colours by name.
        columns: names of the data.
        rows: the data, as values.
    """

    stem: str
    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def standalone(self) -> str:
        """The picture as a file of its own, on white."""
        style = f"<style>{FIGURE_STYLE}</style>" + (
            '<rect width="100%" height="100%" style="fill:var(--paper)"/>'
        )
        head, rest = self.svg.split(">", 1)
        return in_light(f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{rest}\n')

    def csv(self) -> str:
        """The data with a heading."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    first_px: float
    last_px: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixels of a value; those off the scale stand at its end."""
        low, high, own = self.low, self.high, value
        if self.log:
            own = max(own, low)
            low, high, own = math.log10(low), math.log10(high), math.log10(own)
        share = (own - low) / (high - low) if high > low else 0.5
        share = min(1.0, max(0.0, share))
        return self.first_px + share * (self.last_px - self.first_px)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values: powers of ten on a logarithmic scale, 1, 2 or 5 of one on a linear one."""
        if self.log:
            first, last = (
                math.ceil(math.log10(self.low) - 1e-9),
                math.floor(math.log10(self.high) + 1e-9),
            )
            step = max(1, math.ceil((last - first + 1) / wanted))
            return [10.0**power for power in range(first, last + 1, step)]
        span = (self.high - self.low) or 1.0
        rough = span / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step_size = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        start, stop = (
            math.ceil(self.low / step_size - 1e-9), math.floor(self.high / step_size + 1e-9)
        )  # fmt: skip
        return [n * step_size for n in range(start, stop + 1)]


def spread(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of some values with room around it."""
    low, high = min(values), max(values)
    room = (high - low) * margin or max(abs(high) * 0.05, 0.5)
    return low - room, high + room


def short(value: float) -> str:
    """A number as an axis shows it: six digits, so that neighbouring ticks read differently.

    Ticks are round, so few of them need more than two; 2.5e-4 is shown where 0.00025 or 250,000
    would be hard to count.
    """
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.6g}"
    digits, _, power = f"{value:.5e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


@dataclass(slots=True)
class Canvas:
    """A figure in the making; every method adds to it."""

    stem: str
    width: float
    height: float
    parts: list[str] = field(default_factory=list)
    hatches: dict[str, str] = field(default_factory=dict)

    def text(
        self,
        x: float,
        y: float,
        words: object,
        kind: str = "",
        side: str = "start",
        turn: float | None = None,
    ) -> None:
        """Words; ``side`` is start, middle or end, ``turn`` degrees about their place."""
        turned = "" if turn is None else f' transform="rotate({turn:g} {x:.1f} {y:.1f})"'
        mark = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{side}"{mark}{turned}>{esc(words)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, kind: str = "a", style: str = ""
    ) -> None:
        """A straight line of a class of the style sheet, or of a style of its own."""
        own = f' style="{style}"' if style else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{own}/>'
        )

    def path(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> None:
        """A line through points."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = f";stroke-dasharray:{dashes}" if dashes else ""
        self.parts.append(
            f'<path d="M{way}" style="fill:none;stroke:var(--{colour});stroke-width:1.8{dash}"/>'
        )

    def bar(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        told: str = "",
        round_px: float = 0.0,
    ) -> None:
        """A filled box; ``fill`` is a CSS value; ``told`` shows when it is pointed at."""
        title = f"<title>{esc(told)}</title>" if told else ""
        corner = f' rx="{round_px:g}"' if round_px else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" '
            f'height="{max(height, 0):.1f}"{corner} style="fill:{fill}">{title}</rect>'
        )

    def hatch(self, colour: str) -> str:
        """A fill of slanted lines of that colour."""
        name = f"h-{anchor(self.stem)}-{colour}"
        self.hatches[name] = (
            f'<pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><rect width="6" height="6" '
            f'style="fill:var(--paper)"/><rect width="2.6" height="6" '
            f'style="fill:var(--{colour})"/></pattern>'
        )
        return f"url(#{name})"

    def marker(
        self,
        kind: str,
        x: float,
        y: float,
        colour: str,
        told: str = "",
        size: float = 5.0,
        hollow: bool = False,
    ) -> None:
        """A mark at a point."""
        s = size
        points = {
            "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
            "up": [(0, -s * 1.2), (s * 1.1, s), (-s * 1.1, s)],
            "down": [(0, s * 1.2), (s * 1.1, -s), (-s * 1.1, -s)],
            "diamond": [(0, -s * 1.3), (s * 1.3, 0), (0, s * 1.3), (-s * 1.3, 0)],
        }.get(kind)
        title = f"<title>{esc(told)}</title>" if told else ""
        fill = "var(--paper)" if hollow else f"var(--{colour})"
        edge = f"var(--{colour})" if hollow else "var(--paper)"
        style = f'style="fill:{fill};stroke:{edge};stroke-width:{1.6 if hollow else 1}"'
        if kind in ("plus", "cross", "star"):
            arms = {"plus": [(s, 0), (0, s)], "cross": [(s, s), (s, -s)],
                    "star": [(s, 0), (s / 2, s), (s / 2, -s)]}[kind]  # fmt: skip
            way = "".join(f"M{x - a:.1f} {y - b:.1f}L{x + a:.1f} {y + b:.1f}" for a, b in arms)
            self.parts.append(
                f'<path d="{way}" style="fill:none;stroke:var(--{colour});stroke-width:2.4">'
                f"{title}</path>"
            )
        elif points is None:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:g}" {style}>{title}'
                              "</circle>")  # fmt: skip
        else:
            way = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in points)
            self.parts.append(f'<polygon points="{way}" {style}>{title}</polygon>')

    def x_axis(self, scale: Scale, top: float, bottom: float, label: str, wanted: int = 6) -> None:
        """Ticks, grid and label of a horizontal axis."""
        for value in scale.ticks(wanted):
            x = scale.at(value)
            self.line(x, top, x, bottom, "g")
            self.text(x, bottom + 16, short(value), "m s", "middle")
        self.line(scale.first_px, bottom, scale.last_px, bottom)
        self.text((scale.first_px + scale.last_px) / 2, bottom + 34, label, "m", "middle")

    def y_axis(self, scale: Scale, left: float, right: float, label: str, wanted: int = 5) -> None:
        """Ticks, grid and label of a vertical axis."""
        for value in scale.ticks(wanted):
            y = scale.at(value)
            self.line(left, y, right, y, "g")
            self.text(left - 6, y + 3.5, short(value), "m s", "end")
        self.line(left, scale.first_px, left, scale.last_px)
        if label:
            middle = (scale.first_px + scale.last_px) / 2
            self.text(14, middle, label, "m", "middle", -90)

    def svg(self, label: str) -> str:
        """The picture; ``label`` is read out to who cannot see it."""
        defs = f"<defs>{''.join(self.hatches.values())}</defs>" if self.hatches else ""
        w, h = math.ceil(self.width), math.ceil(self.height)
        # Smaller than seven tenths nobody can read it: then it scrolls.
        fit = f"max-width:100%;min-width:{round(0.72 * w)}px"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" '
            f'height="{h}" style="{fit}" role="img" aria-label="{esc(label)}">'
            f"{defs}{''.join(self.parts)}</svg>"
        )


def legend_rows(labels: Sequence[str], width: float) -> list[list[int]]:
    """Indexes of the entries of a legend, row by row, as many in each as find room."""
    rows: list[list[int]] = [[]]
    used = 0.0
    for index, label in enumerate(labels):
        own = 26 + CHAR_PX * len(label)
        if rows[-1] and used + own > width:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += own
    return rows if labels else []
