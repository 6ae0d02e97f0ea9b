"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass

from orthoproxy.reports.examples import Example, best_queries, examples, outcome, random_queries, worst_queries
from orthoproxy.reports.pages import template, thumbnails
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.sections import no_match, pair_distance_plot, proxy_geometry, training_plots
from orthoproxy.reports.style import COLOURS
from orthoproxy.reports.words import MEANING, facts, score_rows, verdict

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
    >>> import pandas as pd
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png"], ["cat", "cat"])
    >>> results = RunResults("first run", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> "<title>first run" in render_report(results)
    True
    """
    rows = score_rows(results.evaluation)
    page = template("report.html.j2")
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
        thumbnail=thumbnails(),
        paths=results.table["path"].tolist(),
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
    >>> import pandas as pd
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1.png", "2.png"], ["cat", "dog"])
    >>> results = RunResults("run", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> print(example_queries(results))
    None
    """
    if results.table.empty:
        return None
    trained = results.retrieval(results.trained)
    found = outcome(trained)
    scored = found.rank > 0
    if not scored.any():
        return None
    drawn = random_queries(found, results.table, AT_RANDOM)
    before = None if results.untrained is None else results.retrieval(results.untrained)
    return Examples(
        random=examples(trained, drawn, NEIGHBOURS),
        random_untrained=before and examples(before, drawn, NEIGHBOURS),
        worst=examples(trained, worst_queries(found, results.table, AT_AN_END), NEIGHBOURS),
        best=examples(trained, best_queries(found, results.table, AT_AN_END), NEIGHBOURS),
        at_first=float((found.rank[scored] == 1).mean()),
        looked_at=int(scored.sum()),
    )
