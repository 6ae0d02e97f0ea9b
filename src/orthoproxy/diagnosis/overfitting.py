"""Overfitting: is retrieval much better on training classes than on unseen classes?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.diagnosis.findings import Check, Finding
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate, query_metrics
from orthoproxy.evaluation.bootstrap import bootstrap_means, estimate
from orthoproxy.evaluation.evaluate import build_retrieval
from orthoproxy.evaluation.retrieval import Exclude
from orthoproxy.reports.text import percent, points

NAME = "overfitting"
MIN_GAP = 0.05  # of Recall@1; the whole interval must lie above
SUBSAMPLES = 3  # random subsets that make the two sides equally large, as a larger gallery is harder to search
ADVICE = [
    "Train on more classes, even with few images each.",
    "Use stronger augmentation (smaller random crops, color jitter); for a vision transformer, stochastic depth.",
    "Lower the learning rate of the backbone or train for fewer epochs, chosen on validation classes.",
]


@dataclass(frozen=True)
class RecallGap:
    """Recall@1 on training and on unseen classes, by the model and by the untrained encoder."""

    training: Estimate
    baseline_training: Estimate
    unseen: Estimate
    baseline_unseen: Estimate
    beyond_baseline: Estimate  # the model's gap minus the baseline's: what training has opened
    classes: int


def check_overfitting(model: DiagnosisInput) -> Check:
    """Check whether training opened a gap of Recall@1 that is significantly above `MIN_GAP`."""
    if model.unseen is None:
        return Check(NAME, reason="there are no unseen classes")
    gap = recall_gap(model.training, model.unseen, model.exclude)
    if gap is None:
        return Check(NAME, reason="no query has a positive")
    evidence = {
        "Recall@1 on training classes": percent(gap.training),
        "on unseen classes": percent(gap.unseen),
        "untrained encoder, training classes": percent(gap.baseline_training),
        "untrained encoder, unseen classes": percent(gap.baseline_unseen),
        "gap opened by training": points(gap.beyond_baseline),
    }
    finding = None
    if gap.beyond_baseline.low > MIN_GAP:
        finding = Finding(
            "The model is much better on training classes than on unseen classes",
            gap.beyond_baseline,
            "of Recall@1 between training and unseen classes",
            ADVICE,
            unit="points",
        )
    return Check(NAME, evidence, asdict(gap), finding)


def recall_gap(training: EmbeddedSplit, unseen: EmbeddedSplit, exclude: Exclude = "none") -> RecallGap | None:
    """Measure Recall@1 on subsamples of equal size; None if a split has no query with a positive."""
    generator = np.random.default_rng(0)
    subsamples = [match_class_sizes(training.labels, unseen.labels, generator) for _ in range(SUBSAMPLES)]
    means, drawn = [], []
    for side, split in enumerate((training, unseen)):
        rows = [pair[side] for pair in subsamples]
        hits = np.concatenate([_recall_at_1(split, some, exclude) for some in rows], axis=1)
        scored = ~np.isnan(hits[0])
        if not scored.any():
            return None
        hits, classes = hits[:, scored], split.labels[np.concatenate(rows)][scored]
        means.append(hits.mean(axis=1))
        # the sides are resampled independently, both encoders with the same classes
        drawn.append(bootstrap_means(hits, classes, seed=side))
    scores = [estimate(*pair) for pair in zip(np.concatenate(means), np.concatenate(drawn), strict=True)]
    gaps, drawn_gaps = means[0] - means[1], drawn[0] - drawn[1]
    opened = estimate(gaps[0] - gaps[1], drawn_gaps[0] - drawn_gaps[1])
    return RecallGap(*scores, beyond_baseline=opened, classes=min(len(training.names), len(unseen.names)))


def _recall_at_1(split: EmbeddedSplit, rows: Int[np.ndarray, " K"], exclude: Exclude) -> Float[np.ndarray, "2 K"]:
    """Search each of some rows among the others, by the model and by the untrained encoder."""
    table, encoders = split.table.iloc[rows].assign(role="both"), (split.embeddings, split.baseline_embeddings)
    retrievals = (build_retrieval(x[rows], table, exclude) for x in encoders)
    return np.stack([query_metrics(retrieval, [1])["recall@1"] for retrieval in retrievals])


def match_class_sizes(
    first: Int[np.ndarray, " N"], second: Int[np.ndarray, " M"], generator: np.random.Generator
) -> list[Int[np.ndarray, " K"]]:
    """Return random rows of both sides, equally many classes with the same numbers of images and no distractors."""
    count = min(len(np.unique(labels[labels >= 0])) for labels in (first, second))
    chosen = []
    for labels in (first, second):
        classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
        drawn = generator.choice(len(classes), size=count, replace=False)
        drawn = drawn[np.argsort(-sizes[drawn], kind="stable")]  # pair the largest with the largest
        chosen.append((classes[drawn], sizes[drawn]))
    sizes, rows = np.minimum(chosen[0][1], chosen[1][1]), []
    for labels, (classes, _) in zip((first, second), chosen, strict=True):
        pairs = zip(classes, sizes, strict=True)
        of_classes = [generator.choice(np.flatnonzero(labels == label), size, replace=False) for label, size in pairs]
        rows.append(np.sort(np.concatenate(of_classes)))
    return rows
