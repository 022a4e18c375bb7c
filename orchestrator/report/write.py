"""What came out of a run? ``report.html``, ``report.md``, ``runs.parquet`` and figures.

Everything is read from the run's folder, so the report can be written again at any time, on any
machine, and the same journal gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.figures import files as figures
from orchestrator.figures.inline import inlined
from orchestrator.figures.svg import Drawing
from orchestrator.journal import JournalView
from orchestrator.records import write_table
from orchestrator.report.figures import RunFigures, run_figures
from orchestrator.report.figures_metamix import metamix_figures
from orchestrator.report.inputs import RunInputs, read_inputs
from orchestrator.report.literature import (
    Reported,
    reported_costs,
    reported_for,
    reported_points,
)
from orchestrator.report.markdown import markdown
from orchestrator.report.run_page import run_page
from orchestrator.results import Results
from orchestrator.store import RunStore
from solvers.atomic import write_atomically

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnRun:
    """A run with its figures, written already.

    Attributes:
        run: what was read.
        reported: what the papers print.
        figures: those of the search and its results.
        metamix: those of MetaMix's phases.
        paths: text -> file.
    """

    run: RunInputs
    reported: Reported
    figures: RunFigures
    metamix: tuple[Drawing, ...]
    paths: Mapping[str, Path]


def write_report(store: RunStore, view: JournalView, drawn: DrawnRun | None = None) -> Results:
    """Write the table, the figures and the reports of a run; returns the result table.

    Args:
        store: the run.
        view: its journal.
        drawn: of ``draw_figures``, when the records have not changed since.
    """
    found = draw_figures(store, view) if drawn is None else drawn
    run = replace(found.run, view=view)
    write_table(run.records, store.table_path)
    write_atomically(store.report_path, markdown(run, found.paths))
    text = run_page(run, found.figures, found.metamix, found.reported)
    write_atomically(store.root / PAGE, text)
    return run.results


def draw_figures(store: RunStore, view: JournalView) -> DrawnRun:
    """Read a run and write its figures alone."""
    run = read_inputs(store, view)
    reported = reported_for(run.config)
    drawn = run_figures(run, reported_points(reported.every), reported_costs(reported.every))
    paths = save_drawings(drawn.every, store.figures_dir)
    lacks: list[str] = []
    metamix = []
    for text, (stem, figure, columns) in metamix_figures(store, run.records, lacks).items():
        svg, png = figures.save_figure(figure, store.figures_dir, stem)
        metamix.append(inlined(text, svg.read_text(), stem, columns))
        write_atomically(store.figures_dir / f"{stem}.csv", metamix[-1].csv())
        paths[text] = png
    return DrawnRun(
        run=replace(run, lacks=tuple(dict.fromkeys((*run.lacks, *lacks)))),
        reported=reported,
        figures=drawn,
        metamix=tuple(metamix),
        paths=paths,
    )


def save_drawings(drawings: Sequence[Drawing], folder: Path) -> dict[str, Path]:
    """Write every figure as SVG, and its data as CSV; text -> path of the picture."""
    for drawing in drawings:
        write_atomically(folder / f"{drawing.stem}.svg", drawing.standalone())
        write_atomically(folder / f"{drawing.stem}.csv", drawing.csv())
    return {drawing.title: folder / f"{drawing.stem}.svg" for drawing in drawings}
