"""Proxy collapse: do the proxies use the available directions, and is each class separate?"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from jaxtyping import Float

from orthoproxy.diagnosis.findings import Check, Finding, Thumbnail
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate
from orthoproxy.evaluation.bootstrap import mean_estimate
from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.reports import geometry
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


def check_proxies(model: DiagnosisInput) -> Check:
    """Check whether the proxies have collapsed into few directions, or are too close to each other."""
    proxies = model.proxies
    if proxies is None or len(proxies) < 2:
        return Check(NAME, reason="the loss has no proxies")
    if not np.isfinite(proxies).all():
        return Check(NAME, reason="the proxies are not finite: training diverged")
    count, dim = proxies.shape
    random = np.random.default_rng(0).standard_normal((min(count, MAX_RANDOM_ROWS), dim))
    rank, random_rank = geometry.effective_rank(proxies), geometry.effective_rank(random)
    closest, cosines = geometry.compare_proxies(proxies, model.classes, MAX_PAIRS)
    compared, close = len(cosines), int((cosines >= CLOSE_COSINE).sum())
    distance, floor = geometry.orthogonality_distance(proxies), geometry.welch_floor(count, dim)
    astray, astray_close = _astray(proxies, model)
    evidence = {
        "effective rank": f"{rank:.1f} of {min(count, dim)} (random directions {random_rank:.1f})",
        "largest cosine of two proxies": number(closest[0].cosine, digits=2),
        "proxies with another within 60°": f"{close:,} of {compared:,}",
        "distance from orthogonality": f"{distance:,.1f} (Welch bound {floor:,.1f})",
        "training images nearest to a wrong proxy": percent(astray),
        "of these within 60° of the right proxy": percent(astray_close),
    }
    measured = {
        "classes": count,
        "dim": dim,
        "effective_rank": rank,
        "random_rank": random_rank,
        "closest": [pair._asdict() for pair in closest],
        "compared": compared,
        "close_classes": close,
        "distance": distance,
        "floor": floor,
        "astray": asdict(astray),
        "astray_close": asdict(astray_close),
    }
    collapsed = rank < COLLAPSED * random_rank
    return Check(NAME, evidence, measured, _find(collapsed, astray, astray_close, closest, model.training))


def _astray(proxies: Float[np.ndarray, "C D"], model: DiagnosisInput) -> tuple[Estimate, Estimate]:
    """Return the share of training images nearest to a wrong proxy, and to one within 60 degrees of the right one."""
    index = {name: row for row, name in enumerate(model.classes)}
    own = np.array([index[label] for label in model.training.table["label"]])
    nearest, units = geometry.nearest_rows(model.training.embeddings, proxies), unit_rows(proxies)
    wrong = nearest != own
    close = np.einsum("nd,nd->n", units[nearest], units[own]) >= CLOSE_COSINE
    return mean_estimate(wrong.astype(float), own), mean_estimate((wrong & close).astype(float), own)


def _find(
    collapsed: bool, astray: Estimate, astray_close: Estimate, closest: list[geometry.Pair], training: EmbeddedSplit
) -> Finding | None:
    """Return a finding where the geometry does harm: enough training images are nearest to a wrong proxy."""
    if collapsed and astray.low > 0 and astray.value >= MIN_SEVERITY:
        title, severity = "The proxies have collapsed into few directions", astray
        scope, advice = "of training images are nearest to a wrong proxy", [*COLLAPSE_ADVICE, MERGE_ADVICE]
    elif astray_close.low > 0 and astray_close.value >= MIN_SEVERITY:
        title, severity = "Some proxies are too close to each other", astray_close
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
        rows=[[pair.first, pair.second, number(pair.cosine, digits=3)] for pair in closest],
        thumbnails=_thumbnails(closest, training),
        thumbnails_caption="The classes with the closest proxies, one training image each.",
    )


def _thumbnails(pairs: list[geometry.Pair], training: EmbeddedSplit) -> list[list[Thumbnail]]:
    first = training.table.drop_duplicates("label").set_index("label")["path"]
    known = [pair[:2] for pair in pairs if set(pair[:2]) <= set(first.index)]
    return [[Thumbnail(first[name], name) for name in pair] for pair in known]
