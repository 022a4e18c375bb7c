"""What does a report look like? Its colours in light and dark, and its style sheet.

Series colours are those of Okabe and Ito, which people with any common colour blindness tell
apart, with lighter ones for dark pages; what colour says is also said by a marker, a hatch or a
label. Figures name colours as ``var(--blue)``: a page resolves them by the reader's preference, a
figure saved as a file gets the light ones written in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Name -> colour on light, colour on dark.
COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181d"),
    "panel": ("#f6f7f9", "#1c2229"),
    "ink": ("#1b1f24", "#e8ebee"),
    "muted": ("#57606a", "#a3adb8"),
    "line": ("#c9d0d7", "#3a434d"),
    "grid": ("#e6e9ec", "#2a3139"),
    "accent": ("#0b5cad", "#7ab8f5"),
    "blue": ("#0072B2", "#5db3ea"),
    "orange": ("#D98E00", "#f0b94d"),
    "green": ("#009E73", "#3fc79c"),
    "red": ("#C84E00", "#f58b5a"),
    "pink": ("#B8608F", "#e6a5c8"),
    "sky": ("#3C9BD3", "#9ad3f5"),
    "brown": ("#7A5A36", "#c9a57c"),
    "olive": ("#6F7A1E", "#c3cd6a"),
    "violet": ("#5B4BB5", "#ab9ef0"),
    "grey": ("#7d8790", "#98a2ac"),
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

# Classes of figures; shared by pages and by figures saved as files.
FIGURE_STYLE = (
    f"svg text{{font-family:{FONT};font-size:12px;fill:var(--ink)}}"
    "svg .m{fill:var(--muted)}svg .s{font-size:10.5px}svg .b{font-weight:600}"
    "svg .g{stroke:var(--grid);stroke-width:1}svg .a{stroke:var(--line);stroke-width:1}"
)

_PAGE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 FONT}
.wrap{max-width:1200px;margin:0 auto;padding:0 20px 64px}
header{padding:36px 0 8px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:78ch}
.lead{color:var(--muted);font-size:1.02rem}
.note{color:var(--muted);font-size:.9rem}
.warn{border-left:4px solid var(--red);padding:.35rem .8rem;background:var(--panel)}
a{color:var(--accent)}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--line);
 padding:8px 0;overflow-x:auto;white-space:nowrap;font-size:.87rem}
nav a{margin-right:1rem;text-decoration:none}
nav a:hover{text-decoration:underline}
section{scroll-margin-top:44px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;
 margin:18px 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.card b{display:block;font-size:1.35rem;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{color:var(--muted);font-size:.85rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:8px 10px;color:var(--muted)}
th,td{padding:5px 8px;text-align:left;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{background:var(--panel);font-weight:600}
td.n,th.n{text-align:right}
.scroll td:first-child{position:sticky;left:0;background:var(--paper)}
.scroll th:first-child{position:sticky;left:0}
tr:last-child td{border-bottom:0}
tr.first td{border-top:2px solid var(--line)}
tr.bad td{color:var(--red)}
tr.lit td{color:var(--muted);font-style:italic}
tr.lit td:first-child{border-left:4px double var(--grey)}
tr.base td{font-weight:600}
.wraps td:last-child{white-space:normal;min-width:26ch}
figure{margin:1rem 0;padding:12px 14px;border:1px solid var(--line);border-radius:8px}
figure .plot{overflow-x:auto}
figure svg{display:block;height:auto}
figcaption{font-size:.88rem;color:var(--muted);margin-top:.5rem;max-width:86ch}
figcaption b{color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:0 16px}
.file{font-size:.8rem;margin-right:.8rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;font-size:.88rem;margin:.6rem 0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--accent)}
code{font-size:.86rem;overflow-wrap:anywhere}
footer{margin-top:3rem;color:var(--muted);font-size:.82rem}
@media(max-width:560px){.wrap{padding:0 12px 40px}h1{font-size:1.45rem}
 dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}figure{padding:8px}}
@media print{nav{display:none}figure,tr{break-inside:avoid}.scroll,figure .plot{overflow:visible}}
"""


def style_sheet() -> str:
    """The whole style sheet of a page."""
    light = ";".join(f"--{name}:{pair[0]}" for name, pair in COLOURS.items())
    dark = ";".join(f"--{name}:{pair[1]}" for name, pair in COLOURS.items())
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
        + _PAGE.replace("FONT", FONT)
        + FIGURE_STYLE
    )


def in_light(text: str) -> str:
    """The text with every named colour written out, for programs that know no variables.

    Raises:
        KeyError: a colour that has no name here.
    """
    return re.sub(r"var\(--([a-z]+)\)", lambda found: COLOURS[found.group(1)][0], text)
