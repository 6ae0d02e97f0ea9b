"""The methods of a study side by side: test scores, and differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.text import interval, mean, metric_name, number
from orthoproxy.studies.plan import Options, Study, final_results, final_trials
from orthoproxy.studies.results import METRICS, TrialResult, score_matrix
from orthoproxy.studies.statistics import Difference, compare, holm, mean_score, seed_scores

DASH = "\N{EN DASH}"
SEEDS_LISTED = 12  # scores of more seeds are in the CSV file only


@dataclass(frozen=True)
class MethodSummary:
    """A method with its chosen hyperparameters, scored by one metric; missing values are None, NaN or empty."""

    method: str
    metric: str
    is_baseline: bool
    against: str | None = None  # what it is compared with, if that is not the baseline
    options: Options = field(default_factory=dict)  # on top of the study's, chosen ones included
    seeds: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # of each seed, as fractions
    mean: Estimate | None = None  # over the seeds, with its interval over seeds and classes
    deviation: float = math.nan  # over the seeds
    untrained: Estimate | None = None  # score of the untrained encoder
    gain: Estimate | None = None  # over the untrained encoder
    validation: float = math.nan  # mean of the same runs on the validation classes
    difference: Difference | None = None  # to the baseline or to `against`
    p: float = math.nan  # of a planned comparison
    holm_p: float = math.nan  # corrected
    seconds: float = math.nan  # of a training, median over the seeds
    images: float = math.nan


def summarize_methods(study: Study, results: Sequence[TrialResult], metric: str) -> list[MethodSummary]:
    """Compare the methods of a study, in its order, by their scores on the test classes.

    Differences use the seeds that both methods have.

    Parameters
    ----------
    study, results
        The plan, and the results of its trials; some may be missing.
    metric
        ``recall@1`` or ``map@r``. Only the metric of the study has p values, because only that test was planned.
    """
    finals = {method: final_results(study, results, method) for method in study.methods}
    rows = [_summarize(study, finals, method, metric) for method in study.methods]
    if metric != study.metric:
        return rows
    planned = [row for row in rows if row.method in study.compare]
    p_values = [row.difference.p if row.difference else math.nan for row in planned]
    pairs = zip(planned, p_values, holm(p_values), strict=True)
    corrected = {row.method: replace(row, p=p, holm_p=holm_p) for row, p, holm_p in pairs}
    return [corrected.get(row.method, row) for row in rows]


def _summarize(study: Study, finals: Mapping[str, Sequence[TrialResult]], method: str, metric: str) -> MethodSummary:
    results, against, is_baseline = finals[method], study.methods[method].against, method == study.baseline
    if not results:
        return MethodSummary(method, metric, is_baseline, against)
    values, queries = score_matrix(results, metric)
    untrained, _ = score_matrix(results, metric, "untrained")
    scores = seed_scores(values, queries)
    return MethodSummary(
        method,
        metric,
        is_baseline,
        against,
        options={**study.methods[method].set, **results[0].setting},
        seeds=[result.seed for result in results],
        scores=scores.tolist(),
        mean=mean_score(values, queries),
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
        untrained=mean_score(untrained, queries),
        gain=mean_score(values - untrained, queries),
        validation=float(np.mean([result.score("validation", metric) for result in results])),
        difference=None if is_baseline else _difference(results, finals[against or study.baseline], metric),
        seconds=float(np.median(np.array([result.seconds for result in results], float))),
        images=float(np.median(np.array([result.images for result in results], float))),
    )


def _difference(results: Sequence[TrialResult], baseline: Sequence[TrialResult], metric: str) -> Difference | None:
    """Compare two methods over the seeds that both have."""
    shared = {result.seed for result in results} & {result.seed for result in baseline}
    if not shared:
        return None
    pairs = [result for group in (results, baseline) for result in group if result.seed in shared]
    values, queries = score_matrix(pairs, metric)
    return compare(values[: len(shared)], values[len(shared) :], queries)


def to_frame(rows: Sequence[MethodSummary]) -> pd.DataFrame:
    """Arrange summaries as numbers, one row each; scores and differences are fractions."""
    return pd.json_normalize([{**asdict(row), "options": format_setting(row.options)} for row in rows])


def to_cells(rows: Sequence[MethodSummary]) -> list[dict[str, str]]:
    """Format rows for people, by column title, without columns that are empty in all of them."""
    cells = [_to_cells(row) for row in rows]
    titles = [title for title in cells[0] if any(row[title] not in ("", DASH) for row in cells)]
    return [{title: row[title] for title in titles} for row in cells]


def _to_cells(row: MethodSummary) -> dict[str, str]:
    """Format a row: percent with one decimal, two where one would hide a sign."""
    role = " (baseline)" if row.is_baseline else f" (against {row.against})" if row.against else ""
    listed = " ".join(number(100 * score) for score in row.scores)
    gain = row.difference
    return {
        "method": row.method + role,
        "hyperparameters": format_setting(row.options),
        "seeds": str(len(row.seeds)),
        metric_name(row.metric): _format(row.mean),
        "SD": _or_dash(100 * row.deviation),
        "each seed": listed if len(row.scores) <= SEEDS_LISTED else DASH,
        "difference": _format(gain and gain.estimate, sign=True),
        "seeds ahead": f"{gain.seeds_ahead} of {len(gain.by_seed)}" if gain else DASH,
        "p": format_p(row.p),
        "p (Holm)": format_p(row.holm_p),
        "untrained": _format(row.untrained),
        "validation": _or_dash(100 * row.validation),
        "seconds": _or_dash(row.seconds, digits=0),
        "images": _or_dash(row.images, digits=0),
    }


def to_markdown(study: Study, results: Sequence[TrialResult]) -> str:
    """Write the tables of a study as Markdown, its own metric first."""
    parts = [f"# {study.title}", study.question.strip()]
    parts += [f"> {note}" for note in notes(study, results)]
    for metric in ordered_metrics(study):
        rows = to_cells(summarize_methods(study, results, metric))
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        parts += [f"## {metric_name(metric)} on the test classes, %", table]
    return "\n\n".join(part for part in parts if part) + "\n"


def ordered_metrics(study: Study) -> list[str]:
    """List the metrics, the study's own first."""
    return [study.metric, *(metric for metric in METRICS if metric != study.metric)]


def notes(study: Study, results: Sequence[TrialResult]) -> list[str]:
    """List what a reader must know about the numbers: missing, failed and repeated trials, mixed precision."""
    known = {result.trial: result for result in results}
    finals = [trial.name for trial in final_trials(study, results)]
    expected = dict.fromkeys([*(trial.name for trial in study.planned_trials), *finals])
    precisions = {str(result.environment["precision"]) for result in results if "precision" in result.environment}
    lists = {
        "Missing trials": [name for name in expected if name not in known],
        "Not yet evaluated on the test classes": [
            name for name in finals if name in known and not (known[name].test or known[name].failed)
        ],
        "Training diverged": [f"{result.trial} ({result.failed})" for result in results if result.failed],
        "Evaluated on the test classes but not chosen, and not in the tables": [
            name for name, result in known.items() if result.test and name not in finals
        ],
        "Trained a second time for the test classes": [result.trial for result in results if result.retrained],
        "Trained with different precisions": sorted(precisions) if len(precisions) > 1 else [],
    }
    return [f"{what}: {list_names(names)}." for what, names in lists.items() if names]


def list_names(names: Sequence[str], limit: int = 3) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def format_setting(setting: Options) -> str:
    """Format options as on the command line."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def format_p(p: float) -> str:
    """Format a p value with two significant digits."""
    return DASH if math.isnan(p) else f"{p:.4f}" if p < 0.001 else f"{p:.2g}"


def _format(estimate: Estimate | None, sign: bool = False) -> str:
    return f"{mean(estimate, sign)} {interval(estimate)}" if estimate else DASH


def _or_dash(value: float, digits: int = 1) -> str:
    return DASH if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")
