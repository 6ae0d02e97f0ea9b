"""Is the embedding too small?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from orthoproxy.diagnosis.figures import growth_figure
from orthoproxy.diagnosis.findings import Check, Finding
from orthoproxy.diagnosis.subject import Subject
from orthoproxy.evaluation import Estimate, bootstrap_means, estimate, query_metrics
from orthoproxy.reports.geometry import unit_rows
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent, points

NAME = "embedding size"
SMALLEST = 8  # of an embedding whose halves and quarters can be compared
LEAST_GAIN = 0.01  # of Recall@1 that twice the size is expected to win


@dataclass(frozen=True)
class Growth:
    """Recall@1 on unseen classes with the first D/4, D/2 and D principal directions, and what 2 D may add.

    `participation_ratio` counts the directions over which the unseen embeddings spread.
    """

    sizes: list[int]
    scores: list[Estimate]
    last_gain: Estimate
    next_gain: Estimate
    participation_ratio: float


def check_size(subject: Subject) -> Check:
    """Look whether the score still rises with the embedding's directions.

    Parameters
    ----------
    subject
        What is diagnosed.

    Returns
    -------
    Check
        With a finding if twice the size is expected to win a point of Recall@1 or more, and the interval is above 0.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.diagnosis.subject import Embedded
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> check_size(Subject("run", images, images, "test", None, [])).summary
    'not looked at: embeddings of 2 numbers have no quarters to compare'
    """
    if subject.unseen is None:
        return Check(NAME, "not looked at: there are no unseen classes")
    dim = subject.training.trained.shape[1]
    if dim < SMALLEST:
        return Check(NAME, f"not looked at: embeddings of {dim} numbers have no quarters to compare")
    found = growth(subject)
    if found is None:
        return Check(NAME, "not looked at: no image has another one of its class to find")
    steps = ", ".join(f"{percent(score)} with {size}" for size, score in zip(found.sizes, found.scores, strict=True))
    summary = f"Recall@1 on unseen classes is {steps} of the {dim} directions; "
    summary += f"the embeddings spread over {found.participation_ratio:.0f} of them"
    measured = asdict(found)
    width = subject.training.untrained.shape[1]
    if found.next_gain.low <= 0 or found.next_gain.value < LEAST_GAIN:
        return Check(NAME, summary, measured)
    finding = Finding(
        "The embedding is too small",
        found.next_gain,
        "of Recall@1 on unseen classes, expected of twice the size",
        [
            f"{summary}.",
            f"The last doubling, from {found.sizes[-2]} to {dim} directions, won {points(found.last_gain)}. If gains "
            f"go on changing by the same factor, {2 * dim} directions would win {points(found.next_gain)}.",
        ],
        _advice(dim, width),
        _plot(found),
        unit="points",
    )
    return Check(NAME, summary, measured, finding)


def growth(subject: Subject) -> Growth | None:
    """Score the unseen classes with the leading principal directions of the training embeddings.

    With g the gain in Recall@1 from D/4 to D/2 and h that from D/2 to D, the gain from D to 2 D is taken as
    ``h * min(1, h / g)``, 0 if h is not positive, and h if g is not: gains go on falling by the same factor, and never
    grow.

    Parameters
    ----------
    subject
        With unseen images.

    Returns
    -------
    Growth or None
        With class-bootstrap intervals; None where no query has a positive.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.diagnosis.subject import Embedded
    >>> images = Embedded(make_table(list("1234"), list("aabb")), np.eye(4)[[0, 0, 1, 1]], np.eye(4))
    >>> growth(Subject("run", images, images, "test", None, [])).sizes
    [1, 2, 4]
    """
    unseen = subject.unseen
    if unseen is None:
        return None
    dim = subject.training.trained.shape[1]
    training = unit_rows(subject.training.trained)
    _, directions = np.linalg.eigh(training.T @ training)  # ascending
    sizes = [dim // 4, dim // 2, dim]
    retrievals = [subject.retrieval(unseen, unseen.trained @ directions[:, ::-1][:, :size]) for size in sizes]
    values = [query_metrics(retrieval, [1])["recall@1"] for retrieval in retrievals]
    counted = ~np.isnan(values[0])
    if not counted.any():
        return None
    labels = retrievals[0].labels[retrievals[0].queries][counted]
    _, classes = np.unique(labels, return_inverse=True)
    at = np.array([value[counted].mean() for value in values])
    drawn = bootstrap_means(np.stack([value[counted] for value in values]), classes)
    return Growth(
        sizes,
        [estimate(float(score), sample) for score, sample in zip(at, drawn, strict=True)],
        last_gain=estimate(float(at[2] - at[1]), drawn[2] - drawn[1]),
        next_gain=estimate(float(_next_gain(at)), _next_gain(drawn)),
        participation_ratio=participation_ratio(unseen.trained),
    )


def participation_ratio(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Count the directions over which embeddings spread: ``(sum l)^2 / sum l^2``, the participation ratio.

    Here l are the eigenvalues of the covariance. k equal ones and zeros otherwise give exactly k.

    Parameters
    ----------
    embeddings
        One row an image.

    Returns
    -------
    float
        From 1 to D; 0 where all rows are equal.

    Examples
    --------
    >>> round(participation_ratio(np.concatenate([np.eye(3), -np.eye(3)])), 6)
    3.0
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred
    squares = float(np.square(covariance).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def _next_gain(scores: Float[np.ndarray, "3 ..."]) -> np.ndarray:
    before, last = scores[1] - scores[0], scores[2] - scores[1]
    factor = np.divide(last, before, out=np.ones_like(last), where=before > 0)
    return np.where(last > 0, last * np.minimum(1, factor), 0.0)


def _advice(dim: int, width: int) -> list[str]:
    if dim < width:
        wider = f"A larger encoder.embedding_dim: {min(2 * dim, width)}; the encoder gives up to {width} features."
    else:
        wider = f"A wider backbone (encoder.name): the embedding already has all {width} features of this one."
    return [wider, "It costs memory and search time in proportion; check it on validation classes."]


def _plot(found: Growth) -> Plot:
    last, gain = found.scores[-1], found.next_gain
    expected = Estimate(last.value + gain.value, last.value + gain.low, last.value + gain.high)
    said = "; ".join(f"{size}: {percent(score)}" for size, score in zip(found.sizes, found.scores, strict=True))
    return Plot(
        "Recall@1 with the leading directions alone",
        "Where an embedding is large enough, the curve is flat at its end. The dashed step is extrapolated.",
        figure_to_svg(growth_figure(found.sizes, found.scores, (2 * found.sizes[-1], expected)), "size", said),
    )
