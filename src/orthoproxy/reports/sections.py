"""The parts of a report that are drawn: curves of the training, geometry of the proxies, distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup

from orthoproxy.evaluation import Estimate, Matching
from orthoproxy.reports import figures
from orthoproxy.reports.distances import pair_distances, separation
from orthoproxy.reports.geometry import (
    Pair,
    closest_pairs,
    effective_rank,
    orthogonality_distance,
    spectrum,
    welch_floor,
)
from orthoproxy.reports.results import RunResults, finite
from orthoproxy.reports.style import svg


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what it says, in plain words."""

    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class Geometry:
    """What the page says about the proxies; see `proxy_geometry`."""

    classes: int
    dim: int
    effective_rank: float
    distance: float
    floor: float
    typical: float
    least_typical: float
    closest: list[Pair]
    plots: list[Plot]

    @property
    def excess(self) -> float:
        """What lies above the floor, for each proxy."""
        return max(0.0, self.distance - self.floor) / self.classes


@dataclass(frozen=True)
class Distances:
    """The histograms of distances, and each model's share of draws with the pair of the same class closer."""

    plot: Plot
    shares: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """A threshold for a false-match rate that someone may want, and the rates that it has."""

    wanted: float
    threshold: float
    false: Estimate
    found: Estimate


@dataclass(frozen=True)
class NoMatch:
    """What the page says about matches and "no match"; see `no_match`."""

    plot: Plot
    choices: list[Choice]
    queries: int
    classes: int
    gallery: int


def training_plots(log: pd.DataFrame) -> list[Plot]:
    """Draw the curves of a run, those that its log has.

    Parameters
    ----------
    log
        See `RunResults`.

    Returns
    -------
    list of Plot
        Of loss, orthogonality, learning rates and validation.

    Examples
    --------
    >>> [plot.title for plot in training_plots(pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0]}))]
    ['Loss']
    """
    if "step" not in log:
        return []
    plots = []
    if len(finite(log, "loss")):
        caption = "What training makes small. Bold: running mean; pale: single steps."
        drawing = svg(figures.loss_figure(log), "loss", f"Loss over steps, {_ends(log, 'loss')}")
        plots.append(Plot("Loss", caption, drawing))
    if len(finite(log, "orthogonality")):
        caption = (
            "How close the proxies are, as loss.orthogonality counts it, before its weight. Lower is further apart."
        )
        ends = _ends(log, "orthogonality")
        drawing = svg(figures.orthogonality_figure(log), "so", f"Regulariser over steps, {ends}")
        plots.append(Plot("What keeps proxies apart", caption, drawing))
    rates = [column for column in _starting_with(log, "rate/") if (finite(log, column) > 0).any()]
    if rates:
        caption = "How far one step moves each part of the model; the scale is logarithmic."
        said = "; ".join(f"{name} {_ends(log, name)}" for name in rates)
        drawing = svg(figures.rate_figure(log, rates), "rate", f"Rates over steps: {said}")
        plots.append(Plot("Learning rates", caption, drawing))
    scores = _validation_columns(log)
    if scores:
        caption = "Scores on the classes that the checkpoint was chosen by. Ringed: each curve\u2019s best."
        said = "; ".join(f"{name} {_ends(log, name)}" for name in scores)
        drawing = svg(figures.validation_figure(log, scores), "validation", f"Scores over steps: {said}")
        plots.append(Plot("Validation", caption, drawing))
    return plots


def proxy_geometry(proxies: Float[np.ndarray, "C D"] | None, classes: list[str]) -> Geometry | None:
    """Measure and draw how the proxies lie.

    Parameters
    ----------
    proxies
        One row a class, or None.
    classes
        Their names.

    Returns
    -------
    Geometry or None
        None without proxies, and where they hold values that are not finite.

    Examples
    --------
    >>> geometry = proxy_geometry(np.eye(4), ["a", "b", "c", "d"])
    >>> geometry.distance, geometry.floor, [plot.title for plot in geometry.plots]
    (0.0, 0.0, ['Cosine of each proxy with each other', 'Cosines of all pairs', 'Spectrum'])
    """
    if proxies is None or not len(proxies) or not np.isfinite(proxies).all():
        return None
    count, dim = proxies.shape
    distance, floor, pairs = orthogonality_distance(proxies), welch_floor(count, dim), max(1, count * (count - 1))
    return Geometry(
        count,
        dim,
        effective_rank(proxies),
        distance,
        floor,
        typical=(distance / pairs) ** 0.5,
        least_typical=(floor / pairs) ** 0.5,
        closest=closest_pairs(proxies, classes),
        plots=_proxy_plots(proxies, classes),
    )


def pair_distance_plot(results: RunResults) -> Distances | None:
    """Draw how far images of the same class and of different classes lie apart.

    Parameters
    ----------
    results
        Of the run.

    Returns
    -------
    Distances or None
        None where there are no pairs of both kinds.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png", "3.png"], ["cat", "cat", "dog"])
    >>> results = RunResults("run", None, table, np.eye(3), None, pd.DataFrame(), None, [], "", {}, [])
    >>> pair_distance_plot(results).shares
    {'Trained': 0.5}
    """
    if results.table.empty:
        return None
    models = {"Untrained": results.untrained, "Trained": results.trained}
    pairs = {name: pair_distances(results.retrieval(x)) for name, x in models.items() if x is not None}
    shares = {name: separation(*pair) for name, pair in pairs.items()}
    if any(np.isnan(share) for share in shares.values()):
        return None
    said = ", ".join(f"{name.lower()} {100 * share:.1f} %" for name, share in shares.items())
    drawing = svg(
        figures.distance_figure(pairs),
        "distances",
        f"Histograms of distances; same class closer than different: {said}",
    )
    caption = "The less the two histograms overlap, the better one threshold tells same from different."
    return Distances(Plot("Distances of pairs", caption, drawing), shares)


def no_match(matching: Matching | None) -> NoMatch | None:
    """Draw the ROC of matching, and look up the threshold for some false-match rates.

    Parameters
    ----------
    matching
        Of classes that were not trained on, or None.

    Returns
    -------
    NoMatch or None
        None without a matching.

    Examples
    --------
    >>> matching = Matching(np.array([0.9, 0.7] * 10), np.array([0.2, 0.5] * 10), np.arange(20), gallery=20)
    >>> shown = no_match(matching)
    >>> [(choice.wanted, round(choice.threshold, 2)) for choice in shown.choices]  # 1 % takes 100 queries
    [(0.1, 0.5)]
    """
    if matching is None:
        return None
    choices = []
    for rate in figures.NO_MATCH_RATES:
        threshold = matching.threshold(rate)
        if threshold is not None:
            false, found = matching.false_match_rate(threshold), matching.match_rate(threshold)
            choices.append(Choice(rate, threshold, false, found))
    said = "; ".join(f"{100 * x.found.value:.0f} % at {100 * x.wanted:g} %" for x in choices) or "too few queries"
    caption = "The further up on the left, the better a threshold tells a match from none. Ringed: those of the table."
    drawing = svg(figures.roc_figure(matching), "roc", f"Match rate over false-match rate: {said}")
    plot = Plot("Match rate over false-match rate", caption, drawing)
    return NoMatch(plot, choices, len(matching.other), len(set(matching.classes.tolist())), matching.gallery)


def _proxy_plots(proxies: Float[np.ndarray, "C D"], classes: list[str]) -> list[Plot]:
    plots = []
    if 1 < len(proxies) <= figures.MATRIX_UP_TO:
        caption = (
            "White: orthogonal. Red: alike. Blue: opposed. Classes are ordered so that alike ones stand side by side; "
            "red blocks are groups of classes that the model holds to be close."
        )
        drawing = svg(
            figures.cosine_matrix_figure(proxies, classes), "matrix", f"Cosines of {len(proxies)} proxies as a matrix"
        )
        plots.append(Plot("Cosine of each proxy with each other", caption, drawing))
    if len(proxies) > 1:
        caption = "The narrower around 0, the closer to orthogonal; the tail on the right holds the most alike classes."
        drawing = svg(figures.cosine_histogram_figure(proxies), "cosines", "Histogram of the proxies' cosines")
        plots.append(Plot("Cosines of all pairs", caption, drawing))
    values = spectrum(proxies)
    caption = (
        "How much of the proxies lies in each direction. A flat line: all directions are used alike. "
        "A steep one: the classes crowd into few."
    )
    said = f"Singular values of the proxies, falling from {values[0]:.2f} to {values[-1]:.2f}"
    plots.append(Plot("Spectrum", caption, svg(figures.spectrum_figure(proxies), "spectrum", said)))
    return plots


def _starting_with(log: pd.DataFrame, start: str | tuple[str, ...]) -> list[str]:
    return [column for column in map(str, log.columns) if column.startswith(start) and len(finite(log, column))]


def _validation_columns(log: pd.DataFrame) -> list[str]:
    """Choose the scores that people ask for first, or else three at most."""
    kinds = ("recall@", "map@r", "r_precision", "mrr", "nmi")
    scores = _starting_with(log, tuple(f"validation/{kind}" for kind in kinds))
    return [column for column in ("validation/recall@1", "validation/map@r") if column in scores] or scores[:3]


def _ends(log: pd.DataFrame, column: str) -> str:
    values = finite(log, column)
    return f"from {values[0]:.3g} to {values[-1]:.3g}" if len(values) else ""
