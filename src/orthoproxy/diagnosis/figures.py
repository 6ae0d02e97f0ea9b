"""The pictures of a diagnosis, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.figures import COLORS, SERIES, create_figure, label_axes, report_style
from orthoproxy.reports.geometry import spectrum


@report_style
def bars_figure(bars: Mapping[str, Mapping[str, Estimate]], x: str) -> Figure:
    """Draw groups of bars that lie one below the other, with their intervals, in percent.

    Parameters
    ----------
    bars
        A group's name to its bars' names and values, as fractions; all groups have bars of the same names.
    x
        What runs along x.

    Returns
    -------
    matplotlib.figure.Figure
        From 0 to 100.

    Examples
    --------
    >>> figure = bars_figure({"trained": {"seen": Estimate(0.9, 0.8, 1.0)}}, "%")
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['trained']
    """
    figure, (axes,) = create_figure()
    kinds = list(next(iter(bars.values())))
    height = 0.8 / len(kinds)
    for number, (kind, colour) in enumerate(zip(kinds, SERIES, strict=False)):
        at = np.arange(len(bars)) + (number - (len(kinds) - 1) / 2) * height
        values = [group[kind] for group in bars.values()]
        length = [100 * value.value for value in values]
        axes.barh(at, length, height * 0.9, color=colour, alpha=0.75, label=kind)
        spread = [[100 * (v.value - v.low) for v in values], [100 * (v.high - v.value) for v in values]]
        axes.errorbar(length, at, xerr=spread, fmt="none", ecolor=COLORS["ink"], elinewidth=1.2)
        for place, value in zip(at, values, strict=True):
            axes.annotate(
                f"{100 * value.value:.1f}", (100 * value.high, place), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    label_axes(axes, x, legend=True)
    return figure


@report_style
def spectrum_beside_random_figure(proxies: Float[np.ndarray, "C D"], random: Float[np.ndarray, "C D"]) -> Figure:
    """Draw the singular values of the proxies beside those of random directions.

    Parameters
    ----------
    proxies
        One row a class.
    random
        As many random rows.

    Returns
    -------
    matplotlib.figure.Figure
        Largest first.

    Examples
    --------
    >>> figure = spectrum_beside_random_figure(np.eye(3), np.eye(3))
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['random directions', 'proxies']
    """
    figure, (axes,) = create_figure()
    for vectors, label, colour, style in (
        (random, "random directions", "muted", (0, (4, 2))),
        (proxies, "proxies", "blue", "-"),
    ):
        values = spectrum(vectors)
        axes.plot(np.arange(1, len(values) + 1), values, color=COLORS[colour], linestyle=style, label=label)
    axes.set_ylim(bottom=0)
    label_axes(axes, "direction, strongest first", "singular value", legend=True)
    return figure


@report_style
def growth_figure(sizes: Sequence[int], scores: Sequence[Estimate], expected: tuple[int, Estimate]) -> Figure:
    """Draw a score over the number of directions kept, and what the next doubling would be expected to give.

    Parameters
    ----------
    sizes, scores
        Numbers of directions and the score with each, as a fraction.
    expected
        The next size and its score.

    Returns
    -------
    matplotlib.figure.Figure
        Sizes on a logarithmic scale, scores in percent.

    Examples
    --------
    >>> half = Estimate(0.5, 0.4, 0.6)
    >>> growth_figure([4, 8], [half, half], (16, half)).axes[0].get_xscale()
    'log'
    """
    figure, (axes,) = create_figure()
    for at, values, colour, marker in (
        (list(sizes), list(scores), "blue", "o"),
        ([expected[0]], [expected[1]], "orange", "D"),
    ):
        y = [100 * value.value for value in values]
        spread = [[100 * (v.value - v.low) for v in values], [100 * (v.high - v.value) for v in values]]
        label = "measured" if colour == "blue" else "expected"
        axes.errorbar(
            at, y, yerr=spread, color=COLORS[colour], marker=marker, markersize=5, elinewidth=1.2, label=label
        )
    ends = [100 * scores[-1].value, 100 * expected[1].value]
    axes.plot([sizes[-1], expected[0]], ends, color=COLORS["orange"], linestyle=(0, (4, 2)), linewidth=1.4)
    axes.set_xscale("log", base=2)
    ticks = [*sizes, expected[0]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    label_axes(axes, "directions of the embedding kept", "Recall@1 on unseen classes, %", legend=True)
    return figure


@report_style
def margin_figure(margins: Float[np.ndarray, " N"], suspects: int) -> Figure:
    """Draw how much more each image is like its own class than like the most similar other one.

    Parameters
    ----------
    margins
        From `label_errors.out_of_sample`.
    suspects
        How many of the smallest are shown as suspicious.

    Returns
    -------
    matplotlib.figure.Figure
        A histogram; counts on a logarithmic scale, or the suspects could not be seen.

    Examples
    --------
    >>> margin_figure(np.linspace(-1, 1, 50), suspects=3).axes[0].get_yscale()
    'log'
    """
    figure, (axes,) = create_figure()
    ordered = np.sort(margins)
    edges = np.histogram_bin_edges(ordered, 40).tolist()
    axes.hist(ordered[suspects:], edges, color=COLORS["blue"], alpha=0.6, label="others")
    axes.hist(ordered[:suspects], edges, color=COLORS["red"], alpha=0.85, label="suspects")
    axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    axes.set_yscale("log")
    label_axes(axes, "similarity to its own class minus that to the nearest other", "training images", legend=True)
    return figure
