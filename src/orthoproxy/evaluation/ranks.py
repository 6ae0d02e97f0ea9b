"""Where a query's positives stand among its neighbours: exact, at the speed of single precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthoproxy.evaluation.neighbours import Collection, Comparison, comparisons, unit_rows

SPARE = 8  # rivals kept beyond the number of positives, so that the last one kept seldom decides anything
BYTES_A_PAIR = 12  # that one query-gallery pair needs: its similarity, and a copy while the largest are looked for
MOST_PAIRS = 256  # of a query on average whose similarity is computed in float64; beyond it a matrix product is faster
PAIRS_AT_ONCE = 2**15

Ranks = tuple[Int[Tensor, "b P"], Int[Tensor, " b"]]


def leading_ranks(collection: Collection, memory_mb: float = 512) -> Iterator[Ranks]:
    """Rank each query's positives among its neighbours, as far as metrics look at them, ties against the query.

    The j-th best positive has rank j + the number of negatives at least as similar, as in `positive_ranks`, whose
    results these are. Similarities are computed in float32 first. A negative that its rounding could put on the wrong
    side of a positive is compared again in float64.

    Parameters
    ----------
    collection
        What to compare.
    memory_mb
        Bound on the memory of a block of queries in MiB; a block has at least one query.

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
    >>> next(leading_ranks(Collection(points, np.array([0, 0, 1]), everyone, everyone)))
    (tensor([[1],
            [1],
            [0]]), tensor([1, 1, 0]))
    """
    gallery = _Gallery(collection)
    size = max(1, int(memory_mb * 2**20 / (BYTES_A_PAIR * max(1, len(collection.gallery)))))
    for start in range(0, len(collection.queries), size):
        rows = collection.queries[start : start + size]
        ranks = gallery.rank(rows)
        if ranks is None:  # nearly everything is alike, or classes are huge
            blocks = comparisons(replace(collection, queries=rows), memory_mb)
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


class _Gallery:
    """The gallery of a collection, ready to be compared with blocks of queries."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.units = unit_rows(collection.embeddings).float()  # N D
        self.gallery = torch.from_numpy(collection.gallery)
        self.candidates = self.units if _is_everyone(collection) else self.units[self.gallery]
        self.by_label = _Members(collection.labels[collection.gallery])
        self.by_group = None if collection.groups is None else _Members(collection.groups[collection.gallery])
        self.place = torch.full((len(self.units),), -1)  # of a row in the gallery
        self.place[self.gallery] = torch.arange(len(self.gallery))
        # the largest error of a similarity: of D products and sums, and of rounding both vectors
        self.error = (self.units.shape[1] + 8) * torch.finfo(torch.float32).eps / 2

    def rank(self, rows: Int[np.ndarray, " b"]) -> Ranks | None:
        """Rank the positives of some queries; None where so many pairs are close that it would not pay."""
        similarity = self.units[torch.from_numpy(rows)] @ self.candidates.T  # b G
        similarity[self._not_to_be_found(rows)] = -torch.inf
        query, column = self.by_label.pairs(self.collection.labels[rows])
        found = similarity[query, column] > -torch.inf
        query, column = query[found], column[found]
        counts = torch.bincount(query, minlength=len(rows))
        if len(query) > MOST_PAIRS * len(rows):
            return None
        best = _in_rows(query, self._exact(rows, query, column), counts)  # b P, descending
        similarity[query, column] = -torch.inf  # only negatives are left
        ahead = self._count_rivals(rows, similarity, best, counts)
        if ahead is None:
            return None
        position = torch.arange(1, best.shape[1] + 1)
        return (position + ahead).masked_fill(position > counts[:, None], 0), counts

    def _not_to_be_found(self, rows: Int[np.ndarray, " b"]) -> tuple[Tensor, Tensor]:
        """Pairs of a query and itself, or a member of its group."""
        own = self.place[torch.from_numpy(rows)]
        query = torch.arange(len(rows))[own >= 0]
        if self.by_group is None or self.collection.groups is None:
            return query, own[own >= 0]
        group = self.collection.groups[rows]
        of_group, column = self.by_group.pairs(np.where(group < 0, np.iinfo(group.dtype).min, group))
        return torch.cat([query, of_group]), torch.cat([own[own >= 0], column])

    def _count_rivals(
        self,
        rows: Int[np.ndarray, " b"],
        similarity: Float[Tensor, "b G"],
        best: Float[Tensor, "b P"],
        counts: Int[Tensor, " b"],
    ) -> Int[Tensor, "b P"] | None:
        """Count the negatives at least as similar as each positive: exactly, or more than R where it is more."""
        kept = min(best.shape[1] + SPARE, similarity.shape[1])
        rivals, places = similarity.topk(kept, dim=1)  # b k, descending
        edge = rivals[:, -1:] if kept < similarity.shape[1] else torch.full((len(rows), 1), -torch.inf)
        ascending = rivals.flip(1).double()
        surely = kept - torch.searchsorted(ascending, best + self.error, right=True)
        perhaps = kept - torch.searchsorted(ascending, best - self.error)
        there = torch.arange(best.shape[1]) < counts[:, None]
        beyond = there & (best <= edge + self.error)  # not all that are ahead have been kept
        beyond[:, 1:] &= (best >= edge - self.error)[:, 1:]  # if not even close, its rank is above R
        unclear = there & ~beyond & (perhaps > surely)

        query, position = unclear.nonzero(as_tuple=True)
        spread = (perhaps - surely)[unclear]
        far, far_position = beyond.nonzero(as_tuple=True)
        if int(spread.sum()) > MOST_PAIRS * len(rows):
            return None
        which = torch.repeat_interleave(torch.arange(len(query)), spread)
        slot = surely[unclear][which] + _count_up(spread)
        exact = self._exact(rows, query[which], places[query[which], slot])
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
            won = self._exact(rows, query[part][which], column) >= least[part][which]
            counts[part] = surely.sum(dim=1) + torch.bincount(which[won], minlength=len(of_query))
        return counts

    def _exact(
        self, rows: Int[np.ndarray, " b"], query: Int[Tensor, " n"], column: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Compute similarities in float64, each from its two vectors alone, so that equal vectors have equal ones."""
        x, ours, theirs = self.collection.embeddings, rows[query.numpy()], self.collection.gallery[column.numpy()]
        parts = [torch.empty(0, dtype=torch.float64)]
        for start in range(0, len(ours), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            parts.append((unit_rows(x[ours[part]]) * unit_rows(x[theirs[part]])).sum(dim=1))
        return torch.cat(parts)


class _Members:
    """Which columns have a key: a class or a group."""

    def __init__(self, keys: Int[np.ndarray, " G"]) -> None:
        self.columns = np.argsort(keys, kind="stable")
        self.keys = keys[self.columns]

    def pairs(self, keys: Int[np.ndarray, " b"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Pair the position of each key asked for with every column that has it."""
        first = np.searchsorted(self.keys, keys)
        size = torch.from_numpy(np.searchsorted(self.keys, keys, side="right") - first)
        query = torch.repeat_interleave(torch.arange(len(keys)), size)
        return query, torch.from_numpy(self.columns)[torch.from_numpy(first)[query] + _count_up(size)]


def _count_up(sizes: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Return 0, 1, ... up to each size, one after the other."""
    ends = sizes.cumsum(0)
    return torch.arange(int(ends[-1]) if len(ends) else 0) - torch.repeat_interleave(ends - sizes, sizes)


def _in_rows(row: Int[Tensor, " n"], values: Float[Tensor, " n"], counts: Int[Tensor, " b"]) -> Float[Tensor, "b P"]:
    """Lay out values, whose rows ascend, in a row each, largest first; what a row lacks is -inf."""
    table = values.new_full((len(counts), int(counts.max()) if len(counts) else 0), -torch.inf)
    table[row, _count_up(counts)] = values
    return table.sort(dim=1, descending=True).values


def _is_everyone(collection: Collection) -> bool:
    return np.array_equal(collection.gallery, np.arange(len(collection.embeddings)))
