"""How does text from anywhere get into a page without becoming markup? Every word is escaped here.

Pages and figures are put together from strings that these functions return; names of runs, layers
and methods, messages of failures and values of configurations come from files that somebody else
may have written.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

# Control characters are no text in XML, and browsers differ over them in HTML.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_SPECIAL = re.compile("[&<>\"']")


def esc(text: object) -> str:
    """Text that stays text in HTML and SVG, in elements and in quoted attributes."""
    clean = _CONTROLS.sub("\ufffd", str(text))
    return _SPECIAL.sub(lambda found: _ESCAPES[found.group()], clean)


def anchor(text: str) -> str:
    """A fragment name: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def paragraph(text: str, kind: str = "") -> str:
    """One paragraph of plain text."""
    mark = f' class="{esc(kind)}"' if kind else ""
    return f"<p{mark}>{esc(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{esc(line)}</li>" for line in lines) + "</ul>"


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: frozenset[str] = frozenset(),
    row_kinds: Sequence[str] = (),
    caption: str = "",
) -> str:
    """A table that scrolls by itself where the page is narrow.

    Args:
        columns: headings.
        rows: cells as plain text.
        numeric: headings of columns set to the right.
        row_kinds: CSS class of each row, or empty.
        caption: plain text above it.
    """
    sides = [' class="n"' if name in numeric else "" for name in columns]
    head = "".join(
        f'<th scope="col"{side}>{esc(name)}</th>' for name, side in zip(columns, sides, strict=True)
    )
    kinds = list(row_kinds) or [""] * len(rows)
    body = []
    for cells, kind in zip(rows, kinds, strict=True):
        mark = f' class="{esc(kind)}"' if kind else ""
        line = "".join(
            f"<td{side}>{esc(cell)}</td>" for cell, side in zip(cells, sides, strict=True)
        )
        body.append(f"<tr{mark}>{line}</tr>")
    told = f"<caption>{esc(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{told}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def facts_list(facts: Mapping[str, str]) -> str:
    """Names with values, both plain text."""
    items = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def download(label: str, name: str, media_type: str, content: str) -> str:
    """A link that carries its file inside, so that a page sent alone loses nothing."""
    data = base64.b64encode(content.encode()).decode("ascii")
    return (
        f'<a class="file" download="{esc(name)}" '
        f'href="data:{esc(media_type)};base64,{data}">{esc(label)}</a>'
    )
