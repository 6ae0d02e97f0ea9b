"""Proxy collapse: do the proxies use the available directions, and is each class separate?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from orthoproxy.diagnosis.findings import Check, Finding, Thumbnail
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate
from orthoproxy.evaluation.bootstrap import mean_estimate
from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.reports.geometry import (
    Pair,
    compare_proxies,
    effective_rank,
    nearest_rows,
    orthogonality_distance,
    welch_floor,
)
from orthoproxy.reports.text import number, percent

NAME = "proxies"
COLLAPSED = 0.5  # effective rank, relative to that of random directions
CLOSE_COSINE = 0.5  # of two proxies: 60 degrees
MIN_SEVERITY = 0.01  # of the training images; geometry alone does no harm
MAX_RANDOM_ROWS = 50_000  # with more rows, the rank of random directions hardly changes
MAX_PAIRS = 6
COLLAPSE_ADVICE = [
    "Initialize the proxies with class means, and check that their learning rate is about 100 times the backbone's.",
    "Add Soft Orthogonality (weight 0.3 to 3, scaling excess), which spreads the proxies. Started from class means it "
    "did not raise Recall@1 in our studies: compare on validation classes.",
]
MERGE_ADVICE = "Check whether the closest classes are the same; merge those that are."


@dataclass(frozen=True)
class ProxyGeometry:
    """Geometry of the proxies, and fractions of the training images."""

    classes: int
    dim: int
    effective_rank: float
    random_rank: float
    closest: list[Pair]
    compared: int
    close_classes: int  # of those compared, with another within 60 degrees
    distance: float
    floor: float
    astray: Estimate  # nearest to the proxy of another class
    astray_close: Estimate  # and it is within 60 degrees of the right one


def check_proxies(model: DiagnosisInput) -> Check:
    """Check whether the proxies have collapsed into few directions, or are too close to each other."""
    proxies = model.proxies
    if proxies is None or len(proxies) < 2:
        return Check(NAME, reason="the loss has no proxies")
    if not np.isfinite(proxies).all():
        return Check(NAME, reason="the proxies are not finite: training diverged")
    found = measure_proxies(proxies, model.classes, model.training)
    available = min(found.classes, found.dim)
    evidence = {
        "effective rank": f"{found.effective_rank:.1f} of {available} (random directions {found.random_rank:.1f})",
        "largest cosine of two proxies": number(found.closest[0].cosine, digits=2),
        "proxies with another within 60°": f"{found.close_classes:,} of {found.compared:,}",
        "distance from orthogonality": f"{found.distance:,.1f} (Welch bound {found.floor:,.1f})",
        "training images nearest to a wrong proxy": percent(found.astray),
        "of these within 60° of the right proxy": percent(found.astray_close),
    }
    measured = {**asdict(found), "closest": [pair._asdict() for pair in found.closest]}
    return Check(NAME, evidence, measured, _find(found, model.training))


def measure_proxies(proxies: Float[np.ndarray, "C D"], classes: list[str], training: EmbeddedSplit) -> ProxyGeometry:
    """Measure the geometry of at least two proxies, and where the training images are among them."""
    index = {name: row for row, name in enumerate(classes)}
    own = np.array([index[label] for label in training.table["label"]])
    nearest = nearest_rows(training.embeddings, proxies)
    wrong = nearest != own
    units = unit_rows(proxies)
    close = np.einsum("nd,nd->n", units[nearest], units[own]) >= CLOSE_COSINE
    neighbors = compare_proxies(proxies, classes, MAX_PAIRS)
    return ProxyGeometry(
        *proxies.shape,
        effective_rank=effective_rank(proxies),
        random_rank=effective_rank(_random_directions(proxies)),
        closest=neighbors.pairs,
        compared=len(neighbors.nearest),
        close_classes=int((neighbors.nearest >= CLOSE_COSINE).sum()),
        distance=orthogonality_distance(proxies),
        floor=welch_floor(*proxies.shape),
        astray=mean_estimate(wrong.astype(float), own),
        astray_close=mean_estimate((wrong & close).astype(float), own),
    )


def _random_directions(proxies: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "R D"]:
    count, dim = proxies.shape
    return np.random.default_rng(0).standard_normal((min(count, MAX_RANDOM_ROWS), dim))


def _find(found: ProxyGeometry, training: EmbeddedSplit) -> Finding | None:
    """Return a finding where the geometry does harm: enough training images are nearest to a wrong proxy."""
    collapsed = found.effective_rank < COLLAPSED * found.random_rank
    if collapsed and found.astray.low > 0 and found.astray.value >= MIN_SEVERITY:
        title, severity = "The proxies have collapsed into few directions", found.astray
        scope, advice = "of training images are nearest to a wrong proxy", [*COLLAPSE_ADVICE, MERGE_ADVICE]
    elif found.astray_close.low > 0 and found.astray_close.value >= MIN_SEVERITY:
        title, severity = "Some proxies are too close to each other", found.astray_close
        scope = "of training images are nearest to a wrong proxy close to the right one"
        advice = [MERGE_ADVICE, *COLLAPSE_ADVICE]
    else:
        return None
    return Finding(
        title,
        severity,
        scope,
        advice,
        columns=["Class", "Class", "Cosine of the proxies"],
        rows=[[pair.first, pair.second, number(pair.cosine, digits=3)] for pair in found.closest],
        thumbnails=_thumbnails(found.closest, training),
        thumbnails_caption="The classes with the closest proxies, one training image each.",
    )


def _thumbnails(pairs: list[Pair], training: EmbeddedSplit) -> list[list[Thumbnail]]:
    first = training.table.drop_duplicates("label").set_index("label")["path"]
    known = [pair[:2] for pair in pairs if set(pair[:2]) <= set(first.index)]
    return [[Thumbnail(first[name], name) for name in pair] for pair in known]
