"""The pictures of a study, drawn with matplotlib: every seed is a dot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthoproxy.reports.figures import COLORS, WIDTH, create_figure, label_axes, report_style
from orthoproxy.reports.text import metric_name, shorten
from orthoproxy.studies.comparison import Row
from orthoproxy.studies.plan import Options, Result, Study, chosen_setting, score_of, tuning_results, validation_scores
from orthoproxy.studies.speed import curves_of
from orthoproxy.studies.statistics import standard_deviation

TICKS = 8  # of an axis of settings at most; more give way to powers of ten
SAME = 0.01  # points: scores of one untrained encoder differ by rounding alone
LONGEST = 26  # letters of a name beside the axes
CURVES_OF_SEEDS = 50  # with more in one figure, only the means are drawn
QUANTITIES = {
    "effective rank": "effective rank of the proxies",
    "largest cosine": "largest cosine of two proxies",
    "distance": "distance to the Welch bound, for each proxy",
}
COSTS = {"seconds": "seconds of training", "images": "images trained on"}
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-.")


class Look(NamedTuple):
    """How a method is drawn in every figure of a page."""

    colour: str
    line: Any
    marker: str


def looks_of(study: Study) -> dict[str, Look]:
    """Give each method a colour, a line and a marker; the baseline is in ink.

    Parameters
    ----------
    study
        Names the methods.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> looks_of(Study("so", {"off": Method(), "on": Method()}, "off"))["on"].colour == COLORS["blue"]
    True
    """
    names = ("blue", "orange", "green", "purple", "red")
    others = [method for method in study.methods if method != study.baseline]
    drawn = {method: Look(COLORS[names[i % 5]], LINES[i // 5 % 4], "os^Dv"[i % 5]) for i, method in enumerate(others)}
    return {study.baseline: Look(COLORS["ink"], "-", "o"), **drawn}


@report_style
def scores_figure(rows: Sequence[Row], looks: dict[str, Look]) -> Figure:
    """Draw each method's scores on the test classes: dots for seeds, a bar for the interval of the mean.

    Parameters
    ----------
    rows
        From `rows_of`; at least one with scores.
    looks
        From `looks_of`.

    Returns
    -------
    matplotlib.figure.Figure
        The untrained encoder is a dashed line; one a method, where encoders differ.

    Examples
    --------
    >>> from orthoproxy.evaluation import Estimate
    >>> row = Row("off", "recall@1", True, {}, [0], [0.5], Estimate(0.5, 0.4, 0.6))
    >>> scores_figure([row], {"off": Look("#000000", "-", "o")}).axes[0].get_xlabel()
    'Recall@1, %'
    """
    shown = [row for row in rows if row.mean]
    figure, axes = _lying(len(shown))
    for y, row in enumerate(shown):
        assert row.mean is not None
        _spread(axes, y, row.scores, row.mean.value, (row.mean.low, row.mean.high), looks[row.method].colour)
    untrained = [100 * row.untrained for row in shown]
    one = max(untrained) - min(untrained) < SAME
    muted = {"color": COLORS["muted"], "linestyle": (0, (4, 2)), "linewidth": 1.2}
    if one:
        axes.axvline(untrained[0], **muted)
    else:
        axes.vlines(untrained, np.arange(len(shown)) - 0.4, np.arange(len(shown)) + 0.4, **muted)
    axes.annotate(
        "untrained",
        (untrained[0], 1),
        (4, -1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        color=COLORS["muted"],
    )
    _methods(axes, [row.method for row in shown])
    label_axes(axes, f"{metric_name(shown[0].metric)}, %")
    return figure


@report_style
def differences_figure(rows: Sequence[Row], looks: dict[str, Look]) -> Figure:
    """Draw each method's difference to what it is compared with: dots for seeds, a bar for the interval of the mean.

    Parameters
    ----------
    rows
        From `rows_of`; at least one with a difference.
    looks
        From `looks_of`.

    Returns
    -------
    matplotlib.figure.Figure
        Right of the line at 0 a method is better.

    Examples
    --------
    >>> from orthoproxy.evaluation import Estimate
    >>> from orthoproxy.studies.statistics import Difference
    >>> gain = Difference(Estimate(0.02, 0.01, 0.03), 0.01, [0.02])
    >>> row = Row("on", "recall@1", False, {}, [0], [0.5], Estimate(0.5, 0.4, 0.6), difference=gain)
    >>> differences_figure([row], {"on": Look("#000000", "-", "o")}).axes[0].get_xlabel()
    'points of Recall@1'
    """
    shown = [row for row in rows if row.difference]
    figure, axes = _lying(len(shown))
    axes.axvline(0, color=COLORS["muted"], linewidth=1.2)
    for y, row in enumerate(shown):
        assert row.difference is not None
        gain = row.difference.estimate
        _spread(axes, y, row.difference.by_seed, gain.value, (gain.low, gain.high), looks[row.method].colour)
    _methods(axes, [row.method for row in shown])
    label_axes(axes, f"points of {metric_name(shown[0].metric)}")
    return figure


@report_style
def setting_figure(study: Study, results: Sequence[Result], field: str) -> Figure:
    """Draw the score on the validation classes against the values of a field that settings were chosen from.

    Parameters
    ----------
    study, results
        As in `rows_of`.
    field
        For example ``loss.orthogonality.weight``; on a logarithmic axis if its values differ much, with a place for 0.

    Returns
    -------
    matplotlib.figure.Figure
        Means over the tuning seeds with the standard deviation, a dot for each seed; the baseline is a dashed line.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Cell, Method
    >>> study = Study("so", {"on": Method(choose={"loss.margin": [0.1, 1]})}, "on", tuning_seeds=[0])
    >>> scored = {"classes": ["a"], "queries": [9], "trained": {"recall@1": [0.5]}}
    >>> results = [{"cell": Cell("on", {"loss.margin": 1}, 0).name, "validation": scored}]
    >>> setting_figure(study, results, "loss.margin").axes[0].get_xlabel()
    'loss.margin'
    """
    figure, (axes,) = create_figure()
    look = looks_of(study)
    values = _ordered([value for method in study.methods.values() for value in method.choose.get(field, [])])
    places = _places(values)
    ours = chosen_setting(study, results, study.baseline)
    baseline = [] if ours is None else _on_validation(study, results, study.baseline, ours)
    if baseline and field not in study.methods[study.baseline].choose:
        axes.axhline(float(np.mean(baseline)), color=COLORS["ink"], linestyle=(0, (4, 2)), linewidth=1.2)
        axes.plot([], [], color=COLORS["ink"], linestyle=(0, (4, 2)), linewidth=1.2, label=study.baseline)
    for name, method in study.methods.items():
        if field not in method.choose:
            continue
        for i, settings in enumerate(_lines(method.settings, field)):
            scored = [(places[str(s[field])], _on_validation(study, results, name, s)) for s in settings]
            _line(axes, [point for point in scored if point[1]], look[name], name if i == 0 else None)
    _axis_of(axes, values, places)
    label_axes(axes, field, f"{metric_name(study.metric)} on validation classes, %")
    _legend(figure, axes)
    return figure


@report_style
def cost_figure(study: Study, results: Sequence[Result], metric: str, cost: str) -> Figure:
    """Draw the score on the validation classes against what it took, of each method's chosen setting.

    Parameters
    ----------
    study, results
        As in `rows_of`.
    metric
        ``recall@1`` or ``map@r``.
    cost
        A key of `COSTS`.

    Returns
    -------
    matplotlib.figure.Figure
        Bold: after each epoch the mean score over the seeds, at the median of what they took; pale: single seeds,
        unless there are more than `CURVES_OF_SEEDS` in all.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> curve = [{"epoch": 1, "seconds": 9.0, "images": 100, "recall@1": 0.5}]
    >>> result = {"cell": "off_seed0", "method": "off", "setting": {}, "seed": 0, "curve": curve}
    >>> len(cost_figure(Study("so", {"off": Method()}, "off"), [result], "recall@1", "seconds").axes[0].lines)
    2
    """
    figure, (axes,) = create_figure()
    curves_by_method = {name: list(curves_of(study, results, name).values()) for name in study.methods}
    few = sum(map(len, curves_by_method.values())) <= CURVES_OF_SEEDS
    for name, look in looks_of(study).items():
        curves = curves_by_method[name]
        if not curves:
            continue
        for curve in curves if few else []:
            spent, score = ([point[key] for point in curve] for key in (cost, metric))
            axes.plot(spent, 100 * np.array(score), color=look.colour, alpha=0.2, linewidth=1)
        epochs = set.intersection(*({point["epoch"] for point in curve} for curve in curves))
        points = [[point for curve in curves for point in curve if point["epoch"] == epoch] for epoch in sorted(epochs)]
        spent = [float(np.median([point[cost] for point in at])) for at in points]
        score = [float(np.mean([point[metric] for point in at])) for at in points]
        axes.plot(spent, 100 * np.array(score), color=look.colour, linestyle=look.line, label=name)
    axes.set_xlim(left=0)
    label_axes(axes, COSTS[cost], f"{metric_name(metric)} on validation classes, %")
    _legend(figure, axes)
    return figure


@report_style
def geometry_figure(study: Study, results: Sequence[Result], quantity: str) -> Figure:
    """Draw the score on the validation classes against how the proxies lie, a dot for each cell of the study.

    Parameters
    ----------
    study, results
        As in `rows_of`.
    quantity
        A key of `QUANTITIES`.

    Returns
    -------
    matplotlib.figure.Figure
        Cells without proxies are not in it.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> scored = {"classes": ["a"], "queries": [9], "trained": {"recall@1": [0.5]}}
    >>> proxies = {"classes": 9, "dim": 3, "effective_rank": 2.9, "largest_cosine": 0.8, "squares": 20, "floor": 18}
    >>> result = {"cell": "off_seed0", "method": "off", "validation": scored, "geometry": proxies}
    >>> geometry_figure(Study("so", {"off": Method()}, "off"), [result], "effective rank").axes[0].get_xlabel()
    'effective rank of the proxies'
    """
    figure, (axes,) = create_figure()
    everywhere = []
    for name, look in looks_of(study).items():
        x, y = geometry_points([result for result in results if result["method"] == name], study.metric, quantity)
        everywhere += x
        if x:
            axes.plot(x, y, look.marker, color=look.colour, label=name, markersize=4.5, alpha=0.7, markeredgewidth=0)
    if quantity == "distance" and everywhere and min(everywhere) > 0 and max(everywhere) > 10 * min(everywhere):
        axes.set_xscale("log")
    label_axes(axes, QUANTITIES[quantity], f"{metric_name(study.metric)} on validation classes, %")
    _legend(figure, axes)
    return figure


def geometry_points(results: Sequence[Result], metric: str, quantity: str) -> tuple[list[float], list[float]]:
    """Take a quantity of the proxies and the score in percent out of results.

    Parameters
    ----------
    results
        Of result files; those without proxies or score are left out.
    metric
        ``recall@1`` or ``map@r``, on validation classes.
    quantity
        A key of `QUANTITIES`; the distance is ``(||P P^T - I||^2 - max(0, C^2 / D - C)) / C``.

    Examples
    --------
    >>> scored = {"classes": ["a"], "queries": [9], "trained": {"recall@1": [0.5]}}
    >>> proxies = {"classes": 9, "dim": 3, "effective_rank": 2.9, "largest_cosine": 0.8, "squares": 36, "floor": 18}
    >>> geometry_points([{"validation": scored, "geometry": proxies}], "recall@1", "distance")
    ([2.0], [50.0])
    """
    x, y = [], []
    for result in results:
        proxies = result.get("geometry")
        if not proxies or not result["validation"]:
            continue
        if quantity == "distance":
            value = max(0.0, proxies["squares"] - proxies["floor"]) / proxies["classes"]
        else:
            value = proxies[quantity.replace(" ", "_")]
        if value is not None:  # a single proxy has no cosine with another
            x.append(float(value))
            y.append(100 * score_of(result, "validation", metric))
    return x, y


def _lying(methods: int) -> tuple[Figure, Axes]:
    """Start a figure with a line for each method, one below the other."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * max(2, methods)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    return figure, axes


def _methods(axes: Axes, names: Sequence[str]) -> None:
    short = [shorten(name, LONGEST) for name in names]
    axes.set_yticks(range(len(names)), short, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_color(COLORS["ink"])


def _spread(axes: Axes, y: float, seeds: Sequence[float], mean: float, ends: tuple[float, float], colour: str) -> None:
    """Draw an interval with its mean, and the seeds a little below."""
    axes.plot([100 * end for end in ends], [y, y], color=colour, linewidth=3, alpha=0.55)
    axes.plot(100 * mean, y, "o", color=colour, markersize=7)
    faint = 0.75 if len(seeds) <= 30 else 0.25
    axes.plot(100 * np.array(seeds), np.full(len(seeds), y + 0.27), "o", color=colour, ms=3.5, alpha=faint, mew=0)


def _on_validation(study: Study, results: Sequence[Result], method: str, setting: Options) -> list[float]:
    """Return the score in percent of each tuning seed that is there."""
    by_seed = tuning_results(study, results, method, setting)
    return [100 * score for score in validation_scores(by_seed.values(), study.metric)]


def _lines(settings: Sequence[Options], field: str) -> list[list[Options]]:
    """Group settings that differ in that field alone."""
    groups: dict[str, list[Options]] = {}
    for setting in settings:
        groups.setdefault(str({name: value for name, value in setting.items() if name != field}), []).append(setting)
    return list(groups.values())


def _line(axes: Axes, scored: Sequence[tuple[float, list[float]]], look: Look, label: str | None) -> None:
    x = [place for place, _ in scored]
    means = [float(np.mean(scores)) for _, scores in scored]
    spreads = [standard_deviation(np.array(scores)) if len(scores) > 1 else 0.0 for _, scores in scored]
    order = np.argsort(x)
    x, means, spreads = (np.array(values)[order] for values in (x, means, spreads))
    axes.errorbar(
        x, means, spreads, color=look.colour, linestyle=look.line, marker=look.marker, ms=4, lw=1.6, label=label
    )
    for place, scores in scored:
        axes.plot([place] * len(scores), scores, "o", color=look.colour, markersize=3, alpha=0.4, markeredgewidth=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(values: Sequence[Any]) -> list[Any]:
    once = list({str(value): value for value in values}.values())
    return sorted(once) if all(map(_is_number, once)) else once


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Give each value its place on the axis: itself, or its number where values are words."""
    numbers = all(map(_is_number, values))
    return {str(value): float(value if numbers else i) for i, value in enumerate(values)}


def _axis_of(axes: Axes, values: Sequence[Any], places: dict[str, float]) -> None:
    if not all(map(_is_number, values)):
        axes.set_xticks(list(places.values()), [str(value) for value in values], parse_math=False)
        return
    positive = [value for value in values if value > 0]
    wide = bool(positive) and min(values) >= 0 and max(positive) > 5 * min(positive)
    if wide:
        scale = (
            {"value": "symlog", "linthresh": min(positive), "linscale": 0.6} if min(values) == 0 else {"value": "log"}
        )
        axes.set_xscale(**scale)
        axes.minorticks_off()
    if len(values) <= TICKS:
        axes.set_xticks(values, [f"{value:g}" for value in values])


def _legend(figure: Figure, axes: Axes) -> None:
    """Name what is drawn, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        widest = max(map(len, labels))
        columns = int(np.clip(60 // (widest + 6), 1, 4))
        more = math.ceil(len(labels) / columns) - 1
        figure.set_figheight(figure.get_figheight() + 0.19 * more)  # or many names would leave the axes no room
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, fontsize=8.5)
