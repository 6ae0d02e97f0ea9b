"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jinja2
import pandas as pd

from orthoproxy.reports.examples import Example, best_queries, examples, outcome, random_queries, worst_queries
from orthoproxy.reports.pictures import data_uri, thumbnail
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.sections import no_match, pair_distance_plot, proxy_geometry, training_plots
from orthoproxy.reports.style import COLOURS
from orthoproxy.reports.words import MEANING, facts, interval, number, score_rows, verdict

AT_RANDOM, AT_AN_END, NEIGHBOURS = 5, 6, 6  # queries drawn at random; best, and worst, queries; neighbours of each


@dataclass(frozen=True)
class Examples:
    """Queries that the page shows: drawn at random with both models, the worst and the best with the trained one."""

    random: list[Example]
    random_untrained: list[Example] | None
    worst: list[Example]
    best: list[Example]
    at_first: float
    looked_at: int


def render_report(results: RunResults) -> str:
    """Write the report of a run.

    Parameters
    ----------
    results
        What to show.

    Returns
    -------
    str
        HTML with its pictures and figures inside; it asks no other host for anything.

    Examples
    --------
    >>> import numpy as np
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png"], ["cat", "cat"])
    >>> results = RunResults("first run", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> "<title>first run" in render_report(results)
    True
    """
    rows = score_rows(results.evaluation)
    page = _environment().get_template("report.html.j2")
    return page.render(
        run=results,
        facts=facts(results),
        verdict=verdict(results.evaluation),
        rows=rows,
        terms=[term for start, term in MEANING.items() if any(row.name.startswith(start) for row in rows)],
        examples=example_queries(results),
        training=training_plots(results.log),
        proxies=proxy_geometry(results.proxies, results.classes),
        distances=pair_distance_plot(results),
        no_match=no_match(results.matching),
        thumbnail=_thumbnail_of(results.table),
        label=results.table["label"].tolist(),
        group=results.table["group"].tolist(),
        colours=COLOURS,
    )


def example_queries(results: RunResults) -> Examples | None:
    """Choose the queries that the page shows.

    Parameters
    ----------
    results
        Of the run.

    Returns
    -------
    Examples or None
        None where no query has a positive.

    Examples
    --------
    >>> import numpy as np
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png"], ["cat", "dog"])
    >>> results = RunResults("run", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> print(example_queries(results))
    None
    """
    if results.table.empty:
        return None
    trained = results.collection(results.trained)
    found = outcome(trained)
    scored = found.rank > 0
    if not scored.any():
        return None
    drawn = random_queries(found, results.table, AT_RANDOM)
    before = None if results.untrained is None else results.collection(results.untrained)
    return Examples(
        random=examples(trained, drawn, NEIGHBOURS),
        random_untrained=before and examples(before, drawn, NEIGHBOURS),
        worst=examples(trained, worst_queries(found, results.table, AT_AN_END), NEIGHBOURS),
        best=examples(trained, best_queries(found, results.table, AT_AN_END), NEIGHBOURS),
        at_first=float((found.rank[scored] == 1).mean()),
        looked_at=int(scored.sum()),
    )


def _thumbnail_of(table: pd.DataFrame) -> Callable[[int], str | None]:
    """Return a function from a row of the table to its picture, or None; each file is read once."""

    @cache
    def of(row: int) -> str | None:
        image = thumbnail(table["path"].iloc[row])
        return None if image is None else data_uri(image)

    return of


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orthoproxy.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(interval=interval, number=number, unbroken=_unbroken)
    return environment


def _unbroken(sentence: str) -> str:
    """Keep a score's number, sign and interval on one line each."""
    return re.sub(r"(?<=\d) (?=%)|(?<=\d,) (?=\S+\])", "\N{NO-BREAK SPACE}", sentence)
