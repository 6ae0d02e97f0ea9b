"""Embedding dimension: would a larger embedding retrieve better?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from orthoproxy.diagnosis.findings import Check, Finding
from orthoproxy.diagnosis.inputs import DiagnosisInput
from orthoproxy.evaluation import Estimate, query_metrics
from orthoproxy.evaluation.bootstrap import bootstrap_means, estimate
from orthoproxy.reports.geometry import unit_rows
from orthoproxy.reports.text import percent, points

NAME = "embedding size"
MIN_DIM = 8  # of an embedding whose halves and quarters can be compared
MIN_GAIN = 0.01  # of Recall@1, expected of twice the dimension


@dataclass(frozen=True)
class SizeScores:
    """Recall@1 on unseen classes with the first D/4, D/2 and D principal components, and the gain expected of 2 D."""

    sizes: list[int]
    scores: list[Estimate]
    last_gain: Estimate
    next_gain: Estimate
    participation_ratio: float  # effective dimension of the unseen embeddings


def check_embedding_size(model: DiagnosisInput) -> Check:
    """Check whether doubling the embedding dimension is expected to gain at least `MIN_GAIN` of Recall@1."""
    if model.unseen is None:
        return Check(NAME, reason="there are no unseen classes")
    dim, width = model.training.embeddings.shape[1], model.training.baseline_embeddings.shape[1]
    if dim < MIN_DIM:
        return Check(NAME, reason=f"a {dim}-dimensional embedding has no quarters to compare")
    found = score_sizes(model)
    if found is None:
        return Check(NAME, reason="no query has a positive")
    evidence = {
        **{f"Recall@1 with {n} components": percent(x) for n, x in zip(found.sizes, found.scores, strict=True)},
        "gain from the last doubling": points(found.last_gain),
        f"expected gain from {2 * dim} dimensions": points(found.next_gain),
        "effective dimension (participation ratio)": f"{found.participation_ratio:.0f} of {dim}",
    }
    finding = None
    if found.next_gain.low > 0 and found.next_gain.value >= MIN_GAIN:
        finding = Finding(
            "The embedding dimension is too small",
            found.next_gain,
            "of Recall@1 on unseen classes, expected of twice the dimension",
            _advice(dim, width),
            unit="points",
        )
    return Check(NAME, evidence, asdict(found), finding)


def score_sizes(model: DiagnosisInput) -> SizeScores | None:
    """Score the unseen classes with the leading principal components; None if no query has a positive."""
    unseen = model.unseen
    if unseen is None:
        return None
    dim = model.training.embeddings.shape[1]
    training = unit_rows(model.training.embeddings)
    components = np.linalg.eigh(training.T @ training)[1][:, ::-1]  # largest eigenvalue first
    sizes = [dim // 4, dim // 2, dim]
    retrievals = [model.retrieval(unseen, unseen.embeddings @ components[:, :size]) for size in sizes]
    values = [query_metrics(retrieval, [1])["recall@1"] for retrieval in retrievals]
    counted = ~np.isnan(values[0])
    if not counted.any():
        return None
    classes = retrievals[0].labels[retrievals[0].queries][counted]
    hits = np.stack([value[counted] for value in values])
    means, drawn = hits.mean(axis=1), bootstrap_means(hits, classes)
    return SizeScores(
        sizes,
        [estimate(float(score), sample) for score, sample in zip(means, drawn, strict=True)],
        last_gain=estimate(float(means[2] - means[1]), drawn[2] - drawn[1]),
        next_gain=estimate(float(_next_gain(means)), _next_gain(drawn)),
        participation_ratio=participation_ratio(unseen.embeddings),
    )


def participation_ratio(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Return ``(sum l)^2 / sum l^2`` of the eigenvalues l of the covariance, from 1 to D; 0 if all rows are equal."""
    centered = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    covariance = centered.T @ centered
    squares = float(np.square(covariance).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def _next_gain(scores: Float[np.ndarray, "3 ..."]) -> np.ndarray:
    """Extrapolate: gains g, h become ``h min(1, h / g)``, as they shrink by a constant factor and never grow."""
    before, last = scores[1] - scores[0], scores[2] - scores[1]
    factor = np.divide(last, before, out=np.ones_like(last), where=before > 0)
    return np.where(last > 0, last * np.minimum(1, factor), 0.0)


def _advice(dim: int, width: int) -> list[str]:
    if dim < width:
        larger = f"Use an embedding dimension of {min(2 * dim, width)}; the backbone has {width} features."
    else:
        larger = f"Use a wider backbone: the embedding already has all {width} features of this one."
    return [larger, "Memory and search time grow in proportion; compare on validation classes."]
