"""Figures of runs, studies and sweeps, as SVG with their data beside them."""
