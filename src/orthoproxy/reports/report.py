"""The report of a run, one self-contained HTML file, and its sections as values that the template names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from orthoproxy.evaluation import NoMatchCalibration
from orthoproxy.reports import figures, geometry
from orthoproxy.reports.examples import choose_examples
from orthoproxy.reports.html import Plot, figure_to_svg, load_template, thumbnail_uri
from orthoproxy.reports.results import RunResults, finite_values
from orthoproxy.reports.text import METRICS, run_facts, summarize

FALSE_MATCH_RATES = (0.001, 0.01, 0.1)  # of the thresholds in a report


def render_report(results: RunResults) -> str:
    """Render the report of a run as self-contained HTML."""
    scores = results.evaluation.model if results.evaluation else {}
    return load_template("report.html.j2").render(
        run=results,
        facts=run_facts(results),
        summary=summarize(results.evaluation),
        definitions=[term for name, term in METRICS.items() if name in scores or name == "recall@"],
        examples=choose_examples(results),
        training=plot_training(results.log),
        proxies=describe_proxies(results.proxies, results.classes),
        matching=describe_matching(results.matching),
        thumbnail=cache(thumbnail_uri),
        paths=results.table["path"].tolist(),
        label=results.table["label"].replace("", "distractor").tolist(),
        group=results.table["group"].tolist(),
    )


def plot_training(log: pd.DataFrame) -> list[Plot]:
    """Plot the training curves for which the log has data."""
    if "step" not in log:
        return []
    caption = "Orthogonality regularizer of the proxies, before its weight. Lower is more orthogonal."
    drawn = [
        ("Loss", "Running mean; single steps pale.", {"loss": "total loss", "metric_loss": "metric loss"}, "blue"),
        ("Regularizer", caption, {"regularizer": "regularizer"}, "green"),
    ]
    plots, scores = [], figures.validation_columns(log)
    for title, caption, names, color in drawn:
        if columns := {column: name for column, name in names.items() if len(finite_values(log, column))}:
            figure = figures.loss_figure(log, columns, color)
            plots.append(_curve_plot(title, caption, figure, log, [*columns]))
    if scores:
        figure = figures.validation_figure(log, scores)
        plots.append(_curve_plot("Validation", "Scores on the validation classes; best marked.", figure, log, scores))
    return plots


def _curve_plot(title: str, caption: str, figure: Figure, log: pd.DataFrame, columns: Sequence[str]) -> Plot:
    ends = {column: finite_values(log, column).iloc[[0, -1]] for column in columns}
    changes = "; ".join(f"{column} from {first:.3g} to {last:.3g}" for column, (first, last) in ends.items())
    return Plot(title, caption, figure_to_svg(figure, title.lower(), f"{title} over steps: {changes}"))


def describe_proxies(proxies: Float[np.ndarray, "C D"] | None, classes: list[str]) -> dict[str, Any] | None:
    """Measure and plot the geometry of the proxies; None without proxies or if they are not finite."""
    if proxies is None or not np.isfinite(proxies).all():
        return None
    count, dim = proxies.shape
    closest, nearest = geometry.compare_proxies(proxies, classes)
    distance, floor = geometry.orthogonality_distance(proxies), geometry.welch_floor(count, dim)
    pairs = max(1, count * (count - 1))
    return {
        "classes": count,
        "dim": dim,
        "effective_rank": geometry.effective_rank(proxies),
        "distance": distance,
        "floor": floor,
        "excess": max(0.0, distance - floor) / count,
        "rms_cosine": (distance / pairs) ** 0.5,
        "min_rms_cosine": (floor / pairs) ** 0.5,
        "closest": closest,
        "compared": len(nearest),
        "plots": _plot_proxies(proxies),
    }


def _plot_proxies(proxies: Float[np.ndarray, "C D"]) -> list[Plot]:
    plots = []
    if len(proxies) > 1:
        caption = "Orthogonal proxies have a cosine of 0; the right tail holds the most similar classes."
        svg = figure_to_svg(figures.cosine_histogram_figure(proxies), "cosines", "Histogram of the proxies' cosines")
        plots.append(Plot("Cosines of all pairs", caption, svg))
    values = geometry.spectrum(proxies)
    description = f"Singular values of the proxies, falling from {values[0]:.2f} to {values[-1]:.2f}"
    svg = figure_to_svg(figures.spectrum_figure(values), "spectrum", description)
    plots.append(Plot("Spectrum", "Flat: all directions are used equally. Steep: the classes occupy few.", svg))
    return plots


def describe_matching(matching: NoMatchCalibration | None) -> dict[str, Any] | None:
    """Plot the ROC curve and list thresholds for some false-match rates; None without validation classes."""
    if matching is None:
        return None
    found = [(target, matching.threshold(target)) for target in FALSE_MATCH_RATES]
    rows = [(target, t, matching.false_match_rate(t), matching.match_rate(t)) for target, t in found if t is not None]
    description = "; ".join(f"{100 * rate.value:.0f} % at {100 * target:g} %" for target, _, _, rate in rows)
    figure = figures.roc_figure(matching, [(false_match_rate, rate) for _, _, false_match_rate, rate in rows])
    svg = figure_to_svg(figure, "roc", f"Match rate over false-match rate. {description}")
    return {
        "plot": Plot("ROC curve", "Marked: the thresholds in the table.", svg),
        "thresholds": rows,
        "queries": len(matching.other),
        "classes": len(np.unique(matching.classes)),
        "gallery": matching.gallery,
    }
