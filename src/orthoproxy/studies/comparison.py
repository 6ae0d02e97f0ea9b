"""The methods of a study side by side: scores on the test classes, and differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.evaluation import Estimate
from orthoproxy.studies.plan import Options, Result, Study, check_alike, chosen_setting, score_of
from orthoproxy.studies.statistics import Difference, compare, holm, mean_score, scores_of_seeds, standard_deviation


@dataclass(frozen=True)
class Row:
    """A method with its chosen setting, by one metric; what is not there yet is None, NaN or empty.

    Parameters
    ----------
    method, metric
        Which, and by what.
    baseline
        Others are compared with it.
    against
        What the method is compared with, where that is not the baseline.
    setting
        Options that were chosen.
    given
        Those that the method has with every setting.
    seeds, scores
        Those that were judged on the test classes, and the score of each, as a fraction.
    mean, deviation
        Over the seeds, with the interval over seeds and classes; and the standard deviation.
    untrained
        Score of the untrained encoder on the test classes.
    gain
        Of the trained models over it.
    validation
        Score of the chosen setting's runs on the validation classes.
    difference
        To the baseline, or to `against`; None for the baseline itself.
    p, holm_p
        Of a comparison that was named before running.
    seconds, images
        Of one training, median over the seeds: one that other work ran beside takes several times as long.
    failed
        It has no scores, and will have none: its trainings failed.

    Examples
    --------
    >>> Row("on", "recall@1", baseline=False, setting=None).mean is None
    True
    >>> Row("on", "recall@1", False, {"loss.margin": 0.2}, given={"loss.alpha": 16}).options
    {'loss.alpha': 16, 'loss.margin': 0.2}
    """

    method: str
    metric: str
    baseline: bool
    setting: Options | None
    seeds: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    mean: Estimate | None = None
    deviation: float = math.nan
    untrained: float = math.nan
    gain: Estimate | None = None
    validation: float = math.nan
    difference: Difference | None = None
    p: float = math.nan
    holm_p: float = math.nan
    seconds: float = math.nan
    images: float = math.nan
    against: str = ""
    failed: bool = False
    given: Options = field(default_factory=dict)

    @property
    def options(self) -> Options:
        """All that the method differs in from the study, chosen or not; nothing while no setting is chosen."""
        return {} if self.setting is None else {**self.given, **self.setting}


def rows_of(study: Study, results: Sequence[Result], metric: str) -> list[Row]:
    """Compare the methods of a study by one score on the test classes.

    Parameters
    ----------
    study
        Names the methods, the baseline and the comparisons.
    results
        Of result files; some may be missing.
    metric
        ``recall@1`` or ``map@r``. Only the study's own metric gets p, since only that was named before running.

    Returns
    -------
    list of Row
        One a method, in the order of the study. Differences are taken over the seeds that both methods have.

    Raises
    ------
    InputError
        If cells were judged on different classes.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> def result(method, scores):
    ...     models = {"trained": {"recall@1": scores}, "untrained": {"recall@1": [0.2, 0.3]}}
    ...     scored = {"classes": ["a", "b"], "queries": [5, 5], **models}
    ...     known = {"method": method, "setting": {}, "seed": 0, "seconds": 9.0, "images": 100}
    ...     return {"cell": f"{method}_seed0", **known, "validation": scored, "test": scored}
    >>> study = Study("so", {"off": Method(), "on": Method()}, baseline="off", compare=["on"])
    >>> off, on = rows_of(study, [result("off", [0.5, 0.6]), result("on", [0.6, 0.8])], "recall@1")
    >>> print(on.mean, "difference", on.difference.estimate)
    70.0 [60.0, 80.0] difference 15.0 [10.0, 20.0]
    """
    judged = {method: judged_results(study, results, method) for method in study.methods}
    rows = [_row(study, judged, method, metric) for method in study.methods]
    rows = [replace(row, failed=not row.seeds and _all_failed(study, results, row.method)) for row in rows]
    if metric != study.metric:
        return rows
    p = {row.method: row.difference.p for row in rows if row.difference}
    named = [p.get(method, math.nan) for method in study.compare]
    corrected = {
        method: {"p": plain, "holm_p": after}
        for method, plain, after in zip(study.compare, named, holm(named), strict=True)
    }
    return [replace(row, **corrected.get(row.method, {})) for row in rows]


def judged_results(study: Study, results: Sequence[Result], method: str) -> list[Result]:
    """Pick what of a method counts: its chosen setting's results that were judged on the test classes.

    Parameters
    ----------
    study, results
        As in `rows_of`.
    method
        Its name.

    Returns
    -------
    list
        In the order of the seeds; empty while no setting is chosen.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> study = Study("so", {"off": Method()}, baseline="off", seeds=[0, 1])
    >>> results = [{"cell": "off_seed1", "test": {"classes": []}}, {"cell": "off_seed0", "test": None}]
    >>> [result["cell"] for result in judged_results(study, results, "off")]
    ['off_seed1']
    """
    setting = chosen_setting(study, results, method)
    if setting is None:
        return []
    known = {result["cell"]: result for result in results if result.get("test")}
    return [known[cell.name] for cell in study.judged_cells(method, setting) if cell.name in known]


def matrix_of(
    results: Sequence[Result], metric: str, model: str = "trained"
) -> tuple[Float[np.ndarray, "S C"], Int[np.ndarray, " C"]]:
    """Put scores of classes beside each other: one row a seed, one column a class.

    Parameters
    ----------
    results
        At least one, each judged on the test classes.
    metric
        ``recall@1`` or ``map@r``.
    model
        ``trained`` or ``untrained``.

    Returns
    -------
    values, queries
        Mean score of each class, and its number of queries.

    Raises
    ------
    InputError
        If cells were judged on different classes or queries.

    Examples
    --------
    >>> scored = {"classes": ["a", "b"], "queries": [2, 4], "trained": {"recall@1": [0.5, 1.0]}}
    >>> matrix_of([{"cell": "first", "test": scored}], "recall@1")
    (array([[0.5, 1. ]]), array([2, 4]))
    """
    check_alike(results, "test")
    values = np.array([cell["test"][model][metric] for cell in results], dtype=np.float64)
    return values, np.array(results[0]["test"]["queries"])


def _row(study: Study, judged: Mapping[str, Sequence[Result]], method: str, metric: str) -> Row:
    ours, baseline = judged[method], method == study.baseline
    against = study.methods[method].against or ""
    if not ours:
        return Row(method, metric, baseline, None, against=against)
    values, queries = matrix_of(ours, metric)
    untrained, _ = matrix_of(ours, metric, "untrained")
    scores = scores_of_seeds(values, queries)
    return Row(
        method=method,
        metric=metric,
        baseline=baseline,
        setting=ours[0]["setting"],
        seeds=[cell["seed"] for cell in ours],
        scores=scores.tolist(),
        mean=mean_score(values, queries),
        deviation=standard_deviation(scores),
        untrained=float(scores_of_seeds(untrained, queries).mean()),
        gain=mean_score(values - untrained, queries),
        validation=float(np.mean([score_of(cell, "validation", metric) for cell in ours])),
        difference=None if baseline else _difference(ours, judged[against or study.baseline], metric),
        seconds=float(np.median([cell["seconds"] for cell in ours])),
        images=float(np.median([cell["images"] for cell in ours])),
        against=against,
        given=study.methods[method].set,
    )


def _all_failed(study: Study, results: Sequence[Result], method: str) -> bool:
    """Tell whether no setting can be chosen any more, or all runs of the one that counts failed."""
    cells = [cell.name for cell in study.first_cells if cell.method == method]
    known = {result["cell"]: bool(result.get("failed")) for result in results}
    if not all(cell in known for cell in cells):
        return False
    setting = chosen_setting(study, results, method)
    return setting is None or all(known.get(cell.name) for cell in study.judged_cells(method, setting))


def _difference(ours: Sequence[Result], baseline: Sequence[Result], metric: str) -> Difference | None:
    """Compare over the seeds that both have."""
    both = {cell["seed"] for cell in ours} & {cell["seed"] for cell in baseline}
    if not both:
        return None
    pairs = [[cell for cell in results if cell["seed"] in both] for results in (ours, baseline)]
    values, queries = matrix_of([*pairs[0], *pairs[1]], metric)
    return compare(values[: len(both)], values[len(both) :], queries)
