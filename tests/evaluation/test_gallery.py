"""Comparison in single precision: what it chooses, what it leaves open, and lists of neighbours made with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orthoproxy.evaluation import Retrieval, leading_ranks, nearest
from orthoproxy.evaluation.gallery import Gallery, largest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def images_like(spread: float, number: int = 1500, dim: int = 16) -> Retrieval:
    """Images that point nearly the same way, some of them copies; every seventh belongs to a group of three."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(dim) + spread * generator.standard_normal((number, dim))
    x[number // 2 : number // 2 + 40] = x[3]
    everyone = np.arange(number)
    groups = np.where(everyone % 7 == 0, everyone // 21, -1)
    return Retrieval(x.astype(np.float32), everyone // 5, everyone[::9], generator.permutation(number)[:-10], groups)


def plain_neighbours(retrieval: Retrieval, k: int) -> np.ndarray:
    """Of each query, in float64 and one pair at a time: so that copies are as similar to the last bit."""
    x = retrieval.embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = []
    for query in retrieval.queries:
        group = retrieval.groups[query] if retrieval.groups is not None else -1
        allowed = [row for row in np.sort(retrieval.gallery) if row != query]
        allowed = [row for row in allowed if group < 0 or retrieval.groups[row] != group]
        cosine = np.array([(x[query] * x[row]).sum() for row in allowed])
        found.append(np.array(allowed)[np.argsort(-cosine, kind="stable")[:k]])
    return np.array(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_mb", [0.05, 512])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_neighbours_in_a_gallery_of_many(spread: float, memory_mb: float, device: str) -> None:
    retrieval = images_like(spread)
    rows, similarity = nearest(retrieval, 6, memory_mb, device)
    plain = plain_neighbours(retrieval, 6)
    assert (np.diff(similarity) <= 0).all()
    differ = (rows != plain).any(axis=1)
    # float64 itself cannot tell what lies closer than its rounding: there the lists may differ, but not their values
    x = retrieval.embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for query, ours, theirs in zip(retrieval.queries[differ], rows[differ], plain[differ], strict=True):
        np.testing.assert_allclose(x[ours] @ x[query], x[theirs] @ x[query], atol=1e-15, rtol=0)
    assert differ.mean() < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_the_largest_of_many(device: str) -> None:
    x = torch.randint(1000, (50, 1317), generator=torch.Generator().manual_seed(0)).float().to(device)
    for k in (1, 3, 40, 1317):
        values, columns = largest(x, k)
        assert torch.equal(values, x.topk(k, dim=1).values)
        assert torch.equal(x.gather(1, columns), values)
        assert all(len(set(row.tolist())) == k for row in columns)


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_ranks_on_a_gpu_are_those_on_the_processor(spread: float) -> None:
    retrieval = images_like(spread)
    for (ranks, counts), (ranks_there, counts_there) in zip(
        leading_ranks(retrieval), leading_ranks(retrieval, device="cuda"), strict=True
    ):
        assert torch.equal(counts, counts_there)
        assert torch.equal(ranks[:, 0], ranks_there[:, 0])
        within = (ranks <= counts[:, None]) | (ranks_there <= counts[:, None])
        assert torch.equal(ranks[within], ranks_there[within])


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_error_of_a_similarity_is_within_its_bound(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        retrieval = images_like(1.0)
        gallery = Gallery(retrieval)
        single = gallery.compare(retrieval.queries[:50]).double()
    finally:
        torch.set_float32_matmul_precision(before)
    query, column = (single > -torch.inf).nonzero(as_tuple=True)
    exact = gallery.exact(retrieval.queries[:50], query, column)
    assert float((single[query, column] - exact).abs().max()) <= gallery.error
