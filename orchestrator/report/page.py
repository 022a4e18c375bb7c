"""How does a report become one file? Sections and figures in, a page that needs nothing else out.

The page runs no script and asks for nothing over the network; its content policy forbids both, so
that a text that slipped through unescaped could still do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.figures.svg import Drawing
from orchestrator.report.escape import anchor, download, esc
from orchestrator.report.style import style_sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
# Beyond it a figure carries its data only; its file lies beside the page.
_MAX_LINKED_SVG = 150_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One part of a page.

    Attributes:
        title: plain text; empty sections are left out.
        body: finished markup.
    """

    title: str
    body: str


def page(title: str, lead: str, top: str, sections: Sequence[Section], foot: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        lead: plain text below it.
        top: finished markup above the first section.
        sections: those with an empty body are left out.
        foot: plain text at the end.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{anchor(s.title)}">{esc(s.title)}</a>' for s in shown)
    bodies = "".join(
        f'<section id="{anchor(s.title)}"><h2>{esc(s.title)}</h2>{s.body}</section>\n'
        for s in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n"
        f'<div class="wrap"><header><h1>{esc(title)}</h1><p class="lead">{esc(lead)}</p></header>\n'
        f'<nav aria-label="sections">{links}</nav>\n{top}\n{bodies}'
        f"<footer>{esc(foot)}</footer></div>\n</body>\n</html>\n"
    )


def figure(drawing: Drawing) -> str:
    """A figure with its caption and its files."""
    files = download("data (CSV)", f"{drawing.stem}.csv", "text/csv", drawing.csv())
    if len(drawing.svg) <= _MAX_LINKED_SVG:
        files += download(
            "figure (SVG)", f"{drawing.stem}.svg", "image/svg+xml", drawing.standalone()
        )
    return (
        f'<figure id="figure-{anchor(drawing.stem)}"><div class="plot" tabindex="0">{drawing.svg}'
        f"</div><figcaption><b>{esc(drawing.title)}.</b> {esc(drawing.caption)}<br>{files}"
        "</figcaption></figure>"
    )


def figures(drawings: Sequence[Drawing | None], side_by_side: bool = False) -> str:
    """Several figures; None and nothing give nothing."""
    text = "".join(figure(drawing) for drawing in drawings if drawing is not None)
    return f'<div class="pair">{text}</div>' if side_by_side and text else text


def cards(values: Sequence[tuple[str, str]]) -> str:
    """The few figures that a reader looks for first: (value, what it is)."""
    inner = "".join(
        f'<div class="card"><b>{esc(value)}</b><span>{esc(what)}</span></div>'
        for value, what in values
    )
    return f'<div class="cards">{inner}</div>'
