"""Confused classes: which unseen classes retrieve each other's images?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest

from orthoproxy.diagnosis.findings import Check, Finding, Thumbnail
from orthoproxy.diagnosis.inputs import DiagnosisInput, EmbeddedSplit
from orthoproxy.evaluation import Estimate, Retrieval, nearest_neighbors, query_metrics
from orthoproxy.evaluation.bootstrap import mean_estimate
from orthoproxy.evaluation.evaluate import build_retrieval
from orthoproxy.reports.text import percent

NAME = "confusions"
MIN_EACH_WAY = 2  # queries; a single outlier inside another class attracts that class's queries
MIN_RATE = 0.1  # of the two classes' queries; the whole interval must lie above
MIN_SEVERITY = 0.01  # of all queries
MAX_ROWS, MAX_THUMBNAILS = 10, 4
ADVICE = [
    "Look at the images. Merge classes that are the same; correct wrong labels.",
    "If a detail distinguishes them, use a larger image size and random crops that keep the detail.",
    "Train on more classes that differ as little as these.",
]


@dataclass(frozen=True)
class Confusion:
    """Two classes and the number of queries whose nearest neighbor is of the other class."""

    first: str
    second: str
    to_second: int
    to_first: int
    queries: int
    rate: Estimate  # of both classes' queries, with the Wilson interval


@dataclass(frozen=True)
class Confusions:
    """Confused pairs, the most frequent first."""

    pairs: list[Confusion]
    lost: Estimate  # fraction of queries in these pairs
    wrong: Estimate  # fraction of queries with a wrong nearest neighbor
    examples: dict[tuple[str, str], tuple[int, int]]  # rows of a query and its neighbor, for each direction of a pair


def check_confusions(model: DiagnosisInput) -> Check:
    """Check whether pairs of confused classes cost at least `MIN_SEVERITY` of the queries."""
    if model.unseen is None:
        return Check(NAME, reason="there are no unseen classes")
    retrieval = build_retrieval(model.unseen.embeddings, model.unseen.table, model.exclude)
    found = find_confusions(retrieval, model.unseen.names)
    if found is None:
        return Check(NAME, reason="no query has a positive")
    evidence = {
        "pairs of confused classes": str(len(found.pairs)),
        "queries lost in them": percent(found.lost),
        "queries with a wrong nearest neighbor": percent(found.wrong),
    }
    measured = {name: value for name, value in asdict(found).items() if name != "examples"}
    finding = None
    if found.lost.value >= MIN_SEVERITY:
        finding = Finding(
            "Some unseen classes are confused with each other",
            found.lost,
            "of unseen queries have a nearest neighbor of the confused class",
            ADVICE,
            columns=["Class", "Class", "First to second", "Second to first", "Both classes' queries"],
            rows=[
                [pair.first, pair.second, str(pair.to_second), str(pair.to_first), percent(pair.rate)]
                for pair in found.pairs[:MAX_ROWS]
            ],
            thumbnails=[_thumbnails(pair, found, model.unseen) for pair in found.pairs[:MAX_THUMBNAILS]],
            thumbnails_caption="Queries of both classes, each with its nearest neighbor, which is of the other class.",
        )
    return Check(NAME, evidence, measured, finding)


def find_confusions(retrieval: Retrieval, names: list[str]) -> Confusions | None:
    """Find pairs of classes whose queries have neighbors of the other class; None if no query has a positive."""
    scored = ~np.isnan(query_metrics(retrieval, [1])["mrr"])
    if not scored.any():
        return None
    queries, labels = retrieval.queries[scored], retrieval.labels
    neighbors = nearest_neighbors(retrieval, 1)[0][scored, 0]
    own, other = labels[queries], labels[neighbors]
    wrong = own != other
    counts = Counter(zip(own[wrong].tolist(), other[wrong].tolist(), strict=True))
    sizes = np.bincount(own, minlength=len(names))
    pairs, confused = [], set()
    for (a, b), to_second in counts.items():
        to_first, total = counts.get((b, a), 0), int(sizes[a] + sizes[b])
        if a > b or min(to_second, to_first) < MIN_EACH_WAY:  # both ways, since then the classes overlap
            continue
        interval = binomtest(to_second + to_first, total).proportion_ci(method="wilson")
        if interval.low >= MIN_RATE:
            rate = Estimate((to_second + to_first) / total, float(interval.low), float(interval.high))
            pairs.append(Confusion(names[a], names[b], to_second, to_first, total, rate))
            confused |= {(a, b), (b, a)}
    pairs.sort(key=lambda pair: (-pair.to_first - pair.to_second, pair.first, pair.second))
    lost, examples = np.zeros(len(queries)), {}
    for i, (a, b) in enumerate(zip(own, other, strict=True)):
        if (a, b) in confused:
            lost[i], examples[names[a], names[b]] = 1, (int(queries[i]), int(neighbors[i]))
    return Confusions(pairs, mean_estimate(lost, own), mean_estimate(wrong.astype(float), own), examples)


def _thumbnails(pair: Confusion, found: Confusions, unseen: EmbeddedSplit) -> list[Thumbnail]:
    paths, thumbnails = unseen.table["path"], []
    for names in ((pair.first, pair.second), (pair.second, pair.first)):
        query, neighbor = found.examples[names]
        thumbnails.append(Thumbnail(paths.iloc[query], names[0], "query", is_query=True))
        thumbnails.append(Thumbnail(paths.iloc[neighbor], names[1], "nearest"))
    return thumbnails
