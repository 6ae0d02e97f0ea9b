"""The page of a study: one self-contained HTML file with its tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orthoproxy.core.files import atomic_write
from orthoproxy.reports.html import Plot, figure_to_svg, load_template
from orthoproxy.reports.text import metric_name
from orthoproxy.studies import figures, table
from orthoproxy.studies.plan import Study, choose_setting, validation_scores
from orthoproxy.studies.results import METRICS, TrialResult
from orthoproxy.studies.statistics import MIN_SEEDS
from orthoproxy.studies.table import MethodSummary


def write_page(study: Study, results: Sequence[TrialResult], folder: Path) -> None:
    """Write ``index.html``, ``table.md`` and ``table.csv`` to a folder; the page lists missing trials."""
    rows = {metric: table.summarize_methods(study, results, metric) for metric in table.ordered_metrics(study)}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "index.html", _render(study, results, rows))
    atomic_write(folder / "table.md", table.to_markdown(study, results))
    frame = table.to_frame([row for of_metric in rows.values() for row in of_metric])
    atomic_write(folder / "table.csv", frame.to_csv(index=False))


def _render(study: Study, results: Sequence[TrialResult], rows: dict[str, list[MethodSummary]]) -> str:
    return load_template("study.html.j2").render(
        study=study,
        cells={metric: table.to_cells(of_metric) for metric, of_metric in rows.items()},
        names={metric: metric_name(metric) for metric in METRICS},
        notes=table.notes(study, results),
        few_seeds=len(study.seeds) < MIN_SEEDS,
        score_plots=_plot_scores(study, rows[study.metric]),
        tried=_tried_settings(study, results),
        environment=_summarize_environments(results),
    )


def _plot_scores(study: Study, rows: Sequence[MethodSummary]) -> list[Plot]:
    colors, drawn, plots = figures.method_colors(study), {}, []
    caption = "Large dot and bar: mean and interval. Small dots: seeds."
    if any(row.difference for row in rows):
        drawn["Differences"] = figures.differences_figure(rows, colors)
    if any(row.mean for row in rows):
        drawn["Scores"] = figures.scores_figure(rows, colors)
    for name, figure in drawn.items():
        title = f"{name} on the test classes"
        plots.append(Plot(title, caption, figure_to_svg(figure, name.lower(), f"{title}. {caption}")))
    return plots


def _tried_settings(study: Study, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """List every setting with its mean validation score over the tuning seeds, in percent."""
    tried = []
    for name, method in study.methods.items():
        chosen = choose_setting(study, results, name)
        for setting in method.settings:
            scores = validation_scores(study, results, name, setting)
            row = {"method": name, "setting": table.format_setting(setting or method.set), "seeds": len(scores)}
            tried.append(row | {"score": float(np.mean(scores)) if scores else None, "chosen": setting == chosen})
    return tried


def _summarize_environments(results: Sequence[TrialResult]) -> dict[str, str]:
    """List dates, versions and machines; several values where trials differ."""
    records = [{"date": result.date, **result.environment} for result in results]
    records += [{"date": r.retrained["date"], **r.retrained["environment"]} for r in results if r.retrained]
    names = dict.fromkeys(name for record in records for name in record)
    return {name: "; ".join(sorted({record[name] for record in records if name in record})) for name in names}
