"""What a report says: the verdict, the table of scores, the facts of the run, in words that need no glossary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orthoproxy.core.progress import duration
from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.reports.results import RunResults, finite

MINUS = "\N{MINUS SIGN}"
FEW_CLASSES = 10  # fewer validation classes make the choice of a checkpoint or a setting unreliable
MEANING = {
    "Recall@": ("Recall@K", "share of queries with an image of their own class among the K nearest"),
    "MAP@R": (
        "MAP@R",
        "of the R other images of a class, how many are among the R nearest, and how early",
    ),
    "R-precision": ("R-precision", "the same share without the order"),
    "Reciprocal rank": ("Reciprocal rank", "mean of 1 / place of the first right image"),
    "NMI": ("NMI", "how well clusters found by k-means agree with the classes"),
}


@dataclass(frozen=True)
class Row:
    """A metric's line in the table of scores; what there is nothing to compare with is None."""

    name: str
    trained: Estimate
    untrained: Estimate | None
    difference: Estimate | None
    own_group_included: Estimate | None
    untrained_own_group_included: Estimate | None


def verdict(evaluation: Evaluation | None) -> tuple[str, str]:
    """Say in plain words what the scores mean.

    Parameters
    ----------
    evaluation
        Of the test classes, or None.

    Returns
    -------
    kind : str
        ``better``, ``worse``, ``unclear`` (the interval of the difference includes 0), ``alone`` (nothing to compare
        with) or ``none`` (not judged).
    sentence : str
        Two sentences at most.

    Examples
    --------
    >>> estimate = {"recall@1": Estimate(0.494, 0.469, 0.518)}
    >>> verdict(Evaluation(estimate, None, None, queries=1000, classes=381, without_positive=0, seconds=1))[1]
    'Recall@1 on 381 unseen classes: 49.4 % [46.9, 51.8]. There is no untrained encoder to compare with.'
    """
    if evaluation is None:
        return "none", "The data had no test classes, so how well the model retrieves was not judged."
    metric = "recall@1" if "recall@1" in evaluation.trained else next(iter(evaluation.trained))
    score = f"{metric_name(metric)} on {evaluation.classes:,} unseen classes"
    ours = f"{score}: {percent(evaluation.trained[metric])}"
    if evaluation.untrained is None or evaluation.difference is None:
        return "alone", f"{ours}. There is no untrained encoder to compare with."
    theirs, gain = percent(evaluation.untrained[metric]), evaluation.difference[metric]
    if gain.high < 0:
        change = f"{score} fell to {percent(evaluation.trained[metric])} from the untrained encoder\u2019s {theirs}"
        return "worse", f"Training made retrieval worse. {change}, by {points(negated(gain))}."
    if gain.low > 0:
        return "better", f"{ours}, untrained encoder {theirs}. Training gained {points(gain)}."
    unclear = f"The difference, {points(gain, sign=True)}, may be chance: its interval includes 0."
    return "unclear", f"{ours}, untrained encoder {theirs}. {unclear}"


def score_rows(evaluation: Evaluation | None) -> list[Row]:
    """Lay out the scores, one metric a row.

    Parameters
    ----------
    evaluation
        Of the test classes, or None.

    Returns
    -------
    list of Row
        Empty where there is no evaluation.

    Examples
    --------
    >>> estimate = {"recall@1": Estimate(0.5, 0.4, 0.6)}
    >>> score_rows(Evaluation(estimate, None, None, queries=9, classes=3, without_positive=0, seconds=1))[0].name
    'Recall@1'
    """
    if evaluation is None:
        return []
    plain = evaluation.own_group_included
    return [
        Row(
            metric_name(name),
            trained,
            evaluation.untrained[name] if evaluation.untrained else None,
            evaluation.difference[name] if evaluation.difference else None,
            plain.trained.get(name) if plain else None,
            plain.untrained.get(name) if plain and plain.untrained else None,
        )
        for name, trained in evaluation.trained.items()
    ]


def facts(results: RunResults) -> list[str]:
    """List what the run was, in a few words each.

    Parameters
    ----------
    results
        Of the run.

    Returns
    -------
    list of str
        Only what is known.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> import pandas as pd
    >>> table = make_table(["1.png", "2.png"], ["cat", "cat"])
    >>> log = pd.DataFrame({"step": [1, 160], "seconds": [1.0, 151.0]})
    >>> facts(RunResults("run", None, table, np.eye(2), None, log, None, ["a"] * 1200, "", {}, []))
    ['1,200 training classes', 'embeddings of 2 numbers', '160 steps in 2:31']
    """
    log, known = results.log, []
    if results.classes:
        known.append(f"{len(results.classes):,} training class{'es' if len(results.classes) > 1 else ''}")
    known.append(f"embeddings of {results.trained.shape[1]:,} numbers")
    steps, seconds, speed = (finite(log, column) for column in ("step", "seconds", "images_per_second"))
    if len(steps):
        spent = f" in {duration(seconds.max())}" if len(seconds) else ""
        known.append(f"{steps.max():,.0f} steps{spent}")
    if len(speed):
        known.append(f"{np.median(speed):,.0f} images a second")
    return known


def metric_name(name: str) -> str:
    """Write a metric's name as people know it.

    Parameters
    ----------
    name
        As in `Evaluation`.

    Returns
    -------
    str
        An unknown name stays as it is.

    Examples
    --------
    >>> metric_name("recall@10"), metric_name("map@r")
    ('Recall@10', 'MAP@R')
    """
    known = {"map@r": "MAP@R", "r_precision": "R-precision", "mrr": "Reciprocal rank", "nmi": "NMI"}
    return known.get(name, name.replace("recall@", "Recall@"))


def percent(estimate: Estimate) -> str:
    """Write a score with its interval in percent.

    Parameters
    ----------
    estimate
        As fractions.

    Examples
    --------
    >>> percent(Estimate(0.494, 0.469, 0.518))
    '49.4 % [46.9, 51.8]'
    """
    return f"{mean(estimate)} % {interval(estimate)}"


def points(estimate: Estimate, sign: bool = False) -> str:
    """Write a difference of scores with its interval in percentage points.

    Parameters
    ----------
    estimate
        As fractions.
    sign
        Also before a positive value.

    Examples
    --------
    >>> points(Estimate(0.076, 0.059, 0.092), sign=True)
    '+7.6 points [5.9, 9.2]'
    """
    return f"{mean(estimate, sign)} points {interval(estimate)}"


def mean(estimate: Estimate, sign: bool = False) -> str:
    """Write a score or a difference, in percent without the sign, with as many digits as its `interval`.

    Parameters
    ----------
    estimate
        As fractions.
    sign
        Also before a positive value.

    Examples
    --------
    >>> mean(Estimate(0.076, 0.059, 0.092), sign=True)
    '+7.6'
    """
    return number(100 * estimate.value, sign, _digits(estimate))


def interval(estimate: Estimate) -> str:
    """Write the interval of a score or a difference, in percent without the sign.

    Parameters
    ----------
    estimate
        As fractions.

    Returns
    -------
    str
        With one digit after the point, or two where one would leave open on which side of 0 an end lies.

    Examples
    --------
    >>> interval(Estimate(0.494, 0.469, 0.518)), interval(Estimate(0.0017, 0.0001, 0.0034))
    ('[46.9, 51.8]', '[0.01, 0.34]')
    """
    low, high = (number(100 * end, digits=_digits(estimate)) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def _digits(estimate: Estimate) -> int:
    """Two where an end of the interval would be rounded to 0 by one."""
    return 2 if any(end and not round(100 * end, 1) for end in (estimate.low, estimate.high)) else 1


def number(value: float, sign: bool = False, digits: int = 1) -> str:
    """Write a number with a minus that is as wide as a plus.

    Parameters
    ----------
    value
        Any number.
    sign
        Also before a positive value; a zero has none, whatever it was before it was rounded.
    digits
        After the point.

    Examples
    --------
    >>> number(1.26, sign=True), number(-0.04), number(0.04, sign=True)
    ('+1.3', '0.0', '0.0')
    """
    value = round(value, digits) + 0.0  # no minus before a zero
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", MINUS)


def negated(estimate: Estimate) -> Estimate:
    """Turn a loss into the number that is lost.

    Parameters
    ----------
    estimate
        Any.

    Examples
    --------
    >>> negated(Estimate(-2.0, -3.0, -1.0))
    Estimate(value=2.0, low=1.0, high=3.0)
    """
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def shortened(name: str, most: int = 18) -> str:
    """Cut a name that is too long for its place in a figure.

    Parameters
    ----------
    name
        Any text.
    most
        Letters that there is room for.

    Examples
    --------
    >>> shortened("black-footed albatross", 13)
    'black-footed\N{HORIZONTAL ELLIPSIS}'
    """
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
