"""How does a figure of the plotting library stand in a page? With the page's colours, ids apart.

Two figures of one library repeat the ids of their parts, so each gets its own prefix; black and
white become the page's ink and paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.figures.svg import Drawing
from orchestrator.report.escape import anchor, esc

_HEAD = re.compile(r"<svg\b[^>]*>", re.DOTALL)
_BOX = re.compile(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"')
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_IDS = re.compile(r'(\bid="|xlink:href="#|url\(#)')


def inlined(text: str, svg: str, stem: str, columns: Mapping[str, Sequence[Any]]) -> Drawing:
    """A figure file as a drawing.

    Args:
        text: its title.
        svg: content of the file, as the plotting library wrote it.
        stem: name of the file.
        columns: the data, by column.

    Raises:
        ValueError: the file is none of the plotting library.
    """
    head = _HEAD.search(svg)
    box = _BOX.search(head.group()) if head else None
    if head is None or box is None:
        raise ValueError(f"{stem}.svg has no picture with a view box")
    # The library counts in points of 1/72 inch, pages in pixels of 1/96.
    width, height = (round(float(side) * 4 / 3) for side in box.groups())
    body = _METADATA.sub("", svg[head.end() :])
    body = _IDS.sub(lambda found: f"{found.group()}{anchor(stem)}-", body)
    for colour, name in (("#000000", "ink"), ("black", "ink"), ("#ffffff", "paper")):
        body = re.sub(rf"((?:fill|stroke): ?){colour}\b", rf"\1var(--{name})", body)
    opened = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {box.group(1)} {box.group(2)}" width="{width}" height="{height}" '
        f'style="max-width:100%;min-width:{round(0.72 * width)}px" role="img" '
        f'aria-label="{esc(text)}">'
    )
    names = tuple(columns)
    return Drawing(
        stem=stem,
        title=text,
        caption="",
        svg=opened + body.strip(),
        columns=names,
        rows=tuple(zip(*(columns[name] for name in names), strict=True)),
    )
