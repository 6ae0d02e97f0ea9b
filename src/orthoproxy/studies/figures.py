"""Figures of a study: test scores and differences per method, validation scores per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.figures import COLORS, WIDTH, label_axes, report_style
from orthoproxy.reports.text import metric_name, shorten
from orthoproxy.studies.plan import Study
from orthoproxy.studies.table import MethodSummary

MAX_NAME = 26  # characters of a method's name beside the axes


def method_colors(study: Study) -> dict[str, str]:
    """Assign a color to each method; the baseline is dark."""
    names = ("blue", "orange", "green", "purple", "red")
    others = [method for method in study.methods if method != study.baseline]
    return {study.baseline: COLORS["ink"]} | {name: COLORS[names[i % 5]] for i, name in enumerate(others)}


@report_style
def scores_figure(rows: Sequence[MethodSummary], colors: Mapping[str, str]) -> Figure:
    """Draw the test scores of each method: seeds as dots, the mean with its interval, the untrained encoder dashed."""
    scored = [(row, row.mean, row.scores) for row in rows if row.mean]
    figure, axes = _draw_intervals(scored, colors)
    untrained, y = [100 * row.untrained.value for row, _, _ in scored if row.untrained], np.arange(len(scored))
    axes.vlines(untrained, y - 0.5, y + 0.5, color=COLORS["muted"], linestyle=(0, (4, 2)), linewidth=1.2)
    label_axes(axes, f"{metric_name(rows[0].metric)}, % (dashed: untrained encoder)")
    return figure


@report_style
def differences_figure(rows: Sequence[MethodSummary], colors: Mapping[str, str]) -> Figure:
    """Draw the difference of each method to what it is compared with: seeds as dots, the mean with its interval."""
    compared = [(row, row.difference.estimate, row.difference.by_seed) for row in rows if row.difference]
    figure, axes = _draw_intervals(compared, colors)
    axes.axvline(0, color=COLORS["muted"], linewidth=1.2)
    label_axes(axes, f"difference in {metric_name(rows[0].metric)}, percentage points")
    return figure


def _draw_intervals(
    lines: Sequence[tuple[MethodSummary, Estimate, Sequence[float]]], colors: Mapping[str, str]
) -> tuple[Figure, Axes]:
    """Draw one line per method, from top to bottom."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * max(2, len(lines))), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    for y, (row, estimate, seeds) in enumerate(lines):
        color, alpha = colors[row.method], 0.75 if len(seeds) <= 30 else 0.25
        axes.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=color, linewidth=3, alpha=0.55)
        axes.plot(100 * estimate.value, y, "o", color=color, markersize=7)
        axes.plot(100 * np.array(seeds), np.full(len(seeds), y + 0.27), "o", color=color, ms=3.5, alpha=alpha, mew=0)
    names = [shorten(row.method, MAX_NAME) for row, _, _ in lines]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    return figure, axes
