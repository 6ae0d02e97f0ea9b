"""How the figures of a report look, and how they become part of a page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart by people who see few colours too (after Okabe and Ito). A page may give each another value in the dark
COLOURS = {
    "ink": "#1c2630",
    "muted": "#5d6874",
    "rule": "#dce1e6",
    "blue": "#0b69ab",
    "orange": "#d1590a",
    "green": "#0f7b52",
    "purple": "#a2478a",
    "red": "#c0332b",
}
SERIES = [COLOURS[name] for name in ("blue", "orange", "green", "purple")]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched and read aloud
    "svg.hashsalt": "orthoproxy",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
in_house_style = matplotlib.rc_context(STYLE)  # decorates each function that draws
WIDTH, HEIGHT = 4.4, 2.6  # inches; on a phone the figure shrinks to some 85 %, and its text is still legible


def panels(rows: int = 1, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """Start a figure of some axes one above the other, which share what runs along x.

    Parameters
    ----------
    rows
        How many.
    height
        Of one, in inches; further ones get a little more than half of it each.

    Returns
    -------
    figure, axes
        Empty.

    Examples
    --------
    >>> figure, (axes,) = panels()
    >>> figure.axes == [axes]
    True
    """
    size = (WIDTH, height + (rows - 1) * 0.55 * height)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])


def finish(axes: Axes, x: str, y: str = "", legend: bool = False) -> None:
    """Say what the axes show, and which curve is which.

    Parameters
    ----------
    axes
        With its curves drawn.
    x, y
        What runs along x and y.
    legend
        Name the curves, above the axes, where the legend hides none of them.

    Examples
    --------
    >>> _, (axes,) = panels()
    >>> finish(axes, "step", "%")
    >>> axes.get_xlabel()
    'step'
    """
    axes.set_xlabel(x)
    axes.set_title(y, color=COLOURS["muted"])  # level above the axis: easier to read than upright beside it
    if legend:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, handlelength=1.6)


@in_house_style
def svg(figure: Figure, name: str, description: str) -> Markup:
    """Turn a figure into SVG to stand inside a page.

    Parameters
    ----------
    figure
        From one of the functions here.
    name
        A word of its own for each figure of the page; becomes part of the ids inside.
    description
        What the figure shows, for those who do not see it.

    Returns
    -------
    markupsafe.Markup
        An ``svg`` element. Its colours are the page's variables, ``var(--ink)`` and so on, where the page has them.

    Examples
    --------
    >>> svg(Figure(), "empty", "Nothing")[:48]
    Markup('<svg role="img" aria-label="Nothing" class="plot')
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # two figures may use the same ids
    text = re.sub(r'\b(font-family|font): [^;"]*;?', _without_family, text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}" class="plot"', 1))


def _without_family(found: re.Match[str]) -> str:
    """Drop matplotlib's list of fonts from a style, and keep the size: the page chooses the font."""
    size = re.search(r"[\d.]+px", found[0])
    return f"font-size: {size[0]};" if size else ""
