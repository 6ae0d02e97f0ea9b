"""The pictures of a report, drawn with matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from orthoproxy.evaluation import Matching
from orthoproxy.reports.examples import Example, Neighbour, examples, outcome, random_queries
from orthoproxy.reports.geometry import pair_cosines, spectrum, structured_order, unit_rows
from orthoproxy.reports.pictures import thumbnail
from orthoproxy.reports.results import RunResults, finite
from orthoproxy.reports.style import COLOURS, SERIES, finish, in_house_style, panels
from orthoproxy.reports.words import metric_name, shortened

MOST_POINTS = 400  # of a curve
MATRIX_UP_TO = 200  # classes; with more, single cells of the matrix of cosines can no longer be seen
NAMES_UP_TO = 20
NO_MATCH_RATES = (0.001, 0.01, 0.1)  # false-match rates that the ROC marks
CHECK = (([0.78, 0.82, 0.90], [0.16, 0.10, 0.22]),)  # strokes in the corner of a tile
CROSS = (([0.79, 0.89], [0.11, 0.21]), ([0.79, 0.89], [0.21, 0.11]))


@in_house_style
def loss_figure(log: pd.DataFrame) -> Figure:
    """Draw the loss over the steps, and the metric loss alone where the log has it.

    Parameters
    ----------
    log
        See `RunResults`.

    Returns
    -------
    matplotlib.figure.Figure
        Curves are running means over a thirtieth of the run; the single steps lie pale behind.

    Examples
    --------
    >>> figure = loss_figure(pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0]}))
    >>> figure.axes[0].get_xlabel()
    'step'
    """
    named = {"loss": "loss", "metric_loss": "metric loss alone"}
    return _curves(log, {column: name for column, name in named.items() if len(finite(log, column))})


@in_house_style
def orthogonality_figure(log: pd.DataFrame) -> Figure:
    """Draw the term that keeps proxies apart over the steps, before its weight.

    Parameters
    ----------
    log
        See `RunResults`.

    Returns
    -------
    matplotlib.figure.Figure
        As from `loss_figure`.

    Examples
    --------
    >>> figure = orthogonality_figure(pd.DataFrame({"step": [1, 2], "orthogonality": [0.3, 0.2]}))
    >>> len(figure.axes)
    1
    """
    return _curves(log, {"orthogonality": "orthogonality"}, colours=[COLOURS["green"]])


@in_house_style
def rate_figure(log: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Draw the learning rate of each group of parameters over the steps, on a logarithmic scale.

    Parameters
    ----------
    log
        See `RunResults`.
    columns
        Which to draw, for example ``rate/backbone``; a rate of 0 leaves a gap.

    Returns
    -------
    matplotlib.figure.Figure
        One curve a column.

    Examples
    --------
    >>> figure = rate_figure(pd.DataFrame({"step": [1, 2], "rate/backbone": [1e-4, 1e-5]}), ["rate/backbone"])
    >>> figure.axes[0].get_yscale()
    'log'
    """
    figure, (axes,) = panels()
    for column, style in zip(columns, itertools.cycle(("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-."))):
        step, rate = _thinned(*_points(log, column))
        axes.plot(step, np.where(rate > 0, rate, np.nan), label=column.removeprefix("rate/"), linestyle=style)
    axes.set_yscale("log")
    finish(axes, "step", legend=len(columns) > 1)
    return figure


@in_house_style
def validation_figure(log: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Draw scores on the validation classes over the steps, in percent, each curve's best point marked.

    Parameters
    ----------
    log
        See `RunResults`.
    columns
        Which to draw, for example ``validation/recall@1``.

    Returns
    -------
    matplotlib.figure.Figure
        One curve a column.

    Examples
    --------
    >>> figure = validation_figure(pd.DataFrame({"step": [1], "validation/mrr": [0.5]}), ["validation/mrr"])
    >>> figure.axes[0].texts[0].get_text()
    '50.0'
    """
    figure, (axes,) = panels()
    for column, marker in zip(columns, "os^D", strict=False):
        step, score = _points(log, column)
        score = 100 * score
        label = metric_name(column.removeprefix("validation/"))
        (line,) = axes.plot(step, score, marker=marker, markersize=3.5, label=label)
        best = int(score.argmax())
        at = (step[best], score[best])
        colour = line.get_color()
        axes.plot(*at, marker=marker, markersize=8, color="none", markeredgecolor=colour, markeredgewidth=1.4)
        axes.annotate(f"{score[best]:.1f}", at, (0, 7), textcoords="offset points", ha="center", color=colour)
    axes.margins(x=0.06, y=0.16)
    finish(axes, "step", "%", legend=True)
    return figure


@in_house_style
def distance_figure(distances: Mapping[str, tuple[Float[np.ndarray, " P"], Float[np.ndarray, " M"]]]) -> Figure:
    """Draw histograms of the distances within a class and between classes, one panel a model.

    Parameters
    ----------
    distances
        A model's name to what `pair_distances` returned.

    Returns
    -------
    matplotlib.figure.Figure
        Panels share the axis of distances; each histogram has area 1.

    Examples
    --------
    >>> figure = distance_figure({"trained": (np.array([0.1, 0.2]), np.array([0.8, 1.0]))})
    >>> figure.axes[0].get_title(loc="left")
    'trained'
    """
    figure, all_axes = panels(rows=len(distances))
    high = max(float(values.max(initial=0.1)) for pair in distances.values() for values in pair)
    bins = min(_bins(values) for pair in distances.values() for values in pair)
    edges = np.linspace(0, 1.02 * high, bins + 1)
    for axes, (name, (positives, negatives)) in zip(all_axes, distances.items(), strict=True):
        for values, colour, label in ((negatives, "orange", "different classes"), (positives, "blue", "same class")):
            height, _ = np.histogram(values, edges)
            height = height / max(1, len(values)) / (edges[1] - edges[0])
            axes.stairs(height, edges, color=COLOURS[colour], fill=True, alpha=0.22)
            axes.stairs(height, edges, color=COLOURS[colour], linewidth=1.5, label=label)
        axes.set_title(name)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, handlelength=1.2)
    all_axes[-1].set_xlabel("distance, 1 \N{MINUS SIGN} cosine: nearer is more alike")
    return figure


@in_house_style
def roc_figure(matching: Matching) -> Figure:
    """Draw how many queries are matched rightly for how many that should not have been matched.

    Parameters
    ----------
    matching
        Of classes that were not trained on.

    Returns
    -------
    matplotlib.figure.Figure
        The false-match rate runs on a logarithmic scale, from one query up.

    Examples
    --------
    >>> matching = Matching(np.array([0.9, 0.7]), np.array([0.2, 0.5]), np.array([0, 1]), gallery=4)
    >>> roc_figure(matching).axes[0].get_xscale()
    'log'
    """
    false, found = (100 * curve for curve in matching.curve())
    one = 100 / len(matching.other)
    figure, (axes,) = panels()
    axes.step(np.maximum(false, one / 2), found, where="post", color=COLOURS["blue"])
    for rate in NO_MATCH_RATES:
        threshold = matching.threshold(rate)
        if threshold is None:
            continue
        rates = (matching.false_match_rate(threshold, draws=1), matching.match_rate(threshold, draws=1))
        at = (max(100 * rates[0].value, one / 2), 100 * rates[1].value)
        axes.plot(*at, marker="o", markersize=8, color="none", markeredgecolor=COLOURS["blue"], markeredgewidth=1.4)
        axes.annotate(f"{at[1]:.0f}", at, (8, -12), textcoords="offset points", color=COLOURS["blue"])
    axes.set_xscale("log")
    ticks = [tick for tick in (0.01, 0.1, 1, 10, 100) if tick >= one / 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(one / 2, 100), ylim=(0, 108))
    axes.set_yticks([0, 25, 50, 75, 100])
    finish(axes, "% of queries of unknown classes that get a match", "% of queries of known classes matched")
    return figure


@in_house_style
def cosine_matrix_figure(proxies: Float[np.ndarray, "C D"], classes: Sequence[str]) -> Figure:
    """Draw the cosine of each proxy with each other, alike classes side by side.

    Parameters
    ----------
    proxies
        One row a class; some 200 at most, or cells get smaller than pixels.
    classes
        Their names, written beside the rows where there are few.

    Returns
    -------
    matplotlib.figure.Figure
        The diagonal, always 1, is left blank, so that the scale shows the rest.

    Examples
    --------
    >>> figure = cosine_matrix_figure(np.eye(3), ["a", "b", "c"])
    >>> sorted(label.get_text() for label in figure.axes[0].get_yticklabels())
    ['a', 'b', 'c']
    """
    figure, (axes,) = panels(height=3.6)
    order = structured_order(proxies)
    units = unit_rows(proxies[order])
    cosines = units @ units.T
    np.fill_diagonal(cosines, np.nan)
    limit = max(0.1, float(np.nanmax(np.abs(cosines), initial=0)))
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    bar.ax.spines["outline"].set_visible(False)
    names = [shortened(classes[i]) for i in map(int, order)] if len(order) <= NAMES_UP_TO else []
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("class" if names else f"{len(order)} classes")
    return figure


@in_house_style
def cosine_histogram_figure(proxies: Float[np.ndarray, "C D"]) -> Figure:
    """Draw the histogram of the cosines between any two proxies.

    Parameters
    ----------
    proxies
        One row a class, at least two.

    Returns
    -------
    matplotlib.figure.Figure
        Around 0, where two proxies are orthogonal.

    Examples
    --------
    >>> cosine_histogram_figure(np.eye(3)).axes[0].get_xlabel()
    'cosine of two proxies'
    """
    cosines = pair_cosines(proxies)
    figure, (axes,) = panels()
    low, high = min(-0.1, float(cosines.min(initial=0))), max(0.1, float(cosines.max(initial=0)))
    height, edges = np.histogram(cosines, np.linspace(low, high, _bins(cosines) + 1))
    axes.stairs(100 * height / max(1, len(cosines)), edges, color=COLOURS["blue"], fill=True, alpha=0.75)
    axes.axvline(0, color=COLOURS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    finish(axes, "cosine of two proxies", "% of pairs")
    return figure


@in_house_style
def spectrum_figure(proxies: Float[np.ndarray, "C D"]) -> Figure:
    """Draw the singular values of the proxies, and the level of proxies as orthogonal as can be.

    Parameters
    ----------
    proxies
        One row a class.

    Returns
    -------
    matplotlib.figure.Figure
        Largest first.

    Examples
    --------
    >>> figure = spectrum_figure(np.eye(3))
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['as even as possible', 'proxies']
    """
    values = spectrum(proxies)
    number = np.arange(1, len(values) + 1)
    even = np.full(len(values), np.sqrt(len(proxies) / len(values)))
    figure, (axes,) = panels()
    axes.plot(number, even, color=COLOURS["muted"], linestyle=(0, (4, 2)), linewidth=1.4, label="as even as possible")
    axes.plot(number, values, color=COLOURS["blue"], label="proxies", marker="o" if len(values) < 25 else "", ms=3.5)
    axes.set_ylim(bottom=0)
    finish(axes, "direction, strongest first", "singular value", legend=True)
    return figure


@in_house_style
def retrieval_strip(results: RunResults, queries: int = 5, neighbours: int = 6, seed: int = 0) -> Figure:
    """Draw queries with their nearest neighbours, untrained and trained side by side, right and wrong ones marked.

    Parameters
    ----------
    results
        Of a run; without `untrained`, its block is left out.
    queries
        How many, at most; drawn at random among those with a positive, one a class.
    neighbours
        Of each query.
    seed
        Of the draw.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with 200 dots an inch or so.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png"], ["a", "a"])
    >>> results = RunResults("run", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> len(retrieval_strip(results, queries=1, neighbours=1).axes)  # the query and one neighbour
    2
    """
    blocks = _blocks(results, queries, neighbours, seed)
    asked = next(iter(blocks.values()))
    tile, gap, head, below = 0.72, 0.24, 0.3, 0.19  # inches
    starts = {name: tile + gap + i * (neighbours * tile + gap) for i, name in enumerate(blocks)}
    width, height = max(starts.values()) + neighbours * tile, head + max(1, len(asked)) * (tile + below)
    figure = Figure(figsize=(width, height), facecolor="white")
    for name, x in {"Query": 0.0, **starts}.items():
        figure.text((x + 0.02) / width, 1 - 0.18 / height, name, weight="bold", va="center")
    paths, labels = results.table["path"].tolist(), results.table["label"].tolist()
    for i, query in enumerate(asked):
        y = height - head - i * (tile + below) - tile
        middle, label = ((tile / 2) / width, (y - below / 2) / height), shortened(labels[query.row], 13)
        figure.text(*middle, label, size=7, ha="center", va="center", parse_math=False)
        _tile(figure, (0, y, tile), paths[query.row])
        for name, x in starts.items():
            for j, found in enumerate(blocks[name][i].neighbours):
                _tile(figure, (x + j * tile, y, tile), paths[found.row], found)
    return figure


def _blocks(results: RunResults, queries: int, neighbours: int, seed: int) -> dict[str, list[Example]]:
    """Look up the same random queries with each model."""
    trained = results.retrieval(results.trained)
    rows = random_queries(outcome(trained, seed=seed), results.table, queries, seed)
    blocks = {"Trained": examples(trained, rows, neighbours)}
    if results.untrained is None:
        return blocks
    return {"Untrained": examples(results.retrieval(results.untrained), rows, neighbours), **blocks}


def _curves(log: pd.DataFrame, named: Mapping[str, str], colours: Sequence[str] = SERIES) -> Figure:
    figure, (axes,) = panels()
    for (column, name), colour, style in zip(named.items(), colours, ("-", (0, (5, 1.5))), strict=False):
        step, value = _thinned(*_points(log, column))
        smooth = pd.Series(value).rolling(max(1, len(value) // 30), min_periods=1, center=True).mean()
        if column == next(iter(named)):
            axes.plot(step, value, color=colour, alpha=0.25, linewidth=1)
        axes.plot(step, smooth, color=colour, label=name, linestyle=style)
    finish(axes, "step", legend=len(named) > 1)
    return figure


def _points(log: pd.DataFrame, column: str) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Return the steps at which the log holds a finite number, and the number."""
    step, value = log["step"].to_numpy(dtype=np.float64), log[column].to_numpy(dtype=np.float64)
    kept = np.isfinite(step) & np.isfinite(value)
    return step[kept], value[kept]


def _thinned(
    step: Float[np.ndarray, " P"], value: Float[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Average neighbouring points, so that a curve has `MOST_POINTS` at most."""
    parts = min(MOST_POINTS, len(step))
    means = [[part.mean() for part in np.array_split(x, parts)] for x in (step, value)]
    return np.array(means[0]), np.array(means[1])


def _bins(values: Float[np.ndarray, " P"]) -> int:
    """Take fewer bins where there are few different values, or a histogram is all gaps."""
    return int(np.clip(np.sqrt(len(np.unique(values.round(6)))), 12, 60))


def _tile(figure: Figure, place: tuple[float, float, float], path: str, found: Neighbour | None = None) -> None:
    """Put a picture into a square of the figure, in inches, with a mark that says whether it was rightly found."""
    width, height = figure.get_size_inches()
    x, y, side = place
    axes = figure.add_axes((x / width, y / height, side / width, side / height))
    axes.axis("off")
    picture = thumbnail(path, 192) or Image.new("RGB", (8, 8), COLOURS["rule"])
    axes.imshow(np.asarray(picture), extent=(0.06, 0.94, 0.06, 0.94), interpolation="lanczos")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if found is None:
        axes.add_patch(Rectangle((0.04, 0.04), 0.92, 0.92, fill=False, edgecolor=COLOURS["ink"], linewidth=1))
        return
    colour = COLOURS["green" if found.right else "red"]
    axes.add_patch(Rectangle((0.04, 0.04), 0.92, 0.92, fill=False, edgecolor=colour, linewidth=1.8))
    axes.add_patch(Rectangle((0.72, 0.04), 0.24, 0.24, facecolor=colour, edgecolor="none"))
    for stroke in CHECK if found.right else CROSS:
        axes.plot(*stroke, color="white", linewidth=1.3)
