"""The metrics written out from their definitions, one query and one pair at a time, in float64 NumPy."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from orthoproxy.data import make_table
from orthoproxy.evaluation import Retrieval
from orthoproxy.evaluation.retrieval import Exclude

KINDS = ["random", "clustered", "duplicated", "one-hot", "signs", "all equal", "zeros"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = [np.sqrt((v * v).sum()) or 1.0 for v in (a, b)]
    return float(((a / lengths[0]) * (b / lengths[1])).sum())


def allowed_gallery(retrieval: Retrieval, query: int) -> list[int]:
    """The gallery without the query itself, its near copies, and what the rule excludes of its group."""
    labels = retrieval.labels

    def shared(numbers: np.ndarray | None, row: int) -> bool:
        return numbers is not None and numbers[query] >= 0 and numbers[row] == numbers[query]

    def in_group(row: int) -> bool:
        if retrieval.exclude == "own_class_in_group" and labels[row] != labels[query]:
            return False
        return retrieval.exclude != "none" and shared(retrieval.groups, row)

    rows = (int(row) for row in retrieval.gallery if row != query)
    return [row for row in rows if not in_group(row) and not shared(retrieval.copies, row)]


def query_metrics(retrieval: Retrieval, query: int, recall_at: Sequence[int]) -> dict[str, float]:
    x, y, category = retrieval.embeddings, retrieval.labels, retrieval.categories
    rows = allowed_gallery(retrieval, query)
    similarity = {row: cosine(x[query], x[row]) for row in rows}
    positives = sorted((similarity[row] for row in rows if y[row] == y[query]), reverse=True)
    negatives = [similarity[row] for row in rows if y[row] != y[query]]
    r = len(positives)
    by_category = {}
    if category is not None:
        best = max((similarity[row] for row in rows if category[row] == category[query]), default=-np.inf)
        ahead = [row for row in rows if category[row] != category[query] and similarity[row] >= best]
        by_category = {"category_recall@1": float(not ahead)}
    if r == 0:
        names = [*(f"recall@{k}" for k in recall_at), "map@r", "r_precision", "mrr", *by_category, "map", "minp"]
        return dict.fromkeys(names, np.nan)
    ranks = [j + sum(n >= s for n in negatives) for j, s in enumerate(positives, start=1)]
    return {
        **{f"recall@{k}": float(ranks[0] <= k) for k in recall_at},
        "map@r": sum(j / rank for j, rank in enumerate(ranks, start=1) if rank <= r) / r,
        "r_precision": sum(rank <= r for rank in ranks) / r,
        "mrr": 1 / ranks[0],
        **by_category,
        "map": sum(j / rank for j, rank in enumerate(ranks, start=1)) / r,
        "minp": r / ranks[-1],
    }


def neighbors(retrieval: Retrieval, query: int) -> list[tuple[int, float]]:
    """All that may be found, most similar first, ties by row."""
    x, rows = retrieval.embeddings, allowed_gallery(retrieval, query)
    return sorted(((row, cosine(x[query], x[row])) for row in rows), key=lambda pair: (-pair[1], pair[0]))


def embeddings_of(kind: str, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Embeddings whose ties are exact (duplicates, or arithmetic without rounding) or absent."""
    count = len(labels)
    if kind == "one-hot":
        return np.eye(5)[generator.integers(5, size=count)]
    if kind == "signs":  # sixteen signs: each cosine is a multiple of 1/16
        return generator.choice([-1.0, 1.0], size=(count, 16))
    if kind == "all equal":
        return np.tile(generator.standard_normal(7), (count, 1))
    x = generator.standard_normal((count, 7))
    if kind == "clustered":
        x = x + 2 * generator.standard_normal((labels.max() + 1, 7))[labels]
    if kind == "duplicated":
        x = x[generator.integers(max(1, count // 3), size=count)]
    if kind == "zeros":
        x[generator.random(count) < 0.4] = 0
    return x


def random_table(seed: int, groups: bool = False) -> pd.DataFrame:
    """Ninety images of twelve classes in every role, two of them alone in their class."""
    generator = np.random.default_rng(seed)
    label = [f"class {c}" for c in generator.integers(12, size=90)]
    label[:2] = ["single one", "single two"]
    role = generator.choice(["query", "gallery", "both"], size=90).tolist()
    role[:2] = ["both", "query"]
    group = [["", "a", "b", "c"][g] for g in generator.integers(4, size=90)] if groups else ""
    return make_table([str(number) for number in range(90)], label, role=role, group=group)


def random_embeddings(table: pd.DataFrame, seed: int, spread: float = 1.0) -> np.ndarray:
    """Around a center for each class."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((table.label.nunique(), 9))
    return centers[pd.factorize(table.label)[0]] + spread * generator.standard_normal((len(table), 9))


@st.composite
def retrievals(draw: st.DrawFn) -> Retrieval:
    """Any kind of embeddings, roles, groups, rules, copies, distractors, categories and class sizes.

    A single image and a single class are included.
    """
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, num_classes = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    labels = generator.integers(num_classes, size=count)
    x = embeddings_of(draw(st.sampled_from(KINDS)), labels, generator)
    if draw(st.booleans()):
        x = x.astype(np.float32)
    roles = draw(st.sampled_from(["everyone", "apart", "mixed"]))
    everyone = np.arange(count)
    queries = gallery = everyone
    if roles == "apart":
        queries, gallery = np.split(generator.permutation(count), [max(1, count // 3)])
    if roles == "mixed":
        queries = generator.permutation(count)[: generator.integers(1, count + 1)]
        gallery = generator.permutation(count)[: generator.integers(0, count + 1)]
    groups, copies = (generator.integers(-1, 3, size=count) if draw(st.booleans()) else None for _ in range(2))
    categories = generator.integers(3, size=num_classes)[labels] if draw(st.booleans()) else None
    if draw(st.booleans()):
        labels[np.setdiff1d(everyone, queries)[::2]] = -1
    return Retrieval(x, labels, queries, gallery, groups, draw(st.sampled_from(get_args(Exclude))), copies, categories)
