"""How does a figure of the plotting library become files? The same bytes every time.

Figures of runs and studies are drawn by ``figures_svg``; MetaMix's small multiples and the device
sweep by matplotlib, without pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from solvers.atomic import write_atomically


def save_figure(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write ``stem.svg`` and ``stem.png``; the same figure gives the same bytes."""
    paths = []
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        # Element ids of SVG are random without a salt; text stays text and can be searched.
        with mpl.rc_context({"svg.hashsalt": "mpq", "svg.fonttype": "none"}):
            figure.savefig(buffer, format=suffix, dpi=144, metadata=metadata)
        path = folder / f"{stem}.{suffix}"
        write_atomically(path, buffer.getvalue())
        paths.append(path)
    return paths[0], paths[1]
