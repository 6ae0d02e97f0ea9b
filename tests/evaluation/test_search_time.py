"""Query expansion and re-ranking against the formulas written out, one query at a time, in float64 NumPy."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from brute_force import allowed_gallery, cosine, neighbors, random_embeddings, random_table, retrievals
from hypothesis import given, settings
from hypothesis import strategies as st

from orthoproxy.evaluation import Evaluation, Retrieval, Scoring, nearest_neighbors, score
from orthoproxy.evaluation.bootstrap import bootstrap_means
from orthoproxy.evaluation.evaluate import build_retrieval, score_queries
from orthoproxy.evaluation.query_expansion import expand_queries
from orthoproxy.evaluation.reranking import rerank
from orthoproxy.evaluation.retrieval import Exclude


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / (np.linalg.norm(x.astype(np.float64)) or 1)


def expanded(retrieval: Retrieval, query: int, count: int, alpha: float) -> np.ndarray:
    x = retrieval.embeddings
    parts = [max(s, 0) ** alpha * unit(x[row]) for row, s in neighbors(retrieval, query)[:count]]
    return unit(np.sum([unit(x[query]), *parts], axis=0))


def reranked(retrieval: Retrieval, query: int, k1: int, k2: int, weight: float) -> dict[int, float]:
    """Equations 3 to 12 of Zhong et al. with d = 1 - cosine, for all that a query may find; the distance of each."""
    rows = [query, *allowed_gallery(retrieval, query)]
    x = np.array([unit(retrieval.embeddings[row]) for row in rows])
    d = 1 - x @ x.T
    np.fill_diagonal(d, -1)  # each image is its own nearest neighbor
    order = np.argsort(d, axis=1)
    np.fill_diagonal(d, 0)

    def near(a: int, k: int) -> set[int]:
        return {b for b in order[a, : k + 1].tolist() if a in order[b, : k + 1]}

    code = np.zeros_like(d)
    for a in range(len(rows)):
        own = near(a, k1)
        members = own.union(*(half for b in own if len(own & (half := near(b, round(k1 / 2)))) >= 2 / 3 * len(half)))
        for b in members:
            code[a, b] = np.exp(-d[a, b])
        code[a] /= code[a].sum()
    code = np.array([code[order[a, :k2]].mean(axis=0) for a in range(len(rows))])
    jaccard = [1 - np.minimum(code[0], v).sum() / np.maximum(code[0], v).sum() for v in code]
    return {row: (1 - weight) * jaccard[a] + weight * d[0, a] for a, row in enumerate(rows) if a}


def without_ties(seed: int, roles: str) -> Retrieval:
    """Groups under a rule, copies, distractors, and queries in the gallery or apart."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(12, 40))
    labels, everyone = generator.integers(4, size=count), np.arange(count)
    x = generator.standard_normal((count, 6)) + 2 * generator.standard_normal((4, 6))[labels]
    queries = everyone if roles == "everyone" else generator.permutation(count)[: count // 3]
    gallery = np.setdiff1d(everyone, queries) if roles == "apart" else everyone[1:]
    labels[np.setdiff1d(everyone, queries)[::4]] = -1
    groups, copies = (generator.integers(-1, 4, size=count) for _ in range(2))
    rule = get_args(Exclude)[seed % 3]
    return Retrieval(x, labels, queries, gallery, groups, rule, copies if seed % 2 else None)


@settings(max_examples=60)
@given(retrievals(), st.integers(0, 6), st.floats(0, 4), st.sampled_from([1e-9, 512]))
def test_expansion_adds_what_the_query_may_find(retrieval: Retrieval, count: int, alpha: float, memory: float) -> None:
    found = expand_queries(retrieval, count, alpha, block_memory_mb=memory)
    rows, similarity = nearest_neighbors(found, 5, memory)
    for place, query in enumerate(retrieval.queries):
        vector = expanded(retrieval, query, count, alpha)
        assert found.query_embeddings[place] == pytest.approx(vector, abs=1e-9)
        best = sorted(cosine(vector, retrieval.embeddings[row]) for row in allowed_gallery(retrieval, query))[::-1]
        assert similarity[place][rows[place] >= 0] == pytest.approx(best[:5], abs=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["everyone", "mixed", "apart"]),
       st.sampled_from([(20, 6), (7, 3), (4, 1)]), st.sampled_from([0.3, 0.8]))  # fmt: skip
def test_reranking_is_that_of_the_paper_on_the_query_and_what_it_may_find(seed, roles, k, weight: float) -> None:
    retrieval = without_ties(seed, roles)
    rows, _ = nearest_neighbors(rerank(retrieval, *k, weight), k=50, block_memory_mb=0.005)
    for place, query in enumerate(retrieval.queries):
        expected = reranked(retrieval, query, *k, weight)
        found = [row for row in rows[place].tolist() if row >= 0]
        assert sorted(found) == sorted(expected)
        distances = np.array([expected[row] for row in found])
        assert (np.diff(distances) > -1e-9).all()


@settings(max_examples=20)
@given(retrievals(), st.integers(1, 8))
def test_reranking_permutes_the_candidates_only(retrieval: Retrieval, k1: int) -> None:
    plain, _ = nearest_neighbors(retrieval, 50)
    same, _ = nearest_neighbors(rerank(retrieval, weight=1.0), 50)
    assert (same == plain).all()
    some, _ = nearest_neighbors(rerank(retrieval, k1=k1, k2=2, candidates=k1), 50)
    assert (np.sort(some[:, :k1]) == np.sort(plain[:, :k1])).all() and (some[:, k1:] == plain[:, k1:]).all()


@pytest.mark.parametrize("groups", [False, True])
def test_scores_stand_beside_the_plain_ones_with_their_paired_difference(groups: bool) -> None:
    table = random_table(0, groups)
    x, more = random_embeddings(table, 1, spread=1.5), random_embeddings(table, 1)
    scoring = Scoring(recall_at=(1,), map=True, bootstrap_samples=200)
    plain = score(x, None, table, scoring)
    result = score(x, None, table, replace(scoring, expand=3, rerank=True), augmented=more)
    assert Evaluation.from_dict(result.to_dict()) == result
    assert (result.model, plain.search_time) == (plain.model, None) and list(result.search_time) == [
        "augment", "expand 3", "rerank",
    ]  # fmt: skip
    assert result.search_time["augment"].model == score(more, None, table, scoring).model
    retrieval = build_retrieval(x, table, scoring.rule(table))
    retrievals = (retrieval, expand_queries(retrieval, 3), rerank(retrieval))
    metrics = [score_queries(part, table, scoring)["map"] for part in retrievals]
    scored = ~np.isnan(metrics[0])
    classes = retrieval.labels[retrieval.queries][scored]
    for values, found in zip(metrics[1:], list(result.search_time.values())[1:], strict=True):
        assert found.baseline == plain.model and found.queries == plain.queries
        change = values[scored] - metrics[0][scored]
        low, high = np.percentile(bootstrap_means(change, classes, 200), [2.5, 97.5])
        difference = found.difference["map"]
        assert abs(difference.value) > 1e-3
        assert (difference.value, difference.low, difference.high) == pytest.approx((change.mean(), low, high))
