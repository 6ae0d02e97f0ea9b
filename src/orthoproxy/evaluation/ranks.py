"""Where a query's positives stand among its neighbours: exact, at the speed of single precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthoproxy.evaluation.gallery import Gallery, Members, count_up, largest
from orthoproxy.evaluation.neighbours import Comparison, Retrieval, comparisons

SPARE = 8  # rivals kept beyond the number of positives, so that the last one kept seldom decides anything
MOST_PAIRS = 256  # of a query on average whose similarity is computed in float64; beyond it a matrix product is faster

Ranks = tuple[Int[Tensor, "b P"], Int[Tensor, " b"]]


def leading_ranks(retrieval: Retrieval, memory_mb: float = 512, device: str = "cpu") -> Iterator[Ranks]:
    """Rank each query's positives among its neighbours, as far as metrics look at them, ties against the query.

    The j-th best positive has rank j + the number of negatives at least as similar, as in `positive_ranks`, whose
    results these are. Similarities are computed in float32 first. A negative that its rounding could put on the wrong
    side of a positive is compared again in float64.

    Parameters
    ----------
    retrieval
        What to compare.
    memory_mb
        Bound on the memory of a block of queries in MiB; a block has at least one query.
    device
        Where similarities are computed in float32.

    Yields
    ------
    ranks
        Of a block of queries, in order. Best first, from 1; exact for the best positive, and for every one that is
        among the first R, with R the number of the query's positives; the others have some rank above R. P is the
        block's largest R, and what a query lacks is filled with 0.
    counts
        R of each query, possibly 0.

    Examples
    --------
    >>> points, everyone = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.arange(3)
    >>> next(leading_ranks(Retrieval(points, np.array([0, 0, 1]), everyone, everyone)))
    (tensor([[1],
            [1],
            [0]]), tensor([1, 1, 0]))
    """
    gallery = _RankedGallery(retrieval, memory_mb, device)
    for start in range(0, len(retrieval.queries), gallery.block):
        rows = retrieval.queries[start : start + gallery.block]
        ranks = gallery.rank(rows)
        if ranks is None:  # nearly everything is alike, or classes are huge
            blocks = comparisons(replace(retrieval, queries=rows), memory_mb)
            yield from map(positive_ranks, blocks)
        else:
            yield ranks


def positive_ranks(block: Comparison) -> Ranks:
    """Rank each query's positives among its neighbours, ties against the query: the plain way, all in float64.

    Parameters
    ----------
    block
        From `comparisons`.

    Returns
    -------
    ranks
        Best first, from 1; P is the block's largest number of positives, and what a query lacks is filled with 0.
    counts
        Number of positives of each query, possibly 0.

    Examples
    --------
    >>> similarity = torch.tensor([[0.9, 0.5, 0.5, 0.1]], dtype=torch.float64)
    >>> positive = torch.tensor([[False, True, False, True]])
    >>> positive_ranks(Comparison(np.array([0]), similarity, positive, ~positive))
    (tensor([[3, 4]]), tensor([2]))
    """
    counts = block.positive.sum(dim=1)
    most = int(counts.max()) if len(counts) else 0
    best = block.similarity.masked_fill(~block.positive, -torch.inf).topk(most, dim=1).values  # b P, descending
    rivals = block.similarity.masked_fill(~block.negative, -torch.inf).sort(dim=1).values  # b G, ascending
    ahead = rivals.shape[1] - torch.searchsorted(rivals, best)
    ranks = torch.arange(1, most + 1) + ahead
    return ranks.masked_fill(torch.arange(most) >= counts[:, None], 0), counts


class _RankedGallery(Gallery):
    """Counts, for each positive of a query, the negatives that are ahead of it."""

    def __init__(self, retrieval: Retrieval, memory_mb: float, device: str) -> None:
        super().__init__(retrieval, memory_mb, device)
        self.by_label = Members(retrieval.labels[retrieval.gallery])

    def rank(self, rows: Int[np.ndarray, " b"]) -> Ranks | None:
        """Rank the positives of some queries; None where so many pairs are close that it would not pay."""
        similarity = self.compare(rows)
        query, column = (x.to(self.device) for x in self.by_label.pairs(self.retrieval.labels[rows]))
        with torch.device(self.device):
            ranks = self._rank(rows, similarity, query, column)
        return ranks and (ranks[0].cpu(), ranks[1].cpu())

    def _rank(
        self,
        rows: Int[np.ndarray, " b"],
        similarity: Float[Tensor, "b G"],
        query: Int[Tensor, " n"],
        column: Int[Tensor, " n"],
    ) -> Ranks | None:
        found = similarity[query, column] > -torch.inf
        query, column = query[found], column[found]
        counts = torch.bincount(query, minlength=len(rows))
        if len(query) > MOST_PAIRS * len(rows):
            return None
        best = _in_rows(query, self.exact(rows, query, column), counts)  # b P, descending
        similarity[query, column] = -torch.inf  # only negatives are left
        ahead = self._count_rivals(rows, similarity, best, counts)
        if ahead is None:
            return None
        position = torch.arange(1, best.shape[1] + 1)
        return (position + ahead).masked_fill(position > counts[:, None], 0), counts

    def _count_rivals(
        self,
        rows: Int[np.ndarray, " b"],
        similarity: Float[Tensor, "b G"],
        best: Float[Tensor, "b P"],
        counts: Int[Tensor, " b"],
    ) -> Int[Tensor, "b P"] | None:
        """Count the negatives at least as similar as each positive: exactly, or more than R where it is more."""
        kept = min(best.shape[1] + SPARE, similarity.shape[1])
        rivals, places = largest(similarity, kept)  # b k, descending
        edge = rivals[:, -1:] if kept < similarity.shape[1] else torch.full((len(rows), 1), -torch.inf)
        ascending = rivals.flip(1).double()
        surely = kept - torch.searchsorted(ascending, best + self.error, right=True)
        perhaps = kept - torch.searchsorted(ascending, best - self.error)
        there = torch.arange(best.shape[1]) < counts[:, None]
        beyond = there & (best <= edge + self.error)  # not all that are ahead have been kept
        beyond[:, 1:] &= (best >= edge - self.error)[:, 1:]  # if not even close, its rank is above R
        unclear = there & ~beyond & (perhaps > surely)

        query = unclear.nonzero(as_tuple=True)[0]
        spread = (perhaps - surely)[unclear]
        far, far_position = beyond.nonzero(as_tuple=True)
        if int(spread.sum()) > MOST_PAIRS * len(rows):
            return None
        which = torch.repeat_interleave(torch.arange(len(query)), spread)
        slot = surely[unclear][which] + count_up(spread)
        exact = self.exact(rows, query[which], places[query[which], slot])
        allowed = rivals[query[which], slot] > -torch.inf
        won = torch.bincount(which[allowed & (exact >= best[unclear][which])], minlength=len(query))
        ahead = surely.clone()
        ahead[unclear] += won
        counted = self._count_in_whole_rows(rows, similarity, far, best[far, far_position])
        if counted is None:
            return None
        ahead[far, far_position] = counted
        return ahead

    def _count_in_whole_rows(
        self,
        rows: Int[np.ndarray, " b"],
        similarity: Float[Tensor, "b G"],
        query: Int[Tensor, " n"],
        least: Float[Tensor, " n"],
    ) -> Int[Tensor, " n"] | None:
        """Count the negatives at least as similar as a bound, each in the row of its query."""
        counts = torch.empty_like(query)
        at_once = max(1, len(rows) // 8)
        pairs = 0
        for start in range(0, len(query), at_once):
            part = slice(start, start + at_once)
            of_query, bound = similarity[query[part]], least[part, None]
            surely = of_query > (bound + self.error).float()
            which, column = (of_query >= (bound - self.error).float()).logical_xor_(surely).nonzero(as_tuple=True)
            pairs += len(which)
            if pairs > MOST_PAIRS * len(rows):
                return None
            won = self.exact(rows, query[part][which], column) >= least[part][which]
            counts[part] = surely.sum(dim=1) + torch.bincount(which[won], minlength=len(of_query))
        return counts


def _in_rows(row: Int[Tensor, " n"], values: Float[Tensor, " n"], counts: Int[Tensor, " b"]) -> Float[Tensor, "b P"]:
    """Lay out values, whose rows ascend, in a row each, largest first; what a row lacks is -inf."""
    table = values.new_full((len(counts), int(counts.max()) if len(counts) else 0), -torch.inf)
    table[row, count_up(counts)] = values
    return table.sort(dim=1, descending=True).values
