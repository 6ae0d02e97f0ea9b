"""Which unseen classes take each other's queries?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from orthoproxy.diagnosis.findings import Check, Finding, Shot
from orthoproxy.diagnosis.subject import Embedded, Subject, share
from orthoproxy.evaluation import Estimate, Retrieval, nearest, query_metrics
from orthoproxy.reports.text import percent

NAME = "confusions"
LEAST_EACH_WAY = 2  # queries; one image alone that lies among another class draws that class's queries to itself
LEAST_RATE = 0.1  # of the two classes' queries; the whole interval must lie above
LEAST_EFFECT = 0.01  # of all queries
SHOWN, PAIRS_WITH_PICTURES = 10, 4
ADVICE = [
    "Look at the pictures. What is one class under two names is to be merged; what is labelled wrongly, corrected.",
    "If a detail tells them apart: a larger encoder.image_size, and crops that keep it (data.augmentation.crop_scale).",
    "More training classes that differ as little as these do.",
]


@dataclass(frozen=True)
class Confusion:
    """Two classes, and how many of their queries have a nearest neighbour of the other one.

    `rate` is the share of both classes' queries, with Wilson's interval.
    """

    first: str
    second: str
    to_second: int
    to_first: int
    queries: int
    rate: Estimate


@dataclass(frozen=True)
class Confusions:
    """Pairs of confused classes, the most queries first, and the share of all queries that go astray in them."""

    pairs: list[Confusion]
    lost: Estimate
    wrong: Estimate
    examples: dict[tuple[str, str], tuple[int, int]]


def check_confusions(subject: Subject) -> Check:
    """Look for unseen classes that take each other's queries.

    Parameters
    ----------
    subject
        What is diagnosed.

    Returns
    -------
    Check
        With a finding if pairs of classes that are mixed up both ways cost a query in a hundred or more.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> check_confusions(Subject("run", images, images, "test", None, [])).summary
    'No two classes are mixed up both ways; 0.0 % [0.0, 0.0] of the queries have a wrong nearest neighbour'
    """
    if subject.unseen is None:
        return Check(NAME, "not looked at: there are no unseen classes")
    found = confusions(subject.retrieval(subject.unseen, subject.unseen.trained), subject.unseen.names)
    if found is None:
        return Check(NAME, "not looked at: no image has another one of its class to find")
    count = len(found.pairs)
    pairs = (
        "1 pair of classes is"
        if count == 1
        else f"{count or 'No two'} {'pairs of classes' if count else 'classes'} are"
    )
    summary = (
        f"{pairs} mixed up both ways{f', which costs {percent(found.lost)} of the queries' if count else ''}; "
        f"{percent(found.wrong)} of the queries have a wrong nearest neighbour"
    )
    listed = [asdict(pair) for pair in found.pairs]
    measured = {"lost": asdict(found.lost), "wrong": asdict(found.wrong), "pairs": listed}
    return Check(NAME, summary, measured, _finding(found, summary, subject.unseen))


def confusions(retrieval: Retrieval, names: list[str]) -> Confusions | None:
    """Count the queries whose nearest neighbour is of another class, pair by pair.

    A pair is confused if at least two queries of each class go to the other, and they are
    surely more than a tenth of both classes' queries, by Wilson's interval. That so many errors meet in one pair by
    chance is rare as soon as there are many classes; that they go both ways says that the two lie in one place.

    Parameters
    ----------
    retrieval
        Who is searched for among whom. Queries without a positive do not count.
    names
        Of the classes, by number.

    Returns
    -------
    Confusions or None
        None where no query has a positive.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.9, 0.1], [1.0, 0.01], [0.9, 0.11]])
    >>> everyone = np.arange(4)
    >>> found = confusions(Retrieval(points, np.array([0, 0, 1, 1]), everyone, everyone), ["a", "b"])
    >>> [(pair.to_second, pair.to_first, pair.queries) for pair in found.pairs]
    [(2, 2, 4)]
    """
    scored = ~np.isnan(query_metrics(retrieval, [1])["mrr"])
    if not scored.any():
        return None
    queries, labels = retrieval.queries[scored], retrieval.labels
    neighbour = nearest(retrieval, 1)[0][scored, 0]
    own, theirs = labels[queries], labels[neighbour]
    counts = Counter(zip(own[own != theirs].tolist(), theirs[own != theirs].tolist(), strict=True))
    sizes = np.bincount(own, minlength=len(names))
    pairs = []
    for (a, b), there in counts.items():
        back = counts.get((b, a), 0)
        if a > b or min(there, back) < LEAST_EACH_WAY:
            continue
        rate = wilson(there + back, int(sizes[a] + sizes[b]))
        if rate.low >= LEAST_RATE:
            pairs.append(Confusion(names[a], names[b], there, back, int(sizes[a] + sizes[b]), rate))
    pairs.sort(key=lambda pair: (-pair.to_first - pair.to_second, pair.first, pair.second))
    among = {(pair.first, pair.second) for pair in pairs} | {(pair.second, pair.first) for pair in pairs}
    went = [(names[a], names[b]) for a, b in zip(own.tolist(), theirs.tolist(), strict=True)]
    lost = np.array([step in among for step in went], dtype=float)
    examples = {
        step: (int(query), int(hit)) for step, query, hit in zip(went, queries, neighbour, strict=True) if step in among
    }
    return Confusions(pairs, share(lost, own), share((own != theirs).astype(float), own), examples)


def wilson(count: int, of: int, z: float = 1.96) -> Estimate:
    """Put Wilson's interval around a share.

    Parameters
    ----------
    count, of
        How many out of how many, which is at least 1.
    z
        Of the normal distribution; 1.96 for 95 %.

    Returns
    -------
    Estimate
        As a fraction.

    Examples
    --------
    >>> print(wilson(5, 10))
    50.0 [23.7, 76.3]
    """
    p, w = count / of, z * z / of
    middle, half = (p + w / 2) / (1 + w), z * np.sqrt(p * (1 - p) / of + w / (4 * of)) / (1 + w)
    return Estimate(p, float(max(0.0, middle - half)), float(min(1.0, middle + half)))


def _finding(found: Confusions, summary: str, unseen: Embedded) -> Finding | None:
    if not found.pairs or found.lost.value < LEAST_EFFECT:
        return None
    first = found.pairs[0]
    more = len(found.pairs) - SHOWN
    return Finding(
        "Some classes are confused with each other",
        found.lost,
        "of unseen queries, which have a nearest neighbour of the class that theirs is confused with",
        [
            f"{summary}.",
            f"Most of all \N{LEFT DOUBLE QUOTATION MARK}{first.first}\N{RIGHT DOUBLE QUOTATION MARK} and "
            f"\N{LEFT DOUBLE QUOTATION MARK}{first.second}\N{RIGHT DOUBLE QUOTATION MARK}: "
            f"{first.to_first + first.to_second} of their {first.queries} queries, {percent(first.rate)}.",
            *([f"The table has the first {SHOWN}; {more} more are in the JSON file."] if more > 0 else []),
        ],
        ADVICE,
        heads=["Class", "Class", "First to second", "Second to first", "Of both classes' queries"],
        rows=[
            [pair.first, pair.second, str(pair.to_second), str(pair.to_first), percent(pair.rate)]
            for pair in found.pairs[:SHOWN]
        ],
        shots=[_shots(pair, found, unseen) for pair in found.pairs[:PAIRS_WITH_PICTURES]],
        shots_say="Queries of both classes, each followed by the nearest neighbour, which is of the other class.",
    )


def _shots(pair: Confusion, found: Confusions, unseen: Embedded) -> list[Shot]:
    paths, shots = unseen.table["path"].tolist(), []
    for step in ((pair.first, pair.second), (pair.second, pair.first)):
        query, hit = found.examples[step]
        shots += [Shot(paths[query], step[0], "query", asked=True), Shot(paths[hit], step[1], "nearest")]
    return shots
