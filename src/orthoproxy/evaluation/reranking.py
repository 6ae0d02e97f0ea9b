"""Re-ranking: images whose nearest neighbors are also those of the query move up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from orthoproxy.core.errors import InputError
from orthoproxy.evaluation.retrieval import Retrieval, nearest_neighbors, unit_rows

K1, K2, WEIGHT = 20, 6, 0.3  # as published
CANDIDATES = 100  # of each query; others keep their order behind them
BYTES_PER_NEIGHBOR = 32  # its row number and similarity, and a copy of both


def rerank(
    retrieval: Retrieval,
    k1: int = K1,
    k2: int = K2,
    weight: float = WEIGHT,
    candidates: int = CANDIDATES,
    block_memory_mb: float = 512,
    device: str = "cpu",
) -> Retrieval:
    r"""Raise the similarity of each query's candidates by how much their k-reciprocal neighbors are the query's.

    Candidates are ranked by :math:`\lambda \cos + (1 - \lambda) J`, with :math:`J` the Jaccard similarity of the
    encoded neighbors. As if the query came alone, only itself and what it may find are neighbors: neither what is
    excluded from its gallery nor other queries that are not in the gallery.

    Parameters
    ----------
    retrieval
        What to search.
    k1, k2
        Number of neighbors that are encoded, and of those whose codes are averaged, the image itself included.
    weight
        :math:`\lambda`, above 0; with 1 the order is that of the cosines.
    candidates
        How many nearest neighbors of a query are re-ranked.
    block_memory_mb, device
        As in `nearest_neighbors`; also limits the neighbor lists of the gallery.

    Returns
    -------
    Retrieval
        With `raised`.

    Raises
    ------
    InputError
        If the neighbor lists would take more memory.

    References
    ----------
    Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Distances are
    1 - cosine; the authors' code divides squared distances by the largest instead.

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.8, -0.6]])
    >>> retrieval = Retrieval(points, np.array([0, 1, 1, 0]), queries=np.array([0]), gallery=np.arange(4))
    >>> nearest_neighbors(rerank(retrieval, k1=2, k2=1), k=3)[0]
    array([[3, 1, 2]])
    """
    gallery, units = np.sort(retrieval.gallery), unit_rows(retrieval.embeddings)
    length = list_length(retrieval, k1, block_memory_mb)
    among = replace(retrieval, queries=gallery, groups=None, copies=None)
    rows, similarity = nearest_neighbors(among, length, block_memory_mb, device)
    lists, gallery_units = np.searchsorted(gallery, rows), units[gallery]
    found, _ = nearest_neighbors(retrieval, max(candidates, k1), block_memory_mb, device)
    raised = np.zeros(found.shape)
    for place, query in enumerate(retrieval.queries.tolist()):
        nearest = np.searchsorted(gallery, found[place][found[place] >= 0])
        pool = _Pool(units[query], gallery_units, nearest, lists, similarity, _allowed(retrieval, query, gallery), k1)
        raised[place, : len(nearest)] = pool.overlaps(nearest, k2)
    return replace(retrieval, raised=(found, raised * (1 - weight) / weight))


def list_length(retrieval: Retrieval, k1: int = K1, block_memory_mb: float = 512) -> int:
    """Return how long the gallery's neighbor lists must be to hold k1 that any query may find."""
    gallery = np.sort(retrieval.gallery)
    fewest = min((_allowed(retrieval, query, gallery).sum() for query in retrieval.queries.tolist()), default=0)
    length = max(0, min(len(gallery) - 1, k1 + len(gallery) - int(fewest)))
    needed = BYTES_PER_NEIGHBOR * len(gallery) * length / 2**20
    if needed > block_memory_mb:
        problem = f"re-ranking holds {length} neighbors of each of {len(gallery)} images"
        hint = "raise the limit, exclude less of a query's group, or do without re-ranking"
        raise InputError(problem, field="block_memory_mb", expected=f"at least {needed:.3g}", hint=hint)
    return length


def _allowed(retrieval: Retrieval, query: int, gallery: Int[np.ndarray, " G"]) -> Bool[np.ndarray, " G"]:
    """Tell which of the gallery a query may find."""

    def shared(numbers: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " G"]:
        return (numbers[query] >= 0) & (numbers[gallery] == numbers[query])

    excluded = gallery == query
    if retrieval.groups is not None and retrieval.exclude != "none":
        own_class = retrieval.labels[gallery] == retrieval.labels[query]
        excluded |= shared(retrieval.groups) & (own_class | (retrieval.exclude == "group"))
    return ~(excluded if retrieval.copies is None else excluded | shared(retrieval.copies))


class _Pool:
    """Neighbor lists, made when needed, by place in the gallery; the query is place G. Each begins with itself."""

    def __init__(
        self,
        query: Float[np.ndarray, " D"],
        gallery: Float[np.ndarray, "G D"],
        nearest: Int[np.ndarray, " n"],
        lists: Int[np.ndarray, "G L"],
        similarity: Float[np.ndarray, "G L"],
        allowed: Bool[np.ndarray, " G"],
        k1: int,
    ) -> None:
        self.query, self.gallery, self.allowed, self.k1 = query, gallery, allowed, k1
        self.lists, self.similarity = lists, similarity
        self.width = min(k1, int(allowed.sum()))
        self.neighbors = np.empty((len(gallery) + 1, self.width + 1), dtype=np.int64)
        self.neighbors[-1] = [len(gallery), *nearest[: self.width]]
        self.known = np.arange(len(gallery) + 1) == len(gallery)

    def reach(self, places: Int[np.ndarray, " n"], k: int) -> Int[np.ndarray, " m"]:
        """Return these images and their k nearest neighbors, in order."""
        for length in (4 * self.k1, self.lists.shape[1]):  # most lists need no more than their beginning
            new = places[~self.known[places]]
            lists = self.lists[new, :length]
            allowed = self.allowed[lists]
            enough = (allowed.sum(axis=1) >= self.width) | (length >= self.lists.shape[1])
            new, lists, allowed = new[enough], lists[enough], allowed[enough]
            first = np.argsort(~allowed, axis=1, kind="stable")[:, : self.width]
            similarity = np.where(allowed, self.similarity[new, :length], -np.inf)
            similarity = np.column_stack(
                [np.take_along_axis(similarity, first, axis=1), self.gallery[new] @ self.query]
            )
            lists = np.column_stack([np.take_along_axis(lists, first, axis=1), np.full(len(new), len(self.gallery))])
            order = np.argsort(-similarity, axis=1, kind="stable")[:, : self.width]
            self.neighbors[new] = np.column_stack([new, np.take_along_axis(lists, order, axis=1)])
            self.known[new] = True
        return np.unique(self.neighbors[places, : k + 1])

    def reciprocal(
        self, places: Int[np.ndarray, " n"], k: int
    ) -> tuple[Int[np.ndarray, "n _"], Bool[np.ndarray, "n _"]]:
        """Return the k nearest neighbors of images, and which of them have the image among theirs."""
        near = self.neighbors[places, : k + 1]
        return near, (self.neighbors[near, : k + 1] == places[:, None, None]).any(axis=2)

    def overlaps(self, candidates: Int[np.ndarray, " K"], k2: int) -> Float[np.ndarray, " K"]:
        """Return the Jaccard similarity of the query's encoded neighbors with those of each candidate."""
        half, compared = round(self.k1 / 2), np.array([len(self.gallery), *candidates])
        encoded = self.reach(compared, k2 - 1)
        around = self.reach(encoded, self.k1)
        members = self.reach(around, half)
        self.reach(members, 0)
        column = np.empty(len(self.known), dtype=np.int64)
        column[members] = np.arange(len(members))
        near, mutual = self.reciprocal(encoded, self.k1)
        sets, belongs = (x[np.searchsorted(around, near)] for x in self.reciprocal(around, half))
        row, sets = np.arange(len(encoded))[:, None], column[sets]
        code = np.zeros((len(encoded), len(members)), dtype=bool)
        code[row, column[near]] = mutual
        shared = (code[row[:, :, None], sets] & belongs).sum(axis=2)
        belongs &= (mutual & (3 * shared >= 2 * belongs.sum(axis=2)))[:, :, None]
        code[np.nonzero(belongs)[0], sets[belongs]] = True
        used = code.any(axis=0)
        units = np.vstack([self.gallery[members[:-1]], self.query])
        weights = np.where(code[:, used], np.exp(units[column[encoded]] @ units[used].T - 1), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        averaged = weights[np.searchsorted(encoded, self.neighbors[compared, :k2])].mean(axis=1)
        smaller = np.minimum(averaged[0], averaged[1:]).sum(axis=1)
        return smaller / (2 - smaller)
