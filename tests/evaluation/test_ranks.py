"""Ranks found at the speed of single precision are those of double precision, also where rounding could deceive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute_force import retrievals
from hypothesis import given, settings
from hypothesis import strategies as st

from orthoproxy.evaluation import Retrieval, comparisons, leading_ranks, positive_ranks
from orthoproxy.evaluation import ranks as module
from orthoproxy.evaluation.gallery import Gallery


def plainly(retrieval: Retrieval) -> list[list[int]]:
    """Ranks of each query's positives, computed in float64; those above R, but the best's, as R + 1."""
    found = []
    for block in comparisons(retrieval):
        for row, count in zip(*positive_ranks(block), strict=True):
            found.append(_capped(row, int(count)))
    return found


def fast(retrieval: Retrieval, memory_mb: float = 512) -> list[list[int]]:
    blocks = leading_ranks(retrieval, memory_mb)
    return [_capped(row, int(count)) for block in blocks for row, count in zip(*block, strict=True)]


def _capped(ranks: torch.Tensor, count: int) -> list[int]:
    return [int(rank) if place == 0 else min(int(rank), count + 1) for place, rank in enumerate(ranks[:count])]


@settings(max_examples=100)
@given(retrievals(), st.sampled_from([1e-9, 0.005, 512]))
def test_ranks_are_those_of_double_precision(retrieval: Retrieval, memory_mb: float) -> None:
    assert fast(retrieval, memory_mb) == plainly(retrieval)


@pytest.mark.parametrize("spread", [1e-1, 1e-4, 1e-6, 1e-8, 0.0])
@pytest.mark.parametrize("images_a_class", [2, 30])
def test_similarities_that_single_precision_cannot_tell_apart(spread: float, images_a_class: int) -> None:
    """All images point nearly the same way; at 0 they are copies, and every tie counts against the query."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(64) + spread * generator.standard_normal((300, 64))
    x[7:20] = x[40]
    labels = generator.permutation(np.arange(300) // images_a_class)
    everyone = np.arange(300)
    retrieval = Retrieval(x, labels, everyone, everyone)
    assert fast(retrieval) == plainly(retrieval)


@pytest.mark.parametrize("images_a_class", [2, 30], ids=["many close", "many positives"])
def test_where_too_many_would_be_compared_again_a_block_goes_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, images_a_class: int
) -> None:
    generator = np.random.default_rng(0)
    everyone = np.arange(60)
    x = generator.standard_normal((10, 16))[everyone // 6] + 1e-8 * generator.standard_normal((60, 16))
    retrieval = Retrieval(x, everyone // images_a_class, everyone, everyone)
    expected, blocks = plainly(retrieval), []
    monkeypatch.setattr(module, "MOST_PAIRS", 2)
    monkeypatch.setattr(module, "positive_ranks", lambda block: blocks.append(block) or positive_ranks(block))
    assert fast(retrieval) == expected and blocks


def test_few_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four million pairs, the positives and some hundred others."""
    compared = []
    exact = Gallery.exact
    monkeypatch.setattr(Gallery, "exact", lambda *a: compared.append(len(a[2])) or exact(*a))
    monkeypatch.setattr(module, "positive_ranks", None)  # nor does a block go the plain way
    generator = np.random.default_rng(0)
    labels = np.arange(2000) // 4
    x = generator.standard_normal((500, 32))[labels] + 0.8 * generator.standard_normal((2000, 32))
    everyone = np.arange(2000)
    list(leading_ranks(Retrieval(x.astype(np.float32), labels, everyone, everyone)))
    assert 6000 <= sum(compared) < 8000


def test_a_similarity_does_not_depend_on_what_is_computed_beside_it() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 37)).astype(np.float32)
    everyone = np.arange(50)
    gallery = Gallery(Retrieval(x, everyone, everyone, everyone))
    query, column = torch.from_numpy(generator.integers(50, size=(2, 400)))
    together = gallery.exact(everyone, query, column)
    alone = torch.cat([gallery.exact(everyone, q, c) for q, c in zip(query.split(1), column.split(1), strict=True)])
    assert torch.equal(together, alone)
