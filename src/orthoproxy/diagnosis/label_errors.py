"""Label errors: which training labels are likely wrong?

Each image is compared with class means that do not include it, in features of the untrained encoder: the trained one
has already learned the wrong labels. cleanlab, given softmax probabilities of the same similarities, ranks images alike
but lists every hard one: 1,366 of 3,000 synthetic images without a label error, where `find_suspects` lists none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.stats import binomtest

from orthoproxy.diagnosis.findings import Check, Finding, Thumbnail
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate
from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.reports.figures import COLORS, create_figure, label_axes, report_style
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent
from orthoproxy.training import pca_projection, second_moment

NAME = "labels"
WHITENING = 0.5  # chosen by benchmarks/label_errors.py
LAST_RANKS = 0.8  # relative rank of the own class above which an image looks like one with a random label
MIN_CLASSES = 10  # with fewer, the rank of a class says little
MIN_SUSPECTS, MIN_SHARE = 3, 0.01  # of a finding; fewer may just be unusual images
MAX_SHARE = 0.25  # with more, the features rather than the labels may be at fault
CORRUPTED, TRIALS, MIN_PRECISION = 0.05, 5, 0.75  # of the self-check
BLOCK_ROWS = 1024
MAX_THUMBNAILS, MAX_ROWS = 6, 20
ADVICE = [
    "Look at the suspects in order, and correct or remove wrong labels. The JSON output lists all suspects.",
    "Then train again: a wrong label pulls two classes together.",
]


@dataclass(frozen=True)
class LeaveOneOut:
    """Similarity of each image to the classes, its own class represented without the image."""

    margin: Float[np.ndarray, " N"]  # cosine with the own class minus the largest other; NaN for a class's only image
    rank: Float[np.ndarray, " N"]  # fraction of other classes that are more similar than the own; NaN likewise
    most_similar: Int[np.ndarray, " N"]  # other class; -1 likewise


@dataclass(frozen=True)
class Suspects:
    """Rows of likely label errors, the most suspicious first, and the estimated fraction of label errors."""

    rows: Int[np.ndarray, " S"]
    share: Estimate
    images: int


def check_labels(model: DiagnosisInput) -> Check:
    """Check whether at least `MIN_SHARE` of the training labels are significantly likely to be wrong."""
    images = model.training
    if (np.bincount(images.labels) > 1).sum() < MIN_CLASSES:
        return Check(NAME, reason=f"fewer than {MIN_CLASSES} training classes with two images or more")
    features = whiten(images.baseline_embeddings)
    scores = leave_one_out(features, images.labels)
    found, trial = find_suspects(scores), self_check(features, images.labels, scores)
    evidence = {
        "training labels that look wrong": percent(found.share),
        "suspects listed": f"{len(found.rows):,}",
        f"self-check with {100 * CORRUPTED:.0f} % of the labels corrupted": (
            f"precision {100 * trial['precision']:.0f} %, recall {100 * trial['recall']:.0f} %"
        ),
    }
    detectable = trial["precision"] >= MIN_PRECISION
    suspects = [_describe(images, scores, row) for row in found.rows.tolist()] if detectable else []
    measured = {"share": asdict(found.share), "images": found.images, "suspects": suspects, "self_check": trial}
    reason, finding = "", None
    if not detectable:
        reason = "label errors cannot be detected in these features"
    elif found.share.low > MAX_SHARE:
        reason = "the share of suspected labels is high enough that the features may be at fault"
    elif len(found.rows) >= MIN_SUSPECTS and found.share.low >= MIN_SHARE:
        finding = _find(images, scores, found, suspects[:MAX_ROWS])
    return Check(NAME, evidence, measured, finding, reason)


def whiten(features: Float[np.ndarray, "N F"], whitening: float = WHITENING) -> Float[np.ndarray, "N F"]:
    """Rotate features to principal components and scale these by ``energy ** (-whitening / 2)``; uses no labels."""
    units = torch.from_numpy(unit_rows(features))
    return unit_rows((units @ pca_projection(second_moment(units), units.shape[1], whitening).T).numpy())


def leave_one_out(features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"]) -> LeaveOneOut:
    """Compare each image (unit rows) with the mean of each class: a nearest-mean classifier in N-fold validation."""
    count = int(labels.max()) + 1
    sums = np.zeros((count, features.shape[1]))
    np.add.at(sums, labels, features)
    means, sizes = unit_rows(sums), np.bincount(labels, minlength=count)
    margin, rank = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
    most_similar = np.full(len(labels), -1)
    comparable = np.flatnonzero(sizes[labels] > 1)
    for start in range(0, len(comparable), BLOCK_ROWS):
        rows = comparable[start : start + BLOCK_ROWS]
        x, label = features[rows], labels[rows]
        cosines = x @ means.T  # b C
        own = np.einsum("nf,nf->n", x, unit_rows(sums[label] - x))
        cosines[np.arange(len(rows)), label] = -np.inf
        most_similar[rows] = cosines.argmax(axis=1)
        margin[rows] = own - cosines.max(axis=1)
        ahead = (cosines > own[:, None]).sum(axis=1) + (cosines >= own[:, None]).sum(axis=1)  # ties count half
        rank[rows] = ahead / (2 * (count - 1))
    return LeaveOneOut(margin, rank, most_similar)


def find_suspects(scores: LeaveOneOut) -> Suspects:
    """Estimate the fraction of label errors, and list as many images as are significantly wrong."""
    # With a random label, all ranks of the own class are equally probable; with the right one it is nearly always among
    # the first. So five times the fraction with a rank in the last fifth estimates the errors (after Storey, "A direct
    # approach to false discovery rates", JRSS B, 2002); as many as its lower bound says, by margin, are listed.
    images, late = int(np.isfinite(scores.rank).sum()), int((scores.rank > LAST_RANKS).sum())
    interval = binomtest(late, images).proportion_ci(method="exact")
    bounds = (late / images, interval.low, interval.high)
    value, low, high = (min(1.0, float(x) / (1 - LAST_RANKS)) for x in bounds)
    by_margin = np.argsort(scores.margin, kind="stable")  # NaN last
    return Suspects(by_margin[: int(low * images)], Estimate(value, low, high), images)


def corrupt_labels(
    labels: Int[np.ndarray, " N"], fraction: float = CORRUPTED, seed: int = 0
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " K"]]:
    """Change a fraction of the labels to another class, uniformly at random; return a copy and the changed rows."""
    generator, count = np.random.default_rng(seed), int(labels.max()) + 1
    rows = generator.choice(len(labels), round(fraction * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = (labels[rows] + generator.integers(1, count, len(rows))) % count
    return changed, rows


def self_check(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], scores: LeaveOneOut
) -> dict[str, float]:
    """Corrupt 5 % of the labels several times, and return precision and recall of finding these."""
    found = find_suspects(scores)
    # what looked wrong before the corruption is no false positive
    before = np.argsort(scores.margin, kind="stable")[: round(found.share.value * found.images)]
    corrupted = listed = hits = 0
    for seed in range(TRIALS):
        changed, rows = corrupt_labels(labels, seed=seed)
        new = np.setdiff1d(find_suspects(leave_one_out(features, changed)).rows, before)
        corrupted, listed, hits = corrupted + len(rows), listed + len(new), hits + len(np.intersect1d(new, rows))
    return {"precision": hits / max(1, listed), "recall": hits / corrupted}


def _find(images: EmbeddedSplit, scores: LeaveOneOut, found: Suspects, listed: list[dict[str, Any]]) -> Finding:
    rows, margins = found.rows.tolist(), scores.margin[np.isfinite(scores.margin)]
    return Finding(
        "Some training labels are likely wrong",
        found.share,
        "of training labels look wrong",
        ADVICE,
        plot=Plot(
            "Similarity to the own class",
            "Left of 0, another class is more similar than the image's own. Most of these images are just hard; the "
            "suspects are those at the far left.",
            figure_to_svg(margin_figure(margins, len(rows)), "margins", "Histogram of the margins"),
        ),
        columns=["Image", "Label", "Most similar class"],
        rows=[[suspect["path"], suspect["label"], suspect["most_similar"]] for suspect in listed],
        thumbnails=[_thumbnails(images, scores, row) for row in rows[:MAX_THUMBNAILS]],
        thumbnails_caption="A suspect, a typical image of its labeled class, and one of the most similar class.",
    )


def _describe(images: EmbeddedSplit, scores: LeaveOneOut, row: int) -> dict[str, Any]:
    path, label = images.table["path"].iloc[row], images.table["label"].iloc[row]
    most_similar, margin = images.names[scores.most_similar[row]], round(float(scores.margin[row]), 4)
    return {"path": path, "label": label, "most_similar": most_similar, "margin": margin}


def _thumbnails(images: EmbeddedSplit, scores: LeaveOneOut, row: int) -> list[Thumbnail]:
    paths, labels = images.table["path"].tolist(), images.labels
    thumbnails = [Thumbnail(paths[row], images.names[labels[row]], "suspect", is_query=True)]
    for label, note in ((labels[row], "its label"), (scores.most_similar[row], "most similar")):
        others = np.flatnonzero((labels == label) & (np.arange(len(labels)) != row))
        typical = others[np.argmax(scores.margin[others])]
        thumbnails.append(Thumbnail(paths[typical], images.names[label], note))
    return thumbnails


@report_style
def margin_figure(margins: Float[np.ndarray, " N"], suspects: int) -> Figure:
    """Plot a histogram of the margins, the `suspects` smallest highlighted, with counts on a log scale."""
    figure, axes = create_figure()
    ordered = np.sort(margins)
    edges = np.histogram_bin_edges(ordered, 40).tolist()
    axes.hist(ordered[suspects:], edges, color=COLORS["blue"], alpha=0.6, label="others")
    axes.hist(ordered[:suspects], edges, color=COLORS["red"], alpha=0.85, label="suspects")
    axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=(0, (2, 2)))
    axes.set_yscale("log")
    label_axes(axes, "margin: cosine with own class \N{MINUS SIGN} cosine with nearest other", "images", legend=True)
    return figure
