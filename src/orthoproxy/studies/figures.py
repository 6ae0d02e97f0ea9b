"""Figures of a study: test scores and differences per method, validation scores per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.figures import COLORS, WIDTH, create_figure, label_axes, report_style
from orthoproxy.reports.text import metric_name, shorten
from orthoproxy.studies.plan import Study, choose_setting, validation_scores
from orthoproxy.studies.results import TrialResult
from orthoproxy.studies.table import MethodSummary

MAX_NAME = 26  # characters of a method's name beside the axes
DASHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.2}


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
    axes.vlines(
        [100 * row.untrained for row, _, _ in scored],
        np.arange(len(scored)) - 0.5,
        np.arange(len(scored)) + 0.5,
        color=COLORS["muted"],
        **DASHED,
    )
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


@report_style
def setting_figure(study: Study, results: Sequence[TrialResult], option: str) -> Figure:
    """Draw the validation score against the values of an option: tuning seeds as dots, their mean as a line."""
    figure, (axes,) = create_figure()
    colors = method_colors(study)
    values = [value for method in study.methods.values() for value in method.choose.get(option, [])]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    for name, method in study.methods.items():
        groups: dict[str, list[tuple[Any, list[float]]]] = {}  # one line for each combination of the other options
        for setting in method.settings if option in method.choose else []:
            others = str({key: value for key, value in setting.items() if key != option})
            if scores := validation_scores(study, results, name, setting):
                value = setting[option] if numeric else str(setting[option])
                groups.setdefault(others, []).append((value, scores))
        for i, points in enumerate(groups.values()):
            points = sorted(points) if numeric else points
            x = [value for value, _ in points]
            axes.plot(x, [np.mean(y) for _, y in points], color=colors[name], label=None if i else name)
            for value, scores in points:
                axes.plot([value] * len(scores), scores, "o", color=colors[name], ms=3.5, alpha=0.5, mew=0)
    baseline = choose_setting(study, results, study.baseline)
    scores = [] if baseline is None else validation_scores(study, results, study.baseline, baseline)
    if scores and option not in study.methods[study.baseline].choose:
        axes.axhline(float(np.mean(scores)), color=COLORS["ink"], label=study.baseline, **DASHED)
    positive = [value for value in values if numeric and value > 0]
    if positive and max(positive) > 5 * min(positive):
        linear_near_zero = {"linthresh": min(positive), "linscale": 0.6}
        axes.set_xscale("log" if min(values) > 0 else "symlog", **(linear_near_zero if min(values) <= 0 else {}))
        axes.minorticks_off()
    label_axes(axes, option, f"{metric_name(study.metric)} on validation classes, %")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = int(np.clip(60 // (max(map(len, labels)) + 6), 1, 4))
        figure.set_figheight(figure.get_figheight() + 0.19 * (math.ceil(len(labels) / columns) - 1))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, fontsize=8.5)
    return figure
