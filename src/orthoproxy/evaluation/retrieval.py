"""Exact nearest-neighbor search and ranks, block by block, so that memory is bounded and never Q x N.

Similarities are computed in float64. Identical embeddings are compared once, so that exact duplicates tie whatever
the block size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.data.table import integer_labels

BYTES_PER_PAIR = 24  # of a query and a gallery row: the similarity, a copy of it, a mask and what is selected from it
Exclude = Literal["none", "group", "own_class_in_group"]  # what of a query's group leaves its gallery
BUCKET = 32  # neighboring columns whose maximum is looked at first by `largest`


@dataclass(frozen=True)
class Retrieval:
    """Embeddings, and which rows are queries and gallery.

    Parameters
    ----------
    embeddings
        One row per image, of any length; compared by cosine.
    labels
        Class number of each row, of any integer type; -1 for a distractor, of no class, which may be in the gallery
        only.
    queries, gallery
        Row numbers, each at most once; a row may be in both, and is never its own neighbor.
    groups
        Group number of each row, -1 for none.
    exclude
        What leaves a query's gallery: ``group``, the query's own group; ``own_class_in_group``, only images of the
        query's class in it; ``none``.
    copies
        A number that near copies of each other share, -1 without one: those of a query leave its gallery.
    categories
        Category number of each row, the same for all rows of a class; None without categories.
    query_embeddings
        One row per query, where a query is searched by another embedding than it has in the gallery.
    raised
        Gallery rows of each query, -1 for none, and what is added to their cosines.

    Raises
    ------
    InputError
        If an embedding is not finite, or labels are no integers.

    Examples
    --------
    >>> points, everyone = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.arange(3)
    >>> retrieval = Retrieval(points, np.array([0, 0, 1]), queries=everyone, gallery=everyone)
    >>> nearest_neighbors(retrieval, k=1)[0].ravel()
    array([1, 0, 1])
    """

    embeddings: Float[np.ndarray, "N D"]
    labels: Integer[np.ndarray, " N"]
    queries: Int[np.ndarray, " Q"]
    gallery: Int[np.ndarray, " G"]
    groups: Int[np.ndarray, " N"] | None = None
    exclude: Exclude = "group"
    copies: Int[np.ndarray, " N"] | None = None
    categories: Int[np.ndarray, " N"] | None = None
    query_embeddings: Float[np.ndarray, "Q D"] | None = None
    raised: tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]] | None = None

    def __post_init__(self) -> None:
        integer_labels(self.labels)
        finite = np.isfinite(self.embeddings).all(axis=1)
        if not finite.all():
            raise InputError(
                f"row {int(finite.argmin())} is not finite ({(~finite).sum()} such rows)", field="embeddings"
            )


@dataclass(frozen=True)
class Ranking:
    """Where the positives of a block of queries stand among the gallery; see `rank_positives`."""

    # Best positive first, from 1, ties against the query. Exact for the best positive and those within the first R, and
    # for all if `full`; others are above R. Filled with 0, at least one column.
    ranks: Int[Tensor, "b P"]
    positives: Int[Tensor, " b"]  # R of each query, possibly 0
    best_positive: Float[Tensor, " b"]  # largest cosine; -inf without one
    best_negative: Float[Tensor, " b"]
    best_of_other_class: Float[Tensor, " b"]  # as best_negative, but with the query's own group kept in the gallery
    category_first: Bool[Tensor, " b"] | None = None  # is the nearest of the query's category, ties against it


def rank_positives(
    retrieval: Retrieval, block_memory_mb: float = 512, device: str = "cpu", full: bool = False
) -> Iterator[Ranking]:
    """Rank each query's positives, block by block: the j-th best has rank j + the negatives at least as similar."""
    blocks = _SimilarityBlocks(retrieval, block_memory_mb, device)
    sorted_labels, columns = blocks.labels[blocks.gallery].sort(stable=True)
    for rows, similarity in blocks:
        start, end = (torch.searchsorted(sorted_labels, blocks.labels[rows], side=side) for side in ("left", "right"))
        sizes = end - start
        place = torch.arange(max([1, *sizes.tolist()]), device=blocks.device)
        query, number = (place < sizes[:, None]).nonzero(as_tuple=True)
        column = columns[start[query] + number]
        found = similarity[query, column]
        if blocks.groups is not None:  # whatever the rule, images of the query's class in its group leave
            group = blocks.groups[rows[query]]
            same_group = (group >= 0) & (group == blocks.groups[blocks.gallery[column]])
            found.masked_fill_(same_group, -torch.inf)
        positive = similarity.new_full((len(rows), len(place)), -torch.inf)
        positive[query, number] = found
        similarity[query, column] = -torch.inf  # leaves the negatives
        yield _rank(blocks, rows, similarity, positive.sort(dim=1, descending=True).values, full)


def _rank(
    blocks: _SimilarityBlocks,
    rows: Int[Tensor, " b"],
    negative: Float[Tensor, "b G"],
    positive: Float[Tensor, "b P"],
    full: bool,
) -> Ranking:
    found = positive > -torch.inf  # first in each row
    counts, max_count = found.sum(dim=1), int(found.any(dim=0).sum())
    positive = positive[:, : max(1, max_count)].contiguous()
    best_of_other_class = None if blocks.groups is None else _row_max(negative)
    blocks.mask_groups(rows, negative)
    kept = min(1 if full else positive.shape[1], negative.shape[1])
    # enough to tell every rank up to R
    rivals = largest(negative, kept)[0] if kept else negative.new_full((len(rows), 1), -torch.inf)
    if full:
        ahead = _count_at_least(negative, positive)
    else:
        ahead = rivals.shape[1] - torch.searchsorted(rivals.flip(1), positive)
        unresolved = (ahead[:, 0] == rivals.shape[1]) & (counts > 0)
        ahead[unresolved, 0] = (negative[unresolved] >= positive[unresolved, :1]).sum(dim=1)
    order = torch.arange(1, positive.shape[1] + 1, device=negative.device)
    ranks = (order + ahead).masked_fill(order > counts[:, None], 0)
    best_negative = rivals[:, 0]
    other = best_negative if best_of_other_class is None else best_of_other_class
    first = blocks.category_first(rows, negative, positive[:, 0])
    return Ranking(*(x.cpu() for x in (ranks, counts, positive[:, 0], best_negative, other)), category_first=first)


def _count_at_least(negative: Float[Tensor, "b G"], positive: Float[Tensor, "b P"]) -> Int[Tensor, "b P"]:
    """Count for each positive, sorted in descending order, the negatives of its row that are at least as large."""
    bins = positive.shape[1] + 1
    place = torch.searchsorted(positive.flip(1), negative, right=True)  # the number of positives that it reaches
    place += bins * torch.arange(len(place), device=place.device)[:, None]
    histogram = torch.bincount(place.flatten(), minlength=bins * len(place)).view(-1, bins)
    return histogram[:, 1:].flip(1).cumsum(dim=1)


def nearest_neighbors(
    retrieval: Retrieval, k: int, block_memory_mb: float = 512, device: str = "cpu"
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """List each query's nearest neighbors, most similar first, ties by row number.

    Parameters
    ----------
    retrieval
        What to search.
    k
        Length of the lists; at most G are returned.
    block_memory_mb, device
        As in `rank_positives`.

    Returns
    -------
    rows
        Row numbers of the neighbors; -1 where a query has fewer than `k`.
    similarity
        Their cosines; -inf there.

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> nearest_neighbors(Retrieval(points, np.zeros(3, dtype=int), np.array([0]), np.arange(3)), k=2)[0]
    array([[1, 2]])
    """
    blocks = _SimilarityBlocks(retrieval, block_memory_mb, device)
    k = min(k, len(retrieval.gallery))
    rows, values = [], []
    for queries, similarity in blocks:
        blocks.mask_groups(queries, similarity)
        found, columns = largest(similarity, min(k + 1, similarity.shape[1]))
        columns = columns[:, :k]
        if found.shape[1] > k:  # of those that tie with the k-th, the lowest row numbers are listed
            tied = (found[:, k - 1] == found[:, k]) & (found[:, k] > -torch.inf)
            for row in tied.nonzero().flatten().tolist():
                columns[row] = similarity[row].sort(descending=True, stable=True).indices[:k]
        columns = columns.sort(dim=1).values
        similar, order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True)
        rows.append(blocks.gallery[columns.gather(1, order)].masked_fill_(similar == -torch.inf, -1).cpu())
        values.append(similar.cpu())
    return torch.cat(rows).numpy(), torch.cat(values).numpy()


class _SimilarityBlocks:
    """Blocks of queries and their cosines with the gallery, sorted by row; -inf with itself and its near copies."""

    def __init__(self, retrieval: Retrieval, block_memory_mb: float, device: str) -> None:
        self.device = device if torch.device(device).type == "cuda" else "cpu"
        gallery, (distinct, copy_of) = np.sort(retrieval.gallery), _distinct_rows(unit_rows(retrieval.embeddings))
        candidates, columns = np.unique(copy_of[gallery], return_inverse=True)
        self.queries, self.gallery, self.labels = map(self._tensor, (retrieval.queries, gallery, retrieval.labels))
        self.labels = self.labels.long()
        self.size = max(1, int(block_memory_mb * 2**20 / (BYTES_PER_PAIR * max(1, len(gallery)))))
        self.units, self.copy_of = self._tensor(distinct), self._tensor(copy_of)
        searched = retrieval.query_embeddings
        self.query_units = None if searched is None else self._tensor(unit_rows(searched))
        self.raised = None if retrieval.raised is None else [self._tensor(x) for x in retrieval.raised]
        self.candidates = self.units[self._tensor(candidates)].T
        in_order = np.array_equal(columns, np.arange(len(candidates)))
        self.columns = None if in_order else self._tensor(columns)
        # reused, as new memory for each block costs time
        self.room = self.units.new_empty(min(self.size, len(self.queries)), len(candidates))
        self.place = self.labels.new_full((len(self.labels),), -1)  # of a row in the gallery
        self.place[self.gallery] = torch.arange(len(gallery), device=self.device)
        self.own_class_only = retrieval.exclude == "own_class_in_group"
        groups = None if retrieval.exclude == "none" else retrieval.groups
        self.groups, self.copies, self.categories = (
            None if numbers is None else self._tensor(numbers)
            for numbers in (groups, retrieval.copies, retrieval.categories)
        )

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b G"]]]:
        for start in range(0, max(1, len(self.queries)), self.size):  # without queries, one empty block
            block = slice(start, start + self.size)
            rows = self.queries[block]
            units = self.units[self.copy_of[rows]] if self.query_units is None else self.query_units[block]
            similarity = torch.mm(units, self.candidates, out=self.room[: len(rows)])
            if self.columns is not None:
                similarity = similarity[:, self.columns]
            if self.raised is not None:
                found, added = (x[block] for x in self.raised)
                similarity.scatter_add_(1, self.place[found].clamp(min=0), added)  # where there is none, 0 is added
            own = self.place[rows]
            (query,) = (own >= 0).nonzero(as_tuple=True)
            similarity[query, own[query]] = -torch.inf
            if self.copies is not None:
                similarity.masked_fill_(self._same(self.copies, rows), -torch.inf)
            yield rows, similarity

    def mask_groups(self, rows: Int[Tensor, " b"], similarity: Float[Tensor, "b G"]) -> None:
        """Set the similarity with what is excluded of the query's own group to -inf, in place."""
        if self.groups is not None:
            excluded = self._same(self.groups, rows)
            if self.own_class_only:
                excluded &= self._same(self.labels, rows)
            similarity.masked_fill_(excluded, -torch.inf)

    def _same(self, numbers: Int[Tensor, " N"], rows: Int[Tensor, " b"]) -> Bool[Tensor, "b G"]:
        own = numbers[rows][:, None]
        return (own >= 0) & (own == numbers[self.gallery])

    def category_first(
        self, rows: Int[Tensor, " b"], negative: Float[Tensor, "b G"], best_positive: Float[Tensor, " b"]
    ) -> Bool[Tensor, " b"] | None:
        """Tell whether the best image of a query's category is more similar than any other; overwrites `negative`."""
        if self.categories is None:
            return None
        other = self.categories[rows][:, None] != self.categories[self.gallery]
        best_of_category = torch.maximum(best_positive, _row_max(negative.masked_fill(other, -torch.inf)))
        return (best_of_category > _row_max(negative.masked_fill_(~other, -torch.inf))).cpu()


def _row_max(x: Float[Tensor, "b G"]) -> Float[Tensor, " b"]:
    """Return the largest of each row, -inf without columns."""
    return x.amax(dim=1) if x.shape[1] else x.new_full((len(x),), -torch.inf)


def largest(x: Float[Tensor, "b G"], k: int) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Return the k largest of each row and their columns, like `torch.topk` but several times as fast for small k."""
    buckets = x.shape[1] // BUCKET
    if buckets < 4 * k:
        return x.topk(k, dim=1)
    # they lie in the k buckets of columns whose maxima are the largest
    chosen = x[:, : buckets * BUCKET].unflatten(1, (buckets, BUCKET)).amax(dim=2).topk(k, dim=1).indices
    columns = (chosen[:, :, None] * BUCKET + torch.arange(BUCKET, device=x.device)).flatten(1)
    rest = torch.arange(buckets * BUCKET, x.shape[1], device=x.device).expand(len(x), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, places = x.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)


def unit_rows(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Scale each row to length 1, in float64; a row of zeros stays zero."""
    rows = torch.from_numpy(np.ascontiguousarray(x)).double()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows / length.where(length > 0, 1.0)).numpy()


def _distinct_rows(x: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "U D"], Int[np.ndarray, " N"]]:
    """Return the rows that differ from each other in some bit, and which of them each row is."""
    x = np.ascontiguousarray(x + 0.0)  # -0.0 and 0.0 are one number
    as_bytes = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
    _, first, copy_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    return (x, np.arange(len(x))) if len(first) == len(x) else (x[first], copy_of.ravel())
