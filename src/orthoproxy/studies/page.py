"""The page of a study: one HTML file that needs nothing beside it, and the table in three formats."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from orthoproxy.core.errors import os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.core.progress import duration
from orthoproxy.reports.html import Plot, figure_to_svg, load_template
from orthoproxy.reports.text import MINUS, metric_name
from orthoproxy.studies import figures
from orthoproxy.studies.comparison import Row, rows_of
from orthoproxy.studies.plan import METRICS, Result, Study
from orthoproxy.studies.speed import level_to_reach, speeds
from orthoproxy.studies.statistics import reach
from orthoproxy.studies.table import RULE, SEEDS_LISTED, as_csv, as_latex, as_markdown, displayed
from orthoproxy.studies.words import answers, notes, section_of, tried_settings, worse_than_untrained


def write_page(study: Study, results: Sequence[Result], folder: Path) -> None:
    """Write ``index.html``, ``table.csv``, ``table.md`` and ``table.tex``.

    Parameters
    ----------
    study
        What was planned.
    results
        Of the cells that are there; the page says what is missing.
    folder
        Made if missing; files of that name are replaced.

    Raises
    ------
    InputError
        If cells were judged on different test classes, or the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from orthoproxy.studies.plan import Method
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_page(Study("so", {"off": Method()}, baseline="off"), [], Path(folder))
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['index.html', 'table.csv', 'table.md', 'table.tex']
    """
    rows = all_rows(study, results)
    main = rows[study.metric]
    files = {
        "index.html": render_page(study, results, rows, folder),
        "table.csv": as_csv([row for of_metric in rows.values() for row in of_metric]),
        "table.md": _markdown(study, results, rows),
        "table.tex": as_latex(main, _caption(study, main)),
    }
    with os_errors_as_input_errors(folder, "write the page again"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            atomic_write(folder / name, text)  # parts of a study may end together


def all_rows(study: Study, results: Sequence[Result]) -> dict[str, list[Row]]:
    """Compare the methods by the metric of the study and by the other one.

    Parameters
    ----------
    study, results
        As in `write_page`.

    Returns
    -------
    dict
        Metric to rows, the study's own first.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> list(all_rows(Study("so", {"off": Method()}, baseline="off", metric="map@r"), []))
    ['map@r', 'recall@1']
    """
    order = [study.metric, *(metric for metric in METRICS if metric != study.metric)]
    return {metric: rows_of(study, results, metric) for metric in order}


def render_page(study: Study, results: Sequence[Result], rows: dict[str, list[Row]], folder: Path | None = None) -> str:
    """Write the page as HTML.

    Parameters
    ----------
    study, results
        As in `write_page`.
    rows
        From `all_rows`.
    folder
        Where the page will lie, for the commands; None for the usual place.

    Returns
    -------
    str
        With its figures inside; it asks no other host for anything.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> study = Study("so", {"off": Method()}, baseline="off", title="Does it help?")
    >>> "<h1>Does it help?</h1>" in render_page(study, [], all_rows(study, []))
    True
    """
    main = rows[study.metric]
    return load_template("study.html.j2").render(
        study=study,
        rows=rows,
        shown={metric: [displayed(row) for row in of_metric] for metric, of_metric in rows.items()},
        names={metric: metric_name(metric) for metric in METRICS},
        rule=RULE,
        reach=_reach(main),
        facts=_facts(study, results),
        notes=_notes(study, results, main),
        answers=answers(main, study.compare),
        pictures=_pictures(study, main),
        tried=tried_settings(study, results),
        most=SEEDS_LISTED,
        settings_pictures=_settings_pictures(study, results),
        speed=speeds(study, results),
        level=level_to_reach(study, results),
        costs=_cost_pictures(study, results),
        geometry=_geometry_pictures(study, results),
        commands=_commands(study, folder),
        elsewhere=bool(_images_elsewhere(study)),
        machine=_machine(results),
    )


def _notes(study: Study, results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    return [note for note in (worse_than_untrained(rows), *notes(study, results)) if note]


def _facts(study: Study, results: Sequence[Result]) -> list[str]:
    known = [f"{len(study.methods)} methods", f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"]
    for part, name in (("validation", "validation classes"), ("test", "test classes")):
        scored = next((result[part] for result in results if result.get(part)), None)
        if scored:
            known.append(f"{len(scored['classes']):,} {name} with {sum(scored['queries']):,} queries")
    if results:
        spent = duration(sum(result.get("seconds") or 0 for result in results))
        known.append(f"{len(results):,} cell{'s' if len(results) > 1 else ''}, {spent} of training")
    return [*known, f"recipe {study.base.name}"]


def _pictures(study: Study, rows: Sequence[Row]) -> list[Plot]:
    looks, plots = figures.looks_of(study), []
    if any(row.difference for row in rows):
        caption = "Difference on the test classes. Large dot and bar: mean and interval. Small dots: pairs of seeds."
        drawn = figures.differences_figure(rows, looks)
        plots.append(_plot(_against(study), caption, drawn, "differences"))
    if any(row.mean for row in rows):
        caption = (
            "On the test classes. Large dot and bar: mean and interval, over seeds and classes. Small dots: seeds."
        )
        plots.append(_plot("Scores", caption, figures.scores_figure(rows, looks), "scores"))
    return plots


def _against(study: Study) -> str:
    own = any(method.against for method in study.methods.values())
    return f"Against {study.baseline}, or what the table names" if own else f"Against {study.baseline}"


def _settings_pictures(study: Study, results: Sequence[Result]) -> list[Plot]:
    """Draw the score against each field that at least one method has several values of."""
    fields = [field for method in study.methods.values() for field, values in method.choose.items() if len(values) > 1]
    caption = "Line: mean over the tuning seeds, with the standard deviation. Dots: seeds."
    return [
        _plot(field, caption, figures.setting_figure(study, results, field), f"setting{i}")
        for i, field in enumerate(dict.fromkeys(fields))
    ]


def _cost_pictures(study: Study, results: Sequence[Result]) -> list[Plot]:
    caption = "The chosen setting of each method. Bold: over all seeds; pale: single seeds, unless they are too many."
    titles = {"seconds": "Score against time", "images": "Score against images"}
    drawn = {cost: figures.cost_figure(study, results, study.metric, cost) for cost in titles}
    return [_plot(title, caption, drawn[cost], cost) for cost, title in titles.items()]


def _geometry_pictures(study: Study, results: Sequence[Result]) -> list[Plot]:
    plots = []
    for i, (quantity, name) in enumerate(figures.QUANTITIES.items()):
        x, y = figures.geometry_points(results, study.metric, quantity)
        if not x:
            continue
        caption = f"{len(x)} cells."
        if len(np.unique(x)) > 2 and len(np.unique(y)) > 2:
            together = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
            caption = f"{len(x)} cells; rank correlation {together:+.2f}.".replace("-", MINUS)
        drawn = figures.geometry_figure(study, results, quantity)
        plots.append(_plot(f"{name[0].upper()}{name[1:]}", caption, drawn, f"geometry{i}"))
    return plots


def _plot(title: str, caption: str, figure: Figure, name: str) -> Plot:
    return Plot(title, caption, figure_to_svg(figure, name, f"{title}. {caption}"))


def _commands(study: Study, folder: Path | None) -> str:
    command = f"orthoproxy study {shlex.quote(str(study.path))}"
    if folder is not None and folder != Path("docs/studies") / study.name:
        command += f" --results {shlex.quote(str(folder))}"
    images = "".join(f" --data.{key} {shlex.quote(place)}" for key, place in _images_elsewhere(study).items())
    return f"{command}{images}\n{command} --page"


def _images_elsewhere(study: Study) -> dict[str, str]:
    """Return the options that name the images' place, which every machine has its own of."""
    data = section_of(study.base, "data")
    return {key: f"DIR/{Path(str(data[key])).name}" for key in ("root", "path") if data.get(key)}


def _machine(results: Sequence[Result]) -> dict[str, str]:
    """List dates, versions and machines; several of one, where cells differ."""
    again = [result["trained_again"] for result in results if isinstance(result.get("trained_again"), dict)]
    trainings = [training for training in (*results, *again) if training.get("environment")]
    names = dict.fromkeys(name for training in trainings for name in training["environment"])
    values = {name: sorted({str(x["environment"].get(name, "?")) for x in trainings}) for name in names}
    dates = sorted({str(training["date"]) for training in (*results, *again) if training.get("date")})
    shown = {"date": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"} if dates else {}
    return {**shown, **{name: "; ".join(several) for name, several in values.items()}}


def _reach(rows: Sequence[Row]) -> str:
    seeds = [len(row.seeds) for row in rows if row.seeds]
    return reach(min(seeds)) if seeds else ""


def _caption(study: Study, rows: Sequence[Row]) -> str:
    said = f"{metric_name(study.metric)} in percent, 95 % intervals over seeds and classes. {RULE}"
    return f"{study.title or study.name} {said} {_reach(rows)}".strip()


def _markdown(study: Study, results: Sequence[Result], rows: dict[str, list[Row]]) -> str:
    main = rows[study.metric]
    parts = [f"# {study.title or study.name}", study.question]
    parts += [f"- {sentence}" for _, sentence in answers(main, study.compare)]
    parts += [f"> {note}" for note in _notes(study, results, main)]
    parts += [f"{RULE} {_reach(main)} [The page with figures](index.html)".replace("  ", " ")]
    for metric, of_metric in rows.items():
        parts += [f"## {metric_name(metric)} on the test classes, %", as_markdown(of_metric).rstrip()]
    return "\n\n".join(part for part in parts if part) + "\n"
