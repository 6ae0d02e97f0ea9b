"""Figures of reports, drawn with matplotlib, and the style that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthoproxy.evaluation import Estimate, NoMatchCalibration
from orthoproxy.reports.geometry import pair_cosines
from orthoproxy.reports.results import finite_values
from orthoproxy.reports.text import metric_name

# distinguishable with color vision deficiency (after Okabe and Ito); pages override them in dark mode
COLORS = {
    "ink": "#1c2630",
    "muted": "#5d6874",
    "rule": "#dce1e6",
    "blue": "#0b69ab",
    "orange": "#d1590a",
    "green": "#0f7b52",
    "purple": "#a2478a",
    "red": "#c0332b",
}
SERIES = [COLORS[name] for name in ("blue", "orange", "green", "purple")]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "svg.hashsalt": "orthoproxy",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["muted"],
    "axes.titlecolor": COLORS["ink"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "grid.color": COLORS["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": COLORS["ink"],
    "text.color": COLORS["ink"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
report_style = matplotlib.rc_context(STYLE)  # decorates each function that draws
WIDTH, HEIGHT = 4.4, 2.6  # inches; a phone shows a figure at some 85 %, with its text still legible
MAX_POINTS = 400  # of a curve


def create_figure() -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    return figure, figure.subplots()


def label_axes(axes: Axes, x: str, y: str = "", legend: bool = False) -> None:
    """Label the axes, y above them, and put the legend above the plot area so that it hides no data."""
    axes.set_xlabel(x)
    axes.set_title(y, color=COLORS["muted"])
    if legend:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.6)


@report_style
def loss_figure(log: pd.DataFrame, columns: Mapping[str, str], color: str = "blue") -> Figure:
    """Plot columns of the log over the steps, smoothed; the first also unsmoothed, in a pale line behind."""
    figure, axes = create_figure()
    for number, (column, name) in enumerate(columns.items()):
        value = _thin(finite_values(log, column))
        smooth = value.rolling(max(1, len(value) // 30), min_periods=1, center=True).mean()
        if number == 0:
            axes.plot(value, color=COLORS[color], alpha=0.25, linewidth=1)
            axes.plot(smooth, label=name, color=COLORS[color])
        else:
            axes.plot(smooth, label=name, color=SERIES[number], linestyle="--")
    label_axes(axes, "step", legend=len(columns) > 1)
    return figure


@report_style
def validation_figure(log: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Plot validation scores over the steps in percent, with the best point of each curve marked."""
    figure, axes = create_figure()
    for column, marker in zip(columns, "os^D", strict=False):
        score = 100 * finite_values(log, column)
        label = metric_name(column.removeprefix("validation/"))
        (line,) = axes.plot(score, marker=marker, markersize=3.5, label=label)
        best = float(score.max())
        _mark_point(axes, (score.idxmax(), best), f"{best:.1f}", str(line.get_color()), marker)
    axes.margins(x=0.06, y=0.16)
    label_axes(axes, "step", "%", legend=True)
    return figure


@report_style
def roc_figure(matching: NoMatchCalibration, marked: Sequence[tuple[Estimate, Estimate]]) -> Figure:
    """Plot the match rate over the false-match rate, the latter on a log scale, with some pairs of the two marked."""
    false, found = (100 * curve for curve in matching.curve())
    lowest = 50 / len(matching.other)  # half a query, in percent
    figure, axes = create_figure()
    axes.step(np.maximum(false, lowest), found, where="post", color=COLORS["blue"])
    for false_match_rate, match_rate in marked:
        point = (max(100 * false_match_rate.value, lowest), 100 * match_rate.value)
        _mark_point(axes, point, f"{100 * match_rate.value:.0f}", COLORS["blue"], "o", offset=(8, -12))
    axes.set_xscale("log")
    ticks = [tick for tick in (0.01, 0.1, 1, 10, 100) if tick >= lowest]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(lowest, 100), ylim=(0, 108), yticks=[0, 25, 50, 75, 100])
    label_axes(axes, "false-match rate, %", "match rate, %")
    return figure


@report_style
def cosine_histogram_figure(proxies: Float[np.ndarray, "C D"]) -> Figure:
    """Plot the histogram of the cosines of pairs of proxies."""
    cosines = pair_cosines(proxies)
    figure, axes = create_figure()
    low, high = min(-0.1, float(cosines.min(initial=0))), max(0.1, float(cosines.max(initial=0)))
    height, edges = np.histogram(cosines, bins=int(np.clip(np.sqrt(len(cosines)), 12, 60)), range=(low, high))
    axes.stairs(100 * height / max(1, len(cosines)), edges, color=COLORS["blue"], fill=True, alpha=0.75)
    axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    label_axes(axes, "cosine of two proxies", "% of pairs")
    return figure


@report_style
def spectrum_figure(values: Float[np.ndarray, " M"]) -> Figure:
    """Plot singular values of the proxies beside a flat spectrum of the same sum of squares."""
    figure, axes = create_figure()
    marker = "o" if len(values) < 25 else ""
    axes.axhline(np.sqrt(np.square(values).mean()), color=COLORS["muted"], linestyle="--", label="flat spectrum")
    axes.plot(np.arange(1, len(values) + 1), values, color=COLORS["blue"], label="proxies", marker=marker, ms=3.5)
    axes.set_ylim(bottom=0)
    label_axes(axes, "direction, by decreasing singular value", "singular value", legend=True)
    return figure


def validation_columns(log: pd.DataFrame) -> list[str]:
    """Choose the validation scores to plot: Recall@1 and MAP@R, or else the first three."""
    columns = [column for column in map(str, log.columns) if column.startswith("validation/")]
    scores = [column for column in columns if len(finite_values(log, column))]
    return [column for column in ("validation/recall@1", "validation/map@r") if column in scores] or scores[:3]


def _thin(curve: pd.Series) -> pd.Series:
    """Average adjacent points so that a curve has at most `MAX_POINTS`."""
    points, parts = (curve.index.to_numpy(), curve.to_numpy()), min(MAX_POINTS, len(curve))
    step, value = ([part.mean() for part in np.array_split(x, parts)] for x in points)
    return pd.Series(value, step)


def _mark_point(
    axes: Axes, point: tuple[float, float], text: str, color: str, marker: str, offset: tuple[float, float] = (0, 7)
) -> None:
    axes.plot(*point, marker=marker, markersize=8, color="none", markeredgecolor=color, markeredgewidth=1.4)
    axes.annotate(text, point, offset, textcoords="offset points", ha="left" if offset[0] else "center", color=color)
