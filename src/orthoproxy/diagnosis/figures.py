"""Figures of a diagnosis, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.figures import COLORS, SERIES, create_figure, label_axes, report_style


@report_style
def bar_figure(groups: Mapping[str, Mapping[str, Estimate]], x: str) -> Figure:
    """Plot groups of horizontal bars with intervals, in percent; all groups have the same bars."""
    figure, axes = create_figure()
    kinds = list(next(iter(groups.values())))
    height = 0.8 / len(kinds)
    for number, (kind, color) in enumerate(zip(kinds, SERIES, strict=False)):
        y = np.arange(len(groups)) + (number - (len(kinds) - 1) / 2) * height
        values, (low, high) = _percent_with_errors([group[kind] for group in groups.values()])
        axes.barh(y, values, height * 0.9, color=color, alpha=0.75, label=kind)
        axes.errorbar(values, y, xerr=[low, high], fmt="none", ecolor=COLORS["ink"], elinewidth=1.2)
        for place, value, error in zip(y, values, high, strict=True):
            end = (value + error, place)
            axes.annotate(f"{value:.1f}", end, (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 112), xticks=[0, 25, 50, 75, 100])
    label_axes(axes, x, legend=True)
    return figure


@report_style
def size_figure(sizes: Sequence[int], scores: Sequence[Estimate], expected: tuple[int, Estimate]) -> Figure:
    """Plot a score over the number of principal components, on a log scale, with the extrapolated next doubling."""
    figure, axes = create_figure()
    for x, estimates, color, marker, label in (
        (list(sizes), list(scores), "blue", "o", "measured"),
        ([expected[0]], [expected[1]], "orange", "D", "expected"),
    ):
        values, errors = _percent_with_errors(estimates)
        axes.errorbar(x, values, errors, color=COLORS[color], marker=marker, markersize=5, elinewidth=1.2, label=label)
    ends = [100 * scores[-1].value, 100 * expected[1].value]
    axes.plot([sizes[-1], expected[0]], ends, color=COLORS["orange"], linestyle="--", linewidth=1.4)
    axes.set_xscale("log", base=2)
    ticks = [*sizes, expected[0]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    label_axes(axes, "dimensions", "Recall@1 on unseen classes, %", legend=True)
    return figure


@report_style
def margin_figure(margins: Float[np.ndarray, " N"], suspects: int) -> Figure:
    """Plot a histogram of the margins, the `suspects` smallest highlighted, with counts on a log scale."""
    figure, axes = create_figure()
    ordered = np.sort(margins)
    edges = np.histogram_bin_edges(ordered, 40).tolist()
    axes.hist(ordered[suspects:], edges, color=COLORS["blue"], alpha=0.6, label="others")
    axes.hist(ordered[:suspects], edges, color=COLORS["red"], alpha=0.85, label="suspects")
    axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    axes.set_yscale("log")
    label_axes(axes, "margin: cosine with own class \N{MINUS SIGN} cosine with nearest other", "images", legend=True)
    return figure


def _percent_with_errors(estimates: Sequence[Estimate]) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Return values in percent, and the lengths of the error bars below and above."""
    low = [100 * (x.value - x.low) for x in estimates]
    high = [100 * (x.high - x.value) for x in estimates]
    return [100 * x.value for x in estimates], (low, high)
