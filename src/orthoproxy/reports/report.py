"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

from functools import cache

from orthoproxy.reports.examples import choose_examples
from orthoproxy.reports.html import load_template, thumbnail_uri
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.sections import describe_matching, describe_proxies, plot_training
from orthoproxy.reports.text import DEFINITIONS, metric_name, run_facts, summarize


def render_report(results: RunResults) -> str:
    """Render the report of a run as self-contained HTML."""
    names = [metric_name(name) for name in results.evaluation.model] if results.evaluation else []
    return load_template("report.html.j2").render(
        run=results,
        facts=run_facts(results),
        summary=summarize(results.evaluation),
        definitions=[term for start, term in DEFINITIONS.items() if any(name.startswith(start) for name in names)],
        examples=choose_examples(results),
        training=plot_training(results.log),
        proxies=describe_proxies(results.proxies, results.classes),
        matching=describe_matching(results.matching),
        thumbnail=cache(thumbnail_uri),
        paths=results.table["path"].tolist(),
        label=results.table["label"].replace("", "distractor").tolist(),
        group=results.table["group"].tolist(),
    )
