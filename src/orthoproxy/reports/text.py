"""Numbers and short sentences of reports: scores with intervals, the summary, facts about the run."""

from __future__ import annotations

import numpy as np

from orthoproxy.core.progress import duration
from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.reports.results import RunResults, finite_values

MINUS = "\N{MINUS SIGN}"
FEW_CLASSES = 10  # with fewer validation classes, choosing a checkpoint or a hyperparameter is unreliable
METRICS = {  # as displayed, and what they mean
    "recall@": ("Recall@K", "share of queries with an image of their class among the K nearest neighbors"),
    "map@r": ("MAP@R", "mean average precision over the R nearest neighbors, R being the images of the query's class"),
    "r_precision": ("R-precision", "share of the R nearest neighbors that are of the query's class"),
    "mrr": ("Reciprocal rank", "mean of 1 / rank of the first match"),
    "map": ("mAP", "mean of the precision at the rank of each image of the query's class"),
    "minp": ("mINP", "number of images of the query's class, divided by the rank of the last of them"),
    "category_recall@1": ("Category Recall@1", "share of queries whose nearest neighbor is of their category"),
    "accuracy": ("Accuracy", "share of queries whose label wins the vote of their nearest training images"),
    "coverage": ("Coverage", "share of queries that get a label, and not “unknown”, at the threshold"),
    "precision": ("Precision", "share of these labels that are right"),
}


def summarize(evaluation: Evaluation | None) -> tuple[str, str]:
    """Return the kind of result (``better``, ``worse``, ``unclear``, ``none``) and one or two sentences."""
    if evaluation is None:
        return "none", "The dataset has no test classes, so the model was not evaluated."
    metric = "recall@1" if "recall@1" in evaluation.model else next(iter(evaluation.model))
    score = f"{metric_name(metric)} on {evaluation.classes:,} {evaluation.kind}: {percent(evaluation.model[metric])}"
    assert evaluation.baseline is not None and evaluation.difference is not None  # as a run has its untrained encoder
    gain = evaluation.difference[metric]
    compared = f"{score}, untrained encoder {percent(evaluation.baseline[metric])}."
    if gain.high < 0:
        loss = Estimate(-gain.value, -gain.high, -gain.low)
        return "worse", f"Training made retrieval worse, by {points(loss)}. {compared}"
    if gain.low > 0:
        return "better", f"{compared} Training gained {points(gain)}."
    return "unclear", f"{compared} The difference, {points(gain, sign=True)}, is not significant."


def run_facts(results: RunResults) -> list[str]:
    """List the known facts about the size and the speed of a run."""
    facts = []
    if results.classes:
        facts.append(f"{len(results.classes):,} training class{'es' if len(results.classes) > 1 else ''}")
    facts.append(f"{results.embeddings.shape[1]:,}-dimensional embeddings")
    steps, seconds, speed = (finite_values(results.log, name) for name in ("step", "seconds", "images_per_second"))
    if len(steps):
        facts.append(f"{steps.max():,.0f} steps" + (f" in {duration(seconds.max())}" if len(seconds) else ""))
    if len(speed):
        facts.append(f"{np.median(speed):,.0f} images per second")
    return facts


def metric_name(name: str) -> str:
    """Return the display name of a metric."""
    return METRICS[name][0] if name in METRICS else name.replace("recall@", "Recall@")


def percent(estimate: Estimate) -> str:
    """Format a score with its interval: ``49.4 % [46.9, 51.8]``."""
    return f"{mean(estimate)} % {interval(estimate)}"


def points(estimate: Estimate, sign: bool = False) -> str:
    """Format a difference of scores in percentage points: ``+7.6 points [5.9, 9.2]``."""
    return f"{mean(estimate, sign)} points {interval(estimate)}"


def mean(estimate: Estimate, sign: bool = False) -> str:
    """Format the value of an estimate in percent, with as many digits as its `interval`."""
    return number(100 * estimate.value, sign, _digits(estimate))


def interval(estimate: Estimate) -> str:
    """Format the interval of an estimate in percent: ``[46.9, 51.8]``."""
    low, high = (number(100 * end, digits=_digits(estimate)) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def _digits(estimate: Estimate) -> int:
    """Two digits where one would round an end of the interval to 0 and hide on which side of 0 it lies."""
    return 2 if any(end and not round(100 * end, 1) for end in (estimate.low, estimate.high)) else 1


def number(value: float, sign: bool = False, digits: int = 1) -> str:
    """Format a number with a typographic minus; a number that rounds to zero has no sign."""
    value = round(value, digits) + 0.0  # turns -0.0 into 0.0
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", MINUS)


def shorten(name: str, max_length: int = 18) -> str:
    """Truncate a long name with an ellipsis."""
    return name if len(name) <= max_length else name[: max_length - 1] + "\N{HORIZONTAL ELLIPSIS}"
