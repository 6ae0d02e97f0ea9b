"""Overfitting: is retrieval much better on training classes than on unseen classes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.diagnosis.figures import bar_figure
from orthoproxy.diagnosis.findings import Check, Finding
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate, bootstrap_means, build_retrieval, estimate, query_metrics
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent, points

NAME = "overfitting"
MIN_GAP = 0.05  # of Recall@1; the whole interval must lie above
SUBSAMPLES = 3  # random subsets of classes and images that make the two sides equally large
ADVICE = [
    "Train on more classes, even with few images each.",
    "Use stronger augmentation (smaller random crops, color jitter); for a vision transformer, stochastic depth.",
    "Lower the learning rate of the backbone or train for fewer epochs, chosen on validation classes.",
]


@dataclass(frozen=True)
class RecallGap:
    """Recall@1 on training and on unseen classes, by the model and by the untrained encoder.

    `beyond_baseline` is the model's gap minus the baseline's: the part that training has opened.
    """

    training: Estimate
    unseen: Estimate
    baseline_training: Estimate
    baseline_unseen: Estimate
    beyond_baseline: Estimate
    classes: int


def check_overfitting(model: DiagnosisInput) -> Check:
    """Check whether training opened a gap of Recall@1 that is significantly above `MIN_GAP`."""
    if model.unseen is None:
        return Check(NAME, reason="there are no unseen classes")
    gap = recall_gap(model.training, model.unseen, model.exclude_group)
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
            plot=_plot(gap),
        )
    return Check(NAME, evidence, asdict(gap), finding)


def recall_gap(
    training: EmbeddedSplit, unseen: EmbeddedSplit, exclude_group: bool = False, seed: int = 0
) -> RecallGap | None:
    """Measure Recall@1 on both splits with galleries of equal size; None if a split has no query with a positive.

    A larger gallery is harder to search, so both splits are subsampled to equally many classes with equally many
    images. Every image is query and gallery. The values of `SUBSAMPLES` subsamples are pooled.
    """
    splits = {"training": training, "unseen": unseen}
    generator = np.random.default_rng(seed)
    hits: dict[tuple[str, str], list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {}
    for _ in range(SUBSAMPLES):
        subsamples = match_class_sizes(training.labels, unseen.labels, generator)
        for (side, split), rows in zip(splits.items(), subsamples, strict=True):
            table = split.table.iloc[rows].assign(role="both")
            for encoder, embeddings in (("model", split.embeddings), ("baseline", split.baseline_embeddings)):
                retrieval = build_retrieval(embeddings[rows], table, exclude_group)
                hits.setdefault((encoder, side), []).append(query_metrics(retrieval, [1])["recall@1"])
            labels.setdefault(side, []).append(split.labels[rows])
    values = {key: np.concatenate(parts) for key, parts in hits.items()}
    if any(np.isnan(x).all() for x in values.values()):
        return None
    point = {key: float(np.nanmean(x)) for key, x in values.items()}
    drawn = {
        (encoder, side): _resample(x, np.concatenate(labels[side]), seed=int(side == "unseen"))
        for (encoder, side), x in values.items()
    }
    scores = {key: estimate(point[key], drawn[key]) for key in values}
    return RecallGap(
        scores["model", "training"],
        scores["model", "unseen"],
        scores["baseline", "training"],
        scores["baseline", "unseen"],
        beyond_baseline=estimate(float(_gap_difference(point)), np.asarray(_gap_difference(drawn))),
        classes=min(len(training.names), len(unseen.names)),
    )


def _gap_difference(x: dict) -> float | np.ndarray:
    gaps = {encoder: x[encoder, "training"] - x[encoder, "unseen"] for encoder in ("model", "baseline")}
    return gaps["model"] - gaps["baseline"]


def match_class_sizes(
    first: Int[np.ndarray, " N"], second: Int[np.ndarray, " M"], generator: np.random.Generator
) -> Iterator[Int[np.ndarray, " K"]]:
    """Yield random rows of both sides, equally many classes with the same numbers of images."""
    count = min(len(np.unique(first)), len(np.unique(second)))
    chosen = []
    for labels in (first, second):
        classes, sizes = np.unique(labels, return_counts=True)
        drawn = generator.choice(len(classes), size=count, replace=False)
        drawn = drawn[np.argsort(-sizes[drawn], kind="stable")]  # pair the largest with the largest
        chosen.append((classes[drawn], sizes[drawn]))
    sizes = np.minimum(chosen[0][1], chosen[1][1])
    for labels, (classes, _) in zip((first, second), chosen, strict=True):
        rows = [
            generator.choice(np.flatnonzero(labels == label), size=size, replace=False)
            for label, size in zip(classes, sizes, strict=True)
        ]
        yield np.sort(np.concatenate(rows))


def _resample(values: Float[np.ndarray, " Q"], labels: Int[np.ndarray, " Q"], seed: int) -> Float[np.ndarray, " W"]:
    """Bootstrap over classes; the splits are resampled independently, both encoders with the same classes."""
    counted = ~np.isnan(values)
    _, classes = np.unique(labels[counted], return_inverse=True)
    return bootstrap_means(values[counted], classes, seed=seed)


def _plot(gap: RecallGap) -> Plot:
    bars = {
        "trained": {"training classes": gap.training, "unseen classes": gap.unseen},
        "untrained": {"training classes": gap.baseline_training, "unseen classes": gap.baseline_unseen},
    }
    description = f"Recall@1: training classes {percent(gap.training)}, unseen classes {percent(gap.unseen)}"
    return Plot(
        "Recall@1 on training and unseen classes",
        f"Equally many images of {gap.classes:,} classes each. The untrained encoder's gap shows how much easier the "
        "training classes are in themselves.",
        figure_to_svg(bar_figure(bars, "Recall@1, %"), "overfitting", description),
    )
